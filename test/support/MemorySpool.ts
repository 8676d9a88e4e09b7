/** `SpoolFiles` in memory, which a test may look into, fill up and break. */
import { assert } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Condition } from "../../src/services/Condition.ts"
import { keepings } from "../../src/services/Session.ts"
import { defaults } from "../../src/services/Settings.ts"
import { SpoolError, SpoolFiles } from "../../src/services/Spool.ts"

/** For sessions of which nothing comes to the spool. */
export const unused = keepings(defaults, {
  files: {
    open: () => Effect.succeed(new Map()),
    leave: () => {},
    write: () => Effect.void,
    read: () => Effect.never,
    remove: () => Effect.void
  },
  name: () => "",
  limit: 0,
  available: () => 0,
  reserve: () => {},
  release: () => {},
  released: new Condition(),
  deadlines: { set: () => assert.fail("no deadline"), within: () => Effect.succeed(false) },
  run: Effect.runFork
})

export class MemorySpool extends Context.Service<
  MemorySpool,
  {
    /** What each file holds. */
    readonly files: Map<string, Uint8Array>
    /** Bytes of all files. */
    readonly size: () => number
    /** How many bytes have been written in all. */
    readonly written: () => number
    readonly until: (test: () => boolean) => Effect.Effect<void>
    /** From now on an operation fails: with a reason that may pass, or not. `undefined`: works again. */
    readonly break: (operation: "read" | "write", failure: { readonly passing: boolean } | undefined) => void
    /** Operations wait, until `release`. */
    readonly hold: () => void
    readonly release: () => void
  }
>()("test/MemorySpool") {
  static readonly layer = Layer.effectContext(
    Effect.sync(() => {
      const files = new Map<string, Uint8Array>()
      const changed = new Condition()
      const broken: { read?: SpoolError | undefined; write?: SpoolError | undefined } = {}
      let held = false
      let written = 0
      const operation = <A>(kind: "read" | "write", does: () => Effect.Effect<A, SpoolError>) =>
        Effect.andThen(
          changed.until(() => !held),
          Effect.suspend(() => (broken[kind] === undefined ? does() : Effect.fail(broken[kind])))
        )
      const memory: MemorySpool["Service"] = {
        files,
        size: () => Array.from(files.values()).reduce((sum, { length }) => sum + length, 0),
        written: () => written,
        until: (test) => Effect.andThen(changed.until(test), Effect.yieldNow),
        break: (kind, failure) => {
          broken[kind] = failure && new SpoolError({ reason: `${kind} is broken`, ...failure })
        },
        hold: () => void (held = true),
        release: () => {
          held = false
          changed.notify()
        }
      }
      const port: SpoolFiles["Service"] = {
        open: (keep) =>
          Effect.sync(() => {
            const kept = new Map<string, number>()
            for (const [name, { length }] of files) {
              if (keep.has(name)) kept.set(name, length)
              else files.delete(name)
            }
            return kept
          }),
        leave: () => {},
        write: (name, at, chunks) =>
          operation("write", () => {
            const before = files.get(name) ?? new Uint8Array(0)
            if (before.length < at) return Effect.fail(new SpoolError({ reason: "no such file", passing: false }))
            const bytes = Buffer.concat([before.subarray(0, at), ...chunks])
            written += bytes.length - at
            files.set(name, bytes)
            changed.notify()
            return Effect.void
          }),
        read: (name, at, size) =>
          operation("read", () => {
            const bytes = files.get(name)
            if (bytes === undefined) return Effect.fail(new SpoolError({ reason: "no such file", passing: false }))
            return Effect.succeed(Uint8Array.from(bytes.subarray(at, at + size)))
          }),
        remove: (name) =>
          Effect.sync(() => {
            files.delete(name)
            changed.notify()
          })
      }
      return Context.make(MemorySpool, memory).pipe(Context.add(SpoolFiles, port))
    })
  )
}
