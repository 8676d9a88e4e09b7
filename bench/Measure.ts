/** Measures one line of a comparison: starts what it is about, puts the load on it, and reads what came of it. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import type * as PlatformError from "effect/PlatformError"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as ChildProcess from "effect/process/ChildProcess"
import { ChildProcessSpawner } from "effect/process/ChildProcessSpawner"
import * as Path from "node:path"
import type { Entry, Program } from "./Scenarios.ts"
import * as StartParts from "./StartParts.ts"

/** The load found something wrong, or what it is about did not start. */
export class RunFailed extends Schema.TaggedError<RunFailed>()("RunFailed", {
  label: Schema.String,
  reason: Schema.String
}) {
  override get message(): string {
    return `${this.label}: ${this.reason}`
  }
}

export interface Setting {
  /** Programs: the daemon, another build of it, the compiled generator. */
  readonly daemon: string
  readonly baseline: string
  readonly generator: string
  /** For sockets. */
  readonly directory: string
  /** How long, and how often, in options of the generator: `start` counts whole starts. */
  readonly length: { readonly load: ReadonlyArray<string>; readonly start: ReadonlyArray<string> }
}

/**
 * What came of one run. `perSecond`: messages of the payload's size, round trips, commands, lives; `cpuMicros`: CPU time of
 * the program for each of them, in µs; `cores`, `loadCores`: CPU time per second, of the program and of the load.
 * `p50Micros`, `p99Micros`, `maxMicros`, and the parts of a start, in µs; `mbPerSecond`, `residentMB`, `anonymousMB` in 10⁶ bytes.
 */
export type Figures = Readonly<Record<string, number>>

type Measured = Effect.Effect<
  Figures,
  RunFailed | PlatformError.PlatformError,
  ChildProcessSpawner | FileSystem.FileSystem | Scope.Scope
>

const here = (file: string) => Path.join(import.meta.dirname, file)

/** The command line of a program that serves `listen`; without it, a socket it inherits. */
const commandOf = (
  program: Program,
  { baseline, daemon }: Setting,
  listen: string | undefined,
  agent: string
): readonly [string, ...ReadonlyArray<string>] => {
  switch (program) {
    case "cc-proxy":
    case "baseline": {
      const binary = program === "baseline" ? baseline : daemon
      return [binary, "-log", "error", "-ksm", "initial", ...(listen === undefined ? [] : ["-socket-path", listen])]
    }
    case "bare server":
      return [process.execPath, here("bare-server.cjs"), ...(listen === undefined ? [] : [listen])]
    case "relay":
      return [process.execPath, here("relay.ts"), listen!, agent]
    default:
      return ["socat", "-b", "65536", `UNIX-LISTEN:${listen}`, `UNIX-CONNECT:${agent}`]
  }
}

const Report = Schema.fromJsonString(
  Schema.Union([
    Schema.Struct({ ok: Schema.Literal(false), error: Schema.String }),
    Schema.Struct({
      ok: Schema.Literal(true),
      payload: Schema.Finite,
      seconds: Schema.Finite,
      bytes: Schema.Finite,
      cpuSeconds: Schema.Finite,
      clientCpuSeconds: Schema.Finite,
      agentCpuSeconds: Schema.Finite,
      startedNs: Schema.Finite,
      endedNs: Schema.Finite,
      samples: Schema.optionalKey(Schema.Finite),
      p50Us: Schema.optionalKey(Schema.Finite),
      p99Us: Schema.optionalKey(Schema.Finite),
      maxUs: Schema.optionalKey(Schema.Finite)
    })
  ])
)

const decodeReport = Schema.decodeEffect(Report)

/** Runs the generator to its end. */
const generate = Effect.fn("generate")(function* (
  label: string,
  setting: Setting,
  args: ReadonlyArray<string>,
  env: Readonly<Record<string, string>> = {}
) {
  const spawner = yield* ChildProcessSpawner
  const text = yield* spawner.string(
    ChildProcess.make(setting.generator, args, { env, extendEnv: true, stdin: "ignore", stderr: "inherit" })
  )
  const report = yield* decodeReport(text).pipe(
    Effect.mapError(() => new RunFailed({ label, reason: `the load said ${JSON.stringify(text)}` }))
  )
  return report.ok ? report : yield* new RunFailed({ label, reason: report.error })
})

let sockets = 0

/** Starts the program, and waits until its socket is there. */
const serve = Effect.fn("serve")(function* (entry: Entry, setting: Setting) {
  const fs = yield* FileSystem.FileSystem
  const listen = Path.join(setting.directory, `${++sockets}.sock`)
  const agent = entry.program === "nothing" ? listen : Path.join(setting.directory, `${sockets}-agent.sock`)
  const relays = entry.program === "relay" || entry.program === "socat" || entry.program === "nothing"
  const options = ["--socket", listen, ...(relays ? ["--relay", agent] : ["--dir", setting.directory])]
  if (entry.program === "nothing") return { options, pid: 0 }

  const [command, ...args] = commandOf(entry.program, setting, listen, agent)
  const { exitCode, pid } = yield* ChildProcess.make(command, args, {
    stdin: "ignore",
    stdout: "ignore",
    stderr: "inherit",
    forceKillAfter: "5 seconds"
  })
  const listens = fs
    .exists(listen)
    .pipe(Effect.repeat({ until: (exists) => exists, schedule: Schedule.spaced("5 millis") }), Effect.asVoid)
  const ended = Effect.flatMap(
    exitCode,
    (status) => new RunFailed({ label: entry.label, reason: `ended by itself, with status ${status}` })
  )
  yield* Effect.raceFirst(listens, ended).pipe(
    Effect.timeoutOrElse({
      duration: "10 seconds",
      orElse: () => new RunFailed({ label: entry.label, reason: "does not listen" })
    })
  )
  return { options: [...options, "--pid", String(pid)], pid }
})

type Generated = Effect.Success<ReturnType<typeof generate>>

const figuresOf = (report: Generated): Figures => {
  const operations = report.samples ?? report.bytes / report.payload
  return {
    perSecond: operations / report.seconds,
    ...(report.bytes > 0 && { mbPerSecond: report.bytes / report.seconds / 1e6 }),
    ...(report.cpuSeconds > 0 && {
      cpuMicros: (report.cpuSeconds / operations) * 1e6,
      cores: report.cpuSeconds / report.seconds
    }),
    loadCores: (report.clientCpuSeconds + report.agentCpuSeconds) / report.seconds,
    ...(report.p50Us !== undefined && { p50Micros: report.p50Us }),
    ...(report.p99Us !== undefined && { p99Micros: report.p99Us }),
    ...(report.maxUs !== undefined && { maxMicros: report.maxUs })
  }
}

/** Both at once: everything that was carried between the first start and the last end. */
const figuresOfBoth = (reports: ReadonlyArray<Generated>): Figures => {
  const started = Math.min(...reports.map(({ startedNs }) => startedNs))
  const seconds = (Math.max(...reports.map(({ endedNs }) => endedNs)) - started) / 1e9
  const sum = (of: (report: Generated) => number) => reports.reduce((total, report) => total + of(report), 0)
  const bytes = sum((report) => report.bytes)
  return {
    perSecond: sum((report) => report.samples ?? report.bytes / report.payload) / seconds,
    ...(bytes > 0 && { mbPerSecond: bytes / seconds / 1e6 })
  }
}

/** Resident memory of a process, and that of it which is no file's, in 10⁶ bytes. */
const memoryOf = Effect.fn("memoryOf")(function* (pid: number) {
  const fs = yield* FileSystem.FileSystem
  const status = yield* fs.readFileString(`/proc/${pid}/status`)
  const megabytes = (name: string) =>
    (Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, "m").exec(status)?.[1]) * 1024) / 1e6
  return { residentMB: megabytes("VmRSS"), anonymousMB: megabytes("RssAnon") }
})

/** CPU time that all threads of a process have had, in seconds. */
const cpuOf = Effect.fn("cpuOf")(function* (pid: number) {
  const fs = yield* FileSystem.FileSystem
  let nanoseconds = 0
  for (const task of yield* fs.readDirectory(`/proc/${pid}/task`))
    nanoseconds += Number.parseInt(yield* fs.readFileString(`/proc/${pid}/task/${task}/schedstat`), 10)
  return nanoseconds / 1e9
})

const rest = Duration.seconds(1)

const atRest = Effect.fn("atRest")(function* (entry: Entry, setting: Setting, vms: number) {
  const { options, pid } = yield* serve(entry, setting)
  const load = yield* ChildProcess.make(setting.generator, ["idle", "--idle", String(vms), ...options], {
    stdin: "pipe", // it stays until this ends
    stderr: "inherit"
  })
  const said = yield* load.stdout.pipe(Stream.decodeText, Stream.splitLines, Stream.take(1), Stream.runCollect)
  if (said[0]?.includes('"ok":true') !== true) return yield* new RunFailed({ label: entry.label, reason: `${said[0]}` })
  yield* Effect.sleep(rest)
  const before = yield* cpuOf(pid)
  yield* Effect.sleep(rest)
  const used = (yield* cpuOf(pid)) - before
  return { ...(yield* memoryOf(pid)), cores: used / Duration.toSeconds(rest) }
})

/** Starts the program over and over, on a socket it inherits. */
const start = (entry: Entry, setting: Setting, env?: Readonly<Record<string, string>>) => {
  const listen = Path.join(setting.directory, `${++sockets}.sock`)
  const args = ["start", "--socket", listen, ...setting.length.start, "--"]
  return generate(entry.label, setting, [...args, ...commandOf(entry.program, setting, undefined, "")], env)
}

const startParts = Effect.fn("startParts")(function* (entry: Entry, setting: Setting) {
  const fs = yield* FileSystem.FileSystem
  const file = Path.join(setting.directory, `${++sockets}.marks`)
  yield* start(entry, setting, { NODE_OPTIONS: `--require=${here("startMarks.cjs")}`, START_MARKS: file })
  const lines = (yield* fs.readFileString(file)).split("\n").filter(Boolean)
  const starts = yield* Effect.forEach(lines, (line) => StartParts.decode(line)).pipe(
    Effect.mapError(() => new RunFailed({ label: entry.label, reason: "a start left out a part" }))
  )
  return StartParts.medians(starts)
})

/** Measures once. The scope owns what was started. */
export const measure = (entry: Entry, setting: Setting): Measured => {
  const { load } = entry
  switch (load.kind) {
    case "at rest":
      return atRest(entry, setting, load.vms)
    case "start":
      return Effect.map(start(entry, setting), figuresOf)
    case "start's parts":
      return startParts(entry, setting)
    case "through":
      return Effect.gen(function* () {
        const { options } = yield* serve(entry, setting)
        return figuresOf(yield* generate(entry.label, setting, [...load.args, ...setting.length.load, ...options]))
      })
    case "twice":
      return Effect.gen(function* () {
        const first = yield* serve(entry, setting)
        const second = load.daemons === 2 ? yield* serve(entry, setting) : first
        const run = ({ options }: typeof first) =>
          generate(entry.label, setting, [...load.args, ...setting.length.load, ...options])
        return figuresOfBoth(yield* Effect.all([run(first), run(second)], { concurrency: 2 }))
      })
  }
}
