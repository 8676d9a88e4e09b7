/**
 * How deep JSON text may nest, found out before a parser makes something of every level. Pure.
 */

/**
 * Most levels of arrays and objects in each other: as many as Go's `encoding/json` reads, which runtimes and Go agents use, so
 * nothing that works is refused. What has fewer bytes than that, which is nearly all there is, needs no look.
 */
export const maxDepth = 10_000

const quote = 0x22
const backslash = 0x5c
const openBracket = 0x5b
const closeBracket = 0x5d
const openBrace = 0x7b
const closeBrace = 0x7d

/** Whether UTF-8 text nests deeper than `maxDepth`. Of what is no JSON, it tells as much as a parser would see before its error. */
export const isTooDeep = (bytes: Uint8Array): boolean => {
  if (bytes.length <= maxDepth) return false
  let depth = 0
  let quoted = false
  for (let at = 0; at < bytes.length; at++) {
    const byte = bytes[at]!
    if (byte === quote) {
      quoted = !quoted
    } else if (quoted) {
      if (byte === backslash) at++
    } else if (byte === openBracket || byte === openBrace) {
      if (++depth > maxDepth) return true
    } else if (byte === closeBracket || byte === closeBrace) {
      depth--
    }
  }
  return false
}
