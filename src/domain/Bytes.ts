/** What is done with byte views in more than one place. */

/** The big-endian u32 at `at`. Reads bytes directly: a `DataView` for each message costs more than the rest of a parse. */
export const u32 = (bytes: Uint8Array, at: number): number =>
  ((bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!) >>> 0

/** Writes `value` as a big-endian u32 at `at`. */
export const putU32 = (bytes: Uint8Array, at: number, value: number): void => {
  bytes[at] = value >>> 24
  bytes[at + 1] = value >>> 16
  bytes[at + 2] = value >>> 8
  bytes[at + 3] = value
}

/** Joins parts in a buffer of its own. */
export const concat = (parts: ReadonlyArray<Uint8Array>): Uint8Array => {
  let size = 0
  for (const part of parts) size += part.length
  const out = new Uint8Array(size)
  let at = 0
  for (const part of parts) {
    out.set(part, at)
    at += part.length
  }
  return out
}

/** What is left of chunks once `taken` bytes of them are gone. */
export const behind = (chunks: ReadonlyArray<Uint8Array>, taken: number): Array<Uint8Array> => {
  let at = 0
  let left = taken
  while (at < chunks.length && left >= chunks[at]!.length) left -= chunks[at++]!.length
  return left === 0 ? chunks.slice(at) : [chunks[at]!.subarray(left), ...chunks.slice(at + 1)]
}

/** `bytes` in a shape to keep: a view that holds more than twice its own size alive is copied. */
export const keep = (bytes: Uint8Array): Uint8Array =>
  bytes.length * 2 < bytes.buffer.byteLength ? bytes.slice() : bytes
