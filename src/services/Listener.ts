/** Port: where clients arrive. Implemented by `layers/UnixListener.ts`. */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { CarriedWire, Wire } from "./Wire.ts"

/** The listening socket could not be opened, or broke while accepting. */
export class ListenError extends Schema.TaggedError<ListenError>()("ListenError", {
  reason: Schema.String
}) {
  override get message(): string {
    return this.reason
  }
}

/** There is no room for one client more: too many are connected, or too few descriptors are left. */
export class Crowded extends Schema.TaggedError<Crowded>()("Crowded", {
  what: Schema.Literals(["connections", "descriptors"]),
  limit: Schema.Int
}) {
  override get message(): string {
    return `too many ${this.what}: the limit is ${this.limit}`
  }
}

/** Milliseconds that a client which is turned away has for its first command, and to close once it has been answered. */
export const turnedAwayMillis = 1000

/** Most clients that are turned away with an answer at once; the connections of more are just closed. */
export const maxTurnedAway = 64

/** A client that has connected. */
export interface Arrival {
  /** Why it has to be turned away, if it has. */
  readonly crowded: Crowded | undefined
  /**
   * Its connection, which the scope owns: at its end the writing side is shut down once what was written has left, and what
   * the client still sends is read and discarded until it closes too. Absent where it has been closed already.
   */
  readonly connection: Effect.Effect<Wire, never, Scope.Scope> | undefined
}

/** An open socket. */
export interface Listening {
  /** Waits for the next client. */
  readonly accept: Effect.Effect<Arrival, ListenError>
  /** What a successor needs to listen in this one's place. */
  readonly carry: () => CarriedListener
}

/** A listening socket on its way from one daemon to the next. */
export interface CarriedListener {
  /** Of the process that has this; `undefined` where it listens no more. */
  readonly descriptor: number | undefined
  /** Connections that are ending: what is left is sent, the writing side shut down, and the client has not closed yet. */
  readonly ending: ReadonlyArray<CarriedWire>
}

export class Listener extends Context.Service<
  Listener,
  {
    /** `unix://` and the path clients connect to: what RegisterVM and AttachVM tell. */
    readonly url: string
    /** Opens the socket for as long as the scope lasts. Clients that are connected may stay longer. */
    readonly listen: Effect.Effect<Listening, ListenError, Scope.Scope>
    /** Takes over a client's connection that another daemon had, `name` for its peer; the scope owns it as it does an arrival's. */
    readonly adopt: (name: string, carried: CarriedWire) => Effect.Effect<Wire, never, Scope.Scope>
    /** Brings a connection to its end that another daemon had begun to end. */
    readonly finish: (carried: CarriedWire) => void
  }
>()("cc-proxy/services/Listener") {}
