import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as TestClock from "effect/testing/TestClock"
import { Command } from "../../src/domain/Frame.ts"
import * as CtlMessage from "../../src/domain/CtlMessage.ts"
import { Sessions } from "../../src/services/Sessions.ts"
import { ack, FakeHyperstart, refuse, silence } from "../support/FakeHyperstart.ts"
import { running } from "../support/Pod.ts"
import * as Records from "../support/Records.ts"
import { TestProxy } from "../support/TestProxy.ts"

const text = new TextEncoder()

/** A registered VM, the connection that registered it, and its agent. */
const registered = Effect.fnUntraced(function* (id: string, numIOStreams = 0) {
  const { boot } = yield* FakeHyperstart
  const { connect } = yield* TestProxy
  const agent = boot(id)
  const runtime = yield* connect
  const { io } = yield* runtime.ask(Command.RegisterVM, {
    containerId: id,
    ctlSerial: agent.sockets.ctl,
    ioSerial: agent.sockets.io,
    numIOStreams
  })
  return { agent, runtime, io, tokens: (io.tokens ?? []) as Array<string> }
})

/** A proxy with a bug: looking for a token throws. */
const buggy = Effect.map(Sessions, (sessions) => ({
  ...sessions,
  find: () => {
    throw new Error("boom")
  }
}))

describe("Client", () => {
  it.effect("a bug fails the command that meets it, is logged, and leaves the client connected", () => {
    const log = Records.make()
    return Effect.gen(function* () {
      const proxy = yield* Effect.provideServiceEffect(TestProxy.make, Sessions, buggy)
      const client = yield* proxy.connect
      assert.strictEqual(
        yield* client.refused(Command.ConnectShim, { token: "any" }),
        "internal error: the proxy's log tells more"
      )
      assert.deepStrictEqual(
        log.records.filter(({ level }) => level === "Error").map(({ msg }) => msg),
        ["a command failed by a bug"]
      )
      assert.strictEqual(yield* client.refused(Command.AttachVM, { containerId: "none" }), "unknown containerID: none")
    }).pipe(Effect.provide([log.layer, TestProxy.layer()]))
  })

  it.effect(
    "goes on with what waited for earlier commands, and then for a client that did not read their answers",
    () =>
      Effect.gen(function* () {
        const { agent, runtime } = yield* registered("a")
        agent.respond = () => silence
        runtime.stopReading()
        for (let at = 0; at < 4; at++) runtime.send(Command.Hyper, { hyperName: "readfile" })
        for (const answered of [1, 2]) {
          yield* agent.until(() => agent.commands.length === answered)
          agent.ctl(CtlMessage.Code.ack, new Uint8Array(300))
        }
        assert.strictEqual(agent.commands.length, 2)
        runtime.readAgain()
        yield* agent.until(() => agent.commands.length === 3)
      }).pipe(Effect.provide(TestProxy.layer({ maxPipelined: 2, maxPending: 100 })))
  )

  it.effect("is not heard any more once its connection is ended, though it has not read its last answer", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      agent.respond = () => silence
      runtime.send(Command.Hyper, { hyperName: "readfile" })
      yield* agent.until(() => agent.commands.length === 2)
      shim.stopReading()
      shim.send(Command.AttachVM, { containerId: "a" })
      shim.send(Command.Hyper, { hyperName: "writefile" })
      shim.send(Command.DisconnectShim, {})
      const other = yield* (yield* TestProxy).connect
      yield* other.ask(Command.AttachVM, { containerId: "a" })
      agent.ctl(CtlMessage.Code.ack)
      agent.respond = () => ack()
      yield* other.ask(Command.Hyper, { hyperName: "ping" })
      assert.deepStrictEqual(
        agent.commands.slice(2).map(({ code }) => code),
        [CtlMessage.Code.ping]
      )
      shim.readAgain()
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("tells where shims connect, and as many tokens as were asked for", () =>
    Effect.gen(function* () {
      const none = yield* registered("a")
      assert.deepStrictEqual(none.io, { URL: "unix:///run/test.sock", tokens: null })
      const two = yield* registered("b", 2)
      assert.strictEqual(two.tokens.length, 2)
      const attached = yield* two.runtime.ask(Command.AttachVM, { containerId: "b", numIOStreams: 1 })
      assert.strictEqual(attached.io.tokens.length, 1)
      assert.notInclude(two.tokens, attached.io.tokens[0])
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("refuses a number of tokens below 0 or above the limit", () =>
    Effect.gen(function* () {
      const { runtime } = yield* registered("a")
      for (const numIOStreams of [-1, 1025])
        assert.strictEqual(
          yield* runtime.refused(Command.AttachVM, { containerId: "a", numIOStreams }),
          `numIOStreams must be between 0 and 1024, got ${numIOStreams}`
        )
      const { io } = yield* runtime.ask(Command.AttachVM, { containerId: "a", numIOStreams: 1024 })
      assert.strictEqual(new Set(io.tokens).size, 1024)
      assert.match(
        yield* runtime.refused(Command.RegisterVM, {
          containerId: "z",
          ctlSerial: "c",
          ioSerial: "i",
          numIOStreams: 1025
        }),
        /numIOStreams/
      )
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("bounds the tokens of a VM", () =>
    Effect.gen(function* () {
      const { runtime } = yield* registered("a", 2)
      yield* runtime.ask(Command.AttachVM, { containerId: "a", numIOStreams: 1 })
      assert.strictEqual(
        yield* runtime.refused(Command.AttachVM, { containerId: "a", numIOStreams: 2 }),
        "too many tokens for this VM: 5 with those asked for, the limit is 4"
      )
      yield* runtime.ask(Command.AttachVM, { containerId: "a", numIOStreams: 1 })
    }).pipe(Effect.provide(TestProxy.layer({ maxVmTokens: 4 })))
  )

  it.effect("answers a payload that is not JSON, or does not fit, with an error, and goes on", () =>
    Effect.gen(function* () {
      const { connect } = yield* TestProxy
      const client = yield* connect
      assert.strictEqual(
        yield* client.refused(Command.RegisterVM, "{nonsense"),
        "malformed RegisterVM command: the payload is not JSON"
      )
      for (const payload of [{}, null, [], { containerId: "", ctlSerial: "c", ioSerial: "i" }])
        assert.match(yield* client.refused(Command.RegisterVM, payload), /^malformed RegisterVM command: /)
      assert.strictEqual(yield* client.refused(Command.AttachVM, { containerId: "x" }), "unknown containerID: x")
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("refuses commands that need a VM, or a shim, from a client that has none", () =>
    Effect.gen(function* () {
      const { connect } = yield* TestProxy
      const client = yield* connect
      assert.strictEqual(yield* client.refused(Command.Hyper, { hyperName: "ping" }), "client not attached to a vm")
      assert.strictEqual(yield* client.refused(Command.Signal, { signalNumber: 9 }), "client isn't a shim")
      assert.strictEqual(yield* client.refused(Command.DisconnectShim, {}), "client isn't a shim")
      assert.isFalse(client.ended())
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("hands on the agent's reply byte for byte", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* registered("a")
      agent.respond = () => ack(text.encode(' {"n": 12345678901234567890}\n'))
      const reply = yield* runtime.call(Command.Hyper, { hyperName: "readfile", data: {} })
      assert.strictEqual(reply.text, ' {"n": 12345678901234567890}\n')
      agent.respond = () => refuse("no such file")
      assert.strictEqual(
        yield* runtime.refused(Command.Hyper, { hyperName: "readfile", data: {} }),
        "agent refused readfile: no such file"
      )
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("forwards data byte for byte, and none where there is none", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* registered("a")
      yield* runtime.ask(
        Command.Hyper,
        '{"hyperName":"startpod", "data" : { "limit": 9223372036854775807,"a":1 ,"a":2}}'
      )
      yield* runtime.ask(Command.Hyper, { hyperName: "ping", tokens: null, other: 1 })
      assert.deepStrictEqual(
        agent.commands.map(({ code, text }) => [code, text]),
        [
          [CtlMessage.Code.startpod, '{ "limit": 9223372036854775807,"a":1 ,"a":2}'],
          [CtlMessage.Code.ping, ""]
        ]
      )
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("refuses unknown commands, and those that are the agent's own words, before anything is queued", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* registered("a")
      for (const hyperName of ["nonsense", "ready", "ack", "error", "next", "signalprocess", "constructor"])
        assert.strictEqual(yield* runtime.refused(Command.Hyper, { hyperName }), `unknown command '${hyperName}'`)
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      assert.strictEqual(agent.commands.length, 1)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("answers pipelined commands in their order, however long each takes", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* registered("a", 1)
      // the start waits for its shim; what comes behind it goes to the agent meanwhile
      runtime.send(Command.Hyper, {
        hyperName: "newcontainer",
        tokens,
        data: { id: "c", process: {} }
      })
      runtime.send(Command.Hyper, { hyperName: "ping" })
      runtime.send(Command.AttachVM, { containerId: "nobody" })
      yield* agent.until(() => agent.commands.length === 1)
      assert.strictEqual(runtime.responses().length, 1)
      const shim = yield* (yield* TestProxy).connect
      yield* shim.ask(Command.ConnectShim, { token: tokens[0] })
      yield* runtime.until(() => runtime.responses().length === 4)
      assert.deepStrictEqual(
        runtime.responses().map(({ inError, opcode }) => [opcode, inError]),
        [
          [Command.RegisterVM, false],
          [Command.Hyper, false],
          [Command.Hyper, false],
          [Command.AttachVM, true]
        ]
      )
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("lets what comes behind RegisterVM use the VM", () =>
    Effect.gen(function* () {
      const { boot } = yield* FakeHyperstart
      const client = yield* (yield* TestProxy).connect
      const agent = boot("a", { first: [] })
      client.send(Command.RegisterVM, { containerId: "a", ctlSerial: agent.sockets.ctl, ioSerial: agent.sockets.io })
      client.send(Command.Hyper, { hyperName: "ping" })
      agent.ctl(CtlMessage.Code.ready)
      yield* client.until(() => client.responses().length === 2)
      assert.deepStrictEqual(
        client.responses().map(({ inError }) => inError),
        [false, false]
      )
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("stops reading a client that has too many commands under way, and goes on as they are answered", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* registered("a")
      agent.respond = () => silence
      for (let i = 0; i < 10; i++) runtime.send(Command.Hyper, { hyperName: "ping" })
      yield* agent.until(() => agent.commands.length === 1)
      for (let i = 0; i < 10; i++) agent.ctl(CtlMessage.Code.ack)
      yield* runtime.until(() => runtime.responses().length === 11)
      assert.strictEqual(agent.commands.length, 10)
    }).pipe(Effect.provide(TestProxy.layer({ maxPipelined: 2 })))
  )

  it.effect("gives each of a thousand concurrent commands its own answer", () =>
    Effect.gen(function* () {
      const { agent } = yield* registered("a")
      const { connect } = yield* TestProxy
      agent.respond = ({ payload }) => ack(payload)
      yield* Effect.forEach(
        Array.from({ length: 8 }, (_, client) => client),
        Effect.fnUntraced(function* (client) {
          const connection = yield* connect
          yield* connection.ask(Command.AttachVM, { containerId: "a" })
          for (let i = 0; i < 125; i++) {
            const reply = yield* connection.call(Command.Hyper, { hyperName: "readfile", data: { client, i } })
            assert.strictEqual(reply.text, `{"client":${client},"i":${i}}`)
          }
        }),
        { concurrency: "unbounded" }
      )
      assert.strictEqual(agent.commands.length, 1000)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  describe("a client that breaks the protocol", () => {
    const bytes = (hex: string) => Uint8Array.from(hex.match(/../g)!.map((byte) => Number.parseInt(byte, 16)))
    const cases: ReadonlyArray<readonly [string, string]> = [
      ["a bad version", "000303000000000000000000"],
      ["a header of two words", "000202000000000000000000"],
      ["an unknown command", "000203000000000700000000"],
      ["a response", "000203000000010000000000"],
      ["a notification", "000203000000030000000000"],
      ["stdout", "000203000000020100000000"],
      ["a payload of 4 GiB", "0002030000000003ffffffff"],
      ["stdin from a client that is no shim", "00020300000002000000000161"],
      ["a log entry that is not JSON", "0002030000000203000000017b"],
      ["a log entry without a message", "000203000000020300000002" + Buffer.from("{}").toString("hex")]
    ]
    for (const [what, hex] of cases)
      it.effect(`loses its connection, and nobody else does: ${what}`, () =>
        Effect.gen(function* () {
          const { runtime } = yield* registered("a")
          const breaker = yield* (yield* TestProxy).connect
          breaker.raw(bytes(hex))
          yield* breaker.until(() => breaker.ended())
          assert.deepStrictEqual(breaker.received, [])
          yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
        }).pipe(Effect.provide(TestProxy.layer()))
      )
  })

  describe("a frame that is left half-sent", () => {
    it.effect("ends the connection after 30 s without a byte", () =>
      Effect.gen(function* () {
        const client = yield* (yield* TestProxy).connect
        client.raw(Uint8Array.of(0))
        yield* TestClock.adjust("29 seconds")
        client.raw(Uint8Array.of(2))
        yield* TestClock.adjust("29 seconds")
        assert.isFalse(client.ended())
        yield* TestClock.adjust("1 seconds")
        yield* client.until(() => client.ended())
      }).pipe(Effect.provide(TestProxy.layer()))
    )

    it.effect("is warned of, once, when it ends its connection", () => {
      const log = Records.make()
      return Effect.gen(function* () {
        const { runtime } = yield* registered("a")
        const client = yield* (yield* TestProxy).connect
        client.raw(new Uint8Array(1))
        yield* TestClock.adjust("30 seconds")
        yield* client.until(() => client.ended())
        yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
        yield* TestClock.adjust("1 days")
        assert.deepStrictEqual(
          log.records.flatMap(({ fields, level, msg }) => (level === "Warn" ? [[msg, fields]] : [])),
          [["client's connection ended", { reason: "a frame was left half-sent for 30s" }]]
        )
      }).pipe(Effect.provide(TestProxy.layer().pipe(Layer.provideMerge(log.layer))))
    })

    it.effect("but a connection between frames may be silent for ever", () =>
      Effect.gen(function* () {
        const { runtime } = yield* registered("a")
        yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
        yield* TestClock.adjust("1 days")
        assert.isFalse(runtime.ended())
      }).pipe(Effect.provide(TestProxy.layer()))
    )
  })

  it.effect("takes log entries and answers none", () =>
    Effect.gen(function* () {
      const client = yield* (yield* TestProxy).connect
      const entry = text.encode(JSON.stringify({ source: "shim", level: "error", containerId: "c", msg: "broken" }))
      const frame = new Uint8Array(12 + entry.length)
      frame.set([0, 2, 3, 0, 0, 0, 2, 3, 0, 0, 0, entry.length])
      frame.set(entry, 12)
      client.raw(frame)
      yield* client.refused(Command.AttachVM, { containerId: "x" })
      assert.strictEqual(client.received.length, 1)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("takes a waiting command along when it leaves, and finishes a written one", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* registered("a")
      const leaver = yield* (yield* TestProxy).connect
      agent.respond = () => silence
      yield* leaver.ask(Command.AttachVM, { containerId: "a" })
      leaver.send(Command.Hyper, { hyperName: "startpod" })
      leaver.send(Command.Hyper, { hyperName: "winsize" })
      yield* agent.until(() => agent.commands.length === 1)
      leaver.leave()
      const ping = yield* Effect.forkChild(runtime.ask(Command.Hyper, { hyperName: "ping" }), {
        startImmediately: true
      })
      yield* Effect.yieldNow
      agent.ctl(CtlMessage.Code.ack, text.encode("for the one that left"))
      agent.ctl(CtlMessage.Code.ack)
      yield* Fiber.join(ping)
      assert.deepStrictEqual(
        agent.commands.map(({ code }) => code),
        [CtlMessage.Code.startpod, CtlMessage.Code.ping]
      )
    }).pipe(Effect.provide(TestProxy.layer()))
  )
})
