/**
 * `SpoolFiles` in a directory of this daemon's own, named after the socket that it serves: daemons side by side, one for each
 * pod, never meet, and one that is started again finds what the last one left. Files are readable by the daemon's user only.
 *
 * A file is opened for each operation: thousands of sessions may wait on disk, and cost no descriptor.
 */
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as Layer from "effect/Layer"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { behind } from "../domain/Bytes.ts"
import { SpoolError, SpoolFiles } from "../services/Spool.ts"
import * as PrivateDirectory from "./PrivateDirectory.ts"

export interface Options {
  /** Directories to make ours in: the first that can be used is. */
  readonly parents: ReadonlyArray<string>
  /** The daemon's socket. */
  readonly socketPath: string
}

const { O_CREAT, O_NOFOLLOW, O_RDONLY, O_WRONLY } = Fs.constants

/** Millis after its start at which a daemon clears what earlier ones left. */
const clearAfter = 1000

/** Errors after which the bytes are still there: no room, no descriptor, no memory for now. */
const passing = new Set(["EAGAIN", "EBUSY", "EDQUOT", "EINTR", "EMFILE", "ENFILE", "ENOMEM", "ENOSPC"])

const failed = (cause: NodeJS.ErrnoException) =>
  new SpoolError({ reason: cause.message, passing: passing.has(cause.code ?? "") })

type Done<A> = (error: NodeJS.ErrnoException | null, value: A) => void

/** An effect of what calls back once. */
const called = <A>(start: (done: Done<A>) => void): Effect.Effect<A, SpoolError> =>
  Effect.callback((resume) =>
    start((error, value) => resume(error === null ? Effect.succeed(value) : Effect.fail(failed(error))))
  )

/** Opens a file, uses it, and closes it whatever comes of that. */
const withFile = <A>(
  path: string,
  flags: number,
  use: (fd: number) => Effect.Effect<A, SpoolError>
): Effect.Effect<A, SpoolError> =>
  Effect.acquireUseRelease(
    called<number>((done) => Fs.open(path, flags, 0o600, done)),
    use,
    (fd) => Effect.ignore(called<void>((done) => Fs.close(fd, (error) => done(error ?? null))))
  )

/** The directory of a socket's daemon: its path, in one name. */
export const nameOf = (socketPath: string): string => socketPath.replaceAll("%", "%25").replaceAll("/", "%2F")

/** The path of which `nameOf` makes `name`, if there is one. */
const socketOf = (name: string): string | undefined => {
  const path = name.replaceAll("%2F", "/").replaceAll("%25", "%")
  return path.startsWith("/") && nameOf(path) === name ? path : undefined
}

/** The names in a directory; none where it cannot be read. */
const list = (path: string): ReadonlyArray<string> => {
  try {
    return Fs.readdirSync(path)
  } catch {
    return []
  }
}

/** A file's size, in bytes. */
const sizeOf = (path: string): number | undefined => {
  try {
    const found = Fs.lstatSync(path)
    return found.isFile() ? found.size : undefined
  } catch {
    return undefined
  }
}

const remove = (path: string): Effect.Effect<void> =>
  called<void>((done) => Fs.rm(path, { recursive: true, force: true }, (error) => done(error))).pipe(
    Effect.catch((error) => Effect.logWarning("a file of the spool cannot be removed", { error: error.message }))
  )

const writeAll = (fd: number, at: number, chunks: ReadonlyArray<Uint8Array>): Effect.Effect<void, SpoolError> =>
  Effect.flatMap(
    called<number>((done) => Fs.writev(fd, chunks, at, done)),
    (written) => {
      const rest = behind(chunks, written)
      return rest.length === 0 ? Effect.void : writeAll(fd, at + written, rest)
    }
  )

/** Holds the number of the process whose directory it is in. */
const pidFile = "pid"

/** What it says; nothing where it cannot be read. */
const pidIn = (directory: string): string => {
  try {
    return Fs.readFileSync(Path.join(directory, pidFile), "latin1")
  } catch {
    return ""
  }
}

/** Whether a directory is a daemon's that has ended, and that none takes the place of: its socket is gone too. */
const abandoned = (parent: string, name: string): boolean => {
  const socket = socketOf(name)
  if (socket === undefined || Fs.existsSync(socket)) return false
  const directory = Path.join(parent, name)
  try {
    const found = Fs.lstatSync(directory)
    if (!found.isDirectory() || found.uid !== process.geteuid?.()) return false
  } catch {
    return false
  }
  const pid = pidIn(directory)
  // a daemon that has stopped in good order leaves it to the next one, as long as there may be one
  if (pid === "") return !Fs.existsSync(Path.dirname(socket))
  return /^\d+$/.test(pid) && !Fs.existsSync(`/proc/${pid}`)
}

/** Removes the files that were in a directory, and the directory, unless there are others by now. */
const clear = (directory: string, names: ReadonlyArray<string>): Effect.Effect<void> =>
  Effect.forEach(names, (name) => remove(Path.join(directory, name)), { discard: true }).pipe(
    Effect.andThen(Effect.ignore(called<void>((done) => Fs.rmdir(directory, (error) => done(error)))))
  )

export const layer = ({ parents, socketPath }: Options): Layer.Layer<SpoolFiles> =>
  Layer.effect(
    SpoolFiles,
    Effect.gen(function* () {
      const own = nameOf(Path.resolve(socketPath))
      const files = new Set<string>() // of ours
      let directory: string | undefined

      /** The directory to write in: made, or made again where somebody has removed it. */
      const prepare = Effect.suspend(() => {
        let reason = "there is no directory for it"
        for (const parent of directory === undefined ? parents : [Path.dirname(directory)]) {
          try {
            PrivateDirectory.make(Path.join(parent, own))
            Fs.writeFileSync(Path.join(parent, own, pidFile), String(process.pid), { mode: 0o600 })
            directory = Path.join(parent, own)
            return Effect.succeed(directory)
          } catch (cause) {
            reason = cause instanceof Error ? cause.message : String(cause)
          }
        }
        return Effect.fail(new SpoolError({ reason, passing: true }))
      })

      /** Whether no other daemon has taken our place, and the directory with it. */
      const isOurs = (path: string): boolean => pidIn(path) === String(process.pid)

      const at = (name: string) => Path.join(directory ?? "", name)

      let left = false // to a later daemon
      const run = yield* FiberSet.makeRuntime()

      yield* Effect.addFinalizer(() =>
        Effect.suspend(() =>
          directory === undefined || left
            ? Effect.void
            : clear(directory, isOurs(directory) ? [...files, pidFile] : [...files])
        )
      )

      /** Clears the directories of earlier daemons. */
      const clearEarlier = (
        found: ReadonlyArray<readonly [string, ReadonlyArray<string>]>,
        keep: ReadonlySet<string>
      ) =>
        Effect.forEach(
          found,
          ([path, names]) =>
            clear(path, path === directory ? names.filter((name) => name !== pidFile && !keep.has(name)) : names),
          { discard: true }
        )

      return SpoolFiles.of({
        open: (keep) =>
          Effect.gen(function* () {
            // listed before anything is written
            const earlier = parents.map((parent) => [Path.join(parent, own), list(Path.join(parent, own))] as const)
            for (const parent of parents)
              for (const name of list(parent))
                if (abandoned(parent, name)) earlier.push([Path.join(parent, name), list(Path.join(parent, name))])
            yield* prepare.pipe(
              Effect.flatMap((path) => Effect.logInfo("spool", { path })),
              Effect.catch((error) => Effect.logWarning("the spool cannot be used", { error: error.message }))
            )
            const sizes = new Map<string, number>()
            for (const name of keep) {
              const size = sizeOf(at(name))
              if (size === undefined) continue
              files.add(name)
              sizes.set(name, size)
            }
            run(Effect.andThen(Effect.sleep(clearAfter), clearEarlier(earlier, keep))) // not while peers wait
            return sizes
          }),
        // without a pid nobody but the next daemon of this socket takes the directory for an abandoned one
        leave: () => {
          left = true
          if (directory !== undefined) Fs.rmSync(Path.join(directory, pidFile), { force: true })
        },
        write: (name, offset, chunks) => {
          files.add(name)
          const write = Effect.suspend(() =>
            withFile(at(name), O_WRONLY | O_NOFOLLOW | (offset === 0 ? O_CREAT : 0), (fd) =>
              Effect.tapError(writeAll(fd, offset, chunks), () =>
                Effect.ignore(called<void>((done) => Fs.ftruncate(fd, offset, done)))
              )
            )
          )
          if (directory === undefined) return Effect.andThen(prepare, write)
          const path = directory
          const made = (error: SpoolError) =>
            Fs.existsSync(path) ? Effect.fail(error) : Effect.andThen(prepare, write)
          return offset > 0 ? write : Effect.catch(write, made)
        },
        read: (name, offset, size) =>
          withFile(at(name), O_RDONLY | O_NOFOLLOW, (fd) => {
            const bytes = new Uint8Array(size)
            return Effect.map(
              called<number>((done) => Fs.read(fd, bytes, 0, size, offset, done)),
              (read) => bytes.subarray(0, read)
            )
          }),
        remove: (name) =>
          Effect.andThen(
            remove(at(name)),
            Effect.sync(() => files.delete(name))
          )
      })
    })
  )
