/**
 * One command in a simulated VM, with our standard streams or our terminal as its own: what a runtime and a shim do for
 * `docker run`.
 */
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Schema from "effect/Schema"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import * as Terminal from "effect/Terminal"
import * as ChildProcess from "node:child_process"
import * as Client from "../client/index.ts"
import type { SimulatedVm } from "../sim/SimulatedVm.ts"
import * as OwnStreams from "./OwnStreams.ts"
import * as Signals from "./Signals.ts"
import * as Stage from "./Stage.ts"

/** There is no terminal to be the command's. */
export class NoTerminal extends Schema.TaggedError<NoTerminal>()("NoTerminal", {}) {
  override get message(): string {
    return "-t gives the command our terminal, but stdin is not a terminal"
  }
}

/** The process's exit status will never be known. */
export class StatusLost extends Schema.TaggedError<StatusLost>()("StatusLost", { reason: Schema.String }) {
  override get message(): string {
    return `no exit status: ${this.reason}`
  }
}

export interface Options {
  readonly command: ReadonlyArray<string>
  /** Whether stdin is handed on even where it is a terminal. */
  readonly interactive: boolean
  /** Whether the command gets a terminal. */
  readonly terminal: boolean
}

/** What a process has to know of our terminal, and of our language. */
const handedOn = ["TERM", "LANG", "LC_ALL", "LC_CTYPE"]

const environment = (home: string) => [
  { env: "HOME", value: home },
  ...handedOn.flatMap((env) => {
    const value = process.env[env]
    return value === undefined ? [] : [{ env, value }]
  })
]

/** A new terminal has no size. The shim sends ours once the process runs; the command begins when it is there. */
const awaitSize = `while case $(stty size) in *" 0") ;; *) false ;; esac; do :; done; exec "$0" "$@"`

interface OwnTerminal {
  /** Absent where nobody knows. */
  readonly size: Terminal.Size | undefined
  /** Those that follow. */
  readonly sizes: Queue.Dequeue<Terminal.Size, Cause.Done>
}

/** Takes our terminal: as long as the scope lives, keys come one by one and as they are. */
const takeTerminal = Effect.gen(function* () {
  const sizes = yield* (yield* Terminal.Terminal).size
  const size = yield* Queue.take(sizes)
  yield* Effect.acquireRelease(
    Effect.sync(() => {
      process.stdin.setRawMode(true)
      // what Node leaves on: each LF we write would become CR LF, and programs that draw mean LF
      ChildProcess.execFileSync("stty", ["-opost"], { stdio: ["inherit", "ignore", "ignore"] })
    }),
    () => Effect.sync(() => process.stdin.setRawMode(false))
  )
  return { size: size.columns > 0 && size.rows > 0 ? size : undefined, sizes } satisfies OwnTerminal
})

/** Hands stdin on, and its end. */
const feed = Effect.fnUntraced(function* (shim: Client.Shim, wanted: boolean) {
  const { stdin } = yield* Stdio.Stdio
  if (wanted) yield* Effect.ignore(Stream.runForEach(stdin, shim.stdin)) // a terminal that hangs up ends stdin too
  yield* Effect.ignore(shim.endStdin) // a lost connection is told by the exit status
})

/** What agents report for something that could not be executed. */
const startFailed: ReadonlySet<number> = new Set([125, 126, 127])

/** Hands the process's output on; gives its exit status. */
const drain = Effect.fnUntraced(function* (shim: Client.Shim, { command: [program], terminal }: Options) {
  let silent = true
  yield* Stream.runForEach(shim.output, ({ data, stream }) => {
    silent = false
    return OwnStreams.write(stream, data)
  })
  const status = yield* shim.exitStatus
  if (silent && !terminal && startFailed.has(status)) {
    const hint = `cc-proxy: exit status ${status}, and not a word: is ${program} a program?\n`
    yield* OwnStreams.write("stderr", hint)
  }
  return status
})

/** Plays the runtime, and then the shim, until the process has ended. */
const play = Effect.fnUntraced(function* (
  options: Options,
  stage: Stage.Stage,
  vm: SimulatedVm,
  onStart: (shim: Client.Shim) => void
) {
  const { command, interactive } = options
  const containerId = "pod"
  const runtime = yield* Client.connect(stage.socket)
  const { tokens, url } = yield* Client.registerVM(runtime, {
    containerId,
    ctlSerial: vm.ctlPath,
    ioSerial: vm.ioPath,
    numIOStreams: 1
  })
  const token = tokens[0]!
  const shim = yield* Client.connectShim(yield* Client.connect(url), token)
  const terminal = options.terminal ? yield* takeTerminal : undefined
  const size = terminal?.size
  yield* Client.newContainer(runtime, {
    token,
    data: {
      id: "container",
      process: {
        args: size === undefined ? command : ["sh", "-c", awaitSize, ...command],
        envs: environment(stage.directory),
        workdir: process.cwd(),
        terminal: options.terminal
      }
    }
  })
  onStart(shim)
  if (size !== undefined) yield* shim.resize(size.columns, size.rows)
  if (terminal !== undefined)
    yield* Queue.take(terminal.sizes).pipe(
      Effect.flatMap(({ columns, rows }) => Effect.ignore(shim.resize(columns, rows))),
      Effect.forever,
      Effect.forkScoped
    )
  yield* Effect.forkScoped(feed(shim, options.terminal || interactive || !process.stdin.isTTY))
  const status = yield* Effect.catchTag(drain(shim, options), "ConnectionClosed", ({ message }) =>
    Effect.raceFirst(
      Effect.map(vm.stopped, (end) => `the VM has ended: ${end}`),
      stage.died
    ).pipe(
      Effect.timeoutOrElse({ duration: "1 second", orElse: () => Effect.succeed(message) }),
      Effect.flatMap((reason) => new StatusLost({ reason }))
    )
  )
  yield* shim.disconnect
  yield* Client.unregisterVM(runtime, { containerId })
  return status
})

/** Runs a command; gives its exit status. Signals are handed on to it, unless it has a terminal: then they end everything. */
export const run = Effect.fn("RunCommand.run")(function* (options: Options, signals: Queue.Dequeue<Signals.Signal>) {
  if (options.terminal && !process.stdin.isTTY) return yield* new NoTerminal()
  const warnings: Array<string> = []
  let shim: Client.Shim | undefined

  const session = Effect.gen(function* () {
    const stage = yield* Stage.make({ warn: (line) => Effect.sync(() => void warnings.push(line)) })
    const vm = yield* stage.boot("vm", "go") // the agent that waits for a process which is slow to read
    const started = play(options, stage, vm, (started) => {
      if (!options.terminal) shim = started
    })
    return yield* Effect.raceFirst(started, stage.died)
  })
  const obey = Effect.gen(function* () {
    for (;;) {
      const signal = yield* Queue.take(signals)
      if (shim === undefined) return yield* new Signals.Stopped({ signal })
      // not waited for: the response stands behind output, and that behind whoever reads ours
      yield* shim.signal(Signals.numberOf(signal)).pipe(Effect.ignore, Effect.forkScoped)
    }
  })
  return yield* Effect.raceFirst(session, obey).pipe(
    Effect.scoped,
    // without a failure of its own they would only stand between the command's lines
    Effect.tapErrorTag(["DaemonEnded", "StatusLost", "CommandFailed"], () =>
      Effect.ignore(OwnStreams.write("stderr", warnings.map((line) => `${line}\n`).join("")))
    )
  )
})
