/** The log on a file descriptor, by default stderr: one line of logfmt a record, written before `Effect.log` returns. */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import type * as Scope from "effect/Scope"
import * as Fs from "node:fs"
import * as Logfmt from "../domain/Logfmt.ts"
import * as LogLevel from "../domain/LogLevel.ts"

/** Takes one line, without its line feed. Never throws. */
export type Sink = (line: string, level: Logfmt.Level) => void

/** A record of the log's own, made outside of any fiber. */
export const notice = (msg: string, fields: Readonly<Record<string, unknown>> = {}): string =>
  Logfmt.format({
    time: BigInt(Date.now()) * 1_000_000n,
    level: "warn",
    msg,
    pid: process.pid,
    source: "proxy",
    fields: Object.entries(fields)
  })

const isFields = (part: unknown): part is Readonly<Record<string, unknown>> =>
  typeof part === "object" && part !== null && Object.getPrototypeOf(part) === Object.prototype

const toRecord = ({ cause, fiber, logLevel, message }: Logger.Options<unknown>): Logfmt.Record => {
  const texts: Array<string> = []
  const errors = cause.reasons.length === 0 ? [] : Cause.prettyErrors(cause).map(Logfmt.toText)
  const fields: Array<[string, unknown]> = []
  for (const part of Array.isArray(message) ? (message as ReadonlyArray<unknown>) : [message]) {
    if (part instanceof Error) errors.push(Logfmt.toText(part))
    else if (isFields(part)) fields.push(...Object.entries(part))
    else texts.push(Logfmt.toText(part))
  }
  if (errors.length > 0) fields.push(["error", errors.join("; ")])
  if (Cause.hasDies(cause)) fields.push(["stack", Cause.pretty(cause)]) // a bug: where it is counts
  const { source = "proxy", ...annotations } = fiber.getRef(References.CurrentLogAnnotations)
  fields.push(...Object.entries(annotations))
  const span = fiber.cache.span
  // a span that is not exported has no number that means anything
  if (span?.sampled === true) fields.push(["trace_id", span.traceId], ["span_id", span.spanId])
  return {
    time: fiber.getRef(Clock.Clock).currentTimeNanosUnsafe(),
    level: LogLevel.label[logLevel],
    msg: texts.join(" "),
    pid: process.pid,
    source: Logfmt.toText(source),
    fields
  }
}

/**
 * The logger whose lines go to `sink`. Of what `Effect.log` is given, a plain object holds further keys, an `Error` or a
 * `Cause` becomes `error`, and everything else is part of `msg`. Annotations are keys; `source` says who speaks.
 */
export const makeLogger = (sink: Sink): Logger.Logger<unknown, void> =>
  Logger.make((options) => {
    const level = LogLevel.label[options.logLevel]
    let line: string
    try {
      line = Logfmt.format(toRecord(options))
    } catch {
      line = notice("a record could not be put into words", { level }) // getters and messages of errors may throw
    }
    sink(line, level)
  })

/** A reader of the log that has stalled may hold up the daemon for so long, in milliseconds, and once only. */
const patience = 100

const sleeper = new Int32Array(new SharedArrayBuffer(4))

/**
 * A descriptor for what `fd` is open on that does not block: on a pipe that nobody empties, on a stopped terminal. One of our
 * own, because others write to the same pipe and may not expect it of theirs.
 */
const unblock = (fd: number): number => {
  try {
    const stat = Fs.fstatSync(fd)
    // a socket cannot be opened again; Node takes stderr's out of blocking mode with the first use, until it exits
    if (stat.isSocket() && fd === 2) process.stderr.on("error", () => {})
    if (!stat.isFIFO() && !stat.isCharacterDevice()) return fd
    const { O_NOCTTY, O_NONBLOCK, O_WRONLY } = Fs.constants
    return Fs.openSync(`/proc/self/fd/${fd}`, O_WRONLY | O_NONBLOCK | O_NOCTTY)
  } catch {
    return fd // closed, or not ours to open
  }
}

/**
 * Takes a stderr that is a socket out of blocking mode again: a process that shares it has put it back by its exit, as every
 * Node does.
 */
export const unblockAgain = (): void => {
  const handle = (process.stderr as unknown as { readonly _handle?: { setBlocking?: (on: boolean) => void } })._handle
  handle?.setBlocking?.(false)
}

/** Writes lines to `fd`. What cannot be written is lost, and how much that was is the first line that gets through again. */
export const makeSink = (fd: number): Effect.Effect<Sink, never, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(
      Effect.sync(() => unblock(fd)),
      (own) => Effect.sync(() => own !== fd && Fs.closeSync(own))
    ),
    (own): Sink => {
      let lost = 0
      let stalled = false
      let torn = false // the last line that left did so in part

      const write = (line: string): boolean => {
        const bytes = Buffer.from(`${torn ? "\n" : ""}${line}\n`)
        let at = 0
        let waited = 0
        while (at < bytes.length) {
          try {
            at += Fs.writeSync(own, bytes, at)
          } catch (error) {
            const full = (error as NodeJS.ErrnoException).code === "EAGAIN"
            if (full && !stalled && waited++ < patience) {
              Atomics.wait(sleeper, 0, 0, 1)
              continue
            }
            stalled = full
            torn ||= at > 0
            return false
          }
        }
        stalled = false
        torn = false
        return true
      }

      return (line) => {
        if (lost > 0 && write(notice("log records were lost", { lost }))) lost = 0
        if (lost > 0 || !write(line)) lost++
      }
    }
  )

export interface Options {
  /** The least severe level that is logged. */
  readonly level: LogLevel.Name
  /** Where lines go, if not to stderr. */
  readonly fd?: number
}

/** Replaces Effect's loggers, and sets the level. */
export const layer = ({ fd = 2, level }: Options): Layer.Layer<never> =>
  Layer.merge(
    Logger.layer([Effect.map(makeSink(fd), makeLogger)]),
    Layer.succeed(References.MinimumLogLevel, LogLevel.severity[level])
  )
