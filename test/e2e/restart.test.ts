/** A daemon that stops, and the next one on its socket: VMs and their processes go on, and shims come back. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Crypto from "node:crypto"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as SimulatedVm from "../../src/sim/SimulatedVm.ts"
import * as DaemonProcess from "../support/e2e/DaemonProcess.ts"
import type { Daemon } from "../support/e2e/DaemonProcess.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import type { RawClient } from "../support/e2e/RawClient.ts"
import * as Scenario from "../support/e2e/Scenario.ts"
import * as Survival from "../support/e2e/Survival.ts"
import { until } from "../support/e2e/Wait.ts"

const { accepted, answers, attach, boot, connectShim, container, exec, hyper, refused, running, tokensOf } = Scenario
const { appears, eventually, next, reconnect, recordsOf, regretted, spooled, stop } = Survival
const mebibyte = 1024 * 1024

/** A VM with real processes, registered, with a client attached. */
const simulate = Effect.fnUntraced(function* (daemon: Daemon, agent: "c" | "go", streams: number) {
  const directory = yield* DaemonProcess.temporaryDirectory
  const [ctlPath, ioPath] = [Path.join(directory, "ctl.sock"), Path.join(directory, "io.sock")]
  const vm = yield* SimulatedVm.make({ ctlPath, ioPath, agent })
  const id = Scenario.freshId()
  const runtime = yield* daemon.connect
  const registration = { containerId: id, ctlSerial: ctlPath, ioSerial: ioPath, numIOStreams: streams }
  const tokens = tokensOf(yield* runtime.request(Raw.Op.registerVM, registration))
  accepted(yield* runtime.request(Raw.Op.hyper, hyper("startpod", {})))
  return { directory, id, runtime, tokens, vm }
})

/** Starts a shell's command line as a container's init process, or beside it. */
const run = Effect.fnUntraced(function* (
  daemon: Daemon,
  { runtime, tokens }: { readonly runtime: RawClient; readonly tokens: ReadonlyArray<string> },
  nth: number,
  line: string
) {
  const shim = yield* connectShim(daemon, tokens[nth])
  const process = { args: ["sh", "-c", line], id: `p${nth}` }
  const command =
    nth === 0
      ? hyper("newcontainer", container("c1", process), tokens[nth])
      : hyper("execcmd", exec("c1", process), tokens[nth])
  accepted(yield* runtime.request(Raw.Op.hyper, command))
  return shim
})

/** The shim's connection was ended in good order: nothing it wrote is refused, and nothing more comes. */
const half = Effect.fnUntraced(function* (shim: RawClient) {
  yield* shim.dropped()
  assert.isUndefined(shim.error)
  shim.end()
})

const exited = (shim: RawClient) => shim.until("the exit", () => shim.exits.length > 0)

const sha256 = (bytes: Uint8Array): string => Crypto.createHash("sha256").update(bytes).digest("hex")

/** Lines of `seq 1 N`. */
const seq = (last: number): Buffer => Buffer.from(Array.from({ length: last }, (_, index) => `${index + 1}\n`).join(""))

describe.each(["c", "go"] as const)("a VM with a %s agent", (agent) => {
  it.live(
    "goes on while no daemon is there: what its processes write, and how they end, is told after the restart",
    () =>
      Effect.gen(function* () {
        const daemon = yield* Survival.start()
        const vm = yield* simulate(daemon, agent, 3)
        const at = (name: string) => Path.join(vm.directory, name)
        const init = yield* run(daemon, vm, 0, 'printf before; read line; printf " after $line"; exit 7')
        const writer = yield* run(
          daemon,
          vm,
          1,
          `until [ -e ${at("go")} ]; do sleep 0.02; done; seq 1 4000; touch ${at("gone")}; exit 3`
        )
        const echo = yield* run(daemon, vm, 2, "cat; exit 5")
        echo.send(Raw.stdin("one "))
        yield* init.until("its output", () => init.received.stdout === 6)
        yield* echo.until("its output", () => echo.received.stdout === 4)
        const shims = [init, writer, echo]
        yield* Effect.forEach(shims, (shim) => Effect.forkScoped(half(shim), { startImmediately: true }))
        yield* stop(daemon)
        yield* Effect.forEach(shims, (shim) => shim.dropped())
        assert.deepStrictEqual(init.story, ["stdout before"])
        assert.deepStrictEqual(writer.story, [])
        Fs.writeFileSync(at("go"), "")
        yield* appears(at("gone"))

        const later = yield* next(daemon)
        const [init2, writer2, echo2] = yield* Effect.forEach(vm.tokens, (token) => reconnect(later, token), {
          concurrency: "unbounded"
        })
        yield* exited(writer2!)
        assert.strictEqual(sha256(writer2!.stdout), sha256(seq(4000)))
        assert.deepStrictEqual(writer2!.exits, [3])
        assert.strictEqual(writer2!.frames.at(-1)!.type, Raw.Type.notification)
        echo2!.send(Raw.stdin("two"), Raw.stdin(""))
        yield* exited(echo2!)
        assert.deepStrictEqual(echo2!.story, ["stdout two", "exit 5"])
        init2!.send(Raw.stdin("that\n"))
        yield* exited(init2!)
        assert.deepStrictEqual(init2!.story, ["stdout  after that", "exit 7"])
        assert.deepStrictEqual(regretted(later), [])
        // the runtime finds its VM, too
        const runtime = yield* attach(later, vm.id)
        yield* answers(runtime)
        accepted(yield* Scenario.unregister(later, vm.id))
        for (const token of vm.tokens) assert.notInclude(daemon.child.stderr + later.child.stderr, token)
      })
  )

  it.live(
    "is stopped and started again and again, while its process goes on",
    () =>
      Effect.gen(function* () {
        let daemon = yield* Survival.start()
        const vm = yield* simulate(daemon, agent, 1)
        const at = (name: string) => Path.join(vm.directory, name)
        const wait = `until [ -e ${at("go")}$line ]; do sleep 0.02; done`
        const line = `while read line; do echo "now $line"; ${wait}; echo "late $line"; : > ${at("gone")}$line; done; exit 11`
        let shim = yield* run(daemon, vm, 0, line)
        const told: Array<string> = []
        for (const round of ["1", "2", "3"]) {
          const { stdout: had } = shim.received
          shim.send(Raw.stdin(`${round}\n`))
          yield* shim.until("the answer", () => shim.received.stdout === had + 6)
          yield* Effect.forkScoped(half(shim), { startImmediately: true })
          yield* stop(daemon)
          told.push(shim.stdout.toString())
          Fs.writeFileSync(at(`go${round}`), "")
          yield* appears(at(`gone${round}`))
          daemon = yield* next(daemon)
          shim = yield* reconnect(daemon, vm.tokens[0])
          yield* shim.until("what came meanwhile", () => shim.received.stdout === 7)
        }
        shim.send(Raw.stdin(""))
        yield* exited(shim)
        const lines = [1, 2, 3].map((round) => `now ${round}\nlate ${round}\n`)
        assert.strictEqual(told.join("") + shim.stdout.toString(), lines.join(""))
        assert.deepStrictEqual(shim.exits, [11])
      }),
    60_000
  )
})

describe("what waited", () => {
  const small = ["-outbox", "64KiB", "-stdin-buffer", "64KiB"]

  it.live("for a slow shim and for a process is on disk, and goes on from there", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start({ args: small })
      const { agent, shim, tokens } = yield* running(daemon, { once: true })
      const [output, input] = [Scenario.pattern(4 * mebibyte), Scenario.pattern(2 * mebibyte, 1)]
      shim.pause()
      agent.pauseIo()
      for (let at = 0; at < input.length; at += 8192) shim.send(Raw.stdin(input.subarray(at, at + 8192)))
      for (let at = 0; at < output.length; at += 10_000) agent.sendIo([3, output.subarray(at, at + 10_000)])
      yield* eventually(daemon, "the spool", () => spooled(daemon) > 4 * mebibyte && shim.unsent === 0)
      const stopped = yield* Effect.forkScoped(stop(daemon), { startImmediately: true })
      shim.resume()
      yield* half(shim)
      yield* Fiber.join(stopped)
      agent.resumeIo() // what the daemon had written is read all the same
      agent.answer(Raw.Ctl.ping, { ack: "" })
      const later = yield* next(daemon, { args: small })
      const again = yield* reconnect(later, tokens[0])
      yield* agent.stdinLength(3, input.length)
      assert.strictEqual(sha256(agent.stdin(3)), sha256(input))
      agent.exit(3, 21)
      yield* exited(again)
      const got = Buffer.concat([shim.stdout, again.stdout])
      assert.strictEqual(got.length, output.length)
      assert.strictEqual(sha256(got), sha256(output))
      assert.deepStrictEqual(again.exits, [21])
      assert.strictEqual(again.frames.at(-1)!.type, Raw.Type.notification)
      assert.deepStrictEqual(agent.connections, [2, 2])
      yield* eventually(later, "the files' removal", () => spooled(later) === 0)
      assert.deepStrictEqual(regretted(later), [])
    })
  )

  it.live("for a shim that was away is there for it, the status last", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start()
      const { agent, shim, tokens } = yield* running(daemon, { once: true })
      const output = Scenario.pattern(3 * mebibyte)
      shim.hangUp()
      yield* daemon.settle
      for (let at = 0; at < output.length; at += 10_000) agent.sendIo([3, output.subarray(at, at + 10_000)])
      agent.exit(3, 1)
      yield* eventually(daemon, "the end", () =>
        daemon.child.log.some((record) => record.get("msg") === "process exited")
      )
      yield* stop(daemon)
      const later = yield* next(daemon)
      yield* stop(later) // and one that nobody came to
      const last = yield* next(daemon)
      const again = yield* connectShim(last, tokens[0])
      yield* exited(again)
      assert.strictEqual(sha256(again.stdout), sha256(output))
      assert.deepStrictEqual(again.exits, [1])
    })
  )
})

describe("commands at the stop", () => {
  it.live("that are under way fail, and what the agent answers to them later is nobody's", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start()
      const { agent, id, runtime, tokens } = yield* boot(daemon, { once: true, streams: 2 })
      agent.answer(Raw.Ctl.readfile, "hold")
      runtime.post(Raw.Op.hyper, Survival.readfile("first"))
      yield* agent.command(Raw.Ctl.readfile)
      const second = yield* attach(daemon, id)
      second.post(Raw.Op.hyper, Survival.readfile("second"))
      const starter = yield* attach(daemon, id)
      starter.post(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0]))
      const silent = yield* Scenario.startAgent({ ready: false })
      const registrar = yield* daemon.connect
      const silentId = Scenario.freshId()
      registrar.post(Raw.Op.registerVM, { containerId: silentId, ctlSerial: silent.ctlPath, ioSerial: silent.ioPath })
      yield* until("the connections", () => silent.connected.every(Boolean))
      yield* daemon.settle
      const clients = [runtime, second, starter, registrar]
      yield* Effect.forEach(clients, (client) => Effect.forkScoped(half(client), { startImmediately: true }))
      yield* stop(daemon)
      for (const client of clients) {
        yield* client.dropped()
        refused(client.responses.at(-1)!, "the daemon stops")
      }
      assert.strictEqual(agent.commands(Raw.Ctl.readfile).length, 1)

      const starting = yield* Effect.forkScoped(next(daemon), { startImmediately: true })
      yield* until("the new connection", () => agent.connections[0] === 2 && agent.connected[0])
      agent.ack("of the first")
      const later = yield* Fiber.join(starting)
      agent.answer(Raw.Ctl.readfile, (payload) => ({ ack: `answer to ${payload.toString()}` }))
      const client = yield* attach(later, id)
      client.post(Raw.Op.hyper, Survival.readfile("third"))
      const answer = accepted(yield* client.response(1)).toString()
      assert.strictEqual(answer, `answer to ${JSON.stringify({ container: "c1", file: "third" })}`)
      // the id of the registration that failed is free, and the token of the start that did good
      refused(yield* Scenario.unregister(later, silentId), "unknown containerID")
      const shim = yield* connectShim(later, tokens[0])
      accepted(yield* client.request(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0])))
      agent.exit(3, 0)
      yield* exited(shim)
      // new sessions get new numbers
      const [token] = tokensOf(yield* client.request(Raw.Op.attachVM, { containerId: id, numIOStreams: 1 }))
      yield* connectShim(later, token)
      accepted(yield* client.request(Raw.Op.hyper, hyper("execcmd", exec("c1"), token)))
      const { payload } = yield* agent.command(Raw.Ctl.execcmd)
      assert.include(payload.toString(), '"stdio":7,"stderr":8')
    })
  )
})

describe("a VM that is not what it was", () => {
  it.live("is dropped after one try where its sockets are gone: its record too, and its shim is told", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start()
      const { agent, id, tokens } = yield* running(daemon, { once: true })
      const other = yield* running(daemon, { once: true })
      assert.strictEqual(recordsOf(daemon).length, 2)
      yield* stop(daemon)
      assert.strictEqual(recordsOf(daemon).length, 2)
      agent.close()
      const later = yield* next(daemon)
      const shim = yield* later.connect
      const claim = yield* shim.request(Raw.Op.connectShim, { token: tokens[0] }, 15)
      if (claim.flags === 0) yield* shim.dropped()
      else refused(claim, "unknown token")
      yield* eventually(later, "the record's removal", () => recordsOf(later).length === 1)
      const runtime = yield* later.connect
      refused(yield* runtime.request(Raw.Op.attachVM, { containerId: id }), "unknown containerID")
      accepted(yield* Scenario.unregister(later, id))
      assert.deepStrictEqual(agent.connections, [1, 1])
      yield* answers(yield* attach(later, other.id))
    })
  )

  it.live(
    "is kept and suspect where its agent does not answer, and its shim is answered after ten seconds",
    () =>
      Effect.gen(function* () {
        const daemon = yield* Survival.start()
        const { agent, id, runtime, tokens } = yield* running(daemon, { once: true })
        agent.answer(Raw.Ctl.readfile, "hold")
        runtime.post(Raw.Op.hyper, Survival.readfile("never answered"))
        yield* agent.command(Raw.Ctl.readfile)
        yield* stop(daemon)
        agent.answer(Raw.Ctl.ping, "hold")
        const later = yield* next(daemon)
        const shim = yield* later.connect
        accepted(yield* shim.request(Raw.Op.connectShim, { token: tokens[0] }, 15))
        assert.isTrue(regretted(later).some((msg) => msg.startsWith("VM suspect")))
        agent.sendIo([3, "alive"])
        yield* shim.until("output", () => shim.received.stdout === 5)
        agent.answer(Raw.Ctl.ping, { ack: "" })
        for (const _ of agent.commands(Raw.Ctl.ping)) agent.ack()
        yield* answers(yield* attach(later, id))
        agent.exit(3, 2)
        yield* exited(shim)
      }),
    40_000
  )

  it.live("and was lost before the stop is forgotten once its shim has had the rest", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start()
      const { agent, shim, tokens } = yield* running(daemon, { once: true })
      shim.hangUp()
      yield* daemon.settle
      agent.sendIo([3, "last words"])
      agent.exit(3, 6)
      agent.powerOff()
      yield* eventually(daemon, "the loss", () => daemon.child.log.some((record) => record.get("msg") === "VM lost"))
      yield* stop(daemon)
      const later = yield* next(daemon)
      const again = yield* reconnect(later, tokens[0])
      yield* exited(again)
      assert.deepStrictEqual(again.story, ["stdout last words", "exit 6"])
      again.send(Raw.command(Raw.Op.disconnectShim))
      yield* eventually(later, "the record's removal", () => recordsOf(later).length === 0)
    })
  )
})

describe("the daemon of", () => {
  it.live("a pod is started again with the same socket, and ends with its pod", () =>
    Effect.gen(function* () {
      const directory = yield* DaemonProcess.temporaryDirectory
      const socketPath = Path.join(directory, "proxy.sock")
      const args = ["-uri", `unix://${socketPath}`, "-log", "info"]
      const env = { PATH: Path.dirname(process.execPath) }
      const pod = Effect.gen(function* () {
        return yield* DaemonProcess.listening(yield* DaemonProcess.run(args, { env }), directory, socketPath)
      })
      const daemon = yield* pod
      const { agent, id, tokens } = yield* running(daemon, { once: true })
      yield* stop(daemon)
      const later = yield* pod
      yield* until("the new connections", () => agent.connections[1] === 2)
      agent.sendIo([3, "after"])
      const shim = yield* reconnect(later, tokens[0])
      agent.exit(3, 8)
      yield* exited(shim)
      assert.deepStrictEqual(shim.story, ["stdout after", "exit 8"])
      shim.send(Raw.command(Raw.Op.disconnectShim))
      shim.end()
      accepted(yield* Scenario.unregister(later, id))
      agent.powerOff()
      assert.deepStrictEqual(yield* later.child.ended(), { code: 0, signal: null })
      assert.deepStrictEqual(
        Fs.readdirSync(directory).filter((name) => name !== "spool"),
        []
      )
    })
  )

  it.live("another socket leaves the records alone that are not its own, in a directory for both", () =>
    Effect.gen(function* () {
      const shared = yield* DaemonProcess.temporaryDirectory
      const args = ["-state-dir", shared]
      const one = yield* Survival.start({ args })
      const two = yield* Survival.start({ args })
      const [first, second] = [yield* running(one, { once: true }), yield* running(two, { once: true })]
      yield* stop(one)
      yield* stop(two)
      assert.strictEqual(Fs.readdirSync(shared).filter((name) => name.endsWith(".state")).length, 2)
      const again = yield* next(one, { args })
      yield* answers(yield* attach(again, first.id))
      const client = yield* again.connect
      refused(yield* client.request(Raw.Op.attachVM, { containerId: second.id }), "unknown containerID")
      yield* answers(yield* attach(yield* next(two, { args }), second.id))
      assert.deepStrictEqual(second.agent.connections, [2, 2])
    })
  )
})
