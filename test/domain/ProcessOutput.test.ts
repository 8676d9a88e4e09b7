import { assert, describe, it } from "@effect/vitest"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Frame from "../../src/domain/Frame.ts"
import * as IoMessage from "../../src/domain/IoMessage.ts"
import * as ProcessOutput from "../../src/domain/ProcessOutput.ts"
import { concat, fromHex, pattern, toHex, utf8 } from "../support/Bytes.ts"

const stdio = 3

/** One io message of the process. */
interface Message {
  readonly stream: "stdout" | "stderr"
  readonly data: Uint8Array
}

const out = (data: string | number): Message => ({
  stream: "stdout",
  data: typeof data === "string" ? utf8(data) : Uint8Array.of(data)
})
const err = (data: string): Message => ({ stream: "stderr", data: utf8(data) })
const end = out("")

/** A run as the parser makes it, in the middle of a chunk whose other bytes belong to other sessions. */
const runOf = (messages: ReadonlyArray<Message>): IoMessage.Run => {
  const sequence = messages[0]?.stream === "stderr" ? stdio + 1 : stdio
  const bytes = concat([
    new Uint8Array(5).fill(0xee),
    ...messages.map(({ data }) => IoMessage.encode(sequence, data)),
    new Uint8Array(5).fill(0xee)
  ])
  return { sequence, bytes, start: 5, end: bytes.length - 5 }
}

/** Rewrites a run; what it emits as the client would decode it: `stdout hello`, in hexadecimal. */
const rewrite = (output: ProcessOutput.ProcessOutput, messages: ReadonlyArray<Message>) => {
  const run = runOf(messages)
  const emitted: Array<Uint8Array> = []
  const dropped = output.rewrite(run, {
    emit(bytes, start, end) {
      assert.isBelow(start, end, "no range is empty")
      if (bytes === run.bytes) assert.isTrue(start >= run.start && end <= run.end)
      emitted.push(bytes.slice(start, end))
    }
  })
  assert.strictEqual(toHex(run.bytes.subarray(0, 5)) + toHex(run.bytes.subarray(-5)), "ee".repeat(10))
  return { frames: framesOf(concat(emitted)), emitted: emitted.map(toHex), dropped }
}

const framesOf = (bytes: Uint8Array): Array<string> => {
  const frames: Array<string> = []
  const parser = Frame.makeParser(Frame.fromProxy)
  const parsed = parser.push(bytes, ({ inError, opcode, payload, type }) => {
    assert.isFalse(inError)
    const name = type === Frame.FrameType.notification ? "exited" : ["", "stdout", "stderr"][opcode]
    frames.push(`${name} ${toHex(payload)}`)
  })
  assert.isTrue(Result.isSuccess(parsed))
  assert.isFalse(parser.midFrame())
  return frames
}

const hex = (text: string): string => toHex(utf8(text))

describe("ProcessOutput", () => {
  it("turns the messages of PROTOCOL.md into its frames, in place", () => {
    const stdout = fromHex(
      "0000000000000003 00000012 68656c6c6f0a 0000000000000003 0000000c 0000000000000003 0000000d 07"
    )
    const stderr = fromHex("0000000000000004 00000010 6572720a")
    const emitted: Array<string> = []
    const to: ProcessOutput.Emit = { emit: (bytes, start, end) => void emitted.push(toHex(bytes.subarray(start, end))) }
    const output = ProcessOutput.make(stdio)
    assert.strictEqual(output.rewrite({ sequence: 4, bytes: stderr, start: 0, end: stderr.length }, to), 0)
    assert.strictEqual(output.rewrite({ sequence: 3, bytes: stdout, start: 0, end: stdout.length }, to), 0)
    assert.deepStrictEqual(
      emitted,
      [
        "00020300 00000202 00000004 6572720a",
        "00020300 00000201 00000006 68656c6c6f0a",
        "00020300 00000300 00000001 07"
      ].map((text) => toHex(fromHex(text)))
    )
    assert.strictEqual(output.status(), 7)
  })

  it("emits a run of output in one range, in the run's own bytes", () => {
    const run = runOf([out("a"), out("bc"), out("d")])
    const calls: Array<readonly [Uint8Array, number, number]> = []
    ProcessOutput.make(stdio).rewrite(run, { emit: (...call) => void calls.push(call) })
    assert.deepStrictEqual(calls, [[run.bytes, run.start, run.end]])
  })

  it("has neither an end nor a status before they have come", () => {
    const output = ProcessOutput.make(stdio)
    rewrite(output, [out("a")])
    assert.deepStrictEqual([output.ended(), output.status()], [false, undefined])
    rewrite(output, [end])
    assert.deepStrictEqual([output.ended(), output.status()], [true, undefined])
    rewrite(output, [out(0)])
    assert.deepStrictEqual([output.ended(), output.status()], [true, 0])
  })

  it("takes one byte for output before the empty message, and for the status after it", () => {
    for (const runs of [[[out(7), end, out(7)]], [[out(7)], [end], [out(7)]]]) {
      const output = ProcessOutput.make(stdio)
      assert.deepStrictEqual(
        runs.flatMap((run) => rewrite(output, run).frames),
        ["stdout 07", "exited 07"]
      )
    }
  })

  it("takes two bytes or more after the empty message for output", () => {
    const output = ProcessOutput.make(stdio)
    assert.deepStrictEqual(rewrite(output, [end, out("ab"), out("abc")]).frames, [
      `stdout ${hex("ab")}`,
      `stdout ${hex("abc")}`
    ])
    assert.isUndefined(output.status())
    assert.deepStrictEqual(rewrite(output, [out(255)]).frames, ["exited ff"])
    assert.strictEqual(output.status(), 255)
  })

  it("takes one byte of stderr for output, before and after the empty message", () => {
    const output = ProcessOutput.make(stdio)
    const frames = [[err("a")], [end], [err("b")], [out(1)]].flatMap((run) => rewrite(output, run).frames)
    assert.deepStrictEqual(frames, [`stderr ${hex("a")}`, `stderr ${hex("b")}`, "exited 01"])
  })

  it("ignores an empty message on stderr, and cuts it out of its run", () => {
    const output = ProcessOutput.make(stdio)
    const { dropped, frames } = rewrite(output, [err(""), err("a"), err(""), err("b"), err("")])
    assert.deepStrictEqual(frames, [`stderr ${hex("a")}`, `stderr ${hex("b")}`])
    assert.strictEqual(dropped, 0)
    assert.isFalse(output.ended())
    assert.deepStrictEqual(rewrite(output, [out(7)]).frames, ["stdout 07"])
  })

  it("ignores a second empty message", () => {
    const output = ProcessOutput.make(stdio)
    assert.deepStrictEqual(rewrite(output, [end, end, out(7)]).frames, ["exited 07"])
  })

  it("counts and leaves out the data that comes after the status", () => {
    const output = ProcessOutput.make(stdio)
    const first = rewrite(output, [out("a"), end, out(7), out("late"), end, out(8)])
    assert.deepStrictEqual(first.frames, [`stdout ${hex("a")}`, "exited 07"])
    assert.strictEqual(first.dropped, 5)
    for (const run of [[err("late")], [out("x"), end, out("yz")]]) {
      const { emitted, dropped } = rewrite(output, run)
      assert.deepStrictEqual(emitted, [])
      assert.isAbove(dropped, 0)
    }
    assert.strictEqual(output.status(), 7)
  })

  it("carries any byte as the status, in a frame of 13 bytes", () => {
    for (const status of [0, 1, 127, 128, 255]) {
      const expected = toHex(Uint8Array.of(0, 2, 3, 0, 0, 0, 3, 0, 0, 0, 0, 1, status))
      assert.strictEqual(toHex(ProcessOutput.exitFrame(status)), expected)
      assert.deepStrictEqual(rewrite(ProcessOutput.make(stdio), [end, out(status)]).emitted, [expected])
    }
  })

  it("handles the longest message an agent may send", () => {
    const data = pattern(IoMessage.maxMessage - 12)
    const { frames } = rewrite(ProcessOutput.make(stdio), [{ stream: "stdout", data }])
    assert.isTrue(frames.length === 1 && frames[0] === `stdout ${toHex(data)}`)
  })

  describe("a status that comes as an event", () => {
    it("is delivered at once where the output has ended", () => {
      const output = ProcessOutput.make(stdio)
      rewrite(output, [out("a"), end])
      assert.strictEqual(toHex(output.exit(9)!), toHex(ProcessOutput.exitFrame(9)))
      assert.strictEqual(output.status(), 9)
      assert.strictEqual(rewrite(output, [out("late")]).dropped, 4)
    })

    it("waits for the end of the output, and stands after all of it", () => {
      const output = ProcessOutput.make(stdio)
      rewrite(output, [out("a")])
      assert.isUndefined(output.exit(9))
      assert.deepStrictEqual([output.ended(), output.status()], [false, undefined])
      assert.deepStrictEqual(rewrite(output, [err("b")]).frames, [`stderr ${hex("b")}`])
      const last = rewrite(output, [out("c"), out(7), end, out("late")])
      assert.deepStrictEqual(last.frames, [`stdout ${hex("c")}`, "stdout 07", "exited 09"])
      assert.strictEqual(last.dropped, 4)
      assert.deepStrictEqual([output.ended(), output.status()], [true, 9])
    })

    it("is not due at an empty message on stderr", () => {
      const output = ProcessOutput.make(stdio)
      output.exit(9)
      assert.deepStrictEqual(rewrite(output, [err(""), err("b")]).frames, [`stderr ${hex("b")}`])
    })

    it("counts once: a second one, and one byte after the end, change nothing", () => {
      const output = ProcessOutput.make(stdio)
      assert.isUndefined(output.exit(9))
      assert.isUndefined(output.exit(10))
      const { dropped, frames } = rewrite(output, [end, out(11)])
      assert.deepStrictEqual(frames, ["exited 09"])
      assert.strictEqual(dropped, 1)
      assert.isUndefined(output.exit(12))
      assert.isUndefined(output.exit(13, "never started"))
      assert.strictEqual(output.status(), 9)
    })

    it("changes nothing after a status on the io channel", () => {
      const output = ProcessOutput.make(stdio)
      rewrite(output, [end, out(7)])
      assert.isUndefined(output.exit(9))
      assert.strictEqual(output.status(), 7)
    })

    it("is delivered at once for a process that never started, which has no output", () => {
      const output = ProcessOutput.make(stdio)
      assert.strictEqual(toHex(output.exit(0, "never started")!), toHex(ProcessOutput.exitFrame(0)))
      assert.deepStrictEqual([output.ended(), output.status()], [true, 0])
      assert.strictEqual(rewrite(output, [out("late")]).dropped, 4)
    })
  })

  /** What the text of PROTOCOL.md says, message by message. */
  const model = () => {
    let ended = false
    let event: number | undefined
    let status: number | undefined
    const frames: Array<string> = []
    let dropped = 0
    const exited = (given: number) => {
      status = given
      frames.push(`exited ${toHex(Uint8Array.of(given))}`)
    }
    return {
      result: () => ({ frames, dropped, ended, status }),
      message({ data, stream }: Message) {
        if (status !== undefined) dropped += data.length
        else if (stream === "stderr" && data.length > 0) frames.push(`stderr ${toHex(data)}`)
        else if (stream === "stdout" && data.length === 0) {
          ended = true
          if (event !== undefined) exited(event)
        } else if (stream === "stdout" && ended && data.length === 1) exited(data[0]!)
        else if (stream === "stdout") frames.push(`stdout ${toHex(data)}`)
      },
      event(given: number) {
        if (status !== undefined || event !== undefined) return
        if (ended) exited(given)
        else event = given
      }
    }
  }

  it("of a process that was not started after all forgets an end, and a status, but not both", () => {
    const output = ProcessOutput.make(stdio)
    rewrite(output, [end])
    output.reset()
    assert.deepStrictEqual(output.carry(), { ended: false, status: undefined, early: undefined })
    assert.deepStrictEqual(rewrite(output, [out("x")]).frames, [`stdout ${hex("x")}`])
    assert.isUndefined(output.exit(4))
    output.reset()
    assert.deepStrictEqual(rewrite(output, [end]).frames, [])
    rewrite(output, [out(3)])
    output.reset()
    assert.deepStrictEqual(output.carry(), { ended: true, status: 3, early: undefined })
  })

  it.prop(
    "delivers what PROTOCOL.md says, whatever the messages, their runs, and the moment of an event",
    {
      steps: Schema.Array(
        Schema.Struct({
          stream: Schema.Literals(["stdout", "stderr"]),
          length: Schema.Literals([0, 1, 1, 2, 40]),
          joined: Schema.Boolean,
          carried: Schema.Boolean
        })
      ),
      eventAt: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 20 }))
    },
    ({ eventAt, steps }) => {
      let output = ProcessOutput.make(stdio)
      const expected = model()
      const frames: Array<string> = []
      let dropped = 0
      let run: Array<Message> = []
      const flush = () => {
        const result = rewrite(output, run)
        frames.push(...result.frames)
        dropped += result.dropped
        run = []
      }
      const event = () => {
        flush()
        const frame = output.exit(42)
        if (frame !== undefined) frames.push(...framesOf(frame))
        expected.event(42)
      }
      for (const [i, { carried, joined, length, stream }] of steps.entries()) {
        if (carried) {
          flush()
          output = ProcessOutput.make(stdio, output.carry())
        }
        if (i === eventAt) event()
        const message = { stream, data: pattern(length, i) }
        if (!joined || run[0]?.stream !== stream) flush()
        run.push(message)
        expected.message(message)
      }
      flush()
      assert.deepStrictEqual({ frames, dropped, ended: output.ended(), status: output.status() }, expected.result())
    }
  )
})
