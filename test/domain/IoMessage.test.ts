import { assert, describe, it } from "@effect/vitest"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as IoMessage from "../../src/domain/IoMessage.ts"
import { CutSizes, concat, cut, fromHex, pattern, toHex, utf8 } from "../support/Bytes.ts"

const KiB = 1024
const MiB = 1024 * KiB

interface Seen {
  readonly sequence: number
  /** The run's messages, header included. */
  readonly messages: ReadonlyArray<string>
}

const messagesOf = ({ bytes, end, start }: IoMessage.Run): Array<string> => {
  const messages: Array<string> = []
  let at = start
  for (; at < end; at += IoMessage.lengthAt(bytes, at))
    messages.push(toHex(bytes.subarray(at, at + IoMessage.lengthAt(bytes, at))))
  assert.strictEqual(at, end, "a run holds whole messages")
  return messages
}

/** Feeds each piece, then overwrites it: a view that was kept would show it. One element per push. */
const parse = (pieces: ReadonlyArray<Uint8Array>) => {
  const parser = IoMessage.makeParser()
  const pushes: Array<ReadonlyArray<Seen>> = []
  let error: IoMessage.IoError | undefined
  for (const piece of pieces) {
    const runs: Array<IoMessage.Run> = []
    const pushed = parser.push(piece, runs)
    pushes.push(runs.map((run) => ({ sequence: run.sequence, messages: messagesOf(run) })))
    if (Result.isFailure(pushed)) {
      error = pushed.failure
      break
    }
    piece.fill(0xee)
  }
  return { pushes, error }
}

/** Which message came on which sequence, whatever the runs. */
const flat = (pushes: ReadonlyArray<ReadonlyArray<Seen>>) =>
  pushes.flat().flatMap(({ messages, sequence }) => messages.map((message) => ({ sequence, message })))

const header = (length: number): Uint8Array => {
  const out = IoMessage.encode(3, new Uint8Array(0))
  new DataView(out.buffer).setUint32(8, length)
  return out
}

const golden: ReadonlyArray<readonly [name: string, sequence: number, data: Uint8Array, hex: string]> = [
  ["stdout", 3, utf8("hello\n"), "0000000000000003 00000012 68656c6c6f0a"],
  ["stderr", 4, utf8("err\n"), "0000000000000004 00000010 6572720a"],
  ["the end of a stream", 3, utf8(""), "0000000000000003 0000000c"],
  ["an exit status", 3, Uint8Array.of(7), "0000000000000003 0000000d 07"],
  ["a sequence of 2^32 - 1", 2 ** 32 - 1, utf8("x"), "00000000ffffffff 0000000d 78"],
  ["a sequence of 2^32", 2 ** 32, utf8("x"), "0000000100000000 0000000d 78"],
  ["a sequence of 2^53 - 1", Number.MAX_SAFE_INTEGER, utf8("x"), "001fffffffffffff 0000000d 78"]
]

describe("IoMessage", () => {
  for (const [name, sequence, data, hex] of golden) {
    it(`encodes ${name}`, () => {
      assert.strictEqual(toHex(IoMessage.encode(sequence, data)), toHex(fromHex(hex)))
    })

    it(`decodes ${name} in one piece and byte by byte`, () => {
      const expected = [{ sequence, message: toHex(fromHex(hex)) }]
      for (const pieces of [[fromHex(hex)], cut(fromHex(hex), [1])]) {
        const { error, pushes } = parse(pieces)
        assert.isUndefined(error)
        assert.deepStrictEqual(flat(pushes), expected)
      }
    })
  }

  it("writes a header over whatever stood there, and touches nothing around it", () => {
    const bytes = new Uint8Array(16).fill(0xaa)
    IoMessage.writeHeader(bytes, 2, 0x0001_0203_0405_0607, 0x08090a00)
    assert.strictEqual(toHex(bytes), toHex(fromHex("aaaa 0001020304050607 08090a0c aaaa")))
    assert.strictEqual(IoMessage.lengthAt(bytes, 2), 0x08090a0c)
  })

  it("never takes a sequence beyond 2^53 for one that the proxy gives out", () => {
    for (const sequence of ["0020000000000003", "8000000000000003", "ff00000000000000", "ffffffffffffffff"]) {
      const { pushes } = parse([fromHex(`${sequence} 0000000d 78`)])
      assert.strictEqual(flat(pushes).length, 1)
      assert.isAtLeast(flat(pushes)[0]!.sequence, 2 ** 53)
    }
  })

  it("joins neighbouring messages of one sequence into one run, and no others", () => {
    const sent = [3, 3, 4, 3, 5, 5, 5].map((sequence, i) => IoMessage.encode(sequence, pattern(i, i)))
    const hex = sent.map(toHex)
    assert.deepStrictEqual(parse([concat(sent)]).pushes, [
      [
        { sequence: 3, messages: hex.slice(0, 2) },
        { sequence: 4, messages: hex.slice(2, 3) },
        { sequence: 3, messages: hex.slice(3, 4) },
        { sequence: 5, messages: hex.slice(4) }
      ]
    ])
  })

  it("tells apart sequences that differ in their upper half only", () => {
    const sent = [3, 2 ** 32 + 3, 2 ** 40 + 3].map((sequence) => IoMessage.encode(sequence, utf8("x")))
    assert.deepStrictEqual(
      parse([concat(sent)]).pushes[0]?.map(({ sequence }) => sequence),
      [3, 2 ** 32 + 3, 2 ** 40 + 3]
    )
  })

  it("gives a message that straddles two chunks a run of its own", () => {
    const sent = [1, 2, 3].map((length) => IoMessage.encode(3, pattern(length, length)))
    const hex = sent.map(toHex)
    const whole = concat(sent)
    const { pushes } = parse([whole.slice(0, 20), whole.slice(20)])
    assert.deepStrictEqual(pushes, [
      [{ sequence: 3, messages: hex.slice(0, 1) }],
      [
        { sequence: 3, messages: hex.slice(1, 2) },
        { sequence: 3, messages: hex.slice(2) }
      ]
    ])
  })

  it("decodes the same messages whatever the size of the pieces", () => {
    const whole = concat(golden.map(([, sequence, data]) => IoMessage.encode(sequence, data)))
    const expected = golden.map(([, sequence, , hex]) => ({ sequence, message: toHex(fromHex(hex)) }))
    for (let size = 1; size <= whole.length; size++) {
      const { error, pushes } = parse(cut(whole, [size]))
      assert.isUndefined(error)
      assert.deepStrictEqual(flat(pushes), expected, `pieces of ${size} bytes`)
    }
  })

  it.prop(
    "decodes the same messages however they are cut, in runs that are as long as a chunk allows",
    {
      sent: Schema.Array(
        Schema.Struct({
          sequence: Schema.Literals([3, 4, 5, 2 ** 32 + 3]),
          length: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 60 }))
        })
      ),
      sizes: Schema.NonEmptyArray(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 500 })))
    },
    ({ sent, sizes }) => {
      const messages = sent.map(({ length, sequence }, i) => ({
        sequence,
        message: IoMessage.encode(sequence, pattern(length, i))
      }))
      const whole = concat(messages.map(({ message }) => message))
      const { error, pushes } = parse(cut(whole, sizes))
      assert.isUndefined(error)
      assert.deepStrictEqual(
        flat(pushes),
        messages.map(({ message, sequence }) => ({ sequence, message: toHex(message) }))
      )
      for (const runs of pushes)
        for (const [i, { sequence }] of runs.entries())
          // the first may be a message that began in an earlier chunk
          if (i >= 2) assert.notStrictEqual(sequence, runs[i - 1]?.sequence)
    }
  )

  it.prop(
    "is gone on with by a new parser that is given the rest of the old one's, wherever it is cut",
    {
      sent: Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 60 }))),
      sizes: CutSizes
    },
    ({ sent, sizes }) => {
      const expected = sent.map((length, i) => toHex(IoMessage.encode(3 + (i % 3), pattern(length, i))))
      const whole = concat(sent.map((length, i) => IoMessage.encode(3 + (i % 3), pattern(length, i))))
      const runs: Array<IoMessage.Run> = []
      let parser = IoMessage.makeParser()
      for (const piece of cut(whole, sizes)) {
        const rest = parser.rest()
        assert.strictEqual(toHex(parser.rest()), toHex(rest), "asking changes nothing")
        parser = IoMessage.makeParser()
        for (const bytes of [rest, piece]) parser.push(bytes, runs)
      }
      assert.strictEqual(parser.rest().length, 0)
      assert.deepStrictEqual(runs.flatMap(messagesOf), expected)
    }
  )

  it.prop("decodes what it encodes, for every sequence below 2^53", [Schema.Int], ([given]) => {
    const sequence = Math.abs(given)
    const { pushes } = parse([IoMessage.encode(sequence, utf8("x"))])
    assert.strictEqual(flat(pushes)[0]?.sequence, sequence)
  })

  it("does not copy a run that arrives whole, and keeps nothing of a chunk whose message goes on", () => {
    const parser = IoMessage.makeParser()
    const runs: Array<IoMessage.Run> = []
    const message = IoMessage.encode(3, pattern(40))
    const chunk = concat([message, message.subarray(0, 30)])
    const rest = message.slice(30)
    parser.push(chunk, runs)
    parser.push(rest, runs)
    assert.strictEqual(runs[0]?.bytes, chunk)
    assert.deepStrictEqual([runs[0]?.start, runs[0]?.end], [0, 52])
    assert.notStrictEqual(runs[1]?.bytes.buffer, chunk.buffer)
    assert.notStrictEqual(runs[1]?.bytes.buffer, rest.buffer)
    assert.strictEqual(runs[1]?.bytes.buffer.byteLength, 52)
  })

  describe("refuses a message", () => {
    const refusal = (length: number) => {
      const whole = parse([header(length)]).error
      for (const size of [1, 7]) assert.strictEqual(whole?.length, parse(cut(header(length), [size])).error?.length)
      return whole?.length
    }

    it("that is shorter than its header", () => {
      for (let length = 0; length < 12; length++) assert.strictEqual(refusal(length), length)
      assert.isUndefined(refusal(12))
    })

    it("above 1 MiB, before it has come", () => {
      assert.isUndefined(refusal(MiB))
      for (const length of [MiB + 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff]) assert.strictEqual(refusal(length), length)
    })

    it("above a limit of one's own choice, and decodes what is at it", () => {
      for (const limit of [12, 13, 100, 2 * MiB]) {
        const push = (length: number) => IoMessage.makeParser(limit).push(header(length), [])
        assert.isTrue(Result.isSuccess(push(limit)))
        assert.strictEqual(
          Result.getOrThrow(Result.flip(push(limit + 1))).message,
          `bad io message: length ${limit + 1}, expected 12 to ${limit}`
        )
      }
    })

    it("in words that give both bounds", () => {
      assert.strictEqual(parse([header(11)]).error?.message, "bad io message: length 11, expected 12 to 1048576")
    })

    it("and gives out what came whole before it, wherever the bytes are cut", () => {
      const whole = concat([IoMessage.encode(4, utf8("a")), IoMessage.encode(3, utf8("b")), header(11)])
      for (let size = 1; size <= whole.length; size++) {
        const { error, pushes } = parse(cut(whole, [size]))
        assert.strictEqual(error?.length, 11)
        assert.deepStrictEqual(
          flat(pushes).map(({ sequence }) => sequence),
          [4, 3],
          `pieces of ${size} bytes`
        )
      }
    })
  })

  it("decodes a message of 1 MiB in reads of 64 KiB", () => {
    const message = IoMessage.encode(3, pattern(MiB - 12))
    const parser = IoMessage.makeParser()
    const runs: Array<IoMessage.Run> = []
    for (let at = 0; at < message.length; at += 64 * KiB) parser.push(message.slice(at, at + 64 * KiB), runs)
    assert.strictEqual(runs.length, 1)
    assert.strictEqual(Buffer.compare(runs[0]!.bytes.subarray(runs[0]!.start, runs[0]!.end), message), 0)
  })

  for (const [how, sizes] of [
    ["its header whole", [13]],
    ["its header in two", [5, 8]]
  ] as const) {
    it(`sets aside little for a message that is announced and does not come, ${how}`, () => {
      const parsers = Array.from({ length: 64 }, () => IoMessage.makeParser())
      const announced = concat([header(MiB), Uint8Array.of(0x78)])
      const before = process.memoryUsage().arrayBuffers
      for (const parser of parsers)
        for (const piece of cut(announced, sizes)) assert.isTrue(Result.isSuccess(parser.push(piece, [])))
      assert.isAtMost(process.memoryUsage().arrayBuffers - before, 64 * 80 * KiB)
    })
  }
})
