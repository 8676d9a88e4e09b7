import { assert, describe, it } from "@effect/vitest"
import * as Bytes from "effect/Bytes"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FiberSet from "effect/FiberSet"
import * as Layer from "effect/Layer"
import * as TestClock from "effect/testing/TestClock"
import { Command } from "../../src/domain/Frame.ts"
import * as CtlMessage from "../../src/domain/CtlMessage.ts"
import * as DaemonState from "../../src/domain/DaemonState.ts"
import * as IoMessage from "../../src/domain/IoMessage.ts"
import type { Deadline } from "../../src/services/Deadlines.ts"
import { Session } from "../../src/services/Session.ts"
import { utf8 } from "../support/Bytes.ts"
import { ack, type FakeAgent, likeC, refuse, silence } from "../support/FakeHyperstart.ts"
import { unused } from "../support/MemorySpool.ts"
import * as MemoryWire from "../support/MemoryWire.ts"
import * as Owner from "../support/Owner.ts"
import { execCmd, newContainer, register, running, shimFor } from "../support/Pod.ts"
import * as Records from "../support/Records.ts"
import { TestProxy } from "../support/TestProxy.ts"

const { Code } = CtlMessage
const text = new TextDecoder()

/** All that one process has read so far, and the sizes of the messages it came in. */
const stdinOf = (agent: FakeAgent, sequence: number) => {
  const messages = agent.stdin.filter((message) => message.sequence === sequence).map(({ data }) => data)
  return { bytes: Bytes.concat(messages), sizes: messages.map(({ length }) => length) }
}

/** Bytes that tell where they stand. */
const pattern = (size: number, seed = 0): Uint8Array =>
  Uint8Array.from({ length: size }, (_, at) => ((at + seed) * 31 + (at >> 8)) & 0xff)

describe("output", () => {
  it.effect("reaches its shim as frames, stdout and stderr apart, the status last and nothing after it", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      agent.io(3, "out 1")
      agent.io(4, "err")
      agent.io(3, "out 2")
      agent.io(3, "x") // one byte before the end is output
      agent.io(3, "")
      agent.io(4, "late err")
      agent.io(3, "two bytes are output still")
      agent.io(3, Uint8Array.of(7))
      agent.io(3, "nobody hears this")
      yield* shim.until(() => shim.status() !== undefined)
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      assert.deepStrictEqual(
        shim.received.slice(1).map(({ text, type }) => [type, text]),
        [
          ["stdout", "out 1"],
          ["stderr", "err"],
          ["stdout", "out 2"],
          ["stdout", "x"],
          ["stderr", "late err"],
          ["stdout", "two bytes are output still"],
          ["exit", "\u0007"]
        ]
      )
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("may come, and end, before the agent's ACK", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1, { respond: () => silence })
      const shim = yield* shimFor(tokens[0])
      runtime.send(Command.Hyper, newContainer(tokens[0]))
      yield* agent.until(() => agent.commands.length === 1)
      agent.io(3, "quick")
      agent.exit(3, 3)
      yield* shim.until(() => shim.status() === 3)
      agent.ctl(Code.ack)
      yield* runtime.until(() => runtime.responses().length === 2)
      assert.strictEqual(shim.output(), "quick")
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("waits for a shim that is away, and is delivered, once, to the next one, any number of times", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim, token } = yield* running("a")
      agent.io(3, "first;")
      yield* shim.until(() => shim.output() === "first;")
      shim.leave()
      for (const round of ["second;", "third;", "fourth;"]) {
        yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
        agent.io(3, round)
        const next = yield* shimFor(token)
        yield* next.until(() => next.output() === round)
        assert.strictEqual(next.received[0]?.type, "response")
        next.leave()
      }
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      agent.exit(3, 9)
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      const last = yield* shimFor(token)
      yield* last.until(() => last.status() === 9)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("of a slow shim waits up to the limit, then its VM's output pauses, and goes on by itself", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim, tokens } = yield* running("a")
      const second = yield* shimFor(tokens[1])
      yield* runtime.ask(Command.Hyper, execCmd(tokens[1]))
      shim.stopReading()
      for (let i = 0; i < 10; i++) agent.io(3, pattern(10_000, i * 100))
      agent.io(5, "beside it")
      yield* second.until(() => second.output() === "beside it")
      for (let i = 10; i < 40; i++) agent.io(3, pattern(10_000, i * 100))
      agent.io(5, "; behind it")
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      assert.strictEqual(second.output(), "beside it")
      shim.readAgain()
      yield* second.until(() => second.output() === "beside it; behind it")
      agent.exit(3, 0)
      yield* shim.until(() => shim.status() === 0)
      const received = Bytes.concat(shim.received.filter(({ type }) => type === "stdout").map(({ payload }) => payload))
      assert.deepStrictEqual(received, Bytes.concat(Array.from({ length: 40 }, (_, i) => pattern(10_000, i * 100))))
    }).pipe(Effect.provide(TestProxy.layer({ outboxLimit: 120_000, spoolLimit: 0 })))
  )

  it.effect("that a shim has not taken when it dies is sent again to the next", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim, token } = yield* running("a")
      shim.stopReading()
      agent.io(3, "not ")
      agent.io(3, "taken")
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      shim.leave(new Error("EPIPE"))
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      const next = yield* shimFor(token)
      yield* next.until(() => next.output() === "not taken")
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("that comes for a shim whose connection has just ended, before that is known here, goes to the next", () =>
    Effect.gen(function* () {
      const run = yield* FiberSet.makeRuntime()
      const session = new Session("token", 3, Owner.make(), unused)
      const attached = () => {
        const { a, b } = MemoryWire.pair("shim", "proxy")
        const shim = { wire: a, run, end: () => {} }
        session.claim(shim)
        session.attach(shim)
        return { shim, reads: b }
      }
      const write = (data: string) => {
        const bytes = IoMessage.encode(3, utf8(data))
        session.deliver({ sequence: 3, bytes, start: 0, end: bytes.length })
        session.flush()
      }
      const first = attached()
      first.shim.wire.close(new Error("EPIPE"))
      write("too late ")
      write("for the first")
      assert.strictEqual(session.backlog(), 2 * 12 + "too late for the first".length)
      session.detach(first.shim)
      session.release(first.shim)
      const { reads } = attached()
      const frames = [yield* reads.pull, yield* reads.pull]
      assert.deepStrictEqual(
        frames.map((frame) => text.decode(frame.subarray(12))),
        ["too late ", "for the first"]
      )
      assert.strictEqual(session.backlog(), 0)
    })
  )

  it.effect("for a sequence that nobody has harms nothing", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running("a")
      agent.io(99, "who?")
      agent.io(2 ** 40, "who?")
      agent.io(3, "heard")
      yield* shim.until(() => shim.output() === "heard")
    }).pipe(Effect.provide(TestProxy.layer()))
  )
})

describe("claims", () => {
  it.effect("are given up after 100 ms of waiting for the end of an earlier one, which is logged", () => {
    const log = Records.make()
    return Effect.gen(function* () {
      const { shim, token } = yield* running("a")
      const second = yield* (yield* TestProxy).connect
      const claim = yield* Effect.forkChild(second.refused(Command.ConnectShim, { token }), { startImmediately: true })
      yield* TestClock.adjust("99 millis")
      assert.isUndefined(claim.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      const error = yield* Fiber.join(claim)
      assert.strictEqual(error, "token already claimed: token-…")
      assert.deepInclude(log.records, {
        level: "Info",
        msg: "command refused",
        fields: { error },
        annotations: {}
      })
      assert.isFalse(shim.ended() || second.ended())
      yield* shim.ask(Command.Signal, { signalNumber: 10 })
    }).pipe(Effect.provide(TestProxy.layer().pipe(Layer.provideMerge(log.layer))))
  })

  it.effect("hold while the shim is connected, and show only a prefix of the token", () =>
    Effect.gen(function* () {
      const { shim, token } = yield* running("a")
      const { connect } = yield* TestProxy
      const second = yield* connect
      const refused = yield* Effect.forkChild(second.refused(Command.ConnectShim, { token }), {
        startImmediately: true
      })
      yield* TestClock.adjust("100 millis")
      assert.strictEqual(yield* Fiber.join(refused), "token already claimed: token-…")
      assert.strictEqual(
        yield* second.refused(Command.ConnectShim, { token: "x".repeat(44) }),
        "unknown token: xxxxxx…"
      )
      assert.match(yield* shim.refused(Command.ConnectShim, { token }), /claimed a token already/)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("wait for the end of an earlier one that is on its way", () =>
    Effect.gen(function* () {
      const { shim, token } = yield* running("a")
      const second = yield* (yield* TestProxy).connect
      const claimed = yield* Effect.forkChild(second.ask(Command.ConnectShim, { token }), { startImmediately: true })
      yield* TestClock.adjust("99 millis")
      assert.isUndefined(claimed.pollUnsafe())
      shim.leave()
      yield* Fiber.join(claimed)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("end with their shim, even if its stdin is not read for now", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1)
      const shim = yield* shimFor(tokens[0])
      const sent = pattern(40_000)
      for (let at = 0; at < sent.length; at += 500) shim.stdin(sent.subarray(at, at + 500))
      shim.send(Command.Signal, { signalNumber: 1 })
      shim.leave()
      yield* shimFor(tokens[0])
      yield* runtime.ask(Command.Hyper, newContainer(tokens[0]))
      yield* TestClock.adjust("20 millis")
      yield* agent.until(() => stdinOf(agent, 3).bytes.length === sent.length)
      assert.deepStrictEqual(stdinOf(agent, 3).bytes, sent)
      // the last thing that it sent was for its process
      yield* agent.until(() => agent.commands.length === 2)
      assert.strictEqual(agent.commands[1]?.text, '{"container":"c1","signal":1,"allProcesses":false}')
    }).pipe(Effect.provide(TestProxy.layer({ stdinLimit: 8192, spoolLimit: 0 })))
  )

  it.effect("end with DisconnectShim while the VM's output waits for them, and it goes on", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim, tokens } = yield* running("a")
      const second = yield* shimFor(tokens[1])
      yield* runtime.ask(Command.Hyper, execCmd(tokens[1]))
      shim.stopReading()
      for (let i = 0; i < 10; i++) agent.io(3, new Uint8Array(60_000))
      agent.io(5, "behind it")
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      shim.send(Command.DisconnectShim, {})
      shim.leave() // as the real one does, without waiting
      yield* second.until(() => second.output() === "behind it")
    }).pipe(Effect.provide(TestProxy.layer({ outboxLimit: 300_000 })))
  )

  it.effect("are not made on a session that ended while they waited", () =>
    Effect.gen(function* () {
      const { shim, token } = yield* running("a")
      const second = yield* (yield* TestProxy).connect
      const claim = yield* Effect.forkChild(second.refused(Command.ConnectShim, { token }), { startImmediately: true })
      shim.send(Command.DisconnectShim, {})
      assert.match(yield* Fiber.join(claim), /^unknown token/)
      // the stdin that came right behind the claim is no offence
      second.stdin("too late")
      yield* second.until(() => second.ended())
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("end with DisconnectShim, which takes a start along that has not been written", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1, { respond: () => silence })
      const shim = yield* shimFor(tokens[0])
      runtime.send(Command.Hyper, { hyperName: "readfile" })
      runtime.send(Command.Hyper, newContainer(tokens[0]))
      yield* agent.until(() => agent.commands.length === 1)
      shim.send(Command.DisconnectShim, {})
      yield* shim.until(() => shim.ended())
      agent.ctl(Code.ack)
      yield* runtime.until(() => runtime.responses().length === 3)
      assert.match(runtime.responses()[2]!.text, /the shim has disconnected/)
      assert.strictEqual(agent.commands.length, 1)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("end with DisconnectShim, which forgets the token and drops what the process still writes", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim, token } = yield* running("a")
      shim.send(Command.DisconnectShim, {})
      yield* shim.until(() => shim.ended())
      assert.strictEqual(shim.responses().length, 1)
      agent.io(3, "nobody hears this")
      const next = yield* (yield* TestProxy).connect
      assert.match(yield* next.refused(Command.ConnectShim, { token }), /^unknown token/)
      const { io } = yield* runtime.ask(Command.AttachVM, { containerId: "a", numIOStreams: 1 })
      yield* shimFor(io.tokens[0])
      yield* runtime.ask(Command.Hyper, execCmd(io.tokens[0]))
      assert.strictEqual(agent.commands.at(-1)?.text, '{"container":"c1","process":{"stdio":7,"stderr":8}}')
    }).pipe(Effect.provide(TestProxy.layer()))
  )
})

describe("stdin", () => {
  it.effect("waits for the ACK, then comes in order, its end once and last", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1, { respond: () => silence })
      const shim = yield* shimFor(tokens[0])
      shim.stdin("first ")
      runtime.send(Command.Hyper, newContainer(tokens[0]))
      yield* agent.until(() => agent.commands.length === 1)
      shim.stdin("second")
      shim.stdin("")
      shim.stdin("after the end")
      shim.stdin("")
      yield* (yield* (yield* TestProxy).connect).refused(Command.AttachVM, { containerId: "x" })
      assert.deepStrictEqual(agent.stdin, [])
      agent.ctl(Code.ack)
      yield* agent.until(() => agent.stdin.length === 2)
      assert.deepStrictEqual(
        agent.stdin.map(({ data, sequence }) => [sequence, text.decode(data)]),
        [
          [3, "first second"],
          [3, ""]
        ]
      )
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("comes to a Go agent in messages of 1,024 bytes in all, across frames", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running("a")
      const sent = pattern(200_000)
      shim.stdin(sent)
      yield* TestClock.adjust("20 millis")
      yield* agent.until(() => stdinOf(agent, 3).bytes.length === sent.length)
      const { bytes, sizes } = stdinOf(agent, 3)
      assert.deepStrictEqual(bytes, sent)
      assert.strictEqual(Math.max(...sizes), 1012)
      assert.isTrue(sizes.slice(0, -1).every((size) => size === 1012))
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("for a Go agent waits for more where a message would not be full, for 20 ms at most", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      const frames = Array.from({ length: 4 }, (_, at) => pattern(8192, at))
      for (const frame of frames) {
        shim.stdin(frame)
        yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
        yield* TestClock.adjust("19 millis")
        assert.isTrue(stdinOf(agent, 3).sizes.every((size) => size === 1012))
      }
      assert.strictEqual(stdinOf(agent, 3).bytes.length, 32 * 1012)
      yield* TestClock.adjust("20 millis")
      assert.deepStrictEqual(stdinOf(agent, 3).bytes, Bytes.concat(frames))
      assert.deepStrictEqual(stdinOf(agent, 3).sizes.slice(32), [4 * 8192 - 32 * 1012])
      // what somebody types goes at once
      shim.stdin("x")
      yield* agent.until(() => stdinOf(agent, 3).sizes.length === 34)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("for a Go agent does not wait for more once its end has come", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running("a")
      shim.stdin(pattern(5000))
      shim.stdin("")
      yield* agent.until(() => agent.stdin.at(-1)?.data.length === 0)
      assert.deepStrictEqual(stdinOf(agent, 3).sizes, [1012, 1012, 1012, 1012, 952, 0])
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("waits in memory while the agent does not read, and is written in pieces of 32 KiB at most", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      agent.stopReading()
      const sent = pattern(100_000)
      shim.stdin(sent)
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      assert.deepStrictEqual(agent.stdin, [])
      agent.readAgain()
      yield* TestClock.adjust("20 millis")
      yield* agent.until(() => stdinOf(agent, 3).bytes.length === sent.length)
      assert.deepStrictEqual(stdinOf(agent, 3).bytes, sent)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("beyond the limit leaves the shim unread, and nothing is lost", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1)
      const shim = yield* shimFor(tokens[0])
      const sent = pattern(40_000)
      for (let at = 0; at < sent.length; at += 500) shim.stdin(sent.subarray(at, at + 500))
      shim.stdin("")
      shim.send(Command.Signal, { signalNumber: 1 }) // behind stdin that is not read yet
      yield* runtime.ask(Command.Hyper, newContainer(tokens[0]))
      yield* agent.until(() => agent.stdin.at(-1)?.data.length === 0)
      assert.deepStrictEqual(stdinOf(agent, 3).bytes, sent)
      yield* shim.until(() => shim.responses().length === 2)
    }).pipe(Effect.provide(TestProxy.layer({ stdinLimit: 8192, spoolLimit: 0 })))
  )

  it.effect("that nobody takes any more is dropped at the exit, so that its shim gets to the status", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      agent.stopReading()
      for (let i = 0; i < 40; i++) shim.stdin(pattern(500)) // the shim's socket is left unread
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      shim.send(Command.Signal, { signalNumber: 99 })
      agent.exit(3, 1)
      yield* shim.until(() => shim.responses().length === 2)
      assert.strictEqual(shim.status(), 1)
    }).pipe(Effect.provide(TestProxy.layer({ stdinLimit: 8192, spoolLimit: 0 })))
  )

  describe("of a C agent", () => {
    it.effect("comes 512 bytes at a time, with four answered pings between, and none after the last", () =>
      Effect.gen(function* () {
        const { agent, shim } = yield* running("a", { respond: likeC(() => ack()) })
        const order: Array<string> = []
        const respond = agent.respond
        agent.respond = (command) => {
          order.push(command.code === Code.ping ? `ping after ${stdinOf(agent, 3).bytes.length}` : "?")
          return respond(command)
        }
        const sent = pattern(1100)
        shim.stdin(sent)
        shim.stdin("")
        yield* agent.until(() => agent.stdin.at(-1)?.data.length === 0)
        assert.deepStrictEqual(stdinOf(agent, 3), { bytes: sent, sizes: [512, 512, 76, 0] })
        assert.deepStrictEqual(order, [
          ...Array.from({ length: 4 }, () => "ping after 512"),
          ...Array.from({ length: 4 }, () => "ping after 1024")
        ])
      }).pipe(Effect.provide(TestProxy.layer()))
    )

    it.effect("waits for each ping's answer before the next", () =>
      Effect.gen(function* () {
        const { agent, shim } = yield* running("a", { respond: likeC(() => ack()) })
        agent.respond = () => silence
        shim.stdin(pattern(513))
        const pings = () => agent.commands.filter(({ code }) => code === Code.ping).length
        for (let answered = 1; answered <= 4; answered++) {
          yield* agent.until(() => pings() === answered)
          assert.deepStrictEqual(stdinOf(agent, 3).sizes, [512])
          agent.ctl(Code.ack)
        }
        yield* agent.until(() => agent.stdin.length === 2)
        assert.strictEqual(pings(), 4)
      }).pipe(Effect.provide(TestProxy.layer()))
    )

    it.effect("costs no ping while somebody types", () =>
      Effect.gen(function* () {
        const { agent, shim } = yield* running("a", { respond: likeC(() => ack()) })
        for (const key of "exit\n") shim.stdin(key)
        shim.stdin("")
        yield* agent.until(() => agent.stdin.at(-1)?.data.length === 0)
        assert.strictEqual(text.decode(stdinOf(agent, 3).bytes), "exit\n")
        assert.deepStrictEqual(
          agent.commands.map(({ code }) => code),
          [Code.newcontainer]
        )
      }).pipe(Effect.provide(TestProxy.layer()))
    )

    it.effect("takes a refused ping for an answered one", () =>
      Effect.gen(function* () {
        const { agent, shim } = yield* running("a", { respond: likeC(() => ack()) })
        agent.respond = likeC(() => refuse())
        shim.stdin(pattern(600))
        yield* agent.until(() => stdinOf(agent, 3).bytes.length === 600)
        assert.strictEqual(agent.commands.length, 5)
      }).pipe(Effect.provide(TestProxy.layer()))
    )

    it.effect("goes on after a ping that had no answer in time", () =>
      Effect.gen(function* () {
        const { agent, shim } = yield* running("a", { respond: likeC(() => ack()) })
        agent.respond = () => silence
        shim.stdin(pattern(600))
        yield* agent.until(() => agent.commands.length === 2)
        yield* TestClock.adjust("60 seconds")
        agent.respond = likeC(() => ack())
        yield* TestClock.adjust("30 seconds")
        yield* agent.until(() => stdinOf(agent, 3).bytes.length === 600)
      }).pipe(Effect.provide(TestProxy.layer()))
    )
  })

  it.effect("of two processes comes in turns", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim, tokens } = yield* running("a")
      const second = yield* shimFor(tokens[1])
      yield* runtime.ask(Command.Hyper, execCmd(tokens[1]))
      agent.stopReading()
      shim.stdin(pattern(100_000))
      second.stdin(pattern(100_000, 7))
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      agent.readAgain()
      yield* TestClock.adjust("20 millis")
      yield* agent.until(() => agent.stdin.reduce((total, { data }) => total + data.length, 0) === 200_000)
      assert.deepStrictEqual(stdinOf(agent, 3).bytes, pattern(100_000))
      assert.deepStrictEqual(stdinOf(agent, 5).bytes, pattern(100_000, 7))
      const first = agent.stdin.findIndex(({ sequence }) => sequence === 5)
      assert.isBelow(first, 99) // not behind the other's last message
    }).pipe(Effect.provide(TestProxy.layer()))
  )
})

describe("a session, over a hand-over,", () => {
  const message = (data: Uint8Array) => ({ bytes: IoMessage.encode(3, data), sequence: 3, start: 0 })
  const write = (session: Session, ...parts: ReadonlyArray<Uint8Array>) => {
    for (const part of parts) {
      const run = message(part)
      session.deliver({ ...run, end: run.bytes.length })
    }
    session.flush()
  }
  const started = (session: Session) => {
    session.begin({ container: "c", process: undefined, terminal: false, init: true })
    session.written()
    session.settled(true)
  }
  const owner = Owner.make({ orphaned: () => assert.fail("its process runs") })

  /** The same session under the next daemon. */
  const next = (session: Session) => {
    const blobs = new DaemonState.Blobs()
    const memory = session.carry(blobs, 0)
    const all = Bytes.concat(blobs.parts)
    const bytesOf = ([at, size]: DaemonState.Ref) => all.subarray(at, at + size)
    return new Session("token", 3, owner, unused, { record: session.record(), memory, torn: false, bytesOf })
  }

  /** A shim that reads nothing yet. */
  const behind = Effect.gen(function* () {
    const { a, b } = MemoryWire.pair("shim", "proxy")
    a.stall()
    return { wire: a, reads: b, run: yield* FiberSet.makeRuntime(), end: () => {} }
  })
  const readAll = (wire: MemoryWire.End) => Effect.forEach([0, 1, 2], () => wire.pull)

  it.effect("records no start that waits: nothing has been written for it", () =>
    Effect.sync(() => {
      const session = new Session("token", 3, owner, unused)
      session.begin({ container: "c", process: "p", terminal: true, init: false })
      assert.deepStrictEqual([session.record().phase, session.record().process], ["idle", undefined])
      session.written()
      assert.strictEqual(session.record().phase, "written")
      assert.deepStrictEqual(session.record().process, { container: "c", process: "p", terminal: true, init: false })
      assert.strictEqual(next(session).phase, "written")
      assert.isFalse(session.record().claimed)
    })
  )

  it.effect("has its shim send what its wire had not, once, and then what waits behind", () =>
    Effect.gen(function* () {
      const shim = yield* behind
      const session = new Session("token", 3, owner, unused)
      session.claim(shim)
      session.attach(shim)
      started(session)
      write(session, pattern(100, 1))
      write(session, pattern(200, 2))
      assert.isTrue(session.record().claimed)
      const resumed = next(session)
      const wire = MemoryWire.adopt(shim.wire.carry()!)
      resumed.rejoin({ ...shim, wire }, true)
      resumed.resumed()
      write(resumed, pattern(300, 3))
      wire.resume()
      const got = Bytes.concat(yield* readAll(shim.reads))
      assert.strictEqual(got.length, 600 + 3 * 12)
      assert.isTrue(Buffer.from(got.subarray(12, 112)).equals(pattern(100, 1)))
      assert.isTrue(Buffer.from(got.subarray(336)).equals(pattern(300, 3)))
    })
  )

  it.effect("whose shim does not come back has what it did not take for the next, from a whole frame on", () =>
    Effect.gen(function* () {
      const shim = yield* behind
      const session = new Session("token", 3, owner, unused)
      session.claim(shim)
      session.attach(shim)
      started(session)
      // three frames of one batch: the kernel has taken half of the second when the daemon hands over
      write(session, pattern(100, 1), pattern(100, 2), pattern(100, 3))
      const blobs = new DaemonState.Blobs()
      const memory = session.carry(blobs, 0)
      const all = Bytes.concat(blobs.parts)
      assert.strictEqual(memory.handed.at(-1)?.end, 3 * 112)
      const taken = 150
      const resumed = new Session("token", 3, owner, unused, {
        record: session.record(),
        memory: { ...memory, handed: memory.handed.map(({ chunk, end }) => ({ chunk, end: end - taken })) },
        torn: false,
        bytesOf: ([at, size]) => all.subarray(at, at + size)
      })
      resumed.resumed()
      const second = yield* behind
      resumed.claim(second)
      resumed.attach(second)
      second.wire.resume()
      const got = yield* Effect.forEach([0, 1], () => second.reads.pull)
      const frames = Bytes.concat(got)
      assert.strictEqual(frames.length, 2 * 112)
      assert.isTrue(Buffer.from(frames.subarray(12, 112)).equals(pattern(100, 2)))
    })
  )

  it.effect("feeds its process what was typed, as far as the window that was open", () =>
    Effect.sync(() => {
      const rule = { messageData: 512, window: 512, full: false }
      const session = new Session("token", 3, owner, unused)
      started(session)
      session.feed(pattern(1000))
      session.feed(new Uint8Array(0))
      session.pump()
      assert.strictEqual(session.takeStdin(rule, 32_768)?.length, 524)
      const resumed = next(session)
      resumed.resumed()
      assert.isTrue(resumed.needsWindow())
      assert.isUndefined(resumed.takeStdin(rule, 32_768))
      resumed.openWindow()
      const rest = resumed.takeStdin(rule, 32_768)!
      assert.strictEqual(rest.length, 12 + 488 + 12) // and its end
      assert.isTrue(Buffer.from(rest.subarray(12, 500)).equals(pattern(1000).subarray(512)))
      assert.strictEqual(resumed.record().stdinEnd, "sent")
      assert.isUndefined(next(resumed).takeStdin(rule, 32_768))
    })
  )

  it.effect("without a shim is freed in the time that was left", () =>
    Effect.gen(function* () {
      const asked: Array<number | undefined> = []
      const deadline = { due: 1000, expire: () => {}, cancel: () => {} } as unknown as Deadline
      const away = Owner.make({
        orphaned: (_session, millis) => {
          asked.push(millis)
          return deadline
        }
      })
      const session = new Session("token", 3, away, unused)
      started(session)
      write(session, new Uint8Array(0), Uint8Array.of(7))
      const blobs = new DaemonState.Blobs()
      const memory = session.carry(blobs, 400)
      assert.strictEqual(memory.orphan, 600)
      const all = Bytes.concat(blobs.parts)
      const resumed = new Session("token", 3, away, unused, {
        record: session.record(),
        memory,
        torn: false,
        bytesOf: ([at, size]) => all.subarray(at, at + size)
      })
      resumed.resumed(memory.orphan)
      assert.deepStrictEqual(asked, [undefined, 600])
      assert.strictEqual(resumed.status, 7)
      yield* Effect.void
    })
  )

  it.effect("that lost its process to a crash tells a status all the same, once, behind what had come", () =>
    Effect.gen(function* () {
      const session = new Session(
        "token",
        3,
        Owner.make({ orphaned: () => ({ cancel: () => {} }) as Deadline }),
        unused
      )
      started(session)
      write(session, pattern(10))
      session.lost(255)
      session.lost(254)
      const shim = yield* behind
      session.claim(shim)
      session.attach(shim)
      shim.wire.resume()
      const got = yield* shim.reads.pull
      assert.strictEqual(got.length, 22 + 13)
      assert.strictEqual(got.at(-1), 255)
    })
  )
})
