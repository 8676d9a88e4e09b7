import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { Condition } from "../../src/services/Condition.ts"
import { Deadlines } from "../../src/services/Deadlines.ts"

const now = { startImmediately: true } as const

/** Deadlines that tell when each expired, and how many fibers sleep for them. */
const make = Effect.gen(function* () {
  const clock = yield* Clock.Clock
  let sleeping = 0
  const counting: Clock.Clock = Object.assign(Object.create(clock), {
    sleep: (duration: Duration.Duration) =>
      Effect.suspend(() => {
        sleeping++
        return clock.sleep(duration)
      }).pipe(Effect.ensuring(Effect.sync(() => sleeping--)))
  })
  const deadlines = yield* Deadlines.make.pipe(Effect.provideService(Clock.Clock, counting))
  const expired: Array<readonly [name: string, at: number]> = []
  return {
    expired,
    sleeping: () => sleeping,
    set: (name: string, millis: number, then: () => void = () => {}) =>
      deadlines.set(millis, () => {
        expired.push([name, clock.currentTimeMillisUnsafe()])
        then()
      }),
    within: deadlines.within
  }
})

describe("Deadlines", () => {
  for (const step of [-3_600_000, 3_600_000])
    it.effect(`expire in their time where somebody sets the clock ${step < 0 ? "back" : "forward"}`, () =>
      Effect.gen(function* () {
        const clock = yield* Clock.Clock
        let set = 0
        const wall: Clock.Clock = Object.assign(Object.create(clock), {
          currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + set
        })
        const deadlines = yield* Deadlines.make.pipe(Effect.provideService(Clock.Clock, wall))
        const expired: Array<string> = []
        deadlines.set(1000, () => void expired.push("first"))
        yield* TestClock.adjust("600 millis")
        deadlines.set(1000, () => void expired.push("second"))
        set = step
        yield* TestClock.adjust("400 millis")
        assert.deepStrictEqual(expired, ["first"])
        yield* TestClock.adjust("599 millis")
        assert.deepStrictEqual(expired, ["first"])
        yield* TestClock.adjust("1 millis")
        assert.deepStrictEqual(expired, ["first", "second"])
      })
    )

  it.effect("expire once, when they are due", () =>
    Effect.gen(function* () {
      const { expired, set } = yield* make
      set("a", 1000)
      yield* TestClock.adjust("999 millis")
      assert.deepStrictEqual(expired, [])
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(expired, [["a", 1000]])
      yield* TestClock.adjust("1 hours")
      assert.deepStrictEqual(expired, [["a", 1000]])
    })
  )

  it.effect("that are equally long expire in the order in which they were set, each in its own time", () =>
    Effect.gen(function* () {
      const { expired, set } = yield* make
      for (const name of ["a", "b", "c"]) {
        set(name, 1000)
        yield* TestClock.adjust("400 millis")
      }
      set("d", 1000)
      set("e", 1000)
      yield* TestClock.adjust("1 hours")
      assert.deepStrictEqual(expired, [
        ["a", 1000],
        ["b", 1400],
        ["c", 1800],
        ["d", 2200],
        ["e", 2200]
      ])
    })
  )

  it.effect("of different lengths come due independently of each other", () =>
    Effect.gen(function* () {
      const { expired, set } = yield* make
      set("long", 60_000)
      set("short", 100)
      yield* TestClock.adjust("50 millis")
      set("middle", 1000)
      yield* TestClock.adjust("2 seconds")
      set("short again", 100)
      yield* TestClock.adjust("1 minutes")
      assert.deepStrictEqual(expired, [
        ["short", 100],
        ["middle", 1050],
        ["short again", 2150],
        ["long", 60_000]
      ])
    })
  )

  it.effect("never expire once they are cancelled, and keep those behind them from nothing", () =>
    Effect.gen(function* () {
      const { expired, set } = yield* make
      const first = set("first", 1000)
      yield* TestClock.adjust("200 millis")
      const second = set("second", 1000)
      yield* TestClock.adjust("200 millis")
      set("third", 1000)
      first.cancel()
      second.cancel()
      second.cancel()
      yield* TestClock.adjust("1 hours")
      assert.deepStrictEqual(expired, [["third", 1400]])
    })
  )

  it.effect("may be cancelled after they have expired", () =>
    Effect.gen(function* () {
      const { expired, set } = yield* make
      const first = set("first", 1000)
      yield* TestClock.adjust("1 seconds")
      set("second", 1000)
      first.cancel()
      yield* TestClock.adjust("1 seconds")
      assert.deepStrictEqual(expired, [
        ["first", 1000],
        ["second", 2000]
      ])
    })
  )

  it.effect("are cancelled by one that expires in the same moment before them", () =>
    Effect.gen(function* () {
      const { expired, set } = yield* make
      set("first", 1000, () => second.cancel())
      const second = set("second", 1000)
      yield* TestClock.adjust("1 hours")
      assert.deepStrictEqual(expired, [["first", 1000]])
    })
  )

  it.effect("cost one fiber a length, however many there are, and none once there are none left", () =>
    Effect.gen(function* () {
      const { expired, set, sleeping } = yield* make
      assert.strictEqual(sleeping(), 0)
      const all = Array.from({ length: 1000 }, (_, at) => set(`${at}`, 1000))
      assert.strictEqual(sleeping(), 1)
      set("another length", 2000)
      assert.strictEqual(sleeping(), 2)
      for (const deadline of all) deadline.cancel()
      yield* TestClock.adjust("1 seconds") // it looks again when it wakes
      assert.deepStrictEqual([sleeping(), expired], [1, []])
      yield* TestClock.adjust("1 seconds")
      assert.deepStrictEqual([sleeping(), expired.length], [0, 1])
      set("anew", 1000)
      assert.strictEqual(sleeping(), 1)
      yield* TestClock.adjust("1 seconds")
      assert.deepStrictEqual([sleeping(), expired.length], [0, 2])
    })
  )

  it.effect("cost one fiber however often one is cancelled and set anew, and the last expires", () =>
    Effect.gen(function* () {
      const { expired, set, sleeping } = yield* make
      let last = set("first", 1000)
      for (let moved = 0; moved < 1000; moved++) {
        yield* TestClock.adjust("10 millis")
        last.cancel()
        last = set("last", 1000)
      }
      assert.deepStrictEqual([sleeping(), expired], [1, []])
      yield* TestClock.adjust("1 seconds")
      assert.deepStrictEqual(expired, [["last", 11_000]])
    })
  )

  it.effect("can be set from within an expiry, and again after it", () =>
    Effect.gen(function* () {
      const { expired, set, sleeping } = yield* make
      set("a", 1000, () => {
        set("b", 1000, () => set("c", 500))
      })
      yield* TestClock.adjust("10 seconds")
      set("d", 1000)
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual(expired, [
        ["a", 1000],
        ["b", 2000],
        ["c", 2500],
        ["d", 11_000]
      ])
      assert.strictEqual(sleeping(), 0)
    })
  )

  it.effect("of no length at all expire, and leave the next one to expire too", () =>
    Effect.gen(function* () {
      const { expired, set } = yield* make
      set("a", 0)
      yield* TestClock.adjust(0)
      set("b", 0)
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(expired, [
        ["a", 0],
        ["b", 0]
      ])
    })
  )

  it.effect("end with the scope that they were made in", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const { expired, set, sleeping } = yield* Scope.provide(make, scope)
      set("a", 1000)
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(sleeping(), 0)
      yield* TestClock.adjust("1 hours")
      assert.deepStrictEqual(expired, [])
    })
  )

  describe("within", () => {
    it.effect("is true at once where the test holds, and costs no deadline", () =>
      Effect.gen(function* () {
        const { sleeping, within } = yield* make
        const waiting = yield* Effect.forkChild(
          within(1000, () => true, new Condition()),
          now
        )
        assert.isDefined(waiting.pollUnsafe())
        assert.isTrue(yield* Fiber.join(waiting))
        assert.strictEqual(sleeping(), 0)
      })
    )

    it.effect("is true inside the notify of any of its owners after which the test holds", () =>
      Effect.gen(function* () {
        const { within } = yield* make
        for (const told of [0, 1]) {
          const owners = [new Condition(), new Condition()]
          let holds = false
          const waiting = yield* Effect.forkChild(
            within(1000, () => holds, ...owners),
            now
          )
          yield* TestClock.adjust("999 millis")
          owners[told]!.notify()
          assert.isUndefined(waiting.pollUnsafe())
          holds = true
          owners[told]!.notify()
          assert.isDefined(waiting.pollUnsafe())
          assert.isTrue(yield* Fiber.join(waiting))
        }
      })
    )

    it.effect("is false at its end, and not before", () =>
      Effect.gen(function* () {
        const { within } = yield* make
        const waiting = yield* Effect.forkChild(
          within(1000, () => false, new Condition()),
          now
        )
        yield* TestClock.adjust("999 millis")
        assert.isUndefined(waiting.pollUnsafe())
        yield* TestClock.adjust("1 millis")
        assert.isDefined(waiting.pollUnsafe())
        assert.isFalse(yield* Fiber.join(waiting))
      })
    )

    it.effect("asks nobody any more once it was told, or has ended, or was interrupted", () =>
      Effect.gen(function* () {
        const { sleeping, within } = yield* make
        const ends = {
          told: (owner: Condition, fiber: Fiber.Fiber<boolean>) =>
            Effect.andThen(
              Effect.sync(() => owner.notify()),
              Fiber.await(fiber)
            ),
          ended: (_: Condition, fiber: Fiber.Fiber<boolean>) =>
            Effect.andThen(TestClock.adjust("1 seconds"), Fiber.await(fiber)),
          interrupted: (_: Condition, fiber: Fiber.Fiber<boolean>) => Fiber.interrupt(fiber)
        }
        for (const [how, end] of Object.entries(ends)) {
          const owners = [new Condition(), new Condition()] as const
          let asked = 0
          const waiting = yield* Effect.forkChild(
            within(1000, () => ++asked > 1 && how === "told", ...owners),
            now
          )
          yield* end(owners[1], waiting)
          assert.isDefined(waiting.pollUnsafe(), how)
          const before = asked
          for (const owner of owners) owner.notify()
          assert.strictEqual(asked, before, how)
          yield* TestClock.adjust("1 seconds") // the fiber looks again when it wakes, and finds nothing
          assert.strictEqual(sleeping(), 0, how)
        }
      })
    )

    it.effect("that is told in time takes its deadline along: those set later keep theirs", () =>
      Effect.gen(function* () {
        const { expired, set, within } = yield* make
        const owner = new Condition()
        let holds = false
        const waiting = yield* Effect.forkChild(
          within(1000, () => holds, owner),
          now
        )
        yield* TestClock.adjust("500 millis")
        set("behind it", 1000)
        holds = true
        owner.notify()
        assert.isTrue(yield* Fiber.join(waiting))
        yield* TestClock.adjust("1 hours")
        assert.deepStrictEqual(expired, [["behind it", 1500]])
      })
    )

    it.effect("may be told and run out in the same moment: the first counts", () =>
      Effect.gen(function* () {
        const { set, within } = yield* make
        const owner = new Condition()
        let holds = false
        set("tells", 1000, () => {
          holds = true
          owner.notify()
        })
        const waiting = yield* Effect.forkChild(
          within(1000, () => holds, owner),
          now
        )
        yield* TestClock.adjust("1 seconds")
        assert.isTrue(yield* Fiber.join(waiting))
      })
    )
  })

  it.effect("are a service", () =>
    Effect.gen(function* () {
      const { within } = yield* Deadlines
      const waiting = yield* Effect.forkChild(
        within(1000, () => false),
        now
      )
      yield* TestClock.adjust("1 seconds")
      assert.isFalse(yield* Fiber.join(waiting))
    }).pipe(Effect.provide(Deadlines.layer))
  )
})
