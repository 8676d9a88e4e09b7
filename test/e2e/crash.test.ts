/** A daemon that is killed, and the next one on its socket. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fs from "node:fs"
import * as Path from "node:path"
import type { Daemon } from "../support/e2e/DaemonProcess.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import type { RawClient } from "../support/e2e/RawClient.ts"
import * as Scenario from "../support/e2e/Scenario.ts"
import * as Survival from "../support/e2e/Survival.ts"
import { until } from "../support/e2e/Wait.ts"

const { accepted, answers, attach, boot, connectShim, container, exec, hyper, refused, register, running, tokensOf } =
  Scenario
const { crash, eventually, next, reconnect, recordsOf, regretted, spooled, stateOf } = Survival
const mebibyte = 1024 * 1024

const exited = (shim: RawClient) => shim.until("the exit", () => shim.exits.length > 0)

/** The messages of the gaps that a daemon's log admits. */
const gaps = (daemon: Daemon) => regretted(daemon).filter((msg) => msg.startsWith("gap possible"))

describe("what a client has been told", () => {
  it.live("of a VM and its tokens is on disk before it is told", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start()
      const agent = yield* Scenario.startAgent({ once: true })
      const id = Scenario.freshId()
      const [first] = tokensOf(yield* register(daemon, id, agent, { numIOStreams: 1 }))
      yield* crash(daemon)
      const second = yield* next(daemon)
      const client = yield* attach(second, id)
      const [more] = tokensOf(yield* client.request(Raw.Op.attachVM, { containerId: id, numIOStreams: 1 }))
      yield* crash(second)
      const third = yield* next(second)
      const runtime = yield* attach(third, id)
      const shims = [yield* connectShim(third, first), yield* connectShim(third, more)]
      accepted(yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", container("c1"), first)))
      accepted(yield* runtime.request(Raw.Op.hyper, hyper("execcmd", exec("c1"), more)))
      agent.sendIo([3, "one"], [5, "two"])
      agent.exit(3, 1)
      agent.exit(5, 2)
      yield* Effect.forEach(shims, exited)
      assert.deepStrictEqual(
        shims.map(({ story }) => story),
        [
          ["stdout one", "exit 1"],
          ["stdout two", "exit 2"]
        ]
      )
      // nothing was under way: there is nothing that could be missing
      assert.deepStrictEqual(gaps(third), [])
    })
  )

  it.live("of UnregisterVM holds: the id is free, and what was attached goes on", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start()
      const { agent, id, tokens } = yield* running(daemon, { once: true })
      accepted(yield* Scenario.unregister(daemon, id))
      yield* crash(daemon)
      const later = yield* next(daemon)
      const client = yield* later.connect
      refused(yield* client.request(Raw.Op.attachVM, { containerId: id }), "unknown containerID")
      const shim = yield* reconnect(later, tokens[0])
      agent.sendIo([3, "on"])
      agent.exit(3, 0)
      yield* exited(shim)
      assert.deepStrictEqual(shim.story, ["stdout on", "exit 0"])
      yield* boot(later, { id })
    })
  )

  it.live("by DisconnectShim's end holds: the token is nobody's", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start()
      const vm = yield* running(daemon, { once: true, streams: 2 })
      vm.agent.exit(3, 0)
      yield* exited(vm.shim)
      vm.shim.send(Raw.command(Raw.Op.disconnectShim))
      yield* vm.shim.dropped()
      yield* eventually(daemon, "the record", () => {
        const [name] = recordsOf(daemon)
        return !Fs.readFileSync(Path.join(stateOf(daemon), name!), "utf8").includes(vm.tokens[0]!)
      })
      yield* crash(daemon)
      const later = yield* next(daemon)
      const client = yield* later.connect
      refused(yield* client.request(Raw.Op.connectShim, { token: vm.tokens[0] }), "unknown token")
      yield* connectShim(later, vm.tokens[1])
    })
  )
})

describe("a reply that the killed daemon waited for", () => {
  it.live("is given to nobody, and a start that it acknowledged has been started", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start()
      const { agent, id, tokens, runtime } = yield* boot(daemon, { once: true, streams: 1 })
      const shim = yield* connectShim(daemon, tokens[0])
      agent.answer(Raw.Ctl.newcontainer, "hold")
      runtime.post(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0]))
      yield* agent.command(Raw.Ctl.newcontainer)
      const waiting = yield* attach(daemon, id)
      waiting.post(Raw.Op.hyper, Survival.readfile("never sent"))
      yield* daemon.settle
      yield* crash(daemon)
      yield* shim.dropped()
      yield* Effect.forkScoped(
        Effect.map(
          until("the new connection", () => agent.connections[0] === 2 && agent.connected[0]),
          () => agent.ack("late, and not empty")
        ),
        { startImmediately: true }
      )
      const later = yield* next(daemon)
      const again = yield* reconnect(later, tokens[0])
      agent.answer(Raw.Ctl.readfile, (payload) => ({ ack: payload.toString() }))
      const client = yield* attach(later, id)
      const answer = accepted(yield* client.request(Raw.Op.hyper, Survival.readfile("mine")))
      assert.strictEqual(answer.toString(), JSON.stringify({ container: "c1", file: "mine" }))
      assert.strictEqual(agent.commands(Raw.Ctl.readfile).length, 1)
      // it runs: it can be signalled, gets its stdin, and cannot be started once more
      accepted(yield* again.request(Raw.Op.signal, { signalNumber: 10 }))
      again.send(Raw.stdin("typed"))
      yield* agent.stdinLength(3, 5)
      refused(yield* client.request(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0])))
      agent.exit(3, 12)
      yield* exited(again)
      assert.deepStrictEqual(again.story, ["exit 12"])
      assert.isNotEmpty(gaps(later))
    })
  )

  it.live("may be torn: what is left of it is skipped", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start()
      const { agent, id, runtime } = yield* running(daemon, { once: true })
      agent.answer(Raw.Ctl.readfile, "hold")
      runtime.post(Raw.Op.hyper, Survival.readfile("large"))
      yield* agent.command(Raw.Ctl.readfile)
      agent.sendCtlBytes(Raw.ctlMessage(Raw.Ctl.ack, Scenario.pattern(mebibyte)).subarray(0, 100_000))
      yield* daemon.settle
      yield* crash(daemon)
      const later = yield* next(daemon)
      agent.answer(Raw.Ctl.readfile, { ack: "whole" })
      const client = yield* attach(later, id)
      assert.strictEqual(accepted(yield* client.request(Raw.Op.hyper, Survival.readfile("small"))).toString(), "whole")
    })
  )
})

describe("a process", () => {
  it.live("that ended meanwhile, its status lost, ends with 255 for its shim, where the agent knows of its end", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start()
      const { agent, tokens } = yield* running(daemon, { next: true, once: true })
      yield* crash(daemon)
      agent.answer(Raw.Ctl.killcontainer, { error: "" })
      const later = yield* next(daemon)
      const shim = yield* reconnect(later, tokens[0])
      yield* exited(shim)
      assert.deepStrictEqual(shim.story, ["exit 255"])
      assert.isTrue(regretted(later).some((msg) => msg.startsWith("exit status unknown")))
      const { payload } = yield* agent.command(Raw.Ctl.killcontainer)
      assert.deepStrictEqual(JSON.parse(payload.toString()), { container: "c1", signal: 0, allProcesses: false })
    })
  )

  it.live("whose end comes on the new connection has its own status, whatever the agent says of its container", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start()
      const { agent, tokens } = yield* running(daemon, { next: true, once: true })
      yield* crash(daemon)
      agent.answer(Raw.Ctl.killcontainer, { error: "" })
      yield* Effect.forkScoped(
        Effect.map(
          until("the new connection", () => agent.connections[1] === 2 && agent.connected[1]),
          () => {
            agent.sendIo([3, "last"])
            agent.exit(3, 4)
          }
        ),
        { startImmediately: true }
      )
      const later = yield* next(daemon)
      const shim = yield* reconnect(later, tokens[0])
      yield* exited(shim)
      assert.deepStrictEqual(shim.story, ["stdout last", "exit 4"])
    })
  )

  it.live(
    "whose output waited on disk for a shim that was away loses no more than was in memory, and that is logged",
    () =>
      Effect.gen(function* () {
        const args = ["-outbox", "64KiB"]
        const daemon = yield* Survival.start({ args })
        const { agent, shim, tokens } = yield* running(daemon, { once: true })
        shim.hangUp()
        yield* daemon.settle
        const output = Scenario.pattern(4 * mebibyte)
        const piece = 10_000
        for (let at = 0; at < output.length; at += piece) agent.sendIo([3, output.subarray(at, at + piece)])
        yield* eventually(daemon, "the spool", () => spooled(daemon) > output.length - 160 * 1024)
        yield* crash(daemon)
        const later = yield* next(daemon, { args })
        const again = yield* reconnect(later, tokens[0])
        agent.sendIo([3, "after the restart"])
        agent.exit(3, 2)
        yield* exited(again)
        assert.isNotEmpty(gaps(later))
        const frames = again.frames.filter(({ type }) => type === Raw.Type.stream).map(({ payload }) => payload)
        assert.strictEqual(frames.at(-1)!.toString(), "after the restart")
        // whole messages, in order, none twice; what is missing fits into what was in memory
        let place = -1
        let got = 0
        for (const frame of frames.slice(0, -1)) {
          const at = frame.readUInt32BE(0)
          assert.isAbove(at, place)
          assert.isTrue(frame.equals(output.subarray(at, at + frame.length)))
          place = at
          got += frame.length
        }
        assert.isAtLeast(got, output.length - 200 * 1024)
        assert.deepStrictEqual(again.exits, [2])
      })
  )

  it.live("that had ended before the kill, its output on disk, has its status behind all that is left of it", () =>
    Effect.gen(function* () {
      const args = ["-outbox", "64KiB"]
      const daemon = yield* Survival.start({ args })
      const { agent, shim, tokens } = yield* running(daemon, { once: true })
      shim.hangUp()
      yield* daemon.settle
      const output = Scenario.pattern(2 * mebibyte)
      for (let at = 0; at < output.length; at += 10_000) agent.sendIo([3, output.subarray(at, at + 10_000)])
      agent.exit(3, 33)
      yield* eventually(daemon, "the status on disk", () => {
        const [name] = recordsOf(daemon)
        return Fs.readFileSync(Path.join(stateOf(daemon), name!), "utf8").includes('"status":33')
      })
      yield* crash(daemon)
      const later = yield* next(daemon, { args })
      const again = yield* reconnect(later, tokens[0])
      yield* exited(again)
      assert.isAbove(again.received.stdout, mebibyte)
      const start = again.stdout.readUInt32BE(0) // the oldest of it was in memory
      assert.isTrue(again.stdout.equals(output.subarray(start, start + again.received.stdout)))
      assert.deepStrictEqual(again.exits, [33])
      assert.strictEqual(again.frames.at(-1)!.type, Raw.Type.notification)
      if (again.received.stdout < output.length) assert.isNotEmpty(gaps(later))
    })
  )

  it.live("whose shim stays gets every byte that comes after the restart, and its stdin", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start()
      const { agent, shim, tokens } = yield* running(daemon, { once: true })
      agent.sendIo([3, "before"])
      yield* shim.until("the output", () => shim.received.stdout === 6)
      yield* crash(daemon)
      yield* shim.dropped()
      const later = yield* next(daemon)
      const again = yield* reconnect(later, tokens[0])
      const output = Scenario.pattern(mebibyte)
      for (let at = 0; at < output.length; at += 10_000) agent.sendIo([3, output.subarray(at, at + 10_000)])
      const input = Scenario.pattern(50_000, 1)
      again.send(Raw.stdin(input), Raw.stdin(""))
      yield* agent.stdinEnd(3)
      assert.isTrue(agent.stdin(3).equals(input))
      agent.exit(3, 0)
      yield* exited(again)
      assert.isTrue(again.stdout.equals(output))
    })
  )

  it.live("beside a message of which the killed daemon had read a part goes on with the next one", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start()
      const { agent, tokens } = yield* running(daemon, { once: true })
      agent.sendIoBytes(Raw.ioMessage(3, Scenario.pattern(500_000)).subarray(0, 300_000))
      yield* daemon.settle
      yield* crash(daemon)
      const later = yield* next(daemon)
      const shim = yield* reconnect(later, tokens[0])
      agent.sendIo([3, "next"])
      agent.exit(3, 0)
      yield* exited(shim)
      assert.deepStrictEqual(shim.story, ["stdout next", "exit 0"])
    })
  )
})

describe("state that cannot be read", () => {
  it.live("is set aside, whatever is wrong with it, and the rest is used", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start()
      const { agent, id } = yield* running(daemon, { once: true })
      yield* crash(daemon)
      const [name] = recordsOf(daemon)
      const at = (file: string) => Path.join(stateOf(daemon), file)
      const record = JSON.parse(Fs.readFileSync(at(name!), "utf8")) as object
      const bad: Readonly<Record<string, string | Buffer>> = {
        "vm-empty-1.state": "",
        "vm-noise-1.state": Buffer.from(Array.from({ length: 300 }, (_, index) => (index * 7919) % 256)),
        "vm-newer-1.state": JSON.stringify({ ...record, version: 99, more: [] }),
        "vm-other-1.state": JSON.stringify({ version: 1, sessions: "none" }),
        "stop.carried": Buffer.alloc(64, 0xff)
      }
      for (const [file, bytes] of Object.entries(bad)) Fs.writeFileSync(at(file), bytes)
      Fs.mkdirSync(at("vm-folder-1.state"))
      const later = yield* next(daemon)
      yield* answers(yield* attach(later, id))
      assert.deepStrictEqual(agent.connections, [2, 2])
      const aside = later.child.log.filter((entry) => entry.get("msg") === "state cannot be read: it is set aside")
      assert.deepStrictEqual(new Set(aside.map((entry) => entry.get("file"))), new Set(Object.keys(bad)))
      assert.strictEqual(aside.length, Object.keys(bad).length)
      assert.isTrue(aside.some((entry) => entry.get("reason")?.includes("version is 99") === true))
      for (const file of Object.keys(bad)) {
        assert.isFalse(Fs.existsSync(at(file)))
        assert.isTrue(Fs.existsSync(at(`${file}.unreadable`)))
      }
      yield* answers((yield* boot(later)).runtime)
    })
  )

  it.live("and a directory that cannot be used cost the daemon nothing but its memory", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start({ args: ["-state-dir", "/dev/null/state"] })
      yield* answers((yield* running(daemon)).runtime)
      assert.isTrue(regretted(daemon).includes("the state cannot be written: a restart would not find its VMs"))
      assert.strictEqual((yield* daemon.child.stop()).code, 0)
    })
  )
})
