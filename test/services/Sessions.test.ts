import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import { Session } from "../../src/services/Session.ts"
import { Sessions } from "../../src/services/Sessions.ts"
import { unused } from "../support/MemorySpool.ts"
import * as Owner from "../support/Owner.ts"
import { TokenSource } from "../../src/services/TokenSource.ts"

const layer = Sessions.layer.pipe(
  Layer.provide(
    Layer.sync(TokenSource, () => {
      let count = 0
      return { next: () => `secret-${String(++count).padStart(37, "0")}` }
    })
  )
)

const session = (token: string) => new Session(token, 3, Owner.make(), unused)

describe("Sessions", () => {
  it.effect("are found by their tokens, each of which comes from the source", () =>
    Effect.gen(function* () {
      const sessions = yield* Sessions
      const [a, b] = [session(sessions.token()), session(sessions.token())]
      assert.notStrictEqual(a.token, b.token)
      sessions.add(a)
      sessions.add(b)
      assert.strictEqual(sessions.size(), 2)
      assert.strictEqual(Result.getOrThrow(sessions.find(a.token)), a)
      assert.strictEqual(Result.getOrThrow(sessions.find(b.token)), b)
    }).pipe(Effect.provide(layer))
  )

  it.effect(
    "are unknown before they are added and once they are forgotten, and the error shows little of the token",
    () =>
      Effect.gen(function* () {
        const sessions = yield* Sessions
        const it = session(sessions.token())
        const { token } = it
        const unknown = () => Result.getOrThrow(Result.flip(sessions.find(token)))
        assert.strictEqual(unknown().message, "unknown token: secret…")
        sessions.add(it)
        sessions.forget(token)
        sessions.forget(token)
        assert.strictEqual(unknown()._tag, "UnknownToken")
        assert.strictEqual(sessions.size(), 0)
      }).pipe(Effect.provide(layer))
  )
})
