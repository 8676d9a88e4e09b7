/** A whole hand-over: whatever was under way goes on under the next daemon as if nothing had been. */
import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as TestClock from "effect/testing/TestClock"
import * as CtlMessage from "../../src/domain/CtlMessage.ts"
import { Command } from "../../src/domain/Frame.ts"
import * as Frame from "../../src/domain/Frame.ts"
import * as IoMessage from "../../src/domain/IoMessage.ts"
import { concat, pattern, toHex, utf8 } from "../support/Bytes.ts"
import { ack, type FakeAgent, FakeHyperstart, likeC, silence } from "../support/FakeHyperstart.ts"
import { HandOver } from "../support/HandOver.ts"
import { MemorySpool } from "../support/MemorySpool.ts"
import { execCmd, newContainer, register, running, shimFor } from "../support/Pod.ts"
import { type TestClient, TestProxy } from "../support/TestProxy.ts"

const { Code } = CtlMessage
const call = <A, E>(effect: Effect.Effect<A, E>) => Effect.forkChild(effect, { startImmediately: true })
const handOver = Effect.flatMap(HandOver, (service) => service.handOver)
const connect = Effect.flatMap(TestProxy, (service) => service.connect)
const KiB = 1024

/** All that one process has read so far. */
const stdinOf = (agent: FakeAgent, sequence: number): Uint8Array =>
  concat(agent.stdin.filter((message) => message.sequence === sequence).map(({ data }) => data))

const outputOf = (shim: TestClient): Uint8Array =>
  concat(shim.received.filter(({ type }) => type === "stdout").map(({ payload }) => payload))

const same = (actual: Uint8Array, expected: Uint8Array): void => {
  assert.strictEqual(actual.length, expected.length)
  assert.isTrue(Buffer.from(actual).equals(expected), "other bytes")
}

/** Whether the agent has been asked to carry out `code`, how often. */
const asked = (agent: FakeAgent, code: number): number =>
  agent.commands.filter((command) => command.code === code).length

/** The commands of the agent but the pings. */
const codes = (agent: FakeAgent): ReadonlyArray<number> =>
  agent.commands.map(({ code }) => code).filter((code) => code !== Code.ping)

const commandFrame = (opcode: Command, payload: unknown): Uint8Array =>
  Frame.encode({ type: Frame.FrameType.command, opcode, inError: false, payload: utf8(JSON.stringify(payload)) })

describe("a hand-over", () => {
  it.effect("leaves runtimes and shims connected, and processes with all of their streams", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      agent.io(3, "before ")
      yield* shim.until(() => shim.output() === "before ")
      yield* handOver
      agent.io(3, "after")
      agent.io(4, "err")
      shim.stdin("in")
      yield* agent.until(() => stdinOf(agent, 3).length === 2)
      yield* shim.ask(Command.Signal, { signalNumber: 15 })
      assert.strictEqual(asked(agent, Code.killcontainer), 1)
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      agent.exit(3, 7)
      yield* shim.until(() => shim.status() === 7)
      assert.strictEqual(shim.output(), "before after")
      assert.strictEqual(shim.output("stderr"), "err")
      assert.isFalse(shim.ended())
      assert.deepStrictEqual(agent.hungUp(), [])
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("keeps ids, tokens and numbers: new clients find everything, and new tokens follow the old", () =>
    Effect.gen(function* () {
      const { agent, tokens } = yield* register("a", 1)
      yield* handOver
      const runtime = yield* connect
      assert.strictEqual(
        yield* runtime.refused(Command.RegisterVM, {
          containerId: "a",
          ctlSerial: agent.sockets.ctl,
          ioSerial: agent.sockets.io
        }),
        "a: container already registered"
      )
      const { io } = yield* runtime.ask(Command.AttachVM, { containerId: "a", numIOStreams: 1 })
      for (const [token, stdio] of [
        [tokens[0], 3],
        [io.tokens[0], 5]
      ] as const) {
        const shim = yield* shimFor(token)
        yield* runtime.ask(Command.Hyper, execCmd(token))
        assert.include(agent.commands.at(-1)!.text, `"stdio":${stdio}`)
        agent.io(stdio, "hi")
        yield* shim.until(() => shim.output() === "hi")
      }
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("that fails leaves everything as it was", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      const { failToHandOver } = yield* HandOver
      shim.stopReading()
      agent.io(3, pattern(100 * KiB))
      yield* failToHandOver("it does not start")
      agent.io(3, pattern(10 * KiB, 1))
      shim.readAgain()
      shim.stdin("in")
      yield* agent.until(() => stdinOf(agent, 3).length === 2)
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      yield* shim.until(() => outputOf(shim).length >= 110 * KiB)
      same(outputOf(shim), concat([pattern(100 * KiB), pattern(10 * KiB, 1)]))
      yield* handOver // and may be tried again
      agent.exit(3, 0)
      yield* shim.until(() => shim.status() === 0)
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("may follow another", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      shim.stopReading()
      const expected: Array<Uint8Array> = []
      for (let n = 0; n < 5; n++) {
        expected.push(pattern(70 * KiB, n))
        agent.io(3, expected[n]!)
        yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
        yield* handOver
      }
      shim.readAgain()
      agent.exit(3, 3)
      yield* shim.until(() => shim.status() === 3)
      same(outputOf(shim), concat(expected))
    }).pipe(Effect.provide(HandOver.layer()))
  )
})

describe("a start, over a hand-over,", () => {
  it.effect("still waits for its shim", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1)
      const started = yield* call(runtime.ask(Command.Hyper, newContainer(tokens[0])))
      yield* TestClock.adjust("10 seconds")
      yield* handOver
      yield* TestClock.adjust("19 seconds")
      assert.isUndefined(started.pollUnsafe())
      assert.deepStrictEqual(codes(agent), [])
      yield* shimFor(tokens[0])
      yield* Fiber.join(started)
      assert.deepStrictEqual(codes(agent), [Code.newcontainer])
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("waits for its shim no longer than it would have", () =>
    Effect.gen(function* () {
      const { runtime, tokens } = yield* register("a", 1)
      const refused = yield* call(runtime.refused(Command.Hyper, newContainer(tokens[0])))
      yield* TestClock.adjust("10 seconds")
      yield* handOver
      yield* TestClock.adjust("10 seconds")
      yield* handOver
      yield* TestClock.adjust("9 seconds")
      assert.isUndefined(refused.pollUnsafe())
      yield* TestClock.adjust("1 seconds")
      assert.match(yield* Fiber.join(refused), /^timeout waiting for shim with token .*, 30s$/)
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("that has been written has its reply, and what waited for it follows", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1, { respond: () => silence })
      const shim = yield* shimFor(tokens[0])
      const started = yield* call(runtime.call(Command.Hyper, newContainer(tokens[0])))
      yield* agent.until(() => agent.commands.length === 1)
      shim.stdin("typed ahead")
      shim.stdin("")
      const signalled = yield* call(shim.ask(Command.Signal, { signalNumber: 1 }))
      agent.io(3, "early")
      yield* shim.until(() => shim.output() === "early")
      yield* handOver
      assert.isUndefined(started.pollUnsafe())
      assert.deepStrictEqual(agent.stdin, [])
      agent.respond = () => ack()
      agent.ctl(Code.ack, utf8("mine"))
      assert.strictEqual((yield* Fiber.join(started)).text, "mine")
      yield* Fiber.join(signalled)
      yield* agent.until(() => agent.stdin.length > 0 && agent.stdin.at(-1)!.data.length === 0)
      assert.strictEqual(Buffer.from(stdinOf(agent, 3)).toString(), "typed ahead")
      assert.deepStrictEqual(codes(agent), [Code.newcontainer, Code.killcontainer])
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("that has been written and is refused leaves its token usable", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1, { respond: () => silence })
      const shim = yield* shimFor(tokens[0])
      const refused = yield* call(runtime.refused(Command.Hyper, newContainer(tokens[0])))
      yield* agent.until(() => agent.commands.length === 1)
      yield* handOver
      agent.ctl(Code.error, utf8("no such file"))
      assert.strictEqual(yield* Fiber.join(refused), "agent refused newcontainer: no such file")
      agent.respond = () => ack()
      yield* runtime.ask(Command.Hyper, newContainer(tokens[0]))
      agent.exit(3, 5)
      yield* shim.until(() => shim.status() === 5)
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("without a reply times out when it would have", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1, { respond: () => silence })
      yield* shimFor(tokens[0])
      const refused = yield* call(runtime.refused(Command.Hyper, newContainer(tokens[0])))
      yield* agent.until(() => agent.commands.length === 1)
      yield* TestClock.adjust("40 seconds")
      yield* handOver
      yield* TestClock.adjust("19 seconds")
      assert.isUndefined(refused.pollUnsafe())
      yield* TestClock.adjust("1 seconds")
      assert.strictEqual(yield* Fiber.join(refused), "timeout: no reply from the agent: newcontainer, 1m")
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("whose client has gone is finished all the same", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1, { respond: () => silence })
      const shim = yield* shimFor(tokens[0])
      runtime.send(Command.Hyper, newContainer(tokens[0]))
      yield* agent.until(() => agent.commands.length === 1)
      runtime.leave()
      yield* handOver
      agent.respond = () => ack()
      agent.ctl(Code.ack)
      shim.stdin("in")
      yield* agent.until(() => stdinOf(agent, 3).length === 2)
    }).pipe(Effect.provide(HandOver.layer()))
  )
})

describe("commands, over a hand-over,", () => {
  it.effect("wait for their turn in their order, and none is sent twice", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* register("a", 0, { respond: () => silence })
      const other = yield* connect
      yield* other.ask(Command.AttachVM, { containerId: "a" })
      runtime.send(Command.Hyper, { hyperName: "writefile", data: { n: 1 } })
      yield* agent.until(() => agent.commands.length === 1)
      other.send(Command.Hyper, { hyperName: "readfile", data: { n: 2 } })
      runtime.send(Command.Hyper, { hyperName: "setuproute", data: { n: 3 } })
      yield* handOver
      assert.strictEqual(agent.commands.length, 1)
      for (const n of [1, 2, 3]) {
        yield* agent.until(() => agent.commands.length === n)
        agent.ctl(Code.ack, utf8(`reply ${n}`))
      }
      yield* runtime.until(() => runtime.responses().length === 3)
      yield* other.until(() => other.responses().length === 2)
      assert.strictEqual(other.responses()[1]!.text.slice(0, 6), "reply ")
      // each has the reply to its own command
      const replies = new Map(agent.commands.map(({ code }, at) => [code, `reply ${at + 1}`]))
      assert.strictEqual(runtime.responses()[1]!.text, replies.get(Code.writefile))
      assert.strictEqual(other.responses()[1]!.text, replies.get(Code.readfile))
      assert.strictEqual(runtime.responses()[2]!.text, replies.get(Code.setuproute))
      assert.sameMembers([...codes(agent)], [Code.writefile, Code.readfile, Code.setuproute])
      assert.strictEqual(agent.commands.length, 3)
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("that wait for their turn time out when they would have", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* register("a", 0, { respond: () => silence })
      runtime.send(Command.Hyper, { hyperName: "writefile" })
      yield* agent.until(() => agent.commands.length === 1)
      yield* TestClock.adjust("20 seconds")
      const other = yield* connect
      yield* other.ask(Command.AttachVM, { containerId: "a" })
      const refused = yield* call(other.refused(Command.Hyper, { hyperName: "readfile" }))
      yield* TestClock.adjust("20 seconds")
      yield* handOver
      yield* TestClock.adjust("39 seconds")
      assert.isUndefined(refused.pollUnsafe())
      yield* TestClock.adjust("1 seconds")
      assert.match(yield* Fiber.join(refused), /^timeout: the agent is busy with an earlier command: readfile/)
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("never have the late reply to one before them", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* register("a", 0, { respond: () => silence })
      const refused = yield* call(runtime.refused(Command.Hyper, { hyperName: "writefile" }))
      yield* TestClock.adjust("60 seconds")
      assert.match(yield* Fiber.join(refused), /^timeout: no reply from the agent: writefile/)
      const replied = yield* call(runtime.call(Command.Hyper, { hyperName: "readfile" }))
      yield* handOver
      agent.respond = ({ code }) => (code === Code.readfile ? ack(utf8("read")) : silence)
      yield* agent.until(() => agent.commands.at(-1)!.code === Code.ping)
      // it was slow: it answers everything now, in order
      agent.ctl(Code.ack, utf8("late"))
      for (let pings = asked(agent, Code.ping); pings > 0; pings--) agent.ctl(Code.ack)
      agent.respond = ({ code }) => (code === Code.readfile ? ack(utf8("read")) : ack())
      for (let n = 0; n < 20 && replied.pollUnsafe() === undefined; n++) yield* TestClock.adjust("1 seconds")
      assert.strictEqual((yield* Fiber.join(replied)).text, "read")
      assert.strictEqual(asked(agent, Code.readfile), 1)
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("keep the order of their responses, those included that wait for one before them", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* register("a", 0, { respond: () => silence })
      runtime.send(Command.Hyper, { hyperName: "writefile" })
      runtime.send(Command.Hyper, { hyperName: "nonsense" })
      runtime.send(Command.Hyper, { hyperName: "readfile" })
      yield* agent.until(() => agent.commands.length === 1)
      yield* handOver
      agent.respond = () => ack(utf8("second"))
      agent.ctl(Code.ack, utf8("first"))
      yield* runtime.until(() => runtime.responses().length === 4)
      assert.deepStrictEqual(
        runtime
          .responses()
          .slice(1)
          .map(({ text }) => text),
        ["first", '{"msg":"unknown command \'nonsense\'"}', "second"]
      )
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("and whatever else is behind one that holds up its connection are handled in their turn", () =>
    Effect.gen(function* () {
      const { boot } = yield* FakeHyperstart
      const agent = boot("a", { first: [] })
      const runtime = yield* connect
      runtime.send(Command.RegisterVM, {
        containerId: "a",
        ctlSerial: agent.sockets.ctl,
        ioSerial: agent.sockets.io,
        numIOStreams: 2
      })
      runtime.send(Command.Hyper, { hyperName: "ping" })
      runtime.send(Command.AttachVM, { containerId: "a" })
      const next = commandFrame(Command.Hyper, { hyperName: "readfile", data: { path: "/x" } })
      runtime.raw(next.subarray(0, 30))
      yield* TestClock.adjust("10 seconds")
      yield* handOver
      assert.deepStrictEqual(agent.commands, [])
      runtime.raw(next.subarray(30))
      agent.ctl(Code.ready)
      yield* runtime.until(() => runtime.responses().length === 4)
      assert.deepStrictEqual(
        runtime.responses().map(({ inError, opcode }) => [opcode, inError]),
        [
          [Command.RegisterVM, false],
          [Command.Hyper, false],
          [Command.AttachVM, false],
          [Command.Hyper, false]
        ]
      )
      assert.strictEqual(JSON.parse(runtime.responses()[0]!.text).io.tokens.length, 2)
      assert.deepStrictEqual(
        agent.commands.map(({ code }) => code),
        [Code.ping, Code.readfile]
      )
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("that came in part are whole once the rest has come, wherever the cut is", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* register("a")
      const frame = commandFrame(Command.Hyper, { hyperName: "readfile", data: { path: "/x" } })
      for (const [n, at] of [1, 6, 11, 12, 13, 40, frame.length - 1].entries()) {
        runtime.raw(frame.subarray(0, at))
        yield* handOver
        runtime.raw(frame.subarray(at))
        yield* runtime.until(() => runtime.responses().length === n + 2)
        assert.strictEqual(agent.commands.at(-1)!.text, '{"path":"/x"}')
      }
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("have their responses, also where their client has not read those before", () =>
    Effect.gen(function* () {
      const { runtime } = yield* register("a", 0, { respond: () => ack(pattern(50 * KiB)) })
      runtime.stopReading()
      for (let n = 0; n < 5; n++) runtime.send(Command.Hyper, { hyperName: "readfile" })
      yield* Effect.yieldNow
      yield* handOver
      runtime.send(Command.Hyper, { hyperName: "readfile" })
      runtime.readAgain()
      yield* runtime.until(() => runtime.responses().length === 7)
      for (const { payload } of runtime.responses().slice(1)) same(payload, pattern(50 * KiB))
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("have a reply that had come in part", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* register("a", 0, { respond: () => silence })
      const replied = yield* call(runtime.call(Command.Hyper, { hyperName: "readfile" }))
      yield* agent.until(() => agent.commands.length === 1)
      const reply = CtlMessage.encode(Code.ack, pattern(1000))
      agent.raw("ctl", reply.subarray(0, 5))
      yield* handOver
      agent.raw("ctl", reply.subarray(5, 500))
      yield* handOver
      agent.raw("ctl", reply.subarray(500))
      same((yield* Fiber.join(replied)).payload, pattern(1000))
    }).pipe(Effect.provide(HandOver.layer()))
  )
})

describe("a signal, over a hand-over,", () => {
  it.effect("still waits for the start of its process, as long as it would have", () =>
    Effect.gen(function* () {
      const { runtime, tokens } = yield* register("a", 1)
      const shim = yield* shimFor(tokens[0])
      const refused = yield* call(shim.refused(Command.Signal, { signalNumber: 1 }))
      yield* TestClock.adjust("20 seconds")
      yield* handOver
      yield* TestClock.adjust("9 seconds")
      assert.isUndefined(refused.pollUnsafe())
      yield* TestClock.adjust("1 seconds")
      assert.match(yield* Fiber.join(refused), /^timeout waiting for the process to start, 30s$/)
      yield* runtime.ask(Command.Hyper, newContainer(tokens[0]))
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("that has been written has its answer", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running("a")
      agent.respond = () => silence
      const signalled = yield* call(shim.call(Command.Signal, { signalNumber: 9 }))
      yield* agent.until(() => asked(agent, Code.killcontainer) === 1)
      yield* handOver
      agent.ctl(Code.ack)
      assert.isFalse((yield* Fiber.join(signalled)).inError)
      assert.strictEqual(asked(agent, Code.killcontainer), 1)
    }).pipe(Effect.provide(HandOver.layer()))
  )
})

describe("RegisterVM, over a hand-over,", () => {
  it.effect("still waits for READY, and nobody else gets its id", () =>
    Effect.gen(function* () {
      const { boot } = yield* FakeHyperstart
      const agent = boot("a", { first: [] })
      const runtime = yield* connect
      const command = { containerId: "a", ctlSerial: agent.sockets.ctl, ioSerial: agent.sockets.io, numIOStreams: 1 }
      const registered = yield* call(runtime.ask(Command.RegisterVM, command))
      yield* TestClock.adjust("20 seconds")
      const ready = CtlMessage.encode(Code.ready, new Uint8Array(0))
      agent.raw("ctl", ready.subarray(0, 3))
      yield* handOver
      const other = yield* connect
      assert.strictEqual(yield* other.refused(Command.RegisterVM, command), "a: container already registered")
      agent.raw("ctl", ready.subarray(3))
      const { io } = yield* Fiber.join(registered)
      const shim = yield* shimFor(io.tokens[0])
      yield* runtime.ask(Command.Hyper, newContainer(io.tokens[0]))
      agent.io(3, "hello")
      yield* shim.until(() => shim.output() === "hello")
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("waits for READY as long as it would have", () =>
    Effect.gen(function* () {
      const { boot } = yield* FakeHyperstart
      const agent = boot("a", { first: [] })
      const runtime = yield* connect
      const command = { containerId: "a", ctlSerial: agent.sockets.ctl, ioSerial: agent.sockets.io }
      const refused = yield* call(runtime.refused(Command.RegisterVM, command))
      yield* TestClock.adjust("20 seconds")
      yield* handOver
      yield* TestClock.adjust("9 seconds")
      assert.isUndefined(refused.pollUnsafe())
      yield* TestClock.adjust("1 seconds")
      assert.match(yield* Fiber.join(refused), /^timeout: the VM's agent did not say READY, 30s$/)
      assert.sameMembers([...agent.hungUp()], ["ctl", "io"])
    }).pipe(Effect.provide(HandOver.layer()))
  )
})

describe("a shim, over a hand-over,", () => {
  it.effect("that does not read has all of its output once it does", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      const disk = yield* MemorySpool
      shim.stopReading()
      const chunks = Array.from({ length: 60 }, (_, n) => pattern(20 * KiB + n, n))
      for (const chunk of chunks.slice(0, 50)) agent.io(3, chunk)
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      yield* disk.until(() => disk.written() > 0)
      yield* handOver
      for (const chunk of chunks.slice(50)) agent.io(3, chunk)
      agent.exit(3, 4)
      shim.readAgain()
      yield* shim.until(() => shim.status() === 4)
      same(outputOf(shim), concat(chunks))
      yield* disk.until(() => disk.files.size === 0)
    }).pipe(Effect.provide(HandOver.layer({ outboxLimit: 100 * KiB })))
  )

  it.effect("that leaves afterwards has what it did not read kept for the next", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim, token } = yield* running("a")
      shim.stopReading()
      for (let n = 0; n < 40; n++) agent.io(3, pattern(10 * KiB, n))
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      yield* handOver
      shim.leave(new Error("killed"))
      const second = yield* shimFor(token)
      agent.exit(3, 4)
      yield* second.until(() => second.status() === 4)
      same(outputOf(second), concat(Array.from({ length: 40 }, (_, n) => pattern(10 * KiB, n))))
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("that was away finds what has waited for it, in memory and on disk", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim, token } = yield* running("a")
      const disk = yield* MemorySpool
      shim.leave()
      const chunks = Array.from({ length: 50 }, (_, n) => pattern(20 * KiB, n))
      for (const chunk of chunks) agent.io(3, chunk)
      agent.exit(3, 4)
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      yield* disk.until(() => disk.written() > 0)
      yield* handOver
      const second = yield* shimFor(token)
      yield* second.until(() => second.status() === 4)
      same(outputOf(second), concat(chunks))
    }).pipe(Effect.provide(HandOver.layer({ outboxLimit: 100 * KiB })))
  )

  it.effect("has a claim refused that is another's, and keeps it", () =>
    Effect.gen(function* () {
      const { agent, shim, token } = yield* running("a")
      yield* handOver
      const second = yield* connect
      const refused = yield* call(second.refused(Command.ConnectShim, { token }))
      yield* TestClock.adjust("100 millis")
      assert.match(yield* Fiber.join(refused), /^token already claimed: /)
      agent.io(3, "mine")
      yield* shim.until(() => shim.output() === "mine")
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("has the answer to a claim that waited for the end of an earlier shim's connection", () =>
    Effect.gen(function* () {
      const { agent, shim, token } = yield* running("a")
      const second = yield* connect
      const claimed = yield* call(second.call(Command.ConnectShim, { token }))
      yield* handOver
      assert.isUndefined(claimed.pollUnsafe())
      shim.leave()
      assert.isFalse((yield* Fiber.join(claimed)).inError)
      agent.io(3, "yours")
      yield* second.until(() => second.output() === "yours")
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("has all of its stdin fed, what was typed before its start, what is on disk and the end included", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1)
      const disk = yield* MemorySpool
      const shim = yield* shimFor(tokens[0])
      const parts = Array.from({ length: 40 }, (_, n) => pattern(8192, n))
      for (const part of parts.slice(0, 30)) shim.stdin(part)
      yield* disk.until(() => disk.written() > 0)
      yield* handOver
      for (const part of parts.slice(30)) shim.stdin(part)
      shim.stdin("")
      yield* handOver
      assert.deepStrictEqual(agent.stdin, [])
      yield* runtime.ask(Command.Hyper, newContainer(tokens[0]))
      yield* agent.until(() => agent.stdin.length > 0 && agent.stdin.at(-1)!.data.length === 0)
      same(stdinOf(agent, 3), concat(parts))
      assert.strictEqual(agent.stdin.filter(({ data }) => data.length === 0).length, 1)
    }).pipe(Effect.provide(HandOver.layer({ stdinLimit: 64 * KiB })))
  )

  it.effect("has its stdin paced as before: a window that is used up is not opened by a hand-over", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running("a", { respond: likeC(() => ack()) })
      agent.respond = likeC(() => silence)
      shim.stdin(pattern(1200))
      yield* agent.until(() => stdinOf(agent, 3).length === 512 && asked(agent, Code.ping) > 0)
      yield* handOver
      yield* Effect.yieldNow
      assert.strictEqual(stdinOf(agent, 3).length, 512)
      const before = asked(agent, Code.ping)
      assert.isAtMost(before, 2)
      agent.respond = likeC(() => ack())
      agent.ctl(Code.ack)
      yield* agent.until(() => stdinOf(agent, 3).length === 1200)
      same(stdinOf(agent, 3), pattern(1200))
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("has a stdin frame that came in part fed in whole", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running("a")
      const frame = Frame.encode({
        type: Frame.FrameType.stream,
        opcode: Frame.StreamKind.stdin,
        inError: false,
        payload: pattern(5000)
      })
      shim.raw(frame.subarray(0, 7))
      yield* handOver
      shim.raw(frame.subarray(7, 2000))
      yield* handOver
      shim.raw(frame.subarray(2000))
      shim.stdin("")
      yield* agent.until(() => agent.stdin.length > 0 && agent.stdin.at(-1)!.data.length === 0)
      same(stdinOf(agent, 3), pattern(5000))
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("may say goodbye: its session ends", () =>
    Effect.gen(function* () {
      const { shim, token } = yield* running("a")
      yield* handOver
      shim.send(Command.DisconnectShim, {})
      yield* shim.until(() => shim.ended())
      const next = yield* connect
      assert.match(yield* next.refused(Command.ConnectShim, { token }), /^unknown token: /)
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("that was turned away may still send its first stdin, and is just ended", () =>
    Effect.gen(function* () {
      const shim = yield* connect
      yield* shim.refused(Command.ConnectShim, { token: "nobody's" })
      yield* handOver
      shim.stdin("typed ahead")
      yield* shim.until(() => shim.ended())
      const { records } = yield* HandOver
      assert.isEmpty(records().filter(({ level }) => level === "Warn" || level === "Error"))
    }).pipe(Effect.provide(HandOver.layer()))
  )
})

describe("a VM's output, over a hand-over,", () => {
  it.effect("is whole, wherever a message is cut", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running("a")
      const message = IoMessage.encode(3, pattern(100))
      const cuts = [1, 8, 11, 12, 13, 60, message.length - 1]
      for (const at of cuts) {
        agent.raw("io", message.subarray(0, at))
        yield* handOver
        agent.raw("io", message.subarray(at))
      }
      agent.io(3, "")
      yield* handOver // the end, and not the status
      agent.io(3, Uint8Array.of(9))
      yield* shim.until(() => shim.status() === 9)
      assert.strictEqual(toHex(outputOf(shim)), toHex(concat(cuts.map(() => pattern(100)))))
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("that pauses for a shim goes on once it reads", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      shim.stopReading()
      const chunks = Array.from({ length: 20 }, (_, n) => pattern(20 * KiB, n))
      for (const chunk of chunks) agent.io(3, chunk)
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      yield* TestClock.adjust("5 seconds")
      yield* handOver
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      agent.exit(3, 1)
      shim.readAgain()
      yield* shim.until(() => shim.status() === 1)
      same(outputOf(shim), concat(chunks))
    }).pipe(Effect.provide(HandOver.layer({ outboxLimit: 64 * KiB, spoolLimit: 0 })))
  )

  it.effect("does not end with an exit that came as an event before it", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running("a", {}, { id: "p" })
      const event = { container: "c1", process: "p", event: "finished", status: 6 }
      agent.ctl(Code.processEvent, utf8(JSON.stringify(event)))
      yield* handOver
      agent.io(3, "last")
      assert.isUndefined(shim.status())
      agent.io(3, "")
      yield* shim.until(() => shim.status() === 6)
      assert.strictEqual(shim.output(), "last")
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("takes the exit of a process without an id that came as an event before its end", () =>
    Effect.gen(function* () {
      const pod = yield* register("a", 2)
      const shims = [yield* shimFor(pod.tokens[0]), yield* shimFor(pod.tokens[1])] as const
      yield* pod.runtime.ask(Command.Hyper, newContainer(pod.tokens[0]))
      yield* pod.runtime.ask(Command.Hyper, execCmd(pod.tokens[1]))
      const event = { container: "c1", process: "(null)", event: "finished", status: 6 }
      pod.agent.ctl(Code.processEvent, utf8(JSON.stringify(event)))
      yield* handOver
      pod.agent.io(5, "")
      yield* shims[1].until(() => shims[1].status() === 6)
      assert.isUndefined(shims[0].status())
    }).pipe(Effect.provide(HandOver.layer()))
  )
})

describe("a VM, over a hand-over,", () => {
  it.effect("that is lost is lost to the next daemon as it would have been to this one", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      agent.io(3, "last words")
      yield* handOver
      agent.powerOff()
      yield* TestClock.adjust("2 seconds")
      yield* shim.until(() => shim.ended())
      assert.strictEqual(shim.output(), "last words")
      assert.strictEqual(yield* runtime.refused(Command.AttachVM, { containerId: "a" }), "unknown containerID: a")
      const { states } = yield* HandOver
      assert.deepStrictEqual([...states.keys()], [])
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("that has been lost still has its output delivered", () =>
    Effect.gen(function* () {
      const { agent, shim, token } = yield* running("a")
      shim.leave()
      agent.io(3, "last words")
      agent.exit(3, 8)
      agent.powerOff()
      yield* TestClock.adjust("2 seconds")
      yield* handOver
      const second = yield* shimFor(token)
      yield* second.until(() => second.ended())
      assert.strictEqual(second.output(), "last words")
      assert.strictEqual(second.status(), 8)
      const third = yield* connect
      assert.match(yield* third.refused(Command.ConnectShim, { token }), /^unknown token: /)
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("that has been lost while its shim does not read is delivered once it reads", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running("a")
      shim.stopReading()
      for (let n = 0; n < 30; n++) agent.io(3, pattern(10 * KiB, n))
      agent.exit(3, 8)
      agent.powerOff()
      yield* TestClock.adjust("2 seconds")
      yield* handOver
      assert.isFalse(shim.ended())
      shim.readAgain()
      yield* shim.until(() => shim.ended())
      assert.strictEqual(shim.status(), 8)
      same(outputOf(shim), concat(Array.from({ length: 30 }, (_, n) => pattern(10 * KiB, n))))
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("that has been lost is remembered: UnregisterVM succeeds, once", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* register("a")
      agent.powerOff()
      yield* TestClock.adjust("2 seconds")
      yield* handOver
      yield* runtime.ask(Command.UnregisterVM, { containerId: "a" })
      assert.strictEqual(yield* runtime.refused(Command.UnregisterVM, { containerId: "a" }), "unknown containerID: a")
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("that has been lost is forgotten when it would have been", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* register("a")
      const other = yield* register("b")
      agent.powerOff()
      yield* TestClock.adjust("1 minutes")
      other.agent.powerOff()
      yield* TestClock.adjust("8 minutes")
      yield* handOver
      yield* TestClock.adjust("1 minutes")
      assert.strictEqual(yield* runtime.refused(Command.UnregisterVM, { containerId: "a" }), "unknown containerID: a")
      yield* runtime.ask(Command.UnregisterVM, { containerId: "b" })
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("that has been unregistered lives on, hidden", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      const other = yield* connect
      yield* other.ask(Command.UnregisterVM, { containerId: "a" })
      yield* handOver
      assert.strictEqual(yield* other.refused(Command.AttachVM, { containerId: "a" }), "unknown containerID: a")
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" }) // what is attached goes on
      agent.exit(3, 2)
      yield* shim.until(() => shim.status() === 2)
      yield* register("a") // a new one, in the old one's place
    }).pipe(Effect.provide(HandOver.layer()))
  )

  it.effect("is not taken for another", () =>
    Effect.gen(function* () {
      const pods = [yield* running("a"), yield* running("b"), yield* running("c")]
      pods[1]!.agent.powerOff()
      yield* TestClock.adjust("2 seconds")
      yield* handOver
      for (const { agent, id, runtime, shim } of [pods[0]!, pods[2]!]) {
        const before = agent.commands.length
        yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
        assert.strictEqual(agent.commands.length, before + 1)
        agent.io(3, id)
        yield* shim.until(() => shim.output() === id)
      }
      assert.match(yield* pods[1]!.runtime.refused(Command.Hyper, { hyperName: "ping" }), /^VM lost|not attached/)
    }).pipe(Effect.provide(HandOver.layer()))
  )
})

describe("a session without a shim, over a hand-over,", () => {
  it.effect("is freed when it would have been", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim, token } = yield* running("a")
      shim.leave()
      agent.exit(3, 1)
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      yield* TestClock.adjust("3 minutes")
      yield* handOver
      yield* TestClock.adjust("2 minutes")
      const next = yield* connect
      assert.match(yield* next.refused(Command.ConnectShim, { token }), /^unknown token: /)
    }).pipe(Effect.provide(HandOver.layer({ orphanTimeout: Duration.minutes(5) })))
  )

  it.effect("is not freed before", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim, token } = yield* running("a")
      shim.leave()
      agent.exit(3, 1)
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      yield* TestClock.adjust("3 minutes")
      yield* handOver
      yield* TestClock.adjust("119 seconds")
      const next = yield* shimFor(token)
      yield* next.until(() => next.status() === 1)
    }).pipe(Effect.provide(HandOver.layer({ orphanTimeout: Duration.minutes(5) })))
  )
})
