import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Condition from "../../src/services/Condition.ts"

const now = { startImmediately: true } as const

describe("Condition", () => {
  it.effect("does not suspend where the test holds already", () =>
    Effect.gen(function* () {
      const { until } = Condition.make()
      const waiting = yield* Effect.forkChild(
        until(() => true),
        now
      )
      assert.isDefined(waiting.pollUnsafe())
    })
  )

  it.effect("resumes those whose test holds inside notify, in the order in which they came, and no others", () =>
    Effect.gen(function* () {
      const { notify, until } = Condition.make()
      let level = 0
      const order: Array<string> = []
      const wait = (name: string, from: number) =>
        Effect.forkChild(
          Effect.map(
            until(() => level >= from),
            () => void order.push(name)
          ),
          now
        )
      yield* wait("a", 2)
      yield* wait("b", 1)
      yield* wait("c", 2)
      yield* wait("d", 1)
      notify()
      assert.deepStrictEqual(order, [])
      level = 1
      assert.deepStrictEqual(order, []) // nobody was told
      notify()
      assert.deepStrictEqual(order, ["b", "d"])
      level = 2
      notify()
      assert.deepStrictEqual(order, ["b", "d", "a", "c"])
      notify()
      assert.deepStrictEqual(order, ["b", "d", "a", "c"])
    })
  )

  it.effect("asks once a notify, and one that has left not at all", () =>
    Effect.gen(function* () {
      const { notify, until } = Condition.make()
      let asked = 0
      const waiting = yield* Effect.forkChild(
        until(() => {
          asked++
          return false
        }),
        now
      )
      assert.strictEqual(asked, 1)
      notify()
      notify()
      assert.strictEqual(asked, 3)
      yield* Fiber.interrupt(waiting)
      notify()
      assert.strictEqual(asked, 3)
    })
  )

  it.effect("may be waited for, changed and notified again by whom it resumes", () =>
    Effect.gen(function* () {
      const { notify, until } = Condition.make()
      let count = 0
      const chain = Effect.gen(function* () {
        for (let next = 1; next <= 3; next++) {
          yield* until(() => count === next)
          count++
          notify()
        }
      })
      const chained = yield* Effect.forkChild(chain, now)
      count = 1
      notify()
      yield* Fiber.join(chained)
      assert.strictEqual(count, 4)
    })
  )

  it.effect("lets the first of a race win, and forgets the other", () =>
    Effect.gen(function* () {
      const { notify, until } = Condition.make()
      let left = false
      let asked = 0
      const racing = yield* Effect.forkChild(
        Effect.raceFirst(
          Effect.as(
            until(() => left),
            "left"
          ),
          Effect.as(
            until(() => {
              asked++
              return false
            }),
            "right"
          )
        ),
        now
      )
      left = true
      notify()
      assert.strictEqual(yield* Fiber.join(racing), "left")
      const before = asked
      notify()
      assert.strictEqual(asked, before)
    })
  )
})
