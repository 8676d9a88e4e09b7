/**
 * `Listener` over a Unix socket: the one systemd passed us, else one we bind.
 *
 * Uses `node:net` directly: @effect/platform-node's socket server cannot take an inherited descriptor, whose address is null.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Fs from "node:fs"
import * as Net from "node:net"
import * as Path from "node:path"
import { Listener, ListenError } from "../services/Listener.ts"
import { Settings } from "../services/Settings.ts"
import { Mailbox } from "./Mailbox.ts"
import * as NodeWire from "./NodeWire.ts"

/** Longest path of a Unix socket, in bytes: `sun_path` has 108, the last of them zero. Source: unix(7). */
export const maxPath = 107

/** The first descriptor systemd passes. Source: sd_listen_fds(3). */
const listenFdsStart = 3

/** Connections that may wait to be accepted; a full backlog refuses a runtime. */
const backlog = 1024

/** Bits taken from the mode of what we make: 0750 is left of directories, 0660 of a socket. */
const directoryUmask = 0o027
const socketUmask = 0o117

/** Runs `make` with another umask than the one we were started with. */
const withUmask = <A>(umask: number, make: () => A): A => {
  const previous = process.umask(umask)
  try {
    return make()
  } finally {
    process.umask(previous)
  }
}

/** An inherited descriptor, or none. `environment` is `process.env`. Source: sd_listen_fds(3). */
export const activated = (
  environment: Readonly<Record<string, string | undefined>>,
  pid: number
): Effect.Effect<number | undefined, ListenError> => {
  if (environment["LISTEN_PID"] !== String(pid)) return Effect.undefined
  const count = Number(environment["LISTEN_FDS"] ?? 0)
  if (count > 1) return Effect.fail(new ListenError({ reason: `too many activated sockets (${count})` }))
  return Effect.succeed(count === 1 ? listenFdsStart : undefined)
}

const failed = (what: string) => (cause: unknown) =>
  new ListenError({ reason: `couldn't ${what}: ${cause instanceof Error ? cause.message : String(cause)}` })

/** Makes room for a socket at `path`: its directory, and no stale socket; anything else that stands there stays. */
const prepare = Effect.fnUntraced(function* (path: string) {
  const size = Buffer.byteLength(path)
  if (size > maxPath)
    return yield* new ListenError({ reason: `socket path too long: ${size} bytes, the limit is ${maxPath}` })
  yield* Effect.try({
    try: () => withUmask(directoryUmask, () => Fs.mkdirSync(Path.dirname(path), { recursive: true })),
    catch: failed("create the socket's directory")
  })
  const found = yield* Effect.try({
    try: () => Fs.lstatSync(path, { throwIfNoEntry: false }),
    catch: failed("look for a stale socket")
  })
  if (found === undefined) return
  if (!found.isSocket()) return yield* new ListenError({ reason: `${path} exists and is not a socket` })
  const live = yield* Effect.callback<boolean>((resume) => {
    const probe = Net.connect({ path })
    probe.once("connect", () => {
      probe.destroy()
      resume(Effect.succeed(true))
    })
    // a socket without a process refuses; one whose backlog is full has a process
    probe.once("error", (error: NodeJS.ErrnoException) => resume(Effect.succeed(error.code !== "ECONNREFUSED")))
    return Effect.sync(() => probe.destroy())
  })
  if (live) return yield* new ListenError({ reason: `another process serves ${path}` })
  yield* Effect.try({ try: () => Fs.unlinkSync(path), catch: failed("remove the stale socket") })
})

/** Listens on `path`, or on the inherited descriptor `fd`, whose clients are told `path`. Only a socket we made is removed. */
export const layer = ({ fd, path }: { readonly path: string; readonly fd: number | undefined }) =>
  Layer.effect(
    Listener,
    Effect.gen(function* () {
      const settings = yield* Settings
      const linger = Duration.toMillis(settings.frameTimeout)
      let count = 0

      const listen = Effect.gen(function* () {
        const arrivals = new Mailbox<Net.Socket, ListenError>()
        if (fd === undefined) yield* prepare(path)
        yield* Effect.acquireRelease(
          Effect.callback<Net.Server, ListenError>((resume) => {
            const server = Net.createServer({ pauseOnConnect: true, allowHalfOpen: true }, (socket) => {
              socket.on("error", NodeWire.heard)
              arrivals.offer(socket)
            })
            server.on("error", (cause) => {
              const error = failed(`listen on ${path}`)(cause)
              arrivals.fail(error)
              resume(Effect.fail(error))
            })
            withUmask(socketUmask, () =>
              server.listen(fd === undefined ? { path, backlog } : { fd }, () => resume(Effect.succeed(server)))
            )
          }),
          // stops accepting, and removes a socket we made; waiting for `close` would wait for every peer to leave
          (server) =>
            Effect.sync(() => {
              server.close()
              for (const socket of arrivals.clear()) socket.destroy()
            })
        )
        yield* Effect.logInfo("listening", { socket: path, inherited: fd !== undefined })
        return {
          accept: Effect.map(arrivals.take, (socket) => NodeWire.accepted(socket, `client ${++count}`, linger))
        }
      })

      return Listener.of({ url: `unix://${path}`, listen })
    })
  )
