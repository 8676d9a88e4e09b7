/** How a VM comes under the proxy's care, and what happens when it does not. */
import { assert, it as own } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fs from "node:fs"
import * as DaemonProcess from "../support/e2e/DaemonProcess.ts"
import { SharedDaemon, withDaemon } from "../support/e2e/DaemonProcess.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import * as Scenario from "../support/e2e/Scenario.ts"
import { until } from "../support/e2e/Wait.ts"

const { accepted, attach, freshId, hyper, refused, register, startAgent, unregister } = Scenario

/** Starts a RegisterVM whose response can be waited for later. */
const registering = (
  daemon: DaemonProcess.Daemon,
  id: string,
  paths: { readonly ctlPath: string; readonly ioPath: string }
) =>
  Effect.gen(function* () {
    const client = yield* daemon.connect
    client.post(Raw.Op.registerVM, { containerId: id, ctlSerial: paths.ctlPath, ioSerial: paths.ioPath })
    return client
  })

withDaemon()("registration", (it) => {
  it.effect("each channel is dialled once, and nothing is said on either that nobody asked for", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* Scenario.boot(yield* SharedDaemon)
      yield* Scenario.answers(runtime)
      assert.deepStrictEqual(agent.connections, [1, 1])
      assert.deepStrictEqual(agent.codes, [Raw.Ctl.ping])
      assert.deepStrictEqual(agent.io, [])
    })
  )

  it.effect("sockets that nobody listens on fail it, and the id is free again", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const id = freshId()
      const agent = yield* startAgent()
      const nowhere = `${agent.ctlPath}.nowhere`
      const noCtl = yield* registering(daemon, id, { ctlPath: nowhere, ioPath: agent.ioPath })
      refused(yield* noCtl.response(0), "", Raw.Op.registerVM)
      const noIo = yield* registering(daemon, id, { ctlPath: agent.ctlPath, ioPath: nowhere })
      refused(yield* noIo.response(0), "", Raw.Op.registerVM)
      yield* until("the half-made connections' end", () => !agent.connected[0] && !agent.connected[1])
      accepted(yield* register(daemon, id, agent))
    })
  )

  it.effect("a path longer than a socket's can be fails it, and a path that is no socket too", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const id = freshId()
      const agent = yield* startAgent()
      const file = `${agent.ctlPath}.file`
      Fs.writeFileSync(file, "")
      for (const ctlPath of [`/tmp/${"x".repeat(200)}`, file, "/"]) {
        const client = yield* registering(daemon, id, { ctlPath, ioPath: agent.ioPath })
        refused(yield* client.response(0), "", Raw.Op.registerVM)
      }
      accepted(yield* register(daemon, id, agent))
    })
  )

  it.effect("READY may come in two pieces", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const agent = yield* startAgent({ ready: false })
      const client = yield* registering(daemon, freshId(), agent)
      yield* until("the connection", () => agent.connected[0])
      const ready = Raw.ctlMessage(Raw.Ctl.ready)
      agent.sendCtlBytes(ready.subarray(0, 3))
      yield* daemon.settle
      assert.strictEqual(client.responses.length, 0)
      agent.sendCtlBytes(ready.subarray(3))
      accepted(yield* client.response(0), Raw.Op.registerVM)
    })
  )

  for (const [name, code] of [
    ["an ACK", Raw.Ctl.ack],
    ["an ERROR", Raw.Ctl.error],
    ["an event", Raw.Ctl.processEvent],
    ["an unknown code", 77]
  ] as const) {
    it.effect(`${name} in place of READY fails it at once, and the id is free again`, () =>
      Effect.gen(function* () {
        const daemon = yield* SharedDaemon
        const id = freshId()
        const agent = yield* startAgent({ ready: false })
        const client = yield* registering(daemon, id, agent)
        yield* until("the connection", () => agent.connected[0])
        agent.sendCtl(code)
        refused(yield* client.response(0), "", Raw.Op.registerVM)
        yield* until("the connections' end", () => !agent.connected[0] && !agent.connected[1])
        accepted(yield* register(daemon, id, yield* startAgent()))
      })
    )
  }

  for (const part of ["ctl", "io"] as const) {
    it.effect(`a VM whose ${part} ends before READY fails it at once`, () =>
      Effect.gen(function* () {
        const daemon = yield* SharedDaemon
        const id = freshId()
        const agent = yield* startAgent({ ready: false })
        const client = yield* registering(daemon, id, agent)
        yield* until("the connections", () => agent.connected[0] && agent.connected[1])
        if (part === "ctl") agent.closeCtl()
        else agent.closeIo()
        refused(yield* client.response(0), "", Raw.Op.registerVM)
        accepted(yield* register(daemon, id, yield* startAgent()))
      })
    )
  }

  it.effect("AttachVM never sees a VM before READY, nor can another take its id", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const id = freshId()
      const agent = yield* startAgent({ ready: false })
      const first = yield* registering(daemon, id, agent)
      yield* until("the connection", () => agent.connected[0])
      const second = yield* daemon.connect
      refused(yield* second.request(Raw.Op.attachVM, { containerId: id }), `unknown containerID: ${id}`)
      refused(yield* register(daemon, id, yield* startAgent()), `${id}: container already registered`)
      agent.ready()
      accepted(yield* first.response(0))
      accepted(yield* second.request(Raw.Op.attachVM, { containerId: id }))
    })
  )

  it.effect("a client that leaves while its VM registers does not leave the id taken once that VM has ended", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      for (const ready of [true, false]) {
        const id = freshId()
        const agent = yield* startAgent({ ready: false })
        const client = yield* registering(daemon, id, agent)
        yield* until("the connections", () => agent.connected[0] && agent.connected[1])
        client.hangUp()
        yield* daemon.settle
        if (ready) agent.ready()
        yield* daemon.settle
        agent.close()
        yield* daemon.settle
        accepted(yield* register(daemon, id, yield* startAgent()))
      }
    })
  )

  it.effect("many VMs register at the same time while one of them keeps everybody waiting", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const slow = yield* startAgent({ ready: false })
      const waiting = yield* registering(daemon, freshId(), slow)
      yield* until("the connection", () => slow.connected[0])
      const boot = Effect.gen(function* () {
        const { runtime } = yield* Scenario.boot(daemon)
        yield* Scenario.answers(runtime)
      })
      yield* Effect.all(
        Array.from({ length: 100 }, () => boot),
        { concurrency: "unbounded", discard: true }
      )
      assert.strictEqual(waiting.responses.length, 0)
      slow.ready()
      accepted(yield* waiting.response(0))
    })
  )

  it.effect("UnregisterVM takes the VM from the view of others; what is attached goes on", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, id, runtime, shim } = yield* Scenario.running(daemon)
      accepted(yield* unregister(daemon, id))
      const late = yield* daemon.connect
      refused(yield* late.request(Raw.Op.attachVM, { containerId: id }), `unknown containerID: ${id}`)
      refused(yield* unregister(daemon, id), `unknown containerID: ${id}`)
      yield* Scenario.answers(runtime)
      agent.sendIo([3, "still here"])
      yield* shim.until("the output", () => shim.received.stdout === 10)
      shim.send(Raw.stdin("typed"))
      yield* agent.stdinLength(3, 5)
      assert.deepStrictEqual(agent.connected, [true, true])
    })
  )

  it.effect("an id is free as soon as it was unregistered, even while its old VM lives", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const old = yield* Scenario.running(daemon)
      accepted(yield* unregister(daemon, old.id))
      const young = yield* Scenario.running(daemon, { id: old.id })
      old.agent.answer(Raw.Ctl.readfile, { ack: "old" })
      young.agent.answer(Raw.Ctl.readfile, { ack: "young" })
      assert.strictEqual(accepted(yield* old.runtime.request(Raw.Op.hyper, hyper("readfile"))).toString(), "old")
      assert.strictEqual(accepted(yield* young.runtime.request(Raw.Op.hyper, hyper("readfile"))).toString(), "young")
      old.agent.powerOff()
      yield* old.shim.dropped()
      yield* Scenario.answers(yield* attach(daemon, old.id))
    })
  )
})

own.live("an agent that never says READY fails RegisterVM after -ready-timeout, and the id is free again", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start({ args: ["-ready-timeout", "200ms"] })
    const id = freshId()
    const agent = yield* startAgent({ ready: false })
    const client = yield* registering(daemon, id, agent)
    refused(yield* client.response(0), "", Raw.Op.registerVM)
    yield* until("the connections' end", () => !agent.connected[0] && !agent.connected[1])
    accepted(yield* register(daemon, id, yield* startAgent()))
    yield* daemon.child.warned
  })
)

own.live("a VM whose sockets are the proxy's own fails after -ready-timeout, and leaves nothing", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start({ args: ["-ready-timeout", "200ms"] })
    const client = yield* daemon.connect
    yield* daemon.settle
    const before = daemon.child.descriptors
    const payload = { containerId: freshId(), ctlSerial: daemon.socketPath, ioSerial: daemon.socketPath }
    for (let round = 0; round < 3; round++)
      refused(yield* client.request(Raw.Op.registerVM, payload), "did not say READY", Raw.Op.registerVM)
    for (let look = 0; daemon.child.descriptors > before; look++) {
      assert.isBelow(look, 200)
      refused(yield* client.request(Raw.Op.attachVM, { containerId: "nobody's" }))
    }
  })
)
