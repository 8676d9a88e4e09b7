/**
 * One connection to the proxy's socket, as a runtime or a shim holds it: commands are matched with their responses, output
 * goes to the reader of `output`, and the end of the connection to everyone who waits.
 *
 * Reading is driven by the reader of `output`: once 64 KiB wait for it, the socket is left unread, so a slow reader slows
 * the proxy. Responses stand behind that output in the same byte stream: a connection with a process's output on it must be
 * read, or discarded, for its commands to be answered.
 *
 * Source: PROTOCOL.md, "Client protocol".
 */
import * as Net from "node:net"
import { isArrayNonEmpty, type NonEmptyReadonlyArray } from "effect/Array"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { commandNames, redactToken } from "../domain/ClientCommand.ts"
import * as Frame from "../domain/Frame.ts"

const describe = (cause: unknown): string => (cause instanceof Error ? cause.message : String(cause))

/** Nobody listens at `path`, or it may not be used. */
export class ConnectFailed extends Schema.TaggedError<ConnectFailed>()("ConnectFailed", {
  path: Schema.String,
  cause: Schema.Defect()
}) {
  override get message(): string {
    return `cannot connect to ${this.path}: ${describe(this.cause)}`
  }
}

/** The connection is over; `cause` is there where the system reported an error. */
export class ConnectionClosed extends Schema.TaggedError<ConnectionClosed>()("ConnectionClosed", {
  reason: Schema.Literals(["ended by the proxy", "ended by the proxy inside a frame", "closed by this side", "broken"]),
  cause: Schema.optional(Schema.Defect())
}) {
  override get message(): string {
    return `connection ${this.reason}${this.cause === undefined ? "" : `: ${describe(this.cause)}`}`
  }
}

/** The proxy sent what it must not send. It ends the connection, except where only one response's payload is wrong. */
export class ProtocolViolation extends Schema.TaggedError<ProtocolViolation>()("ProtocolViolation", {
  reason: Schema.String
}) {
  override get message(): string {
    return `protocol violation: ${this.reason}`
  }
}

/** The proxy answered with an error. The connection stays usable. */
export class CommandFailed extends Schema.TaggedError<CommandFailed>()("CommandFailed", {
  /** The command's protocol name: `RegisterVM`, … */
  command: Schema.String,
  /** The proxy's text; a token in it is cut to a short prefix. */
  message: Schema.String
}) {}

/** Why a connection is over. */
export type ConnectionError = ConnectionClosed | ProtocolViolation

/** A piece of a process's output, never empty. The bytes are the reader's to keep. */
export interface Output {
  readonly stream: "stdout" | "stderr"
  readonly data: Uint8Array
}

export interface Connection {
  /**
   * Sends a command and waits for its response; gives that response's payload. Any number may be in flight: responses come
   * in the order of the commands. An interruption stops the waiting, not the command.
   */
  readonly command: (
    opcode: Frame.Command,
    payload: Uint8Array
  ) => Effect.Effect<Uint8Array, CommandFailed | ConnectionError>
  /**
   * Takes the next place in the order of the responses, for a command that is then sent by `sendRaw`. The inner effect
   * waits for the response.
   */
  readonly expect: (opcode: Frame.Command) => Effect.Effect<Effect.Effect<Uint8Array, CommandFailed | ConnectionError>>
  /**
   * Sends bytes as they are and waits until the kernel has taken them all. Bytes offered at the same time do not mix. An
   * interruption stops the waiting, not the sending. The bytes must not change before it returns.
   */
  readonly sendRaw: (bytes: Uint8Array) => Effect.Effect<void, ConnectionError>
  /** Shuts the writing side down, once everything has been sent, and goes on reading. */
  readonly halfClose: Effect.Effect<void>
  /**
   * Waits for the end of the connection and tells its cause: `ConnectionClosed` without `cause` after an orderly one.
   * The end stands behind output that has not been read.
   */
  readonly closed: Effect.Effect<ConnectionError>
  /**
   * The output of the process whose token this connection has claimed; ends after its exit status, or with the
   * connection. For one reader: two would share the pieces.
   */
  readonly output: Stream.Stream<Output>
  /**
   * The exit status of that process. Comes when the reader of `output` asks for more after the last piece, and so after
   * that reader has handled it; with nobody reading `output` it does not come.
   */
  readonly exitStatus: Effect.Effect<number, ConnectionError>
}

/** Bytes of output, headers included, that may wait for their reader before the socket is left unread. */
const maxBuffered = 64 * 1024

/** What the proxy's tokens look like: 32 bytes in URL-safe base64. Source: PROTOCOL.md, "Client protocol". */
const tokenPattern = /[\w-]{43}=/g

const decodeFailure = Schema.decodeUnknownOption(Schema.fromJsonString(Schema.Struct({ msg: Schema.String })))
const utf8 = new TextDecoder()

const commandFailed = (opcode: Frame.Command, payload: Uint8Array): CommandFailed =>
  new CommandFailed({
    command: commandNames[opcode],
    message: Option.match(decodeFailure(utf8.decode(payload)), {
      onNone: () => "the error response gives no reason",
      onSome: ({ msg }) => msg.replaceAll(tokenPattern, redactToken)
    })
  })

interface Waiting {
  readonly opcode: Frame.Command
  readonly response: Deferred.Deferred<Uint8Array, CommandFailed | ConnectionError>
}

/** Serves a connected socket. Everything happens in the socket's own callbacks, so that no byte waits for a fiber. */
const make = (socket: Net.Socket): { readonly connection: Connection; readonly close: () => void } => {
  const parser = Frame.makeParser(Frame.fromProxy)
  const waiting: Array<Waiting> = []
  const closed = Deferred.makeUnsafe<ConnectionError>()
  const exited = Deferred.makeUnsafe<number, ConnectionError>()
  const arrived = Latch.makeUnsafe(false)
  let failure: ConnectionError | undefined
  let claimed = false
  let status: number | undefined
  let output: Array<Output> = []
  let buffered = 0
  let limit = maxBuffered

  const end = (error: ConnectionError): void => {
    if (failure !== undefined) return
    failure = error
    for (const { response } of waiting.splice(0)) Deferred.doneUnsafe(response, Effect.fail(error))
    Deferred.doneUnsafe(closed, Effect.succeed(error))
    arrived.openUnsafe()
  }

  const violate = (reason: string): void => {
    end(new ProtocolViolation({ reason }))
    socket.destroy()
  }

  const route = (frame: Frame.Frame): void => {
    if (failure !== undefined) return
    const { inError, opcode, payload, type } = frame
    if (type === Frame.FrameType.response) {
      const head = waiting[0]
      if (head?.opcode !== opcode) {
        const expected = head === undefined ? "none" : `one to ${commandNames[head.opcode]}`
        violate(`a response to ${commandNames[opcode as Frame.Command]}, expected ${expected}`)
        return
      }
      waiting.shift()
      const answer = inError ? Effect.fail(commandFailed(head.opcode, payload)) : Effect.succeed(payload)
      Deferred.doneUnsafe(head.response, answer)
    } else if (!claimed || status !== undefined) {
      violate(claimed ? "a process's output after its exit status" : "a process's output before ConnectShim")
    } else if (type === Frame.FrameType.stream) {
      if (payload.length === 0) return
      output.push({ stream: opcode === Frame.StreamKind.stdout ? "stdout" : "stderr", data: payload })
      buffered += Frame.headerSize + payload.length
    } else {
      status = payload[0]
      if (status === undefined) violate("ProcessExited without a status")
    }
  }

  const read = (): void => {
    for (;;) {
      if (failure !== undefined || buffered >= limit) break
      // all that Node holds: a fiber that `route` wakes and that reads from inside `push` finds nothing more
      const chunk = socket.read() as Buffer | null
      if (chunk === null) break
      const parsed = parser.push(chunk, route)
      if (Result.isFailure(parsed)) violate(parsed.failure.message)
    }
    if (output.length > 0 || status !== undefined) arrived.openUnsafe()
  }

  socket.on("readable", read)
  socket.on("end", () => {
    if (!socket.allowHalfOpen) socket.end() // Node would do so only after its next tick
    end(new ConnectionClosed({ reason: `ended by the proxy${parser.midFrame() ? " inside a frame" : ""}` }))
  })
  socket.on("error", (cause) => {
    limit = Number.POSITIVE_INFINITY // what came before the error still counts; it is less than a socket buffer
    read()
    end(new ConnectionClosed({ reason: "broken", cause }))
  })

  const take: Effect.Effect<NonEmptyReadonlyArray<Output>, Cause.Done> = Effect.suspend(() => {
    if (isArrayNonEmpty(output)) {
      const batch = output
      output = []
      buffered = 0
      read()
      return Effect.succeed(batch)
    }
    if (status !== undefined || failure !== undefined) {
      Deferred.doneUnsafe(exited, status === undefined ? Effect.fail(failure!) : Effect.succeed(status))
      return Cause.done()
    }
    arrived.closeUnsafe()
    return Effect.flatMap(arrived.await, () => take)
  })

  const sendRaw = (bytes: Uint8Array): Effect.Effect<void, ConnectionError> =>
    Effect.callback((resume) => {
      if (!socket.writable) {
        resume(Effect.fail(failure ?? new ConnectionClosed({ reason: "closed by this side" })))
        return
      }
      socket.write(bytes, (cause) => {
        const error = cause ? (failure ?? new ConnectionClosed({ reason: "broken", cause })) : undefined
        resume(error === undefined ? Effect.void : Effect.fail(error))
      })
    })

  const expect = (opcode: Frame.Command): Waiting["response"] => {
    const response: Waiting["response"] = Deferred.makeUnsafe()
    if (failure === undefined) waiting.push({ opcode, response })
    else Deferred.doneUnsafe(response, Effect.fail(failure))
    if (opcode === Frame.Command.ConnectShim) claimed = true
    return response
  }

  return {
    connection: {
      command: (opcode, payload) =>
        Effect.suspend(() => {
          const response = expect(opcode)
          const bytes = Frame.encode({ type: Frame.FrameType.command, opcode, inError: false, payload })
          return Effect.andThen(sendRaw(bytes), Deferred.await(response))
        }),
      expect: (opcode) => Effect.sync(() => Deferred.await(expect(opcode))),
      sendRaw,
      halfClose: Effect.callback((resume) => void socket.end(() => resume(Effect.void))),
      closed: Deferred.await(closed),
      output: Stream.fromPull(Effect.succeed(take)),
      exitStatus: Deferred.await(exited)
    },
    close: () => {
      end(new ConnectionClosed({ reason: "closed by this side" }))
      // what was being sent is cut off: waiting for it would wait for the proxy to read
      socket.destroy()
      Deferred.doneUnsafe(exited, status === undefined ? Effect.fail(failure!) : Effect.succeed(status))
    }
  }
}

/**
 * Connects to the proxy: `socket` is a path, or the `unix://` URL that `registerVM` gives. The scope owns the connection.
 *
 * When the proxy ends the connection, this side ends too. With `allowHalfOpen` it stays able to send until the scope's end,
 * or until the proxy loses patience.
 *
 * ```ts
 * const program = Effect.scoped(
 *   Effect.gen(function* () {
 *     const connection = yield* Client.connect("/run/cc-oci-runtime/proxy.sock")
 *     yield* Client.attachVM(connection, { containerId: "pod1" })
 *     yield* Client.ping(connection)
 *   })
 * )
 * ```
 */
export const connect = (
  socket: string,
  options?: { readonly allowHalfOpen?: boolean }
): Effect.Effect<Connection, ConnectFailed, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<ReturnType<typeof make>, ConnectFailed>((resume) => {
      const path = socket.replace(/^unix:\/\//, "")
      const connecting = Net.connect({ path, allowHalfOpen: options?.allowHalfOpen ?? false })
      const failed = (cause: Error) => resume(Effect.fail(new ConnectFailed({ path, cause })))
      connecting.once("error", failed)
      connecting.once("connect", () => {
        connecting.off("error", failed)
        resume(Effect.succeed(make(connecting))) // listens for errors from here on
      })
    }),
    ({ close }) => Effect.sync(close)
  ).pipe(Effect.map(({ connection }) => connection))
