/**
 * What a demonstration plays on: a daemon of its own, a child process as in real life, and simulated VMs, with their sockets in
 * a directory that goes with them.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FileSystem from "effect/FileSystem"
import type * as PlatformError from "effect/PlatformError"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as ChildProcess from "effect/process/ChildProcess"
import type { ChildProcessSpawner } from "effect/process/ChildProcessSpawner"
import * as Path from "node:path"
import type { SocketError } from "../sim/QemuSocket.ts"
import * as SimulatedVm from "../sim/SimulatedVm.ts"

/** The daemon did not start, or has ended by itself. */
export class DaemonEnded extends Schema.TaggedError<DaemonEnded>()("DaemonEnded", { how: Schema.String }) {
  override get message(): string {
    return `the daemon has ended by itself: ${this.how}`
  }
}

export interface Stage {
  /** For sockets, and for what processes leave; gone with the scope. */
  readonly directory: string
  /** Where the daemon listens. */
  readonly socket: string
  readonly pid: number
  /** Fails when the daemon ends, unless it was asked to. */
  readonly died: Effect.Effect<never, DaemonEnded>
  /** Asks the daemon to stop; gives its exit status. */
  readonly stop: Effect.Effect<number, PlatformError.PlatformError>
  /** Starts a VM; the scope powers it off. */
  readonly boot: (name: string, agent: "c" | "go") => Effect.Effect<SimulatedVm.SimulatedVm, SocketError, Scope.Scope>
}

/** A line of the daemon's log. Source: README.md, "Debugging". */
const record = /^time=\S+ level=(?<level>\w+) msg="(?<msg>[^"]*)"/

export interface Options {
  /** Takes a line of the daemon's stderr that is a warning, or worse. */
  readonly warn: (line: string) => Effect.Effect<void, unknown>
}

/** Starts the daemon and waits until it listens. */
export const make = Effect.fnUntraced(function* ({
  warn
}: Options): Effect.fn.Return<
  Stage,
  DaemonEnded | PlatformError.PlatformError,
  ChildProcessSpawner | FileSystem.FileSystem | Scope.Scope
> {
  const fs = yield* FileSystem.FileSystem
  const directory = yield* fs.makeTempDirectoryScoped({ prefix: "cc-proxy-demo-" })
  const socket = Path.join(directory, "proxy.sock")
  const listening = yield* Deferred.make<void>()
  let asked = false

  // in a session of its own, so that Ctrl-C does not reach it before its clients have left; the log tells when it listens
  const args = ["-socket-path", socket, "-log", "info", "-ksm", "initial"]
  const daemon = yield* ChildProcess.make(process.execPath, [...process.execArgv, process.argv[1]!, ...args], {
    stdin: "ignore",
    stdout: "ignore",
    forceKillAfter: "5 seconds"
  })
  const stderr = yield* daemon.stderr.pipe(
    Stream.decodeText,
    Stream.splitLines,
    Stream.runForEach((line) => {
      const { level, msg } = record.exec(line)?.groups ?? {}
      if (level !== "info") return warn(line)
      return msg === "listening" ? Deferred.succeed(listening, undefined) : Effect.void
    }),
    Effect.ignore, // warnings that nobody takes are no reason to end
    Effect.forkScoped
  )
  const ended = Effect.andThen(Fiber.await(stderr), daemon.exitCode) // its last words come first
  const died = Effect.matchEffect(ended, {
    onFailure: ({ cause, message }) =>
      Effect.fail(new DaemonEnded({ how: cause instanceof Error ? cause.message : message })),
    onSuccess: (status) => (asked ? Effect.never : Effect.fail(new DaemonEnded({ how: `exit status ${status}` })))
  })
  yield* Effect.raceFirst(Deferred.await(listening), died)

  return {
    directory,
    socket,
    pid: daemon.pid,
    died,
    stop: Effect.suspend(() => {
      asked = true
      return Effect.andThen(daemon.kill(), daemon.exitCode)
    }),
    boot: (name, agent) =>
      SimulatedVm.make({
        ctlPath: Path.join(directory, `${name}-ctl.sock`),
        ioPath: Path.join(directory, `${name}-io.sock`),
        agent
      })
  }
})
