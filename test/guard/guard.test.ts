/** Speed and memory, by counts that no noise of the machine touches, against `limits.ts`. */
import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Counts } from "./Counts.ts"
import { type Limit, limits } from "./limits.ts"

const shown = (count: number): string => count.toLocaleString("en", { maximumFractionDigits: count < 100 ? 2 : 0 })

type Group = keyof typeof limits

const rowsOf = (group: Group) => Object.entries(limits[group] as Readonly<Record<string, Limit<unknown>>>)

/** What was counted, for whoever sets a limit anew. */
const table = (counts: Counts["Service"]): string => {
  const lines = (Object.keys(limits) as ReadonlyArray<Group>).flatMap((group) => {
    const report = counts[group]
    return rowsOf(group).map(([what, { limit, of, unit, value }]) => {
      const counted = report === undefined ? "-" : shown(of(report))
      return `${what.padEnd(60)} ${counted.padStart(11)} ${shown(value).padStart(11)} ${shown(limit).padStart(11)} ${unit}`
    })
  })
  const head = `${"".padEnd(60)} ${"counted".padStart(11)} ${"as set".padStart(11)} ${"limit".padStart(11)}`
  return `${[head, ...lines].join("\n")}\n`
}

/** Prints the table behind the tests. */
const printed = Layer.effectDiscard(
  Effect.gen(function* () {
    const counts = yield* Counts
    yield* Effect.addFinalizer(() => Effect.sync(() => process.stdout.write(table(counts))))
  })
).pipe(Layer.provideMerge(Counts.layer))

layer(printed, { timeout: "3 minutes", excludeTestServices: true })((it) => {
  for (const group of Object.keys(limits) as ReadonlyArray<Group>) {
    const missing = Counts.missing[group]
    for (const [what, { limit, of, unit, value, why }] of rowsOf(group)) {
      const sentence = `${what} at most ${shown(limit)} ${unit}${missing === undefined ? "" : ` (needs ${missing})`}`
      it.effect.skipIf(missing !== undefined)(sentence, () =>
        Effect.gen(function* () {
          const counted = of((yield* Counts)[group])
          assert.isAtMost(counted, limit, `${what} ${shown(counted)} ${unit}, ${shown(value)} when it was set: ${why}`)
        })
      )
    }
  }
})
