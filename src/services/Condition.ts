/**
 * Waiting for plain state to change: a session's life is a handful of variables that sockets change many times between two
 * waits, so they stay variables, and whoever waits asks again when somebody says that they changed.
 */
import * as Effect from "effect/Effect"

export class Condition {
  #waiters: Set<() => void> | undefined // most conditions are never waited for

  /** Suspends until `test` holds. It is asked now and after each `notify`; it must be cheap and must not throw. */
  until(test: () => boolean): Effect.Effect<void> {
    return until(test, this)
  }

  /** Asks every waiter again. Those whose test holds resume inside this call, in the order in which they came. */
  notify(): void {
    const waiters = this.#waiters
    if (waiters === undefined || waiters.size === 0) return
    for (const ask of Array.from(waiters)) if (waiters.has(ask)) ask()
  }

  /** Calls `ask` at each `notify`, until `remove`. */
  add(ask: () => void): void {
    this.#waiters ??= new Set()
    this.#waiters.add(ask)
  }

  remove(ask: () => void): void {
    this.#waiters?.delete(ask)
  }
}

/** Calls `then` at the first `notify` of any of `conditions` after which `test` holds, unless the result is called before. */
export const once = (test: () => boolean, conditions: ReadonlyArray<Condition>, then: () => void): (() => void) => {
  const forget = () => {
    for (const condition of conditions) condition.remove(ask)
  }
  const ask = () => {
    if (!test()) return
    forget()
    then()
  }
  for (const condition of conditions) condition.add(ask)
  return forget
}

/** Suspends until `test`, of the state of several owners together, holds. */
export const until = (test: () => boolean, ...conditions: ReadonlyArray<Condition>): Effect.Effect<void> =>
  Effect.callback<void>((resume) => {
    if (test()) return resume(Effect.void)
    return Effect.sync(once(test, conditions, () => resume(Effect.void)))
  })
