/** Lets so many things a second through, after as many at once. Pure. */
export class RateLimit {
  readonly #rate: number
  #left: number
  #at: number

  /** `rate` a second, from `now` on, in milliseconds of a clock that nobody sets. */
  constructor(rate: number, now: number) {
    this.#rate = rate
    this.#left = rate
    this.#at = now
  }

  /** Whether one more may pass, at `now`. */
  admits(now: number): boolean {
    this.#left = Math.min(this.#left + ((now - this.#at) * this.#rate) / 1000, this.#rate)
    this.#at = now
    if (this.#left < 1) return false
    this.#left--
    return true
  }
}
