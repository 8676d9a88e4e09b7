/**
 * The `data` of a Hyper command: forwarded byte for byte, except for the two numbers that tell the agent which sequences a
 * new process's stdio has.
 *
 * Source: PROTOCOL.md, "Starting processes".
 */
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { MalformedCommand, misfit } from "./ClientCommand.ts"
import * as JsonText from "./JsonText.ts"

const nothing = new Uint8Array(0)

/** The bytes of `data` as they stand in a Hyper payload that has been decoded; none where the key is absent. A view. */
export const dataOf = (payload: Uint8Array): Uint8Array => {
  const ranges = JsonText.membersAt(JsonText.toText(payload), 0)?.get("data") ?? []
  const last = ranges.at(-1) // of duplicate keys the last counts, as for JSON.parse and for Go
  return last === undefined ? nothing : payload.subarray(last.start, last.end)
}

/** The commands that start a process, and the key that names its container. */
export const starters: ReadonlyMap<string, "id" | "container"> = new Map([
  ["newcontainer", "id"],
  ["execcmd", "container"]
])

const Process = Schema.Struct({
  terminal: Schema.optional(Schema.NullOr(Schema.Boolean)),
  id: Schema.optional(Schema.NullOr(Schema.String))
})

const decodeNewContainer = Schema.decodeUnknownResult(Schema.Struct({ id: Schema.NonEmptyString, process: Process }))
const decodeExecCmd = Schema.decodeUnknownResult(Schema.Struct({ container: Schema.NonEmptyString, process: Process }))

/** What the proxy has to know of a process that is about to start. */
export interface ProcessStart {
  readonly container: string
  /** `process.id`; agents of API 4244 and later report exits by it. */
  readonly process: string | undefined
  readonly terminal: boolean
  /** Whether it is its container's init process: started by newcontainer. */
  readonly init: boolean
}

/** Reads the parsed `data` of newcontainer or execcmd. */
export const decodeStart = (hyperName: string, data: unknown): Result.Result<ProcessStart, MalformedCommand> => {
  const init = hyperName === "newcontainer"
  const decoded = init
    ? Result.map(decodeNewContainer(data), ({ id, process }) => ({ container: id, process }))
    : decodeExecCmd(data)
  return decoded.pipe(
    Result.map(({ container, process }) => ({
      container,
      process: process.id ?? undefined,
      terminal: process.terminal ?? false,
      init
    })),
    Result.mapError(misfit(hyperName))
  )
}

/**
 * Sets `process.stdio` to `stdio` and, where `stderr` is given, `process.stderr` to it, also in duplicates and under keys that
 * differ in case only, which a Go agent would obey. Every other byte stays. Fails where
 * the client has set one of them: the numbers are the proxy's to give.
 */
export const setSequences = (
  hyperName: string,
  data: Uint8Array,
  stdio: number,
  stderr: number | undefined
): Result.Result<Uint8Array, MalformedCommand> => {
  const text = JsonText.toText(data)
  const edits: Array<JsonText.Edit> = []
  for (const process of JsonText.membersAt(text, 0)?.like("process") ?? []) {
    const members = JsonText.membersAt(text, process.start)
    if (members === undefined) continue
    const missing: Array<string> = []
    for (const [key, sequence] of [
      ["stdio", stdio],
      ["stderr", stderr]
    ] as const) {
      for (const range of members.like(key)) {
        const value = text.slice(range.start, range.end)
        if (value !== "null" && Number(value) !== 0)
          return Result.fail(
            new MalformedCommand({
              command: hyperName,
              reason: `process.${key} must be 0 or absent: the proxy sets it`
            })
          )
        if (sequence !== undefined) edits.push({ ...range, text: String(sequence) })
      }
      if (members.get(key).length === 0 && sequence !== undefined) missing.push(`"${key}":${sequence}`)
    }
    if (missing.length > 0) {
      const text = missing.join(",") + (members.empty ? "" : ",")
      edits.push({ start: members.inside, end: members.inside, text })
    }
  }
  return Result.succeed(JsonText.apply(data, edits))
}
