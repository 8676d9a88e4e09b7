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
  /** Lets what was offered leave, and then the peer read an end. What it still sends is pulled until it closes too. */
  readonly shutDown: () => void
  /**
   * Takes all that the kernel has of the peer, which is pulled before the end, and closes the connection in the same moment.
   * Returns what was offered and has not left.
   */
  readonly drainAndClose: () => ReadonlyArray<Uint8Array>
  /** Its file descriptor; `undefined` once the wire is closed. */
  readonly descriptor: () => number | undefined
  /**
   * What another process needs to go on in this one's place; `undefined` once the wire is closed. Reading has to be held
   * (`Reading`). Changes nothing: where no process takes its place, the wire goes on as it was.
   */
  readonly carry: () => CarriedWire | undefined
}

/** A connection on its way from one daemon to the next. */
export interface CarriedWire {
  /** Of the process that has this. */
  readonly descriptor: number
  /** What has been read from the kernel and not been pulled, oldest first. */
  readonly unread: ReadonlyArray<Uint8Array>
  /** What was offered and the kernel has not taken, oldest first. */
  readonly unsent: ReadonlyArray<Uint8Array>
}

/** Tells descriptors apart, also in another process. */
export class Descriptors extends Context.Service<
  Descriptors,
  {
    /** What fstat(2) says of a descriptor's inode: a socket has one of its own. `undefined` where it is no socket. */
    readonly inode: (descriptor: number) => number | undefined
    readonly close: (descriptor: number) => void
  }
>()("cc-proxy/services/Wire/Descriptors") {}

/** All reading of this process. */
export class Reading extends Context.Service<
  Reading,
  {
    /** From now on no `pull` resumes, and nothing is read that would not be carried. What was offered still leaves. */
    readonly hold: () => void
    /** Reading goes on where it was held. */
    readonly resume: () => void
  }
>()("cc-proxy/services/Wire/Reading") {}

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
    /** Takes over a connection to `path` that another daemon had; the scope owns it. `unread` is pulled first, and `unsent` leaves first. */
    readonly adopt: (path: string, carried: CarriedWire) => Effect.Effect<Wire, never, Scope.Scope>
  }
>()("cc-proxy/services/Wire/Dialer") {}
