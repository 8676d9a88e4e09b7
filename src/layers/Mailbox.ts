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

class Queue<A, E> implements Mailbox<A, E> {
  readonly #onWait: () => void
  #items: Array<A> = []
  #failure: { readonly error: E } | undefined
  #waiter: ((next: Effect.Effect<A, E>) => void) | undefined

  constructor(onWait: () => void) {
    this.#onWait = onWait
  }
  readonly take = Effect.callback<A, E>((resume) => {
    if (this.#items.length > 0) return resume(Effect.succeed(this.#items.shift()!))
    if (this.#failure !== undefined) return resume(Effect.fail(this.#failure.error))
    this.#waiter = resume
    this.#onWait()
    return Effect.sync(() => {
      if (this.#waiter === resume) this.#waiter = undefined
    })
  })
  offer(item: A) {
    const resume = this.#waiter
    if (resume === undefined) {
      this.#items.push(item)
      return false
    }
    this.#waiter = undefined
    resume(Effect.succeed(item))
    return true
  }
  fail(error: E) {
    this.#failure ??= { error }
    const resume = this.#waiter
    this.#waiter = undefined
    resume?.(Effect.fail(this.#failure.error))
  }
  clear() {
    return this.#items.splice(0)
  }
}

/** An empty mailbox. `onWait` runs whenever a fiber begins to wait. */
export const make = <A, E>(onWait: () => void = () => {}): Mailbox<A, E> => new Queue(onWait)
