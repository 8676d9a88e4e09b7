/**
 * A log record as one line of logfmt: `key=value` pairs, and whatever came from outside in quotes. No value can end its
 * line, end its quotes or add a key, and no key is there twice. Pure; it does not know where lines go.
 *
 * A quoted value is a JSON string: logfmt readers and `JSON.parse` take the same escapes.
 */
import * as Formatter from "effect/Formatter"

export type Level = "debug" | "info" | "warn" | "error" | "fatal"

export interface Record {
  /** Nanoseconds since 1970, UTC. */
  readonly time: bigint
  readonly level: Level
  readonly msg: string
  readonly pid: number
  /** Which program speaks: proxy, qemu, shim or runtime. */
  readonly source: string
  /**
   * Further keys, in the order they are to appear. `undefined` leaves its key out. A key that is taken becomes
   * `fields.<key>`; characters that a key cannot have become `_`.
   */
  readonly fields: Iterable<readonly [key: string, value: unknown]>
}

/**
 * Most UTF-16 units in one line. The journal cuts a line at 48 KiB (`LineMax` in journald.conf(5)) and takes the rest for a
 * record of its own, which could then say anything; a unit is at most three bytes of UTF-8.
 */
export const maxLine = 16_000

const fixedKeys = ["time", "level", "msg", "name", "pid", "source"]
const sources: ReadonlySet<string> = new Set(["proxy", "qemu", "shim", "runtime"])

// controls (C1 and DEL too), invisible and direction-changing characters, line and paragraph separators, lone surrogates
const unsafe = /["\\\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu
const short: ReadonlyMap<string, string> = new Map([
  ['"', '\\"'],
  ["\\", "\\\\"],
  ["\n", "\\n"],
  ["\r", "\\r"],
  ["\t", "\\t"]
])

const numeric = (character: string): string =>
  character.replaceAll(/[^]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`)

const escape = (text: string): string =>
  text.replaceAll(unsafe, (character) => short.get(character) ?? numeric(character))

/** `text` in quotes; what does not fit in `room` UTF-16 units is cut off and an ellipsis says so. */
const quote = (text: string, room: number): string => {
  if (text.length <= room) {
    const escaped = escape(text)
    if (escaped.length <= room) return `"${escaped}"`
  }
  let kept = ""
  for (const character of text) {
    const next = escape(character)
    if (kept.length + next.length > room) break
    kept += next
  }
  return `"${kept}…"`
}

/** RFC 3339 with nine decimals, UTC; for the years 1970 to 9999. */
const timestamp = (nanoseconds: bigint): string => {
  const second = new Date(Number(nanoseconds / 1_000_000n)).toISOString().slice(0, 19)
  return `${second}.${String(nanoseconds % 1_000_000_000n).padStart(9, "0")}Z`
}

/** A value as text: strings as they are, errors by name and message, anything else in a notation like JSON's. */
export const toText = (value: unknown): string => {
  if (typeof value === "string") return value
  if (value instanceof Error) return value.message === "" ? value.name : `${value.name}: ${value.message}`
  return Formatter.format(value)
}

const isPlain = (value: unknown): value is null | number | bigint | boolean =>
  value === null || typeof value === "number" || typeof value === "bigint" || typeof value === "boolean"

/** The line, without its line feed. */
export const format = ({ fields, level, msg, pid, source, time }: Record): string => {
  const taken = new Set(fixedKeys)
  let line = `time=${timestamp(time)} level=${level} msg=${quote(msg, maxLine / 2)} name=cc-proxy pid=${pid}`
  const room = () => (maxLine - line.length) / 2 // so that a long value leaves some to those after it
  line += ` source=${sources.has(source) ? source : quote(source, room())}`
  for (const [name, value] of fields) {
    if (value === undefined) continue
    let key = name.replaceAll(/[^\w.-]/g, "_").replace(/^(?![A-Za-z_])/, "_")
    while (taken.has(key)) key = `fields.${key}`
    taken.add(key)
    line += ` ${key}=${isPlain(value) ? String(value) : quote(toText(value), room())}`
  }
  return line
}
