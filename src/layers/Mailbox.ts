/** A hand-over from callbacks to one waiting fiber, which resumes inside the callback: no turn of the event loop between. */
import * as Effect from "effect/Effect"

export interface Mailbox<A, E> {
  /** Waits for the next item; after `fail`, for those that came before. One caller at a time. */
  readonly take: Effect.Effect<A, E>
  /** True where a fiber was waiting for it. */
  readonly offer: (item: A) => boolean
  readonly fail: (error: E) => void
  /** Takes everything that nobody has waited for. */
  readonly clear: () => ReadonlyArray<A>
}

/** An empty mailbox. `onWait` runs whenever a fiber begins to wait. */
export const make = <A, E>(onWait: () => void = () => {}): Mailbox<A, E> => {
  const items: Array<A> = []
  let failure: { readonly error: E } | undefined
  let waiter: ((next: Effect.Effect<A, E>) => void) | undefined
  return {
    take: Effect.callback<A, E>((resume) => {
      if (items.length > 0) return resume(Effect.succeed(items.shift()!))
      if (failure !== undefined) return resume(Effect.fail(failure.error))
      waiter = resume
      onWait()
      return Effect.sync(() => {
        if (waiter === resume) waiter = undefined
      })
    }),
    offer(item) {
      if (waiter === undefined) {
        items.push(item)
        return false
      }
      const resume = waiter
      waiter = undefined
      resume(Effect.succeed(item))
      return true
    },
    fail(error) {
      failure ??= { error }
      const resume = waiter
      waiter = undefined
      resume?.(Effect.fail(failure.error))
    },
    clear: () => items.splice(0)
  }
}
