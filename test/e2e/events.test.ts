/** Agents that tell a process's end by an event on the control channel. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { SharedDaemon, withDaemon } from "../support/e2e/DaemonProcess.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import * as Scenario from "../support/e2e/Scenario.ts"

const { accepted, answers, boot, connectShim, container, hyper, running, runExec } = Scenario

/** The C agent since it has events. */
const modern = { api: 4244, next: true }

withDaemon()("events", (it) => {
  it.effect("an event after the end of output is the exit status", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, shim } = yield* running(daemon, modern)
      agent.sendIo([3, "out"], [3])
      yield* shim.until("the output", () => shim.received.stdout === 3)
      yield* daemon.settle
      assert.deepStrictEqual(shim.exits, [])
      agent.finished("c1", "c1-init", 9)
      yield* shim.until("the exit", () => shim.exits.length === 1)
      assert.deepStrictEqual(shim.story, ["stdout out", "exit 9"])
    })
  )

  it.effect("an event before the end of output waits for it", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, runtime, shim } = yield* running(daemon, modern)
      agent.sendIo([3, "some"])
      agent.finished("c1", "c1-init", 9)
      yield* answers(runtime)
      yield* daemon.settle
      assert.deepStrictEqual(shim.exits, [])
      agent.sendIo([3, " more"], [4, "err"], [3])
      yield* shim.until("the exit", () => shim.exits.length === 1)
      assert.deepStrictEqual(shim.story, ["stdout some more", "stderr err", "exit 9"])
    })
  )

  it.effect("an event goes to the process it names, also among exec'ed ones", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* running(daemon, { ...modern, streams: 3 })
      const one = yield* runExec(daemon, vm, vm.tokens[1], { id: "one" })
      const two = yield* runExec(daemon, vm, vm.tokens[2], { id: "two" })
      vm.agent.sendIo([3], [5], [7])
      vm.agent.finished("c1", "two", 2)
      yield* two.until("the exit", () => two.exits.length === 1)
      vm.agent.finished("c1", "c1-init", 0)
      yield* vm.shim.until("the exit", () => vm.shim.exits.length === 1)
      vm.agent.finished("c1", "one", 1)
      yield* one.until("the exit", () => one.exits.length === 1)
      assert.deepStrictEqual([vm.shim.exits, one.exits, two.exits], [[0], [1], [2]])
    })
  )

  it.effect("equal names in two containers are two processes", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* running(daemon, { ...modern, streams: 2, process: { id: "init" } })
      const second = yield* connectShim(daemon, vm.tokens[1])
      const data = container("c2", { id: "init" })
      accepted(yield* vm.runtime.request(Raw.Op.hyper, hyper("newcontainer", data, vm.tokens[1])))
      vm.agent.sendIo([3], [5])
      vm.agent.finished("c2", "init", 2)
      yield* second.until("the exit", () => second.exits.length === 1)
      vm.agent.finished("c1", "init", 1)
      yield* vm.shim.until("the exit", () => vm.shim.exits.length === 1)
      assert.deepStrictEqual([vm.shim.exits, second.exits], [[1], [2]])
    })
  )

  it.effect("an unnamed process's event goes to the session of its container that has ended and has no status", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* running(daemon, { ...modern, streams: 3 })
      const one = yield* runExec(daemon, vm, vm.tokens[1], { id: undefined })
      const two = yield* runExec(daemon, vm, vm.tokens[2], { id: undefined })
      vm.agent.sendIo([7])
      yield* daemon.settle
      vm.agent.finished("c1", "(null)", 2)
      yield* two.until("the exit", () => two.exits.length === 1)
      vm.agent.sendIo([5])
      yield* daemon.settle
      vm.agent.finished("c1", "(null)", 1)
      yield* one.until("the exit", () => one.exits.length === 1)
      assert.deepStrictEqual([vm.shim.exits, one.exits, two.exits], [[], [1], [2]])
    })
  )

  it.effect("an unnamed process's event goes to the container's init where no session has ended", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* running(daemon, { ...modern, streams: 2, process: { id: undefined } })
      const second = yield* runExec(daemon, vm, vm.tokens[1])
      vm.agent.finished("c1", "(null)", 7)
      yield* answers(vm.runtime)
      yield* daemon.settle
      assert.deepStrictEqual([vm.shim.exits, second.exits], [[], []])
      vm.agent.sendIo([5], [3])
      yield* vm.shim.until("the exit", () => vm.shim.exits.length === 1)
      yield* daemon.settle
      assert.deepStrictEqual([vm.shim.exits, second.exits], [[7], []])
    })
  )

  it.effect("an event before the ACK of its own start is not lost", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, runtime, tokens } = yield* boot(daemon, { ...modern, streams: 1 })
      const shim = yield* connectShim(daemon, tokens[0])
      agent.answer(Raw.Ctl.newcontainer, () => {
        agent.sendIo([3, "quick"], [3])
        agent.finished("c1", "c1-init", 4)
        return { ack: "" }
      })
      accepted(yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0])))
      yield* shim.until("the exit", () => shim.exits.length === 1)
      assert.deepStrictEqual(shim.story, ["stdout quick", "exit 4"])
    })
  )

  it.effect("events that make no sense change nothing", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, runtime, shim } = yield* running(daemon, modern)
      agent.sendIo([3])
      agent.finished("c9", "c1-init", 1)
      agent.finished("c1", "nobody", 1)
      agent.finished("c9", "(null)", 1)
      agent.sendCtl(Raw.Ctl.processEvent)
      agent.sendCtl(Raw.Ctl.processEvent, "{")
      agent.sendCtl(Raw.Ctl.processEvent, { container: "c1", process: "c1-init", event: "started", status: 1 })
      agent.sendCtl(Raw.Ctl.processEvent, { container: "c1", process: "c1-init", event: "finished" })
      agent.sendCtl(Raw.Ctl.otherEvent, { container: "c1", process: "c1-init", event: "finished", status: 1 })
      yield* answers(runtime)
      yield* daemon.settle
      assert.deepStrictEqual(shim.exits, [])
      agent.finished("c1", "c1-init", 6)
      agent.finished("c1", "c1-init", 7)
      yield* shim.until("the exit", () => shim.exits.length === 1)
      yield* answers(runtime)
      yield* daemon.settle
      assert.deepStrictEqual(shim.exits, [6])
    })
  )
})
