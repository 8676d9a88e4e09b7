/**
 * One command that is under way, wherever it waits: by it the answer finds its client again after a hand-over, and a wait goes
 * on where it stood.
 */
export class Ticket {
  #since: number | undefined
  #waited: number

  /** `waited`: millis that the first wait has lasted already, under an earlier daemon. */
  constructor(waited = 0) {
    this.#waited = waited
  }

  /** Millis that are left of a wait of `millis` that begins at `now`. */
  begin(millis: number, now: number): number {
    const waited = this.#waited
    this.#since = now - waited
    this.#waited = 0
    return Math.max(millis - waited, 0)
  }

  /** Millis that the present wait has lasted. */
  waited(now: number): number {
    return this.#since === undefined ? this.#waited : now - this.#since
  }
}
