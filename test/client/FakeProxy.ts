/** A proxy of which a test plays every move: a real Unix socket in a directory of its own. */
import * as Fs from "node:fs/promises"
import * as Net from "node:net"
import * as Os from "node:os"
import * as Path from "node:path"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Frame from "../../src/domain/Frame.ts"

/** Lets the event loop go round `count` times: everything that is under way between two sockets of this process arrives. */
export const turns = (count: number) =>
  Effect.promise(async () => {
    for (let turn = 0; turn < count; turn++) await new Promise(setImmediate)
  })

/** A frame from a header in hexadecimal, its length included, and a text. */
export const wire = (header: string, text = ""): Buffer =>
  Buffer.concat([Buffer.from(header.replaceAll(" ", ""), "hex"), Buffer.from(text)])

export const response = (opcode: Frame.Command, payload = "", inError = false) =>
  Frame.encode({ type: Frame.FrameType.response, opcode, inError, payload: Buffer.from(payload) })

export const stdout = (payload: Uint8Array | string) =>
  Frame.encode({
    type: Frame.FrameType.stream,
    opcode: Frame.StreamKind.stdout,
    inError: false,
    payload: Buffer.from(payload)
  })

export const stderr = (payload: string) =>
  Frame.encode({
    type: Frame.FrameType.stream,
    opcode: Frame.StreamKind.stderr,
    inError: false,
    payload: Buffer.from(payload)
  })

export const exited = (...payload: Array<number>) =>
  Frame.encode({
    type: Frame.FrameType.notification,
    opcode: Frame.Notification.ProcessExited,
    inError: false,
    payload: Uint8Array.from(payload)
  })

/** The proxy's end of one connection. Reads nothing but what a test asks for. */
export interface Peer {
  /** Waits for exactly `size` bytes. */
  readonly take: (size: number) => Effect.Effect<Buffer>
  /** Waits for a whole frame. */
  readonly frame: Effect.Effect<{ readonly type: number; readonly opcode: number; readonly payload: Buffer }>
  /** Waits until the client has ended or broken the connection, and gives what came before. */
  readonly rest: Effect.Effect<Buffer>
  /** Sends bytes, `cut` at a time, each in its own turn of the event loop; waits until the kernel has them. */
  readonly send: (bytes: Uint8Array, cut?: number) => Effect.Effect<void>
  readonly end: Effect.Effect<void>
  readonly destroy: Effect.Effect<void>
}

const makePeer = (socket: Net.Socket): Peer => {
  let ended = false
  socket.on("error", () => {})
  socket.on("end", () => (ended = true))

  const take = (size: number): Effect.Effect<Buffer> =>
    Effect.callback((resume) => {
      const attempt = () => {
        const bytes = size === 0 ? Buffer.alloc(0) : (socket.read(size) as Buffer | null)
        if (bytes?.length === size) done(Effect.succeed(bytes))
        else if (bytes !== null || ended) done(Effect.die(new Error(`the client ended before ${size} bytes had come`)))
      }
      const done = (result: Effect.Effect<Buffer>) => {
        socket.off("readable", attempt).off("end", attempt)
        resume(result)
      }
      socket.on("readable", attempt).on("end", attempt)
      attempt()
    })

  return {
    take,
    frame: Effect.gen(function* () {
      const header = yield* take(Frame.headerSize)
      return { type: header[6]! & 0x0f, opcode: header[7]!, payload: yield* take(header.readUInt32BE(8)) }
    }),
    rest: Effect.callback((resume) => {
      const chunks: Array<Buffer> = []
      const done = () => resume(Effect.succeed(Buffer.concat(chunks)))
      if (ended || socket.closed) done()
      else
        socket
          .on("end", done)
          .on("close", done)
          .on("data", (chunk) => void chunks.push(chunk))
    }),
    send: Effect.fnUntraced(function* (bytes, cut = bytes.length) {
      for (let at = 0; at < bytes.length; at += cut) {
        yield* Effect.callback<void>((resume) => {
          socket.write(bytes.subarray(at, at + cut), () => resume(Effect.void))
        })
        if (cut < bytes.length) yield* turns(1)
      }
    }),
    end: Effect.sync(() => void socket.end()),
    destroy: Effect.sync(() => void socket.destroy())
  }
}

export interface FakeProxy {
  readonly path: string
  /** Waits for the next client. */
  readonly accept: Effect.Effect<Peer>
  /** How many clients have connected. */
  readonly connections: () => number
}

/** Listens at `path`; what is connected is gone with the scope. */
export const listen = Effect.fnUntraced(function* (path: string) {
  const peers = yield* Queue.unbounded<Peer>()
  const sockets = new Set<Net.Socket>()
  let connections = 0
  yield* Effect.acquireRelease(
    Effect.callback<Net.Server>((resume) => {
      const server = Net.createServer({ allowHalfOpen: true }, (socket) => {
        connections++
        sockets.add(socket)
        Queue.offerUnsafe(peers, makePeer(socket))
      })
      server.listen(path, () => resume(Effect.succeed(server)))
    }),
    (server) =>
      Effect.sync(() => {
        server.close()
        for (const socket of sockets) socket.destroy()
      })
  )
  const proxy: FakeProxy = { path, accept: Queue.take(peers), connections: () => connections }
  return proxy
})

/** A path nobody listens at yet, in a directory that is gone with the scope. */
export const freePath = Effect.acquireRelease(
  Effect.promise(() => Fs.mkdtemp(Path.join(Os.tmpdir(), "cc-proxy-client-"))),
  (directory) => Effect.promise(() => Fs.rm(directory, { recursive: true }))
).pipe(Effect.map((directory) => Path.join(directory, "proxy.sock")))

export const make = Effect.flatMap(freePath, listen)
