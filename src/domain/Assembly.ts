/**
 * Collects one message of known size that straddles chunks. Pure: bytes in, bytes out.
 *
 * Memory follows what has arrived, not what a header promises: the buffer starts at 64 KiB at most and doubles, so a peer
 * that announces 16 MiB and sends one byte costs 64 KiB, and each byte is recopied less than twice on average.
 */

/** First size of the buffer, in bytes; about one read of a socket. */
const initialCapacity = 64 * 1024

export interface Assembly {
  /** Whether a message is being collected. */
  readonly active: () => boolean
  /** Starts a message of `size` bytes in all, `size` > 0. */
  readonly begin: (size: number) => void
  /** Raises the size of the message being collected: its header is complete now and tells more. */
  readonly extend: (size: number) => void
  /** Copies what is still missing from `chunk[offset..end)`; returns how many bytes it took. */
  readonly take: (chunk: Uint8Array, offset: number, end: number) => number
  /** Whether every byte is there. */
  readonly complete: () => boolean
  /** What has been collected so far: a view, valid until the next `take`. */
  readonly bytes: () => Uint8Array
  /** Ends the message and gives it away: the caller owns the bytes. */
  readonly finish: () => Uint8Array
}

const nothing = new Uint8Array(0)

/** A class, as every socket has one: methods cost nothing an instance. */
class Collector implements Assembly {
  #buffer: Uint8Array = nothing
  #size = 0
  #filled = 0

  active() {
    return this.#size > 0
  }
  begin(total: number) {
    this.#size = total
    this.#filled = 0
    this.#buffer = new Uint8Array(Math.min(total, initialCapacity))
  }
  extend(total: number) {
    this.#size = total
  }
  take(chunk: Uint8Array, offset: number, end: number) {
    const taken = Math.min(this.#size - this.#filled, end - offset)
    const needed = this.#filled + taken
    if (needed > this.#buffer.length) {
      const grown = new Uint8Array(Math.min(this.#size, Math.max(needed, this.#buffer.length * 2)))
      grown.set(this.#buffer.subarray(0, this.#filled))
      this.#buffer = grown
    }
    this.#buffer.set(chunk.subarray(offset, offset + taken), this.#filled)
    this.#filled = needed
    return taken
  }
  complete() {
    return this.#filled === this.#size
  }
  bytes() {
    return this.#buffer.subarray(0, this.#filled)
  }
  finish() {
    const whole = this.bytes()
    this.#buffer = nothing
    this.#size = 0
    this.#filled = 0
    return whole
  }
}

/** An `Assembly` that holds nothing until its first `begin`. */
export const make = (): Assembly => new Collector()
