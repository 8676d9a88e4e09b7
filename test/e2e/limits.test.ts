/** What is above a limit costs one connection, one command or one VM, is told and counted, and leaves everybody else alone. */
import { assert, describe, it as own } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { execFileSync } from "node:child_process"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as DaemonProcess from "../support/e2e/DaemonProcess.ts"
import { SharedDaemon, withDaemon } from "../support/e2e/DaemonProcess.ts"
import type { LogRecord } from "../support/e2e/Logfmt.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import type { RawClient } from "../support/e2e/RawClient.ts"
import * as Scenario from "../support/e2e/Scenario.ts"
import { until } from "../support/e2e/Wait.ts"

const { accepted, attach, boot, freshId, hyper, refused, register, startAgent } = Scenario

const mebibyte = 1024 * 1024

/** A command that the proxy answers by itself, with an error. */
const ask = (client: RawClient) => client.request(Raw.Op.attachVM, { containerId: "nobody's" })

/** Proves that the proxy serves a client. */
const served = (client: RawClient) =>
  Effect.map(ask(client), (answer) => refused(answer, "unknown containerID", Raw.Op.attachVM))

const messages = (records: ReadonlyArray<LogRecord>, msg: string) =>
  records.filter((record) => record.get("msg") === msg)

/** Waits until the proxy serves one more client: it hears of those that have left when it comes to it. */
const untilServed = (daemon: DaemonProcess.Daemon) =>
  Effect.gen(function* () {
    for (let tries = 0; tries < 1000; tries++) {
      const client = yield* daemon.connect
      client.post(Raw.Op.attachVM, { containerId: "nobody's" })
      yield* until("an answer, or an end", () => client.responses.length > 0 || client.isDropped)
      if (client.responses[0]?.payload.toString().includes("unknown containerID") === true) return client
      client.hangUp()
    }
    return assert.fail("nobody is served any more")
  })

describe("clients", () => {
  own.live("above the limit are told so, shims just end, and room is made by whoever leaves", () =>
    Effect.gen(function* () {
      const daemon = yield* DaemonProcess.start({ args: ["-max-connections", "3"] })
      const clients = [yield* untilServed(daemon), yield* untilServed(daemon), yield* untilServed(daemon)]
      const tooMany = "too many connections: the limit is 3"
      const late = yield* daemon.connect
      assert.strictEqual(refused(yield* ask(late), tooMany, Raw.Op.attachVM), tooMany)
      yield* late.dropped()
      const large = yield* daemon.connect
      large.send(Raw.header({ type: Raw.Type.command, opcode: Raw.Op.hyper, length: 8 * mebibyte }))
      refused(yield* large.response(0), tooMany, Raw.Op.hyper)
      const shim = yield* daemon.connect
      shim.post(Raw.Op.connectShim, { token: "x".repeat(44) })
      yield* shim.dropped()
      assert.deepStrictEqual(shim.frames, [])
      const silent = yield* daemon.connect
      yield* silent.dropped()
      assert.deepStrictEqual(silent.frames, [])
      for (const client of clients) yield* served(client)
      clients[0]!.hangUp()
      yield* untilServed(daemon)
      const told = messages(daemon.child.log, "clients turned away")
      assert.strictEqual(told.length, 1)
      assert.strictEqual(told[0]!.get("level"), "warn")
      assert.strictEqual(told[0]!.get("reason"), tooMany)
      yield* daemon.child.stop()
    }).pipe(Effect.scoped)
  )

  own.live("that come in a storm cost a bounded number of descriptors, and those who are served notice nothing", () =>
    Effect.gen(function* () {
      const daemon = yield* DaemonProcess.start({ args: ["-max-connections", "10"] })
      const before = daemon.child.descriptors
      const clients: Array<RawClient> = []
      for (let i = 0; i < 10; i++) clients.push(yield* untilServed(daemon))
      const storm = yield* Effect.all(
        Array.from({ length: 400 }, () => daemon.connect),
        { concurrency: "unbounded" }
      )
      for (const client of clients) yield* served(client)
      assert.isAtMost(daemon.child.descriptors, before + 10 + 64 + 5) // some are just being closed
      for (const client of storm) yield* client.dropped()
      for (const client of clients) yield* served(client)
      assert.strictEqual(messages(daemon.child.log, "clients turned away").length, 1)
      for (const client of [...storm, ...clients]) client.hangUp()
      yield* untilServed(daemon)
      yield* daemon.child.stop()
    }).pipe(Effect.scoped)
  )

  withDaemon("-log-rate", "50")("that log too much", (it) => {
    it.effect("lose the entries above the rate, all of which are counted, and nothing else", () =>
      Effect.gen(function* () {
        const daemon = yield* SharedDaemon
        const entry = Raw.logEntry({ source: "shim", level: "info", msg: "chatter" })
        const client = yield* daemon.connect
        client.send(...Array.from({ length: 5000 }, () => entry))
        yield* served(client)
        client.hangUp()
        const dropped = () =>
          messages(daemon.child.log, "log entries dropped").reduce(
            (sum, record) => sum + Number(record.get("count")),
            0
          )
        const passed = () => messages(daemon.child.log, "chatter").length
        yield* until("all entries to be told or counted", () => dropped() + passed() === 5000)
        assert.isAtLeast(passed(), 50)
        assert.isAbove(dropped(), passed())
        const other = yield* daemon.connect
        other.send(Raw.logEntry({ source: "shim", level: "info", msg: "a word" }))
        yield* served(other)
        yield* until("the entry of another client", () => messages(daemon.child.log, "a word").length === 1)
      })
    )
  })

  withDaemon()("that do not read their responses", (it) => {
    it.effect("end, before they take much memory, and their VM serves others", () =>
      Effect.gen(function* () {
        const daemon = yield* SharedDaemon
        const { agent, id, runtime } = yield* boot(daemon)
        const other = yield* attach(daemon, id)
        const { resident } = daemon.child.memory
        agent.answer(Raw.Ctl.readfile, { ack: Buffer.alloc(15 * mebibyte) })
        runtime.pause()
        for (let i = 0; i < 64; i++) runtime.post(Raw.Op.hyper, hyper("readfile"))
        yield* until("the log to tell", () => messages(daemon.child.log, "client's connection ended")[0])
        yield* Scenario.answers(other)
        assert.isAtMost(agent.commands(Raw.Ctl.readfile).length, 7)
        assert.isBelow(daemon.child.memory.peak - resident, 300 * mebibyte)
        assert.match(
          messages(daemon.child.log, "client's connection ended")[0]!.get("reason") ?? "",
          /^\d+ bytes of responses are not read: the limit is 67108864$/
        )
        runtime.hangUp()
      })
    )
  })

  withDaemon()("whose JSON nests without end", (it) => {
    it.effect("are refused at once, and go on", () =>
      Effect.gen(function* () {
        const daemon = yield* SharedDaemon
        const { id, runtime } = yield* boot(daemon)
        const deep = Buffer.from(`{"hyperName":"writefile","data":${"[".repeat(8 * mebibyte - 100)}`)
        runtime.send(Raw.command(Raw.Op.hyper, deep))
        const next = runtime.post(Raw.Op.hyper, hyper("ping"))
        yield* until("both answers", () => runtime.responses.length === 3)
        refused(runtime.responses[1]!, "malformed Hyper command: the payload nests deeper than 10000 levels")
        accepted(runtime.responses[2]!)
        assert.strictEqual(next, 1)
        yield* Scenario.answers(yield* attach(daemon, id))
      })
    )
  })
})

describe("descriptors", () => {
  const strace = (() => {
    try {
      execFileSync("strace", ["-o", "/dev/null", "true"], { stdio: "ignore" })
      return true
    } catch {
      return false
    }
  })()

  own.live(
    "may run out: those are turned away that would take the last, VMs still come, nothing spins, and it passes",
    () =>
      Effect.gen(function* () {
        const directory = yield* DaemonProcess.temporaryDirectory
        const trace = Path.join(directory, "trace")
        const traced = strace ? `strace -D -f -o '${trace}' -e trace=accept4 ` : ""
        const daemon = yield* DaemonProcess.start({
          directory,
          shell: `ulimit -n 64; exec ${traced}"$0" "$@"`
        })
        const tooMany = "too many descriptors: the limit is 64"
        const clients: Array<RawClient> = []
        let refusals = 0
        for (let i = 0; i < 100; i++) {
          const client = yield* daemon.connect
          client.post(Raw.Op.attachVM, { containerId: "nobody's" })
          yield* until("an answer, or an end", () => client.responses.length > 0 || client.isDropped)
          if (client.responses[0]?.payload.toString().includes("unknown containerID") === true) clients.push(client)
          else if (client.responses.length > 0) assert.strictEqual(refused(client.responses[0]!), tooMany)
          if (client.responses.length > 0 && !clients.includes(client)) refusals++
        }
        assert.isAtLeast(clients.length, 10)
        assert.isAtLeast(refusals, 1)
        assert.isBelow(daemon.child.descriptors, 64)

        // a VM takes what is kept for it
        const runtime = clients[0]!
        const asking = (id: string, agent: { readonly ctlPath: string; readonly ioPath: string }) =>
          runtime.request(Raw.Op.registerVM, { containerId: id, ctlSerial: agent.ctlPath, ioSerial: agent.ioPath })
        const agents = [yield* startAgent()]
        accepted(yield* asking(freshId(), agents[0]!))
        yield* Scenario.answers(runtime)

        // to the very last
        for (let tries = 0; tries < 20; tries++) {
          const agent = yield* startAgent()
          agents.push(agent)
          const answer = yield* asking(freshId(), agent)
          if (answer.flags === 0) continue
          refused(answer, "EMFILE")
          break
        }
        assert.isAtMost(agents.length, 6)
        for (let i = 0; i < 50; i++) yield* (yield* daemon.connect).dropped()
        for (const client of clients) yield* served(client)

        assert.isAtMost(messages(daemon.child.log, "clients turned away").length, 2)
        if (strace) {
          const calls = Fs.readFileSync(trace, "utf8")
            .split("\n")
            .filter((line) => line.includes("accept4"))
          assert.isAtMost(calls.length, 4 * 200)
        }

        for (const agent of agents) agent.powerOff()
        for (const client of clients.slice(1)) client.hangUp()
        const last = yield* startAgent()
        const next = yield* untilServed(daemon)
        accepted(
          yield* next.request(Raw.Op.registerVM, {
            containerId: freshId(),
            ctlSerial: last.ctlPath,
            ioSerial: last.ioPath
          })
        )
        yield* Scenario.answers(next)
        yield* daemon.child.stop()
      }).pipe(Effect.scoped),
    60_000
  )
})

const chosen = [
  "-max-vms=2",
  "-max-tokens=3",
  "-max-vm-tokens=4",
  "-max-hyper=300",
  "-max-command=250",
  "-max-stdin=100",
  "-max-ctl-command=200",
  "-max-ctl-reply=1000",
  "-max-io-message=1000"
]

withDaemon(...chosen)("limits of one's own choice", (it) => {
  /** Two VMs, and their end. */
  const vms = Effect.acquireRelease(
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      return [yield* boot(daemon), yield* boot(daemon)] as const
    }),
    (vms) =>
      Effect.gen(function* () {
        for (const { agent } of vms) {
          agent.powerOff()
          yield* until("the end of a VM", () => !agent.connected[0] && !agent.connected[1])
        }
        yield* Effect.orDie((yield* SharedDaemon).settle)
      })
  )

  it.effect("hold for VMs and tokens", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const [{ id, runtime }] = yield* vms
      const answer = yield* register(daemon, freshId(), yield* startAgent())
      assert.strictEqual(refused(answer), "too many VMs: 3 with this one, the limit is 2")
      const tokens = (numIOStreams: number) => runtime.request(Raw.Op.attachVM, { containerId: id, numIOStreams })
      assert.strictEqual(refused(yield* tokens(4)), "numIOStreams must be between 0 and 3, got 4")
      accepted(yield* tokens(3))
      assert.strictEqual(
        refused(yield* tokens(2)),
        "too many tokens for this VM: 5 with those asked for, the limit is 4"
      )
      accepted(yield* tokens(1))
    }).pipe(Effect.scoped)
  )

  for (const [what, frame, limit] of [
    ["a Hyper command", { type: Raw.Type.command, opcode: Raw.Op.hyper }, 300],
    ["another command", { type: Raw.Type.command, opcode: Raw.Op.signal }, 250],
    ["a log entry", { type: Raw.Type.stream, opcode: Raw.Stream.log }, 250],
    ["stdin", { type: Raw.Type.stream, opcode: Raw.Stream.stdin }, 100]
  ] as const)
    it.effect(`hold for the payload of ${what}`, () =>
      Effect.gen(function* () {
        const daemon = yield* SharedDaemon
        const fine = yield* daemon.connect
        fine.send(Raw.header({ ...frame, length: limit }))
        const large = yield* daemon.connect
        large.send(Raw.header({ ...frame, length: limit + 1 }))
        yield* large.dropped()
        yield* daemon.settle
        assert.isFalse(fine.isDropped)
      })
    )

  it.effect("hold for commands to an agent", () =>
    Effect.gen(function* () {
      const [{ agent, runtime }] = yield* vms
      const write = (size: number) => runtime.request(Raw.Op.hyper, hyper("writefile", "x".repeat(size - 8 - 2)))
      accepted(yield* write(200))
      assert.strictEqual(refused(yield* write(201)), "writefile is too large: 201 bytes, the limit is 200")
      yield* Scenario.answers(runtime)
      assert.deepStrictEqual(agent.codes, [Raw.Ctl.writefile, Raw.Ctl.ping])
    }).pipe(Effect.scoped)
  )

  it.effect("hold for an agent's messages", () =>
    Effect.gen(function* () {
      const [a, b] = yield* vms
      a.agent.answer(Raw.Ctl.readfile, { ack: Buffer.alloc(992) })
      assert.strictEqual(accepted(yield* a.runtime.request(Raw.Op.hyper, hyper("readfile"))).length, 992)
      a.agent.answer(Raw.Ctl.readfile, { ack: Buffer.alloc(993) })
      refused(
        yield* a.runtime.request(Raw.Op.hyper, hyper("readfile")),
        "VM lost: bad ctl message: length 1001, expected 8 to 1000"
      )
      b.agent.sendIo([3, Buffer.alloc(988)])
      yield* Scenario.answers(b.runtime)
      b.agent.sendIo([3, Buffer.alloc(989)])
      yield* until("the end of the VM", () => !b.agent.connected[1])
      refused(
        yield* b.runtime.request(Raw.Op.hyper, hyper("ping")),
        "VM lost: bad io message: length 1001, expected 12 to 1000"
      )
    }).pipe(Effect.scoped)
  )
})
