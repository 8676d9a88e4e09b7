import { assert, describe, it } from "@effect/vitest"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Frame from "../../src/domain/Frame.ts"
import { CutSizes, concat, cut, fromHex, pattern, toHex, utf8 } from "../support/Bytes.ts"

const { Command, FrameType, StreamKind } = Frame
const KiB = 1024
const MiB = 1024 * KiB

/** A decoded frame in a form that can be compared; pieces of one stdin, stdout or stderr are joined. */
interface Seen {
  readonly type: number
  readonly opcode: number
  readonly inError: boolean
  readonly payload: string
}

const isPiecewise = ({ opcode, type }: { readonly type: number; readonly opcode: number }) =>
  type === FrameType.stream && opcode !== StreamKind.log

/** Feeds each piece, then overwrites it: a view that was kept would show it. */
const parse = (policy: Frame.Policy, pieces: ReadonlyArray<Uint8Array>) => {
  const parser = Frame.makeParser(policy)
  const frames: Array<Seen> = []
  let error: Frame.FrameError | undefined
  for (const piece of pieces) {
    const pushed = parser.push(piece, ({ payload, ...rest }) => frames.push({ ...rest, payload: toHex(payload) }))
    if (Result.isFailure(pushed)) {
      error = pushed.failure
      break
    }
    piece.fill(0xee)
  }
  return { frames, error, midFrame: parser.midFrame() }
}

/** Joins neighbouring pieces of one stream; an empty one, its end, stays apart. */
const joined = (frames: ReadonlyArray<Seen>): Array<Seen> => {
  const out: Array<Seen> = []
  for (const frame of frames) {
    const last = out.at(-1)
    if (
      last !== undefined &&
      isPiecewise(frame) &&
      last.type === frame.type &&
      last.opcode === frame.opcode &&
      last.inError === frame.inError &&
      last.payload !== "" &&
      frame.payload !== ""
    ) {
      out[out.length - 1] = { ...last, payload: last.payload + frame.payload }
    } else {
      out.push(frame)
    }
  }
  return out
}

/** A header as a careless or hostile peer might write it. */
const header = (fields: {
  readonly version?: number
  readonly words?: number
  readonly type?: number
  readonly opcode?: number
  readonly length?: number
}): Uint8Array => {
  const { length = 0, opcode = 0, type = 0, version = 2, words = 3 } = fields
  const out = new Uint8Array(12)
  const view = new DataView(out.buffer)
  view.setUint16(0, version)
  view.setUint8(2, words)
  view.setUint8(6, type)
  view.setUint8(7, opcode)
  view.setUint32(8, length)
  return out
}

/** A frame whose header has `words` words, 0xff beyond byte 12. */
const extended = (frame: Frame.Frame, words: number): Uint8Array => {
  const bytes = Frame.encode(frame)
  bytes[2] = words
  return concat([bytes.subarray(0, 12), new Uint8Array(words * 4 - 12).fill(0xff), frame.payload])
}

const frame = (type: Frame.FrameType, opcode: number, payload: Uint8Array, inError = false): Frame.Frame => ({
  type,
  opcode,
  inError,
  payload
})

const client = Frame.fromClient(Frame.defaultLimits)

const golden: ReadonlyArray<readonly [name: string, policy: Frame.Policy, frame: Frame.Frame, hex: string]> = [
  [
    "UnregisterVM",
    client,
    frame(FrameType.command, Command.UnregisterVM, utf8('{"containerId":"pod-1"}')),
    "00020300 00000001 00000017 7b22636f6e7461696e65724964223a22706f642d31227d"
  ],
  ["DisconnectShim", client, frame(FrameType.command, Command.DisconnectShim, utf8("")), "00020300 00000005 00000000"],
  ["stdin", client, frame(FrameType.stream, StreamKind.stdin, utf8("ls\n")), "00020300 00000200 00000003 6c730a"],
  ["the end of stdin", client, frame(FrameType.stream, StreamKind.stdin, utf8("")), "00020300 00000200 00000000"],
  ["a log entry", client, frame(FrameType.stream, StreamKind.log, utf8("{}")), "00020300 00000203 00000002 7b7d"],
  [
    "a response",
    Frame.fromProxy,
    frame(FrameType.response, Command.UnregisterVM, utf8("")),
    "00020300 00000101 00000000"
  ],
  [
    "an error response",
    Frame.fromProxy,
    frame(FrameType.response, Command.UnregisterVM, utf8('{"msg":"unknown containerID: pod-1"}'), true),
    "00020300 00001101 00000024 7b226d7367223a22756e6b6e6f776e20636f6e7461696e657249443a20706f642d31227d"
  ],
  [
    "stdout",
    Frame.fromProxy,
    frame(FrameType.stream, StreamKind.stdout, utf8("hello\n")),
    "00020300 00000201 00000006 68656c6c6f0a"
  ],
  [
    "stderr",
    Frame.fromProxy,
    frame(FrameType.stream, StreamKind.stderr, utf8("err\n")),
    "00020300 00000202 00000004 6572720a"
  ],
  [
    "ProcessExited",
    Frame.fromProxy,
    frame(FrameType.notification, Frame.Notification.ProcessExited, Uint8Array.of(7)),
    "00020300 00000300 00000001 07"
  ]
]

const payloadLength = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 300 }))
const words = Schema.Literals([3, 4, 7, 255])
const ClientFrame = Schema.Struct({
  kind: Schema.Literals(
    [
      [FrameType.command, Command.Hyper],
      [FrameType.command, Command.Signal],
      [FrameType.stream, StreamKind.stdin],
      [FrameType.stream, StreamKind.log]
    ].map(([type, opcode]) => type! * 16 + opcode!)
  ),
  payloadLength,
  words
})
const ProxyFrame = Schema.Struct({
  kind: Schema.Literals([
    FrameType.response * 16 + Command.Hyper,
    FrameType.stream * 16 + StreamKind.stdout,
    FrameType.stream * 16 + StreamKind.stderr
  ]),
  inError: Schema.Boolean,
  payloadLength,
  words
})

describe("Frame", () => {
  for (const [name, policy, sent, hex] of golden) {
    it(`encodes ${name} as PROTOCOL.md shows it`, () => {
      assert.strictEqual(toHex(Frame.encode(sent)), toHex(fromHex(hex)))
    })

    it(`decodes ${name} in one piece and byte by byte`, () => {
      const expected = [{ ...sent, payload: toHex(sent.payload) }]
      assert.deepStrictEqual(parse(policy, [fromHex(hex)]), { frames: expected, error: undefined, midFrame: false })
      const slowly = parse(policy, cut(fromHex(hex), [1]))
      assert.deepStrictEqual(joined(slowly.frames), expected)
      assert.isFalse(slowly.midFrame)
    })
  }

  it("writes a header over whatever stood there, and touches nothing around it", () => {
    const bytes = new Uint8Array(16).fill(0xaa)
    Frame.writeHeader(bytes, 2, FrameType.response, Command.Hyper, 0x01020304, Frame.errorFlag)
    assert.strictEqual(toHex(bytes), toHex(fromHex("aaaa 00020300 00001103 01020304 aaaa")))
  })

  it("decodes the same frames whatever the size of the pieces", () => {
    const whole = concat(golden.filter(([, policy]) => policy === client).map(([, , sent]) => extended(sent, 5)))
    const expected = parse(client, [whole.slice()]).frames
    assert.strictEqual(expected.length, 5)
    for (let size = 1; size <= whole.length; size++) {
      const { error, frames, midFrame } = parse(client, cut(whole, [size]))
      assert.isUndefined(error)
      assert.isFalse(midFrame)
      assert.deepStrictEqual(joined(frames), expected, `pieces of ${size} bytes`)
    }
  })

  const assertCutsDoNotMatter = (
    policy: Frame.Policy,
    sent: ReadonlyArray<{ readonly frame: Frame.Frame; readonly words: number }>,
    sizes: ReadonlyArray<number>
  ) => {
    const whole = concat(sent.map(({ frame, words }) => extended(frame, words)))
    const { error, frames, midFrame } = parse(policy, cut(whole, sizes))
    assert.isUndefined(error)
    assert.isFalse(midFrame)
    const expected = sent.map(({ frame }) => ({ ...frame, payload: toHex(frame.payload) }))
    assert.deepStrictEqual(joined(frames), joined(expected))
    const ends = (list: ReadonlyArray<Seen>) => list.filter((one) => isPiecewise(one) && one.payload === "").length
    assert.strictEqual(ends(frames), ends(expected), "no empty piece but the end of a stream")
  }

  it.prop(
    "decodes the same frames of a client however they are cut",
    { sent: Schema.Array(ClientFrame), sizes: CutSizes },
    ({ sent, sizes }) =>
      assertCutsDoNotMatter(
        client,
        sent.map(({ kind, payloadLength, words }, i) => ({
          frame: frame((kind >> 4) as Frame.FrameType, kind & 15, pattern(payloadLength, i)),
          words
        })),
        sizes
      )
  )

  it.prop(
    "decodes the same frames of the proxy however they are cut",
    { sent: Schema.Array(ProxyFrame), sizes: CutSizes },
    ({ sent, sizes }) =>
      assertCutsDoNotMatter(
        Frame.fromProxy,
        sent.map(({ inError, kind, payloadLength, words }, i) => ({
          frame: frame((kind >> 4) as Frame.FrameType, kind & 15, pattern(payloadLength, i), inError),
          words
        })),
        sizes
      )
  )

  it.prop(
    "is gone on with by a new parser that is given the rest of the old one's, wherever it is cut",
    { sent: Schema.Array(ClientFrame), sizes: CutSizes },
    ({ sent, sizes }) => {
      const whole = concat(
        sent.map(({ kind, payloadLength, words }, i) =>
          extended(frame((kind >> 4) as Frame.FrameType, kind & 15, pattern(payloadLength, i)), words)
        )
      )
      const expected = parse(client, [whole.slice()]).frames
      const frames: Array<Seen> = []
      let parser = Frame.makeParser(client)
      const push = (bytes: Uint8Array) =>
        parser.push(bytes, ({ payload, ...rest }) => frames.push({ ...rest, payload: toHex(payload) }))
      for (const piece of cut(whole, sizes)) {
        const before = parser.midFrame()
        const rest = parser.rest()
        assert.strictEqual(rest.length > 0, before)
        assert.strictEqual(toHex(parser.rest()), toHex(rest), "asking changes nothing")
        parser = Frame.makeParser(client)
        push(rest)
        assert.strictEqual(parser.midFrame(), before)
        push(piece)
      }
      assert.deepStrictEqual(joined(frames), joined(expected))
    }
  )

  it("hands stdin on as it comes, in pieces that are never empty, and its end exactly once", () => {
    const stdin = frame(FrameType.stream, StreamKind.stdin, utf8("abcdef"))
    const end = frame(FrameType.stream, StreamKind.stdin, utf8(""))
    const whole = concat([extended(stdin, 4), extended(end, 4)])
    // headers of 16 bytes; the empty pieces are reads that brought nothing
    const at = [0, 0, 10, 12, 16, 16, 19, 19, 22, 30, 34, 38, 38]
    const { frames } = parse(
      client,
      at.map((start, i) => whole.slice(start, at[i + 1]))
    )
    assert.deepStrictEqual(
      frames.map(({ payload }) => payload),
      [toHex(utf8("abc")), toHex(utf8("def")), ""]
    )
  })

  it("gives out a log entry and a command whole, once their last byte is there", () => {
    for (const kind of [
      frame(FrameType.stream, StreamKind.log, pattern(99)),
      frame(FrameType.command, 3, pattern(99))
    ]) {
      const bytes = Frame.encode(kind)
      assert.deepStrictEqual(parse(client, [bytes.slice(0, -1)]).frames, [])
      assert.deepStrictEqual(parse(client, [bytes.slice(0, 50), bytes.slice(50, -1), bytes.slice(-1)]).frames, [
        { ...kind, payload: toHex(kind.payload) }
      ])
    }
  })

  it("does not copy a frame that arrives whole, and keeps nothing of a chunk whose frame goes on", () => {
    const parser = Frame.makeParser(client)
    const payloads: Array<Uint8Array> = []
    const onFrame = ({ payload }: Frame.Frame) => void payloads.push(payload)
    const one = Frame.encode(frame(FrameType.command, Command.Hyper, pattern(40)))
    const chunk = concat([one, one.subarray(0, 30)])
    parser.push(chunk, onFrame)
    const rest = one.slice(30)
    parser.push(rest, onFrame)
    assert.strictEqual(payloads[0]?.buffer, chunk.buffer)
    assert.notStrictEqual(payloads[1]?.buffer, chunk.buffer)
    assert.notStrictEqual(payloads[1]?.buffer, rest.buffer)
    assert.strictEqual(toHex(payloads[1]!), toHex(pattern(40)))
  })

  it("skips what a header has beyond 12 bytes, for every length it can state", () => {
    const sent = frame(FrameType.command, Command.Hyper, utf8("{}"))
    for (let words = 3; words <= 255; words++) {
      const { error, frames, midFrame } = parse(client, cut(extended(sent, words), [words * 4 - 1, 1]))
      assert.isUndefined(error)
      assert.isFalse(midFrame)
      assert.deepStrictEqual(frames, [{ ...sent, payload: toHex(sent.payload) }])
    }
  })

  it("knows whether the bytes end inside a frame, at every byte", () => {
    const whole = extended(frame(FrameType.command, Command.Hyper, utf8("{}")), 4)
    for (let length = 0; length <= whole.length; length++) {
      assert.strictEqual(parse(client, [whole.slice(0, length)]).midFrame, length > 0 && length < whole.length)
    }
    const stdin = Frame.encode(frame(FrameType.stream, StreamKind.stdin, utf8("abc")))
    assert.isTrue(parse(client, [stdin.slice(0, 12)]).midFrame)
    assert.isTrue(parse(client, [stdin.slice(0, 14)]).midFrame)
  })

  describe("refuses", () => {
    const refusal = (policy: Frame.Policy, bytes: Uint8Array) => {
      const whole = parse(policy, [bytes.slice()]).error
      const slowly = parse(policy, cut(bytes, [1])).error
      assert.deepStrictEqual(
        [whole?.reason, whole?.value, whole?.expected],
        [slowly?.reason, slowly?.value, slowly?.expected]
      )
      return whole === undefined ? undefined : `${whole.reason} ${whole.value}`
    }

    it("another version", () => {
      for (const version of [0, 1, 3, 0x0102, 0x0200, 0xffff])
        assert.strictEqual(refusal(client, header({ version })), `version ${version}`)
    })

    it("a header of less than three words", () => {
      for (const words of [0, 1, 2]) assert.strictEqual(refusal(client, header({ words })), `header length ${words}`)
    })

    it("types a client may not send", () => {
      for (let type = 0; type < 16; type++) {
        const expected = type === FrameType.command || type === FrameType.stream ? undefined : `type ${type}`
        assert.strictEqual(refusal(client, header({ type })), expected)
      }
    })

    it("types the proxy may not send", () => {
      for (let type = 0; type < 16; type++) {
        const allowed = type === FrameType.response || type === FrameType.stream || type === FrameType.notification
        const expected = allowed ? undefined : `type ${type}`
        assert.strictEqual(refusal(Frame.fromProxy, header({ type, opcode: type === 2 ? 1 : 0 })), expected)
      }
    })

    it("opcodes that a side may not send", () => {
      const accepted = (policy: Frame.Policy, type: number) =>
        Array.from({ length: 256 }, (_, opcode) => opcode).filter((opcode) => {
          const refused = refusal(policy, header({ type, opcode }))
          assert.oneOf(refused, [undefined, `opcode ${opcode}`])
          return refused === undefined
        })
      assert.deepStrictEqual(accepted(client, FrameType.command), [0, 1, 2, 3, 4, 5, 6])
      assert.deepStrictEqual(accepted(client, FrameType.stream), [StreamKind.stdin, StreamKind.log])
      assert.deepStrictEqual(accepted(Frame.fromProxy, FrameType.response), [0, 1, 2, 3, 4, 5, 6])
      assert.deepStrictEqual(accepted(Frame.fromProxy, FrameType.stream), [StreamKind.stdout, StreamKind.stderr])
      assert.deepStrictEqual(accepted(Frame.fromProxy, FrameType.notification), [0])
    })

    const kinds: ReadonlyArray<readonly [string, Frame.Policy, number, number, number]> = [
      ["a Hyper command", client, FrameType.command, Command.Hyper, 8 * MiB],
      ["RegisterVM", client, FrameType.command, Command.RegisterVM, MiB],
      ["UnregisterVM", client, FrameType.command, Command.UnregisterVM, MiB],
      ["AttachVM", client, FrameType.command, Command.AttachVM, MiB],
      ["ConnectShim", client, FrameType.command, Command.ConnectShim, MiB],
      ["DisconnectShim", client, FrameType.command, Command.DisconnectShim, MiB],
      ["Signal", client, FrameType.command, Command.Signal, MiB],
      ["a log entry", client, FrameType.stream, StreamKind.log, MiB],
      ["stdin", client, FrameType.stream, StreamKind.stdin, 16 * MiB],
      ["a response", Frame.fromProxy, FrameType.response, Command.Hyper, 16 * MiB],
      ["stdout", Frame.fromProxy, FrameType.stream, StreamKind.stdout, 16 * MiB],
      ["stderr", Frame.fromProxy, FrameType.stream, StreamKind.stderr, 16 * MiB],
      ["ProcessExited", Frame.fromProxy, FrameType.notification, 0, 1]
    ]
    for (const [name, policy, type, opcode, limit] of kinds) {
      it(`a payload of ${name} above ${limit} bytes, before it has come`, () => {
        assert.isUndefined(refusal(policy, header({ type, opcode, length: limit })))
        for (const length of [limit + 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff])
          assert.strictEqual(refusal(policy, header({ type, opcode, length })), `payload length ${length}`)
      })
    }

    it("what is above limits of one's own choice, and decodes what is at them", () => {
      const policy = Frame.fromClient({ hyper: 30, command: 20, stdin: 10 })
      for (const [type, opcode, limit] of [
        [FrameType.command, Command.Hyper, 30],
        [FrameType.command, Command.AttachVM, 20],
        [FrameType.stream, StreamKind.log, 20],
        [FrameType.stream, StreamKind.stdin, 10]
      ] as const) {
        const fits = frame(type, opcode, pattern(limit))
        assert.deepStrictEqual(parse(policy, [Frame.encode(fits)]).frames, [{ ...fits, payload: toHex(fits.payload) }])
        assert.strictEqual(
          refusal(policy, Frame.encode(frame(type, opcode, pattern(limit + 1)))),
          `payload length ${limit + 1}`
        )
      }
    })

    it("in words that name the field and what was expected", () => {
      const message = (fields: Parameters<typeof header>[0]) => parse(client, [header(fields)]).error?.message
      assert.strictEqual(message({ version: 3 }), "bad frame: version 3, expected 2")
      assert.strictEqual(message({ words: 2 }), "bad frame: header length 2, expected 3 or more")
      assert.strictEqual(message({ type: 1 }), "bad frame: type 1, expected one this side may send")
      assert.strictEqual(message({ opcode: 7 }), "bad frame: opcode 7, expected one this side may send")
      assert.strictEqual(
        message({ opcode: 6, length: MiB + 1 }),
        "bad frame: payload length 1048577, expected 1048576 or less"
      )
    })

    it("nothing of what came whole before the damage", () => {
      const good = frame(FrameType.command, Command.Signal, utf8("{}"))
      const { error, frames } = parse(client, [concat([Frame.encode(good), Frame.encode(good), header({ words: 1 })])])
      assert.strictEqual(error?.reason, "header length")
      assert.strictEqual(frames.length, 2)
    })
  })

  it("sets aside little for payloads that are announced and do not come", () => {
    const announced = header({ opcode: Command.Hyper, length: 8 * MiB })
    const parsers = Array.from({ length: 64 }, () => Frame.makeParser(client))
    const before = process.memoryUsage().arrayBuffers
    for (const parser of parsers) {
      parser.push(announced, () => assert.fail("no frame has come"))
      parser.push(Uint8Array.of(0x7b), () => assert.fail("no frame has come"))
    }
    const held = process.memoryUsage().arrayBuffers - before
    assert.isAtMost(held, 64 * 80 * KiB)
    assert.isTrue(parsers.every((parser) => parser.midFrame()))
  })

  it("decodes a Hyper payload of 8 MiB in reads of 64 KiB", () => {
    const sent = frame(FrameType.command, Command.Hyper, pattern(8 * MiB))
    const bytes = Frame.encode(sent)
    const parser = Frame.makeParser(client)
    let received: Uint8Array | undefined
    for (let at = 0; at < bytes.length; at += 64 * KiB)
      parser.push(bytes.slice(at, at + 64 * KiB), ({ payload }) => (received = payload))
    assert.strictEqual(Buffer.compare(received!, sent.payload), 0)
  })
})
