/**
 * What a runtime asks of the proxy. Each function sends one command on a connection and waits for its response; all fail
 * with `CommandFailed`, `ConnectionClosed` or `ProtocolViolation`.
 *
 * Source: PROTOCOL.md, "Commands".
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type * as ClientCommand from "../domain/ClientCommand.ts"
import { Command } from "../domain/Frame.ts"
import { type CommandFailed, type Connection, type ConnectionError, ProtocolViolation } from "./Connection.ts"

/** What a command that failed leaves behind. */
export type CommandError = CommandFailed | ConnectionError

/** Where shims connect, and a token for each I/O session that was asked for. */
export interface IOStreams {
  /** `unix://` and a path. */
  readonly url: string
  /** Secrets: who has one may claim its process's input and output. */
  readonly tokens: ReadonlyArray<string>
}

/** The data of a Hyper command: a JSON value, or JSON text to be sent byte for byte, as 64-bit integers need it. */
export type HyperData =
  | { readonly data?: Schema.Json; readonly rawData?: never }
  | { readonly rawData: Uint8Array | string; readonly data?: never }

const toUtf8 = new TextEncoder()
const utf8 = new TextDecoder()

const json = (value: unknown): Uint8Array => toUtf8.encode(JSON.stringify(value))

const IOResponse = Schema.fromJsonString(
  Schema.Struct({
    io: Schema.Struct({ URL: Schema.String, tokens: Schema.optional(Schema.NullOr(Schema.Array(Schema.String))) })
  })
)
const decodeIO = Schema.decodeUnknownOption(IOResponse)

const ioStreams = Effect.fnUntraced(function* (
  connection: Connection,
  command: "RegisterVM" | "AttachVM",
  request: unknown
): Effect.fn.Return<IOStreams, CommandError> {
  const payload = yield* connection.command(Command[command], json(request))
  const response = decodeIO(utf8.decode(payload))
  // a schema's own error would quote the payload, and the tokens in it
  if (Option.isNone(response))
    return yield* new ProtocolViolation({ reason: `the response to ${command} is not {io: {URL, tokens}}` })
  return { url: response.value.io.URL, tokens: response.value.io.tokens ?? [] }
})

/**
 * Makes a VM known, and waits until its agent is ready. `numIOStreams` is the number of tokens wanted.
 *
 * ```ts
 * const { tokens } = yield* Client.registerVM(connection, {
 *   containerId: "pod1",
 *   ctlSerial: "/run/vm/ctl.sock",
 *   ioSerial: "/run/vm/io.sock",
 *   numIOStreams: 1
 * })
 * ```
 */
export const registerVM = (
  connection: Connection,
  request: ClientCommand.RegisterVM
): Effect.Effect<IOStreams, CommandError> => ioStreams(connection, "RegisterVM", request)

/** Binds the connection to a VM that is registered; what follows on it speaks to that VM. */
export const attachVM = (
  connection: Connection,
  request: ClientCommand.AttachVM
): Effect.Effect<IOStreams, CommandError> => ioStreams(connection, "AttachVM", request)

/** Makes a VM unknown. What is attached to it goes on. Needs no attachment. */
export const unregisterVM = (
  connection: Connection,
  request: ClientCommand.UnregisterVM
): Effect.Effect<void, CommandError> => Effect.asVoid(connection.command(Command.UnregisterVM, json(request)))

/**
 * Sends a command to the agent of the VM that the connection is attached to, and gives the agent's reply as it came; it is
 * empty for most commands. `tokens` names the session of the process that the command starts.
 *
 * ```ts
 * const reply = yield* Client.hyper(connection, {
 *   hyperName: "newcontainer",
 *   tokens: [token],
 *   rawData: '{"id":"c1","process":{"args":["true"]},"limit":9223372036854775807}'
 * })
 * ```
 */
export const hyper = (
  connection: Connection,
  request: { readonly hyperName: string; readonly tokens?: ReadonlyArray<string> } & HyperData
): Effect.Effect<Uint8Array, CommandError> =>
  Effect.suspend(() => {
    const { data, hyperName, rawData, tokens } = request
    if (rawData === undefined) return connection.command(Command.Hyper, json({ hyperName, tokens, data }))
    const head = toUtf8.encode(`${JSON.stringify({ hyperName, tokens }).slice(0, -1)},"data":`)
    const raw = typeof rawData === "string" ? toUtf8.encode(rawData) : rawData
    const payload = new Uint8Array(head.length + raw.length + 1)
    payload.set(head)
    payload.set(raw, head.length)
    payload[payload.length - 1] = "}".charCodeAt(0)
    return connection.command(Command.Hyper, payload)
  })

/** Checks that the agent answers. */
export const ping = (connection: Connection): Effect.Effect<void, CommandError> =>
  Effect.asVoid(hyper(connection, { hyperName: "ping" }))

/** Starts the pod: the VM's host name, shares, interfaces. */
export const startPod = (connection: Connection, data: HyperData): Effect.Effect<void, CommandError> =>
  Effect.asVoid(hyper(connection, { hyperName: "startpod", ...data }))

/** Ends the pod; the VM is likely to power off right after its reply. */
export const destroyPod = (connection: Connection): Effect.Effect<void, CommandError> =>
  Effect.asVoid(hyper(connection, { hyperName: "destroypod" }))

/** A process to start. With a token, the command waits at the proxy for that token's shim; without, its output is discarded. */
export type Start = { readonly token?: string } & HyperData

const start = (connection: Connection, hyperName: string, { token, ...data }: Start) =>
  Effect.asVoid(hyper(connection, { hyperName, ...(token === undefined ? {} : { tokens: [token] }), ...data }))

/**
 * Starts a container: `data` has its `id`, its root file system and its init `process`.
 *
 * ```ts
 * yield* Client.newContainer(connection, {
 *   token,
 *   data: { id: "c1", rootfs: "rootfs", image: "c1", process: { args: ["sh", "-c", "date"], envs: [], workdir: "/" } }
 * })
 * ```
 */
export const newContainer = (connection: Connection, request: Start): Effect.Effect<void, CommandError> =>
  start(connection, "newcontainer", request)

/** Starts another process in a container: `data` has `container` and `process`. */
export const execCmd = (connection: Connection, request: Start): Effect.Effect<void, CommandError> =>
  start(connection, "execcmd", request)

/** Sends a signal to a container's init process, or to all of its processes. */
export const killContainer = (
  connection: Connection,
  request: { readonly container: string; readonly signal: number; readonly allProcesses?: boolean }
): Effect.Effect<void, CommandError> => {
  const { allProcesses = false, container, signal } = request
  return Effect.asVoid(hyper(connection, { hyperName: "killcontainer", data: { container, signal, allProcesses } }))
}
