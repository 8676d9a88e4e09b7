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
import { Crowded, Listener, ListenError, maxTurnedAway, turnedAwayMillis } from "../services/Listener.ts"
import { Settings } from "../services/Settings.ts"
import type { CarriedWire, Wire } from "../services/Wire.ts"
import { Mailbox } from "./Mailbox.ts"
import * as NodeWire from "./NodeWire.ts"

/** Longest path of a Unix socket, in bytes: `sun_path` has 108, the last of them zero. Source: unix(7). */
export const maxPath = 107

/** The first descriptor systemd passes. Source: sd_listen_fds(3). */
const listenFdsStart = 3

/** Most descriptors that are kept from clients, for VMs and files; with a limit that is small, an eighth of it. */
const maxReserve = 64

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

/** Whether the daemon gave systemd what has this name. A listening socket may be named for its unit, `cc-proxy.socket`. */
const isStored = (name: string): boolean => /^cc-proxy\.(?:vm|client)\b/.test(name)

/** What systemd passed. */
export interface Activation {
  /** The listening socket, if there is one. */
  readonly listening: number | undefined
  /** What an earlier daemon gave it to keep. */
  readonly stored: ReadonlyArray<number>
}

/** The inherited descriptors. `environment` is `process.env`. Source: sd_listen_fds(3), sd_pid_notify_with_fds(3). */
export const activated = (
  environment: Readonly<Record<string, string | undefined>>,
  pid: number
): Effect.Effect<Activation, ListenError> => {
  if (environment["LISTEN_PID"] !== String(pid)) return Effect.succeed({ listening: undefined, stored: [] })
  const count = Number(environment["LISTEN_FDS"] ?? 0)
  const names = (environment["LISTEN_FDNAMES"] ?? "").split(":").slice(0, Math.max(0, count))
  const kept = names.flatMap((name, at) => (isStored(name) ? [listenFdsStart + at] : []))
  const others = count - kept.length
  if (others > 1) return Effect.fail(new ListenError({ reason: `too many activated sockets (${others})` }))
  const first = names.findIndex((name) => !isStored(name))
  const at = first < 0 ? names.length : first
  return Effect.succeed({ listening: others === 1 ? listenFdsStart + at : undefined, stored: kept })
}

/** Connections that are open, and those that have not been closed at both ends yet. Node counts them for `maxConnections`. */
const connections = (server: Net.Server): number =>
  (server as unknown as { readonly _connections: number })._connections

/** The descriptor of a server that listens. */
const descriptor = (server: Net.Server): number | undefined =>
  (server as unknown as { readonly _handle: { readonly fd: number } | null })._handle?.fd

const failed = (what: string) => (cause: unknown) =>
  new ListenError({ reason: `couldn't ${what}: ${cause instanceof Error ? cause.message : String(cause)}` })

/** Makes room for a socket at `path`: its directory, and no stale socket; anything else that stands there stays. */
const prepare = Effect.fnUntraced(function* (path: string) {
  if (path === "") return yield* new ListenError({ reason: "the socket's path is empty" })
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

/** How many descriptors this process may have; no end of them where nothing tells. Source: proc_pid_limits(5). */
const descriptorLimit = (): number => {
  try {
    const limits = Fs.readFileSync("/proc/self/limits", "latin1")
    return Number(/^Max open files +(\d+)/m.exec(limits)?.[1] ?? Number.MAX_SAFE_INTEGER)
  } catch {
    return Number.MAX_SAFE_INTEGER
  }
}

/** A client that has connected; without a socket where its connection has been closed already. */
interface Knock {
  readonly socket: Net.Socket | undefined
  readonly crowded: Crowded | undefined
}

/** Errors of accept(2) that pass: what they tell is that too much is open. */
const passing: ReadonlySet<string | undefined> = new Set(["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ECONNABORTED"])

export interface Options {
  /** What clients are told. */
  readonly path: string
  /** The inherited socket to listen on; without one, a new socket at `path`. */
  readonly fd: number | undefined
  /** Whether the inherited one is a daemon's own, as a new one is: removed at the end. One of systemd's stays. */
  readonly owned?: boolean
}

export const layer = ({ fd, owned = fd === undefined, path }: Options) =>
  Layer.effect(
    Listener,
    Effect.gen(function* () {
      const settings = yield* Settings
      const linger = Duration.toMillis(settings.frameTimeout)
      const descriptors = descriptorLimit()
      const reserve = Math.min(maxReserve, Math.floor(descriptors / 8))
      const noConnections = new Crowded({ what: "connections", limit: settings.maxConnections })
      const noDescriptors = new Crowded({ what: "descriptors", limit: descriptors })
      const ending = new Set<Wire>()
      let count = 0
      let adopted = 0 // of the connections that are open: Node does not count them
      let turnedAway = 0 // of the connections that are open

      /** The kernel gives the lowest number that is free, so a high one tells how many are left. */
      const left = (socket: Net.Socket) => descriptors - (NodeWire.descriptor(socket) ?? 0)

      /** Of the reserve, those that are turned away may have half. */
      const knock = (server: Net.Server, socket: Net.Socket): Knock => {
        socket.on("error", NodeWire.heard)
        if (left(socket) <= reserve) {
          if (left(socket) > reserve / 2) return { socket, crowded: noDescriptors }
          socket.destroy()
          return { socket: undefined, crowded: noDescriptors }
        }
        // those that are turned away take nobody's place
        if (connections(server) + adopted - turnedAway <= settings.maxConnections) return { socket, crowded: undefined }
        if (turnedAway === maxTurnedAway) {
          socket.destroy()
          return { socket: undefined, crowded: noConnections }
        }
        turnedAway++
        socket.once("close", () => turnedAway--)
        return { socket, crowded: noConnections }
      }

      const open = (carried: CarriedWire) => {
        const socket = NodeWire.open(carried)
        adopted++
        socket.once("close", () => adopted--)
        return socket
      }

      const listen = Effect.gen(function* () {
        const arrivals = new Mailbox<Knock, ListenError>()
        if (fd === undefined) yield* prepare(path)
        const server = yield* Effect.acquireRelease(
          Effect.callback<Net.Server, ListenError>((resume) => {
            const server = Net.createServer({ pauseOnConnect: true, allowHalfOpen: true }, (socket) => {
              arrivals.offer(knock(server, socket))
            })
            server.on("error", (cause: NodeJS.ErrnoException) => {
              if (server.listening && passing.has(cause.code)) {
                arrivals.offer({ socket: undefined, crowded: noDescriptors })
                return
              }
              const error = failed(`listen on ${path}`)(cause)
              arrivals.fail(error)
              resume(Effect.fail(error))
            })
            withUmask(socketUmask, () =>
              // of the options it takes the backlog of a path only
              server.listen(fd === undefined ? { path } : { fd }, backlog, () => resume(Effect.succeed(server)))
            )
          }),
          // stops accepting; Node removes a socket it has made. Waiting for `close` would wait for every peer to leave
          (server) =>
            Effect.sync(() => {
              if (owned && fd !== undefined) Fs.rmSync(path, { force: true })
              server.close()
              for (const { socket } of arrivals.clear()) socket?.destroy()
            })
        )
        yield* Effect.logInfo("listening", { socket: path, inherited: fd !== undefined })
        return {
          accept: Effect.map(arrivals.take, ({ crowded, socket }) => ({
            crowded,
            connection:
              socket &&
              NodeWire.accepted(socket, `client ${++count}`, crowded === undefined ? linger : turnedAwayMillis, ending)
          })),
          carry: () => ({
            descriptor: descriptor(server),
            ending: Array.from(ending).flatMap((wire) => wire.carry() ?? [])
          })
        }
      })

      return Listener.of({
        url: `unix://${path}`,
        listen,
        adopt: (name, carried) =>
          Effect.suspend(() => {
            count = Math.max(count, Number(/\d+$/.exec(name)?.[0] ?? 0)) // no two clients have one name
            return NodeWire.adopted(open(carried), name, linger, ending, carried)
          }),
        finish: (carried) => NodeWire.finish(open(carried), "client", linger, ending, carried)
      })
    })
  )
