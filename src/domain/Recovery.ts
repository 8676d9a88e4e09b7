/**
 * Finding the first message in bytes that begin anywhere, as those do that are left in a socket by a daemon that was killed
 * while it read. Pure.
 *
 * A header has eight bytes or more, of which most are zero, and tells where the next one is; so bytes of a process that look
 * like a header by chance, and like another one where that ends, and so on to the end, are as good as impossible. A process
 * that writes them on purpose deceives the sessions of its own VM only.
 */
import * as Bytes from "./Bytes.ts"

export interface Traits {
  readonly headerSize: number
  /** The length of the message whose header is at `at`, in bytes, header included. */
  readonly lengthAt: (bytes: Uint8Array, at: number) => number
  /** Whether what is at `at` may be a header. */
  readonly plausible: (bytes: Uint8Array, at: number) => boolean
}

/** Where the first message begins, of a chain that reaches the end of the bytes; `undefined` where none does. */
export const firstMessage = (bytes: Uint8Array, { headerSize, lengthAt, plausible }: Traits): number | undefined => {
  // backwards, so that each place is looked at once: a process could write chains without end
  const chained = new Uint8Array(Math.max(bytes.length - headerSize + 1, 0))
  for (let at = chained.length - 1; at >= 0; at--)
    if (plausible(bytes, at)) chained[at] = chained[at + lengthAt(bytes, at)] ?? 1
  const first = chained.indexOf(1)
  return first < 0 ? undefined : first
}

/** Lets bytes through from the first message on. */
export interface Recovery {
  /** The bytes to go on with: none before a message has been found, and all that come later. `undefined`: there is none in `most` bytes. */
  readonly push: (chunk: Uint8Array) => Uint8Array | undefined
  /** Whether a message has been found. */
  readonly done: () => boolean
  /** Bytes that were skipped: the rest of a message whose beginning is lost. */
  readonly skipped: () => number
}

const nothing = new Uint8Array(0)

/** Gives up after `most` bytes: more than a message has, and the headers around it. */
export const make = (traits: Traits, most: number): Recovery => {
  let held: Uint8Array = nothing
  let done = false
  let skipped = 0
  return {
    push(chunk) {
      if (done) return chunk
      held = held.length === 0 ? chunk : Bytes.concat([held, chunk])
      const at = firstMessage(held, traits)
      if (at === undefined) return held.length > most ? undefined : nothing
      done = true
      skipped = at
      const found = held.subarray(at)
      held = nothing
      return found
    },
    done: () => done,
    skipped: () => skipped
  }
}
