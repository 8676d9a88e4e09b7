import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { Condition, once, until } from "../../src/services/Condition.ts"

const now = { startImmediately: true } as const

describe("Condition", () => {
  it.effect("does not suspend where the test holds already", () =>
    Effect.gen(function* () {
      const changed = new Condition()
      const waiting = yield* Effect.forkChild(
        changed.until(() => true),
        now
      )
      assert.isDefined(waiting.pollUnsafe())
    })
  )

  it.effect("resumes those whose test holds inside notify, in the order in which they came, and no others", () =>
    Effect.gen(function* () {
      const changed = new Condition()
      let level = 0
      const order: Array<string> = []
      const wait = (name: string, from: number) =>
        Effect.forkChild(
          Effect.map(
            changed.until(() => level >= from),
            () => void order.push(name)
          ),
          now
        )
      yield* wait("a", 2)
      yield* wait("b", 1)
      yield* wait("c", 2)
      yield* wait("d", 1)
      changed.notify()
      assert.deepStrictEqual(order, [])
      level = 1
      assert.deepStrictEqual(order, []) // nobody was told
      changed.notify()
      assert.deepStrictEqual(order, ["b", "d"])
      level = 2
      changed.notify()
      assert.deepStrictEqual(order, ["b", "d", "a", "c"])
      changed.notify()
      assert.deepStrictEqual(order, ["b", "d", "a", "c"])
    })
  )

  it.effect("asks once a notify, and one that has left not at all", () =>
    Effect.gen(function* () {
      const changed = new Condition()
      let asked = 0
      const waiting = yield* Effect.forkChild(
        changed.until(() => {
          asked++
          return false
        }),
        now
      )
      assert.strictEqual(asked, 1)
      changed.notify()
      changed.notify()
      assert.strictEqual(asked, 3)
      yield* Fiber.interrupt(waiting)
      changed.notify()
      assert.strictEqual(asked, 3)
    })
  )

  it.effect("may be waited for, changed and notified again by whom it resumes", () =>
    Effect.gen(function* () {
      const changed = new Condition()
      let count = 0
      const chain = Effect.gen(function* () {
        for (let next = 1; next <= 3; next++) {
          yield* changed.until(() => count === next)
          count++
          changed.notify()
        }
      })
      const chained = yield* Effect.forkChild(chain, now)
      count = 1
      changed.notify()
      yield* Fiber.join(chained)
      assert.strictEqual(count, 4)
    })
  )

  it.effect("lets the first of a race win, and forgets the other", () =>
    Effect.gen(function* () {
      const changed = new Condition()
      let left = false
      let asked = 0
      const racing = yield* Effect.forkChild(
        Effect.raceFirst(
          Effect.as(
            changed.until(() => left),
            "left"
          ),
          Effect.as(
            changed.until(() => {
              asked++
              return false
            }),
            "right"
          )
        ),
        now
      )
      left = true
      changed.notify()
      assert.strictEqual(yield* Fiber.join(racing), "left")
      const before = asked
      changed.notify()
      assert.strictEqual(asked, before)
    })
  )

  describe("of several owners", () => {
    /** Two owners, and who waits for their sum to be three. */
    const waitForThree = Effect.gen(function* () {
      const owners = [new Condition(), new Condition()] as const
      const state = { left: 0, right: 0, asked: 0 }
      const waiting = yield* Effect.forkChild(
        until(
          () => {
            state.asked++
            return state.left + state.right >= 3
          },
          ...owners
        ),
        now
      )
      return { left: owners[0], right: owners[1], state, waiting }
    })

    it.effect("does not suspend where the test holds already", () =>
      Effect.gen(function* () {
        const waiting = yield* Effect.forkChild(
          until(() => true, new Condition(), new Condition()),
          now
        )
        assert.isDefined(waiting.pollUnsafe())
      })
    )

    it.effect("asks at the notify of any of them, and resumes inside the one after which the test holds", () =>
      Effect.gen(function* () {
        const { left, right, state, waiting } = yield* waitForThree
        state.left = 2
        left.notify()
        right.notify()
        assert.deepStrictEqual([state.asked, waiting.pollUnsafe()], [3, undefined])
        state.right = 1
        right.notify()
        assert.isDefined(waiting.pollUnsafe())
      })
    )

    it.effect("is forgotten by all of them once it has resumed, or was interrupted", () =>
      Effect.gen(function* () {
        const resumed = yield* waitForThree
        resumed.state.left = 3
        resumed.left.notify()
        yield* Fiber.join(resumed.waiting)
        const interrupted = yield* waitForThree
        yield* Fiber.interrupt(interrupted.waiting)
        for (const { left, right, state } of [resumed, interrupted]) {
          const before = state.asked
          left.notify()
          right.notify()
          assert.strictEqual(state.asked, before)
        }
      })
    )

    it.effect("waits for ever where there is none", () =>
      Effect.gen(function* () {
        const waiting = yield* Effect.forkChild(
          until(() => false),
          now
        )
        yield* Effect.yieldNow
        assert.isUndefined(waiting.pollUnsafe())
      })
    )
  })

  describe("once", () => {
    it("calls at the first notify after which the test holds, of any owner, and never again", () => {
      const [left, right] = [new Condition(), new Condition()]
      let holds = false
      let calls = 0
      once(
        () => holds,
        [left, right],
        () => calls++
      )
      left.notify()
      assert.strictEqual(calls, 0)
      holds = true
      assert.strictEqual(calls, 0) // nobody was told
      right.notify()
      left.notify()
      right.notify()
      assert.strictEqual(calls, 1)
    })

    it("does not call once its result was called", () => {
      const [left, right] = [new Condition(), new Condition()]
      let asked = 0
      const forget = once(
        () => {
          asked++
          return true
        },
        [left, right],
        () => assert.fail("called")
      )
      forget()
      forget()
      left.notify()
      right.notify()
      assert.strictEqual(asked, 0)
    })

    it("does not call where what comes before it in the same notify calls its result", () => {
      const changed = new Condition()
      const calls: Array<string> = []
      const always = () => true
      let forget = () => {}
      once(always, [changed], () => {
        calls.push("first")
        forget()
      })
      forget = once(always, [changed], () => calls.push("second"))
      changed.notify()
      assert.deepStrictEqual(calls, ["first"])
    })
  })
})
