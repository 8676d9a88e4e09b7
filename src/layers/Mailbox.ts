/** A hand-over from callbacks to one waiting fiber, which resumes inside the callback: no turn of the event loop between. */
import * as Effect from "effect/Effect"

/** A class to extend: a hook for each instance would cost memory. */
export class Mailbox<A, E> {
  #items: Array<A> = []
  #failure: { readonly error: E } | undefined
  #waiter: ((next: Effect.Effect<A, E>) => void) | undefined

  /** Waits for the next item; after `fail`, for those that came before. One caller at a time. */
  readonly take = Effect.callback<A, E>((resume) => {
    this.#waiter = resume
    if (this.wake()) return
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

  /** Whether nothing is given out for now. */
  protected holds(): boolean {
    return false
  }

  /** Gives the fiber that waits what there is for it, if there is; true where it resumed. */
  wake(): boolean {
    const resume = this.#waiter
    if (resume === undefined || this.holds()) return false
    if (this.#items.length === 0 && this.#failure === undefined) return false
    this.#waiter = undefined
    resume(this.#items.length > 0 ? Effect.succeed(this.#items.shift()!) : Effect.fail(this.#failure!.error))
    return true
  }

  /** Keeps an item without waking anybody. */
  add(item: A): void {
    this.#items.push(item)
  }

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
    this.wake()
  }

  /** What nobody has waited for. */
  items(): ReadonlyArray<A> {
    return this.#items.slice()
  }

  /** Takes everything that nobody has waited for. */
  clear(): ReadonlyArray<A> {
    return this.#items.splice(0)
  }
}
