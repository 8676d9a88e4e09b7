/** A hand-over from callbacks to one waiting fiber, which resumes inside the callback: no turn of the event loop between. */
import * as Effect from "effect/Effect"

/** A class to extend: a hook for each instance would cost memory. */
export class Mailbox<A, E> {
  #items: Array<A> = []
  #failure: { readonly error: E } | undefined
  #waiter: ((next: Effect.Effect<A, E>) => void) | undefined

  /** Waits for the next item; after `fail`, for those that came before. One caller at a time. */
  readonly take = Effect.callback<A, E>((resume) => {
    if (this.#items.length > 0) return resume(Effect.succeed(this.#items.shift()!))
    if (this.#failure !== undefined) return resume(Effect.fail(this.#failure.error))
    this.#waiter = resume
    this.onWait()
    return Effect.sync(() => {
      if (this.#waiter === resume) this.#waiter = undefined
    })
  })

  /** Whether a fiber is waiting. */
  awaited(): boolean {
    return this.#waiter !== undefined
  }

  /** Runs whenever a fiber begins to wait. */
  protected onWait(): void {}

  /** True where a fiber was waiting for it. */
  offer(item: A): boolean {
    const resume = this.#waiter
    if (resume === undefined) {
      this.#items.push(item)
      return false
    }
    this.#waiter = undefined
    resume(Effect.succeed(item))
    return true
  }

  fail(error: E): void {
    this.#failure ??= { error }
    const resume = this.#waiter
    this.#waiter = undefined
    resume?.(Effect.fail(this.#failure.error))
  }

  /** Takes everything that nobody has waited for. */
  clear(): ReadonlyArray<A> {
    return this.#items.splice(0)
  }
}
