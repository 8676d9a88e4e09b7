/** Every session of the daemon, by its token: what a shim claims, and what a start names. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { redactToken, type Signal } from "../domain/ClientCommand.ts"
import type { Session } from "./Session.ts"
import { TokenSource } from "./TokenSource.ts"

/** No session has this token: it never had one, or the session has ended. Shows a short prefix only. */
export class UnknownToken extends Schema.TaggedError<UnknownToken>()("UnknownToken", { prefix: Schema.String }) {
  override get message(): string {
    return `unknown token: ${this.prefix}`
  }
}

/** A session and what its VM does for it. */
export interface SessionEntry<E = unknown> {
  readonly session: Session
  /** `containerId` of its VM, as registered. */
  readonly vm: string
  /** Sends a checked signal, or a terminal size, to the process. Waits until the process has started. */
  readonly signal: (signal: Signal) => Effect.Effect<void, E>
  /** The shim has said goodbye: ends the session for good. */
  readonly close: () => void
}

/** What a command may fail with: an error whose message is for the log and for the client, unless it has more to tell. */
export interface Told {
  readonly message: string
  readonly told?: string
}

export class Sessions extends Context.Service<
  Sessions,
  {
    /** A new token. */
    readonly token: () => string
    readonly add: (entry: SessionEntry<Told>) => void
    readonly find: (token: string) => Result.Result<SessionEntry<Told>, UnknownToken>
    readonly forget: (token: string) => void
    readonly size: () => number
  }
>()("cc-proxy/services/Sessions") {
  static readonly layer = Layer.effect(
    Sessions,
    Effect.map(TokenSource, ({ next }) => {
      const entries = new Map<string, SessionEntry<Told>>()
      return Sessions.of({
        token: next,
        add: (entry) => void entries.set(entry.session.token, entry),
        find: (token) => {
          const entry = entries.get(token)
          return entry === undefined
            ? Result.fail(new UnknownToken({ prefix: redactToken(token) }))
            : Result.succeed(entry)
        },
        forget: (token) => void entries.delete(token),
        size: () => entries.size
      })
    })
  )
}
