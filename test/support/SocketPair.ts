/** Connected Unix sockets: one that becomes a wire of `layers/NodeWire.ts`, and a peer that the test moves. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type ChildProcess, type SendHandle, spawn } from "node:child_process"
import * as Fs from "node:fs"
import * as Net from "node:net"
import * as Os from "node:os"
import * as Path from "node:path"
import * as NodeWire from "../../src/layers/NodeWire.ts"
import { Condition } from "../../src/services/Condition.ts"
import { type CarriedWire, Dialer, type Wire } from "../../src/services/Wire.ts"
import type { Connection, Peer } from "../contract/wireContract.ts"

/** A directory of its own, gone at the end of the scope. */
export const directory = Effect.acquireRelease(
  Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "cc-proxy-"))),
  (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true, force: true }))
)

/** One turn of the event loop: what lies in a socket of this process has been read after it. */
export const turn = Effect.callback<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})

/** Waits, turn by turn, for what nothing tells of. */
export const eventually = (test: () => boolean): Effect.Effect<void> =>
  Effect.suspend(() => (test() ? Effect.void : Effect.andThen(turn, eventually(test))))

/** Sockets that this process has open. */
export const openSockets = (): number =>
  Fs.readdirSync("/proc/self/fd").filter((fd) => {
    try {
      return Fs.readlinkSync(`/proc/self/fd/${fd}`).startsWith("socket:")
    } catch {
      return false // the directory's own descriptor
    }
  }).length

export interface SocketPeer extends Peer {
  /** Whether EOF came. */
  readonly ended: () => boolean
  readonly closed: () => boolean
  /** What writing or reading failed with. */
  readonly error: () => Error | undefined
  /** Lengths of what it read at once. */
  readonly reads: ReadonlyArray<number>
  /** Reads some bytes past Node, `most` at most; how many it were. */
  readonly readNow: (most: number) => number
  /** Bytes of what it wrote that the kernel has taken. */
  readonly taken: () => number
}

/** The one who moves a socket. Reads nothing before `read`. */
export const makePeer = (socket: Net.Socket): SocketPeer => {
  const changed = new Condition()
  const chunks: Array<Buffer> = []
  const reads: Array<number> = []
  let size = 0
  let ended = false
  let error: Error | undefined
  socket.on("end", () => {
    ended = true
    changed.notify()
  })
  socket.on("error", (cause) => {
    error = cause
    changed.notify()
  })
  socket.on("close", () => changed.notify())
  return {
    write: (bytes) => void socket.write(bytes, () => changed.notify()),
    received: () => Buffer.concat(chunks),
    size: () => size,
    read: () =>
      void socket
        .on("data", (chunk: Buffer) => {
          chunks.push(chunk)
          reads.push(chunk.length)
          size += chunk.length
          changed.notify()
        })
        .resume(),
    end: () => void socket.end(),
    vanish: () => void socket.destroy(),
    until: (test) => Effect.andThen(changed.until(test), turn),
    ended: () => ended,
    closed: () => socket.closed,
    error: () => error,
    reads,
    readNow: (most) => Fs.readSync(NodeWire.descriptor(socket)!, new Uint8Array(most)),
    taken: () => socket.bytesWritten - socket.writableLength
  }
}

/** A server that gives out its first client, not read from yet, nor closed by anybody else. */
export const serve = (path: string) =>
  Effect.gen(function* () {
    const arrived = new Condition()
    let socket: Net.Socket | undefined
    yield* Effect.acquireRelease(
      Effect.callback<Net.Server>((resume) => {
        const server = Net.createServer({ allowHalfOpen: true, pauseOnConnect: true }, (client) => {
          socket = client
          arrived.notify()
        })
        server.listen(path, () => resume(Effect.succeed(server)))
      }),
      (server) => Effect.sync(() => server.close())
    )
    return {
      accept: Effect.map(
        arrived.until(() => socket !== undefined),
        () => socket!
      )
    }
  })

const connect = (path: string) =>
  Effect.acquireRelease(
    Effect.callback<Net.Socket>((resume) => {
      const socket = Net.connect({ path, allowHalfOpen: true }, () => resume(Effect.succeed(socket)))
      socket.pause() // before it can read anything
    }),
    (socket) => Effect.sync(() => socket.destroy())
  )

/** A socket as `layers/UnixListener.ts` accepts them, and the client at its other end. Both are gone at the scope's end. */
export const pair: Effect.Effect<{ readonly socket: Net.Socket; readonly peer: SocketPeer }, never, Scope.Scope> =
  Effect.gen(function* () {
    const path = Path.join(yield* directory, "socket")
    const { accept } = yield* serve(path)
    const peer = makePeer(yield* connect(path))
    const socket = yield* Effect.acquireRelease(accept, (socket) => Effect.sync(() => socket.destroy()))
    return { socket, peer }
  })

/** A wire that was accepted. */
export const accepted: Effect.Effect<Connection & { readonly peer: SocketPeer }, never, Scope.Scope> = Effect.gen(
  function* () {
    const { peer, socket } = yield* pair
    return { wire: yield* NodeWire.accepted(socket, "peer", 10, new Set()), peer }
  }
)

/** A wire that was dialled. */
export const dialled: Effect.Effect<Connection & { readonly peer: SocketPeer }, never, Scope.Scope> = Effect.gen(
  function* () {
    const path = Path.join(yield* directory, "socket")
    const { accept } = yield* serve(path)
    const { dial } = yield* Dialer
    const wire: Wire = yield* Effect.orDie(dial(path, 1000))
    const socket = yield* Effect.acquireRelease(accept, (socket) => Effect.sync(() => socket.destroy()))
    return { wire, peer: makePeer(socket) }
  }
).pipe(Effect.provide(NodeWire.layerDialer))

/** The socket of this process that has the descriptor. */
export const socketOf = (descriptor: number): Net.Socket => {
  const { _getActiveHandles: handles } = process as unknown as { _getActiveHandles: () => ReadonlyArray<unknown> }
  return handles().find(
    (handle) => handle instanceof Net.Socket && NodeWire.descriptor(handle) === descriptor
  ) as Net.Socket
}

interface Handle {
  readonly fd: number
}

let courier: ChildProcess | undefined

/** A second descriptor of a socket. Node has none to give: another process is sent it, and sends it back. */
const duplicate = (socket: Net.Socket): Effect.Effect<number> =>
  Effect.callback<number>((resume) => {
    const back = "process.on('message', (message, handle) => process.send(message, handle, () => handle.close()))"
    if (courier === undefined) {
      courier = spawn(process.execPath, ["-e", back], { stdio: ["ignore", "ignore", "inherit", "ipc"] })
      courier.unref() // it ends with the channel
      courier.channel!.unref()
    }
    courier.once("message", (_, handle) => resume(Effect.succeed((handle as unknown as Handle).fd)))
    courier.send({}, (socket as unknown as { readonly _handle: SendHandle })._handle)
  })

/**
 * What another process has once it has taken the place of this one in a connection: the descriptor is gone here, and the
 * connection goes on. Reading has to be held.
 */
export const handedOver = (carry: () => CarriedWire | undefined): Effect.Effect<CarriedWire> =>
  Effect.gen(function* () {
    const socket = socketOf(carry()!.descriptor)
    const descriptor = yield* duplicate(socket)
    const carried = carry()!
    socket.destroy()
    return { ...carried, descriptor }
  })

/** The wire of the one who takes the place of another's. */
export const replace = (wire: Wire): Effect.Effect<Wire, never, Scope.Scope> =>
  Effect.gen(function* () {
    const { adopt } = yield* Dialer
    return yield* adopt(wire.peer, yield* handedOver(() => wire.carry()))
  }).pipe(Effect.provide(NodeWire.layerDialer))
