/**
 * What waits on disk, of all sessions together: how much that may be, and the files that hold it. The port `SpoolFiles` is
 * implemented by `layers/SpoolDirectory.ts`.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as FiberSet from "effect/FiberSet"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Condition } from "./Condition.ts"
import { Deadlines } from "./Deadlines.ts"
import { Settings } from "./Settings.ts"

/** An operation on a file of the spool failed. */
export class SpoolError extends Schema.TaggedError<SpoolError>()("SpoolError", {
  reason: Schema.String,
  /** Whether the bytes may still be there: another try makes sense. */
  passing: Schema.Boolean
}) {
  override get message(): string {
    return this.reason
  }
}

export class SpoolFiles extends Context.Service<
  SpoolFiles,
  {
    /**
     * Makes ready, and removes what earlier daemons left, but the files named, whose sizes it tells: not before the daemon's
     * socket is its own, as the files may be of one that serves it. Never fails: what is wrong is logged.
     */
    readonly open: (keep: ReadonlySet<string>) => Effect.Effect<ReadonlyMap<string, number>>
    /** From now on files outlive this daemon: the next one's state names them. */
    readonly leave: () => void
    /** Writes all of `chunks` at byte `at` of a file, which is made where `at` is 0; or fails, and leaves what was before `at`. */
    readonly write: (name: string, at: number, chunks: ReadonlyArray<Uint8Array>) => Effect.Effect<void, SpoolError>
    /** Reads `size` bytes from byte `at`, in a buffer of their own; fewer where the file ends before. */
    readonly read: (name: string, at: number, size: number) => Effect.Effect<Uint8Array, SpoolError>
    /** Never fails: what cannot be removed is logged. */
    readonly remove: (name: string) => Effect.Effect<void>
  }
>()("cc-proxy/services/Spool/SpoolFiles") {}

export class Spool extends Context.Service<
  Spool,
  {
    readonly files: SpoolFiles["Service"]
    /** A name that no file has had, of this daemon or of one before it. */
    readonly name: () => string
    /** Most bytes on disk for one direction of one session. */
    readonly limit: number
    /** Bytes that the daemon may still put on disk. */
    readonly available: () => number
    readonly reserve: (bytes: number) => void
    readonly release: (bytes: number) => void
    /** Notified at each release. */
    readonly released: Condition
    readonly deadlines: Deadlines["Service"]
    /** Runs effects for as long as the daemon does. */
    readonly run: (effect: Effect.Effect<void>) => Fiber.Fiber<void>
  }
>()("cc-proxy/services/Spool") {
  static readonly make = Effect.gen(function* () {
    const { spoolLimit, spoolTotal } = yield* Settings
    const started = yield* Clock.currentTimeMillis
    const released = new Condition()
    let available = spoolTotal
    let count = 0
    return Spool.of({
      files: yield* SpoolFiles,
      name: () => `${started}-${++count}`,
      limit: spoolLimit,
      available: () => available,
      reserve: (bytes) => void (available -= bytes),
      release: (bytes) => {
        available += bytes
        released.notify()
      },
      released,
      deadlines: yield* Deadlines,
      run: yield* FiberSet.makeRuntime()
    })
  })

  static readonly layer = Layer.effect(Spool, Spool.make)
}
