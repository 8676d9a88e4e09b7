/**
 * `Successor` and `Predecessor`: one process of this program takes another one's place, by inheriting its descriptors.
 *
 * ```text
 * descriptor  of the new process
 *          3  the snapshot, in a file without a name
 *          4  a pair of sockets
 *          5  the listening socket
 *       6, …  every other socket: the snapshot tells their inodes, and what it does not name is closed
 *
 * new  B VERSION  it is loaded, and ready
 * old  S          the snapshot is there; from here on it does nothing else
 * new  R          it has understood; or why not
 * old  G          and it is no more
 * ```
 *
 * From the snapshot to its end the old process does nothing else, so nothing it has can change: no byte is read or written
 * twice. Where the new one fails, it has lost a moment.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { ChildProcess } from "node:child_process"
import * as Fs from "node:fs"
import * as Net from "node:net"
import * as Os from "node:os"
import * as Path from "node:path"
import { Condition } from "../services/Condition.ts"
import { ServiceManager } from "../services/ServiceManager.ts"
import { Predecessor, type Prepared, Successor, SuccessorError } from "../services/Successor.ts"
import * as NodeWire from "./NodeWire.ts"
import * as Systemd from "./Systemd.ts"

/** Tells a process that it takes another one's place: that one's pid, how many descriptors there are, and whether the listening socket is a daemon's own. */
const variable = "CC_PROXY_PREDECESSOR"

const snapshotDescriptor = 3
const pairDescriptor = 4
const firstDescriptor = 5

/** Millis that the new process may take until it is ready, and again until it serves. */
const patience = 5000

/** Millis between two looks at the new process. */
const step = 1

/** What one process tells the other. */
const booted = /^B (\S+)\n$/
const written = "S"
const understood = "R"
const go = "G"

declare const CC_PROXY_VERSION: string // the build puts it in

export interface Options {
  /** The program and its arguments, to be started again. */
  readonly program: string
  readonly args: ReadonlyArray<string>
  readonly environment: Systemd.Environment
  /** Whether the listening socket is our own: it is not the service manager's. */
  readonly owned: boolean
}

const sleeping = new Int32Array(new SharedArrayBuffer(4))

/** Stops this thread, whatever is waiting. */
const sleep = (millis: number): void => void Atomics.wait(sleeping, 0, 0, millis)

/** A file that nobody else can open. */
const nameless = (): number => {
  const path = Path.join(Os.tmpdir(), `.cc-proxy-${process.pid}-${process.hrtime.bigint()}`)
  const { O_CREAT, O_EXCL, O_RDWR } = Fs.constants
  const fd = Fs.openSync(path, O_CREAT | O_EXCL | O_RDWR, 0o600)
  Fs.unlinkSync(path)
  return fd
}

/** Every socket of this process but those of 0 to 2, and the listening one, with their inodes. */
const sockets = (listener: number): ReadonlyMap<string, number> => {
  const found = new Map<string, number>()
  for (const name of Fs.readdirSync("/proc/self/fd")) {
    const fd = Number(name)
    const inode = fd <= 2 || fd === listener ? undefined : inodeOf(fd)
    if (inode !== undefined) found.set(inode, fd)
  }
  return found
}

/** What tells a socket from all others. */
const inodeOf = (fd: number): string | undefined => {
  try {
    const link = Fs.readlinkSync(`/proc/self/fd/${fd}`)
    return link.startsWith("socket:") ? link : undefined
  } catch {
    return undefined // closed
  }
}

/** What the new process says next, if that fits `whole`; or whatever it said last; `undefined` where it has ended, or takes too long. */
const hear = (fd: number, until: number, whole: RegExp): string | undefined => {
  const buffer = Buffer.alloc(1024)
  let said = ""
  for (;;) {
    try {
      const size = Fs.readSync(fd, buffer)
      if (size === 0) return said === "" ? undefined : said
      said += buffer.toString("utf8", 0, size)
      if (whole.test(said)) return said
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== "EAGAIN") return undefined
      if (performance.now() > until) return said === "" ? undefined : said
      sleep(step)
    }
  }
}

const understandsAll = new RegExp(`^${understood}$`)

/** A new process, the file that its snapshot is to be written to, its end of the pair, and what it has. */
class Child implements Prepared {
  readonly process: ChildProcess
  readonly file: number
  readonly pair: Net.Socket
  readonly inodes: ReadonlySet<string>
  version = ""

  constructor(process: ChildProcess, file: number, inodes: ReadonlySet<string>) {
    this.process = process
    this.file = file
    this.pair = process.stdio[pairDescriptor] as Net.Socket
    this.inodes = inodes
    process.on("error", NodeWire.heard)
    this.pair.on("error", NodeWire.heard)
  }

  abandon() {
    this.process.kill("SIGKILL")
    this.pair.destroy()
    Fs.closeSync(this.file)
  }
}

const reasonOf = (cause: unknown): string => (cause instanceof Error ? cause.message : String(cause))

export const layerSuccessor = ({ args, environment, owned, program }: Options) =>
  Layer.effect(
    Successor,
    Effect.gen(function* () {
      const manager = yield* ServiceManager
      const asked = new Condition()
      let count = 0
      const ask = () => {
        count++
        asked.notify()
      }
      yield* Effect.acquireRelease(
        Effect.sync(() => process.on("SIGUSR2", ask)),
        () => Effect.sync(() => process.removeListener("SIGUSR2", ask))
      )

      const start = (listener: number): Child => {
        const file = nameless()
        const others = sockets(listener)
        try {
          // not loaded before it is needed
          const child = process.getBuiltinModule("node:child_process").spawn(program, args, {
            env: {
              ...Systemd.environment(environment),
              [variable]: `${process.pid} ${1 + others.size} ${owned ? 1 : 0}`
            },
            stdio: ["inherit", "inherit", "inherit", file, "pipe", listener, ...others.values()]
          })
          if (child.pid === undefined) {
            child.on("error", NodeWire.heard)
            throw new Error(`${program} could not be started`)
          }
          return new Child(child, file, new Set(others.keys()))
        } catch (cause) {
          Fs.closeSync(file)
          throw cause
        }
      }

      /** Gives it the snapshot, and ends this process; or tells why not. */
      const give = (child: Child, snapshot: ReadonlyArray<Uint8Array>): string => {
        const fd = NodeWire.descriptor(child.pair)
        if (fd === undefined) return "it has ended"
        for (const part of snapshot) for (let at = 0; at < part.length;) at += Fs.writeSync(child.file, part, at)
        Fs.writeSync(fd, written)
        const said = hear(fd, performance.now() + patience, understandsAll)
        if (said !== understood) return said ?? `process ${child.process.pid} ended, or did not serve in ${patience} ms`
        manager.follow(child.process.pid!)
        Fs.writeSync(fd, go)
        return leave()
      }

      const leave = () => process.exit(0)

      return Successor.of({
        // those that come while one is under way are answered by it
        asked: Effect.andThen(
          asked.until(() => count > 0),
          Effect.sync(() => (count = 0))
        ),
        prepare: (listener) =>
          Effect.callback<Prepared, SuccessorError>((resume) => {
            let child: Child
            let said = ""
            try {
              child = start(listener)
            } catch (cause) {
              return resume(Effect.fail(new SuccessorError({ reason: reasonOf(cause) })))
            }
            const fail = (reason: string) => {
              stop()
              child.abandon()
              resume(Effect.fail(new SuccessorError({ reason: `${program}: ${reason}` })))
            }
            const onData = (bytes: Buffer) => {
              said += bytes.toString()
              const version = booted.exec(said)?.[1]
              if (version === undefined) return
              stop()
              child.pair.pause()
              child.version = version
              resume(Effect.succeed(child))
            }
            const onExit = (status: number | null, signal: string | null) => fail(`it ended with ${signal ?? status}`)
            const timer = setTimeout(() => fail(`it was not ready in ${patience} ms`), patience)
            const stop = () => {
              clearTimeout(timer)
              child.pair.removeListener("data", onData)
              child.process.removeListener("exit", onExit)
            }
            child.pair.on("data", onData)
            child.process.on("exit", onExit)
            return Effect.sync(() => fail("nobody waits for it"))
          }),
        handOver: (prepared, snapshot, [listener = -1, ...descriptors]) => {
          let child = prepared as Child
          try {
            // who has come since then
            if (!descriptors.every((descriptor) => child.inodes.has(inodeOf(descriptor) ?? ""))) {
              child.abandon()
              child = start(listener)
              const fd = NodeWire.descriptor(child.pair) ?? -1
              const said = hear(fd, performance.now() + patience, booted)
              if (said === undefined || !booted.test(said))
                throw new Error(said ?? `it was not ready in ${patience} ms`)
            }
            throw new Error(give(child, snapshot))
          } catch (cause) {
            child.abandon()
            return new SuccessorError({ reason: reasonOf(cause) })
          }
        },
        leave
      })
    })
  )

/** What the environment says of a process whose place this one takes. */
export interface Place {
  readonly pid: number
  readonly count: number
  /** Whether the listening socket is the daemon's own. */
  readonly owned: boolean
  /** The listening socket. */
  readonly listening: number
}

/** Reads it, and takes it out of the environment: it is for this process only. */
export const place = (environment: NodeJS.ProcessEnv): Place | undefined => {
  const said = environment[variable]
  if (said === undefined) return undefined
  delete environment[variable]
  const [pid = 0, count = 0, owned = 0] = said.split(" ").map(Number)
  return { pid, count, owned: owned === 1, listening: firstDescriptor }
}

/**
 * Takes the place of `predecessor`; or that of a daemon that has gone, and left descriptors in the service manager's keep.
 * `onGone`: the predecessor is no more, after it has told us to go on.
 */
export const layerPredecessor = (
  predecessor: Place | undefined,
  stored: ReadonlyArray<number>,
  onGone: () => void
): Layer.Layer<Predecessor> =>
  Layer.sync(Predecessor, () => {
    if (predecessor === undefined)
      return { pid: undefined, inherited: stored, receive: () => undefined, accept: () => {}, refuse: () => {} }
    const tell = (text: string) => {
      try {
        Fs.writeSync(pairDescriptor, text)
      } catch {
        // it has gone
      }
    }
    /** What it says, or nothing where it is no more. */
    const hears = (): string => {
      const buffer = Buffer.alloc(1)
      try {
        return buffer.toString("latin1", 0, Fs.readSync(pairDescriptor, buffer))
      } catch {
        return ""
      }
    }
    return {
      pid: predecessor.pid,
      inherited: Array.from({ length: predecessor.count - 1 }, (_, index) => firstDescriptor + 1 + index),
      receive: () => {
        tell(`B ${CC_PROXY_VERSION}\n`)
        if (hears() !== written) process.exit(0) // it has gone before: whoever comes after it is another one
        const { size } = Fs.fstatSync(snapshotDescriptor)
        const snapshot = new Uint8Array(size)
        for (let at = 0; at < size;) at += Fs.readSync(snapshotDescriptor, snapshot, at, size - at, at)
        Fs.closeSync(snapshotDescriptor)
        return snapshot
      },
      accept: () => {
        tell(understood)
        hears() // go; or it is no more, and what it had is ours all the same
        const pair = new Net.Socket({ fd: pairDescriptor })
        pair.on("error", NodeWire.heard)
        pair.on("close", onGone)
        pair.resume()
      },
      refuse: tell
    }
  })
