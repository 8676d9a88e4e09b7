/** Ports: the process that takes this one's place, and the one whose place this one takes. Implemented by `layers/Succession.ts`. */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"

/** The new process did not start, or did not take over: this one goes on. */
export class SuccessorError extends Schema.TaggedError<SuccessorError>()("SuccessorError", { reason: Schema.String }) {
  override get message(): string {
    return this.reason
  }
}

/** A new process that waits for its snapshot. */
export interface Prepared {
  readonly version: string
  /** It is not needed after all. */
  readonly abandon: () => void
}

export class Successor extends Context.Service<
  Successor,
  {
    /** Waits for somebody to ask for a hand-over. */
    readonly asked: Effect.Effect<void>
    /**
     * Starts the executable that is there now with all connections that are open, the listening socket first, and waits until it
     * is ready for a snapshot. Nobody is held up meanwhile, and nothing has changed where it fails.
     */
    readonly prepare: (listener: number) => Effect.Effect<Prepared, SuccessorError>
    /**
     * Gives the new process a snapshot, and, where it has not all of the descriptors that this refers to, by starting it again.
     * Nothing else of this process runs until it has taken over; then this process ends. Returns only where it failed.
     */
    readonly handOver: (
      prepared: Prepared,
      snapshot: ReadonlyArray<Uint8Array>,
      descriptors: ReadonlyArray<number>
    ) => SuccessorError
    /** Ends this process at once: everything that it had is another's. */
    readonly leave: () => never
  }
>()("cc-proxy/services/Successor") {}

export class Predecessor extends Context.Service<
  Predecessor,
  {
    /** Its pid, if this process was started to take its place. */
    readonly pid: number | undefined
    /** Tells it that this process is ready, and returns once it has written its snapshot; where it goes before, this process ends. */
    readonly receive: () => Uint8Array | undefined
    /** Connections that came along, its own or those that the service manager has kept, in any order. */
    readonly inherited: ReadonlyArray<number>
    /** Tells it that everything is understood, and returns once it is ours. */
    readonly accept: () => void
    /** Tells it why not: it goes on. */
    readonly refuse: (reason: string) => void
  }
>()("cc-proxy/services/Successor/Predecessor") {}
