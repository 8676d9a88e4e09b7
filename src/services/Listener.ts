/** Port: where clients arrive. Implemented by `layers/UnixListener.ts`. */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { Wire } from "./Wire.ts"

/** The listening socket could not be opened, or broke while accepting. */
export class ListenError extends Schema.TaggedError<ListenError>()("ListenError", {
  reason: Schema.String
}) {
  override get message(): string {
    return this.reason
  }
}

/** An open socket. */
export interface Listening {
  /**
   * Waits for the next client. The client's scope owns its connection: at its end the writing side is shut down once what
   * was written has left, and what the client still sends is read and discarded until it closes too.
   */
  readonly accept: Effect.Effect<Effect.Effect<Wire, never, Scope.Scope>, ListenError>
}

export class Listener extends Context.Service<
  Listener,
  {
    /** `unix://` and the path clients connect to: what RegisterVM and AttachVM tell. */
    readonly url: string
    /** Opens the socket for as long as the scope lasts. Clients that are connected may stay longer. */
    readonly listen: Effect.Effect<Listening, ListenError, Scope.Scope>
  }
>()("cc-proxy/services/Listener") {}
