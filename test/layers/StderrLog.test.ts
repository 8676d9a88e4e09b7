import { assert, describe, it } from "@effect/vitest"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as TestClock from "effect/testing/TestClock"
import * as Tracer from "effect/Tracer"
import { type ChildProcess, execFileSync, spawn } from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import * as StderrLog from "../../src/layers/StderrLog.ts"
import { parse } from "../support/e2e/Logfmt.ts"

const records = (text: string): ReadonlyArray<Readonly<Record<string, string>>> =>
  text
    .split("\n")
    .filter(Boolean)
    .map((line) => Object.fromEntries(parse(line)))

const directory = Effect.acquireRelease(
  Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "stderr-log-"))),
  (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true }))
)

const opened = (path: string, flags: string | number) =>
  Effect.acquireRelease(
    Effect.sync(() => Fs.openSync(path, flags)),
    (fd) => Effect.sync(() => Fs.closeSync(fd))
  )

/** What `program` logs to a file. */
const logged = (program: Effect.Effect<unknown>, level: StderrLog.Options["level"] = "debug") =>
  Effect.gen(function* () {
    const path = Path.join(yield* directory, "log")
    const fd = yield* opened(path, "a")
    yield* Effect.provide(program, StderrLog.layer({ level, fd }))
    return records(Fs.readFileSync(path, "utf8"))
  })

class VmGone extends Data.TaggedError("VmGone")<{ readonly message: string }> {}

describe("StderrLog", () => {
  it.effect("writes a record before Effect.log returns", () =>
    Effect.gen(function* () {
      const path = Path.join(yield* directory, "log")
      const fd = yield* opened(path, "a")
      yield* Effect.gen(function* () {
        yield* Effect.logInfo("RegisterVM")
        assert.lengthOf(records(Fs.readFileSync(path, "utf8")), 1)
      }).pipe(Effect.provide(StderrLog.layer({ level: "info", fd })))
    })
  )

  it.effect("says when, how grave, who, and what the clock, the caller and the annotations know", () =>
    Effect.gen(function* () {
      yield* TestClock.adjust("90061 millis")
      const [record] = yield* logged(
        Effect.logWarning("process", "exited", { status: 7, container: 'c"1' }).pipe(
          Effect.annotateLogs({ vm: "pod\n1", client: undefined })
        )
      )
      assert.deepStrictEqual(record, {
        time: "1970-01-01T00:01:30.061000000Z",
        level: "warn",
        msg: "process exited",
        name: "cc-proxy",
        pid: String(process.pid),
        source: "proxy",
        status: "7",
        container: 'c"1',
        vm: "pod\n1"
      })
    })
  )

  it.effect("lets an annotation say that somebody else speaks", () =>
    Effect.gen(function* () {
      const [record] = yield* logged(Effect.logInfo("booting").pipe(Effect.annotateLogs({ source: "qemu" })))
      assert.strictEqual(record!["source"], "qemu")
    })
  )

  it.effect("tells errors and causes in one line each, and where a bug is", () =>
    Effect.gen(function* () {
      const failure = new VmGone({ message: "pod 1 is\ngone" })
      const [given, failed, both, died, interrupted] = yield* logged(
        Effect.gen(function* () {
          yield* Effect.logError("cannot send", failure)
          yield* Effect.fail(failure).pipe(Effect.catchCause((cause) => Effect.logError("cannot send", cause)))
          yield* Effect.fail(failure).pipe(Effect.catchCause((cause) => Effect.logError(new RangeError("7"), cause)))
          yield* Effect.die(new TypeError("oops")).pipe(Effect.catchCause((cause) => Effect.logError(cause)))
          yield* Effect.exit(Effect.interrupt).pipe(
            Effect.flatMap((exit) => (exit._tag === "Failure" ? Effect.logError("stopped", exit.cause) : Effect.void))
          )
        })
      )
      assert.strictEqual(given!["error"], "VmGone: pod 1 is\ngone")
      assert.strictEqual(failed!["error"], "VmGone: pod 1 is\ngone")
      assert.strictEqual(failed!["msg"], "cannot send")
      assert.isUndefined(failed!["stack"])
      assert.strictEqual(both!["error"], "VmGone: pod 1 is\ngone; RangeError: 7")
      assert.strictEqual(died!["error"], "TypeError: oops")
      assert.include(died!["stack"]!, "StderrLog.test.ts")
      assert.strictEqual(interrupted!["msg"], "stopped")
    })
  )

  it.effect("logs from its level upwards", () =>
    Effect.gen(function* () {
      const everything = Effect.forEach(["Debug", "Info", "Warn", "Error", "Fatal"] as const, (level) =>
        Effect.logWithLevel(level)("x")
      )
      const levels = (level: StderrLog.Options["level"]) =>
        Effect.map(logged(everything, level), (all) => all.map((record) => record["level"]))
      assert.deepStrictEqual(yield* levels("debug"), ["debug", "info", "warn", "error", "fatal"])
      assert.deepStrictEqual(yield* levels("info"), ["info", "warn", "error", "fatal"])
      assert.deepStrictEqual(yield* levels("warning"), ["warn", "error", "fatal"])
      assert.deepStrictEqual(yield* levels("error"), ["error", "fatal"])
      assert.deepStrictEqual(yield* levels("panic"), ["fatal"])
    })
  )

  it.effect("names the current span, if it is one that is exported", () =>
    Effect.gen(function* () {
      const span = Tracer.externalSpan({ traceId: "a".repeat(32), spanId: "b".repeat(16) })
      const [none, current, off] = yield* logged(
        Effect.gen(function* () {
          yield* Effect.logInfo("outside")
          yield* Effect.logInfo("inside").pipe(Effect.withParentSpan(span))
          yield* Effect.logInfo("off").pipe(Effect.withSpan("off"), Effect.withTracerEnabled(false))
        })
      )
      assert.notProperty(none, "trace_id")
      assert.strictEqual(current!["trace_id"], "a".repeat(32))
      assert.strictEqual(current!["span_id"], "b".repeat(16))
      assert.notProperty(off, "trace_id")
    })
  )

  it.effect("survives what cannot be put into words", () =>
    Effect.gen(function* () {
      const hostile = new Error()
      Object.defineProperty(hostile, "message", {
        get: () => {
          throw new Error("no")
        }
      })
      const [strange, after] = yield* logged(
        Effect.logError("x", hostile).pipe(Effect.andThen(Effect.logInfo("after")))
      )
      assert.strictEqual(strange!["msg"], "a record could not be put into words")
      assert.strictEqual(after!["msg"], "after")
    })
  )

  it.effect("survives a descriptor that is closed, and one that is full", () =>
    Effect.gen(function* () {
      const full = yield* opened("/dev/full", "w")
      for (const fd of [99_999, full])
        yield* Effect.logInfo("lost").pipe(Effect.provide(StderrLog.layer({ level: "info", fd })))
    })
  )

  describe("on a pipe", () => {
    const { O_NONBLOCK, O_RDONLY, O_WRONLY } = Fs.constants
    const pipe = Effect.gen(function* () {
      const path = Path.join(yield* directory, "pipe")
      execFileSync("mkfifo", [path])
      const reader = yield* opened(path, O_RDONLY | O_NONBLOCK)
      return { reader, writer: yield* opened(path, O_WRONLY | O_NONBLOCK) }
    })
    /** Everything that is in the pipe. */
    const drain = (reader: number): string => {
      const chunk = Buffer.alloc(1024 * 1024)
      let text = ""
      try {
        for (let read = -1; read !== 0; text += chunk.toString("utf8", 0, read)) read = Fs.readSync(reader, chunk)
      } catch {
        // empty for now
      }
      return text
    }

    it.effect("that nobody empties, loses records and says how many once it is emptied", () =>
      Effect.gen(function* () {
        const { reader, writer } = yield* pipe
        const sink = yield* StderrLog.makeSink(writer)
        const line = (n: number) => `n=${n} pad=${"x".repeat(10_000)}` // longer than what a pipe takes whole
        const total = 100
        const start = performance.now()
        for (let n = 0; n < total; n++) sink(line(n), "info")
        // waits for the reader once, and not for each record
        assert.isBelow(performance.now() - start, 3000)

        const before = drain(reader).split("\n")
        const part = before.pop()!
        assert.deepStrictEqual(
          before,
          before.map((_, n) => line(n))
        )
        sink(line(total), "info")
        // what was cut off ends before the next record begins
        const [rest, notice, next] = (part + drain(reader)).split("\n")
        assert.isAbove(rest!.length, 0)
        assert.isTrue(line(before.length).startsWith(rest!))
        assert.strictEqual(parse(notice!).get("msg"), "log records were lost")
        assert.strictEqual(parse(notice!).get("lost"), String(total - before.length))
        assert.strictEqual(next, line(total))
      })
    )

    it.effect("that nobody reads any more, goes on", () =>
      Effect.gen(function* () {
        const path = Path.join(yield* directory, "pipe")
        execFileSync("mkfifo", [path])
        const reader = Fs.openSync(path, O_RDONLY | O_NONBLOCK)
        const writer = yield* opened(path, O_WRONLY)
        const sink = yield* StderrLog.makeSink(writer)
        sink("msg=first", "info")
        Fs.closeSync(reader)
        sink("msg=second", "info") // EPIPE
        const again = yield* opened(path, O_RDONLY | O_NONBLOCK)
        sink("msg=third", "info")
        const [notice, third] = drain(again).split("\n").slice(-3)
        assert.strictEqual(parse(notice!).get("lost"), "1")
        assert.strictEqual(third, "msg=third")
      })
    )

    const flood = `
      import * as Effect from "effect/Effect"
      import * as StderrLog from ${JSON.stringify(new URL("../../src/layers/StderrLog.ts", import.meta.url).href)}
      process.stdin.once("data", () => {
        Effect.runSync(
          Effect.scoped(
            Effect.forEach(Array.from({ length: 2000 }), () => Effect.logInfo("x".repeat(1000)), { discard: true }).pipe(
              Effect.provide(StderrLog.layer({ level: "info" }))
            )
          )
        )
        process.stdout.end("alive")
        process.stdin.destroy()
      })
      process.stdout.write("up")`

    /** Runs `flood` on `stderr`, which it may see as the parent's end of a socket. */
    const survives = (stderr: "pipe" | number, prepare: (child: ChildProcess) => void) =>
      Effect.callback<void>((resume) => {
        const child = spawn(process.execPath, ["--input-type=module", "-e", flood], { stdio: ["pipe", "pipe", stderr] })
        prepare(child)
        let output = ""
        child.stdout!.on("data", (data) => {
          output += String(data)
          if (output === "up") child.stdin!.write("go")
        })
        child.stdout!.once("end", () => resume(Effect.sync(() => assert.strictEqual(output, "upalive"))))
        return Effect.sync(() => child.kill("SIGKILL"))
      })

    it.live(
      "lets the daemon live when nobody empties stderr, a pipe",
      () =>
        Effect.gen(function* () {
          const path = Path.join(yield* directory, "pipe")
          execFileSync("mkfifo", [path])
          yield* opened(path, O_RDONLY | O_NONBLOCK)
          yield* survives(yield* opened(path, O_WRONLY), () => {})
        }),
      20_000
    )

    it.live(
      "lets the daemon live when nobody empties stderr, a socket",
      () => survives("pipe", (child) => child.stderr!.pause()),
      20_000
    )

    it.live(
      "lets the daemon live when stderr's reader has left",
      () => survives("pipe", (child) => child.stderr!.destroy()),
      20_000
    )
  })
})
