/** Signals and terminal sizes, from a shim to its process. */
import { assert, it as own } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as DaemonProcess from "../support/e2e/DaemonProcess.ts"
import { SharedDaemon, withDaemon } from "../support/e2e/DaemonProcess.ts"
import type { CtlMessage } from "../support/e2e/FakeAgent.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import type { RawClient } from "../support/e2e/RawClient.ts"
import * as Scenario from "../support/e2e/Scenario.ts"

const { accepted, attach, boot, connectShim, container, exec, hyper, refused, running, runExec } = Scenario

const signal = (shim: RawClient, signalNumber: number, extra: object = {}) =>
  shim.request(Raw.Op.signal, { signalNumber, ...extra })

const resize = (shim: RawClient, columns: number, rows: number) => signal(shim, 28, { columns, rows })

const json = ({ payload }: CtlMessage): unknown => JSON.parse(payload.toString())

/** The C agents before events, and since. */
const plain = { api: 4243, next: true }
const modern = { api: 4244, next: true }

withDaemon()("signals", (it) => {
  it.effect("a signal goes to a container's init process by killcontainer", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running(yield* SharedDaemon)
      for (const number of [15, 9, 2, 10]) accepted(yield* signal(shim, number), Raw.Op.signal)
      assert.deepStrictEqual(
        agent.commands(Raw.Ctl.killcontainer).map(json),
        [15, 9, 2, 10].map((number) => ({ container: "c1", signal: number, allProcesses: false }))
      )
    })
  )

  it.effect("the response comes after the agent's, and its ERROR is the shim's error", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, shim } = yield* running(daemon)
      agent.answer(Raw.Ctl.killcontainer, "hold")
      const number = shim.post(Raw.Op.signal, { signalNumber: 15 })
      yield* agent.command(Raw.Ctl.killcontainer)
      yield* daemon.settle
      assert.strictEqual(shim.responses.length, 1)
      agent.fail("no such process")
      // RawClient numbers its requests: ConnectShim was 0
      refused(yield* shim.response(number), "no such process", Raw.Op.signal)
    })
  )

  it.effect("0 to 30 are signals, others are not, and none of those reaches the agent", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running(yield* SharedDaemon)
      for (const number of [-1, 31, 32, 64, 255, -(2 ** 31), 2 ** 31]) {
        refused(yield* signal(shim, number), `invalid signal number ${number}`, Raw.Op.signal)
      }
      assert.deepStrictEqual(agent.codes, [Raw.Ctl.newcontainer])
      for (const number of [0, 1, 27, 29, 30]) accepted(yield* signal(shim, number))
      assert.strictEqual(agent.commands(Raw.Ctl.killcontainer).length, 5)
    })
  )

  it.effect("SIGWINCH needs a size, and other signals must have none", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running(yield* SharedDaemon, { process: { terminal: true } })
      const sizes = [{}, { columns: 80 }, { rows: 24 }, { columns: 0, rows: 24 }, { columns: 80, rows: 0 }]
      for (const size of [
        ...sizes,
        { columns: -1, rows: 24 },
        { columns: 80, rows: -24 },
        { columns: null, rows: null }
      ]) {
        refused(yield* signal(shim, 28, size), "", Raw.Op.signal)
      }
      for (const size of [{ columns: 80, rows: 24 }, { columns: 80 }, { rows: 24 }]) {
        refused(yield* signal(shim, 15, size), "", Raw.Op.signal)
      }
      assert.deepStrictEqual(agent.codes, [Raw.Ctl.newcontainer])
      accepted(yield* signal(shim, 15, { columns: 0, rows: 0 }))
      accepted(yield* resize(shim, 80, 24))
    })
  )

  it.effect("an agent without events gets a size by the session's number", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* running(daemon, { streams: 2, ...plain, process: { terminal: true } })
      const second = yield* runExec(daemon, vm, vm.tokens[1], { terminal: true })
      accepted(yield* resize(vm.shim, 80, 24))
      accepted(yield* resize(second, 132, 43))
      assert.deepStrictEqual(vm.agent.commands(Raw.Ctl.winsize).map(json), [
        { seq: 3, row: 24, column: 80 },
        { seq: 5, row: 43, column: 132 }
      ])
      assert.isAtMost(vm.agent.commands(Raw.Ctl.version).length, 1)
    })
  )

  it.effect("the Go agent gets a size by the session's number, and cannot signal an exec'ed process", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* running(daemon, { streams: 2, process: { terminal: true } })
      const second = yield* runExec(daemon, vm, vm.tokens[1])
      vm.agent.answer(Raw.Ctl.version, { error: "unknown command" })
      accepted(yield* resize(vm.shim, 80, 24))
      assert.deepStrictEqual(vm.agent.commands(Raw.Ctl.winsize).map(json), [{ seq: 3, row: 24, column: 80 }])
      refused(yield* signal(second, 15), "", Raw.Op.signal)
    })
  )

  it.effect("an agent with events gets a size by the names of container and process", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* running(daemon, { streams: 2, ...modern, process: { terminal: true } })
      const second = yield* runExec(daemon, vm, vm.tokens[1], { terminal: true })
      accepted(yield* resize(vm.shim, 80, 24))
      accepted(yield* resize(second, 132, 43))
      assert.deepStrictEqual(vm.agent.commands(Raw.Ctl.winsize).map(json), [
        { container: "c1", process: "c1-init", row: 24, column: 80 },
        { container: "c1", process: "c1-exec", row: 43, column: 132 }
      ])
    })
  )

  it.effect("an agent with events gets signals for exec'ed processes by signalprocess, for init by killcontainer", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* running(daemon, { streams: 2, ...modern })
      const second = yield* runExec(daemon, vm, vm.tokens[1])
      accepted(yield* signal(second, 15))
      accepted(yield* signal(vm.shim, 15))
      assert.deepStrictEqual(vm.agent.commands(Raw.Ctl.signalprocess).map(json), [
        { container: "c1", process: "c1-exec", signal: 15 }
      ])
      assert.deepStrictEqual(vm.agent.commands(Raw.Ctl.killcontainer).map(json), [
        { container: "c1", signal: 15, allProcesses: false }
      ])
    })
  )

  it.effect("the version is asked for once, and only when an answer depends on it", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* running(daemon, { streams: 2, ...modern })
      const second = yield* runExec(daemon, vm, vm.tokens[1])
      vm.shim.send(Raw.stdin("typed"))
      yield* vm.agent.stdinLength(3, 5)
      accepted(yield* signal(vm.shim, 15))
      assert.deepStrictEqual(vm.agent.commands(Raw.Ctl.version), [])
      for (const shim of [second, vm.shim, second]) accepted(yield* resize(shim, 80, 24))
      for (const number of [1, 2, 3]) accepted(yield* signal(second, number))
      assert.strictEqual(vm.agent.commands(Raw.Ctl.version).length, 1)
    })
  )

  it.effect("an agent without events cannot signal an exec'ed process: an error, and nothing is sent", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* running(daemon, { streams: 2, ...plain })
      const second = yield* runExec(daemon, vm, vm.tokens[1])
      refused(yield* signal(second, 15), "", Raw.Op.signal)
      refused(yield* signal(second, 9), "", Raw.Op.signal)
      const sent = vm.agent.codes.filter((code) => code !== Raw.Ctl.version)
      assert.deepStrictEqual(sent, [Raw.Ctl.newcontainer, Raw.Ctl.execcmd])
      assert.isAtMost(vm.agent.commands(Raw.Ctl.version).length, 1)
    })
  )

  it.effect("an agent that does not know its version, or knows it in words, is one without events", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      for (const answer of [{ error: "unknown command" }, { ack: "" }, { ack: '{"version":"1.0"}' }]) {
        const vm = yield* running(daemon, { streams: 2, next: true, process: { terminal: true } })
        vm.agent.answer(Raw.Ctl.version, answer)
        const second = yield* runExec(daemon, vm, vm.tokens[1])
        refused(yield* signal(second, 15))
        accepted(yield* resize(vm.shim, 80, 24))
        assert.deepStrictEqual(vm.agent.commands(Raw.Ctl.winsize).map(json), [{ seq: 3, row: 24, column: 80 }])
      }
    })
  )

  it.effect("an agent with events gets neither size nor signalprocess where a process of the VM has no id", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* running(daemon, { streams: 2, ...modern })
      const second = yield* runExec(daemon, vm, vm.tokens[1], { id: undefined, terminal: true })
      refused(yield* signal(second, 15), "", Raw.Op.signal)
      refused(yield* resize(second, 80, 24), "", Raw.Op.signal)
      refused(yield* resize(vm.shim, 80, 24), "", Raw.Op.signal)
      assert.deepStrictEqual(vm.agent.commands(Raw.Ctl.signalprocess), [])
      assert.deepStrictEqual(vm.agent.commands(Raw.Ctl.winsize), [])
      accepted(yield* signal(vm.shim, 15)) // killcontainer is safe
    })
  )

  it.effect("an agent with events gets neither where only a process without a session has no id", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* running(daemon, { streams: 2, ...modern })
      const second = yield* runExec(daemon, vm, vm.tokens[1])
      accepted(yield* vm.runtime.request(Raw.Op.hyper, hyper("execcmd", exec("c1", { id: undefined }))))
      refused(yield* signal(second, 15), "", Raw.Op.signal)
      refused(yield* resize(vm.shim, 80, 24), "", Raw.Op.signal)
      assert.deepStrictEqual(vm.agent.commands(Raw.Ctl.signalprocess), [])
      assert.deepStrictEqual(vm.agent.commands(Raw.Ctl.winsize), [])
    })
  )

  for (const number of [9, 15]) {
    it.effect(
      `signal ${number} before anything was written ends the process at once: status 0, then the response`,
      () =>
        Effect.gen(function* () {
          const daemon = yield* SharedDaemon
          const { agent, id, runtime, tokens } = yield* boot(daemon, { streams: 1 })
          const other = yield* attach(daemon, id)
          const shim = yield* connectShim(daemon, tokens[0])
          agent.answer(Raw.Ctl.readfile, "hold") // holds the turn, so that the start has to wait for its own
          const held = other.post(Raw.Op.hyper, hyper("readfile"))
          yield* agent.command(Raw.Ctl.readfile)
          const start = runtime.post(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0]))
          yield* daemon.settle
          accepted(yield* signal(shim, number), Raw.Op.signal)
          assert.deepStrictEqual(
            shim.frames.slice(1).map(({ payload, type }) => [type, [...payload]]),
            [
              [Raw.Type.notification, [0]],
              [Raw.Type.response, []]
            ]
          )
          refused(yield* runtime.response(start), "", Raw.Op.hyper)
          agent.ack()
          accepted(yield* other.response(held))
          yield* Scenario.answers(other)
          assert.deepStrictEqual(agent.codes, [Raw.Ctl.readfile, Raw.Ctl.ping])
        })
    )

    it.effect(`signal ${number} to a shim that nobody has started a process for is answered the same way`, () =>
      Effect.gen(function* () {
        const daemon = yield* SharedDaemon
        const { agent, tokens } = yield* boot(daemon, { streams: 1 })
        const shim = yield* connectShim(daemon, tokens[0])
        accepted(yield* signal(shim, number), Raw.Op.signal)
        assert.deepStrictEqual(shim.story, ["exit 0"])
        assert.deepStrictEqual(
          shim.frames.map(({ type }) => type),
          [Raw.Type.response, Raw.Type.notification, Raw.Type.response]
        )
        assert.deepStrictEqual(agent.ctl, [])
      })
    )

    it.effect(`signal ${number} while the start is on its way follows its ACK`, () =>
      Effect.gen(function* () {
        const daemon = yield* SharedDaemon
        const { agent, runtime, tokens } = yield* boot(daemon, { streams: 1 })
        const shim = yield* connectShim(daemon, tokens[0])
        agent.answer(Raw.Ctl.newcontainer, "hold")
        const start = runtime.post(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0]))
        yield* agent.command(Raw.Ctl.newcontainer)
        const kill = shim.post(Raw.Op.signal, { signalNumber: number })
        yield* daemon.settle
        assert.deepStrictEqual(agent.codes, [Raw.Ctl.newcontainer])
        assert.deepStrictEqual(shim.exits, [])
        agent.ack()
        accepted(yield* runtime.response(start))
        accepted(yield* shim.response(kill))
        assert.deepStrictEqual(json(yield* agent.command(Raw.Ctl.killcontainer)), {
          container: "c1",
          signal: number,
          allProcesses: false
        })
        agent.exit(3, 128 + number)
        yield* shim.until("the exit", () => shim.exits.length === 1)
        assert.deepStrictEqual(shim.exits, [128 + number])
      })
    )
  }

  it.effect("a start that comes after such a kill fails as well, and the agent never hears of it", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, runtime, tokens } = yield* boot(daemon, { streams: 1 })
      const shim = yield* connectShim(daemon, tokens[0])
      accepted(yield* signal(shim, 9))
      refused(yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0])), "", Raw.Op.hyper)
      assert.deepStrictEqual(agent.ctl, [])
    })
  )

  it.effect("other signals and sizes wait until the process has started, and keep their order", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, runtime, tokens } = yield* boot(daemon, { streams: 1 })
      const shim = yield* connectShim(daemon, tokens[0])
      const size = shim.post(Raw.Op.signal, { signalNumber: 28, columns: 80, rows: 24 })
      const usr1 = shim.post(Raw.Op.signal, { signalNumber: 10 })
      yield* Scenario.answers(runtime)
      assert.deepStrictEqual(
        agent.codes.filter((code) => code !== Raw.Ctl.version),
        [Raw.Ctl.ping]
      )
      assert.strictEqual(shim.responses.length, 1)
      const data = container("c1", { terminal: true })
      accepted(yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", data, tokens[0])))
      accepted(yield* shim.response(size))
      accepted(yield* shim.response(usr1))
      assert.deepStrictEqual(
        agent.codes.filter((code) => code !== Raw.Ctl.version),
        [Raw.Ctl.ping, Raw.Ctl.newcontainer, Raw.Ctl.winsize, Raw.Ctl.killcontainer]
      )
      assert.deepStrictEqual(json(yield* agent.command(Raw.Ctl.winsize)), { seq: 3, row: 24, column: 80 })
    })
  )

  it.effect("a waiting signal ends with its VM", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, tokens } = yield* boot(daemon, { streams: 1 })
      const shim = yield* connectShim(daemon, tokens[0])
      shim.post(Raw.Op.signal, { signalNumber: 10 })
      yield* daemon.settle
      agent.powerOff()
      yield* shim.dropped()
    })
  )
})

own.live("a signal whose process does not start fails after -process-timeout; stdin stays", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start({ args: ["-process-timeout", "300ms"] })
    const { agent, runtime, tokens } = yield* boot(daemon, { streams: 1 })
    const shim = yield* connectShim(daemon, tokens[0])
    shim.send(Raw.stdin("kept"))
    refused(yield* signal(shim, 10), "", Raw.Op.signal)
    assert.deepStrictEqual(agent.ctl, [])
    accepted(yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0])))
    yield* agent.stdinLength(3, 4)
    assert.strictEqual(agent.stdin(3).toString(), "kept")
    yield* daemon.child.warned
  })
)
