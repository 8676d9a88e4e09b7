/** The spool, and what sessions make of it. */
import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as TestClock from "effect/testing/TestClock"
import * as Frame from "../../src/domain/Frame.ts"
import * as Counters from "../../src/services/Counters.ts"
import type { Deadline } from "../../src/services/Deadlines.ts"
import { Session, SessionError } from "../../src/services/Session.ts"
import { defaults, type Settings } from "../../src/services/Settings.ts"
import { Spool } from "../../src/services/Spool.ts"
import type { Wire } from "../../src/services/Wire.ts"
import { concat, pattern } from "../support/Bytes.ts"
import { ack, type FakeAgent, likeC, silence } from "../support/FakeHyperstart.ts"
import { MemorySpool, unused } from "../support/MemorySpool.ts"
import * as MemoryWire from "../support/MemoryWire.ts"
import * as Owner from "../support/Owner.ts"
import { execCmd, newContainer, register, running, shimFor } from "../support/Pod.ts"
import * as Records from "../support/Records.ts"
import { type TestClient, TestProxy } from "../support/TestProxy.ts"

const { Command } = Frame
const kibibyte = 1024
const small: Partial<Settings> = { outboxLimit: 16 * kibibyte, stdinLimit: 16 * kibibyte }

/** A proxy with little memory for each session, with counters and a log of its own. */
const proxy =
  (settings: Partial<Settings> = {}, log = Records.make()) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    effect.pipe(
      Effect.provide(TestProxy.layer({ ...small, ...settings }).pipe(Layer.provideMerge(log.layer))),
      Effect.provideService(Metric.MetricRegistry, new Map())
    )

const same = (actual: Uint8Array, expected: Uint8Array): void => {
  assert.strictEqual(actual.length, expected.length)
  assert.isTrue(Buffer.from(actual).equals(expected), "other bytes")
}

/** All of a shim's output. */
const outputOf = ({ received }: TestClient): Uint8Array =>
  concat(received.filter(({ type }) => type === "stdout" || type === "stderr").map(({ payload }) => payload))

/** `payload` as a frame of output. */
const frame = (payload: Uint8Array): Uint8Array =>
  Frame.encode({ type: Frame.FrameType.stream, opcode: Frame.StreamKind.stdout, inError: false, payload })

/** Sends `bytes` as a process's output, `size` bytes a message. */
const print = (agent: FakeAgent, bytes: Uint8Array, size = 5000, sequence = 3): void => {
  for (let at = 0; at < bytes.length; at += size) agent.io(sequence, bytes.subarray(at, at + size))
}

const stdinOf = (agent: FakeAgent, sequence = 3): Uint8Array =>
  concat(agent.stdin.filter((message) => message.sequence === sequence).map(({ data }) => data))

/** The end of stdin has come, once, behind everything else. */
const ended = (agent: FakeAgent): boolean => agent.stdin.findIndex(({ data }) => data.length === 0) >= 0

/** Everything that was under way has been handled. */
const settle = (runtime: TestClient) => runtime.ask(Command.Hyper, { hyperName: "ping" })

/** No file is left, and nothing is taken of the total. */
const nothingLeft = Effect.gen(function* () {
  const { available } = yield* Spool
  const { files } = yield* MemorySpool
  yield* Effect.yieldNow
  assert.deepStrictEqual([...files.keys()], [])
  assert.strictEqual(available(), defaults.spoolTotal)
})

describe("the spool", () => {
  it.effect("names each file only once", () =>
    Effect.gen(function* () {
      const { name } = yield* Spool
      const first = Array.from({ length: 100 }, name)
      yield* TestClock.adjust("1 millis")
      const later = yield* Effect.provide(Spool.make, Layer.fresh(MemorySpool.layer))
      const names = new Set([...first, ...Array.from({ length: 100 }, later.name)])
      assert.strictEqual(names.size, 200)
      for (const name of names) assert.match(name, /^[\w-]+$/)
    }).pipe(proxy())
  )

  it.effect("counts what is reserved, and tells of what is released", () =>
    Effect.gen(function* () {
      const { available, release, released, reserve } = yield* Spool
      let told = 0
      released.add(() => told++)
      reserve(600)
      reserve(400)
      assert.strictEqual(available(), 24)
      release(400)
      assert.strictEqual(available(), 424)
      assert.strictEqual(told, 1)
    }).pipe(proxy({ spoolTotal: 1024 }))
  )
})

describe("output above the memory", () => {
  it.effect("waits on disk for a shim that does not read, and no other session of its VM waits with it", () =>
    Effect.gen(function* () {
      const { files, size } = yield* MemorySpool
      const { agent, runtime, shim, tokens } = yield* running("a")
      const second = yield* shimFor(tokens[1])
      yield* runtime.ask(Command.Hyper, execCmd(tokens[1]))
      shim.stopReading()
      const bytes = pattern(600_000)
      print(agent, bytes)
      agent.exit(3, 7)
      agent.io(5, "beside it")
      agent.exit(5, 0)
      yield* second.until(() => second.status() === 0)
      assert.strictEqual(second.output(), "beside it")
      assert.isAbove(size(), 400_000)
      shim.readAgain()
      yield* shim.until(() => shim.status() !== undefined)
      same(outputOf(shim), bytes)
      assert.deepStrictEqual([shim.received.at(-1)?.type, shim.status()], ["exit", 7])
      assert.strictEqual(shim.received.filter(({ type }) => type === "exit").length, 1)
      assert.strictEqual(files.size, 0)
    }).pipe(proxy())
  )

  it.effect("and what comes live behind it keep their order, stderr among stdout", () =>
    Effect.gen(function* () {
      const disk = yield* MemorySpool
      const { agent, runtime, shim, token } = yield* running("a")
      shim.leave()
      yield* settle(runtime)
      const bytes = pattern(200_000)
      let at = 0
      const more = (count: number) => {
        for (let n = 0; n < count; n++, at += 1000) agent.io(n % 3 === 0 ? 4 : 3, bytes.subarray(at, at + 1000))
      }
      more(150)
      yield* settle(runtime)
      disk.hold()
      const next = yield* shimFor(token) // reads what is in memory
      more(20)
      disk.release()
      more(30)
      agent.exit(3, 0)
      yield* next.until(() => next.status() === 0)
      same(outputOf(next), bytes)
      yield* nothingLeft
    }).pipe(proxy())
  )

  it.effect("goes on with a whole frame for each shim that comes back, wherever the last one left", () =>
    Effect.gen(function* () {
      const disk = yield* MemorySpool
      const { agent, runtime, shim, token } = yield* running("a")
      shim.leave()
      yield* settle(runtime)
      const bytes = pattern(300_000)
      print(agent, bytes, 777)
      agent.exit(3, 3)
      yield* settle(runtime)
      const parts: Array<Uint8Array> = []
      for (let last = false; !last;) {
        disk.hold()
        const next = yield* shimFor(token) // gets what has come back so far
        if (parts.length % 3 === 1) {
          next.stopReading()
          disk.release() // comes, and is not taken
          yield* settle(runtime)
        }
        next.leave()
        yield* settle(runtime)
        disk.release()
        yield* settle(runtime)
        // a torn frame would have failed its parser
        parts.push(outputOf(next))
        last = next.status() !== undefined
      }
      assert.isAbove(parts.length, 8)
      same(concat(parts), bytes)
    }).pipe(proxy())
  )

  it("goes on with the frame that the last shim has not had all of, at whatever byte its connection ended", () => {
    const owner = Owner.make({ orphaned: () => assert.fail("its process runs") })
    const connect = (taken: number) => {
      const offered: Array<Uint8Array> = []
      const size = () => concat(offered).length
      const wire: Wire = {
        peer: "shim",
        pull: Effect.never,
        offer: (chunks) => void offered.push(...chunks.map((chunk) => chunk.slice())),
        offered: size,
        pending: () => Math.max(size() - taken, 0),
        drained: Effect.never,
        closed: Effect.never,
        shutDown: () => {},
        drainAndClose: () => [],
        descriptor: () => undefined,
        carry: () => undefined
      }
      return { offered, shim: { wire, run: () => {}, end: () => {} } }
    }
    const batches = [[5], [30, 0, 1], [200, 12], [1], [90, 90]].map((sizes, n) =>
      sizes.map((size) => frame(pattern(size, n)))
    )
    const frames = batches.flat()
    const total = concat(frames).length
    for (let taken = 0; taken <= total; taken++) {
      const session = new Session("token", 3, owner, unused)
      const first = connect(taken)
      session.claim(first.shim)
      session.attach(first.shim)
      for (const batch of batches) {
        const bytes = concat(batch)
        session.emit(bytes, 0, bytes.length)
        session.flush()
      }
      same(concat(first.offered), concat(frames))
      session.release(first.shim)
      const second = connect(Number.POSITIVE_INFINITY)
      session.claim(second.shim)
      session.attach(second.shim)
      let had = 0
      let size = 0
      for (; had < frames.length && size + frames[had]!.length <= taken; had++) size += frames[had]!.length
      same(concat(second.offered), concat(frames.slice(had)))
    }
  })

  it.effect("is gone with DisconnectShim", () =>
    Effect.gen(function* () {
      const disk = yield* MemorySpool
      const { agent, runtime, shim } = yield* running("a")
      shim.stopReading()
      print(agent, pattern(900_000))
      yield* settle(runtime)
      assert.isAbove(disk.size(), 300_000)
      shim.send(Command.DisconnectShim, "")
      yield* disk.until(() => disk.files.size === 0)
      yield* nothingLeft
      shim.readAgain()
      yield* shim.until(() => shim.ended())
      assert.isBelow(outputOf(shim).length, 300_000)
    }).pipe(proxy({ outboxLimit: 256 * kibibyte }))
  )

  it.effect("does not keep its shim from being read, however little memory there is", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      shim.stopReading()
      print(agent, pattern(300_000))
      yield* settle(runtime)
      shim.stdin("in")
      shim.send(Command.Signal, { signalNumber: 10 })
      yield* settle(runtime)
      const commands = agent.commands.map(({ text }) => text)
      const input = stdinOf(agent)
      shim.leave()
      assert.include(commands, '{"container":"c1","signal":10,"allProcesses":false}')
      assert.strictEqual(input.length, 2)
    }).pipe(proxy({ outboxLimit: 64 * kibibyte }))
  )

  it.effect("that the disk has lost is missing, and the status comes all the same, last", () => {
    const log = Records.make()
    return Effect.gen(function* () {
      const disk = yield* MemorySpool
      const { agent, runtime, shim, token } = yield* running("a")
      shim.leave()
      yield* settle(runtime)
      print(agent, pattern(300_000))
      agent.exit(3, 9)
      yield* settle(runtime)
      disk.break("read", { passing: false })
      const next = yield* shimFor(token)
      yield* next.until(() => next.status() !== undefined)
      assert.deepStrictEqual([next.received.at(-1)?.type, next.status()], ["exit", 9])
      const { length } = outputOf(next)
      same(outputOf(next), pattern(300_000).subarray(0, length))
      assert.isBelow(length, 100_000)
      const lost = log.records.filter(({ msg }) => msg === "what waited in the spool is lost")
      assert.isAbove(lost.length, 0)
      for (const { annotations, level } of lost) {
        assert.strictEqual(level, "Error")
        assert.deepInclude(annotations, { vm: "a", container: "c1", stream: "output" })
      }
      yield* nothingLeft
    }).pipe(proxy({}, log))
  })

  it.effect("pauses its VM's io only where the spool takes no more, and io goes on by itself", () => {
    const log = Records.make()
    return Effect.gen(function* () {
      const disk = yield* MemorySpool
      const { agent, runtime, shim, tokens } = yield* running("a")
      const second = yield* shimFor(tokens[1])
      yield* runtime.ask(Command.Hyper, execCmd(tokens[1]))
      shim.stopReading()
      const bytes = pattern(700_000)
      print(agent, bytes)
      agent.exit(3, 0)
      agent.io(5, "behind it")
      yield* settle(runtime)
      assert.strictEqual(second.output(), "")
      assert.isAtMost(disk.size(), 100_000)
      assert.isAbove(disk.size(), 90_000)
      const paused = log.records.filter(({ level }) => level === "Warn")
      assert.deepStrictEqual(
        paused.map(({ msg }) => msg),
        ["output of the VM pauses: a shim is behind, and the spool takes no more"]
      )
      assert.isAbove(yield* Counters.limitedSoFar("spool"), 0)
      shim.readAgain()
      yield* second.until(() => second.output() === "behind it")
      yield* shim.until(() => shim.status() === 0)
      same(outputOf(shim), bytes)
      yield* nothingLeft
    }).pipe(proxy({ spoolLimit: 100_000 }, log))
  })

  it.effect("does not pause its VM's io for a write that takes long", () => {
    const log = Records.make()
    return Effect.gen(function* () {
      const disk = yield* MemorySpool
      const { agent, runtime, shim } = yield* running("a")
      shim.stopReading()
      disk.hold()
      print(agent, pattern(300_000))
      yield* settle(runtime)
      disk.release()
      yield* settle(runtime)
      assert.isAbove(disk.size(), 100_000)
      assert.isFalse(log.records.some(({ msg }) => String(msg).includes("pauses")))
      shim.leave()
    }).pipe(proxy({}, log))
  })

  it.effect("pauses its VM's io for a disk that hangs, which is told once", () => {
    const log = Records.make()
    return Effect.gen(function* () {
      const disk = yield* MemorySpool
      const { agent, runtime, shim } = yield* running("a")
      shim.stopReading()
      disk.hold()
      const bytes = pattern(300_000)
      print(agent, bytes)
      agent.exit(3, 0)
      yield* settle(runtime)
      yield* TestClock.adjust("1 minutes")
      const warned = log.records.filter(({ level }) => level === "Warn")
      assert.strictEqual(warned.length, 1)
      assert.include(String(warned[0]!.msg), "output of the VM pauses")
      disk.release()
      shim.readAgain()
      yield* shim.until(() => shim.status() === 0)
      same(outputOf(shim), bytes)
      yield* nothingLeft
    }).pipe(proxy({}, log))
  })

  it.effect("that the disk does not take pauses its VM only, for as long", () =>
    Effect.gen(function* () {
      const disk = yield* MemorySpool
      const other = yield* running("b")
      const { agent, runtime, shim } = yield* running("a")
      disk.break("write", { passing: true })
      shim.stopReading()
      const bytes = pattern(300_000)
      print(agent, bytes)
      agent.exit(3, 4)
      yield* settle(runtime)
      other.agent.io(3, "elsewhere")
      yield* other.shim.until(() => other.shim.output() === "elsewhere")
      disk.break("write", undefined)
      yield* TestClock.adjust("1 seconds")
      yield* disk.until(() => disk.size() > 150_000)
      shim.readAgain()
      yield* shim.until(() => shim.status() === 4)
      same(outputOf(shim), bytes)
      yield* nothingLeft
    }).pipe(proxy())
  )
})

describe("the end of a VM", () => {
  it.effect("leaves its sessions what is on disk, for a shim that reads and for one that comes back", () =>
    Effect.gen(function* () {
      const { size } = yield* MemorySpool
      const { agent, runtime, shim, tokens } = yield* running("a")
      const second = yield* shimFor(tokens[1])
      yield* runtime.ask(Command.Hyper, execCmd(tokens[1]))
      shim.stopReading()
      second.leave()
      yield* settle(runtime)
      const [one, two] = [pattern(200_000, 1), pattern(200_000, 2)]
      print(agent, one)
      print(agent, two, 5000, 5)
      agent.exit(3, 1)
      agent.exit(5, 2)
      agent.powerOff()
      yield* TestClock.adjust("200 millis")
      assert.isAbove(size(), 200_000)
      shim.readAgain()
      yield* shim.until(() => shim.ended())
      const again = yield* shimFor(tokens[1])
      yield* again.until(() => again.ended())
      same(outputOf(shim), one)
      same(outputOf(again), two)
      assert.deepStrictEqual([shim.status(), again.status()], [1, 2])
      yield* nothingLeft
    }).pipe(proxy())
  )

  it.effect("and UnregisterVM free what no shim came back for, counted and logged", () => {
    const log = Records.make()
    return Effect.gen(function* () {
      const { size } = yield* MemorySpool
      const { agent, runtime, shim } = yield* running("a")
      shim.leave()
      yield* settle(runtime)
      print(agent, pattern(200_000))
      agent.exit(3, 1)
      yield* settle(runtime)
      agent.powerOff()
      yield* TestClock.adjust("200 millis")
      assert.isAbove(size(), 100_000)
      yield* (yield* (yield* TestProxy).connect).ask(Command.UnregisterVM, { containerId: "a" })
      yield* Effect.yieldNow
      yield* nothingLeft
      const bytes = 200_000 + 40 * 12 + 13
      assert.strictEqual(yield* Counters.droppedSoFar("orphan"), bytes)
      const dropped = log.records.filter(({ msg }) => msg === "output that no shim came back for dropped")
      assert.deepStrictEqual(
        dropped.map(({ fields, level }) => [level, fields]),
        [["Warn", { bytes, container: "c1" }]]
      )
    }).pipe(proxy({}, log))
  })
})

describe("a session without a shim", () => {
  for (const lost of [false, true])
    it.effect(`is freed once -orphan-timeout has passed since its ${lost ? "VM was lost" : "process ended"}`, () => {
      const log = Records.make()
      return Effect.gen(function* () {
        const { size } = yield* MemorySpool
        const { agent, runtime, shim, token } = yield* running("a")
        shim.leave()
        yield* settle(runtime)
        print(agent, pattern(200_000))
        yield* settle(runtime)
        yield* TestClock.adjust("1 hours") // its process runs
        assert.isAbove(size(), 100_000)
        if (lost) agent.powerOff()
        else agent.exit(3, 1)
        yield* runtime.call(Command.Hyper, { hyperName: "ping" })
        yield* TestClock.adjust("200 millis") // in which a lost VM may say more
        yield* TestClock.adjust("299 seconds")
        assert.isAbove(size(), 100_000)
        yield* TestClock.adjust("2 seconds")
        yield* nothingLeft
        assert.isAbove(yield* Counters.droppedSoFar("orphan"), 200_000)
        const late = yield* (yield* TestProxy).connect
        assert.strictEqual(yield* late.refused(Command.ConnectShim, { token }), "unknown token: token-…")
        assert.strictEqual(log.records.filter(({ level }) => level === "Warn").length, 1)
      }).pipe(proxy({ orphanTimeout: Duration.minutes(5) }, log))
    })

  it.effect("is not freed while one is connected, and has the whole time again after that", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim, token } = yield* running("a")
      agent.exit(3, 6)
      yield* shim.until(() => shim.status() === 6)
      yield* TestClock.adjust("1 hours")
      shim.leave()
      yield* settle(runtime)
      yield* TestClock.adjust("299 seconds")
      // the status that an earlier one was sent
      const second = yield* shimFor(token)
      yield* second.until(() => second.status() === 6)
      yield* TestClock.adjust("1 hours")
      second.leave()
      yield* settle(runtime)
      yield* TestClock.adjust("299 seconds")
      const third = yield* shimFor(token)
      yield* third.until(() => third.status() === 6)
      assert.strictEqual(third.received.filter(({ type }) => type === "exit").length, 1)
    }).pipe(proxy({ orphanTimeout: Duration.minutes(5) }))
  )

  it("that has been closed waits for none: no deadline outlives it", () => {
    const pending = new Set<object>()
    const owner = Owner.make({
      orphaned: () => {
        const deadline = { due: 0, expire: () => {}, cancel: () => void pending.delete(deadline) }
        pending.add(deadline)
        return deadline as unknown as Deadline
      }
    })
    const shim = { wire: MemoryWire.pair("shim", "proxy").a, run: () => {}, end: () => {} }
    const over = new SessionError({ reason: "the shim has disconnected" })
    for (const order of ["closed first", "away first"]) {
      const session = new Session("token", 3, owner, unused)
      session.claim(shim)
      session.attach(shim)
      session.killUnstarted()
      assert.strictEqual(pending.size, 0)
      if (order === "away first") {
        session.release(shim)
        assert.strictEqual(pending.size, 1)
      }
      session.close(over)
      session.release(shim)
      assert.strictEqual(pending.size, 0, order)
    }
  })
})

describe("stdin above the memory", () => {
  it.effect("waits on disk for its process, signals pass it, and its end comes once, last", () =>
    Effect.gen(function* () {
      const { files, size } = yield* MemorySpool
      const { agent, shim } = yield* running("a")
      agent.stopReading()
      const bytes = pattern(400_000)
      for (let at = 0; at < bytes.length; at += 8000) shim.stdin(bytes.subarray(at, at + 8000))
      shim.stdin("")
      yield* shim.ask(Command.Signal, { signalNumber: 10 })
      assert.strictEqual(agent.commands.at(-1)?.text, '{"container":"c1","signal":10,"allProcesses":false}')
      assert.isAbove(size(), 300_000)
      agent.readAgain()
      yield* agent.until(() => ended(agent))
      same(stdinOf(agent), bytes)
      assert.strictEqual(agent.stdin.filter(({ data }) => data.length === 0).length, 1)
      assert.strictEqual(agent.stdin.at(-1)?.data.length, 0)
      assert.strictEqual(files.size, 0)
    }).pipe(proxy())
  )

  it.effect("reaches a Go agent in full messages, also while the rest is on its way back", () =>
    Effect.gen(function* () {
      const disk = yield* MemorySpool
      const { agent, runtime, tokens } = yield* register("a", 1)
      const shim = yield* shimFor(tokens[0])
      const bytes = pattern(200_000)
      for (let at = 0; at < bytes.length; at += 999) shim.stdin(bytes.subarray(at, at + 999))
      shim.stdin("")
      yield* settle(runtime)
      assert.isAbove(disk.size(), 150_000)
      disk.hold()
      yield* runtime.ask(Command.Hyper, newContainer(tokens[0]))
      yield* TestClock.adjust("10 seconds") // longer than a rest waits for more
      const sent = stdinOf(agent).length
      assert.isAbove(sent, 0)
      assert.isBelow(sent, 20_000)
      disk.release()
      yield* agent.until(() => ended(agent))
      same(stdinOf(agent), bytes)
      const sizes = agent.stdin.map(({ data }) => data.length)
      for (const size of sizes.slice(0, -2)) assert.strictEqual(size, 1012)
      yield* nothingLeft
    }).pipe(proxy())
  )

  it.effect("reaches a C agent 512 bytes at a time, four pings apart, also while the rest is on its way back", () =>
    Effect.gen(function* () {
      const disk = yield* MemorySpool
      const history: Array<number> = []
      const { agent, runtime, tokens } = yield* register("a", 1, { respond: likeC(() => ack()) })
      yield* settle(runtime)
      const shim = yield* shimFor(tokens[0])
      const bytes = pattern(60_000)
      for (let at = 0; at < bytes.length; at += 999) shim.stdin(bytes.subarray(at, at + 999))
      shim.stdin("")
      yield* settle(runtime)
      assert.isAbove(disk.size(), 30_000)
      const respond = agent.respond
      agent.respond = (command) => {
        history.push(stdinOf(agent).length)
        return respond(command)
      }
      disk.hold()
      yield* runtime.ask(Command.Hyper, newContainer(tokens[0]))
      yield* Effect.yieldNow
      disk.release()
      yield* agent.until(() => ended(agent))
      same(stdinOf(agent), bytes)
      // what had come at each command: the start, then four pings for each 512 bytes
      const steps = history.slice(1)
      for (const [n, length] of steps.entries()) assert.strictEqual(length, 512 * (Math.floor(n / 4) + 1))
      assert.strictEqual(steps.length, 4 * Math.floor(bytes.length / 512))
      yield* nothingLeft
    }).pipe(proxy())
  )

  it.effect("leaves its shim's socket unread only at the spool's limit, and is read again by itself", () =>
    Effect.gen(function* () {
      const disk = yield* MemorySpool
      const { agent, runtime, shim } = yield* running("a")
      agent.stopReading()
      const bytes = pattern(1_000_000)
      for (let at = 0; at < bytes.length; at += 8000) shim.stdin(bytes.subarray(at, at + 8000))
      shim.stdin("")
      shim.send(Command.Signal, { signalNumber: 10 })
      yield* settle(runtime)
      const before = agent.commands.length
      yield* settle(runtime)
      assert.strictEqual(agent.commands.length, before + 1) // the signal waits behind stdin
      assert.isAtMost(disk.size(), 100_000)
      agent.readAgain()
      yield* agent.until(() => ended(agent))
      same(stdinOf(agent), bytes)
      yield* shim.until(() => shim.responses().length === 2)
      yield* nothingLeft
    }).pipe(proxy({ spoolLimit: 100_000 }))
  )

  it.effect("reaches its process though its shim has left", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim, token } = yield* running("a")
      agent.stopReading()
      const bytes = pattern(300_000)
      for (let at = 0; at < 200_000; at += 8000) shim.stdin(bytes.subarray(at, Math.min(at + 8000, 200_000)))
      yield* settle(runtime)
      shim.leave()
      yield* settle(runtime)
      const next = yield* shimFor(token)
      for (let at = 200_000; at < 300_000; at += 8000) next.stdin(bytes.subarray(at, at + 8000))
      next.stdin("")
      yield* settle(runtime)
      agent.readAgain()
      yield* agent.until(() => ended(agent))
      same(stdinOf(agent), bytes)
      yield* nothingLeft
    }).pipe(proxy())
  )

  for (const [what, end] of [
    ["its process has ended", (agent: FakeAgent) => agent.exit(3, 0)],
    ["its VM is lost", (agent: FakeAgent) => agent.powerOff()]
  ] as const)
    it.effect(`is dropped from the disk once ${what}`, () =>
      Effect.gen(function* () {
        const { size } = yield* MemorySpool
        const { agent, runtime, shim } = yield* running("a")
        agent.stopReading()
        for (let n = 0; n < 30; n++) shim.stdin(pattern(8000, n))
        yield* settle(runtime)
        assert.isAbove(size(), 100_000)
        end(agent)
        yield* shim.until(() => shim.status() === 0 || shim.ended())
        yield* TestClock.adjust("1 seconds")
        yield* nothingLeft
      }).pipe(proxy())
    )

  it.effect("that its process may never take is freed with DisconnectShim", () =>
    Effect.gen(function* () {
      const { size } = yield* MemorySpool
      const { runtime, tokens } = yield* register("a", 1, { respond: () => silence })
      const shim = yield* shimFor(tokens[0])
      for (let n = 0; n < 30; n++) shim.stdin(pattern(8000, n))
      shim.send(Command.DisconnectShim, "")
      yield* shim.until(() => shim.ended())
      assert.strictEqual(size(), 0)
      assert.isFalse(runtime.ended())
      yield* nothingLeft
    }).pipe(proxy())
  )
})

describe("a proxy that stops", () => {
  it.effect("leaves no file behind, and tells of what it has not delivered", () => {
    const log = Records.make()
    return Effect.gen(function* () {
      let disk: MemorySpool["Service"] | undefined
      yield* Effect.gen(function* () {
        disk = yield* MemorySpool
        const { agent, runtime, shim } = yield* running("a")
        agent.stopReading()
        for (let n = 0; n < 30; n++) shim.stdin(pattern(8000, n))
        yield* settle(runtime)
        shim.leave()
        yield* settle(runtime)
        print(agent, pattern(200_000))
        yield* settle(runtime)
        assert.isAbove(disk.size(), 300_000)
        assert.isAtLeast(disk.files.size, 2)
      }).pipe(Effect.scoped, Effect.provide(TestProxy.layer(small)))
      assert.deepStrictEqual([...disk!.files.keys()], [])
      const bytes = 200_000 + 40 * 12
      assert.strictEqual(yield* Counters.droppedSoFar("orphan"), bytes)
      assert.deepStrictEqual(
        log.records.flatMap(({ fields, level }) => (level === "Warn" ? [fields] : [])),
        [{ bytes }]
      )
    }).pipe(Effect.provide(log.layer), Effect.provideService(Metric.MetricRegistry, new Map()))
  })
})
