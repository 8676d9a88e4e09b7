import { assert, describe, it } from "@effect/vitest"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as CtlMessage from "../../src/domain/CtlMessage.ts"
import { CutSizes, concat, cut, fromHex, pattern, toHex, utf8 } from "../support/Bytes.ts"

const { Code } = CtlMessage
const KiB = 1024
const MiB = 1024 * KiB

/** Feeds each piece, then overwrites it: a view that was kept would show it. */
const parse = (pieces: ReadonlyArray<Uint8Array>, limit?: number) => {
  const parser = CtlMessage.makeParser(limit)
  const messages: Array<readonly [code: number, payload: string]> = []
  let error: CtlMessage.CtlError | undefined
  for (const piece of pieces) {
    const pushed = parser.push(piece, (code, payload) => messages.push([code, toHex(payload)]))
    if (Result.isFailure(pushed)) {
      error = pushed.failure
      break
    }
    piece.fill(0xee)
  }
  return { messages, error }
}

const header = (code: number, length: number): Uint8Array => {
  const out = new Uint8Array(8)
  new DataView(out.buffer).setUint32(0, code)
  new DataView(out.buffer).setUint32(4, length)
  return out
}

const golden: ReadonlyArray<readonly [name: string, code: number, payload: Uint8Array, hex: string]> = [
  ["READY", Code.ready, utf8(""), "00000008 00000008"],
  ["ping", Code.ping, utf8(""), "0000000c 00000008"],
  ["NEXT", Code.next, Uint8Array.of(0, 0, 0, 8), "0000000e 0000000c 00000008"],
  ["ACK", Code.ack, utf8(""), "00000009 00000008"],
  [
    "ERROR",
    Code.error,
    utf8("No such container: c1"),
    "0000000a 0000001d 4e6f2073 75636820 636f6e74 61696e65 723a2063 31"
  ],
  ["newcontainer", Code.newcontainer, utf8("{}"), "00000011 0000000a 7b7d"],
  ["a code beyond 2^31", 0xffff_fffe, utf8("x"), "fffffffe 00000009 78"]
]

describe("CtlMessage", () => {
  for (const [name, code, payload, hex] of golden) {
    it(`encodes ${name}, header and payload in one buffer`, () => {
      const encoded = CtlMessage.encode(code, payload)
      assert.strictEqual(toHex(encoded), toHex(fromHex(hex)))
      assert.strictEqual(encoded.buffer.byteLength, encoded.length)
    })

    it(`decodes ${name} in one piece and byte by byte`, () => {
      const expected = { messages: [[code, toHex(payload)]], error: undefined }
      assert.deepStrictEqual<unknown>(parse([fromHex(hex)]), expected)
      assert.deepStrictEqual<unknown>(parse(cut(fromHex(hex), [1])), expected)
    })
  }

  it("decodes the same messages whatever the size of the pieces", () => {
    const whole = concat(golden.map(([, code, payload]) => CtlMessage.encode(code, payload)))
    const expected = golden.map(([, code, payload]) => [code, toHex(payload)])
    for (let size = 1; size <= whole.length; size++)
      assert.deepStrictEqual<unknown>(
        parse(cut(whole, [size])),
        { messages: expected, error: undefined },
        `pieces of ${size} bytes`
      )
  })

  it.prop(
    "decodes the same messages however they are cut",
    {
      sent: Schema.Array(
        Schema.Struct({
          code: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 24 })),
          length: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 300 }))
        })
      ),
      sizes: CutSizes
    },
    ({ sent, sizes }) => {
      const messages = sent.map(({ code, length }, i) => [code, pattern(length, i)] as const)
      const whole = concat(messages.map(([code, payload]) => CtlMessage.encode(code, payload)))
      assert.deepStrictEqual<unknown>(parse(cut(whole, sizes)), {
        messages: messages.map(([code, payload]) => [code, toHex(payload)]),
        error: undefined
      })
    }
  )

  it.prop(
    "is gone on with by a new parser that is given the rest of the old one's, wherever it is cut",
    {
      sent: Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 300 }))),
      sizes: CutSizes
    },
    ({ sent, sizes }) => {
      const whole = concat(sent.map((length, i) => CtlMessage.encode(i, pattern(length, i))))
      const messages: Array<readonly [code: number, payload: string]> = []
      let parser = CtlMessage.makeParser()
      for (const piece of cut(whole, sizes)) {
        const rest = parser.rest()
        assert.strictEqual(toHex(parser.rest()), toHex(rest), "asking changes nothing")
        parser = CtlMessage.makeParser()
        for (const bytes of [rest, piece]) parser.push(bytes, (code, payload) => messages.push([code, toHex(payload)]))
      }
      assert.strictEqual(parser.rest().length, 0)
      assert.deepStrictEqual(
        messages,
        sent.map((length, i) => [i, toHex(pattern(length, i))] as const)
      )
    }
  )

  it("needs no byte after a message to give it out, and reads that bring nothing change nothing", () => {
    const nothing = new Uint8Array(0)
    const ack = CtlMessage.encode(Code.ack, utf8("{}"))
    const pieces = [nothing, ack.slice(0, 3), nothing, ack.slice(3, 8), nothing, ack.slice(8), nothing]
    assert.deepStrictEqual(parse(pieces).messages, [[Code.ack, toHex(utf8("{}"))]])
    assert.deepStrictEqual(parse(pieces.slice(0, -2)).messages, [])
  })

  it("keeps nothing of a chunk whose message goes on", () => {
    const parser = CtlMessage.makeParser()
    const payloads: Array<Uint8Array> = []
    const message = CtlMessage.encode(Code.ack, pattern(40))
    const chunks = [message.slice(0, 20), message.slice(20)]
    for (const chunk of chunks) parser.push(chunk, (_, payload) => void payloads.push(payload))
    assert.isTrue(chunks.every((chunk) => chunk.buffer !== payloads[0]?.buffer))
    assert.strictEqual(toHex(payloads[0]!), toHex(pattern(40)))
  })

  describe("refuses a message", () => {
    const refusal = (length: number, limit?: number) => {
      const bytes = header(Code.ack, length)
      const whole = parse([bytes.slice()], limit).error
      assert.strictEqual(whole?.length, parse(cut(bytes, [1]), limit).error?.length)
      assert.strictEqual(whole?.length, parse(cut(bytes, [5]), limit).error?.length)
      return whole?.length
    }

    it("that is shorter than its header", () => {
      for (let length = 0; length < 8; length++) assert.strictEqual(refusal(length), length)
      assert.isUndefined(refusal(8))
    })

    it("above 16 MiB, before it has come", () => {
      assert.isUndefined(refusal(16 * MiB))
      for (const length of [16 * MiB + 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff])
        assert.strictEqual(refusal(length), length)
    })

    it("above a limit of one's own choice, and decodes one that reaches it", () => {
      assert.strictEqual(refusal(101, 100), 101)
      const message = CtlMessage.encode(Code.ack, pattern(92))
      for (const size of [1, 7, 100])
        assert.deepStrictEqual(parse(cut(message, [size]), 100).messages, [[Code.ack, toHex(pattern(92))]])
    })

    it("in words that give both bounds", () => {
      assert.strictEqual(
        parse([header(Code.ack, 7)]).error?.message,
        "bad ctl message: length 7, expected 8 to 16777216"
      )
    })

    it("and gives out what came whole before it", () => {
      const ack = CtlMessage.encode(Code.ack, utf8("{}"))
      for (const pieces of [
        [concat([ack, ack, header(Code.ack, 7)])],
        cut(concat([ack, ack, header(Code.ack, 7)]), [6])
      ]) {
        const { error, messages } = parse(pieces)
        assert.strictEqual(error?.length, 7)
        assert.strictEqual(messages.length, 2)
      }
    })
  })

  for (const [how, sizes] of [
    ["its header whole", [9]],
    ["its header in two", [5, 4]]
  ] as const) {
    it(`sets aside little for a message that is announced and does not come, ${how}`, () => {
      const parsers = Array.from({ length: 64 }, () => CtlMessage.makeParser())
      const announced = concat([header(Code.ack, 16 * MiB), Uint8Array.of(0x7b)])
      const before = process.memoryUsage().arrayBuffers
      for (const parser of parsers)
        for (const piece of cut(announced, sizes))
          assert.isTrue(Result.isSuccess(parser.push(piece, () => assert.fail())))
      assert.isAtMost(process.memoryUsage().arrayBuffers - before, 64 * 80 * KiB)
    })
  }

  it("decodes a message of 16 MiB in reads of 64 KiB", () => {
    const payload = pattern(MiB).fill(7, 1000)
    const message = CtlMessage.encode(Code.ack, concat(Array.from({ length: 16 }, () => payload)).subarray(8))
    assert.strictEqual(message.length, 16 * MiB)
    const parser = CtlMessage.makeParser()
    let received: Uint8Array | undefined
    for (let at = 0; at < message.length; at += 64 * KiB)
      parser.push(message.slice(at, at + 64 * KiB), (_, payload) => (received = payload))
    assert.strictEqual(Buffer.compare(received!, message.subarray(8)), 0)
  })

  it("lets clients name the commands of the agent, by the code each has", () => {
    assert.deepStrictEqual(
      [...CtlMessage.hyperCodes],
      [
        ["version", 0],
        ["startpod", 1],
        ["destroypod", 4],
        ["execcmd", 6],
        ["winsize", 11],
        ["ping", 12],
        ["writefile", 15],
        ["readfile", 16],
        ["newcontainer", 17],
        ["killcontainer", 18],
        ["onlinecpumem", 19],
        ["setupinterface", 20],
        ["setuproute", 21],
        ["removecontainer", 22],
        ["pscontainer", 23]
      ]
    )
  })

  it("lets no client name a reply, or a message of the proxy's own", () => {
    for (const name of ["ready", "ack", "error", "next", "processEvent", "signalprocess", "READY", "", "toString"])
      assert.isFalse(CtlMessage.hyperCodes.has(name), name)
  })
})
