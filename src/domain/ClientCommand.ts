/**
 * What clients ask for: the JSON payloads of the client protocol, decoded once, at the edge. Unknown keys are ignored and
 * `null` stands for an absent key, as Go writes it. No error text repeats a payload: payloads hold tokens and environments.
 *
 * Source: PROTOCOL.md, "Commands".
 */
import * as Data from "effect/Data"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { Command } from "./Frame.ts"
import * as JsonDepth from "./JsonDepth.ts"

/** Protocol names of the commands, by opcode. */
export const commandNames = Object.fromEntries(
  Object.entries(Command).map(([name, opcode]) => [opcode, name])
) as Record<Command, keyof typeof Command>

/** A payload is not JSON, or does not fit its command. The client gets this as an error response and stays connected. */
export class MalformedCommand extends Data.TaggedError("MalformedCommand")<{
  readonly command: string
  readonly reason: string
  /** The limit that it is above, if it is one. */
  readonly above?: "depth"
}> {
  override get message(): string {
    return `malformed ${this.command} command: ${this.reason}`
  }
}

/** What a schema's error means for a client, on one line. Such errors name keys and types only. */
export const misfit =
  (command: string) =>
  (error: Schema.SchemaError): MalformedCommand =>
    new MalformedCommand({ command, reason: error.message.replaceAll(/\s*\n\s*/g, " ") })

/** `optional`, and `null` for absent. */
const nullable = <S extends Schema.Top>(schema: S) => Schema.optional(Schema.NullOr(schema))

export const RegisterVM = Schema.Struct({
  containerId: Schema.NonEmptyString,
  /** Paths of the VM's sockets. */
  ctlSerial: Schema.NonEmptyString,
  ioSerial: Schema.NonEmptyString,
  console: nullable(Schema.String),
  numIOStreams: nullable(Schema.Int)
})
export type RegisterVM = typeof RegisterVM.Type

export const AttachVM = Schema.Struct({ containerId: Schema.NonEmptyString, numIOStreams: nullable(Schema.Int) })
export type AttachVM = typeof AttachVM.Type

export const UnregisterVM = Schema.Struct({ containerId: Schema.NonEmptyString })
export type UnregisterVM = typeof UnregisterVM.Type

export const Hyper = Schema.Struct({
  hyperName: Schema.String,
  tokens: nullable(Schema.Array(Schema.String)),
  data: Schema.optional(Schema.Unknown)
})
export type Hyper = typeof Hyper.Type

export const ConnectShim = Schema.Struct({ token: Schema.String })
export type ConnectShim = typeof ConnectShim.Type

export const Signal = Schema.Struct({
  signalNumber: Schema.Int,
  columns: nullable(Schema.Int),
  rows: nullable(Schema.Int)
})
export type Signal = typeof Signal.Type

export const LogEntry = Schema.Struct({
  source: Schema.Literals(["shim", "runtime"]),
  level: Schema.Literals(["debug", "info", "warn", "error"]),
  containerId: nullable(Schema.String),
  msg: Schema.NonEmptyString
})
export type LogEntry = typeof LogEntry.Type

// a byte order mark is left in, for JSON.parse to refuse: `HyperData.dataOf` would not find the object behind one
const utf8 = new TextDecoder("utf-8", { ignoreBOM: true })

/** Makes a decoder of one payload. */
const decoder = <A>(command: string, schema: Schema.ConstraintDecoder<A>) => {
  const decode = Schema.decodeUnknownResult(schema)
  return (payload: Uint8Array): Result.Result<A, MalformedCommand> => {
    if (JsonDepth.isTooDeep(payload)) {
      const reason = `the payload nests deeper than ${JsonDepth.maxDepth} levels`
      return Result.fail(new MalformedCommand({ command, reason, above: "depth" }))
    }
    let json: unknown
    try {
      json = JSON.parse(utf8.decode(payload))
    } catch {
      // V8's message quotes the text
      return Result.fail(new MalformedCommand({ command, reason: "the payload is not JSON" }))
    }
    return Result.mapError(decode(json), misfit(command))
  }
}

export const decodeRegisterVM = decoder("RegisterVM", RegisterVM)
export const decodeAttachVM = decoder("AttachVM", AttachVM)
export const decodeUnregisterVM = decoder("UnregisterVM", UnregisterVM)
export const decodeHyper = decoder("Hyper", Hyper)
export const decodeConnectShim = decoder("ConnectShim", ConnectShim)
export const decodeSignal = decoder("Signal", Signal)
/** A log entry is a stream, not a command: what does not fit ends the connection. */
export const decodeLogEntry = decoder("log", LogEntry)

/** Largest signal number accepted: SIGUNUSED (31) is not one. */
export const maxSignal = 30

export const Sig = { KILL: 9, TERM: 15, WINCH: 28 } as const

/** Why a `Signal` makes no sense, if it does not. */
export const checkSignal = ({ columns, rows, signalNumber }: Signal): string | undefined => {
  if (signalNumber < 0 || signalNumber > maxSignal) return `invalid signal number ${signalNumber}`
  const size = `(${columns ?? 0},${rows ?? 0})`
  if (signalNumber === Sig.WINCH) {
    const valid = (columns ?? 0) > 0 && (rows ?? 0) > 0
    return valid ? undefined : `received SIGWINCH but terminal size is invalid ${size}`
  }
  const none = (columns ?? 0) === 0 && (rows ?? 0) === 0
  return none ? undefined : `received a terminal size ${size} for signal ${signalNumber}`
}

/** Characters of a token that may be shown: enough to tell two apart, far too few to use. */
const tokenPrefix = 6

/** How a token appears in logs and errors, at every level. What is too short to be one of ours is not shown at all. */
export const redactToken = (token: string): string =>
  token.length > 4 * tokenPrefix ? `${token.slice(0, tokenPrefix)}…` : "…"
