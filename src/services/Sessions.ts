/** Every session of the daemon, by its token: what a shim claims, and what a start names. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { redactToken } from "../domain/ClientCommand.ts"
import type { Session } from "./Session.ts"
import { TokenSource } from "./TokenSource.ts"

/** No session has this token: it never had one, or the session has ended. Shows a short prefix only. */
export class UnknownToken extends Schema.TaggedError<UnknownToken>()("UnknownToken", { prefix: Schema.String }) {
  override get message(): string {
    return `unknown token: ${this.prefix}`
  }
}

export class Sessions extends Context.Service<
  Sessions,
  {
    /** A new token. */
    readonly token: () => string
    readonly add: (session: Session) => void
    readonly find: (token: string) => Result.Result<Session, UnknownToken>
    readonly forget: (token: string) => void
    readonly size: () => number
  }
>()("cc-proxy/services/Sessions") {
  static readonly layer = Layer.effect(
    Sessions,
    Effect.map(TokenSource, ({ next }) => {
      const sessions = new Map<string, Session>()
      return Sessions.of({
        token: next,
        add: (session) => void sessions.set(session.token, session),
        find: (token) => {
          const session = sessions.get(token)
          return session === undefined
            ? Result.fail(new UnknownToken({ prefix: redactToken(token) }))
            : Result.succeed(session)
        },
        forget: (token) => void sessions.delete(token),
        size: () => sessions.size
      })
    })
  )
}
