/**
 * The JSON that hyperstart's control channel carries. Unknown keys are ignored, `null` stands for an absent key.
 *
 * Source: PROTOCOL.md, "Agent protocol".
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"

/** The agent answers ERROR. No reason repeats a payload: payloads hold environments. */
export class CommandRefused extends Data.TaggedError("CommandRefused")<{ readonly reason: string }> {
  override get message(): string {
    return this.reason
  }
}

const nullable = <S extends Schema.Top>(schema: S) => Schema.optional(Schema.NullOr(schema))

const Sequence = Schema.Int.check(Schema.isGreaterThanOrEqualTo(1))
const TerminalSize = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 0xffff }))

const Process = Schema.Struct({
  args: Schema.NonEmptyArray(Schema.String),
  /** A directory of this host; `/` where it is absent. */
  workdir: nullable(Schema.String),
  envs: nullable(Schema.Array(Schema.Struct({ env: Schema.NonEmptyString, value: Schema.String }))),
  terminal: nullable(Schema.Boolean),
  stdio: Sequence,
  /** Needed where there is no terminal. */
  stderr: nullable(Schema.Int)
})
export type Process = typeof Process.Type

const decoder = <A>(command: string, schema: Schema.ConstraintDecoder<A>) => {
  const decode = Schema.decodeUnknownEffect(Schema.fromJsonString(schema))
  return (payload: Uint8Array): Effect.Effect<A, CommandRefused> =>
    Effect.mapError(
      decode(new TextDecoder().decode(payload)),
      () => new CommandRefused({ reason: `malformed ${command} command` })
    )
}

export const decodeStartPod = decoder("startpod", Schema.Record(Schema.String, Schema.Unknown))
export const decodeNewContainer = decoder(
  "newcontainer",
  Schema.Struct({ id: Schema.NonEmptyString, process: Process })
)
export const decodeExecCmd = decoder("execcmd", Schema.Struct({ container: Schema.String, process: Process }))
export const decodeKillContainer = decoder(
  "killcontainer",
  Schema.Struct({ container: Schema.String, signal: Schema.Int, allProcesses: nullable(Schema.Boolean) })
)
export const decodeRemoveContainer = decoder("removecontainer", Schema.Struct({ container: Schema.String }))
export const decodeWinSize = decoder(
  "winsize",
  Schema.Struct({ seq: Sequence, row: TerminalSize, column: TerminalSize })
)

const decodeFile = decoder("file", Schema.Struct({ container: Schema.String, file: Schema.NonEmptyString }))

/** `readfile`: `{"container","file"}`; the reply's payload is the file. */
export const decodeReadFile = decodeFile

/** `writefile`: the same JSON, and right after its `}` the file's bytes. As in the C agent the first `}` ends the JSON. */
export const decodeWriteFile = (payload: Uint8Array) => {
  const end = payload.indexOf("}".charCodeAt(0)) + 1
  return Effect.map(decodeFile(payload.subarray(0, end)), (file) => ({ ...file, data: payload.subarray(end) }))
}
