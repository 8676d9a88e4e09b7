/** A strict reader of logfmt: one record a line, pairs of `key=value` with one space between, quoted values as Go's `%q` writes them. */

export type LogRecord = ReadonlyMap<string, string>

const escapes: Readonly<Record<string, string>> = { n: "\n", r: "\r", t: "\t", a: "\u0007", b: "\b", f: "\f", v: "\v" }

const unquote = (text: string): string =>
  text.replaceAll(/\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))/gi, (_, x, u, U, one) => {
    const hex: string | undefined = x ?? u ?? U
    if (hex !== undefined) return String.fromCodePoint(Number.parseInt(hex, 16))
    return escapes[String(one)] ?? String(one)
  })

/** Reads one line; throws where it is not logfmt or a key comes twice. */
export const parse = (line: string): LogRecord => {
  const record = new Map<string, string>()
  const pair = /([A-Za-z_][\w.-]*)=(?:"((?:[^"\\\p{Cc}]|\\.)*)"|([^\s"=\p{Cc}]*))( |$)/uy
  while (pair.lastIndex < line.length) {
    const from = pair.lastIndex
    const match = pair.exec(line)
    if (match === null) throw new Error(`not logfmt at column ${from}: ${line}`)
    const key = match[1]!
    if (record.has(key)) throw new Error(`${key} comes twice: ${line}`)
    record.set(key, match[2] === undefined ? match[3]! : unquote(match[2]))
  }
  return record
}
