import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import { RateLimit } from "../../src/domain/RateLimit.ts"

/** How many of `count` pass at `now`. */
const passing = (limit: RateLimit, now: number, count: number) =>
  Array.from({ length: count }, () => limit.admits(now)).filter(Boolean).length

describe("RateLimit", () => {
  it("lets as many through at once as a second may have", () => {
    assert.strictEqual(passing(new RateLimit(100, 5), 5, 1000), 100)
    assert.strictEqual(passing(new RateLimit(1, 5), 5, 1000), 1)
  })

  it("lets more through as time goes by, each of them once", () => {
    const limit = new RateLimit(100, 0)
    passing(limit, 0, 1000)
    assert.strictEqual(passing(limit, 9, 10), 0)
    assert.strictEqual(passing(limit, 10, 10), 1)
    assert.strictEqual(passing(limit, 510, 1000), 50)
    assert.strictEqual(passing(limit, 510, 1000), 0)
  })

  it("saves up no more than a second's", () => {
    const limit = new RateLimit(100, 0)
    passing(limit, 0, 1000)
    assert.strictEqual(passing(limit, 1e9, 1000), 100)
  })

  it.prop(
    "never lets more through than the rate and the first ones, however they come",
    [Schema.Array(Schema.Int)],
    ([gaps]) => {
      const limit = new RateLimit(10, 0)
      let now = 0
      let passed = 0
      for (const gap of gaps) {
        now += Math.abs(gap) % 300
        if (limit.admits(now)) passed++
      }
      assert.isAtMost(passed, 10 + (now * 10) / 1000)
    }
  )
})
