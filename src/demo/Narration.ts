/** How the tour looks: numbered steps, and in each who asks whom, through whom, and what comes back. */
import * as Effect from "effect/Effect"
import * as Util from "node:util"
import { type WriteError, write } from "./OwnStreams.ts"

const coloured = process.stdout.isTTY && !process.env["NO_COLOR"] && process.env["TERM"] !== "dumb"

const paint = (style: "bold" | "cyan" | "green" | "red", text: string): string =>
  coloured ? Util.styleText(style, text, { validateStream: false }) : text

const tell = (text: string): Effect.Effect<void, WriteError> => write("stdout", text)

/** Width of the column that says who talks to whom. */
const margin = 27

const between = (path: ReadonlyArray<string>, arrow: string): string => `   ${path.join(` ${arrow} `).padEnd(margin)} `

export const title = (text: string): Effect.Effect<void, WriteError> => tell(`${paint("bold", text)}\n`)

export const step = (number: number, text: string): Effect.Effect<void, WriteError> =>
  tell(`\n${paint("bold", `${number}. ${text}`)}\n`)

/** What the first of `path` sends to the last. */
export const sends = (path: ReadonlyArray<string>, what: string): Effect.Effect<void, WriteError> =>
  tell(`${paint("cyan", between(path, "→"))}${what}\n`)

/** What the first of `path` gets from the last. */
export const gets = (path: ReadonlyArray<string>, what: string): Effect.Effect<void, WriteError> =>
  tell(`${paint("green", between(path, "←"))}${what}\n`)

/** Lines of a text that has several begin where the first does. */
const hang = (text: string): string => text.replaceAll("\n", `\n${" ".repeat(margin + 6)}`)

/** A question and its answer: on one line, the answer when it has come. */
export const asks = <A, E, R>(
  path: ReadonlyArray<string>,
  question: string,
  effect: Effect.Effect<A, E, R>,
  answer: (result: A) => string
): Effect.Effect<A, E | WriteError, R> =>
  tell(`${paint("cyan", between(path, "→"))}${hang(question)} `).pipe(
    Effect.andThen(effect),
    Effect.tap((result) => tell(`${paint("green", `⇒ ${answer(result)}`)}\n`)),
    Effect.onError(() => Effect.ignore(tell(`${paint("red", "⇒ ✗")}\n`)))
  )

/** A command as one would type it. */
export const commandLine = (args: ReadonlyArray<string>): string =>
  args.map((arg) => (/^[\w@%+=:,./-]+$/.test(arg) ? arg : `'${arg.replaceAll("'", `'\\''`)}'`)).join(" ")
