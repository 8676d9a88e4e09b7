/** Fibers that wait for something which only Node's events announce. */
import * as Effect from "effect/Effect"

export interface Waiters {
  /** Something has happened: every waiter looks again, the longest waiting first. */
  readonly wake: () => void
  /** Suspends until `poll` answers; it is asked at once and at every `wake`. */
  readonly until: <A>(poll: () => A | undefined) => Effect.Effect<A>
}

export const make = (): Waiters => {
  const attempts = new Set<() => void>()
  return {
    wake: () => attempts.forEach((attempt) => attempt()),
    until: <A>(poll: () => A | undefined) =>
      Effect.callback<A>((resume) => {
        let polling = false
        const attempt = () => {
          if (polling) return // by a wake that the poll itself has caused
          polling = true
          const answer = poll()
          polling = false
          if (answer === undefined) return
          attempts.delete(attempt)
          resume(Effect.succeed(answer))
        }
        attempts.add(attempt)
        attempt()
        return Effect.sync(() => attempts.delete(attempt))
      })
  }
}
