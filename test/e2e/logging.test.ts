/** What the log says, and what it must never say. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Net from "node:net"
import * as Path from "node:path"
import * as DaemonProcess from "../support/e2e/DaemonProcess.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import * as Scenario from "../support/e2e/Scenario.ts"
import { happened, until } from "../support/e2e/Wait.ts"

const { accepted, answers, connectShim, hyper, refused, register, running, unregister } = Scenario

const secrets = {
  environment: "PASSWORD=hunter2hunter2",
  typed: "typed-secret-phrase",
  printed: "printed-secret-phrase"
}

/** One whole life of a pod, as ordinary as can be; then the daemon is stopped. Returns its tokens. */
const ordinaryLife = (daemon: DaemonProcess.Daemon) =>
  Effect.gen(function* () {
    const process = { env: [secrets.environment], terminal: true }
    const { agent, id, runtime, shim, tokens } = yield* running(daemon, { next: true, streams: 2, process })
    shim.send(Raw.stdin(secrets.typed), Raw.stdin(""))
    yield* agent.stdinEnd(3)
    accepted(yield* shim.request(Raw.Op.signal, { signalNumber: 28, columns: 80, rows: 24 }))
    agent.sendIo([3, secrets.printed])
    const reconnecting = yield* connectShim(daemon, tokens[1])
    reconnecting.hangUp()
    agent.exit(3, 0)
    yield* shim.until("the exit", () => shim.exits.length === 1)
    shim.send(Raw.command(Raw.Op.disconnectShim))
    shim.end()
    yield* shim.dropped()
    runtime.end()
    yield* runtime.dropped()
    const last = yield* Scenario.attach(daemon, id)
    accepted(yield* last.request(Raw.Op.hyper, hyper("destroypod")))
    agent.powerOff()
    yield* until("the VM to be let go", () => !agent.connected[0] && !agent.connected[1])
    accepted(yield* unregister(daemon, id))
    last.hangUp()
    yield* daemon.settle
    assert.strictEqual((yield* daemon.child.stop()).code, 0)
    return tokens
  })

/** Lines as `hexdump -C` prints them, the last of a dump without its 16 bytes. */
const dumpLine = /^[0-9a-f]{8} {2}(?:[0-9a-f]{2} {1,2}){1,16} *\|.{1,16}\|$/m

it.live("an ordinary life gives no warning and no error: by default the log stays empty", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start()
    yield* ordinaryLife(daemon)
    assert.strictEqual(daemon.child.stderr, "")
    assert.strictEqual(daemon.child.stdout, "")
  })
)

for (const level of ["info", "debug"]) {
  it.live(`at ${level} every line is logfmt with time, level, msg, name, pid and source, and none is a warning`, () =>
    Effect.gen(function* () {
      const daemon = yield* DaemonProcess.start({ args: ["-log", level] })
      yield* ordinaryLife(daemon)
      assert.isNotEmpty(daemon.child.log)
      for (const record of daemon.child.log) {
        const line = JSON.stringify([...record])
        assert.match(record.get("time") ?? "", /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z$/, line)
        assert.include(["debug", "info"], record.get("level"), line)
        assert.isNotEmpty(record.get("msg"), line)
        assert.strictEqual(record.get("name"), "cc-proxy", line)
        assert.strictEqual(record.get("pid"), String(daemon.child.pid), line)
        assert.include(["proxy", "qemu", "shim", "runtime"], record.get("source"), line)
      }
    })
  )

  it.live(
    `at ${level} no token is shown whole, nor any environment${level === "info" ? ", stdin or output" : ""}`,
    () =>
      Effect.gen(function* () {
        const daemon = yield* DaemonProcess.start({ args: ["-log", level] })
        const vm = yield* running(daemon, { streams: 1, process: { env: [secrets.environment] } })
        const rival = yield* daemon.connect
        refused(yield* rival.request(Raw.Op.connectShim, { token: vm.tokens[0] }), "token already claimed: ")
        refused(yield* vm.runtime.request(Raw.Op.hyper, hyper("execcmd", Scenario.exec("c1"), vm.tokens[0])))
        refused(yield* vm.runtime.request(Raw.Op.hyper, hyper("ping", undefined, vm.tokens[0])))
        refused(yield* vm.runtime.request(Raw.Op.hyper, `{"hyperName":"ping","tokens":["${vm.tokens[0]}"`))
        refused(
          yield* vm.runtime.request(Raw.Op.hyper, { hyperName: 5, data: secrets.environment, tokens: vm.tokens[0] })
        )
        const tokens = [...vm.tokens, ...(yield* ordinaryLife(daemon))]
        for (const token of tokens) assert.notInclude(daemon.child.stderr, token.slice(0, 16))
        assert.notInclude(daemon.child.stderr, secrets.environment.slice(-8))
        if (level === "debug") return
        assert.notInclude(daemon.child.stderr, secrets.typed)
        assert.notInclude(daemon.child.stderr, secrets.printed)
      })
  )
}

it.live("info names each accepted command, with its VM", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start({ args: ["-log", "info"] })
    const { id, shim } = yield* running(daemon)
    accepted(yield* shim.request(Raw.Op.signal, { signalNumber: 10 }))
    accepted(yield* unregister(daemon, id))
    shim.send(Raw.command(Raw.Op.disconnectShim))
    yield* shim.dropped()
    yield* daemon.child.stop()
    const records = daemon.child.log.filter((record) => record.get("level") === "info")
    const names = ["RegisterVM", "AttachVM", "ConnectShim", "Hyper", "Signal", "UnregisterVM", "DisconnectShim"]
    for (const name of names) {
      assert.isTrue(
        records.some((record) => [...record.values()].some((value) => value.includes(name))),
        name
      )
    }
    const registration = records.find((record) => [...record.values()].some((value) => value.includes("RegisterVM")))
    assert.strictEqual(registration?.get("vm"), id)
    assert.isNotEmpty(registration?.get("client"))
  })
)

it.live("debug dumps the raw io data, in both directions, as hexdump -C does", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start({ args: ["-log", "debug"] })
    const { agent, shim } = yield* running(daemon)
    agent.sendIo([3, "hello world\n"])
    yield* shim.until("the output", () => shim.received.stdout === 12)
    shim.send(Raw.stdin("good-bye\u0000\u00ff"))
    yield* agent.stdinLength(3, 11)
    yield* daemon.child.stop()
    const values = daemon.child.log.flatMap((record) => Array.from(record.values()))
    const dumps = values.filter((value) => dumpLine.test(value))
    // a dump may begin with the message's header, which moves the line breaks
    const bytes = dumps.map((dump) => dump.replaceAll(/^[0-9a-f]{8} {2}|\|.*\|$/gm, "").replaceAll(/\s+/g, ""))
    for (const text of ["hello world\n", "good-bye\u0000\u00ff"]) {
      const hex = Buffer.from(text).toString("hex")
      assert.isTrue(
        bytes.some((dump) => dump.includes(hex)),
        `${hex} in ${dumps.join("\n")}`
      )
    }
  })
)

it.live("info dumps nothing", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start({ args: ["-log", "info"] })
    const { agent, shim } = yield* running(daemon)
    agent.sendIo([3, "hello world\n"])
    yield* shim.until("the output", () => shim.received.stdout === 12)
    yield* daemon.child.stop()
    assert.notInclude(daemon.child.stderr, "68 65 6c 6c 6f")
  })
)

it.live("names from outside cannot forge a record", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start({ args: ["-log", "debug"] })
    const id = 'evil" level=error\nlevel=fatal msg="x\u001b[2J\u2028'
    const { runtime } = yield* Scenario.boot(daemon, { id })
    yield* answers(runtime)
    refused(yield* runtime.request(Raw.Op.hyper, hyper("no\nsuch=command")))
    accepted(yield* unregister(daemon, id))
    yield* daemon.child.stop()
    assert.isTrue(daemon.child.log.some((record) => record.get("vm") === id))
    assert.isFalse(daemon.child.log.some((record) => record.get("level") === "fatal"))
    assert.notMatch(daemon.child.stderr, /[^\P{Cc}\n]/u)
  })
)

it.live("a broken frame and a lost VM are told, once each, and not as a crash", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start({ args: ["-log", "info"] })
    const client = yield* daemon.connect
    client.send(Raw.header({ type: 9, opcode: 0, length: 0 }))
    yield* client.dropped()
    yield* daemon.settle
    yield* daemon.child.stop()
    assert.notInclude(daemon.child.stderr, "    at ")
    assert.isAtLeast(daemon.child.log.length, 1)
  })
)

/** A console socket that says what it is told to, once somebody listens. */
const console = (path: string, ...pieces: ReadonlyArray<string>) =>
  Effect.acquireRelease(
    Effect.callback<{ connections: number }>((resume) => {
      const state = { connections: 0, server: undefined as Net.Server | undefined }
      state.server = Net.createServer((socket) => {
        state.connections++
        socket.on("error", happened)
        for (const piece of pieces) socket.write(piece)
        happened()
      }).listen(path, () => resume(Effect.succeed(state)))
    }),
    (state) => Effect.sync(() => (state as { readonly server?: Net.Server }).server?.close())
  )

it.live("debug has the console, one quoted record a line", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start({ args: ["-log", "debug"] })
    const path = Path.join(daemon.directory, "console.sock")
    yield* console(path, 'Linux "version" 4.9\r\nlevel=error msg=fo', "rged\n\u001b[1mbold\u001b[0m\n", "\n", "unended")
    const id = Scenario.freshId()
    const agent = yield* Scenario.startAgent()
    accepted(yield* register(daemon, id, agent, { console: path }))
    const lines = ['Linux "version" 4.9', "level=error msg=forged", "\u001b[1mbold\u001b[0m"]
    const has = (text: string) =>
      daemon.child.log.find((record) => [...record.values()].some((value) => value.trimEnd() === text))
    yield* until("the console's lines", () => lines.every((line) => has(line) !== undefined))
    for (const line of lines) {
      const record = has(line)!
      assert.strictEqual(record.get("level"), "debug")
      assert.strictEqual(record.get("vm"), id)
      assert.strictEqual(record.get("source"), "qemu")
    }
  })
)

it.live("the console is left alone above debug", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start({ args: ["-log", "info"] })
    const path = Path.join(daemon.directory, "console.sock")
    const state = yield* console(path, "secret boot\n")
    const agent = yield* Scenario.startAgent()
    accepted(yield* register(daemon, Scenario.freshId(), agent, { console: path }))
    yield* daemon.settle
    assert.strictEqual(state.connections, 0)
  })
)

it.live("a console that cannot be dialled is a warning and no more", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start({ args: ["-log", "debug"] })
    const id = Scenario.freshId()
    const agent = yield* Scenario.startAgent()
    accepted(yield* register(daemon, id, agent, { console: Path.join(daemon.directory, "nowhere") }))
    yield* answers(yield* Scenario.attach(daemon, id))
    yield* daemon.child.warned
  })
)

it.live("a console that ends or floods disturbs nothing", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start({ args: ["-log", "debug"] })
    const path = Path.join(daemon.directory, "console.sock")
    yield* console(path, "x".repeat(3 * 1024 * 1024), "\nafter\n")
    const id = Scenario.freshId()
    const agent = yield* Scenario.startAgent()
    accepted(yield* register(daemon, id, agent, { console: path }))
    yield* answers(yield* Scenario.attach(daemon, id))
    yield* until("what follows", () => daemon.child.stderr.includes("after"))
    assert.isBelow(daemon.child.memory.resident, 300 * 1024 * 1024)
  })
)
