/** How targets read what a fuzzer hands them: the bytes of a wire, and behind them how a socket cuts these. */
import assert from "node:assert/strict"
import { getHeapStatistics } from "node:v8"

/**
 * The bytes of a wire, and ways to cut them: whole, byte by byte, and as the input says.
 *
 * ```text
 * input = wire, n sizes of pieces (one byte each), control
 * control = n in its low nibble, tail in its high one: from 8 on, 2^(tail + 3) bytes more on the wire
 * ```
 */
export interface WireInput {
  readonly bytes: Uint8Array
  readonly cuttings: ReadonlyArray<ReadonlyArray<number>>
}

const KiB = 1024

/** What a tail consists of. */
const filler = Uint8Array.from({ length: 256 * KiB }, (_, at) => at * 31 + (at >> 8))

/** One byte as a size: up to 15,360 bytes. */
const sizeOf = (byte: number): number => (byte < 8 ? byte : ((byte & 7) | 8) * 2 ** Math.min((byte >> 3) - 1, 10))

export const wireOf = (input: Uint8Array): WireInput => {
  const control = input.at(-1) ?? 0
  const end = Math.max(input.length - 1 - (control & 0x0f), 0)
  const sizes = Array.from(input.subarray(end, -1), sizeOf)
  const tail = control < 0x80 ? 0 : 2 ** ((control >> 4) + 3)
  const bytes = new Uint8Array(end + tail)
  bytes.set(input.subarray(0, end))
  bytes.set(filler.subarray(0, tail), end)
  return { bytes, cuttings: [[bytes.length], [1], sizes] }
}

/** Behind so many bytes no piece is small: it would cost time and tell nothing new. */
const finelyCut = KiB

/** Cuts into pieces of `sizes`, over and over. A piece may be empty; each is a view into a buffer of its own. */
export const cut = (bytes: Uint8Array, sizes: ReadonlyArray<number>): Array<Uint8Array> => {
  const given = sizes.some((size) => size > 0) ? sizes : [bytes.length]
  const pieces: Array<Uint8Array> = []
  for (let at = 0; at < bytes.length;) {
    const least = at < finelyCut ? 0 : 4093
    const size = Math.min(Math.max(given[pieces.length % given.length]!, least), bytes.length - at)
    const around = new Uint8Array(size + 2 * margin).fill(marginByte)
    around.set(bytes.subarray(at, at + size), margin)
    pieces.push(around.subarray(margin, margin + size))
    at += size
  }
  return pieces
}

const margin = 3
const marginByte = 0xa5

/**
 * Feeds pieces to `take` until it returns a failure, and returns that. Each piece is overwritten as soon as it was taken, so
 * that a view which was kept shows, and what stands around it in its buffer must not have been touched.
 */
export const feed = <A>(
  pieces: ReadonlyArray<Uint8Array>,
  take: (piece: Uint8Array) => A | undefined
): A | undefined => {
  for (const piece of pieces) {
    const failure = take(piece)
    const around = new Uint8Array(piece.buffer)
    for (let at = 0; at < margin; at++)
      assert.ok(around[at] === marginByte && around.at(-1 - at) === marginByte, "wrote outside of a chunk")
    if (failure !== undefined) return failure
    piece.fill(0xee)
  }
  return undefined
}

/** Bytes for buffers that `run` has set aside, garbage included. Less where a collection came between. */
export const allocated = (run: () => void): number => {
  const before = getHeapStatistics().external_memory
  run()
  return getHeapStatistics().external_memory - before
}

/** What a decoder made of a wire: messages, encoded anew, and where or why it stopped. */
export interface Outcome {
  readonly messages: ReadonlyArray<Uint8Array>
  readonly end: string
}

/** The same outcome, whichever way the wire is cut. */
export const assertOutcome = (
  { bytes, cuttings }: WireInput,
  expected: Outcome,
  decode: (pieces: ReadonlyArray<Uint8Array>) => Outcome
): void => {
  for (const [way, sizes] of cuttings.entries()) {
    const { end, messages } = decode(cut(bytes, sizes))
    const how = ["whole", "byte by byte", "in the given pieces"][way]
    assert.equal(end, expected.end, how)
    assert.equal(messages.length, expected.messages.length, how)
    for (const [at, message] of messages.entries())
      assert.ok(Buffer.from(message).equals(expected.messages[at]!), `message ${at}, ${how}`)
  }
}

/**
 * A decoder sets no more aside than what has arrived asks for, whatever a header announces: 64 KiB for the message that is not
 * whole yet, and twice that again and again while it grows.
 */
export const assertModest = ({ bytes, cuttings }: WireInput, push: (piece: Uint8Array) => unknown): void => {
  const pieces = cut(bytes, cuttings.at(-1)!)
  const taken = allocated(() => {
    for (const piece of pieces) push(piece)
  })
  assert.ok(taken <= 68 * KiB + 4 * bytes.length, `${taken} bytes set aside for ${bytes.length} that arrived`)
}
