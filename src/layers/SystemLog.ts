/**
 * The log of pod mode: the same records, in the system log. Goes to the journal where there is one, else to syslog through
 * the program `logger`, else to stderr, which it also falls back to when one of the former ends.
 *
 * The journal's stream socket takes a header of seven lines (identifier, unit, priority, whether lines begin with a
 * priority, and whether to forward to syslog, to the kernel's log and to the console), then one record a line. `<N>` before a
 * record is its priority, of syslog(3). Source: systemd's sd_journal_stream_fd(3) and sd-daemon(3).
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import type * as Scope from "effect/Scope"
import * as Fs from "node:fs"
import * as Net from "node:net"
import type { Writable } from "node:stream"
import type * as Logfmt from "../domain/Logfmt.ts"
import * as LogLevel from "../domain/LogLevel.ts"
import * as StderrLog from "./StderrLog.ts"

const identifier = "cc-proxy"

const priority: Readonly<Record<Logfmt.Level, number>> = { debug: 7, info: 6, warn: 4, error: 3, fatal: 2 }

/** Most bytes that wait for the system log to take them; records beyond are lost, and counted. */
const maxQueued = 1024 * 1024

/** How long the end of the daemon waits for the system log to take the last records. */
const flushTimeout = "500 millis"

const openJournal = (path: string): Effect.Effect<Writable, "unavailable"> =>
  Effect.callback((resume) => {
    const socket = Net.createConnection({ path })
    socket.once("error", () => resume(Effect.fail("unavailable")))
    socket.once("connect", () => {
      socket.unref()
      socket.resume() // nothing comes, but reading is what tells of its end
      socket.write(`${identifier}\n\n${priority.info}\n1\n0\n0\n0\n`)
      resume(Effect.succeed(socket))
    })
  })

const openLogger = (program: string): Effect.Effect<Writable, "unavailable"> =>
  Effect.flatMap(
    Effect.promise(() => import("node:child_process")),
    ({ spawn }) =>
      Effect.callback((resume) => {
        const args = ["--prio-prefix", "--priority", "daemon.info", "--tag", identifier, `--id=${process.pid}`]
        // in a session of its own, so that a signal to our process group leaves it to log our last words
        const child = spawn(program, [...args, "--size", "64KiB"], {
          detached: true,
          stdio: ["pipe", "ignore", "ignore"]
        })
        child.once("error", () => resume(Effect.fail("unavailable")))
        child.once("spawn", () => {
          child.unref()
          child.once("exit", () => child.stdin.destroy())
          resume(Effect.succeed(child.stdin))
        })
      })
  )

/** Lines for `stream` while it lasts; then for `fallback`. */
const makeSink = (stream: Writable, fallback: StderrLog.Sink): Effect.Effect<StderrLog.Sink, never, Scope.Scope> => {
  let ended = false
  let lost = 0
  const ends = () => {
    if (ended) return
    ended = true
    fallback(StderrLog.notice("the system log has ended, logging to stderr"), "warn")
  }
  const write = (line: string, level: Logfmt.Level) => void stream.write(`<${priority[level]}>${line}\n`)
  const tellLost = () => {
    if (lost > 0) write(StderrLog.notice("log records were lost", { lost }), "warn")
    lost = 0
  }
  const sink: StderrLog.Sink = (line, level) => {
    if (ended) return fallback(line, level)
    if (stream.writableLength > maxQueued) {
      lost++
      return
    }
    tellLost()
    write(line, level)
  }
  return Effect.acquireRelease(
    Effect.sync(() => {
      stream.on("error", ends)
      stream.on("close", ends)
      if (stream.destroyed) ends()
      return sink
    }),
    () =>
      Effect.callback<void>((resume) => {
        ended = true
        if (stream.destroyed) return resume(Effect.void)
        tellLost()
        stream.once("close", () => resume(Effect.void))
        stream.end(() => resume(Effect.void))
      }).pipe(Effect.timeoutOption(flushTimeout), Effect.andThen(Effect.sync(() => stream.destroy())))
  )
}

export interface Options extends StderrLog.Options {
  /** The journal's stream socket. */
  readonly journal?: string
  /** The socket of syslog: without it, `logger` succeeds and drops everything. */
  readonly syslog?: string
  /** util-linux's `logger`: a path, or a name to look for on PATH. */
  readonly program?: string
}

/** Replaces Effect's loggers, and sets the level. Never fails: a missing system log is one warning on stderr. */
export const layer = ({
  fd = 2,
  journal = "/run/systemd/journal/stdout",
  level,
  program = "logger",
  syslog = "/dev/log"
}: Options): Layer.Layer<never> =>
  Layer.merge(
    Logger.layer([
      Effect.gen(function* () {
        const stderr = yield* StderrLog.makeSink(fd)
        const stream = yield* openJournal(journal).pipe(
          Effect.catch(() => (Fs.existsSync(syslog) ? openLogger(program) : Effect.fail("unavailable" as const))),
          Effect.option
        )
        if (stream._tag === "Some") return StderrLog.makeLogger(yield* makeSink(stream.value, stderr))
        const logger = StderrLog.makeLogger(stderr)
        yield* Effect.logWarning("there is no system log, logging to stderr").pipe(
          Effect.provideService(Logger.CurrentLoggers, new Set([logger])),
          Effect.provideService(References.MinimumLogLevel, LogLevel.severity[level])
        )
        return logger
      })
    ]),
    Layer.succeed(References.MinimumLogLevel, LogLevel.severity[level])
  )
