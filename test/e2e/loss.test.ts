/** The end of a VM: what fails, what is still delivered, and what is free again. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { SharedDaemon, withDaemon } from "../support/e2e/DaemonProcess.ts"
import type { FakeAgent } from "../support/e2e/FakeAgent.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import * as Scenario from "../support/e2e/Scenario.ts"
import { until } from "../support/e2e/Wait.ts"

const { accepted, answers, attach, boot, connectShim, container, exec, hyper, refused, register, running, unregister } =
  Scenario

const gone = (agent: FakeAgent) =>
  until("the proxy to let go of the VM", () => !agent.connected[0] && !agent.connected[1])

const ways = [
  ["io", (agent: FakeAgent) => agent.closeIo()],
  ["ctl", (agent: FakeAgent) => agent.closeCtl()],
  ["both", (agent: FakeAgent) => agent.powerOff()]
] as const

withDaemon()("loss of a VM", (it) => {
  for (const [name, end] of ways) {
    it.effect(`by ${name}: pending and waiting commands fail at once, the written one and the queued ones`, () =>
      Effect.gen(function* () {
        const daemon = yield* SharedDaemon
        const { agent, id, runtime, tokens } = yield* boot(daemon, { streams: 2 })
        const [queued, waiting] = [yield* attach(daemon, id), yield* attach(daemon, id)]
        agent.answer(Raw.Ctl.readfile, "hold")
        runtime.post(Raw.Op.hyper, hyper("readfile"))
        yield* agent.command(Raw.Ctl.readfile)
        queued.post(Raw.Op.hyper, hyper("ping"))
        queued.post(Raw.Op.hyper, hyper("pscontainer"))
        waiting.post(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0])) // for its shim
        yield* daemon.settle
        end(agent)
        refused(yield* runtime.response(1), "", Raw.Op.hyper)
        refused(yield* queued.response(1), "", Raw.Op.hyper)
        refused(yield* queued.response(2), "", Raw.Op.hyper)
        refused(yield* waiting.response(1), "", Raw.Op.hyper)
        yield* gone(agent)
        assert.deepStrictEqual(agent.codes, [Raw.Ctl.readfile])
      })
    )

    it.effect(
      `by ${name}: what its sessions had received is delivered, the status included, then the shims are let go`,
      () =>
        Effect.gen(function* () {
          const daemon = yield* SharedDaemon
          const vm = yield* running(daemon, { streams: 2 })
          const second = yield* Scenario.runExec(daemon, vm, vm.tokens[1])
          const data = Scenario.pattern(500_000)
          second.pause()
          for (let at = 0; at < data.length; at += 10_000) vm.agent.sendIo([5, data.subarray(at, at + 10_000)])
          vm.agent.exit(5, 5)
          vm.agent.sendIo([3, "last words"], [4, "and sighs"])
          vm.agent.exit(3, 3)
          yield* vm.shim.until("the exit", () => vm.shim.exits.length === 1)
          end(vm.agent)
          yield* vm.shim.dropped()
          yield* daemon.settle
          second.resume()
          yield* second.dropped()
          assert.deepStrictEqual(vm.shim.story, ["stdout last words", "stderr and sighs", "exit 3"])
          assert.isTrue(second.stdout.equals(data))
          assert.deepStrictEqual(second.exits, [5])
          assert.isUndefined(second.error)
        })
    )

    it.effect(`by ${name}: its id is free, its tokens are unknown, and its clients are told so`, () =>
      Effect.gen(function* () {
        const daemon = yield* SharedDaemon
        const { agent, id, runtime, shim, tokens } = yield* running(daemon, { streams: 2 })
        end(agent)
        yield* shim.dropped()
        yield* gone(agent)
        refused(yield* runtime.request(Raw.Op.hyper, hyper("ping")), "", Raw.Op.hyper)
        const client = yield* daemon.connect
        for (const token of tokens) refused(yield* client.request(Raw.Op.connectShim, { token }), "unknown token: ")
        refused(yield* client.request(Raw.Op.attachVM, { containerId: id }), `unknown containerID: ${id}`)
        const next = yield* boot(daemon, { id, streams: 1 })
        yield* answers(next.runtime)
        for (const token of tokens) refused(yield* client.request(Raw.Op.connectShim, { token }), "unknown token: ")
      })
    )

    it.effect(`by ${name}: UnregisterVM succeeds once afterwards, then the id is unknown`, () =>
      Effect.gen(function* () {
        const daemon = yield* SharedDaemon
        const { agent, id, shim } = yield* running(daemon)
        end(agent)
        yield* shim.dropped()
        assert.strictEqual(accepted(yield* unregister(daemon, id), Raw.Op.unregisterVM).length, 0)
        refused(yield* unregister(daemon, id), `unknown containerID: ${id}`, Raw.Op.unregisterVM)
      })
    )

    it.effect(`by ${name} after UnregisterVM: nothing is remembered`, () =>
      Effect.gen(function* () {
        const daemon = yield* SharedDaemon
        const { agent, id, shim } = yield* running(daemon)
        accepted(yield* unregister(daemon, id))
        end(agent)
        yield* shim.dropped()
        yield* gone(agent)
        refused(yield* unregister(daemon, id), `unknown containerID: ${id}`)
        accepted(yield* register(daemon, id, yield* Scenario.startAgent()))
      })
    )
  }

  it.effect("a lost id that was registered again is the new VM's: UnregisterVM unregisters that, once", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const old = yield* running(daemon)
      old.agent.powerOff()
      yield* old.shim.dropped()
      const young = yield* boot(daemon, { id: old.id })
      accepted(yield* unregister(daemon, old.id))
      refused(yield* unregister(daemon, old.id), `unknown containerID: ${old.id}`)
      yield* answers(young.runtime)
    })
  )

  it.effect("a loss between a process's last output and its status ends its shim's connection without a status", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, shim } = yield* running(daemon)
      agent.sendIo([3, "cut off"])
      agent.powerOff()
      yield* shim.dropped()
      assert.deepStrictEqual(shim.story, ["stdout cut off"])
    })
  )

  it.effect("the last output and the end of the VM may come in one breath", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      for (let round = 0; round < 10; round++) {
        const { agent, shim } = yield* running(daemon)
        const data = Scenario.pattern(200_000, round)
        for (let at = 0; at < data.length; at += 10_000) agent.sendIo([3, data.subarray(at, at + 10_000)])
        agent.exit(3, round)
        agent.powerOff()
        yield* shim.dropped()
        assert.isTrue(shim.stdout.equals(data), `round ${round}: ${shim.received.stdout} bytes`)
        assert.deepStrictEqual(shim.exits, [round])
      }
    })
  )

  it.effect("a power-off right behind destroypod's ACK still answers destroypod, and UnregisterVM after it", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      for (let round = 0; round < 10; round++) {
        const { agent, id, runtime } = yield* boot(daemon, { next: true })
        agent.answer(Raw.Ctl.destroypod, () => {
          agent.ack()
          agent.powerOff()
          return "hold"
        })
        accepted(yield* runtime.request(Raw.Op.hyper, hyper("destroypod")), Raw.Op.hyper)
        accepted(yield* unregister(daemon, id), Raw.Op.unregisterVM)
      }
    })
  )

  it.effect("a lost VM's shim that had left comes back to an unknown token", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, shim, tokens } = yield* running(daemon)
      shim.hangUp()
      yield* daemon.settle
      agent.powerOff()
      yield* gone(agent)
      yield* daemon.settle
      const again = yield* daemon.connect
      refused(yield* again.request(Raw.Op.connectShim, { token: tokens[0] }), "unknown token: ")
    })
  )

  it.effect("what a lost VM's session had received is delivered to its shim that comes back, then it is let go", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, shim, tokens } = yield* running(daemon)
      shim.hangUp()
      yield* daemon.settle
      agent.sendIo([3, "last words"])
      agent.exit(3, 5)
      agent.powerOff()
      yield* gone(agent)
      const again = yield* connectShim(daemon, tokens[0])
      yield* again.dropped()
      assert.deepStrictEqual(again.story, ["stdout last words", "exit 5"])
      const late = yield* daemon.connect
      refused(yield* late.request(Raw.Op.connectShim, { token: tokens[0] }), "unknown token: ")
    })
  )

  it.effect("one VM's loss is no other's", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const [doomed, other] = [yield* running(daemon), yield* running(daemon, { streams: 2 })]
      doomed.agent.powerOff()
      yield* doomed.shim.dropped()
      other.agent.sendIo([3, "alive"])
      yield* other.shim.until("the output", () => other.shim.received.stdout === 5)
      yield* connectShim(daemon, other.tokens[1])
      accepted(yield* other.runtime.request(Raw.Op.hyper, hyper("execcmd", exec("c1"), other.tokens[1])))
    })
  )
})
