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
  let waiters: Set<() => void> | undefined // most conditions are never waited for
  return {
    until: (test) =>
      Effect.callback<void>((resume) => {
        if (test()) return resume(Effect.void)
        const waiting = (waiters ??= new Set())
        const ask = () => {
          if (!test()) return
          waiting.delete(ask)
          resume(Effect.void)
        }
        waiting.add(ask)
        return Effect.sync(() => waiting.delete(ask))
      }),
    notify() {
      if (waiters !== undefined && waiters.size > 0) for (const ask of Array.from(waiters)) ask()
    }
  }
}
