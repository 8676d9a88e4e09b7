/** Flags, environment, signals and sockets: the daemon as a process. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { spawnSync } from "node:child_process"
import * as Fs from "node:fs"
import * as Net from "node:net"
import * as Path from "node:path"
import * as DaemonProcess from "../support/e2e/DaemonProcess.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import * as RawClient from "../support/e2e/RawClient.ts"
import * as Scenario from "../support/e2e/Scenario.ts"
import { until } from "../support/e2e/Wait.ts"

const { accepted, answers, hyper, running, unregister } = Scenario

/** Runs the program until it ends by itself. */
const finish = (args: ReadonlyArray<string>, options: DaemonProcess.Options = {}) =>
  Effect.gen(function* () {
    const child = yield* DaemonProcess.run(args, options)
    const { code } = yield* child.ended()
    return { code, stdout: child.stdout, stderr: child.stderr }
  })

/** The levels at which a daemon with these flags logs. */
const levelsLogged = (args: ReadonlyArray<string>, env: Readonly<Record<string, string>> = {}) =>
  Effect.gen(function* () {
    const { child, connect } = yield* DaemonProcess.start({ args, env })
    const client = yield* connect
    const levels = ["debug", "info", "warn", "error"]
    client.send(...levels.map((level) => Raw.logEntry({ source: "shim", level, msg: "probe" })))
    yield* client.request(Raw.Op.attachVM, { containerId: "nobody's" })
    yield* child.stop()
    const probes = child.log.filter((record) => record.get("msg") === "probe")
    return probes.map((record) => record.get("level")?.replace("warning", "warn"))
  })

/** What Node has loaded when a daemon that has answered stops: the program's files by name, and modules of Node's own. */
const loaded = Effect.gen(function* () {
  const directory = yield* DaemonProcess.temporaryDirectory
  const [probe, report] = [Path.join(directory, "probe.cjs"), Path.join(directory, "report.json")]
  Fs.writeFileSync(
    probe,
    `process.once("exit", () => {
      const loaded = { files: Object.keys(require.cache), modules: process.moduleLoadList }
      require("node:fs").writeFileSync(${JSON.stringify(report)}, JSON.stringify(loaded))
    })`
  )
  const daemon = yield* DaemonProcess.start({ env: { NODE_OPTIONS: `--require=${probe}` } })
  const client = yield* daemon.connect
  yield* client.request(Raw.Op.attachVM, { containerId: "nobody's" })
  assert.deepStrictEqual(yield* daemon.child.stop(), { code: 0, signal: null })
  const { files, modules } = JSON.parse(Fs.readFileSync(report, "utf8")) as Record<string, Array<string>>
  return {
    files: files!.filter((file) => file !== probe).map((file) => Path.basename(file)),
    modules: modules!.flatMap((module) => /^NativeModule (\w+)$/.exec(module)?.[1] ?? [])
  }
})

/** A listening socket at `path` whose owner is this process, until `leave`, after which the path stays as it is. */
const listener = (path: string) =>
  Effect.acquireRelease(
    Effect.callback<{ readonly descriptor: number; readonly leave: () => void }>((resume) => {
      const server = Net.createServer()
      server.listen(`${path}.bound`, () => {
        // closing unlinks the path it was bound to, which is no more
        Fs.renameSync(`${path}.bound`, path)
        const { _handle } = server as unknown as { readonly _handle: { readonly fd: number } }
        resume(Effect.succeed({ descriptor: _handle.fd, leave: () => void server.close() }))
      })
    }),
    ({ leave }) => Effect.sync(leave)
  )

/** A daemon that finds its listening socket as descriptor 3. */
const activated = Effect.gen(function* () {
  const directory = yield* DaemonProcess.temporaryDirectory
  const socketPath = Path.join(directory, "proxy.sock")
  const { descriptor, leave } = yield* listener(socketPath)
  const child = yield* DaemonProcess.run(["-socket-path", socketPath, "-ksm", "initial"], {
    shell: 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"',
    descriptors: [descriptor]
  })
  leave()
  return yield* DaemonProcess.listening(child, directory, socketPath)
})

const mode = (path: string): number => Fs.statSync(path).mode & 0o777

describe("flags", () => {
  it.live("-version prints the name and a version and exits 0", () =>
    Effect.gen(function* () {
      for (const flag of ["-version", "--version"]) {
        const { code, stderr, stdout } = yield* finish([flag])
        assert.match(stdout, /cc-proxy.*\d+\.\d+/)
        assert.deepStrictEqual([code, stderr], [0, ""])
      }
    })
  )

  it.live("-h lists the flags and exits 0", () =>
    Effect.gen(function* () {
      for (const flag of ["-h", "--help", "-help"]) {
        const { code, stderr, stdout } = yield* finish([flag])
        assert.strictEqual(code, 0, stderr)
        for (const name of ["log", "socket-path", "uri", "ksm", "pprof", "version", "ctl-timeout", "shim-timeout"]) {
          assert.include(stdout + stderr, name)
        }
      }
    })
  )

  const bad = [
    ["an unknown flag", ["-nonsense"]],
    ["an unknown flag with a value", ["--nonsense=1"]],
    ["an unknown level", ["-log", "loud"]],
    ["an unknown KSM mode", ["-ksm", "sometimes"]],
    ["a flag without its value", ["-socket-path"]],
    ["an empty path", ["-socket-path="]],
    ["a wait that is no duration", ["-ctl-timeout", "soon"]],
    ["a wait below zero", ["-ctl-timeout", "-5s"]],
    ["a port that is no number", ["-pprof-port", "http"]]
  ] as const
  for (const [name, args] of bad) {
    it.live(`${name} is answered with the usage on stderr and exit 2`, () =>
      Effect.gen(function* () {
        const { code, stderr, stdout } = yield* finish(args)
        assert.strictEqual(code, 2, stderr)
        assert.match(stderr, /usage/i)
        assert.include(stderr, "socket-path")
        assert.strictEqual(stdout, "")
      })
    )
  }

  it.live("the level is warn by default", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* levelsLogged([]), ["warn", "error"])
    })
  )

  const all = ["debug", "info", "warn", "error"]
  const levels = [
    [["-log", "debug"], all],
    [["--log", "debug"], all],
    [["-log=debug"], all],
    [["--log=debug"], all],
    [["-v", "debug"], all],
    [["--v=debug"], all],
    [["-log", "info"], all.slice(1)],
    [["-log", "warn"], all.slice(2)],
    [["-log", "warning"], all.slice(2)],
    [["-log", "error"], all.slice(3)],
    [["-log", "fatal"], []],
    [["-log", "panic"], []],
    [["-log", "debug", "-log", "error"], all.slice(3)],
    [["--log=error", "-log", "info"], all.slice(1)]
  ] as const
  for (const [args, expected] of levels) {
    it.live(`${args.join(" ")} logs ${expected.join(", ") || "nothing of that kind"}`, () =>
      Effect.gen(function* () {
        assert.deepStrictEqual(yield* levelsLogged(args), [...expected])
      })
    )
  }

  it.live("CC_PROXY_LOG_LEVEL sets the level too, and the flag wins", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* levelsLogged([], { CC_PROXY_LOG_LEVEL: "debug" }), all)
      assert.deepStrictEqual(yield* levelsLogged(["-log", "error"], { CC_PROXY_LOG_LEVEL: "debug" }), ["error"])
      assert.deepStrictEqual(yield* levelsLogged(["-log", "info"], { CC_PROXY_LOG_LEVEL: "error" }), all.slice(1))
    })
  )

  it.live("flags hold where traces are exported, too", () =>
    Effect.gen(function* () {
      const traced = { OTEL_SERVICE_NAME: "cc-proxy" }
      assert.deepStrictEqual(yield* levelsLogged([], traced), ["warn", "error"])
      assert.deepStrictEqual(yield* levelsLogged(["-v", "info"], traced), all.slice(1))
    })
  )

  it.live("every wait is a flag that takes durations as Go prints them", () =>
    Effect.gen(function* () {
      const waits = ["dial", "ready", "ctl", "shim", "process", "frame", "stop"]
      const durations = ["1m30s", "200ms", "1h0m0s", "2.5s", "1m0s", "30s", "3s"]
      const args = waits.flatMap((wait, n) => [`-${wait}-timeout`, durations[n]!])
      const daemon = yield* DaemonProcess.start({
        args: [...args, "-pprof=false", "-pprof-host", "localhost", "-pprof-port", "6060"]
      })
      yield* answers((yield* running(daemon)).runtime)
    })
  )
})

describe("the listening socket", () => {
  it.live("its directory is created with mode 0750, it has mode 0660, and a stop removes it", () =>
    Effect.gen(function* () {
      const directory = yield* DaemonProcess.temporaryDirectory
      const socketPath = Path.join(directory, "run", "proxy.sock")
      const child = yield* DaemonProcess.run(["-socket-path", socketPath, "-ksm", "initial"])
      yield* DaemonProcess.listening(child, directory, socketPath)
      assert.strictEqual(mode(Path.dirname(socketPath)), 0o750)
      assert.strictEqual(mode(socketPath), 0o660)
      assert.isTrue(Fs.statSync(socketPath).isSocket())
      assert.deepStrictEqual(yield* child.stop(), { code: 0, signal: null })
      assert.isFalse(Fs.existsSync(socketPath))
    })
  )

  it.live("a directory that exists keeps its mode", () =>
    Effect.gen(function* () {
      const directory = yield* DaemonProcess.temporaryDirectory
      Fs.chmodSync(directory, 0o711)
      yield* DaemonProcess.start({ directory })
      assert.strictEqual(mode(directory), 0o711)
    })
  )

  it.live("a path of 107 bytes serves, one of 108 is a clear error and exit 1", () =>
    Effect.gen(function* () {
      const directory = yield* DaemonProcess.temporaryDirectory
      const path = (length: number) => Path.join(directory, "x".repeat(length - directory.length - 1))
      const child = yield* DaemonProcess.run(["-socket-path", path(107), "-ksm", "initial"])
      const daemon = yield* DaemonProcess.listening(child, directory, path(107))
      yield* answers((yield* running(daemon)).runtime)
      const { code, stderr } = yield* finish(["-socket-path", path(108), "-ksm", "initial"])
      assert.strictEqual(code, 1)
      assert.match(stderr, /107|too long/)
      assert.isFalse(Fs.existsSync(path(108)))
    })
  )

  it.live("a stale socket is replaced", () =>
    Effect.gen(function* () {
      const directory = yield* DaemonProcess.temporaryDirectory
      const { leave } = yield* listener(Path.join(directory, "proxy.sock"))
      leave()
      const daemon = yield* DaemonProcess.start({ directory })
      yield* answers((yield* running(daemon)).runtime)
    })
  )

  it.live("the socket of a daemon that was killed is replaced", () =>
    Effect.gen(function* () {
      const directory = yield* DaemonProcess.temporaryDirectory
      const first = yield* DaemonProcess.start({ directory })
      assert.strictEqual((yield* first.child.stop("SIGKILL")).signal, "SIGKILL")
      assert.isTrue(Fs.existsSync(first.socketPath))
      const second = yield* DaemonProcess.start({ directory })
      yield* answers((yield* running(second)).runtime)
    })
  )

  it.live("a live daemon's socket is not taken: the second daemon exits 1, the first goes on", () =>
    Effect.gen(function* () {
      const first = yield* DaemonProcess.start()
      const { runtime } = yield* running(first)
      const { code, stderr } = yield* finish(["-socket-path", first.socketPath, "-ksm", "initial"])
      assert.strictEqual(code, 1)
      assert.include(stderr, first.socketPath)
      yield* answers(runtime)
      yield* answers((yield* running(first)).runtime)
    })
  )

  it.live("a regular file is not replaced, and exit is 1", () =>
    Effect.gen(function* () {
      const directory = yield* DaemonProcess.temporaryDirectory
      const path = Path.join(directory, "proxy.sock")
      Fs.writeFileSync(path, "precious")
      const { code, stderr } = yield* finish(["-socket-path", path, "-ksm", "initial"])
      assert.strictEqual(code, 1)
      assert.include(stderr, path)
      assert.strictEqual(Fs.readFileSync(path, "utf8"), "precious")
    })
  )
})

describe("a stop", () => {
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    it.live(`by ${signal} exits 0 within 4 s with clients connected, and unlinks the socket`, () =>
      Effect.gen(function* () {
        const daemon = yield* DaemonProcess.start()
        const { agent, runtime, shim } = yield* running(daemon)
        const idle = yield* daemon.connect
        // a shim that does not read, a command without an answer, half a frame, a start without a shim
        shim.pause()
        for (let n = 0; n < 200; n++) agent.sendIo([3, Buffer.alloc(10_000)])
        agent.answer(Raw.Ctl.readfile, "hold")
        runtime.post(Raw.Op.hyper, hyper("readfile"))
        yield* agent.command(Raw.Ctl.readfile)
        idle.send(Raw.command(Raw.Op.attachVM, { containerId: "x" }).subarray(0, 15))
        yield* daemon.settle
        assert.deepStrictEqual(yield* daemon.child.stop(signal, 4), { code: 0, signal: null })
        assert.isFalse(Fs.existsSync(daemon.socketPath))
      })
    )
  }

  it.live("that takes longer than -stop-timeout ends all the same, and says so", () =>
    Effect.gen(function* () {
      const daemon = yield* DaemonProcess.start({ args: ["-stop-timeout", "200ms"] })
      const { agent, shim } = yield* running(daemon)
      // a shim that does not read keeps its connection open
      shim.pause()
      for (let n = 0; n < 200; n++) agent.sendIo([3, Buffer.alloc(10_000)])
      yield* daemon.settle
      assert.deepStrictEqual(yield* daemon.child.stop(), { code: 0, signal: null })
      const record = daemon.child.log.at(-1)
      assert.deepStrictEqual(
        ["level", "msg", "after"].map((key) => record?.get(key)),
        ["warn", "the clean stop took too long: exiting all the same", "200ms"]
      )
      assert.isFalse(Fs.existsSync(daemon.socketPath))
    })
  )

  it.live("ends the connections of clients that have nothing to say, at once", () =>
    Effect.gen(function* () {
      const daemon = yield* DaemonProcess.start({ args: ["-stop-timeout", "1m0s"] })
      const { agent, shim } = yield* running(daemon)
      const started = performance.now()
      daemon.child.kill("SIGTERM")
      yield* shim.dropped()
      shim.end()
      yield* until("the VM's sockets' end", () => !agent.connected[0] && !agent.connected[1])
      assert.deepStrictEqual(yield* daemon.child.ended(), { code: 0, signal: null })
      assert.isBelow(performance.now() - started, 4_000)
    })
  )
})

describe("socket activation", () => {
  it.live("descriptor 3 is served, and a stop leaves the socket's path alone", () =>
    Effect.gen(function* () {
      const daemon = yield* activated
      const { runtime, shim } = yield* running(daemon)
      yield* answers(runtime)
      assert.isFalse(shim.isDropped)
      assert.deepStrictEqual(yield* daemon.child.stop(), { code: 0, signal: null })
      assert.isTrue(Fs.existsSync(daemon.socketPath))
    })
  )

  it.live("clients that connected before the daemon came are served", () =>
    Effect.gen(function* () {
      const directory = yield* DaemonProcess.temporaryDirectory
      const socketPath = Path.join(directory, "proxy.sock")
      const { descriptor, leave } = yield* listener(socketPath)
      const child = yield* DaemonProcess.run(["-socket-path", socketPath, "-ksm", "initial"], {
        shell: 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"',
        descriptors: [descriptor]
      })
      leave()
      const early = yield* RawClient.connect(socketPath)
      const response = yield* early.request(Raw.Op.attachVM, { containerId: "ghost" })
      Scenario.refused(response, "unknown containerID: ghost")
      assert.strictEqual((yield* child.stop()).code, 0)
    })
  )

  it.live("two sockets are too many: exit 1", () =>
    Effect.gen(function* () {
      const directory = yield* DaemonProcess.temporaryDirectory
      const [one, two] = [yield* listener(Path.join(directory, "1")), yield* listener(Path.join(directory, "2"))]
      const { code, stderr } = yield* finish(["-socket-path", Path.join(directory, "proxy.sock"), "-ksm", "initial"], {
        shell: 'LISTEN_PID=$$ LISTEN_FDS=2 exec "$0" "$@"',
        descriptors: [one.descriptor, two.descriptor]
      })
      assert.strictEqual(code, 1)
      assert.include(stderr, "too many activated sockets (2)")
    })
  )

  it.live("sockets that are meant for another process are not taken", () =>
    Effect.gen(function* () {
      const daemon = yield* DaemonProcess.start({ env: { LISTEN_PID: "1", LISTEN_FDS: "2" } })
      yield* answers((yield* running(daemon)).runtime)
    })
  )
})

describe("pod mode", () => {
  const pod = Effect.gen(function* () {
    const directory = yield* DaemonProcess.temporaryDirectory
    const socketPath = Path.join(directory, "pods", "proxy.sock")
    Fs.mkdirSync(Path.dirname(socketPath))
    const child = yield* DaemonProcess.run(["-uri", `unix://${socketPath}`, "-log", "debug"])
    return yield* DaemonProcess.listening(child, directory, socketPath)
  })

  it.live("it serves its pod and exits 0 once the VM was unregistered and is gone", () =>
    Effect.gen(function* () {
      const daemon = yield* pod
      const { agent, id, runtime, shim } = yield* running(daemon)
      yield* answers(runtime)
      agent.sendIo([3, "hello"])
      agent.exit(3, 0)
      accepted(yield* unregister(daemon, id))
      yield* shim.until("the exit", () => shim.exits.length === 1)
      yield* answers(runtime)
      daemon.child.mayEnd = true
      agent.powerOff()
      yield* shim.dropped()
      shim.end()
      runtime.end()
      assert.deepStrictEqual(yield* daemon.child.ended(), { code: 0, signal: null })
      assert.isFalse(Fs.existsSync(daemon.socketPath))
      assert.deepStrictEqual(shim.story, ["stdout hello", "exit 0"])
    })
  )

  it.live("the VM may go first: what was received is delivered, UnregisterVM succeeds, then it exits 0", () =>
    Effect.gen(function* () {
      const daemon = yield* pod
      const { agent, id, runtime, shim } = yield* running(daemon)
      agent.sendIo([3, "last"])
      agent.exit(3, 4)
      agent.powerOff()
      yield* shim.dropped()
      shim.end()
      runtime.hangUp()
      assert.deepStrictEqual(shim.story, ["stdout last", "exit 4"])
      daemon.child.mayEnd = true
      accepted(yield* unregister(daemon, id))
      assert.deepStrictEqual(yield* daemon.child.ended(), { code: 0, signal: null })
    })
  )

  it.live("clients that stay connected do not keep it", () =>
    Effect.gen(function* () {
      const daemon = yield* pod
      const { agent, id, runtime, shim } = yield* running(daemon)
      accepted(yield* unregister(daemon, id))
      daemon.child.mayEnd = true
      agent.powerOff()
      yield* shim.dropped()
      assert.deepStrictEqual(yield* daemon.child.ended(), { code: 0, signal: null })
      assert.isTrue(runtime.isDropped)
    })
  )

  it.live("SIGTERM stops it like any daemon", () =>
    Effect.gen(function* () {
      const daemon = yield* pod
      yield* running(daemon)
      assert.deepStrictEqual(yield* daemon.child.stop("SIGTERM", 4), { code: 0, signal: null })
      assert.isFalse(Fs.existsSync(daemon.socketPath))
    })
  )

  it.live("a URI that is no unix:// path is refused", () =>
    Effect.gen(function* () {
      for (const uri of ["tcp://127.0.0.1:1", "nonsense"]) {
        const { code } = yield* finish(["-uri", uri])
        assert.include([1, 2], code)
      }
    })
  )
})

describe("the executable", () => {
  it.live("says what it needs where there is no Node", () =>
    Effect.gen(function* () {
      const directory = yield* DaemonProcess.temporaryDirectory
      const alone = Path.join(directory, "bin/cc-proxy") // there is no Node beside its directory either
      Fs.mkdirSync(Path.dirname(alone))
      Fs.copyFileSync(DaemonProcess.binary, alone)
      const { status, stderr } = spawnSync("/bin/sh", [alone, "-version"], { env: { PATH: "/nonexistent" } })
      assert.strictEqual(status, 1)
      assert.match(String(stderr), /^cc-proxy: needs Node \d+\.\d+ or later, and there is no node in the path\n$/)
    })
  )

  it.live("loads nothing that it does not need to serve", () =>
    Effect.gen(function* () {
      const { files, modules } = yield* loaded
      assert.deepStrictEqual(files, ["cc-proxy"])
      assert.include(modules, "net")
      for (const name of ["crypto", "http", "inspector", "readline", "tls", "zlib"]) assert.notInclude(modules, name)
    })
  )

  it.live("becomes the daemon, under the process id that it was started with", () =>
    Effect.gen(function* () {
      const daemon = yield* DaemonProcess.start()
      const command = Fs.readFileSync(`/proc/${daemon.child.pid}/cmdline`, "utf8").split("\0")
      assert.match(command[0]!, /node$/)
    })
  )
})
