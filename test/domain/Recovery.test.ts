import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as CtlMessage from "../../src/domain/CtlMessage.ts"
import * as IoMessage from "../../src/domain/IoMessage.ts"
import * as Recovery from "../../src/domain/Recovery.ts"
import { CutSizes, concat, cut, pattern, toHex, utf8 } from "../support/Bytes.ts"

const { Code } = CtlMessage
const none = new Uint8Array(0)
const io = IoMessage.traits(100)
const ctl = CtlMessage.traits()

/** Where each message begins, and the end of all. */
const beginnings = (messages: ReadonlyArray<Uint8Array>): ReadonlyArray<number> => {
  let at = 0
  return [0, ...messages.map(({ length }) => (at += length))]
}

const Messages = Schema.NonEmptyArray(
  Schema.Struct({
    kind: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 5 })),
    length: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 300 }))
  })
)
const Share = Schema.Finite.check(Schema.isBetween({ minimum: 0, maximum: 1 }))

/** Output of three processes, in text, in zeros and in anything, with ends and statuses between. */
const ioMessages = (sent: typeof Messages.Type) =>
  sent.map(({ kind, length }, n) => {
    const data = kind < 2 ? pattern(length, n) : kind < 4 ? utf8("y\n".repeat(length)) : new Uint8Array(length)
    return IoMessage.encode(3 + kind, data)
  })

const ctlMessages = (sent: typeof Messages.Type) =>
  sent.map(({ kind, length }) => {
    const code = [Code.ack, Code.error, Code.next, Code.processEvent, Code.ready, Code.signalprocess][kind]!
    return CtlMessage.encode(code, kind === 2 ? Uint8Array.of(0, 0, 0, 8) : utf8("x".repeat(length)))
  })

describe("the first message", () => {
  for (const [name, traits, messagesOf] of [
    ["output", io, ioMessages],
    ["replies", ctl, ctlMessages]
  ] as const)
    it.prop(
      `of ${name} is found from wherever the bytes begin, whether or not the last is whole`,
      { sent: Messages, from: Share, to: Share },
      ({ from, sent, to }) => {
        const messages = messagesOf(sent)
        const whole = concat(messages)
        const begin = Math.floor(from * whole.length)
        const rest = whole.subarray(begin, whole.length - Math.floor(to * messages.at(-1)!.length))
        const first = beginnings(messages).find((at) => at >= begin)!
        const found = Recovery.firstMessage(rest, traits)
        const { headerSize } = traits
        // a header that is not whole cannot be told from data
        if (first - begin + headerSize <= rest.length) assert.strictEqual(found, first - begin)
        else assert.isUndefined(found)
      }
    )

  it("is at 0 where the bytes begin with one", () => {
    assert.strictEqual(Recovery.firstMessage(IoMessage.encode(3, pattern(100)), io), 0)
    assert.strictEqual(Recovery.firstMessage(CtlMessage.encode(Code.ack, none), ctl), 0)
  })

  it("is not found in too few bytes, nor in data", () => {
    for (const bytes of [none, pattern(11), pattern(5000), new Uint8Array(5000), utf8("hello\n".repeat(1000))])
      for (const traits of [io, ctl]) assert.isUndefined(Recovery.firstMessage(bytes, traits))
  })

  it("has a sequence that was given out, and no length that no message has", () => {
    for (const sequence of [0, 100, 101, 2 ** 32 + 3])
      assert.isUndefined(Recovery.firstMessage(IoMessage.encode(sequence, pattern(50)), io))
    const long = IoMessage.encode(3, none)
    new DataView(long.buffer).setUint32(8, IoMessage.maxMessage + 1)
    assert.isUndefined(Recovery.firstMessage(long, io))
    new DataView(long.buffer).setUint32(8, 11)
    assert.isUndefined(Recovery.firstMessage(long, io))
    assert.isUndefined(Recovery.firstMessage(CtlMessage.encode(Code.ping, none), ctl)) // no agent sends it
  })

  it("is not one that a process has made up, where its chain does not end as the bytes do", () => {
    const fake = concat([IoMessage.encode(3, pattern(30)), IoMessage.encode(5, pattern(30))])
    const message = IoMessage.encode(3, concat([fake, pattern(20)]))
    const next = IoMessage.encode(4, pattern(70))
    const torn = concat([message.subarray(5), next])
    assert.strictEqual(Recovery.firstMessage(torn, io), message.length - 5)
  })

  it("is one that a process has made up, where its chain leads to the next real one: of its own VM only", () => {
    const fake = IoMessage.encode(3, pattern(30))
    const message = IoMessage.encode(3, concat([pattern(10), fake]))
    const torn = concat([message.subarray(5), IoMessage.encode(4, pattern(70))])
    assert.strictEqual(Recovery.firstMessage(torn, io), 12 - 5 + 10)
  })

  it("is looked for in one look at each place, whatever chains a process writes", () => {
    const size = 256 * 1024
    const headers = concat(Array.from({ length: size / 12 }, () => IoMessage.encode(3, none)))
    for (const bytes of [headers, headers.subarray(1), concat([headers, pattern(50)])]) {
      let looks = 0
      const counting = {
        ...io,
        plausible: (all: Uint8Array, at: number) => {
          looks++
          return io.plausible(all, at)
        }
      }
      Recovery.firstMessage(bytes, counting)
      assert.isAtMost(looks, bytes.length)
    }
  })
})

describe("a recovery", () => {
  it.prop(
    "lets through all from the first message on, however the bytes are cut, and tells what it has skipped",
    { sent: Messages, from: Share, sizes: CutSizes },
    ({ from, sent, sizes }) => {
      // the last message is there, so that there is one to find
      const messages = [...ioMessages(sent), IoMessage.encode(9, pattern(20))]
      const whole = concat(messages)
      const begin = Math.floor(from * (whole.length - 32))
      const first = beginnings(messages).find((at) => at >= begin)!
      const recovery = Recovery.make(io, 1024 * 1024)
      const through = cut(whole.subarray(begin), sizes).map((piece) => recovery.push(piece))
      assert.isTrue(recovery.done())
      assert.strictEqual(recovery.skipped(), first - begin)
      assert.strictEqual(toHex(concat(through.map((piece) => piece ?? none))), toHex(whole.subarray(first)))
    }
  )

  it("gives nothing out before, and passes on what comes later as it is", () => {
    const recovery = Recovery.make(io, 1000)
    assert.strictEqual(recovery.push(pattern(500))?.length, 0)
    assert.isFalse(recovery.done())
    assert.strictEqual(recovery.skipped(), 0)
    const message = IoMessage.encode(3, pattern(10))
    assert.strictEqual(toHex(recovery.push(message)!), toHex(message))
    assert.strictEqual(recovery.skipped(), 500)
    const later = pattern(5000)
    assert.strictEqual(recovery.push(later), later)
  })

  it("gives up where there is none in as many bytes as it was told", () => {
    const recovery = Recovery.make(io, 1000)
    assert.isDefined(recovery.push(pattern(1000)))
    assert.isUndefined(recovery.push(pattern(1)))
    assert.isFalse(recovery.done())
  })
})
