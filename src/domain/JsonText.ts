/**
 * Edits of JSON text that leave every other byte alone. Works on bytes of a document that `JSON.parse` has accepted:
 * integers beyond 2^53, key order, duplicate keys and white space stay as they were.
 *
 * A byte is read as one character, so offsets in the text are offsets in the bytes; all of JSON's structure is ASCII.
 */
import { concat } from "./Bytes.ts"
import { createScanner } from "jsonc-parser"

// jsonc-parser's `SyntaxKind` is a const enum, which a single-file compiler cannot read
const token = { openBrace: 1, closeBrace: 2, openBracket: 3, closeBracket: 4, comma: 5, string: 10, eof: 17 } as const

const oneCharacterPerByte = new TextDecoder("latin1")

/** Bytes as text with one character per byte. For finding places, not for reading strings. */
export const toText = (bytes: Uint8Array): string => oneCharacterPerByte.decode(bytes)

/** A value's place: `[start, end)`. */
export interface Range {
  readonly start: number
  readonly end: number
}

/** The members of one object. A key that is there twice has two ranges. */
export interface Members {
  /** Offset just after the `{`. */
  readonly inside: number
  readonly empty: boolean
  readonly get: (key: string) => ReadonlyArray<Range>
  /** The members whose key is `key` but for its case: Go takes them for it. */
  readonly like: (key: string) => ReadonlyArray<Range>
}

const none: ReadonlyArray<Range> = []

const isSpace = (code: number): boolean => code === 0x20 || code === 0x0a || code === 0x0d || code === 0x09

/**
 * Reads the members of the object that starts at `at` (white space before it allowed); `undefined` where there is no
 * object. Does not recurse, so no depth of nesting can exhaust the stack.
 */
export const membersAt = (text: string, at: number): Members | undefined => {
  const scanner = createScanner(text, true)
  let next = at
  const scan = (): number => {
    // the scanner would collect white space one character at a time: seconds and 260 MB for 8 MiB of it
    while (isSpace(text.charCodeAt(next))) next++
    scanner.setPosition(next)
    const kind = scanner.scan()
    next = scanner.getPosition()
    return kind
  }
  if (scan() !== token.openBrace) return undefined
  const inside = next
  const ranges = new Map<string, Array<Range>>()
  for (let kind = scan(); kind !== token.closeBrace && kind !== token.eof; kind = scan()) {
    if (kind === token.comma) continue
    const key = scanner.getTokenValue()
    scan() // the colon
    let depth = 0
    let start = -1
    do {
      const value = scan()
      if (start < 0) start = scanner.getTokenOffset()
      if (value === token.openBrace || value === token.openBracket) depth++
      if (value === token.closeBrace || value === token.closeBracket) depth--
      if (value === token.eof) break
    } while (depth > 0)
    const range = { start, end: next }
    const known = ranges.get(key)
    if (known === undefined) ranges.set(key, [range])
    else known.push(range)
  }
  return {
    inside,
    empty: ranges.size === 0,
    get: (key) => ranges.get(key) ?? none,
    like: (key) => Array.from(ranges).flatMap(([name, found]) => (name === key || folded(name) === key ? found : none))
  }
}

/** A key in the case that Go takes it for: a long s counts as an s. Here its two bytes are a character each. */
const folded = (key: string): string =>
  key.replaceAll(/\u017f|\u00c5\u00bf/g, "s").replaceAll(/[A-Z]/g, (letter) => letter.toLowerCase())

/** Replaces `[start, end)` by ASCII `text`; an insertion where they are equal. */
export interface Edit extends Range {
  readonly text: string
}

const ascii = new TextEncoder()

/** Applies edits that do not overlap, in any order. */
export const apply = (bytes: Uint8Array, edits: ReadonlyArray<Edit>): Uint8Array => {
  const ordered = edits.toSorted((a, b) => a.start - b.start)
  const parts: Array<Uint8Array> = []
  let at = 0
  for (const edit of ordered) {
    parts.push(bytes.subarray(at, edit.start), ascii.encode(edit.text))
    at = edit.end
  }
  parts.push(bytes.subarray(at))
  return concat(parts)
}
