/** Shims that come, stop, vanish and come back, and tokens that outlive them. */
import { assert, it as own } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as DaemonProcess from "../support/e2e/DaemonProcess.ts"
import { SharedDaemon, withDaemon } from "../support/e2e/DaemonProcess.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import type { RawClient } from "../support/e2e/RawClient.ts"
import * as Scenario from "../support/e2e/Scenario.ts"
import { until } from "../support/e2e/Wait.ts"

const { accepted, answers, boot, connectShim, container, exec, hyper, refused, running, runExec } = Scenario

/** The shim vanishes, and the daemon knows. */
const vanish = (daemon: DaemonProcess.Daemon, shim: RawClient) => {
  shim.hangUp()
  return daemon.settle
}

/** Proves that the proxy goes on reading a connection that it has ended: writes that a closed peer would refuse. */
const staysWritable = (client: RawClient) =>
  Effect.gen(function* () {
    yield* until("EOF", () => client.ended)
    for (let n = 0; n < 16; n++) client.send(Raw.stdin(Buffer.alloc(64 * 1024)))
    yield* until("the kernel has it all", () => client.error !== undefined || client.unsent === 0)
    client.end()
    yield* until("the end", () => client.closed)
    assert.isUndefined(client.error)
  })

withDaemon()("sessions", (it) => {
  it.effect(
    "a token may be claimed again any number of times, and output that came meanwhile is kept and delivered",
    () =>
      Effect.gen(function* () {
        const daemon = yield* SharedDaemon
        const { agent, runtime, shim, tokens } = yield* running(daemon)
        agent.sendIo([3, "begin;"])
        yield* shim.until("the output", () => shim.received.stdout === 6)
        yield* vanish(daemon, shim)
        for (let round = 0; round < 20; round++) {
          agent.sendIo([3, `away ${round};`], [4, `e${round};`])
          yield* answers(runtime)
          const again = yield* connectShim(daemon, tokens[0])
          agent.sendIo([3, "here;"])
          const expected = `away ${round};here;`
          yield* again.until("the output", () => again.received.stdout === expected.length)
          assert.strictEqual(again.stdout.toString(), expected)
          assert.strictEqual(again.stderr.toString(), `e${round};`)
          again.send(Raw.stdin(`in ${round};`))
          yield* until("stdin", () => agent.stdin(3).toString().endsWith(`in ${round};`))
          yield* vanish(daemon, again)
        }
        agent.sendIo([3, "last;"])
        agent.exit(3, 8)
        yield* answers(runtime)
        const last = yield* connectShim(daemon, tokens[0])
        yield* last.until("the exit", () => last.exits.length === 1)
        assert.deepStrictEqual(last.story, ["stdout last;", "exit 8"])
        assert.strictEqual(agent.stdin(3).toString(), Array.from({ length: 20 }, (_, n) => `in ${n};`).join(""))
      })
  )

  it.effect("the response to ConnectShim comes before the output that was kept", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, shim, tokens } = yield* running(daemon)
      yield* vanish(daemon, shim)
      agent.sendIo([3, "kept"])
      yield* daemon.settle
      const again = yield* connectShim(daemon, tokens[0])
      yield* again.until("the output", () => again.received.stdout === 4)
      assert.strictEqual(again.frames[0]!.type, Raw.Type.response)
    })
  )

  it.effect("a token may be claimed again before its process has started", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, runtime, tokens } = yield* boot(daemon, { streams: 1 })
      for (let round = 0; round < 3; round++) yield* vanish(daemon, yield* connectShim(daemon, tokens[0]))
      const shim = yield* connectShim(daemon, tokens[0])
      accepted(yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0])))
      agent.sendIo([3, "up"])
      yield* shim.until("the output", () => shim.received.stdout === 2)
    })
  )

  it.effect("a claimed token cannot be claimed, and only a prefix of it is told", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, shim, tokens } = yield* running(daemon)
      const token = tokens[0]!
      const rival = yield* daemon.connect
      const reason = refused(
        yield* rival.request(Raw.Op.connectShim, { token }),
        "token already claimed: ",
        Raw.Op.connectShim
      )
      const shown = reason.slice("token already claimed: ".length)
      assert.isTrue(token.startsWith(shown.slice(0, 4)), shown)
      assert.notInclude(reason, token.slice(0, 16))
      agent.sendIo([3, "mine"])
      yield* shim.until("the output", () => shim.received.stdout === 4)
      yield* daemon.settle
      assert.strictEqual(rival.received.stdout, 0)
      assert.isFalse(rival.isDropped)
    })
  )

  it.effect("DisconnectShim ends the session: its token is forgotten and its numbers are never used again", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, id, runtime, shim, tokens } = yield* running(daemon)
      agent.exit(3, 0)
      yield* shim.until("the exit", () => shim.exits.length === 1)
      shim.send(Raw.command(Raw.Op.disconnectShim))
      yield* shim.dropped()
      const late = yield* daemon.connect
      refused(yield* late.request(Raw.Op.connectShim, { token: tokens[0] }), "unknown token: ")
      refused(yield* runtime.request(Raw.Op.hyper, hyper("execcmd", exec("c1"), tokens[0])), "unknown token: ")
      const [next] = Scenario.tokensOf(yield* runtime.request(Raw.Op.attachVM, { containerId: id, numIOStreams: 1 }))
      yield* connectShim(daemon, next)
      accepted(yield* runtime.request(Raw.Op.hyper, hyper("execcmd", exec("c1"), next)))
      const { payload } = yield* agent.command(Raw.Ctl.execcmd)
      assert.include(payload.toString(), '"stdio":5')
      agent.sendIo([3, "ghost"], [4, "ghost"])
      yield* answers(runtime)
    })
  )

  it.effect("a shim that says DisconnectShim and leaves without waiting has ended its session too", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, shim, tokens } = yield* running(daemon)
      agent.exit(3, 0)
      yield* shim.until("the exit", () => shim.exits.length === 1)
      shim.send(Raw.command(Raw.Op.disconnectShim))
      shim.end()
      yield* shim.dropped()
      const late = yield* daemon.connect
      refused(yield* late.request(Raw.Op.connectShim, { token: tokens[0] }), "unknown token: ")
    })
  )

  it.effect("a connection that is ended by DisconnectShim is ended by half: what is still written is taken", () =>
    Effect.gen(function* () {
      const { shim } = yield* running(yield* SharedDaemon)
      shim.send(Raw.command(Raw.Op.disconnectShim))
      yield* staysWritable(shim)
    })
  )

  it.effect("a connection that is ended by its VM's loss is ended by half as well", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running(yield* SharedDaemon)
      agent.powerOff()
      yield* staysWritable(shim)
    })
  )

  it.effect("a shim that stops reading disturbs no other session of its VM", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* running(daemon, { streams: 2 })
      const second = yield* runExec(daemon, vm, vm.tokens[1])
      vm.shim.pause()
      const data = Scenario.pattern(900_000)
      for (let at = 0; at < data.length; at += 10_000) vm.agent.sendIo([3, data.subarray(at, at + 10_000)])
      vm.agent.sendIo([5, "undisturbed"])
      vm.agent.exit(5, 0)
      yield* second.until("the exit", () => second.exits.length === 1)
      assert.deepStrictEqual(second.story, ["stdout undisturbed", "exit 0"])
      second.send(Raw.stdin("in"))
      yield* answers(vm.runtime)
      vm.agent.exit(3, 1)
      vm.shim.resume()
      yield* vm.shim.until("the exit", () => vm.shim.exits.length === 1)
      assert.isTrue(vm.shim.stdout.equals(data))
    })
  )

  it.effect(
    "a shim that stops reading its output for ever disturbs no other VM, and loses nothing when it goes on",
    () =>
      Effect.gen(function* () {
        const daemon = yield* SharedDaemon
        const { agent, shim } = yield* running(daemon)
        shim.pause()
        const data = Scenario.pattern(12 * 1024 * 1024)
        for (let at = 0; at < data.length; at += 10_000) agent.sendIo([3, data.subarray(at, at + 10_000)])
        agent.exit(3, 1)
        const other = yield* running(daemon)
        other.agent.sendIo([3, "elsewhere"])
        other.agent.exit(3, 0)
        yield* other.shim.until("the exit", () => other.shim.exits.length === 1)
        assert.deepStrictEqual(other.shim.story, ["stdout elsewhere", "exit 0"])
        shim.resume()
        yield* shim.until("the exit", () => shim.exits.length === 1)
        assert.strictEqual(shim.received.stdout, data.length)
        assert.isTrue(shim.stdout.equals(data))
      })
  )

  it.effect("a shim's stdin is read while it does not read its output", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running(yield* SharedDaemon)
      shim.pause()
      for (let n = 0; n < 90; n++) agent.sendIo([3, Buffer.alloc(10_000)])
      const data = Scenario.pattern(500_000)
      shim.send(Raw.stdin(data))
      yield* agent.stdinLength(3, data.length)
      assert.isTrue(agent.stdin(3).equals(data))
    })
  )

  it.effect("a shim that leaves with output unread disturbs nobody", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* running(daemon, { streams: 2 })
      const second = yield* runExec(daemon, vm, vm.tokens[1])
      vm.shim.pause()
      for (let n = 0; n < 90; n++) vm.agent.sendIo([3, Buffer.alloc(10_000)])
      yield* daemon.settle
      yield* vanish(daemon, vm.shim)
      vm.agent.sendIo([3, "more"], [5, "fine"])
      yield* second.until("the output", () => second.received.stdout === 4)
      yield* answers(vm.runtime)
    })
  )

  it.effect("what a vanished shim had not taken is delivered to the next, without a gap up to the end", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, runtime, shim, tokens } = yield* running(daemon)
      shim.pause()
      const data = Scenario.pattern(900_000)
      for (let at = 0; at < data.length; at += 10_000) agent.sendIo([3, data.subarray(at, at + 10_000)])
      yield* answers(runtime)
      yield* vanish(daemon, shim)
      agent.exit(3, 6)
      const again = yield* connectShim(daemon, tokens[0])
      yield* again.until("the exit", () => again.exits.length === 1)
      // what the first had in its socket is lost with it
      assert.isAbove(again.received.stdout, 500_000)
      assert.isTrue(again.stdout.equals(data.subarray(data.length - again.received.stdout)))
      assert.deepStrictEqual(again.exits, [6])
    })
  )

  it.effect("a token whose shim died with stdin that nobody reads may be claimed again", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, shim, tokens } = yield* running(daemon)
      agent.pauseIo()
      shim.send(Raw.stdin(Buffer.alloc(8 * 1024 * 1024)))
      for (let n = 0; n < 20; n++) yield* daemon.settle // until no more is read
      yield* vanish(daemon, shim)
      const again = yield* connectShim(daemon, tokens[0])
      agent.exit(3, 1)
      yield* again.until("the exit", () => again.exits.length === 1)
    })
  )

  it.effect("DisconnectShim takes along a start that has not been written", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, id, runtime, tokens } = yield* boot(daemon, { streams: 2 })
      const other = yield* Scenario.attach(daemon, id)
      const shim = yield* connectShim(daemon, tokens[0])
      agent.answer(Raw.Ctl.readfile, "hold") // holds the turn
      const held = other.post(Raw.Op.hyper, hyper("readfile"))
      yield* agent.command(Raw.Ctl.readfile)
      const start = runtime.post(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0]))
      yield* daemon.settle
      shim.send(Raw.command(Raw.Op.disconnectShim))
      yield* shim.dropped()
      yield* daemon.settle
      agent.ack()
      accepted(yield* other.response(held))
      refused(yield* runtime.response(start), "", Raw.Op.hyper)
      yield* answers(other)
      assert.deepStrictEqual(agent.codes, [Raw.Ctl.readfile, Raw.Ctl.ping])
    })
  )

  it.effect("a shim that leaves while its process floods it disturbs nobody", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* running(daemon, { streams: 2 })
      const second = yield* runExec(daemon, vm, vm.tokens[1])
      for (let n = 0; n < 200; n++) vm.agent.sendIo([3, Buffer.alloc(4_000)])
      yield* vm.shim.until("some output", () => vm.shim.received.stdout > 0)
      vm.shim.hangUp()
      for (let n = 0; n < 20; n++) vm.agent.sendIo([3, Buffer.alloc(4_000)])
      vm.agent.sendIo([5, "fine"])
      yield* second.until("the output", () => second.received.stdout === 4)
      yield* answers(vm.runtime)
    })
  )

  it.effect("signals work for a shim that came back", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, shim, tokens } = yield* running(daemon)
      yield* vanish(daemon, shim)
      const again = yield* connectShim(daemon, tokens[0])
      accepted(yield* again.request(Raw.Op.signal, { signalNumber: 15 }))
      assert.strictEqual(agent.commands(Raw.Ctl.killcontainer).length, 1)
    })
  )
})

own.live("a process that nobody watches for a while keeps all it printed", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start()
    const { agent, runtime, shim, tokens } = yield* running(daemon)
    yield* vanish(daemon, shim)
    const data = Scenario.pattern(8 * 1024 * 1024)
    for (let at = 0; at < data.length; at += 10_000) agent.sendIo([3, data.subarray(at, at + 10_000)])
    agent.exit(3, 77)
    for (let n = 0; n < 20; n++) yield* answers(runtime)
    const again = yield* connectShim(daemon, tokens[0])
    yield* again.until("the exit", () => again.exits.length === 1)
    assert.isTrue(again.stdout.equals(data))
    assert.deepStrictEqual(again.exits, [77])
  })
)

own.live("output without end takes bounded memory, whether a shim does not read or is away", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start()
    const stuck = yield* running(daemon)
    const away = yield* running(daemon)
    yield* answers(stuck.runtime)
    stuck.shim.pause()
    yield* vanish(daemon, away.shim)
    const before = daemon.child.memory.resident
    const piece = Buffer.alloc(64 * 1024)
    for (let n = 0; n < 96 * 16; n++) for (const { agent } of [stuck, away]) agent.sendIo([3, piece])
    for (let n = 0; n < 200; n++) yield* answers(stuck.runtime)
    yield* answers(away.runtime)
    assert.isBelow(daemon.child.memory.resident - before, 144 * 1024 * 1024) // what a flood leaves to be collected included
  })
)
