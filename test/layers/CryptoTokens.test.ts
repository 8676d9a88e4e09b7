import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as CryptoTokens from "../../src/layers/CryptoTokens.ts"
import { TokenSource } from "../../src/services/TokenSource.ts"

describe("CryptoTokens", () => {
  it.effect("are 32 bytes in URL-safe base64 with padding, and no two alike", () =>
    Effect.gen(function* () {
      const { next } = yield* TokenSource
      const tokens = Array.from({ length: 1000 }, next)
      for (const token of tokens) {
        assert.match(token, /^[A-Za-z0-9_-]{43}=$/)
        assert.strictEqual(Buffer.from(token, "base64url").length, 32)
      }
      assert.strictEqual(new Set(tokens).size, tokens.length)
    }).pipe(Effect.provide(CryptoTokens.layer))
  )
})
