/** A byte pipe to one peer, and the port that opens one. Implemented by `layers/NodeWire.ts`. */
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"

/**
 * The peer is gone; `cause` is absent after an orderly close. Every connection ends with one, so it is no `Error`: taking a
 * stack would cost more than all the rest of a connection's end.
 */
export class WireClosed {
  readonly _tag = "WireClosed"
  readonly peer: string
  readonly cause: unknown

  constructor({ cause, peer }: { readonly peer: string; readonly cause?: unknown }) {
    this.peer = peer
    this.cause = cause
  }

  get message(): string {
    if (this.cause === undefined) return `${this.peer} closed the connection`
    return `${this.peer}: ${this.cause instanceof Error ? this.cause.message : "broken"}`
  }
}

/**
 * Reading waits and so slows the sender; writing does not wait, so that one slow peer holds up nobody else's fiber: whoever
 * writes looks at `pending` first, keeps what does not fit, and waits for `drained`.
 */
export interface Wire {
  /** Who is at the other end, for errors. */
  readonly peer: string
  /** Waits for the next bytes, 64 KiB at most. Bytes that came before a close are given out before it fails. One caller at a time. */
  readonly pull: Effect.Effect<Uint8Array, WireClosed>
  /**
   * Hands chunks over, in order; the wire owns them from here on. What the kernel does not take at once stays queued here.
   * What is offered while nothing is pending leaves in one write. Once the wire is closed nothing leaves any more, and what
   * is offered stays pending.
   */
  readonly offer: (chunks: ReadonlyArray<Uint8Array>) => void
  /** Bytes offered in all. Those before `offered() - pending()` the kernel has taken. */
  readonly offered: () => number
  /** Bytes that the kernel has not taken yet; once the wire is closed, those that it never will. */
  readonly pending: () => number
  /** Waits until nothing is pending. Any number of callers. */
  readonly drained: Effect.Effect<void, WireClosed>
  /**
   * Waits until the wire is closed. Any number of callers. While nobody pulls, only a write shows that the peer has closed;
   * an empty one does, and costs the peer nothing.
   */
  readonly closed: Effect.Effect<void>
}

/** Nobody accepted a connection in time. */
export class DialTimeout extends Data.TaggedError("DialTimeout")<{ readonly peer: string }> {
  override get message(): string {
    return `${this.peer} does not accept connections`
  }
}

export class Dialer extends Context.Service<
  Dialer,
  {
    /** Connects to a Unix socket within `millis` milliseconds; the scope owns the connection. */
    readonly dial: (path: string, millis: number) => Effect.Effect<Wire, DialTimeout | WireClosed, Scope.Scope>
  }
>()("cc-proxy/services/Wire/Dialer") {}
