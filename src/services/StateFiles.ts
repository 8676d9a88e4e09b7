/** Port: small files that outlive the daemon. Implemented by `layers/StateDirectory.ts`. */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"

/** A file could not be read, written or moved. */
export class StateError extends Schema.TaggedError<StateError>()("StateError", { reason: Schema.String }) {
  override get message(): string {
    return this.reason
  }
}

/** A file as it was found. */
export interface Found {
  readonly name: string
  readonly bytes: Uint8Array
}

export class StateFiles extends Context.Service<
  StateFiles,
  {
    /**
     * Makes ready, and reads every file that an earlier daemon left, those that cannot be read aside: they are logged and
     * stay. Not before the daemon's socket is its own. Never fails: what is wrong is logged.
     */
    readonly open: Effect.Effect<ReadonlyArray<Found>>
    /**
     * Writes a file, or replaces it, whole or not at all, before it returns: a few microseconds where the directory is in
     * memory. Synchronous, as what depends on it follows in the same turn.
     */
    readonly write: (name: string, bytes: Uint8Array) => StateError | undefined
    /** Removes a file, if it is there, before it returns. */
    readonly remove: (name: string) => StateError | undefined
    /** Moves a file out of the way that nobody here can read, under a name that `open` does not look at, which it tells. */
    readonly setAside: (name: string) => Effect.Effect<string, StateError>
  }
>()("cc-proxy/services/StateFiles") {}
