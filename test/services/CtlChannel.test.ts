import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FiberSet from "effect/FiberSet"
import * as TestClock from "effect/testing/TestClock"
import * as CtlMessage from "../../src/domain/CtlMessage.ts"
import type * as DaemonState from "../../src/domain/DaemonState.ts"
import * as CtlChannel from "../../src/services/CtlChannel.ts"
import { Deadlines } from "../../src/services/Deadlines.ts"
import { defaults, Settings } from "../../src/services/Settings.ts"
import { Ticket } from "../../src/services/Ticket.ts"
import * as MemoryWire from "../support/MemoryWire.ts"
import * as Records from "../support/Records.ts"

const { Code } = CtlMessage
const none = new Uint8Array(0)
const bytes = (text: string) => new TextEncoder().encode(text)
const text = (payload: Uint8Array) => new TextDecoder().decode(payload)

/** A channel, and the agent's end of it. What the proxy wrote is in `written`, one entry a command. */
const open = Effect.gen(function* () {
  const { a, b } = MemoryWire.pair("vm.ctl", "proxy")
  const written: Array<{ readonly code: number; readonly text: string }> = []
  const events: Array<{ readonly code: number; readonly text: string }> = []
  const channel = yield* CtlChannel.make(a, {
    connecting: () => {},
    event: (code, payload) => {
      events.push({ code, text: text(payload) })
      return undefined
    },
    lost: () => {},
    run: yield* FiberSet.makeRuntime()
  }).pipe(Effect.provideService(Deadlines, yield* Deadlines.make))
  yield* Effect.forkScoped(Effect.ignore(channel.run), { startImmediately: true })
  const parser = CtlMessage.makeParser()
  yield* Effect.forkScoped(
    Effect.gen(function* () {
      for (;;) parser.push(yield* b.pull, (code, payload) => written.push({ code, text: text(payload) }))
    }).pipe(Effect.ignore),
    { startImmediately: true }
  )
  const say = (code: number, payload: Uint8Array = none) => b.offer([CtlMessage.encode(code, payload)])
  const ask = (command: keyof typeof Code, payload: Uint8Array = none) =>
    Effect.forkChild(channel.request({ command, code: Code[command], payload }), { startImmediately: true })
  return { channel, wire: b, written, events, say, ask }
})

/** A channel of which an earlier daemon knew this, with its agent's end. */
const resumed = Effect.fnUntraced(function* (
  channel: DaemonState.Channel | undefined,
  { starting = false, torn = false }: { readonly starting?: boolean; readonly torn?: boolean } = {}
) {
  const { a, b } = MemoryWire.pair("vm.ctl", "proxy")
  const written: Array<number> = []
  const replies: Array<string> = []
  const made = yield* CtlChannel.make(a, {
    connecting: () => {},
    event: () => undefined,
    lost: () => {},
    run: yield* FiberSet.makeRuntime()
  }).pipe(Effect.provideService(Deadlines, yield* Deadlines.make))
  made.resume({ agent: "c", channel, onReply: (reply) => void replies.push(reply), starting, torn })
  yield* Effect.forkScoped(Effect.ignore(made.run), { startImmediately: true })
  const parser = CtlMessage.makeParser()
  yield* Effect.forkScoped(
    Effect.gen(function* () {
      for (;;) parser.push(yield* b.pull, (code) => written.push(code))
    }).pipe(Effect.ignore),
    { startImmediately: true }
  )
  return {
    channel: made,
    written,
    replies,
    raw: (chunk: Uint8Array) => b.offer([chunk]),
    say: (code: number, payload: Uint8Array = none) => b.offer([CtlMessage.encode(code, payload)]),
    ask: (command: keyof typeof Code) =>
      Effect.forkChild(made.request({ command, code: Code[command], payload: none }), { startImmediately: true })
  }
})

const ready = Effect.tap(open, ({ say }) => Effect.sync(() => say(Code.ready)))
const codes = (written: ReadonlyArray<{ readonly code: number }>) => written.map(({ code }) => code)

describe("CtlChannel", () => {
  it.effect("is ready once the agent has said READY", () =>
    Effect.gen(function* () {
      const { channel, say } = yield* open
      const waiting = yield* Effect.forkChild(channel.ready(1000), { startImmediately: true })
      yield* TestClock.adjust("999 millis")
      assert.isUndefined(waiting.pollUnsafe())
      say(Code.ready)
      assert.isTrue(yield* Fiber.join(waiting))
      assert.isTrue(yield* channel.ready(1000))
    })
  )

  it.effect("is not ready where READY does not come in time, and may be asked again", () =>
    Effect.gen(function* () {
      const { channel, say } = yield* open
      const waiting = yield* Effect.forkChild(channel.ready(1000), { startImmediately: true })
      yield* TestClock.adjust("1 seconds")
      assert.isFalse(yield* Fiber.join(waiting))
      say(Code.ready)
      assert.isTrue(yield* channel.ready(1000))
    })
  )

  it.effect("tells whether it has ended in time", () =>
    Effect.gen(function* () {
      const { channel, wire } = yield* ready
      const early = yield* Effect.forkChild(channel.ended(100), { startImmediately: true })
      yield* TestClock.adjust("99 millis")
      assert.isUndefined(early.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      assert.isFalse(yield* Fiber.join(early))
      const inTime = yield* Effect.forkChild(channel.ended(100), { startImmediately: true })
      wire.close()
      assert.isTrue(yield* Fiber.join(inTime))
      assert.isTrue(yield* channel.ended(100))
    })
  )

  for (const [name, code] of [
    ["ACK", Code.ack],
    ["ERROR", Code.error],
    ["an event", Code.processEvent]
  ] as const)
    it.effect(`fails at once when ${name} stands in place of READY`, () =>
      Effect.gen(function* () {
        const { channel, say } = yield* open
        say(code)
        const error = yield* Effect.flip(channel.ready(1000))
        assert.match(error.message, /in place of READY/)
      })
    )

  it.effect("gives an ACK's payload to whoever asked, and an ERROR's text as a failure", () =>
    Effect.gen(function* () {
      const { ask, say } = yield* ready
      const first = yield* ask("readfile")
      say(Code.ack, bytes("contents"))
      assert.strictEqual(text(yield* Fiber.join(first)), "contents")
      const second = yield* ask("startpod")
      say(Code.error, bytes("no such thing"))
      const error = yield* Effect.flip(Fiber.join(second))
      assert.strictEqual(error.message, "agent refused startpod")
      assert.propertyVal(error, "told", "agent refused startpod: no such thing")
      const third = yield* ask("startpod")
      say(Code.error)
      assert.strictEqual((yield* Effect.flip(Fiber.join(third))).message, "agent refused startpod")
    })
  )

  it.effect("writes one command at a time, in the order in which they were asked", () =>
    Effect.gen(function* () {
      const { ask, channel, say, written } = yield* ready
      const fibers = [yield* ask("startpod"), yield* ask("ping"), yield* ask("winsize")]
      assert.deepStrictEqual(codes(written), [Code.startpod])
      assert.strictEqual(channel.waiting(), 2)
      say(Code.ack, bytes("1"))
      assert.deepStrictEqual(codes(written), [Code.startpod, Code.ping])
      say(Code.ack, bytes("2"))
      say(Code.ack, bytes("3"))
      const replies = yield* Effect.forEach(fibers, (fiber) => Fiber.join(fiber))
      assert.deepStrictEqual(replies.map(text), ["1", "2", "3"])
      assert.deepStrictEqual(codes(written), [Code.startpod, Code.ping, Code.winsize])
    })
  )

  it.effect("ignores NEXT, and tells a C agent by it and a Go agent by its absence", () =>
    Effect.gen(function* () {
      const c = yield* ready
      assert.strictEqual(c.channel.kind(), "unknown")
      const asked = yield* c.ask("ping")
      c.say(Code.next, Uint8Array.of(0, 0, 0, 8))
      assert.isUndefined(asked.pollUnsafe())
      c.say(Code.ack)
      yield* Fiber.join(asked)
      assert.strictEqual(c.channel.kind(), "c")

      const go = yield* ready
      const ping = yield* go.ask("ping")
      go.say(Code.ack)
      yield* Fiber.join(ping)
      assert.strictEqual(go.channel.kind(), "go")
    })
  )

  it.effect("takes no event for a reply", () =>
    Effect.gen(function* () {
      const { ask, events, say } = yield* ready
      const asked = yield* ask("ping")
      say(Code.processEvent, bytes("{}"))
      say(Code.signalprocess, bytes("[]"))
      say(Code.ack, bytes("mine"))
      assert.strictEqual(text(yield* Fiber.join(asked)), "mine")
      assert.deepStrictEqual(events, [
        { code: 23, text: "{}" },
        { code: 24, text: "[]" }
      ])
    })
  )

  it.effect("drops a reply that nobody waits for, and a second READY", () =>
    Effect.gen(function* () {
      const { ask, say } = yield* ready
      say(Code.ack, bytes("stray"))
      say(Code.ready)
      const asked = yield* ask("ping")
      say(Code.ack, bytes("mine"))
      assert.strictEqual(text(yield* Fiber.join(asked)), "mine")
    })
  )

  it.effect("withdraws a command whose client leaves before it is written, and finishes one that is", () =>
    Effect.gen(function* () {
      const { ask, say, written } = yield* ready
      const leaver = yield* ask("startpod")
      const early = yield* ask("winsize")
      const third = yield* ask("ping")
      yield* Fiber.interrupt(early)
      yield* Fiber.interrupt(leaver)
      say(Code.ack, bytes("for the one that left"))
      assert.deepStrictEqual(codes(written), [Code.startpod, Code.ping])
      say(Code.ack, bytes("mine"))
      assert.strictEqual(text(yield* Fiber.join(third)), "mine")
    })
  )

  it.effect("refuses a command over the limit without writing it, and takes one at the limit", () =>
    Effect.gen(function* () {
      const { ask, say, written } = yield* ready
      const error = yield* Effect.flip(Fiber.join(yield* ask("writefile", new Uint8Array(93))))
      assert.strictEqual(error.message, "writefile is too large: 101 bytes, the limit is 100")
      assert.deepStrictEqual(written, [])
      const asked = yield* ask("writefile", new Uint8Array(92))
      say(Code.ack)
      yield* Fiber.join(asked)
    }).pipe(Effect.provideService(Settings, { ...defaults, maxCtlCommand: 100 }))
  )

  describe("when the agent does not answer", () => {
    it.effect("fails the command after its deadline, counted from its write", () =>
      Effect.gen(function* () {
        const { ask, channel, say } = yield* ready
        const first = yield* ask("startpod")
        yield* TestClock.adjust("50 seconds")
        say(Code.ack)
        yield* Fiber.join(first)
        const second = yield* ask("ping")
        yield* TestClock.adjust("59 seconds")
        assert.isUndefined(second.pollUnsafe())
        assert.isFalse(channel.suspect())
        yield* TestClock.adjust("1 seconds")
        assert.strictEqual(
          (yield* Effect.flip(Fiber.join(second))).message,
          "timeout: no reply from the agent: ping, 1m"
        )
        assert.isTrue(channel.suspect())
      })
    )

    it.effect("fails the commands behind it by their own deadlines, unwritten", () =>
      Effect.gen(function* () {
        const { ask, written } = yield* ready
        yield* ask("startpod")
        yield* TestClock.adjust("10 seconds")
        const second = yield* ask("winsize")
        yield* TestClock.adjust("50 seconds")
        assert.isUndefined(second.pollUnsafe())
        yield* TestClock.adjust("10 seconds")
        assert.strictEqual(
          (yield* Effect.flip(Fiber.join(second))).message,
          "timeout: the agent is busy with an earlier command: winsize, 1m"
        )
        assert.notInclude(codes(written), Code.winsize)
      })
    )

    it.effect("drops the late reply and gives the next command its own", () =>
      Effect.gen(function* () {
        const { ask, channel, say, written } = yield* ready
        const first = yield* ask("startpod")
        yield* TestClock.adjust("60 seconds")
        yield* Effect.flip(Fiber.join(first))
        const second = yield* ask("readfile")
        assert.deepStrictEqual(codes(written), [Code.startpod, Code.ping])
        say(Code.ack, bytes("late"))
        assert.deepStrictEqual(codes(written), [Code.startpod, Code.ping])
        say(Code.ack) // the ping's
        assert.deepStrictEqual(codes(written), [Code.startpod, Code.ping, Code.readfile])
        assert.isFalse(channel.suspect())
        say(Code.ack, bytes("mine"))
        assert.strictEqual(text(yield* Fiber.join(second)), "mine")
      })
    )

    it.effect("goes on when two pings in a row have one reply each: the command was dropped by the agent", () =>
      Effect.gen(function* () {
        const { ask, channel, say, written } = yield* ready
        const lost: Array<string> = []
        const first = yield* Effect.forkChild(
          channel.request({
            command: "startpod",
            code: Code.startpod,
            payload: none,
            onReply: (reply) => void lost.push(reply)
          }),
          { startImmediately: true }
        )
        yield* TestClock.adjust("60 seconds")
        yield* Effect.flip(Fiber.join(first))
        const second = yield* ask("readfile")
        say(Code.ack)
        yield* TestClock.adjust("99 millis")
        assert.deepStrictEqual(codes(written), [Code.startpod, Code.ping])
        yield* TestClock.adjust("1 millis")
        assert.deepStrictEqual(codes(written), [Code.startpod, Code.ping, Code.ping])
        say(Code.ack)
        yield* TestClock.adjust("399 millis") // four times as long as the agent took, the 100 ms of before included
        assert.deepStrictEqual(codes(written), [Code.startpod, Code.ping, Code.ping])
        yield* TestClock.adjust("1 millis")
        assert.deepStrictEqual(codes(written), [Code.startpod, Code.ping, Code.ping, Code.readfile])
        assert.deepStrictEqual(lost, ["lost"])
        say(Code.ack, bytes("mine"))
        assert.strictEqual(text(yield* Fiber.join(second)), "mine")
      })
    )

    it.effect("is not misled by an agent that is slow with every command", () =>
      Effect.gen(function* () {
        const { ask, say, written } = yield* ready
        yield* ask("startpod")
        yield* TestClock.adjust("60 seconds")
        const second = yield* ask("writefile")
        // each answer takes 1.5 s, so the late one comes alone, and so does the first ping's
        for (let answered = 0; answered < 4 && codes(written).at(-1) !== Code.writefile; answered++) {
          yield* TestClock.adjust("1500 millis")
          say(Code.ack)
        }
        yield* TestClock.adjust("7 seconds")
        while (codes(written).at(-1) !== Code.writefile) {
          say(Code.ack)
          yield* TestClock.adjust("7 seconds")
        }
        say(Code.ack, bytes("mine"))
        assert.strictEqual(text(yield* Fiber.join(second)), "mine")
      })
    )

    it.effect("tells a late reply by its payload, and waits for the ping's", () =>
      Effect.gen(function* () {
        const { ask, channel, say, written } = yield* ready
        const replies: Array<string> = []
        yield* Effect.forkChild(
          Effect.ignore(
            channel.request({
              command: "startpod",
              code: Code.startpod,
              payload: none,
              onReply: (reply) => void replies.push(reply)
            })
          ),
          { startImmediately: true }
        )
        yield* TestClock.adjust("60 seconds")
        yield* ask("readfile")
        say(Code.error, bytes("late refusal"))
        yield* TestClock.adjust("100 millis")
        assert.deepStrictEqual(codes(written), [Code.startpod, Code.ping, Code.ping])
        say(Code.ack)
        say(Code.ack)
        assert.strictEqual(codes(written).at(-1), Code.readfile)
        assert.deepStrictEqual(replies, ["error"])
      })
    )

    it.effect("asks again with growing pauses", () =>
      Effect.gen(function* () {
        const { ask, written } = yield* ready
        yield* ask("startpod")
        yield* TestClock.adjust("60 seconds")
        const pings = () => codes(written).filter((code) => code === Code.ping).length
        assert.strictEqual(pings(), 1)
        yield* TestClock.adjust("1 seconds")
        assert.strictEqual(pings(), 2)
        yield* TestClock.adjust("1 seconds")
        assert.strictEqual(pings(), 2)
        yield* TestClock.adjust("1 seconds")
        assert.strictEqual(pings(), 3)
        yield* TestClock.adjust("10 minutes")
        assert.isAtMost(pings(), 20)
      })
    )

    it.effect("ends its resynchronisation with the VM", () =>
      Effect.gen(function* () {
        const { ask, channel, wire } = yield* ready
        yield* ask("startpod")
        yield* TestClock.adjust("60 seconds")
        const behind = yield* ask("ping")
        wire.close()
        assert.match((yield* Effect.flip(Fiber.join(behind))).message, /^VM lost/)
        assert.isTrue(yield* channel.ended(0))
      })
    )
  })

  it.effect("fails what is under way, and all that comes later, when the channel ends", () =>
    Effect.gen(function* () {
      const { ask, wire } = yield* ready
      const inFlight = yield* ask("startpod")
      const waiting = yield* ask("ping")
      wire.close()
      for (const fiber of [inFlight, waiting, yield* ask("ping")])
        assert.match((yield* Effect.flip(Fiber.join(fiber))).message, /^VM lost: ctl: vm.ctl closed the connection/)
    })
  )

  it.effect("ends at a message of impossible length", () =>
    Effect.gen(function* () {
      const { ask, wire } = yield* ready
      const asked = yield* ask("startpod")
      wire.offer([Uint8Array.of(0, 0, 0, 9, 0, 0, 0, 7)])
      assert.match((yield* Effect.flip(Fiber.join(asked))).message, /bad ctl message: length 7/)
    })
  )
})

describe("a channel that an earlier daemon had,", () => {
  const current = { command: "newcontainer", code: Code.newcontainer, millis: 50_000 }
  const inFlight = { owed: 0, sawNext: false, current }
  const rejoin = (channel: CtlChannel.CtlChannel, ticket = new Ticket()) =>
    Effect.forkChild(channel.rejoin(ticket), { startImmediately: true })

  it.effect("in step and idle, takes commands at once, and knows its agent", () =>
    Effect.gen(function* () {
      const { ask, channel, say, written } = yield* resumed({ owed: 0, sawNext: false })
      assert.strictEqual(channel.kind(), "c")
      assert.isTrue(yield* channel.inStep(0))
      const asked = yield* ask("readfile")
      assert.deepStrictEqual(written, [Code.readfile])
      say(Code.ack, bytes("read"))
      assert.strictEqual(text(yield* Fiber.join(asked)), "read")
    })
  )

  it.effect("gives the reply to the command in flight to whoever waits for it, and the next its turn", () =>
    Effect.gen(function* () {
      const { ask, channel, replies, say, written } = yield* resumed(inFlight)
      const ticket = new Ticket()
      const waiting = yield* rejoin(channel, ticket)
      assert.strictEqual(channel.carry(0).ticket, ticket)
      const next = yield* ask("readfile")
      assert.deepStrictEqual(written, [])
      say(Code.ack, bytes("started"))
      assert.strictEqual(text(yield* Fiber.join(waiting)), "started")
      assert.deepStrictEqual(replies, ["ack"])
      assert.deepStrictEqual(written, [Code.readfile])
      say(Code.ack, bytes("read"))
      assert.strictEqual(text(yield* Fiber.join(next)), "read")
      assert.deepStrictEqual(replies, ["ack"])
    })
  )

  it.effect("keeps the turn of a command whose client has gone, and drops its reply", () =>
    Effect.gen(function* () {
      const { ask, channel, replies, say, written } = yield* resumed(inFlight)
      yield* Fiber.interrupt(yield* rejoin(channel))
      assert.isUndefined(channel.carry(0).ticket)
      const next = yield* ask("readfile")
      say(Code.error, bytes("no"))
      assert.deepStrictEqual(replies, ["error"])
      assert.deepStrictEqual(written, [Code.readfile])
      say(Code.ack, bytes("read"))
      assert.strictEqual(text(yield* Fiber.join(next)), "read")
    })
  )

  it.effect("gives up a command when its time is over, the earlier daemon's included", () =>
    Effect.gen(function* () {
      const { channel, written } = yield* resumed(inFlight)
      const waiting = yield* rejoin(channel)
      yield* TestClock.adjust("9 seconds")
      assert.isUndefined(waiting.pollUnsafe())
      yield* TestClock.adjust("1 seconds")
      const error = yield* Effect.flip(Fiber.join(waiting))
      assert.strictEqual(error._tag === "CtlTimeout" && error.written && error.command, "newcontainer")
      assert.isTrue(channel.suspect())
      assert.deepStrictEqual(written, [Code.ping])
    })
  )

  it.effect("that owes replies is brought in step first: none of them is taken for another's", () =>
    Effect.gen(function* () {
      const { ask, channel, replies, say, written } = yield* resumed({ ...inFlight, owed: 2 })
      assert.isTrue(channel.suspect())
      const next = yield* ask("readfile")
      assert.deepStrictEqual(written, [Code.ping])
      for (const late of ["start", "", ""]) say(Code.ack, bytes(late))
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(written, [Code.ping, Code.readfile])
      assert.deepStrictEqual(replies, ["ack"])
      say(Code.ack, bytes("read"))
      assert.strictEqual(text(yield* Fiber.join(next)), "read")
    })
  )

  it.effect("tells how long a command has waited, and what of a message there is", () =>
    Effect.gen(function* () {
      const { channel, raw } = yield* resumed(inFlight)
      yield* TestClock.adjust("2 seconds")
      assert.deepStrictEqual(channel.carry(2000).channel, { ...inFlight, current: { ...current, millis: 52_000 } })
      const reply = CtlMessage.encode(Code.ack, bytes("started"))
      raw(CtlMessage.encode(Code.next, Uint8Array.of(0, 0, 0, 8)))
      raw(reply.subarray(0, 9))
      assert.deepStrictEqual([...channel.rest()], [...reply.subarray(0, 9)])
      assert.isTrue(channel.carry(2000).channel.sawNext)
    })
  )

  it.effect("of which nothing is known is listened to before it is asked: the reply that was owed comes first", () =>
    Effect.gen(function* () {
      const { ask, channel, replies, say, written } = yield* resumed(undefined)
      const next = yield* ask("readfile")
      yield* TestClock.adjust("50 millis")
      assert.deepStrictEqual(written, [])
      say(Code.error, bytes("the start failed"))
      yield* TestClock.adjust("50 millis")
      assert.deepStrictEqual(written, [Code.ping])
      assert.isTrue(channel.suspect())
      say(Code.ack)
      yield* TestClock.adjust("1 millis")
      assert.isTrue(yield* channel.inStep(0))
      assert.deepStrictEqual(replies, ["error"])
      assert.deepStrictEqual(written, [Code.ping, Code.readfile])
      say(Code.ack, bytes("read"))
      assert.strictEqual(text(yield* Fiber.join(next)), "read")
    })
  )

  it.effect("is listened to for longer where a start may be in flight", () =>
    Effect.gen(function* () {
      const { replies, say, written } = yield* resumed(undefined, { starting: true })
      yield* TestClock.adjust("999 millis")
      assert.deepStrictEqual(written, [])
      say(Code.ack)
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(written, [Code.ping])
      say(Code.ack)
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(replies, ["ack"])
    })
  )

  it.effect("that owed nothing is in step once two pings have had one answer each", () =>
    Effect.gen(function* () {
      const { channel, replies, say, written } = yield* resumed(undefined)
      for (const pings of [1, 2]) {
        yield* TestClock.adjust("100 millis")
        assert.strictEqual(written.length, pings)
        assert.isTrue(channel.suspect())
        say(Code.ack)
        yield* TestClock.adjust("99 millis")
      }
      yield* TestClock.adjust("1 seconds")
      assert.isTrue(yield* channel.inStep(0))
      assert.deepStrictEqual(written, [Code.ping, Code.ping])
      assert.deepStrictEqual(replies, ["lost"])
    })
  )

  it.effect("is asked again and again where its agent does not answer, and is in step when it does", () =>
    Effect.gen(function* () {
      const { channel, say, written } = yield* resumed(undefined)
      yield* TestClock.adjust("100 millis")
      for (const seconds of [1, 2, 4, 8]) yield* TestClock.adjust(seconds * 1000)
      assert.strictEqual(written.length, 5)
      const waiting = yield* Effect.forkChild(channel.inStep(10_000), { startImmediately: true })
      yield* TestClock.adjust("10 seconds")
      assert.isFalse(yield* Fiber.join(waiting))
      for (let n = 0; n < 6; n++) say(Code.ack)
      yield* TestClock.adjust("1 millis")
      assert.isTrue(yield* channel.inStep(0))
    })
  )

  it.effect("of which a part of a message had been read goes on with the next whole one", () => {
    const { layer, records } = Records.make()
    return Effect.gen(function* () {
      const { raw, replies, say } = yield* resumed(undefined, { torn: true })
      raw(CtlMessage.encode(Code.ack, bytes("half of it is gone")).subarray(12))
      raw(CtlMessage.encode(Code.ack, bytes("whole")).subarray(0, 6))
      raw(CtlMessage.encode(Code.ack, bytes("whole")).subarray(6))
      yield* TestClock.adjust("100 millis")
      say(Code.ack)
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(replies, ["ack"])
      const warnings = records.filter(({ level }) => level === "Warn")
      assert.deepStrictEqual(
        warnings.map(({ fields, msg }) => [msg, fields]),
        [["part of a reply skipped", { bytes: 14 }]]
      )
    }).pipe(Effect.provide(layer))
  })

  it.effect("of which nothing is a message is lost", () =>
    Effect.gen(function* () {
      const { channel, raw } = yield* resumed(undefined, { torn: true })
      for (let n = 0; n < 40; n++) {
        raw(bytes("no message ".repeat(200)))
        yield* Effect.yieldNow
      }
      assert.isTrue(yield* channel.ended(0))
    })
  )
})
