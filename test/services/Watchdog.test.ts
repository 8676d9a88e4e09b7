import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as TestClock from "effect/testing/TestClock"
import * as Watchdog from "../../src/services/Watchdog.ts"

/** A watchdog whose deadline the test sets, when it expired, and how many fibers it has had. */
const make = Effect.fnUntraced(function* (onExpire: (deadline: { due: number }) => void = (it) => (it.due = Infinity)) {
  const clock = yield* Clock.Clock
  const fork = yield* FiberSet.makeRuntime()
  const state = { due: Number.POSITIVE_INFINITY }
  const expired: Array<number> = []
  let running = 0
  let forked = 0
  const watch = Watchdog.make(
    (effect) => {
      forked++
      running++
      fork(
        Effect.ensuring(
          effect,
          Effect.sync(() => void running--)
        )
      )
    },
    clock,
    () => state.due,
    Effect.sync(() => {
      expired.push(clock.currentTimeMillisUnsafe())
      onExpire(state)
    })
  )
  return {
    expired,
    forked: () => forked,
    running: () => running,
    /** Sets the deadline to so many milliseconds from now. */
    set: (millis: number) => {
      state.due = clock.currentTimeMillisUnsafe() + millis
      watch()
    }
  }
})

describe("Watchdog", () => {
  it.effect("expires once, when the deadline has passed", () =>
    Effect.gen(function* () {
      const dog = yield* make()
      dog.set(1000)
      yield* TestClock.adjust("999 millis")
      assert.deepStrictEqual(dog.expired, [])
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(dog.expired, [1000])
      yield* TestClock.adjust("1 hours")
      assert.deepStrictEqual(dog.expired, [1000])
      assert.strictEqual(dog.running(), 0)
    })
  )

  it.effect("needs one fiber however often the deadline moves, and expires at the last of them", () =>
    Effect.gen(function* () {
      const dog = yield* make()
      for (let moved = 0; moved < 1000; moved++) {
        dog.set(1000)
        yield* TestClock.adjust("10 millis")
      }
      assert.deepStrictEqual([dog.forked(), dog.running(), dog.expired.length], [1, 1, 0])
      yield* TestClock.adjust("989 millis")
      assert.deepStrictEqual(dog.expired, [])
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(dog.expired, [10_990])
      assert.strictEqual(dog.forked(), 1)
    })
  )

  it.effect("needs no fiber where there is no deadline, and none any more once it is taken back", () =>
    Effect.gen(function* () {
      const dog = yield* make()
      dog.set(Number.POSITIVE_INFINITY)
      assert.strictEqual(dog.forked(), 0)
      dog.set(1000)
      dog.set(Number.POSITIVE_INFINITY)
      assert.strictEqual(dog.running(), 1) // it looks again when it wakes
      yield* TestClock.adjust("1 days")
      assert.deepStrictEqual([dog.running(), dog.expired.length], [0, 0])
      dog.set(1000)
      yield* TestClock.adjust("1 seconds")
      assert.strictEqual(dog.expired.length, 1)
    })
  )

  it.effect("goes on with the next deadline that expiring leaves", () =>
    Effect.gen(function* () {
      const dog = yield* make((deadline) => {
        deadline.due = deadline.due < 3000 ? deadline.due + 1000 : Number.POSITIVE_INFINITY
      })
      dog.set(1000)
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual(dog.expired, [1000, 2000, 3000])
      assert.deepStrictEqual([dog.forked(), dog.running()], [1, 0])
    })
  )

  it.effect("can be set from within its expiry, and again after it", () =>
    Effect.gen(function* () {
      let left = 2
      const dog: Effect.Success<ReturnType<typeof make>> = yield* make((deadline) => {
        if (left-- > 0) dog.set(500)
        else deadline.due = Number.POSITIVE_INFINITY
      })
      dog.set(1000)
      yield* TestClock.adjust("5 seconds")
      assert.deepStrictEqual(dog.expired, [1000, 1500, 2000])
      dog.set(1000)
      yield* TestClock.adjust("5 seconds")
      assert.deepStrictEqual(dog.expired, [1000, 1500, 2000, 6000])
    })
  )

  it.effect("ends with the scope of who runs it", () =>
    Effect.gen(function* () {
      const dog = yield* Effect.scoped(Effect.tap(make(), (it) => Effect.sync(() => it.set(1000))))
      assert.strictEqual(dog.running(), 0)
      yield* TestClock.adjust("1 hours")
      assert.deepStrictEqual(dog.expired, [])
    })
  )
})
