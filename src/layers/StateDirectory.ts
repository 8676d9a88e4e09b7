/**
 * `StateFiles` in a directory that this daemon's user alone can enter. Files have one name for as long as they are there: the
 * next one is written beside it, and takes its place.
 *
 * Nothing waits for a disk: the files are for the death of the daemon, and those of a host that dies have no VM any more.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { StateError, StateFiles } from "../services/StateFiles.ts"
import * as PrivateDirectory from "./PrivateDirectory.ts"

export interface Options {
  readonly directory: string
  /** Whether it is the daemon's own, and goes with it where nothing is left in it. */
  readonly owned: boolean
}

const { O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_WRONLY } = Fs.constants

/** Names of files; all others are somebody else's. */
const valid = /^[a-z0-9-]+\.(state|carried)$/

const temporaryOf = (name: string): string => `.${name}.tmp`

const isTemporary = (name: string): boolean =>
  name.startsWith(".") && name.endsWith(".tmp") && valid.test(name.slice(1, -4))

const reasonOf = (cause: unknown): string => (cause instanceof Error ? cause.message : String(cause))

const isCode = (cause: unknown, code: string): boolean => (cause as NodeJS.ErrnoException).code === code

/** Does something, and tells how it failed. */
const attempt = (does: () => void): StateError | undefined => {
  try {
    does()
    return undefined
  } catch (cause) {
    return new StateError({ reason: reasonOf(cause) })
  }
}

/** Uses a file, and closes it whatever comes of that. */
const withFile = <A>(path: string, flags: number, use: (fd: number) => A): A => {
  const fd = Fs.openSync(path, flags, 0o600)
  try {
    return use(fd)
  } finally {
    Fs.closeSync(fd)
  }
}

/** Neither follows a link nor waits for the other end of a pipe. */
const read = (path: string): Uint8Array =>
  withFile(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, (fd) => {
    if (!Fs.fstatSync(fd).isFile()) throw new Error(`${path} is not a file`)
    return Fs.readFileSync(fd)
  })

/** Removes what is there, if anything is. */
const unlink = (path: string): void => {
  try {
    Fs.unlinkSync(path)
  } catch (cause) {
    if (!isCode(cause, "ENOENT")) throw cause
  }
}

const writeNew = (path: string, bytes: Uint8Array): void =>
  withFile(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, (fd) => {
    for (let at = 0; at < bytes.length;) at += Fs.writeSync(fd, bytes, at)
  })

export const layer = ({ directory, owned }: Options): Layer.Layer<StateFiles> =>
  Layer.effect(
    StateFiles,
    Effect.gen(function* () {
      let made = false

      const make = () => {
        PrivateDirectory.make(directory)
        made = true
      }

      const at = (name: string) => Path.join(directory, name)

      /** Writes a file beside `name`, and gives it that name. Leaves nothing where it fails. */
      const replace = (name: string, bytes: Uint8Array): void => {
        const temporary = at(temporaryOf(name))
        try {
          writeNew(temporary, bytes)
          Fs.renameSync(temporary, at(name))
        } catch (cause) {
          attempt(() => unlink(temporary))
          throw cause
        }
      }

      /** The file as it is found; not one that cannot be read, which is logged. */
      const found = (name: string) =>
        Effect.try({ try: () => ({ name, bytes: read(at(name)) }), catch: reasonOf }).pipe(
          Effect.catch((error) =>
            Effect.as(Effect.logWarning("a state file cannot be read", { file: at(name), error }), undefined)
          )
        )

      /** Makes the directory, removes what was half written, and lists the rest. */
      const prepare = Effect.try({
        try: () => {
          make()
          const names = Fs.readdirSync(directory).toSorted()
          for (const name of names) if (isTemporary(name)) attempt(() => unlink(at(name)))
          return names.filter((name) => valid.test(name))
        },
        catch: reasonOf
      })

      yield* Effect.addFinalizer(() =>
        Effect.sync(() => {
          if (owned && made) attempt(() => Fs.rmdirSync(directory)) // fails where something is left
        })
      )

      return StateFiles.of({
        open: prepare.pipe(
          Effect.tap(Effect.logInfo("state", { path: directory })),
          Effect.flatMap((names) => Effect.forEach(names, found)),
          Effect.map((files) => files.filter((file) => file !== undefined)),
          Effect.catch((error) =>
            Effect.as(Effect.logWarning("the state directory cannot be used", { path: directory, error }), [])
          )
        ),
        write: (name, bytes) =>
          attempt(() => {
            if (!valid.test(name)) throw new Error(`${JSON.stringify(name)} is no name of a state file`)
            if (!made) make()
            try {
              replace(name, bytes)
            } catch (cause) {
              // somebody has removed the directory, or a daemon that was killed has left its file
              if (isCode(cause, "ENOENT")) make()
              else if (!isCode(cause, "EEXIST")) throw cause
              replace(name, bytes)
            }
          }),
        remove: (name) => attempt(() => unlink(at(name))),
        setAside: (name) =>
          Effect.try({
            try: () => {
              let aside = `${name}.unreadable`
              for (let n = 2; Fs.lstatSync(at(aside), { throwIfNoEntry: false }) !== undefined; n++)
                aside = `${name}.unreadable.${n}`
              Fs.renameSync(at(name), at(aside))
              return aside
            },
            catch: (cause) => new StateError({ reason: reasonOf(cause) })
          })
      })
    })
  )
