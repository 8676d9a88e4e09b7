/** Instructions that pieces of work take, counted by valgrind's callgrind while `measure.ts` does them. */
import * as Effect from "effect/Effect"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { type Built, run, steadyNode, unoptimised, works } from "./Harness.ts"
import type { InstructionsReport, Marked } from "./Reports.ts"

/** Node's own function behind `process.uptime()`, by which `measure.ts` marks. */
const mark = "node::Uptime*"

/** What is needed and not there. */
export const missing = works("valgrind", "--version") ? undefined : "valgrind"

/** Counts what each kind of work takes. */
export const count = Effect.fnUntraced(function* ({ directory, program }: Built) {
  const out = Path.join(directory, "callgrind")
  const stdout = yield* run("valgrind", [
    "--tool=callgrind",
    `--dump-before=${mark}`,
    `--callgrind-out-file=${out}`,
    process.execPath,
    ...steadyNode(64),
    ...unoptimised,
    program,
    "instructions"
  ])
  const marked = JSON.parse(stdout) as ReadonlyArray<Marked>
  // part 1 ends at the first mark, part 2 at the second: the even ones are the work
  const found: Partial<Record<Marked["name"], number>> = {}
  for (const [at, { count, name }] of marked.entries()) {
    const part = Fs.readFileSync(`${out}.${2 * at + 2}`, "utf8")
    found[name] = Number(/^totals: (\d+)$/m.exec(part)?.[1]) / count
  }
  return found as InstructionsReport
})
