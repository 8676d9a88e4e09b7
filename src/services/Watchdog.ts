/**
 * A deadline that is set often and expires hardly ever: however many commands or bytes move it, one fiber sleeps, and none
 * while there is no deadline.
 */
import type * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"

/**
 * Makes a function to call whenever the deadline may have changed. `due` tells the deadline in milliseconds of `clock`,
 * infinity for none; it never moves to before an earlier answer (each wait of one kind is equally long). Once it has
 * passed, `expire` runs, and must change what `due` answers. `run` forks the fiber, in the scope of whoever it belongs to.
 */
export const make = (
  run: (effect: Effect.Effect<void>) => unknown,
  clock: Clock.Clock,
  due: () => number,
  expire: Effect.Effect<void>
): (() => void) => {
  let running = false
  const watch = Effect.gen(function* () {
    for (let next = due(); next < Number.POSITIVE_INFINITY; next = due()) {
      const wait = next - clock.currentTimeMillisUnsafe()
      if (wait > 0) yield* Effect.sleep(wait)
      else yield* expire
    }
  }).pipe(Effect.ensuring(Effect.sync(() => (running = false))))
  return () => {
    if (running || due() === Number.POSITIVE_INFINITY) return
    running = true
    run(watch)
  }
}
