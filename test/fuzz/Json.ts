/** JSON as targets see it: a reader that shares nothing with the one it checks, and a writer whose choices are bytes. */

/** One character per byte, so that offsets in the text are offsets in the bytes. */
export const toText = (bytes: Uint8Array): string => Buffer.from(bytes).toString("latin1")
export const toBytes = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text, "latin1"))

export interface Token {
  readonly text: string
  readonly at: number
}

/** The tokens of a text that `JSON.parse` accepts. */
export const tokens = (text: string): ReadonlyArray<Token> =>
  Array.from(text.matchAll(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^ \t\r\n"{}[\],:]+/gs), (match) => ({
    text: match[0],
    at: match.index
  }))

/** How deep the text's arrays and objects are nested. */
export const depth = (all: ReadonlyArray<Token>): number => {
  let now = 0
  let most = 0
  for (const { text } of all) {
    if (text === "{" || text === "[") most = Math.max(most, ++now)
    if (text === "}" || text === "]") now--
  }
  return most
}

/** A member of an object: its key as an agent reads it, the index of its value's first token, and the value's place. */
export interface Member {
  readonly key: string
  readonly from: number
  readonly start: number
  readonly end: number
}

/** The members of the object whose `{` is the token `at`; none where there is no object. */
export const members = (all: ReadonlyArray<Token>, at: number): ReadonlyArray<Member> => {
  const found: Array<Member> = []
  if (all[at]?.text !== "{") return found
  for (let next = at + 1; all[next]!.text !== "}";) {
    if (all[next]!.text === ",") {
      next++
      continue
    }
    const key = JSON.parse(Buffer.from(all[next]!.text, "latin1").toString()) as string
    const from = next + 2 // behind the colon
    let open = 0
    let to = from
    do {
      const { text } = all[to++]!
      if (text === "{" || text === "[") open++
      if (text === "}" || text === "]") open--
    } while (open > 0)
    const last = all[to - 1]!
    found.push({ key, from, start: all[from]!.at, end: last.at + last.text.length })
    next = to
  }
  return found
}

/** A key as Go's encoding/json compares it: ASCII without case, and the two letters beyond that fold to one of ASCII. */
export const folded = (key: string): string =>
  key
    .replaceAll("\u017f", "s")
    .replaceAll("\u212a", "k")
    .replaceAll(/[A-Z]/g, (letter) => letter.toLowerCase())

const keys = [
  "process",
  "stdio",
  "stderr",
  "id",
  "container",
  "terminal",
  "args",
  "data",
  "Process",
  "STDIO",
  "StdErr",
  "proce\u017fs",
  "\u017ftdio",
  "__proto__",
  "",
  "a"
].map((key) => JSON.stringify(key))
const escapedKeys = [
  '"\\u0073tdio"',
  '"std\\u0065rr"',
  '"\\u0070rocess"',
  '"proce\\u017fs"',
  '"proce\\u00df"',
  '"\\ud800"',
  '"d\\u0061ta"'
]
const literals = [
  "0",
  "null",
  "-0",
  "0.0",
  "0e7",
  "1",
  "true",
  "false",
  '""',
  '"c1"',
  '"0"',
  "1e-400",
  "-1",
  "18446744073709551615",
  '"\\"stdio\\":7,{"',
  '"}"',
  '"\\ud83d"',
  '"\u2028\u007f"'
]
const spaces = ["", "", "", " ", "\n", "\t\r", "  "]

/** A JSON text in UTF-8 whose every choice is a byte of `choices`; where these end, so does the text, as soon as it can. */
export const generate = (choices: Uint8Array): Uint8Array => {
  let at = 0
  const pick = <A>(list: ReadonlyArray<A>): A => list[(choices[at++] ?? 0) % list.length]!
  const gap = () => pick(spaces)
  const open: Array<"}" | "]"> = []
  let text = ""
  do {
    // a value is due here
    const kind = at < choices.length ? choices[at++]! : 0
    text += gap()
    if (kind % 4 === 1) {
      text += "{"
      open.push("}")
    } else if (kind % 16 === 3) {
      text += "["
      open.push("]")
    } else {
      text += pick(literals)
    }
    let empty = kind % 4 === 1 || kind % 16 === 3
    // then what is open ends, or goes on
    while (open.length > 0 && (at >= choices.length || choices[at++]! % 4 === 0)) {
      text += gap() + open.pop()!
      empty = false
    }
    if (open.length > 0) {
      if (!empty) text += `${gap()},`
      if (open.at(-1) === "}") {
        const key = pick([true, true, true, false]) ? pick(keys) : pick(escapedKeys)
        text += `${gap()}${key}${gap()}:`
      }
    }
  } while (open.length > 0)
  return Uint8Array.from(Buffer.from(text + gap()))
}
