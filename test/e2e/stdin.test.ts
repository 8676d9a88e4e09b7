/** What a shim types, on its way to the process: held, cut, paced, and never lost or reordered. */
import { assert, it as own } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as DaemonProcess from "../support/e2e/DaemonProcess.ts"
import { SharedDaemon, withDaemon } from "../support/e2e/DaemonProcess.ts"
import type { FakeAgent } from "../support/e2e/FakeAgent.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import * as Scenario from "../support/e2e/Scenario.ts"
import { until } from "../support/e2e/Wait.ts"

const { accepted, boot, connectShim, container, hyper } = Scenario

/** What the agent saw since `from`, in order: sizes of stdin messages, and the names of pings. */
const seen = (agent: FakeAgent, from = 0): ReadonlyArray<number | "ping"> =>
  agent.history.slice(from).map((message) => {
    if (message.channel === "io") return message.data.length
    assert.strictEqual(message.code, Raw.Ctl.ping)
    return "ping"
  })

const pings = ["ping", "ping", "ping", "ping"] as const

withDaemon()("stdin", (it) => {
  for (const next of [false, true]) {
    const kind = next ? "C" : "Go"

    it.effect(`${kind} agent: what comes before the process has started is held until its ACK, in order`, () =>
      Effect.gen(function* () {
        const daemon = yield* SharedDaemon
        const { agent, runtime, tokens } = yield* boot(daemon, { next, streams: 1 })
        agent.answer(Raw.Ctl.newcontainer, "hold")
        const shim = yield* daemon.connect
        // at once behind ConnectShim, as the real shim does
        shim.send(Raw.command(Raw.Op.connectShim, { token: tokens[0] }), Raw.stdin("one "), Raw.stdin("two "))
        accepted(yield* shim.response(0))
        const number = runtime.post(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0]))
        yield* agent.command(Raw.Ctl.newcontainer)
        shim.send(Raw.stdin("three "))
        yield* daemon.settle
        assert.deepStrictEqual(agent.io, [])
        agent.ack()
        accepted(yield* runtime.response(number))
        shim.send(Raw.stdin("four"), Raw.stdin(""))
        yield* agent.stdinEnd(3)
        assert.strictEqual(agent.stdin(3).toString(), "one two three four")
        assert.strictEqual(agent.inputs(3).at(-1)!.data.length, 0)
      })
    )

    it.effect(`${kind} agent: a frame of 200 kB arrives intact`, () =>
      Effect.gen(function* () {
        const { agent, shim } = yield* Scenario.running(yield* SharedDaemon, { next })
        const data = Scenario.pattern(200_000)
        shim.send(Raw.stdin(data), Raw.stdin(""))
        yield* agent.stdinEnd(3)
        assert.isTrue(agent.stdin(3).equals(data))
      })
    )

    it.effect(`${kind} agent: the end of stdin arrives once, after all data`, () =>
      Effect.gen(function* () {
        const daemon = yield* SharedDaemon
        const { agent, runtime, shim } = yield* Scenario.running(daemon, { next })
        shim.send(Raw.stdin(Scenario.pattern(3_000)), Raw.stdin(""))
        yield* agent.stdinEnd(3)
        yield* Scenario.answers(runtime)
        yield* daemon.settle
        const ends = agent.io.filter(({ data }) => data.length === 0)
        assert.deepStrictEqual(ends, [agent.io.at(-1)!])
        assert.isTrue(agent.stdin(3).equals(Scenario.pattern(3_000)))
      })
    )

    it.effect(
      `${kind} agent: an end of stdin that came before the process has started is delivered after its ACK`,
      () =>
        Effect.gen(function* () {
          const daemon = yield* SharedDaemon
          const { agent, runtime, tokens } = yield* boot(daemon, { next, streams: 1 })
          const shim = yield* daemon.connect
          shim.send(Raw.command(Raw.Op.connectShim, { token: tokens[0] }), Raw.stdin(""))
          accepted(yield* shim.response(0))
          accepted(yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0])))
          yield* agent.stdinEnd(3)
          assert.deepStrictEqual(
            agent.history.map(({ channel }) => channel),
            ["ctl", "io"]
          )
        })
    )

    it.effect(`${kind} agent: stdin that comes one byte at a time over the wire is whole`, () =>
      Effect.gen(function* () {
        const { agent, shim } = yield* Scenario.running(yield* SharedDaemon, { next })
        yield* shim.trickle(Buffer.concat([Raw.stdin("typed slowly"), Raw.stdin("")]))
        yield* agent.stdinEnd(3)
        assert.strictEqual(agent.stdin(3).toString(), "typed slowly")
        assert.strictEqual(agent.io.filter(({ data }) => data.length === 0).length, 1)
      })
    )
  }

  it.effect("a Go agent gets messages of 1,024 bytes in all, and no pings", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* Scenario.running(yield* SharedDaemon)
      const from = agent.history.length
      const data = Scenario.pattern(100_000)
      shim.send(Raw.stdin(data))
      yield* agent.stdinLength(3, data.length)
      const sizes = seen(agent, from)
      for (const size of sizes) assert.isTrue(typeof size === "number" && size <= 1_012, String(size))
      assert.isAtMost(sizes.length, 2 * Math.ceil(100_000 / 1_012))
      assert.isTrue(agent.stdin(3).equals(data))
    })
  )

  it.effect("a C agent gets 512 bytes, then 4 pings, then the next 512, and no ping after the last", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, runtime, shim } = yield* Scenario.running(daemon, { next: true })
      const from = agent.history.length
      const data = Scenario.pattern(2_000)
      shim.send(Raw.stdin(data))
      yield* agent.stdinLength(3, data.length)
      yield* daemon.settle
      assert.deepStrictEqual(seen(agent, from), [512, ...pings, 512, ...pings, 512, ...pings, 464])
      assert.isTrue(agent.stdin(3).equals(data))
      yield* Scenario.answers(runtime)
    })
  )

  it.effect("an agent that shows itself as C only later is treated as one from then on", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, shim } = yield* Scenario.running(daemon)
      agent.next(8)
      yield* daemon.settle
      const from = agent.history.length
      shim.send(Raw.stdin(Scenario.pattern(1_000)))
      yield* agent.stdinLength(3, 1_000)
      assert.deepStrictEqual(seen(agent, from), [512, ...pings, 488])
    })
  )

  it.effect("each of the 4 pings waits for the answer to the one before, and the data for the last", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, shim } = yield* Scenario.running(daemon, { next: true })
      const from = agent.history.length
      agent.answer(Raw.Ctl.ping, "hold")
      shim.send(Raw.stdin(Scenario.pattern(600)))
      for (let n = 1; n <= 4; n++) {
        yield* agent.command(Raw.Ctl.ping, n)
        yield* daemon.settle
        assert.deepStrictEqual(seen(agent, from), [512, ...pings.slice(0, n)])
        agent.ack()
      }
      yield* agent.stdinLength(3, 600)
      assert.deepStrictEqual(seen(agent, from), [512, ...pings, 88])
    })
  )

  it.effect("typing costs no pings", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, shim } = yield* Scenario.running(daemon, { next: true })
      const from = agent.history.length
      const keys = "echo hello world\n"
      for (let n = 0; n < keys.length; n++) {
        shim.send(Raw.stdin(keys.charAt(n)))
        yield* agent.stdinLength(3, n + 1)
      }
      yield* daemon.settle
      assert.deepStrictEqual(
        seen(agent, from),
        Array.from("echo hello world\n", () => 1)
      )
    })
  )

  it.effect("small frames that come together are paced like one", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* Scenario.running(yield* SharedDaemon, { next: true })
      const from = agent.history.length
      const data = Scenario.pattern(4_000)
      shim.send(...Array.from({ length: 80 }, (_, n) => Raw.stdin(data.subarray(n * 50, n * 50 + 50))))
      yield* agent.stdinLength(3, data.length)
      assert.isTrue(agent.stdin(3).equals(data))
      let window = 0
      let answered = 0
      for (const event of seen(agent, from)) {
        if (event === "ping") answered++
        else {
          if (answered > 0) {
            assert.isAtLeast(answered, 4)
            window = 0
          }
          answered = 0
          window += event
          assert.isAtMost(window, 512)
        }
      }
    })
  )

  it.effect("two processes are paced each for itself, and clients' commands find their turn between the pings", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* Scenario.running(daemon, { next: true, streams: 2 })
      const second = yield* Scenario.runExec(daemon, vm, vm.tokens[1])
      vm.agent.answer(Raw.Ctl.readfile, (payload) => ({ ack: payload }))
      const [one, two] = [Scenario.pattern(20_000, 1), Scenario.pattern(20_000, 2)]
      vm.shim.send(Raw.stdin(one), Raw.stdin(""))
      second.send(Raw.stdin(two), Raw.stdin(""))
      for (let n = 0; n < 20; n++) {
        const answer = accepted(yield* vm.runtime.request(Raw.Op.hyper, hyper("readfile", n)))
        assert.strictEqual(answer.toString(), String(n))
      }
      yield* vm.agent.stdinEnd(3)
      yield* vm.agent.stdinEnd(5)
      assert.isTrue(vm.agent.stdin(3).equals(one))
      assert.isTrue(vm.agent.stdin(5).equals(two))
      for (const { data } of vm.agent.io) assert.isAtMost(data.length, 512)
    })
  )

  it.effect("stdin that waits for its process holds up no other command, shim or stdin", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* Scenario.running(daemon, { streams: 2 })
      const waiting = yield* connectShim(daemon, vm.tokens[1])
      waiting.send(Raw.stdin(Scenario.pattern(500_000)))
      yield* daemon.settle
      vm.shim.send(Raw.stdin("through"))
      yield* vm.agent.stdinLength(3, 7)
      yield* Scenario.answers(vm.runtime)
      vm.agent.sendIo([3, "out"])
      yield* vm.shim.until("the output", () => vm.shim.received.stdout === 3)
      assert.deepStrictEqual(vm.agent.inputs(5), [])
      accepted(yield* vm.runtime.request(Raw.Op.hyper, hyper("execcmd", Scenario.exec("c1"), vm.tokens[1])))
      yield* vm.agent.stdinLength(5, 500_000)
      assert.isTrue(vm.agent.stdin(5).equals(Scenario.pattern(500_000)))
    })
  )

  for (const size of [200_000, 900_000]) {
    it.effect(`a signal overtakes ${size} bytes of stdin that the agent does not read`, () =>
      Effect.gen(function* () {
        const { agent, shim } = yield* Scenario.running(yield* SharedDaemon)
        agent.pauseIo()
        const data = Scenario.pattern(size)
        shim.send(Raw.stdin(data))
        accepted(yield* shim.request(Raw.Op.signal, { signalNumber: 2 }), Raw.Op.signal)
        assert.strictEqual(agent.commands(Raw.Ctl.killcontainer).length, 1)
        agent.resumeIo()
        yield* agent.stdinLength(3, data.length)
        assert.isTrue(agent.stdin(3).equals(data))
      })
    )
  }

  it.effect("stdin of one process does not wait for that of another which waits for pings", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* Scenario.running(daemon, { next: true, streams: 2 })
      const second = yield* Scenario.runExec(daemon, vm, vm.tokens[1])
      vm.agent.answer(Raw.Ctl.ping, "hold")
      vm.shim.send(Raw.stdin(Scenario.pattern(5_000)))
      yield* vm.agent.command(Raw.Ctl.ping)
      second.send(Raw.stdin("quick"))
      yield* vm.agent.stdinLength(5, 5)
      vm.agent.answer(Raw.Ctl.ping, { ack: "" })
      vm.agent.ack()
      yield* vm.agent.stdinLength(3, 5_000)
    })
  )

  it.effect("what is typed after a process has ended, or after the end of stdin, harms nothing", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* Scenario.running(daemon, { streams: 2 })
      const second = yield* Scenario.runExec(daemon, vm, vm.tokens[1])
      vm.agent.exit(3, 0)
      yield* vm.shim.until("the exit", () => vm.shim.exits.length === 1)
      vm.shim.send(Raw.stdin("too late"), Raw.stdin(""))
      second.send(Raw.stdin("a"), Raw.stdin(""), Raw.stdin("b"))
      yield* vm.agent.stdinEnd(5)
      yield* Scenario.answers(vm.runtime)
      vm.agent.sendIo([5, "fine"])
      yield* second.until("the output", () => second.received.stdout === 4)
    })
  )

  it.effect("what a shim typed just before it left still reaches the process", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* Scenario.running(yield* SharedDaemon)
      const data = Scenario.pattern(300_000)
      shim.send(Raw.stdin(data), Raw.stdin(""))
      yield* until("the kernel has it all", () => shim.unsent === 0)
      shim.end()
      yield* agent.stdinEnd(3)
      assert.isTrue(agent.stdin(3).equals(data))
    })
  )
})

own.live("stdin far beyond the agent's appetite waits without loss", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start()
    const { agent, runtime, shim } = yield* Scenario.running(daemon)
    agent.pauseIo()
    const size = 24 * 1024 * 1024
    const data = Scenario.pattern(size)
    for (let at = 0; at < size; at += 1024 * 1024) shim.send(Raw.stdin(data.subarray(at, at + 1024 * 1024)))
    shim.send(Raw.stdin(""))
    for (let n = 0; n < 20; n++) yield* Scenario.answers(runtime)
    agent.resumeIo()
    yield* agent.stdinEnd(3)
    assert.isTrue(agent.stdin(3).equals(data))
  })
)

own.live("stdin without end takes bounded memory", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start()
    const { agent, runtime, shim } = yield* Scenario.running(daemon)
    yield* Scenario.answers(runtime)
    const before = daemon.child.memory.resident
    agent.pauseIo()
    const piece = Raw.stdin(Buffer.alloc(1024 * 1024))
    for (let n = 0; n < 192; n++) shim.send(piece)
    for (let n = 0; n < 200; n++) yield* Scenario.answers(runtime)
    assert.isBelow(daemon.child.memory.resident - before, 96 * 1024 * 1024)
  })
)
