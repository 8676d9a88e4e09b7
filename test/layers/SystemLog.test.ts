import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fs from "node:fs"
import * as Net from "node:net"
import * as Os from "node:os"
import * as Path from "node:path"
import * as SystemLog from "../../src/layers/SystemLog.ts"
import { parse } from "../support/e2e/Logfmt.ts"

const directory = Effect.acquireRelease(
  Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "system-log-"))),
  (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true }))
)

/** Where the log finds nothing, and a file in the place of stderr. */
const places = Effect.gen(function* () {
  const path = yield* directory
  const stderr = Path.join(path, "stderr")
  const fd = yield* Effect.acquireRelease(
    Effect.sync(() => Fs.openSync(stderr, "a")),
    (fd) => Effect.sync(() => Fs.closeSync(fd))
  )
  return {
    path,
    options: {
      level: "info",
      fd,
      journal: Path.join(path, "journal"),
      syslog: Path.join(path, "syslog"),
      program: Path.join(path, "logger")
    },
    stderr: () => Fs.readFileSync(stderr, "utf8").split("\n").filter(Boolean)
  } as const
})

const msg = (line: string) => parse(line).get("msg")

/** A journal that takes one stream: its connection, and all of its text once it has ended. */
const journal = (path: string) =>
  Effect.gen(function* () {
    const connected = yield* Deferred.make<Net.Socket>()
    const ended = yield* Deferred.make<ReadonlyArray<string>>()
    yield* Effect.acquireRelease(
      Effect.callback<Net.Server>((resume) => {
        const server = Net.createServer((socket) => {
          let text = ""
          socket.on("data", (data) => (text += String(data)))
          socket.on("error", () => {})
          socket.on("end", () => Deferred.doneUnsafe(ended, Effect.succeed(text.split("\n"))))
          Deferred.doneUnsafe(connected, Effect.succeed(socket))
        })
        server.listen(path, () => resume(Effect.succeed(server)))
      }),
      (server) => Effect.sync(() => server.close())
    )
    return { connected: Deferred.await(connected), lines: Deferred.await(ended) }
  })

describe("SystemLog", () => {
  it.live("writes the journal's header, then records with their priority", () =>
    Effect.gen(function* () {
      const { options, stderr } = yield* places
      const { lines } = yield* journal(options.journal)
      yield* Effect.forEach(["Debug", "Info", "Warn", "Error", "Fatal"] as const, (level) =>
        Effect.logWithLevel(level)(level, { vm: "a\nb" })
      ).pipe(Effect.provide(SystemLog.layer({ ...options, level: "debug" })))
      const [identifier, unit, priority, prefixed, syslog, kernel, console, ...records] = yield* lines
      assert.deepStrictEqual(
        [identifier, unit, priority, prefixed, syslog, kernel, console],
        ["cc-proxy", "", "6", "1", "0", "0", "0"]
      )
      assert.strictEqual(records.pop(), "")
      assert.deepStrictEqual(
        records.map((line) => line.slice(0, 3)),
        ["<7>", "<6>", "<4>", "<3>", "<2>"]
      )
      for (const record of records) assert.strictEqual(parse(record.slice(3)).get("vm"), "a\nb")
      assert.deepStrictEqual(stderr(), [])
    })
  )

  it.live("goes on on stderr, with one warning, when the journal ends", () =>
    Effect.gen(function* () {
      const { options, stderr } = yield* places
      const { connected } = yield* journal(options.journal)
      yield* Effect.gen(function* () {
        yield* Effect.logInfo("first")
        const socket = yield* connected
        socket.destroy()
        while (stderr().length === 0) yield* Effect.yieldNow
        yield* Effect.logInfo("second")
        yield* Effect.logInfo("third")
      }).pipe(Effect.provide(SystemLog.layer(options)))
      assert.deepStrictEqual(stderr().map(msg), ["the system log has ended, logging to stderr", "second", "third"])
    })
  )

  it.live("does not wait for ever for a journal that does not read", () =>
    Effect.gen(function* () {
      const { options, stderr } = yield* places
      const server = yield* journal(options.journal)
      const start = performance.now()
      yield* Effect.gen(function* () {
        const socket = yield* server.connected
        socket.pause()
        yield* Effect.forEach(Array.from({ length: 3000 }), () => Effect.logInfo("x".repeat(1000)), { discard: true })
      }).pipe(Effect.provide(SystemLog.layer(options)))
      assert.isBelow(performance.now() - start, 4000)
      assert.deepStrictEqual(stderr(), [])
    })
  )

  it.live("counts what the journal was too slow for, and tells it once it has caught up", () =>
    Effect.gen(function* () {
      const { options } = yield* places
      const server = yield* journal(options.journal)
      const lost = "log records were lost"
      let given = 3000
      yield* Effect.gen(function* () {
        const socket = yield* server.connected
        socket.pause()
        yield* Effect.forEach(Array.from({ length: given }), () => Effect.logInfo("x".repeat(1000)), { discard: true })
        const told = yield* Deferred.make<void>()
        socket.on("data", (data) => String(data).includes(lost) && Deferred.doneUnsafe(told, Effect.void))
        socket.resume()
        for (; !(yield* Deferred.isDone(told)); given++) {
          yield* Effect.logInfo("more")
          yield* Effect.yieldNow
        }
      }).pipe(Effect.provide(SystemLog.layer(options)))
      const lines = yield* server.lines
      const records = lines.slice(7, -1).map((line) => parse(line.slice(3)))
      const notices = records.filter((record) => record.get("msg") === lost)
      const total = notices.reduce((sum, notice) => sum + Number(notice.get("lost")), 0)
      assert.isAbove(total, 0)
      assert.strictEqual(records.length - notices.length + total, given)
    })
  )

  /** A program in the place of `logger`, and the socket of syslog, which is only looked at. */
  const program = (options: { readonly program: string; readonly syslog: string }, script: string) =>
    Effect.sync(() => {
      Fs.writeFileSync(options.program, `#!/bin/sh\n${script}\n`, { mode: 0o755 })
      Fs.writeFileSync(options.syslog, "")
    })

  /** What `file` holds once it is there. */
  const contents = (path: string) =>
    Effect.callback<string>((resume) => {
      const look = () => {
        if (Fs.existsSync(path)) resume(Effect.sync(() => Fs.readFileSync(path, "utf8")))
      }
      const watcher = Fs.watch(Path.dirname(path), look)
      look()
      return Effect.sync(() => watcher.close())
    })

  it.live("goes through logger where there is no journal but a syslog", () =>
    Effect.gen(function* () {
      const { options, path, stderr } = yield* places
      yield* program(options, `{ echo "$@"; cat; } > ${path}/part; mv ${path}/part ${path}/whole`)
      yield* Effect.gen(function* () {
        yield* Effect.logInfo("first")
        yield* Effect.logError("second")
      }).pipe(Effect.provide(SystemLog.layer(options)))
      const [args, first, second, end] = (yield* contents(Path.join(path, "whole"))).split("\n")
      assert.strictEqual(args, `--prio-prefix --priority daemon.info --tag cc-proxy --id=${process.pid} --size 64KiB`)
      assert.strictEqual(msg(first!.replace(/^<6>/, "")), "first")
      assert.strictEqual(msg(second!.replace(/^<3>/, "")), "second")
      assert.strictEqual(end, "")
      assert.deepStrictEqual(stderr(), [])
    })
  )

  it.live("goes on on stderr when logger ends", () =>
    Effect.gen(function* () {
      const { options, stderr } = yield* places
      yield* program(options, "exit 1")
      yield* Effect.gen(function* () {
        while (stderr().length === 0) yield* Effect.yieldNow
        yield* Effect.logInfo("after")
      }).pipe(Effect.provide(SystemLog.layer(options)))
      assert.deepStrictEqual(stderr().map(msg), ["the system log has ended, logging to stderr", "after"])
    })
  )

  const withoutSystemLog = ["there is no system log, logging to stderr", "after"]

  it.live("warns once on stderr where there is nothing, and logs there", () =>
    Effect.gen(function* () {
      const { options, stderr } = yield* places
      yield* Effect.logInfo("after").pipe(Effect.provide(SystemLog.layer(options)))
      assert.deepStrictEqual(stderr().map(msg), withoutSystemLog)
    })
  )

  it.live("does not take a logger without a syslog for a system log: it would drop everything", () =>
    Effect.gen(function* () {
      const { options, stderr } = yield* places
      yield* program(options, "cat > /dev/null")
      Fs.rmSync(options.syslog)
      yield* Effect.logInfo("after").pipe(Effect.provide(SystemLog.layer(options)))
      assert.deepStrictEqual(stderr().map(msg), withoutSystemLog)
    })
  )

  it.live("does not fail where logger cannot be run", () =>
    Effect.gen(function* () {
      const { options, stderr } = yield* places
      Fs.writeFileSync(options.syslog, "")
      Fs.writeFileSync(options.program, "", { mode: 0o644 })
      yield* Effect.logInfo("after").pipe(Effect.provide(SystemLog.layer(options)))
      assert.deepStrictEqual(stderr().map(msg), withoutSystemLog)
    })
  )

  it.live("keeps its warning to itself below the level", () =>
    Effect.gen(function* () {
      const { options, stderr } = yield* places
      yield* Effect.logError("after").pipe(Effect.provide(SystemLog.layer({ ...options, level: "error" })))
      assert.deepStrictEqual(stderr().map(msg), ["after"])
    })
  )
})
