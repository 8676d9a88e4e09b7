import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as TestClock from "effect/testing/TestClock"
import { Deadlines } from "../../src/services/Deadlines.ts"
import { Tally } from "../../src/services/Tally.ts"

const make = Effect.gen(function* () {
  const told: Array<number> = []
  const tally = new Tally(yield* Deadlines, 10_000, (count) => told.push(count))
  const add = (count: number) => {
    for (let i = 0; i < count; i++) tally.add()
  }
  return { add, tally, told }
})

describe("a tally", () => {
  it.effect("tells the first at once, and the rest at the end of each period", () =>
    Effect.gen(function* () {
      const { add, told } = yield* make
      add(5)
      assert.deepStrictEqual(told, [1])
      yield* TestClock.adjust("9999 millis")
      add(3)
      assert.deepStrictEqual(told, [1])
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(told, [1, 7])
      add(2)
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual(told, [1, 7, 2])
    }).pipe(Effect.provide(Deadlines.layer))
  )

  it.effect("tells nothing of a period without any, and the next one at once again", () =>
    Effect.gen(function* () {
      const { add, told } = yield* make
      add(1)
      yield* TestClock.adjust("1 hours")
      assert.deepStrictEqual(told, [1])
      add(2)
      assert.deepStrictEqual(told, [1, 1])
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual(told, [1, 1, 1])
    }).pipe(Effect.provide(Deadlines.layer))
  )

  it.effect("tells the rest when it ends, and no more after that", () =>
    Effect.gen(function* () {
      const { add, tally, told } = yield* make
      tally.end()
      assert.deepStrictEqual(told, [])
      add(4)
      tally.end()
      assert.deepStrictEqual(told, [1, 3])
      yield* TestClock.adjust("1 hours")
      assert.deepStrictEqual(told, [1, 3])
    }).pipe(Effect.provide(Deadlines.layer))
  )
})
