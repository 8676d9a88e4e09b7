/** What becomes of an agent's misdeeds where time matters; the built daemon meets them in test/e2e/bad-agents.test.ts. */
import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import * as CtlMessage from "../../src/domain/CtlMessage.ts"
import { Command } from "../../src/domain/Frame.ts"
import * as IoMessage from "../../src/domain/IoMessage.ts"
import { Sessions } from "../../src/services/Sessions.ts"
import type { Settings } from "../../src/services/Settings.ts"
import { toText, utf8 } from "../support/Bytes.ts"
import { ack, FakeHyperstart, likeC, refuse, silence } from "../support/FakeHyperstart.ts"
import { execCmd, newContainer, register, running, shimFor } from "../support/Pod.ts"
import * as Records from "../support/Records.ts"
import { type TestClient, TestProxy } from "../support/TestProxy.ts"
import * as Random from "../support/torture/Random.ts"

const { Code } = CtlMessage
const none = new Uint8Array(0)
const now = { startImmediately: true } as const

/** A proxy and its log, of which the warnings and worse can be told. */
const logged = (settings: Partial<Settings> = {}) => {
  const { layer, records } = Records.make()
  const worse = () =>
    records.flatMap(({ level, msg }) => (level === "Warn" || level === "Error" ? [`${level}: ${String(msg)}`] : []))
  return { worse, layer: TestProxy.layer(settings).pipe(Layer.provideMerge(layer)) }
}

/** A well-behaved VM, and one round of its work, in which nothing may be missing, late or foreign. */
const bystander = Effect.gen(function* () {
  const { agent, runtime, shim } = yield* running("bystander")
  let said = ""
  const unaffected = Effect.gen(function* () {
    const word = `<${said.length}>`
    said += word
    agent.io(3, word)
    shim.stdin(word)
    yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
    yield* shim.until(() => shim.output().length >= said.length)
    yield* agent.until(() => agent.stdin.length === said.split("<").length - 1)
    assert.strictEqual(shim.output(), said)
    assert.strictEqual(agent.stdin.map(({ data }) => toText(data)).join(""), said)
    assert.isUndefined(shim.status())
  })
  return { unaffected }
})

describe("an agent that", () => {
  it.effect("says nothing for a day costs one warning a command, and few pings", () => {
    const { layer, worse } = logged()
    return Effect.gen(function* () {
      const { unaffected } = yield* bystander
      const { agent, runtime } = yield* register("a")
      agent.respond = () => silence
      for (let hour = 1; hour <= 24; hour++) {
        const refused = yield* Effect.forkChild(runtime.refused(Command.Hyper, { hyperName: "readfile" }), now)
        yield* TestClock.adjust("60 seconds")
        assert.match(yield* Fiber.join(refused), /^timeout: /)
        yield* TestClock.adjust("59 minutes")
        yield* unaffected
      }
      const pings = agent.commands.filter(({ code }) => code === Code.ping).length
      assert.strictEqual(agent.commands.length, 1 + pings)
      assert.isAtMost(pings, 24 * 60 + 10)
      assert.deepStrictEqual(worse(), [
        "Warn: timeout: no reply from the agent: readfile, 1m",
        ...Array.from({ length: 23 }, () => "Warn: timeout: the agent is busy with an earlier command: readfile, 1m")
      ])
    }).pipe(Effect.provide(layer))
  })

  it.effect("says nothing while stdin waits for its pings is warned of once, not for each ping", () => {
    const { layer, worse } = logged()
    return Effect.gen(function* () {
      const { agent, shim } = yield* running("a", { respond: likeC(() => ack()) })
      agent.respond = () => silence
      shim.stdin(new Uint8Array(2000))
      yield* TestClock.adjust("1 days")
      assert.deepStrictEqual(worse(), ["Warn: timeout: no reply from the agent: ping, 1m"])
      agent.respond = likeC(() => ack())
      for (let owed = agent.commands.length; owed > 0; owed--) agent.ctl(Code.ack)
      yield* agent.until(() => agent.stdin.reduce((total, { data }) => total + data.length, 0) === 2000)
    }).pipe(Effect.provide(layer))
  })

  it.effect("is suspect holds up no stdin, output, exit, or end of what has not started", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim, tokens } = yield* running("a")
      const second = yield* shimFor(tokens[1])
      agent.respond = () => silence
      const stuck = yield* Effect.forkChild(runtime.refused(Command.Hyper, { hyperName: "readfile" }), now)
      yield* TestClock.adjust("60 seconds")
      yield* Fiber.join(stuck)
      const start = yield* Effect.forkChild(runtime.refused(Command.Hyper, execCmd(tokens[1])), now)
      yield* second.ask(Command.Signal, { signalNumber: 9 })
      assert.strictEqual(second.status(), 0)
      assert.match(yield* Fiber.join(start), /was killed before its start$/)
      shim.stdin("typed")
      yield* agent.until(() => agent.stdin.length === 1)
      agent.io(3, "still here")
      agent.exit(3, 4)
      yield* shim.until(() => shim.status() === 4)
      assert.strictEqual(shim.output(), "still here")
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("is suspect fails a signal by its own deadline, unsent, and takes the next once it is in step", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      agent.respond = () => silence
      const stuck = yield* Effect.forkChild(runtime.refused(Command.Hyper, { hyperName: "readfile" }), now)
      yield* TestClock.adjust("60 seconds")
      yield* Fiber.join(stuck)
      const signal = yield* Effect.forkChild(shim.refused(Command.Signal, { signalNumber: 15 }), now)
      yield* TestClock.adjust("59 seconds")
      assert.isUndefined(signal.pollUnsafe())
      yield* TestClock.adjust("1 seconds")
      assert.strictEqual(
        yield* Fiber.join(signal),
        "timeout: the agent is busy with an earlier command: killcontainer, 1m"
      )
      agent.respond = () => ack()
      for (let owed = agent.commands.length - 1; owed > 0; owed--) agent.ctl(Code.ack)
      yield* shim.ask(Command.Signal, { signalNumber: 10 })
      assert.deepStrictEqual(
        agent.commands.filter(({ code }) => code === Code.killcontainer).map(({ text }) => text),
        ['{"container":"c1","signal":10,"allProcesses":false}']
      )
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("drops a start leaves its token usable, and the signals that waited for it are told in time", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1)
      const shim = yield* shimFor(tokens[0])
      agent.respond = ({ code }) => (code === Code.newcontainer ? silence : ack())
      const start = yield* Effect.forkChild(runtime.refused(Command.Hyper, newContainer(tokens[0])), now)
      const signal = yield* Effect.forkChild(shim.refused(Command.Signal, { signalNumber: 10 }), now)
      yield* TestClock.adjust("30 seconds")
      assert.strictEqual(yield* Fiber.join(signal), "timeout waiting for the process to start, 30s")
      yield* TestClock.adjust("30 seconds")
      assert.strictEqual(yield* Fiber.join(start), "timeout: no reply from the agent: newcontainer, 1m")
      yield* TestClock.adjust("1 seconds")
      agent.respond = () => ack()
      yield* runtime.ask(Command.Hyper, newContainer(tokens[0]))
      yield* shim.ask(Command.Signal, { signalNumber: 10 })
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("says READY in the moment in which it ends, or its client leaves, leaves no half of a VM", () =>
    Effect.gen(function* () {
      const { boot } = yield* FakeHyperstart
      const { connect } = yield* TestProxy
      const sessions = yield* Sessions
      type Scene = { readonly agent: ReturnType<typeof boot>; readonly client: TestClient }
      const ready = ({ agent }: Scene) => agent.ctl(Code.ready)
      const ends: ReadonlyArray<(scene: Scene) => void> = [
        ({ agent }) => agent.close("ctl"),
        ({ agent }) => agent.close("io"),
        ({ agent }) => agent.powerOff(),
        ({ agent }) => agent.raw("ctl", new Uint8Array(8)),
        ({ agent }) => agent.raw("io", new Uint8Array(12)),
        ({ client }) => client.leave(),
        ({ agent, client }) => {
          client.leave()
          agent.powerOff()
        }
      ]
      for (const end of ends)
        for (const order of [
          [ready, end],
          [end, ready]
        ]) {
          const agent = boot("a", { first: [] })
          const client = yield* connect
          client.send(Command.RegisterVM, {
            containerId: "a",
            ctlSerial: agent.sockets.ctl,
            ioSerial: agent.sockets.io,
            numIOStreams: 3
          })
          for (const act of order) act({ agent, client })
          yield* TestClock.adjust("1 seconds")
          agent.powerOff() // which is all that may still hold it, where its client left just after READY
          yield* TestClock.adjust("1 seconds")
          yield* agent.until(() => agent.hungUp().length === 2)
          assert.strictEqual(sessions.size(), 0)
          const next = yield* register("a")
          next.agent.powerOff()
          yield* next.agent.until(() => next.agent.hungUp().length === 2)
        }
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("is unregistered while it registers is unknown until it is registered, and known then", () =>
    Effect.gen(function* () {
      const { boot } = yield* FakeHyperstart
      const { connect } = yield* TestProxy
      const agent = boot("a", { first: [] })
      const [client, other] = [yield* connect, yield* connect]
      const registered = yield* Effect.forkChild(
        client.ask(Command.RegisterVM, { containerId: "a", ctlSerial: agent.sockets.ctl, ioSerial: agent.sockets.io }),
        now
      )
      assert.strictEqual(yield* other.refused(Command.UnregisterVM, { containerId: "a" }), "unknown containerID: a")
      agent.ctl(Code.ready)
      yield* Fiber.join(registered)
      yield* other.ask(Command.UnregisterVM, { containerId: "a" })
      yield* client.ask(Command.Hyper, { hyperName: "ping" }).pipe(Effect.andThen(register("a")))
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  describe("is slow, and answers everything once and in order, has no answer taken for another's:", () => {
    /** Of commands and pings each waits in a queue for `base` ms and up to `spread` times as much again. */
    const serve = Effect.fnUntraced(function* (random: Random.Random, base: number, spread: number) {
      const { agent, runtime } = yield* register("a")
      const queue: Array<readonly [code: number, reply: Uint8Array]> = []
      agent.respond = ({ code, payload }) => {
        queue.push([Code.ack, code === Code.ping ? none : payload])
        return silence
      }
      let asked = 0
      const step = Effect.gen(function* () {
        yield* TestClock.adjust(base + random(base * spread + 1))
        const next = queue.shift()
        if (next !== undefined) agent.ctl(...next)
        yield* Effect.yieldNow
      })
      for (let steps = 0; steps < 60; steps++) {
        for (let n = random(3); n > 0; n--) runtime.send(Command.Hyper, { hyperName: "readfile", data: ++asked })
        yield* step
      }
      while (runtime.responses().length <= asked) yield* step
      const replies = runtime.responses().slice(1)
      for (const [n, { inError, text }] of replies.entries())
        if (!inError) assert.strictEqual(text, String(n + 1), `reply ${n + 1} of ${asked}, ${base} ms each`)
      return replies.filter(({ inError }) => !inError).length
    })

    for (const ctlTimeout of [1, 60])
      for (const spread of [0, 1, 3])
        it.effect(`paces of up to ${spread + 1} times the fastest, a deadline of ${ctlTimeout} s`, () =>
          Effect.gen(function* () {
            let answered = 0
            for (const base of [1, 20, 500, 2000, 10_000, 40_000, 70_000])
              for (let seed = 1; seed <= 5; seed++)
                answered += yield* serve(Random.make(seed), base, spread).pipe(
                  Effect.scoped,
                  Effect.provide(TestProxy.layer({ ctlTimeout: Duration.seconds(ctlTimeout) }))
                )
            assert.isAbove(answered, 500)
          })
        )
  })
})

describe("an agent, its clients and the clock, at random,", () => {
  interface Party {
    readonly client: TestClient
    asked: number
  }

  const chaos = Effect.fnUntraced(function* (random: Random.Random) {
    const any = <A>(...choices: ReadonlyArray<A>): A => choices[random(choices.length)]!
    const noise = (length: number) => Uint8Array.from({ length }, () => random(256))
    const { connect } = yield* TestProxy
    const sessions = yield* Sessions
    const { unaffected } = yield* bystander
    const others = sessions.size()
    const { agent, runtime, tokens } = yield* register("a", 4)
    const second = yield* connect
    yield* second.ask(Command.AttachVM, { containerId: "a" })
    const runtimes: Array<Party> = [runtime, second].map((client) => ({ client, asked: 1 }))
    const shims: Array<Party> = []
    for (const token of tokens.slice(0, 2)) shims.push({ client: yield* shimFor(token), asked: 1 })
    const ask = (party: Party, command: Command, payload: unknown) => {
      party.client.send(command, payload)
      party.asked++
    }
    agent.respond = ({ code }) => {
      const reply = [Code.ack, utf8(String(code))] as const
      return any(silence, [reply, reply], refuse("no"), [[Code.next, none], reply], ack(), ack(), ack(), ack())
    }
    const sequence = () => any(0, 1, 3, 3, 4, 5, 6, 7, 9, 99)
    const process = () => any({}, { id: "p" }, { id: "q", terminal: true })
    const event = () =>
      JSON.stringify({
        container: any("c1", "c2"),
        process: any("p", "(null)"),
        event: "finished",
        status: random(300)
      })
    const seldom = (act: () => void) => () => void (random(8) === 0 && act())
    const deeds: ReadonlyArray<() => Effect.Effect<void, never, Scope.Scope> | void> = [
      () => ask(any(...runtimes), Command.Hyper, { hyperName: any("ping", "readfile", "startpod", "nonsense") }),
      () => ask(any(...runtimes), Command.Hyper, newContainer(any(...tokens), process(), any("c1", "c2"))),
      () => ask(any(...runtimes), Command.Hyper, execCmd(any(...tokens, undefined), process())),
      () => ask(any(...shims), Command.Signal, { signalNumber: any(1, 9, 15, 99) }),
      () => ask(any(...shims), Command.Signal, { signalNumber: 28, columns: 80, rows: 24 }),
      () => any(...shims).client.stdin(new Uint8Array(random(3000))),
      () => any(...shims).client.stopReading(),
      () => any(...shims).client.readAgain(),
      () =>
        Effect.gen(function* () {
          const at = random(2)
          shims[at]!.client.leave()
          shims[at] = { client: yield* connect, asked: 0 }
          ask(shims[at], Command.ConnectShim, { token: tokens[at] })
        }),
      () => agent.ctl(any(Code.ack, Code.error, Code.ready, Code.next, random(256)), noise(random(20))),
      () => agent.ctl(Code.processEvent, utf8(event())),
      () => agent.io(sequence(), new Uint8Array(random(5000))),
      () => agent.io(sequence(), ""),
      () => agent.io(sequence(), noise(1)),
      () => agent.exit(any(3, 5, 7), random(256)),
      () => agent.stopReading(),
      () => agent.readAgain(),
      seldom(() => agent.raw(any("ctl", "io"), noise(random(30)))),
      seldom(() => agent.raw("ctl", CtlMessage.encode(Code.ack, utf8("half")).subarray(0, 1 + random(11)))),
      seldom(() => agent.raw("io", IoMessage.encode(3, utf8("half")).subarray(0, 1 + random(15)))),
      seldom(() => agent.close(any("ctl", "io"))),
      () => TestClock.adjust(any(1, 20, 100, 1000)),
      () => TestClock.adjust(any(1000, 30_000, 60_000)),
      () => unaffected
    ]
    for (let n = 20 + random(100); n > 0; n--) {
      const done = any(...deeds)()
      if (Effect.isEffect(done)) yield* done
      if (random(3) === 0) yield* Effect.yieldNow
    }
    for (const { client } of shims) client.readAgain()
    yield* unaffected
    // every wait has its end
    for (let minutes = 0; minutes < 20; minutes++) yield* TestClock.adjust("1 minutes")
    for (const { asked, client } of [...runtimes, ...shims])
      if (!client.ended()) assert.strictEqual(client.responses().length, asked)
    agent.powerOff()
    for (let minutes = 0; minutes < 20; minutes++) yield* TestClock.adjust("1 minutes")
    for (const { client } of shims) {
      assert.isAtMost(client.received.filter(({ type }) => type === "exit").length, 1)
      assert.isTrue(client.ended() || client.responses()[0]!.inError)
    }
    assert.strictEqual(sessions.size(), others)
    assert.deepStrictEqual(agent.hungUp().toSorted(), ["ctl", "io"])
    yield* register("a")
    yield* unaffected
    return runtimes.concat(shims).reduce((total, { asked }) => total + asked, 0)
  })

  const perTest = 50
  for (let from = 0; from < 4 * perTest; from += perTest)
    it.effect(`come to an end: seeds ${from} to ${from + perTest - 1}`, () =>
      Effect.gen(function* () {
        for (let seed = from; seed < from + perTest; seed++) {
          const { layer, worse } = logged({ outboxLimit: 4000 })
          const asked = yield* chaos(Random.make(seed)).pipe(
            Effect.scoped,
            Effect.provide(layer),
            Effect.catchDefect((defect) => Effect.die(new Error(`seed ${seed}`, { cause: defect })))
          )
          assert.isUndefined(worse().find((record) => record.startsWith("Error")))
          assert.isAtMost(worse().length, asked + 10, `seed ${seed}`)
        }
      })
    )
})
