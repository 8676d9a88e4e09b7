/**
 * Fuzz targets: whatever bytes come from a client, from an agent or from a command line, and the promises that hold for all of
 * them. Each takes any input and throws where a promise is broken. `corpus/` has a folder of inputs for each;
 * `corpus.test.ts` runs them in the tests, `scripts/fuzz.sh` searches for new ones.
 */
import { built } from "./Built.ts"
import assert from "node:assert/strict"
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Agent from "../../src/domain/Agent.ts"
import { ByteQueue } from "../../src/domain/ByteQueue.ts"
import { concat } from "../../src/domain/Bytes.ts"
import * as ClientCommand from "../../src/domain/ClientCommand.ts"
import * as CtlMessage from "../../src/domain/CtlMessage.ts"
import * as Frame from "../../src/domain/Frame.ts"
import * as GoDuration from "../../src/domain/GoDuration.ts"
import * as HyperData from "../../src/domain/HyperData.ts"
import * as IoMessage from "../../src/domain/IoMessage.ts"
import * as Logfmt from "../../src/domain/Logfmt.ts"
import * as ProcessOutput from "../../src/domain/ProcessOutput.ts"
import * as Flags from "../../src/Flags.ts"
import * as LogfmtReader from "../support/e2e/Logfmt.ts"
import { type Outcome, assertModest, assertOutcome, feed, wireOf } from "./Input.ts"
import * as Json from "./Json.ts"

const KiB = 1024
const MiB = 1024 * KiB

const utf8 = (bytes: Uint8Array): string => Buffer.from(bytes).toString()

/** A view into a larger buffer, as sockets give them out; a fuzzer's own bytes must not be changed anyway. */
const view = (bytes: Uint8Array): Uint8Array => {
  const chunk = new Uint8Array(bytes.length + 7)
  chunk.set(bytes, 5)
  return chunk.subarray(5, 5 + bytes.length)
}

// --- what clients send ---

const { FrameType, StreamKind } = Frame

/** Largest payload of each kind of frame a client may send, by type × 16 + opcode. Source: PROTOCOL.md, "Limits". */
const clientLimits: ReadonlyMap<number, number> = new Map([
  ...[0, 1, 2, 4, 5, 6].map((opcode) => [opcode, MiB] as const),
  [3, 8 * MiB],
  [2 * 16 + 0, 16 * MiB],
  [2 * 16 + 3, MiB]
])
const isType = (type: number): boolean => Array.from(clientLimits.keys()).some((kind) => kind >> 4 === type)

const isStdin = ({ opcode, type }: Frame.Frame): boolean => type === FrameType.stream && opcode === StreamKind.stdin

/** Frames encoded anew; pieces of stdin that follow each other are one, and its end is one of its own. */
const encodeFrames = (frames: ReadonlyArray<Frame.Frame>): ReadonlyArray<Uint8Array> => {
  const groups: Array<Array<Frame.Frame>> = []
  for (const frame of frames) {
    const group = groups.at(-1)
    const first = group?.[0]
    if (
      first !== undefined &&
      isStdin(first) &&
      isStdin(frame) &&
      first.inError === frame.inError &&
      first.payload.length > 0 &&
      frame.payload.length > 0
    )
      group!.push(frame)
    else groups.push([frame])
  }
  return groups.map((group) => Frame.encode({ ...group[0]!, payload: concat(group.map(({ payload }) => payload)) }))
}

/** What the bytes of a client mean by PROTOCOL.md, read all at once. */
const expectFrames = (bytes: Uint8Array): Outcome => {
  const wire = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  const frames: Array<Frame.Frame> = []
  const outcome = (end: string): Outcome => ({ messages: encodeFrames(frames), end })
  for (let at = 0; at < bytes.length;) {
    if (bytes.length - at < 12) return outcome("inside a frame")
    if (wire.getUint16(at) !== 2) return outcome(`version ${wire.getUint16(at)}`)
    const header = bytes[at + 2]! * 4
    if (header < 12) return outcome(`header length ${header / 4}`)
    const type = bytes[at + 6]! & 15
    const opcode = bytes[at + 7]!
    const limit = clientLimits.get(type * 16 + opcode)
    if (!isType(type)) return outcome(`type ${type}`)
    if (opcode > 15 || limit === undefined) return outcome(`opcode ${opcode}`)
    const length = wire.getUint32(at + 8)
    if (length > limit) return outcome(`payload length ${length}`)
    const frame = {
      type: type as Frame.FrameType,
      opcode,
      inError: (bytes[at + 6]! & 0x10) !== 0,
      payload: bytes.slice(at + header, at + header + length)
    }
    const whole = at + header + length <= bytes.length
    if (whole || (isStdin(frame) && frame.payload.length > 0)) frames.push(frame)
    if (!whole) return outcome("inside a frame")
    at += header + length
  }
  return outcome("between frames")
}

const fromClient = Frame.fromClient(Frame.defaultLimits)

/** The bytes of a client's connection. */
export const frames = (input: Uint8Array): void => {
  const wire = wireOf(input)
  const expected = expectFrames(wire.bytes)
  assertOutcome(wire, expected, (pieces) => {
    const parser = Frame.makeParser(fromClient)
    const found: Array<Frame.Frame> = []
    const failure = feed(pieces, (piece) => {
      const pushed = parser.push(piece, (frame) => found.push({ ...frame, payload: frame.payload.slice() }))
      return Result.isFailure(pushed) ? pushed.failure : undefined
    })
    if (failure !== undefined) assert.match(failure.message, /^bad frame: [a-z ]+ \d+, expected [\w ]+$/)
    const state = parser.midFrame() ? "inside a frame" : "between frames"
    return {
      messages: encodeFrames(found),
      end: failure === undefined ? state : `${failure.reason} ${failure.value}`
    }
  })
  const all = concat(expected.messages)
  assert.equal(Frame.wholeEnd(all), all.length)
  const parser = Frame.makeParser(fromClient)
  assertModest(wire, (piece) => parser.push(piece, () => {}))
}

type Check = (value: unknown) => boolean

const isString: Check = (value) => typeof value === "string"
const isText: Check = (value) => isString(value) && value !== ""
const isInteger: Check = (value) => Number.isSafeInteger(value)
const maybe =
  (check: Check): Check =>
  (value) =>
    value === undefined || value === null || check(value)
const among =
  (...choices: ReadonlyArray<string>): Check =>
  (value) =>
    choices.includes(value as string)
const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value)

/** Each JSON payload and its keys by PROTOCOL.md, "Commands"; a log entry stands where DisconnectShim has no payload. */
const payloads: ReadonlyArray<
  readonly [
    name: string,
    decode: (payload: Uint8Array) => Result.Result<object, ClientCommand.MalformedCommand>,
    keys: Readonly<Record<string, Check>>
  ]
> = [
  [
    "RegisterVM",
    ClientCommand.decodeRegisterVM,
    {
      containerId: isText,
      ctlSerial: isText,
      ioSerial: isText,
      console: maybe(isString),
      numIOStreams: maybe(isInteger)
    }
  ],
  ["UnregisterVM", ClientCommand.decodeUnregisterVM, { containerId: isText }],
  ["AttachVM", ClientCommand.decodeAttachVM, { containerId: isText, numIOStreams: maybe(isInteger) }],
  [
    "Hyper",
    ClientCommand.decodeHyper,
    {
      hyperName: isString,
      tokens: maybe((value) => Array.isArray(value) && value.every(isString)),
      data: () => true
    }
  ],
  ["ConnectShim", ClientCommand.decodeConnectShim, { token: isString }],
  [
    "log",
    ClientCommand.decodeLogEntry,
    {
      source: among("shim", "runtime"),
      level: among("debug", "info", "warn", "error"),
      containerId: maybe(isString),
      msg: isText
    }
  ],
  ["Signal", ClientCommand.decodeSignal, { signalNumber: isInteger, columns: maybe(isInteger), rows: maybe(isInteger) }]
]

/** All that an error may say about a payload: names of commands and keys, types and places, and nothing of what stands there. */
const harmless = new RegExp(
  "^malformed (?:RegisterVM|UnregisterVM|AttachVM|Hyper|ConnectShim|Signal|log|newcontainer|execcmd) command: (?:" +
    "the payload is not JSON|" +
    "the payload nests deeper than 10000 levels|" +
    "process\\.std(?:io|err) must be 0 or absent: the proxy sets it|" +
    "(?:Missing key|Expected (?:object|string|number|array|boolean|an integer|a value with a length of at least 1|" +
    '"shim" \\| "runtime"|"debug" \\| "info" \\| "warn" \\| "error")(?: \\| null \\| undefined)?)' +
    '(?: at (?:\\["(?:containerId|ctlSerial|ioSerial|console|numIOStreams|hyperName|tokens|data|token|signalNumber|columns|' +
    'rows|source|level|msg|id|container|process|terminal)"\\]|\\[\\d+\\])+)?' +
    ")$"
)

const assertHarmless = <A>(result: Result.Result<A, ClientCommand.MalformedCommand>): void => {
  if (Result.isFailure(result)) assert.match(result.failure.message, harmless)
}

/** `undefined` where the text is not JSON, by the letter: a byte order mark is none. */
const parseJson = (bytes: Uint8Array): { readonly json: unknown } | undefined => {
  try {
    return { json: JSON.parse(utf8(bytes)) }
  } catch {
    return undefined
  }
}

/** A JSON payload: the number of its command, as a digit for example, and the payload. */
export const command = (input: Uint8Array): void => {
  const [name, decode, keys] = payloads[(input[0] ?? 0) % 8] ?? payloads[3]!
  const payload = view(input.subarray(1))
  const parsed = parseJson(payload)
  const result = decode(payload)
  assertHarmless(result)
  const fits =
    parsed !== undefined &&
    isObject(parsed.json) &&
    Object.entries(keys).every(([key, check]) => check((parsed.json as Readonly<Record<string, unknown>>)[key]))
  assert.equal(Result.isSuccess(result), fits)
  assert.ok(Buffer.from(payload).equals(input.subarray(1)), "the payload was changed")
  if (Result.isFailure(result)) {
    assert.equal(result.failure.reason === "the payload is not JSON", parsed === undefined)
    return
  }
  const json = parsed!.json as Readonly<Record<string, unknown>>
  const decoded = result.success as Readonly<Record<string, unknown>>
  for (const key of Object.keys(decoded)) assert.ok(Object.hasOwn(keys, key), "a key that the command does not have")
  for (const key of Object.keys(keys)) if (key !== "data") assert.deepEqual(decoded[key], json[key])
  if (name === "Hyper") hyper(payload, decoded["hyperName"] as string, 4)
  if (name === "ConnectShim") {
    const token = json["token"] as string
    const shown = ClientCommand.redactToken(token)
    assert.ok(shown.endsWith("…") && shown.length <= 7 && token.startsWith(shown.slice(0, -1)))
    if (token.length <= 24) assert.equal(shown, "…")
  }
  if (name === "Signal") {
    const wrong = ClientCommand.checkSignal(decoded as ClientCommand.Signal)
    const { columns, rows, signalNumber } = json as Readonly<Record<string, number | null | undefined>>
    const sized = signalNumber === 28 ? columns! > 0 && rows! > 0 : !columns && !rows
    assert.equal(wrong === undefined, signalNumber! >= 0 && signalNumber! <= 30 && sized)
    if (wrong !== undefined)
      assert.match(
        wrong.replaceAll(/-?\d+/g, "N"),
        /^(?:invalid signal number N|received SIGWINCH but terminal size is invalid \(N,N\)|received a terminal size \(N,N\) for signal N)$/
      )
  }
}

/** What becomes of the data of a Hyper command that was accepted, and of the process it starts. */
const hyper = (payload: Uint8Array, hyperName: string, stderr: number | undefined): void => {
  const data = HyperData.dataOf(payload)
  const text = Json.toText(payload)
  const given = Json.members(Json.tokens(text), 0).findLast(({ key }) => key === "data")
  assert.equal(Json.toText(data), given === undefined ? "" : text.slice(given.start, given.end))
  assert.ok(data.length === 0 || data.buffer === payload.buffer, "the data was copied")
  if (!HyperData.starters.has(hyperName) || given === undefined) return

  const json: unknown = JSON.parse(utf8(data))
  const started = HyperData.decodeStart(hyperName, json)
  assertHarmless(started)
  const expected = expectStart(hyperName, json)
  assert.equal(Result.isSuccess(started), expected !== undefined)
  if (Result.isSuccess(started)) assert.deepEqual(started.success, expected)

  const before = data.slice()
  const set = HyperData.setSequences(hyperName, data, 3, stderr)
  assertHarmless(set)
  assert.ok(Buffer.from(data).equals(before), "the client's own bytes were changed")
  const expectedText = expectSequences(Json.toText(data), 3, stderr)
  assert.equal(Result.isSuccess(set), expectedText !== undefined)
  if (Result.isFailure(set)) return
  assert.equal(Json.toText(set.success), expectedText)
  if (Json.depth(Json.tokens(Json.toText(data))) > 200) return // what compares two values would not get through
  assert.deepEqual(JSON.parse(utf8(set.success)), withSequences(JSON.parse(utf8(data)), 3, stderr))
}

const expectStart = (hyperName: string, json: unknown): HyperData.ProcessStart | undefined => {
  const key = hyperName === "newcontainer" ? "id" : "container"
  if (!isObject(json) || !isText(json[key]) || !isObject(json["process"])) return undefined
  const { id, terminal } = json["process"]
  if (!maybe(isString)(id) || !maybe((value) => typeof value === "boolean")(terminal)) return undefined
  return {
    container: json[key] as string,
    process: (id as string | null | undefined) ?? undefined,
    terminal: (terminal as boolean | null | undefined) ?? false,
    init: hyperName === "newcontainer"
  }
}

/** The text with the two numbers in each place where an agent could read them; `undefined` where one of them was set. */
const expectSequences = (text: string, stdio: number, stderr: number | undefined): string | undefined => {
  const all = Json.tokens(text)
  const edits: Array<readonly [start: number, end: number, text: string]> = []
  for (const process of Json.members(all, 0)) {
    if (Json.folded(process.key) !== "process" || all[process.from]!.text !== "{") continue
    const inside = Json.members(all, process.from)
    const missing: Array<string> = []
    for (const [key, sequence] of [
      ["stdio", stdio],
      ["stderr", stderr]
    ] as const) {
      for (const { end, key: name, start } of inside) {
        if (Json.folded(name) !== key) continue
        const value = text.slice(start, end)
        if (value !== "null" && !(/^[-\d]/.test(value) && Number(value) === 0)) return undefined
        if (sequence !== undefined) edits.push([start, end, String(sequence)])
      }
      if (sequence !== undefined && !inside.some(({ key: name }) => name === key)) missing.push(`"${key}":${sequence}`)
    }
    if (missing.length === 0) continue
    edits.push([process.start + 1, process.start + 1, missing.join(",") + (inside.length > 0 ? "," : "")])
  }
  let out = text
  for (const [start, end, replacement] of edits.toSorted(([a], [b]) => b - a))
    out = out.slice(0, start) + replacement + out.slice(end)
  return out
}

/** Gives the processes in `json`, which it changes, the two numbers that an agent is to read. */
const withSequences = (json: unknown, stdio: number, stderr: number | undefined): unknown => {
  if (!isObject(json)) return json
  const sequences = { stdio, ...(stderr !== undefined && { stderr }) }
  for (const [key, process] of Object.entries(json)) {
    if (Json.folded(key) !== "process" || !isObject(process)) continue
    for (const [name, sequence] of Object.entries(sequences)) {
      const spellings = Object.keys(process).filter((one) => Json.folded(one) === name)
      Object.assign(process, Object.fromEntries([...spellings, name].map((one) => [one, sequence])))
    }
  }
  return json
}

/**
 * A Hyper command that starts a process: a control byte and its data. Bit 0 of the control: execcmd, bit 1: a terminal, bit 2:
 * the data is made by `Json.generate` from what follows.
 */
export const start = (input: Uint8Array): void => {
  const control = input[0] ?? 0
  const hyperName = (control & 1) === 0 ? "newcontainer" : "execcmd"
  const data = (control & 4) === 0 ? input.subarray(1) : Json.generate(input.subarray(1))
  const payload = view(concat([Buffer.from(`{"hyperName":"${hyperName}","data":`), data, Buffer.from("}")]))
  const result = ClientCommand.decodeHyper(payload)
  assertHarmless(result)
  if ((control & 4) !== 0) assert.ok(Result.isSuccess(result))
  if (Result.isSuccess(result)) hyper(payload, hyperName, (control & 2) === 0 ? 4 : undefined)
}

// --- what agents send ---

/** What the bytes of a control channel mean by PROTOCOL.md, read all at once. */
const expectCtl = (bytes: Uint8Array): Outcome => {
  const wire = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  const messages: Array<Uint8Array> = []
  for (let at = 0; ;) {
    if (bytes.length - at < 8) return { messages, end: "too few bytes" }
    const length = wire.getUint32(at + 4)
    if (length < 8 || length > 16 * MiB) return { messages, end: `length ${length}` }
    if (at + length > bytes.length) return { messages, end: "too few bytes" }
    messages.push(bytes.slice(at, at + length))
    at += length
  }
}

/** The bytes of a control channel. */
export const ctl = (input: Uint8Array): void => {
  const wire = wireOf(input)
  assertOutcome(wire, expectCtl(wire.bytes), (pieces) => {
    const parser = CtlMessage.makeParser()
    const messages: Array<Uint8Array> = []
    const failure = feed(pieces, (piece) => {
      const pushed = parser.push(piece, (code, payload) => messages.push(CtlMessage.encode(code, payload)))
      return Result.isFailure(pushed) ? pushed.failure : undefined
    })
    if (failure !== undefined) assert.match(failure.message, /^bad ctl message: length \d+, expected 8 to \d+$/)
    return { messages, end: failure === undefined ? "too few bytes" : `length ${failure.length}` }
  })
  const parser = CtlMessage.makeParser()
  assertModest(wire, (piece) => parser.push(piece, () => {}))
}

/** The stdio sequences of two processes. What comes on `statusEvent` stands for a status that comes as a ctl event. */
const stdios = [3, 5] as const
const statusEvent = 7
/** As `statusEvent`, of a process that never started. */
const failureEvent = 8

/** One process's output by PROTOCOL.md, "The end of a process": an independent account of `ProcessOutput`. */
class ExpectedOutput {
  readonly frames: Array<Uint8Array> = []
  readonly #stdio: number
  dropped = 0
  #ended = false
  #early: number | undefined
  #status: number | undefined

  constructor(stdio: number) {
    this.#stdio = stdio
  }

  get end(): string {
    return `ended ${this.#ended}, status ${this.#status}, ${this.dropped} dropped`
  }

  message(sequence: number, data: Uint8Array): void {
    const stderr = sequence !== this.#stdio
    if (this.#status !== undefined) this.dropped += data.length
    else if (data.length === 0) {
      if (stderr || this.#ended) return
      this.#ended = true
      if (this.#early !== undefined) this.#exit(this.#early)
    } else if (this.#ended && !stderr && data.length === 1) this.#exit(data[0]!)
    else this.#frame(FrameType.stream, stderr ? StreamKind.stderr : StreamKind.stdout, data)
  }

  event(status: number, neverStarted: boolean): void {
    if (this.#status !== undefined || this.#early !== undefined) return
    if (neverStarted) this.#ended = true
    if (this.#ended) this.#exit(status)
    else this.#early = status
  }

  #exit(status: number): void {
    this.#status = status
    this.#frame(FrameType.notification, Frame.Notification.ProcessExited, Uint8Array.of(status))
  }
  #frame(type: Frame.FrameType, opcode: number, payload: Uint8Array): void {
    this.frames.push(Frame.encode({ type, opcode, inError: false, payload }))
  }
}

/** What the bytes of an io channel mean, read all at once: its messages, and what the two processes' shims get. */
const expectIo = (bytes: Uint8Array): Outcome => {
  const wire = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  const messages: Array<Uint8Array> = []
  const outputs = stdios.map((stdio) => new ExpectedOutput(stdio))
  let end = "too few bytes"
  for (let at = 0; bytes.length - at >= 12;) {
    const length = wire.getUint32(at + 8)
    if (length < 12 || length > MiB) {
      end = `length ${length}`
      break
    }
    if (at + length > bytes.length) break
    const sequence = wire.getBigUint64(at)
    const data = bytes.slice(at + 12, at + length)
    messages.push(bytes.slice(at, at + length))
    for (const [which, stdio] of stdios.entries())
      if (sequence === BigInt(stdio) || sequence === BigInt(stdio + 1)) outputs[which]!.message(Number(sequence), data)
    if (sequence === BigInt(statusEvent) || sequence === BigInt(failureEvent))
      outputs[(data[0] ?? 0) & 1]!.event(data[1] ?? 0, sequence === BigInt(failureEvent))
    at += length
  }
  return {
    messages: [...messages, ...outputs.map(({ frames }) => concat(frames))],
    end: [end, ...outputs.map((output) => output.end)].join("; ")
  }
}

/** The messages of a run, copied; and what has to hold for the run itself. */
const messagesOf = ({ bytes, end, sequence, start }: IoMessage.Run): ReadonlyArray<Uint8Array> => {
  const wire = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  const messages: Array<Uint8Array> = []
  assert.ok(start < end, "an empty run")
  for (let at = start; at < end;) {
    assert.equal(sequence, Number(wire.getBigUint64(at)))
    const length = wire.getUint32(at + 8)
    messages.push(bytes.slice(at, at + length))
    at += length
    assert.ok(at <= end, "a run that ends inside of a message")
  }
  return messages
}

const assertFrames = (bytes: Uint8Array): void => {
  const parser = Frame.makeParser(Frame.fromProxy)
  assert.ok(Result.isSuccess(parser.push(bytes, () => {})) && !parser.midFrame(), "a shim would not understand it")
  assert.equal(Frame.wholeEnd(bytes), bytes.length)
}

/** The bytes of an io channel, and what two processes' shims get of them. */
export const io = (input: Uint8Array): void => {
  const wire = wireOf(input)
  assertOutcome(wire, expectIo(wire.bytes), (pieces) => {
    const parser = IoMessage.makeParser()
    const messages: Array<Uint8Array> = []
    const outputs = stdios.map((stdio) => {
      const given: Array<Uint8Array> = []
      const views: Array<Uint8Array> = []
      const to: ProcessOutput.Emit = {
        emit(bytes, start, end) {
          assert.ok(start < end, "an empty range")
          views.push(bytes.subarray(start, end))
        }
      }
      return { stdio, output: ProcessOutput.make(stdio), given, views, to, dropped: 0 }
    })
    const failure = feed(pieces, (piece) => {
      const runs: Array<IoMessage.Run> = []
      const pushed = parser.push(piece, runs)
      let last: IoMessage.Run | undefined
      for (const run of runs) {
        messages.push(...messagesOf(run))
        if (last?.bytes === run.bytes) {
          assert.equal(run.start, last.end, "a gap between runs")
          assert.notEqual(run.sequence, last.sequence, "two runs that are one")
        }
        last = run
      }
      for (const run of runs) {
        const { bytes, sequence, start } = run
        if (sequence === statusEvent || sequence === failureEvent) {
          for (const message of messagesOf(run)) {
            const { output, views } = outputs[(message[12] ?? 0) & 1]!
            const frame = output.exit(message[13] ?? 0, sequence === failureEvent ? "never started" : undefined)
            if (frame !== undefined) views.push(frame)
          }
        }
        const owner = outputs.find(({ stdio }) => sequence === stdio || sequence === stdio + 1)
        if (owner === undefined) continue
        const before = bytes.slice(Math.max(start - 16, 0), start)
        const behind = bytes.slice(run.end, run.end + 16)
        owner.dropped += owner.output.rewrite(run, owner.to)
        assert.ok(
          Buffer.from(before).equals(bytes.subarray(Math.max(start - 16, 0), start)),
          "wrote in front of its run"
        )
        assert.ok(Buffer.from(behind).equals(bytes.subarray(run.end, run.end + 16)), "wrote behind its run")
      }
      // what one run emits, the next ones of its chunk must not change
      for (const { given, views } of outputs) given.push(...views.splice(0).map((bytes) => bytes.slice()))
      return Result.isFailure(pushed) ? pushed.failure : undefined
    })
    if (failure !== undefined) assert.match(failure.message, /^bad io message: length \d+, expected 12 to \d+$/)
    const given = outputs.map((output) => concat(output.given))
    for (const bytes of given) assertFrames(bytes)
    const ends = outputs.map(
      ({ dropped, output }) => `ended ${output.ended()}, status ${output.status()}, ${dropped} dropped`
    )
    return {
      messages: [...messages, ...given],
      end: [failure === undefined ? "too few bytes" : `length ${failure.length}`, ...ends].join("; ")
    }
  })
  const parser = IoMessage.makeParser()
  assertModest(wire, (piece) => parser.push(piece, []))
}

/** The payload of a ctl event 23. */
export const event = (input: Uint8Array): void => {
  const payload = view(input)
  const decoded = Agent.decodeProcessEvent(payload)
  const parsed = parseJson(payload.subarray(utf8(payload).startsWith("\ufeff") ? 3 : 0))
  const json = isObject(parsed?.json) ? parsed.json : {}
  const { container, event: what, process, status } = json
  const fits = [container, process, what].every(isString) && isInteger(status)
  assert.deepEqual(decoded && { ...decoded }, fits ? { container, process, event: what, status } : undefined)
  assert.ok(Number.isInteger(Agent.apiVersionOf(payload)))
}

// --- what waits ---

/** Bytes of a queue by their position in it. */
const counted = Uint8Array.from({ length: 128 * KiB }, (_, at) => at)

/**
 * A queue: a first byte, and steps of two bytes each, what is done and its size. Bit 0 of the first byte: what waits is taken in
 * chunks, not read.
 */
export const queue = (input: Uint8Array): void => {
  const chunks = ((input[0] ?? 0) & 1) === 1
  const waiting = new ByteQueue()
  let pushed = 0
  let taken = 0
  let fresh = false // something has not settled
  let pinned = false // something may have been put back that had not
  const assertNext = (bytes: Uint8Array): void => {
    const from = taken & 0xff
    assert.ok(
      Buffer.from(bytes).equals(counted.subarray(from, from + bytes.length)),
      "other bytes, or in another order"
    )
    taken += bytes.length
  }
  for (let at = 1; at + 1 < input.length; at += 2) {
    const what = input[at]! % 6
    const size = (input[at + 1]! + 1) * (input[at]! < 128 ? 1 : 157)
    if (what < 2) {
      const from = pushed & 0xff
      waiting.push(counted.subarray(from, from + size))
      pushed += size
      fresh = true
    } else if (what === 2) {
      waiting.settle()
      fresh = false
    } else if (!chunks) {
      const length = Math.min(size, waiting.size)
      const out = new Uint8Array(length + 2)
      waiting.read(out, 1, length)
      assert.ok(out[0] === 0 && out[length + 1] === 0)
      assertNext(out.subarray(1, length + 1))
    } else if (what === 5 && size % 16 === 0) {
      waiting.clear()
      taken = pushed
    } else {
      const before = taken
      const given = waiting.take(size)
      assert.ok(given.length <= 1 || concat(given).length <= size)
      assert.equal(given.length === 0, pushed === before)
      for (const chunk of given) assertNext(chunk)
      if (what === 4 && given.length > 0) {
        waiting.unshift(given)
        taken = before
        pinned ||= fresh
      }
    }
    assert.equal(waiting.size, pushed - taken)
  }
  waiting.settle()
  const size = waiting.size
  const held = new Set(waiting.take(Number.POSITIVE_INFINITY).map(({ buffer }) => buffer))
  const bytes = Array.from(held, ({ byteLength }) => byteLength).reduce((sum, length) => sum + length, 0)
  if (chunks) assert.equal(waiting.size, 0)
  if (!pinned) assert.ok(bytes <= 2 * size + 128 * KiB, `${bytes} bytes held for ${size}`)
}

// --- what operators write ---

const units: Readonly<Record<string, bigint>> = {
  ns: 1n,
  us: 1000n,
  µs: 1000n,
  ms: 1_000_000n,
  s: 1_000_000_000n,
  m: 60_000_000_000n,
  h: 3_600_000_000_000n
}
const longest = 480n * units["h"]!

/** A duration in Go's notation, in nanoseconds × 10^9, so that nothing is rounded; `undefined` where it is none. */
const expectNanos = (text: string): bigint | undefined => {
  const terms = text.match(/\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h)/g) ?? []
  if (terms.length === 0 || terms.join("") !== text) return undefined
  let nanos = 0n
  for (const term of terms) {
    const [, whole, fraction = "", unit] = /^(\d+)(?:\.(\d+))?(.*)$/.exec(term)!
    const billionths = BigInt(whole!) * 10n ** 9n + BigInt(fraction.slice(0, 9).padEnd(9, "0"))
    nanos += billionths * units[unit!]!
  }
  return nanos
}

const assertDuration = (text: string): void => {
  const parsed = GoDuration.parse(text)
  const expected = expectNanos(text)
  if (expected === undefined) return assert.ok(Option.isNone(parsed))
  const billion = 10n ** 9n
  const slack = expected / 10n ** 14n + 4n * billion // of the doubles it is read with, and of what stands behind nine decimals
  if (expected < billion - slack || expected > longest * billion + slack) assert.ok(Option.isNone(parsed))
  if (Option.isNone(parsed)) {
    assert.ok(expected <= slack || expected >= longest * billion - slack)
    return
  }
  const off = Duration.toNanosUnsafe(parsed.value) * billion - expected
  assert.ok(off <= slack && off >= -slack, `${text} is off by ${off / billion} ns`)
}

const table: ReadonlyArray<readonly [string, Flags.Flag<unknown>]> = Object.entries(Flags.flags)

/** A command line by Go's rules: what each flag is set to at last, and the operands; or why it is none, or `help`. */
const expectWords = (
  args: ReadonlyArray<string>
): string | { readonly given: ReadonlyMap<string, string>; readonly operands: ReadonlyArray<string> } => {
  const given = new Map<string, string>()
  const left = [...args]
  while (left.length > 0 && /^-./s.test(left[0]!) && left[0] !== "--") {
    const arg = left.shift()!
    const equals = arg.indexOf("=")
    const flag = equals < 0 ? arg : arg.slice(0, equals)
    const name = flag.replace(/^--?/, "")
    let value = equals < 0 ? undefined : arg.slice(equals + 1)
    if (name === "" || name.startsWith("-")) return "bad flag syntax"
    const known = table.find(([, one]) => one.name === name || one.alias === name)?.[1]
    if (known === undefined && name !== "version") {
      return name === "h" || name === "help" ? "help" : "flag provided but not defined"
    } else if (known?.metavar === undefined) {
      if (/^([1tT]|true|TRUE|True)$/.test((value ??= "true"))) given.set(name, "true")
      else if (/^([0fF]|false|FALSE|False)$/.test(value)) given.delete(name)
      else return "flag takes only true or false"
    } else {
      value ??= left.shift()
      if (value === undefined) return "flag needs an argument"
      given.set(known.name, value)
    }
  }
  return { given, operands: left }
}

/** A command line: its words with a NUL between them, the first of them `CC_PROXY_LOG_LEVEL`. */
export const commandLine = (input: Uint8Array): void => {
  const [level = "", ...args] = utf8(input).split("\0")
  for (const word of [level, ...args]) assertDuration(word.slice(word.indexOf("=") + 1))
  const all = [...(level === "" ? [] : [`-log=${level}`]), ...args]
  const expected = expectWords(all)
  const normalized = Flags.normalize(args, { CC_PROXY_LOG_LEVEL: level })
  if (Result.isFailure(normalized)) {
    const { flag, message, reason } = normalized.failure
    assert.equal(reason, expected)
    assert.equal(message, `${reason}: ${flag}`)
    assert.ok(all.some((arg) => arg.startsWith(flag)))
    return
  }
  const words = normalized.success
  assert.deepEqual(Result.getOrThrow(Flags.normalize(words, {})), words, "normal is not normal")
  const config = Flags.read(words)
  if (typeof expected === "string") {
    assert.equal(expected, "help")
    assert.deepEqual(words, ["--help"])
    assert.equal(config, undefined)
    return
  }
  const { given, operands } = expected
  assert.deepEqual(
    words.slice(0, given.size).toSorted(),
    Array.from(given, ([name, value]) => `--${name}=${value}`).toSorted()
  )
  assert.deepEqual(words.slice(given.size), operands)
  const fits =
    operands.length === 0 &&
    !given.has("version") &&
    table.every(([, { name, parse }]) => !given.has(name) || Option.isSome(parse(given.get(name)!)))
  assert.equal(config !== undefined, fits)
  if (config === undefined) return
  assert.equal(Flags.flags.socketPath.standard, built.CC_PROXY_SOCKET)
  for (const [key, { name, parse, standard }] of table) {
    const value = given.has(name) ? Option.getOrThrow(parse(given.get(name)!)) : standard
    assert.deepEqual(config[key as keyof Flags.Config], value)
  }
}

/** A record of the log: its message, its source, and keys and values in turn, with a NUL between them. */
export const record = (input: Uint8Array): void => {
  const [msg = "", source = "", ...rest] = utf8(input).split("\0")
  const fields = Array.from({ length: rest.length >> 1 }, (_, at) => [rest[2 * at]!, rest[2 * at + 1]!] as const)
  const line = Logfmt.format({ time: 1n, level: "info", msg, pid: 1, source, fields })
  assert.doesNotMatch(line, /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/u)
  const read = LogfmtReader.parse(line)
  // a key and what it costs beside its value have no bound: keys are the daemon's own
  const keys = Array.from(read.keys(), (key) => key.length + 6).reduce((sum, length) => sum + length, 0)
  assert.ok(line.length <= Logfmt.maxLine + keys, `a line of ${line.length}`)
  const values = [...read.values()]
  const outside = [msg, source, ...fields.map(([, value]) => value)]
  const shown = [values[2]!, values[5]!, ...values.slice(6)]
  assert.equal(shown.length, outside.length)
  for (const [at, text] of outside.entries())
    assert.ok(
      shown[at] === text || (shown[at]!.endsWith("…") && text.startsWith(shown[at]!.slice(0, -1))),
      "a value that is another one in the log"
    )
}

// --- what may take long ---

/** Largest text made of a repetition, in bytes. */
const largest = 2 * MiB

/** Largest event that is looked at, in bytes. */
const largestEvent = 64 * KiB

/** Up to this size a text is read a second time, to know how deep it is, in bytes. */
const readTwice = 128 * KiB

/** The brackets that close those of `unit`. */
const closing = (unit: Uint8Array): Uint8Array =>
  Uint8Array.from(unit.filter((byte) => byte === 0x5b || byte === 0x7b).toReversed(), (byte) => byte + 2)

/**
 * A few bytes many times over, wherever texts from outside are read: an exponent, the length of what comes first, and that of
 * what is repeated up to 2^exponent times; then the bytes. From 128 on, the exponent says that what is repeated is closed as
 * many times, in front of a NUL in the rest. All that is promised is an end in good time, and what a decoder says of the depth.
 */
export const repetition = (input: Uint8Array): void => {
  const [exponent = 0, before = 0, length = 0] = input
  const first = input.subarray(3, 3 + before)
  const unit = input.subarray(3 + before, 3 + before + length)
  const rest = input.subarray(3 + before + length)
  const times = unit.length === 0 ? 0 : Math.floor(Math.min(2 ** (exponent % 32), largest) / unit.length)
  const again = (bytes: Uint8Array) => (bytes.length === 0 ? bytes : Buffer.alloc(times * bytes.length, bytes))
  const inside = exponent < 128 || !rest.includes(0) ? rest : rest.subarray(0, rest.indexOf(0))
  const end = exponent < 128 ? [] : [again(closing(unit)), rest.subarray(inside.length + 1)]
  const payload = concat([first, again(unit), inside, ...end])

  const result = ClientCommand.decodeHyper(payload)
  assertHarmless(result)
  if (payload.length <= readTwice && parseJson(payload) !== undefined) {
    const tooDeep = Json.depth(Json.tokens(Json.toText(payload))) > 10_000
    assert.equal(Result.isFailure(result) && result.failure.reason.includes("nests deeper"), tooDeep)
  }
  if (Result.isSuccess(result)) {
    const data = HyperData.dataOf(payload)
    assertHarmless(HyperData.decodeStart("newcontainer", result.success.data))
    assertHarmless(HyperData.setSequences("newcontainer", data, 3, 4))
  }
  const ended = Agent.decodeProcessEvent(payload)
  if (payload.length > largestEvent) assert.equal(ended, undefined)
  assertHarmless(ClientCommand.decodeLogEntry(payload.subarray(0, Frame.defaultLimits.command)))
  const text = utf8(payload.subarray(0, Frame.defaultLimits.command))
  assert.ok(Logfmt.format({ time: 1n, level: "info", msg: text, pid: 1, source: text, fields: [] }).length < 20_000)
  GoDuration.parse(text)
  Flags.normalize([text], {})
}
