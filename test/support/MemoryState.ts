/** `StateFiles` in memory, which a test may look into, and break. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { StateError, StateFiles } from "../../src/services/StateFiles.ts"

type Operation = "write" | "remove" | "setAside"

export class MemoryState extends Context.Service<
  MemoryState,
  {
    /** What each file holds, those set aside included. */
    readonly files: Map<string, Uint8Array>
    /** Each write that succeeded and each removal of a file, in order: `write a.state`. */
    readonly log: ReadonlyArray<string>
    /** From now on an operation fails, for this reason. `undefined`: works again. */
    readonly break: (operation: Operation, reason: string | undefined) => void
  }
>()("test/MemoryState") {
  /** Over files that an earlier daemon has left, as one that is started again finds them. */
  static readonly layerOver = (files: Map<string, Uint8Array>): Layer.Layer<MemoryState | StateFiles> =>
    Layer.effectContext(
      Effect.sync(() => {
        const broken = new Map<Operation, StateError>()
        const log: Array<string> = []
        const memory: MemoryState["Service"] = {
          files,
          log,
          break: (operation, reason) => {
            if (reason === undefined) broken.delete(operation)
            else broken.set(operation, new StateError({ reason }))
          }
        }
        const port: StateFiles["Service"] = {
          open: Effect.sync(() =>
            Array.from(files)
              .filter(([name]) => /\.(state|carried)$/.test(name))
              .map(([name, bytes]) => ({ name, bytes: Uint8Array.from(bytes) }))
              .toSorted((one, other) => (one.name < other.name ? -1 : 1))
          ),
          write: (name, bytes) => {
            const error = broken.get("write")
            if (error !== undefined) return error
            if (!/^[a-z0-9-]+\.(state|carried)$/.test(name))
              return new StateError({ reason: "no name of a state file" })
            files.set(name, Uint8Array.from(bytes))
            log.push(`write ${name}`)
            return undefined
          },
          remove: (name) => {
            const error = broken.get("remove")
            if (error !== undefined) return error
            if (files.delete(name)) log.push(`remove ${name}`)
            return undefined
          },
          setAside: (name) =>
            Effect.suspend(() => {
              const error = broken.get("setAside")
              if (error !== undefined) return Effect.fail(error)
              const bytes = files.get(name)
              if (bytes === undefined) return Effect.fail(new StateError({ reason: "no such file" }))
              let aside = `${name}.unreadable`
              for (let n = 2; files.has(aside); n++) aside = `${name}.unreadable.${n}`
              files.set(aside, bytes)
              files.delete(name)
              return Effect.succeed(aside)
            })
        }
        return Context.make(MemoryState, memory).pipe(Context.add(StateFiles, port))
      })
    )

  static readonly layer = Layer.suspend(() => MemoryState.layerOver(new Map()))
}
