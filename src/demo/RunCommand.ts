/**
 * One command in a simulated VM, with our standard streams or our terminal as its own: what a runtime and a shim do for
 * `docker run`.
 */
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import * as Terminal from "effect/Terminal"
import * as Client from "../client/index.ts"
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

const environment = (directory: string) => [
  { env: "HOME", value: directory },
  ...handedOn.flatMap((env) => {
    const value = process.env[env]
    return value === undefined ? [] : [{ env, value }]
  })
]

/** Keys reach us one by one and as they are, as long as the scope lives. */
const rawMode: Effect.Effect<void, never, Scope.Scope> = Effect.asVoid(
  Effect.acquireRelease(
    Effect.sync(() => process.stdin.setRawMode(true)),
    () => Effect.sync(() => process.stdin.setRawMode(false))
  )
)

/** A new terminal has no size. The shim sends ours once the process runs; the command begins when it is there. */
const awaitSize = `while case $(stty size) in *" 0") ;; *) false ;; esac; do :; done; exec "$0" "$@"`

/** Runs a command; gives its exit status. Signals are handed on to it, unless it has a terminal: then they end everything. */
export const run = Effect.fn("RunCommand.run")(function* (
  { command, interactive, terminal }: Options,
  signals: Queue.Dequeue<Signals.Signal>
) {
  if (terminal && !process.stdin.isTTY) return yield* new NoTerminal()
  const { stdin } = yield* Stdio.Stdio
  let handOn: ((signal: number) => Effect.Effect<void, unknown>) | undefined

  const obey = Effect.gen(function* () {
    for (;;) {
      const signal = yield* Queue.take(signals)
      if (handOn === undefined) return yield* new Signals.Stopped({ signal })
      // not waited for: the response stands behind output, and that behind whoever reads ours
      yield* handOn(Signals.numberOf(signal)).pipe(Effect.ignore, Effect.forkScoped)
    }
  })

  const session = Effect.gen(function* () {
    const stage = yield* Stage.make
    // the Go agent's: it waits for a process that is slow to read
    const vm = yield* stage.boot("vm", "go")
    const play = Effect.gen(function* () {
      const runtime = yield* Client.connect(stage.socket)
      const { tokens, url } = yield* Client.registerVM(runtime, {
        containerId: "pod",
        ctlSerial: vm.ctlPath,
        ioSerial: vm.ioPath,
        numIOStreams: 1
      })
      const token = tokens[0]!
      const shim = yield* Client.connectShim(yield* Client.connect(url), token)

      const sizes = terminal ? yield* (yield* Terminal.Terminal).size : undefined
      const size = sizes === undefined ? undefined : yield* Queue.take(sizes)
      const sized = size !== undefined && size.columns > 0 && size.rows > 0
      if (terminal) yield* rawMode
      yield* Client.newContainer(runtime, {
        token,
        data: {
          id: "container",
          process: {
            args: sized ? ["sh", "-c", awaitSize, ...command] : command,
            envs: environment(stage.directory),
            workdir: process.cwd(),
            terminal
          }
        }
      })
      if (sized) yield* shim.resize(size.columns, size.rows)
      if (sizes !== undefined)
        yield* Queue.take(sizes).pipe(
          Effect.flatMap(({ columns, rows }) => Effect.ignore(shim.resize(columns, rows))),
          Effect.forever,
          Effect.forkScoped
        )
      if (!terminal) handOn = shim.signal

      const wanted = terminal || interactive || !process.stdin.isTTY
      yield* (wanted ? Stream.runForEach(stdin, shim.stdin) : Effect.void).pipe(
        Effect.ignore, // a terminal that hung up ends too; a lost connection is told by the exit status
        Effect.andThen(shim.endStdin),
        Effect.ignore,
        Effect.forkScoped
      )
      yield* Stream.runForEach(shim.output, ({ data, stream }) => OwnStreams.write(stream, data))
      const status = yield* Effect.mapError(shim.exitStatus, ({ message }) => new StatusLost({ reason: message }))
      yield* shim.disconnect
      yield* Client.unregisterVM(runtime, { containerId: "pod" })
      return status
    })
    return yield* Effect.raceFirst(play, stage.died)
  })
  return yield* Effect.raceFirst(session, obey)
}, Effect.scoped)
