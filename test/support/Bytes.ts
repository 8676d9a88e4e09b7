/** Bytes for tests: written in hexadecimal as PROTOCOL.md shows them, and cut the way a socket may cut them. */
import * as Schema from "effect/Schema"

/** Bytes from hexadecimal; white space is ignored. */
export const fromHex = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text.replaceAll(/\s/g, ""), "hex"))

export const toHex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex")

export const utf8 = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text))

export const toText = (bytes: Uint8Array): string => Buffer.from(bytes).toString()

export const concat = (parts: ReadonlyArray<Uint8Array>): Uint8Array => Uint8Array.from(Buffer.concat(parts))

/** `length` bytes that differ from their neighbours and, by `seed`, from other calls. */
export const pattern = (length: number, seed = 0): Uint8Array => {
  const bytes = new Uint8Array(length)
  for (let i = 0; i < length; i++) bytes[i] = i * 31 + seed * 17 + 1
  return bytes
}

/** Sizes of the pieces a socket may deliver; `cut` starts over at the end of the list. */
export const CutSizes = Schema.NonEmptyArray(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 64 })))

/** Cuts `bytes` into pieces of `sizes`, each in a buffer of its own. */
export const cut = (bytes: Uint8Array, sizes: ReadonlyArray<number>): Array<Uint8Array> => {
  const pieces: Array<Uint8Array> = []
  for (let at = 0; at < bytes.length;) {
    const size = sizes[pieces.length % sizes.length] ?? 1
    pieces.push(bytes.slice(at, at + size))
    at += size
  }
  return pieces
}
