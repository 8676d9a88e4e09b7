/** Measures the built daemon beside its yardsticks, and writes results, tables and plots: `make bench`. */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Console from "effect/Console"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as ChildProcess from "effect/process/ChildProcess"
import { ChildProcessSpawner } from "effect/process/ChildProcessSpawner"
import * as Os from "node:os"
import * as Path from "node:path"
import * as Markdown from "./Markdown.ts"
import { measure, RunFailed, type Setting } from "./Measure.ts"
import * as Report from "./Report.ts"
import * as Scenarios from "./Scenarios.ts"
import { figure } from "./Statistics.ts"

const root = Path.join(import.meta.dirname, "..")

const flags = {
  repeats: Flag.Int("repeats").pipe(Flag.withDescription("how often each line is measured"), Flag.withDefault(3)),
  only: Flag.String("only").pipe(
    Flag.withDescription("a group (stdout, stdin, echo, ctl, …), or a group and a scenario: 'stdout 64 × 1'"),
    Flag.optional
  ),
  daemon: Flag.String("daemon").pipe(
    Flag.withDescription("the build that is measured"),
    Flag.withDefault(Path.join(root, "dist/cc-proxy"))
  ),
  baseline: Flag.String("baseline").pipe(
    Flag.withDescription("another build of the daemon, measured in turn with it"),
    Flag.optional
  ),
  quick: Flag.Boolean("quick").pipe(
    Flag.withDescription("one short run of each, which leaves the document alone"),
    Flag.withDefault(false)
  )
}

/** Nothing matches `--only`. */
class NothingToDo extends Schema.TaggedError<NothingToDo>()("NothingToDo", { only: Schema.String }) {
  override get message(): string {
    return `no scenario is called ${this.only}; there are: ${[...new Set(Scenarios.all.map(({ group }) => group))].join(", ")}`
  }
}

/** What the figures were measured on, for the document. */
const machine = Effect.gen(function* () {
  const fs = yield* FileSystem.FileSystem
  const release = yield* fs.readFileString("/etc/os-release").pipe(Effect.orElseSucceed(() => ""))
  const system = /^PRETTY_NAME="(.*)"$/m.exec(release)?.[1] ?? Os.type()
  const cpus = Os.cpus()
  return [
    ["processor", `${cpus[0]?.model ?? "unknown"}, ${cpus.length} cores for this machine`],
    ["memory", `${figure(Os.totalmem() / 1e9)} GB`],
    ["system", `${system}, Linux ${Os.release()}`],
    ["Node", process.version]
  ] as const
})

const installed = Effect.fn("installed")(function* (command: string) {
  const spawner = yield* ChildProcessSpawner
  return yield* spawner
    .exitCode(ChildProcess.make("sh", ["-c", `command -v ${command}`], { stdout: "ignore" }))
    .pipe(Effect.map((status) => status === 0))
})

/** Runs the lines of a scenario in turn, over and over. */
const compare = Effect.fn("compare")(function* (
  { entries, group, name }: Scenarios.Scenario,
  setting: Setting,
  repeats: number
) {
  const figures = entries.map(() => new Map<string, Array<number>>())
  for (let repeat = 0; repeat < repeats; repeat++)
    for (const [n, entry] of entries.entries()) {
      const measured = yield* Effect.scoped(measure(entry, setting)).pipe(
        Effect.catchTag(
          "RunFailed",
          ({ label, reason }) => new RunFailed({ label: `${group} ${name}, ${label}`, reason })
        )
      )
      for (const [key, value] of Object.entries(measured))
        figures[n]!.set(key, [...(figures[n]!.get(key) ?? []), value])
      const told = Object.entries(measured).map(([key, value]) => `${key} ${figure(value)}`)
      yield* Console.log(`${group}, ${name}: ${entry.label}: ${told.join(", ")}`)
    }
  return entries.map(({ label }, n): Report.Result => ({
    group,
    scenario: name,
    label,
    figures: Object.fromEntries(figures[n]!)
  }))
})

/** Puts the tables into the document and the plots beside it. */
const publish = Effect.fn("publish")(function* (results: Report.Results) {
  const fs = yield* FileSystem.FileSystem
  const path = Path.join(root, "docs/performance.md")
  let document = yield* fs.readFileString(path)
  for (const [name, content] of Report.sections(results))
    document = yield* Effect.fromResult(Markdown.fill(document, name, content))
  yield* fs.writeFileString(path, document)
  for (const [file, svg] of Report.plots(results))
    yield* fs.writeFileString(Path.join(root, "docs/performance", file), svg)
})

const bench = Command.make("bench", flags, ({ baseline, daemon, only, quick, repeats }) =>
  Effect.gen(function* () {
    const fs = yield* FileSystem.FileSystem
    const hasSocat = yield* installed("socat")
    if (!hasSocat) yield* Console.log("socat is not installed: left out")
    const scenarios = Scenarios.plan({
      only: Option.getOrUndefined(only),
      baseline: Option.isSome(baseline),
      socat: hasSocat
    })
    if (scenarios.length === 0) return yield* new NothingToDo({ only: Option.getOrElse(only, () => "") })

    const setting: Setting = {
      daemon: Path.resolve(daemon),
      baseline: Path.resolve(Option.getOrElse(baseline, () => daemon)),
      generator: Path.join(root, "bench/generator"),
      directory: yield* fs.makeTempDirectoryScoped({ prefix: "cc-proxy-bench-" }),
      length: quick
        ? {
            load: ["--seconds", "0.2", "--warmup", "0.2", "--samples", "500"],
            start: ["--samples", "2"]
          }
        : {
            load: ["--seconds", "0.8", "--samples", "5000"],
            start: ["--samples", "7"]
          }
    }
    const count = quick ? 1 : repeats
    const all = yield* Effect.forEach(scenarios, (scenario) => compare(scenario, setting, count))
    const results: Report.Results = {
      date: DateTime.formatIsoDateUtc(yield* DateTime.now),
      repeats: count,
      machine: yield* machine,
      results: all.flat()
    }
    const out = Path.join(root, "bench/out")
    yield* fs.makeDirectory(out, { recursive: true })
    yield* fs.writeFileString(Path.join(out, "results.json"), `${JSON.stringify(results, undefined, 2)}\n`)
    for (const [name, content] of Report.sections(results)) yield* Console.log(`\n${name}\n\n${content}`)
    if (!quick) yield* publish(results)
  }).pipe(Effect.scoped)
).pipe(Command.withDescription("Measures the built daemon beside its yardsticks."))

Command.run(bench, { version: "0" }).pipe(Effect.provide(NodeServices.layer), NodeRuntime.runMain)
