/** Tells of what may come too often for a record each: the first at once, then once a period how many there were since. */
import type { Deadline, Deadlines } from "./Deadlines.ts"

export class Tally {
  readonly #deadlines: Deadlines["Service"]
  readonly #period: number
  readonly #tell: (count: number) => void
  #count = 0
  #next: Deadline | undefined

  /** `period` in milliseconds. */
  constructor(deadlines: Deadlines["Service"], period: number, tell: (count: number) => void) {
    this.#deadlines = deadlines
    this.#period = period
    this.#tell = tell
  }

  add(): void {
    this.#count++
    if (this.#next === undefined) this.flush()
  }

  /** Tells those that have not been told, and begins a new period. */
  flush(): void {
    this.#next?.cancel()
    this.#next = undefined
    const count = this.#count
    if (count === 0) return
    this.#count = 0
    this.#next = this.#deadlines.set(this.#period, () => this.flush())
    this.#tell(count)
  }

  /** Tells those that have not been told: there are no more. */
  end(): void {
    if (this.#count > 0) this.#tell(this.#count)
    this.#count = 0
    this.#next?.cancel()
  }
}
