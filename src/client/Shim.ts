/**
 * What a shim does: stands for one process of a VM, passes its input and signals on and receives its output and its exit
 * status.
 *
 * Source: PROTOCOL.md, "Sessions".
 */
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Sig } from "../domain/ClientCommand.ts"
import * as Frame from "../domain/Frame.ts"
import {
  type CommandFailed,
  connect,
  ConnectFailed,
  type Connection,
  ConnectionClosed,
  type ConnectionError,
  type Output
} from "./Connection.ts"
import type { CommandError } from "./Runtime.ts"

export interface Shim {
  /**
   * The process's output, in the order it came; ends after the exit status, or with the connection. For one reader. While
   * nobody reads, at most 64 KiB and a socket's buffers wait here, then the proxy is left to wait.
   */
  readonly output: Stream.Stream<Output>
  /**
   * The exit status. Comes strictly after the reader of `output` has handled the last piece and asked for more, so
   * `output` has to be read at the same time: by a fiber of its own, or by `discardOutput`. The same holds for the responses
   * to `signal` and `resize`, which stand behind unread output.
   */
  readonly exitStatus: Effect.Effect<number, ConnectionError>
  /** Reads and drops what is left of `output`, and gives the exit status. */
  readonly discardOutput: Effect.Effect<number, ConnectionError>
  /**
   * Sends input, in frames of 64 KiB at most. Returns once the kernel has taken all of it, and so waits while the proxy does
   * not read. No bytes: nothing is sent. Calls made at the same time mix by frames. The bytes must not change before it
   * returns.
   */
  readonly stdin: (bytes: Uint8Array) => Effect.Effect<void, ConnectionError>
  /** Ends the process's input. */
  readonly endStdin: Effect.Effect<void, ConnectionError>
  /** Signals the process, by number: 0 to 30, without SIGWINCH (28). */
  readonly signal: (signalNumber: number) => Effect.Effect<void, CommandError>
  /** Sets the size of the process's terminal, in characters; both above 0. */
  readonly resize: (columns: number, rows: number) => Effect.Effect<void, CommandError>
  /**
   * Ends the session: its token is worth nothing from here on. Drops what is left of `output` and returns once the proxy
   * has closed the connection.
   */
  readonly disconnect: Effect.Effect<void, ConnectionError>
}

/** Most bytes of input in one frame. */
const maxInputFrame = 64 * 1024

const toUtf8 = new TextEncoder()
const nothing = new Uint8Array(0)

const inputFrame = (payload: Uint8Array): Uint8Array =>
  Frame.encode({ type: Frame.FrameType.stream, opcode: Frame.StreamKind.stdin, inError: false, payload })

const disconnectFrame = Frame.encode({
  type: Frame.FrameType.command,
  opcode: Frame.Command.DisconnectShim,
  inError: false,
  payload: nothing
})

/**
 * Claims the session that `token` stands for; the connection is that session's from here on. A token can be claimed again
 * once its shim's connection has ended without `disconnect`: what came meanwhile was kept.
 *
 * ```ts
 * const shim = yield* Client.connectShim(connection, token)
 * yield* Stream.runForEach(shim.output, ({ data }) => Effect.sync(() => process.stdout.write(data)))
 * const status = yield* shim.exitStatus
 * yield* shim.disconnect
 * ```
 */
export const connectShim = Effect.fn("connectShim")(function* (
  connection: Connection,
  token: string
): Effect.fn.Return<Shim, CommandError> {
  const json = (value: unknown) => toUtf8.encode(JSON.stringify(value))
  yield* connection.command(Frame.Command.ConnectShim, json({ token }))
  const { closed, exitStatus, output, sendRaw } = connection
  const signal = (payload: unknown) => Effect.asVoid(connection.command(Frame.Command.Signal, json(payload)))
  const discard = Stream.runDrain(output)

  return {
    output,
    exitStatus,
    discardOutput: Effect.andThen(discard, exitStatus),
    stdin: Effect.fnUntraced(function* (bytes) {
      for (let at = 0; at < bytes.length; at += maxInputFrame)
        yield* sendRaw(inputFrame(bytes.subarray(at, at + maxInputFrame)))
    }),
    endStdin: sendRaw(inputFrame(nothing)),
    signal: (signalNumber) => signal({ signalNumber }),
    resize: (columns, rows) => signal({ signalNumber: Sig.WINCH, columns, rows }),
    disconnect: sendRaw(disconnectFrame).pipe(
      Effect.andThen(discard),
      Effect.andThen(closed),
      Effect.flatMap((end) => (end._tag === "ProtocolViolation" ? Effect.fail(end) : Effect.void))
    )
  }
})

/** Time between two attempts to connect again. Source: PROTOCOL.md, "Sessions". */
export const reconnectInterval = "100 millis"

/** Attempts after one close: 10 s of them. */
export const reconnectAttempts = 100

/**
 * Connects, claims `token` and runs `use` with the shim, and does so again when the proxy goes away, as a shim has to: 0.1 s
 * after the close, then every 0.1 s for 10 s, with the same token. Each run has a scope of its own.
 *
 * What goes away is told by `use` failing with `ConnectionClosed`, as `exitStatus` does. Everything else that `use` fails
 * with, an error response to the claim, and a first connection that cannot be made are final. Input that was on its way
 * when the connection ended may be lost.
 *
 * ```ts
 * const status = yield* Client.withShim("/run/cc-oci-runtime/proxy.sock", token, (shim) =>
 *   Effect.gen(function* () {
 *     yield* Stream.runForEach(shim.output, ({ data }) => Effect.sync(() => process.stdout.write(data)))
 *     const status = yield* shim.exitStatus
 *     yield* Effect.ignore(shim.disconnect) // nothing to come back for
 *     return status
 *   })
 * )
 * ```
 */
export const withShim = Effect.fnUntraced(function* <A, E, R>(
  socket: string,
  token: string,
  use: (shim: Shim) => Effect.Effect<A, E, R>
): Effect.fn.Return<A, E | ConnectFailed | CommandFailed | ConnectionError, Exclude<R, Scope.Scope>> {
  let attempts = reconnectAttempts // none is left before the first connection
  for (;;) {
    let claimed = false
    const run = Effect.gen(function* () {
      const shim = yield* connectShim(yield* connect(socket), token)
      claimed = true
      return yield* use(shim)
    })
    const outcome = yield* Effect.result(Effect.scoped(run))
    if (Result.isSuccess(outcome)) return outcome.success
    if (claimed) attempts = 0
    const error = outcome.failure
    const gone = error instanceof ConnectionClosed || (!claimed && error instanceof ConnectFailed)
    if (!gone || attempts === reconnectAttempts) return yield* Effect.fail(error)
    attempts++
    yield* Effect.sleep(reconnectInterval)
  }
})
