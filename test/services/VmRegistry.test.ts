import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as TestClock from "effect/testing/TestClock"
import { Command } from "../../src/domain/Frame.ts"
import * as CtlMessage from "../../src/domain/CtlMessage.ts"
import { Sessions } from "../../src/services/Sessions.ts"
import { VmRegistry } from "../../src/services/VmRegistry.ts"
import { FakeHyperstart, silence } from "../support/FakeHyperstart.ts"
import { execCmd, newContainer, register, running, shimFor } from "../support/Pod.ts"
import * as Records from "../support/Records.ts"
import { TestProxy } from "../support/TestProxy.ts"

const { Code } = CtlMessage
const call = <A, E>(effect: Effect.Effect<A, E>) => Effect.forkChild(effect, { startImmediately: true })
const vm = (id: string, sockets: { readonly ctl: string; readonly io: string }) => ({
  containerId: id,
  ctlSerial: sockets.ctl,
  ioSerial: sockets.io
})

describe("RegisterVM", () => {
  it.effect("fails, and frees the id, where a socket cannot be dialled", () =>
    Effect.gen(function* () {
      const { boot } = yield* FakeHyperstart
      const client = yield* (yield* TestProxy).connect
      assert.match(
        yield* client.refused(Command.RegisterVM, vm("a", { ctl: "nowhere.ctl", io: "nowhere.io" })),
        /^couldn't connect to the VM's (ctl|io): nowhere/
      )
      const { sockets } = boot("a")
      yield* client.ask(Command.RegisterVM, vm("a", sockets))
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("fails after 5 s where a socket never answers", () =>
    Effect.gen(function* () {
      const client = yield* (yield* TestProxy).connect
      const refused = yield* call(client.refused(Command.RegisterVM, vm("a", { ctl: "black-hole", io: "black-hole" })))
      yield* TestClock.adjust("4 seconds")
      assert.isUndefined(refused.pollUnsafe())
      yield* TestClock.adjust("1 seconds")
      assert.match(yield* Fiber.join(refused), /^timeout: couldn't connect to the VM's (ctl|io) at black-hole, 5s$/)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("fails after 30 s without READY, closes both sockets, and frees the id", () =>
    Effect.gen(function* () {
      const { boot } = yield* FakeHyperstart
      const client = yield* (yield* TestProxy).connect
      const agent = boot("a", { first: [] })
      const refused = yield* call(client.refused(Command.RegisterVM, vm("a", agent.sockets)))
      const other = yield* (yield* TestProxy).connect
      assert.strictEqual(yield* other.refused(Command.AttachVM, { containerId: "a" }), "unknown containerID: a")
      assert.strictEqual(
        yield* other.refused(Command.RegisterVM, vm("a", agent.sockets)),
        "a: container already registered"
      )
      assert.strictEqual(yield* other.refused(Command.UnregisterVM, { containerId: "a" }), "unknown containerID: a")
      yield* TestClock.adjust("30 seconds")
      assert.strictEqual(yield* Fiber.join(refused), "timeout: the VM's agent did not say READY, 30s")
      yield* agent.until(() => agent.hungUp().length === 2)
      yield* client.ask(Command.RegisterVM, vm("a", boot("a").sockets))
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  for (const [what, after, reason] of [
    ["socket", "5 seconds", "timeout: couldn't connect to the VM's ctl at black-hole, 5s"],
    ["READY", "30 seconds", "timeout: the VM's agent did not say READY, 30s"]
  ] as const)
    it.effect(`that waits in vain for its ${what} is warned of, and its id is free`, () => {
      const log = Records.make()
      return Effect.gen(function* () {
        const { boot } = yield* FakeHyperstart
        const client = yield* (yield* TestProxy).connect
        const other = yield* register("other")
        const { sockets } = what === "READY" ? boot("a", { first: [] }) : { sockets: { ctl: "black-hole", io: "a.io" } }
        const refused = yield* call(client.refused(Command.RegisterVM, vm("a", sockets)))
        yield* other.runtime.ask(Command.Hyper, { hyperName: "ping" })
        yield* TestClock.adjust(after)
        assert.strictEqual(yield* Fiber.join(refused), reason)
        assert.deepStrictEqual(
          log.records.filter(({ level }) => level === "Warn"),
          [{ level: "Warn", msg: "VM not registered", fields: { reason }, annotations: { vm: "a" } }]
        )
        yield* client.ask(Command.RegisterVM, vm("a", boot("a").sockets))
      }).pipe(Effect.provide(TestProxy.layer().pipe(Layer.provideMerge(log.layer))))
    })

  it.effect("fails at once where another reply stands in place of READY", () =>
    Effect.gen(function* () {
      const { boot } = yield* FakeHyperstart
      const client = yield* (yield* TestProxy).connect
      const agent = boot("a", { first: [[Code.ack, new Uint8Array(0)]] })
      assert.match(yield* client.refused(Command.RegisterVM, vm("a", agent.sockets)), /in place of READY/)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("is undone where its client leaves before READY", () =>
    Effect.gen(function* () {
      const { boot } = yield* FakeHyperstart
      const leaver = yield* (yield* TestProxy).connect
      const agent = boot("a", { first: [] })
      leaver.send(Command.RegisterVM, vm("a", agent.sockets))
      leaver.leave()
      yield* agent.until(() => agent.hungUp().length === 2)
      const client = yield* (yield* TestProxy).connect
      yield* client.ask(Command.RegisterVM, vm("a", boot("a").sockets))
    }).pipe(Effect.provide(TestProxy.layer()))
  )
})

describe("UnregisterVM", () => {
  it.effect("hides the VM, and what is attached goes on until it is gone", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      const other = yield* (yield* TestProxy).connect
      yield* other.ask(Command.AttachVM, { containerId: "a" })
      yield* runtime.ask(Command.UnregisterVM, { containerId: "a" })
      assert.strictEqual(yield* runtime.refused(Command.UnregisterVM, { containerId: "a" }), "unknown containerID: a")
      assert.strictEqual(yield* runtime.refused(Command.AttachVM, { containerId: "a" }), "unknown containerID: a")
      assert.strictEqual(yield* runtime.refused(Command.Hyper, { hyperName: "ping" }), "client not attached to a vm")
      yield* other.ask(Command.Hyper, { hyperName: "ping" })
      agent.io(3, "still here")
      yield* shim.until(() => shim.output() === "still here")
      assert.deepStrictEqual(agent.hungUp(), [])
      agent.powerOff()
      yield* shim.until(() => shim.ended())
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("lets the id be registered again at once", () =>
    Effect.gen(function* () {
      const first = yield* register("a")
      yield* first.runtime.ask(Command.UnregisterVM, { containerId: "a" })
      const second = yield* register("a")
      first.agent.powerOff()
      yield* first.agent.until(() => first.agent.hungUp().length === 2)
      yield* second.runtime.ask(Command.Hyper, { hyperName: "ping" })
      yield* second.runtime.ask(Command.AttachVM, { containerId: "a" })
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("succeeds, once, for an id that was lost before it", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* register("a")
      agent.powerOff()
      yield* agent.until(() => agent.hungUp().length === 2)
      yield* runtime.ask(Command.UnregisterVM, { containerId: "a" })
      assert.strictEqual(yield* runtime.refused(Command.UnregisterVM, { containerId: "a" }), "unknown containerID: a")
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("succeeds for it even after a RegisterVM that failed", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* register("a")
      agent.powerOff()
      yield* agent.until(() => agent.hungUp().length === 2)
      yield* runtime.refused(Command.RegisterVM, vm("a", { ctl: "nowhere", io: "nowhere" }))
      yield* runtime.ask(Command.UnregisterVM, { containerId: "a" })
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("remembers such an id for ten minutes", () =>
    Effect.gen(function* () {
      const a = yield* register("a")
      const b = yield* register("b")
      a.agent.powerOff()
      yield* a.agent.until(() => a.agent.hungUp().length === 2)
      yield* TestClock.adjust("9 minutes")
      b.agent.powerOff()
      yield* b.agent.until(() => b.agent.hungUp().length === 2)
      yield* TestClock.adjust("1 minutes")
      assert.match(yield* a.runtime.refused(Command.UnregisterVM, { containerId: "a" }), /^unknown containerID/)
      yield* b.runtime.ask(Command.UnregisterVM, { containerId: "b" })
    }).pipe(Effect.provide(TestProxy.layer()))
  )
})

describe("a VM that is lost", () => {
  for (const channel of ["ctl", "io"] as const)
    it.effect(`by its ${channel} channel fails what is under way, closes the other, and frees its id and tokens`, () =>
      Effect.gen(function* () {
        const { agent, runtime, shim, tokens } = yield* running("a")
        const sessions = yield* Sessions
        agent.respond = () => silence
        runtime.send(Command.Hyper, { hyperName: "startpod" })
        runtime.send(Command.Hyper, { hyperName: "ping" })
        yield* agent.until(() => agent.commands.length === 2)
        agent.io(3, "received")
        agent.exit(3, 5)
        agent.close(channel)
        yield* TestClock.adjust("100 millis")
        yield* runtime.until(() => runtime.responses().length === 4)
        for (const response of runtime.responses().slice(2)) assert.match(response.text, /"VM lost: /)
        yield* TestClock.adjust("200 millis")
        yield* shim.until(() => shim.ended())
        assert.strictEqual(shim.output(), "received")
        assert.strictEqual(shim.status(), 5)
        yield* agent.until(() => agent.hungUp().length === 2)
        assert.strictEqual(sessions.size(), 0)
        const next = yield* (yield* TestProxy).connect
        assert.match(yield* next.refused(Command.ConnectShim, { token: tokens[1] }), /^unknown token/)
        yield* register("a")
        assert.match(yield* runtime.refused(Command.Hyper, { hyperName: "ping" }), /^VM lost/)
      }).pipe(Effect.provide(TestProxy.layer()))
    )

  it.effect("by its io channel still gets the answer that comes on the other one in the same moment", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* register("a")
      agent.respond = () => silence
      const destroyed = yield* call(runtime.ask(Command.Hyper, { hyperName: "destroypod" }))
      yield* agent.until(() => agent.commands.length === 1)
      agent.close("io")
      yield* TestClock.adjust("99 millis")
      agent.ctl(Code.ack)
      agent.close("ctl")
      yield* Fiber.join(destroyed)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("by its io channel waits 100 ms for the other one's last words, and no longer", () => {
    const log = Records.make()
    return Effect.gen(function* () {
      const { agent, runtime } = yield* register("a")
      agent.respond = () => silence
      const refused = yield* call(runtime.refused(Command.Hyper, { hyperName: "destroypod" }))
      yield* agent.until(() => agent.commands.length === 1)
      agent.close("io")
      yield* TestClock.adjust("99 millis")
      assert.isUndefined(refused.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      assert.strictEqual(yield* Fiber.join(refused), "VM lost: io: a.io closed the connection")
      yield* agent.until(() => agent.hungUp().length === 2)
      assert.deepInclude(log.records, {
        level: "Info",
        msg: "VM lost",
        fields: { reason: "io: a.io closed the connection" },
        annotations: { vm: "a" }
      })
    }).pipe(Effect.provide(TestProxy.layer().pipe(Layer.provideMerge(log.layer))))
  })

  it.effect("by a message that is none still delivers what came whole before it", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running("a")
      const bytes = new Uint8Array(12 + 2 + 12)
      bytes.set([0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 14, 0x68, 0x69])
      bytes.set([0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 11], 14)
      agent.raw("io", bytes)
      yield* TestClock.adjust("300 millis")
      yield* shim.until(() => shim.ended())
      assert.strictEqual(shim.output(), "hi")
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("fails a start that waits for its shim, and a signal that waits for its process", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 2)
      const shim = yield* shimFor(tokens[0])
      const start = yield* call(runtime.refused(Command.Hyper, newContainer(tokens[1])))
      const signal = yield* call(shim.refused(Command.Signal, { signalNumber: 1 }))
      agent.powerOff()
      assert.match(yield* Fiber.join(start), /^VM lost/)
      assert.match(yield* Fiber.join(signal), /^VM lost/)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("keeps what a shim that is away has not had, until it comes back", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim, token } = yield* running("a")
      shim.leave()
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      agent.io(3, "last words")
      agent.exit(3, 4)
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      agent.powerOff()
      yield* agent.until(() => agent.hungUp().length > 0)
      const next = yield* shimFor(token)
      yield* next.until(() => next.ended())
      assert.strictEqual(next.output(), "last words")
      assert.strictEqual(next.status(), 4)
      const late = yield* (yield* TestProxy).connect
      assert.match(yield* late.refused(Command.ConnectShim, { token }), /^unknown token/)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  for (const [how, end] of [
    ["ten minutes have passed", () => TestClock.adjust("10 minutes")],
    [
      "the VM is unregistered",
      () =>
        Effect.gen(function* () {
          const client = yield* (yield* TestProxy).connect
          yield* client.ask(Command.UnregisterVM, { containerId: "a" })
        })
    ]
  ] as const)
    it.effect(`drops it when ${how}`, () =>
      Effect.gen(function* () {
        const { agent, runtime, shim } = yield* running("a")
        const sessions = yield* Sessions
        shim.leave()
        yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
        agent.exit(3, 4)
        yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
        agent.powerOff()
        yield* TestClock.adjust("1 seconds")
        assert.strictEqual(sessions.size(), 1)
        yield* end()
        yield* TestClock.adjust("1 millis")
        assert.strictEqual(sessions.size(), 0)
        yield* agent.until(() => agent.hungUp().length === 2)
      }).pipe(Effect.provide(TestProxy.layer()))
    )

  it.effect("drops it, and what has not been read, even if its output had paused", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      const sessions = yield* Sessions
      shim.leave()
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      for (let i = 0; i < 10; i++) agent.io(3, new Uint8Array(100))
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      agent.powerOff()
      yield* TestClock.adjust("29 seconds")
      assert.strictEqual(sessions.size(), 1)
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual(sessions.size(), 0)
      yield* agent.until(() => agent.hungUp().length === 2)
    }).pipe(Effect.provide(TestProxy.layer({ orphanTimeout: Duration.seconds(30), outboxLimit: 200 })))
  )

  it.effect("is seen to be lost though its output has paused and is not read", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      const client = yield* (yield* TestProxy).connect
      shim.leave()
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      for (let i = 0; i < 10; i++) agent.io(3, new Uint8Array(100))
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      agent.close("io")
      yield* TestClock.adjust("1200 millis")
      assert.match(yield* client.refused(Command.AttachVM, { containerId: "a" }), /^unknown containerID/)
    }).pipe(Effect.provide(TestProxy.layer({ outboxLimit: 200, spoolLimit: 0 })))
  )

  it.effect("waits for a shim that reads slowly", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      shim.stopReading()
      agent.io(3, "slowly")
      agent.exit(3, 6)
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      agent.powerOff()
      yield* TestClock.adjust("1 days")
      assert.isFalse(shim.ended())
      shim.readAgain()
      yield* shim.until(() => shim.ended())
      assert.strictEqual(shim.output(), "slowly")
      assert.strictEqual(shim.status(), 6)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("reads on what a shim still sends, so that it gets to its output", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      shim.stopReading()
      agent.io(3, "last words")
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      agent.powerOff()
      yield* TestClock.adjust("1 seconds")
      for (let i = 0; i < 10; i++) shim.stdin(new Uint8Array(100))
      shim.send(Command.Signal, { signalNumber: 99 }) // behind all of it
      shim.readAgain()
      yield* shim.until(() => shim.ended())
      assert.strictEqual(shim.output(), "last words")
      assert.match(shim.responses().at(-1)!.text, /invalid signal number 99/)
    }).pipe(Effect.provide(TestProxy.layer({ stdinLimit: 100 })))
  )

  it.effect("does not let one stopped shim keep the others", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim, tokens } = yield* running("a")
      const second = yield* shimFor(tokens[1])
      yield* runtime.ask(Command.Hyper, execCmd(tokens[1]))
      shim.stopReading()
      for (let i = 0; i < 10; i++) agent.io(3, new Uint8Array(60_000))
      agent.io(5, "beside it")
      agent.exit(5, 2)
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      agent.powerOff()
      yield* TestClock.adjust("2 seconds")
      yield* second.until(() => second.ended())
      assert.strictEqual(second.output(), "beside it")
      assert.strictEqual(second.status(), 2)
      shim.leave()
    }).pipe(Effect.provide(TestProxy.layer({ outboxLimit: 300_000 })))
  )

  it.effect("by its ctl channel alone is given up though its io channel talks on", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running("a")
      agent.close("ctl")
      for (let i = 0; i < 100 && !shim.ended(); i++) {
        for (let n = 0; n < 10; n++) agent.io(3, new Uint8Array(10_000))
        yield* TestClock.adjust("50 millis")
      }
      yield* shim.until(() => shim.ended())
      yield* agent.until(() => agent.hungUp().length === 2)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("by its ctl channel alone is given up in a second, however little its io channel says, and how long", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running("a")
      agent.close("ctl")
      for (let waited = 0; waited <= 1200 && !shim.ended(); waited += 50) {
        agent.io(99, "")
        yield* TestClock.adjust("50 millis")
      }
      assert.isTrue(shim.ended())
      yield* agent.until(() => agent.hungUp().length === 2)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("touches no other VM", () =>
    Effect.gen(function* () {
      const a = yield* running("a")
      const b = yield* running("b")
      a.agent.powerOff()
      yield* a.shim.until(() => a.shim.ended())
      b.agent.io(3, "alive")
      yield* b.shim.until(() => b.shim.output() === "alive")
      yield* b.runtime.ask(Command.Hyper, { hyperName: "ping" })
    }).pipe(Effect.provide(TestProxy.layer()))
  )
})

describe("a pod", () => {
  const ended = Effect.flatMap(VmRegistry, ({ podEnded }) => call(podEnded))

  it.effect("has ended when its VM is gone and was unregistered", () =>
    Effect.gen(function* () {
      const pod = yield* ended
      const { agent, runtime } = yield* register("a")
      yield* runtime.ask(Command.UnregisterVM, { containerId: "a" })
      assert.isUndefined(pod.pollUnsafe())
      agent.powerOff()
      yield* Fiber.join(pod)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("has ended 30 s after its VM is gone, where nobody unregisters it", () =>
    Effect.gen(function* () {
      const pod = yield* ended
      const { agent } = yield* register("a")
      agent.powerOff()
      yield* agent.until(() => agent.hungUp().length === 2)
      yield* TestClock.adjust("29 seconds")
      assert.isUndefined(pod.pollUnsafe())
      yield* TestClock.adjust("1 seconds")
      yield* Fiber.join(pod)
    }).pipe(Effect.provide(TestProxy.layer()))
  )
})
