/**
 * A deadline that is set often and expires hardly ever: however many commands or bytes move it, one fiber sleeps, and none
 * while there is no deadline.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as FiberHandle from "effect/FiberHandle"
import type * as Scope from "effect/Scope"

/**
 * Makes a function to call whenever the deadline may have changed. `due` tells the deadline in milliseconds of the clock,
 * infinity for none; it never moves to before an earlier answer (each wait of one kind is equally long). Once it has
 * passed, `expire` runs, and must change what `due` answers.
 */
export const make = (due: () => number, expire: Effect.Effect<void>): Effect.Effect<() => void, never, Scope.Scope> =>
  Effect.gen(function* () {
    const clock = yield* Clock.Clock
    const run = yield* FiberHandle.makeRuntime<never>()
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
  })
