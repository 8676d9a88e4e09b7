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

/** An `Assembly` that holds nothing until its first `begin`. */
export const make = (): Assembly => {
  let buffer: Uint8Array = new Uint8Array(0)
  let size = 0
  let filled = 0

  return {
    active: () => size > 0,
    begin(total) {
      size = total
      filled = 0
      buffer = new Uint8Array(Math.min(total, initialCapacity))
    },
    extend(total) {
      size = total
    },
    take(chunk, offset, end) {
      const taken = Math.min(size - filled, end - offset)
      const needed = filled + taken
      if (needed > buffer.length) {
        const grown = new Uint8Array(Math.min(size, Math.max(needed, buffer.length * 2)))
        grown.set(buffer.subarray(0, filled))
        buffer = grown
      }
      buffer.set(chunk.subarray(offset, offset + taken), filled)
      filled = needed
      return taken
    },
    complete: () => filled === size,
    bytes: () => buffer.subarray(0, filled),
    finish() {
      const whole = buffer.subarray(0, filled)
      buffer = new Uint8Array(0)
      size = 0
      filled = 0
      return whole
    }
  }
}
