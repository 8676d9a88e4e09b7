/**
 * Waiting for what another process does, without sleeping: whatever a test receives, from a socket, a pipe or a child's end,
 * calls `happened`, and every pending `until` looks again.
 */
import * as Effect from "effect/Effect"

const pending = new Set<() => void>()

/** Something arrived, closed or ended. */
export const happened = (): void => {
  for (const look of pending) look()
}

/**
 * Waits until `condition` gives something other than `undefined` or `false`, and returns that. Dies when `condition` throws, which
 * is how it says that the wait is hopeless, and after `seconds`.
 */
export const until = <A>(what: string, condition: () => A | undefined | false, seconds = 10): Effect.Effect<A> =>
  Effect.callback<A>((resume) => {
    const look = () => {
      try {
        const value = condition()
        if (value === undefined || value === false) return
        resume(Effect.succeed(value))
      } catch (cause) {
        resume(Effect.die(cause))
      }
      pending.delete(look)
    }
    pending.add(look)
    look()
    return Effect.sync(() => pending.delete(look))
  }).pipe(
    Effect.timeoutOrElse({
      duration: `${seconds} seconds`,
      orElse: () => Effect.die(new Error(`waited ${seconds} s in vain for ${what}`))
    })
  )
