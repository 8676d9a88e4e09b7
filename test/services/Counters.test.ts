import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import * as Counters from "../../src/services/Counters.ts"

const counted = <A, E>(effect: Effect.Effect<A, E>) => Effect.provideService(effect, Metric.MetricRegistry, new Map())

describe("counters", () => {
  it.effect("count each limit and each loss for itself", () =>
    counted(
      Effect.gen(function* () {
        yield* Counters.limited("connections")
        yield* Counters.limited("connections", 3)
        yield* Counters.limited("vms")
        yield* Counters.dropped("orphan", 1000)
        yield* Counters.dropped("orphan", 24)
        assert.strictEqual(yield* Counters.limitedSoFar("connections"), 4)
        assert.strictEqual(yield* Counters.limitedSoFar("vms"), 1)
        assert.strictEqual(yield* Counters.limitedSoFar("tokens"), 0)
        assert.strictEqual(yield* Counters.droppedSoFar("orphan"), 1024)
        assert.strictEqual(yield* Counters.droppedSoFar("stray"), 0)
      })
    )
  )

  it.effect("are one metric of Effect's registry each, by an attribute", () =>
    counted(
      Effect.gen(function* () {
        yield* Counters.limited("log rate", 7)
        yield* Counters.dropped("spool lost", 9)
        const found = (yield* Metric.snapshot).map(({ attributes, id, state, type }) => ({
          attributes,
          id,
          state,
          type
        }))
        assert.deepStrictEqual(found, [
          {
            id: "cc_proxy_limited_total",
            type: "Counter",
            attributes: { limit: "log rate" },
            state: { count: 7, incremental: true }
          },
          {
            id: "cc_proxy_dropped_bytes_total",
            type: "Counter",
            attributes: { reason: "spool lost" },
            state: { count: 9, incremental: true }
          }
        ])
      })
    )
  )

  it.effect("never go down", () =>
    counted(
      Effect.gen(function* () {
        yield* Counters.limited("frame", 5)
        yield* Counters.limited("frame", -3)
        assert.strictEqual(yield* Counters.limitedSoFar("frame"), 5)
      })
    )
  )
})
