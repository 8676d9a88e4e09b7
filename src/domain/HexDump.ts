/**
 * Bytes in the layout of `hexdump -C`, every line written out: none stands for repeated ones. Pure.
 *
 * ```text
 * 00000000  68 65 6c 6c 6f 20 77 6f  72 6c 64 0a              |hello world.|
 * ```
 */

/** Bytes in one line, in two groups. */
const width = 16

/** Columns of one group: eight times two digits, and the spaces between. */
const groupColumns = (width / 2) * 3 - 1

const digits = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0"))

const group = (bytes: Uint8Array): string =>
  Array.from(bytes, (byte) => digits[byte]!)
    .join(" ")
    .padEnd(groupColumns)

const printable = (bytes: Uint8Array): string =>
  Array.from(bytes, (byte) => (byte >= 0x20 && byte <= 0x7e ? String.fromCharCode(byte) : ".")).join("")

/** The lines for `bytes`, the first byte of which is at `offset` of whatever they are part of. Nothing for no bytes. */
export const lines = (bytes: Uint8Array, offset = 0): ReadonlyArray<string> =>
  Array.from({ length: Math.ceil(bytes.length / width) }, (_, row) => {
    const line = bytes.subarray(row * width, (row + 1) * width)
    const address = (offset + row * width).toString(16).padStart(8, "0")
    const left = group(line.subarray(0, width / 2))
    const right = group(line.subarray(width / 2))
    return `${address}  ${left}  ${right}  |${printable(line)}|`
  })
