/**
 * Waiting for plain state to change: a session's life is a handful of variables that sockets change many times between two
 * waits, so they stay variables, and whoever waits asks again when somebody says that they changed.
 */
import * as Effect from "effect/Effect"

export interface Condition {
  /** Suspends until `test` holds. It is asked now and after each `notify`; it must be cheap and must not throw. */
  readonly until: (test: () => boolean) => Effect.Effect<void>
  /** Asks every waiter again. Those whose test holds resume inside this call, in the order in which they came. */
  readonly notify: () => void
}

export const make = (): Condition => {
  const waiters = new Set<() => void>()
  return {
    until: (test) =>
      Effect.callback<void>((resume) => {
        if (test()) return resume(Effect.void)
        const ask = () => {
          if (!test()) return
          waiters.delete(ask)
          resume(Effect.void)
        }
        waiters.add(ask)
        return Effect.sync(() => waiters.delete(ask))
      }),
    notify() {
      if (waiters.size > 0) for (const ask of Array.from(waiters)) ask()
    }
  }
}
