import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { Mailbox } from "../../src/layers/Mailbox.ts"

const now = { startImmediately: true } as const

/** A mailbox that calls `wait` whenever a fiber begins to wait. */
class Watched extends Mailbox<string, never> {
  readonly #wait: (mailbox: Watched) => void
  constructor(wait: (mailbox: Watched) => void) {
    super()
    this.#wait = wait
  }
  protected override onWait() {
    this.#wait(this)
  }
}

describe("Mailbox", () => {
  it.effect("gives out what was offered, in order", () =>
    Effect.gen(function* () {
      const mailbox = new Mailbox<number, never>()
      for (const item of [1, 2, 3]) assert.isFalse(mailbox.offer(item))
      assert.deepStrictEqual([yield* mailbox.take, yield* mailbox.take, yield* mailbox.take], [1, 2, 3])
    })
  )

  it.effect("resumes who waits inside the offer, and tells that somebody waited", () =>
    Effect.gen(function* () {
      const mailbox = new Mailbox<string, never>()
      let got = ""
      yield* Effect.forkChild(
        Effect.map(mailbox.take, (item) => void (got = item)),
        now
      )
      assert.isTrue(mailbox.offer("a"))
      assert.strictEqual(got, "a")
      assert.isFalse(mailbox.offer("b"))
    })
  )

  it.effect("tells whenever somebody begins to wait, but not where there is something to take", () =>
    Effect.gen(function* () {
      let waits = 0
      const mailbox = new Watched(() => void waits++)
      mailbox.offer("a")
      yield* mailbox.take
      assert.strictEqual(waits, 0)
      yield* Effect.forkChild(mailbox.take, now)
      assert.strictEqual(waits, 1)
    })
  )

  it.effect("may be filled by the one that is told", () =>
    Effect.gen(function* () {
      const mailbox = new Watched((self) => self.offer("on demand"))
      assert.strictEqual(yield* mailbox.take, "on demand")
    })
  )

  it.effect("fails once what came before is taken, always with the first failure", () =>
    Effect.gen(function* () {
      const mailbox = new Mailbox<string, string>()
      mailbox.offer("a")
      mailbox.fail("first")
      mailbox.fail("second")
      assert.strictEqual(yield* mailbox.take, "a")
      assert.strictEqual(yield* Effect.flip(mailbox.take), "first")
      assert.strictEqual(yield* Effect.flip(mailbox.take), "first")
    })
  )

  it.effect("fails who waits", () =>
    Effect.gen(function* () {
      const mailbox = new Mailbox<string, string>()
      const waiting = yield* Effect.forkChild(Effect.flip(mailbox.take), now)
      mailbox.fail("over")
      assert.strictEqual(yield* Fiber.join(waiting), "over")
    })
  )

  it.effect("keeps an item for the next where the one that waited was interrupted", () =>
    Effect.gen(function* () {
      const mailbox = new Mailbox<string, string>()
      yield* Fiber.interrupt(yield* Effect.forkChild(mailbox.take, now))
      assert.isFalse(mailbox.offer("a"))
      assert.strictEqual(yield* mailbox.take, "a")
    })
  )

  it.effect(
    "gives out nothing while it holds, not even a failure; then who waits is woken, and the rest is taken as ever",
    () =>
      Effect.gen(function* () {
        let holding = true
        class Holding extends Mailbox<string, string> {
          protected override holds() {
            return holding
          }
        }
        const mailbox = new Holding()
        const waiting = yield* Effect.forkChild(mailbox.take, now)
        mailbox.add("a")
        mailbox.add("b")
        mailbox.fail("over")
        assert.isFalse(mailbox.wake())
        assert.isUndefined(waiting.pollUnsafe())
        assert.deepStrictEqual(mailbox.items(), ["a", "b"])
        holding = false
        assert.isTrue(mailbox.wake())
        assert.isFalse(mailbox.wake())
        assert.strictEqual(yield* Fiber.join(waiting), "a")
        assert.strictEqual(yield* mailbox.take, "b")
        assert.strictEqual(yield* Effect.flip(mailbox.take), "over")
      })
  )

  it.effect("can be cleared of what nobody has taken", () =>
    Effect.gen(function* () {
      const mailbox = new Mailbox<number, string>()
      mailbox.offer(1)
      mailbox.offer(2)
      assert.deepStrictEqual(mailbox.clear(), [1, 2])
      assert.deepStrictEqual(mailbox.clear(), [])
      mailbox.fail("over")
      assert.strictEqual(yield* Effect.flip(mailbox.take), "over")
    })
  )
})
