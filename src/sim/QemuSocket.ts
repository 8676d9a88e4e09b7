/**
 * One character device of a VM as QEMU serves it on a Unix socket: `-chardev socket,server` with a virtio-serial port.
 *
 * One client at a time; the next one waits until the first has left. A new client may connect any number of times. What the
 * guest writes while nobody is connected waits in the guest. The device itself holds up to 128 messages, the one under way
 * included, and a client that leaves after it had stopped reading takes them along; one that kept up takes only what it had
 * left unread in its socket. So the first byte on a new connection is always a message's first byte. What a client has written
 * is read to its end, also after it has left.
 *
 * Source: PROTOCOL.md, "Reconnecting to a VM".
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Fs from "node:fs"
import * as Net from "node:net"
import * as Waiters from "./Waiters.ts"

/** Most messages that the device holds, the one under way included: the length of a virtio-serial queue. */
const queueLength = 128

/** The socket could not be made: the path is taken, too long, or in a directory that is not there. */
export class SocketError extends Schema.TaggedError<SocketError>()("SocketError", {
  path: Schema.String,
  cause: Schema.Defect()
}) {
  override get message(): string {
    return `${this.path}: ${String(this.cause)}`
  }
}

export interface QemuSocket {
  readonly path: string
  /** Opens the socket. The scope closes its connections at once, as a VM that went away, and removes it. */
  readonly listen: Effect.Effect<void, SocketError, Scope.Scope>
  /** Waits for the next bytes of whoever is connected. One caller at a time. */
  readonly pull: Effect.Effect<Uint8Array>
  /** Gives one whole message to the device; waits while nobody is connected or the device holds all it can. */
  readonly send: (message: Uint8Array) => Effect.Effect<void>
  /** Gives one whole message to the device, connected or not; drops it where the device holds all it can. */
  readonly offer: (message: Uint8Array) => void
  /** Waits until the device holds nothing, or nobody is connected. */
  readonly flushed: Effect.Effect<void>
  /** Waits until nobody is connected. */
  readonly left: Effect.Effect<void>
}

/**
 * Writes what the socket has room for, as a system call of its own: an error of Node's would end the socket, with what can
 * still be read from it. Returns the number of bytes, or `undefined` where the peer has left.
 */
const writeSome = (socket: Net.Socket, message: Uint8Array): number | undefined => {
  const { _handle: handle } = socket as unknown as { readonly _handle?: { readonly fd: number } | null }
  if (handle == null) return undefined
  try {
    return Fs.writeSync(handle.fd, message)
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EAGAIN" ? 0 : undefined
  }
}

/** The device whose socket will be at `path`. It takes messages from the start and has clients once it listens. */
export const make = (path: string): QemuSocket => {
  const { until, wake } = Waiters.make()
  const inbox: Array<Uint8Array> = [] // what clients that have left had written
  const held: Array<Uint8Array> = []
  const backlog: Array<Net.Socket> = []
  let client: Net.Socket | undefined
  let stalled = false // the client's socket is full; the message being written is out of `held` already

  /** Writes one message; returns whether there may be more to write at once. */
  const writeOne = (): boolean => {
    const socket = client
    const message = held[0]
    if (socket?.writable !== true || stalled || message === undefined) return false
    const written = writeSome(socket, message)
    if (written === undefined) return false // it has left, and nothing of this message with it: the next client gets it
    held.shift()
    if (written === message.length) return true
    stalled = true
    socket.write(message.subarray(written), (error) => {
      if (socket !== client || error != null) return
      stalled = false
      write()
    })
    return false
  }

  const full = () => held.length + (stalled ? 1 : 0) >= queueLength

  const write = () => {
    while (writeOne());
    wake()
  }

  const serve = (socket: Net.Socket | undefined) => {
    client = socket
    socket?.on("readable", wake)
    socket?.on("end", () => leave(socket))
    write()
  }

  const leave = (socket: Net.Socket) => {
    const rest = socket === client ? (socket.read() as Uint8Array | null) : null
    if (rest !== null) inbox.push(rest)
    socket.destroy()
    if (socket === client) {
      if (stalled) held.length = 0
      stalled = false
      serve(backlog.shift())
    } else if (backlog.includes(socket)) {
      backlog.splice(backlog.indexOf(socket), 1)
    }
  }

  const server = Net.createServer({ pauseOnConnect: true }, (socket) => {
    socket.on("error", () => undefined) // "close" follows
    socket.on("close", () => leave(socket))
    if (client === undefined) serve(socket)
    else backlog.push(socket)
  })

  const close = () => {
    server.close()
    for (const socket of [...backlog.splice(0), ...(client === undefined ? [] : [client])]) {
      socket.removeAllListeners("close").destroy()
    }
  }

  return {
    path,
    listen: Effect.acquireRelease(
      Effect.callback<void, SocketError>((resume) => {
        server.on("error", (cause) => resume(Effect.fail(new SocketError({ path, cause }))))
        server.listen(path, () => resume(Effect.void))
      }),
      () => Effect.sync(close)
    ),
    pull: until(() => inbox.shift() ?? (client?.read() as Uint8Array | null | undefined) ?? undefined),
    send: (message) =>
      Effect.asVoid(
        until(() => {
          if (client === undefined || full()) return undefined
          held.push(message)
          write()
          return true
        })
      ),
    offer(message) {
      if (full()) return
      held.push(message)
      write()
    },
    flushed: Effect.asVoid(until(() => client === undefined || (held.length === 0 && !stalled) || undefined)),
    left: Effect.asVoid(until(() => client === undefined || undefined))
  }
}
