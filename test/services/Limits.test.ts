/** What a limit costs: that one command, client or VM gets a clear error or an end, is counted, and nobody else notices. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Metric from "effect/Metric"
import * as TestClock from "effect/testing/TestClock"
import * as CtlMessage from "../../src/domain/CtlMessage.ts"
import * as Frame from "../../src/domain/Frame.ts"
import * as JsonDepth from "../../src/domain/JsonDepth.ts"
import * as Counters from "../../src/services/Counters.ts"
import type { Settings } from "../../src/services/Settings.ts"
import { pattern, utf8 } from "../support/Bytes.ts"
import { ack, FakeHyperstart, silence } from "../support/FakeHyperstart.ts"
import { newContainer, register, running, shimFor } from "../support/Pod.ts"
import * as Records from "../support/Records.ts"
import { TestProxy } from "../support/TestProxy.ts"

const { Command } = Frame
const mebibyte = 1024 * 1024

/** A proxy with these settings, and counters of its own. */
const proxy =
  (settings: Partial<Settings> = {}) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    effect.pipe(Effect.provide(TestProxy.layer(settings)), Effect.provideService(Metric.MetricRegistry, new Map()))

const counts = (limit: Counters.Limit, count: number) =>
  Effect.map(Counters.limitedSoFar(limit), (counted) => assert.strictEqual(counted, count, limit))

const connect = Effect.flatMap(TestProxy, ({ connect }) => connect)

const call = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

const frame = (opcode: Frame.Command, payload: string) =>
  Frame.encode({ type: Frame.FrameType.command, opcode, inError: false, payload: utf8(payload) })

const logEntry = (entry: string) =>
  Frame.encode({
    type: Frame.FrameType.stream,
    opcode: Frame.StreamKind.log,
    inError: false,
    payload: utf8(entry)
  })

/** JSON that nests one level deeper than it may. */
const tooDeep = `${"[".repeat(JsonDepth.maxDepth)}${"]".repeat(JsonDepth.maxDepth)}`

describe("VMs", () => {
  const tooMany = (count: number) => `too many VMs: ${count} with this one, the limit is 2`

  /** The answer to RegisterVM: undefined, or an error's message. */
  const registering = Effect.fnUntraced(function* (id: string) {
    const { boot } = yield* FakeHyperstart
    const client = yield* connect
    const { sockets } = boot(id)
    const answer = yield* client.call(Command.RegisterVM, {
      containerId: id,
      ctlSerial: sockets.ctl,
      ioSerial: sockets.io
    })
    return answer.inError ? (JSON.parse(answer.text) as { readonly msg: string }).msg : undefined
  })

  it.effect("above the limit are refused until one is gone, also if nobody sees it any more", () =>
    Effect.gen(function* () {
      const first = yield* register("a")
      const second = yield* register("b")
      assert.strictEqual(yield* registering("c"), tooMany(3))
      yield* first.runtime.ask(Command.UnregisterVM, { containerId: "a" })
      assert.strictEqual(yield* registering("c"), tooMany(3))
      first.agent.powerOff()
      yield* first.agent.until(() => first.agent.hungUp().length === 2)
      assert.isUndefined(yield* registering("c"))
      assert.strictEqual(yield* registering("d"), tooMany(3))
      yield* second.runtime.ask(Command.Hyper, { hyperName: "ping" })
      yield* counts("vms", 3)
    }).pipe(proxy({ maxVms: 2 }))
  )

  it.effect("count while they are being registered, and no more where that fails", () =>
    Effect.gen(function* () {
      const { boot } = yield* FakeHyperstart
      yield* register("a")
      const client = yield* connect
      const { sockets } = boot("b", { first: [] })
      const never = yield* call(
        client.refused(Command.RegisterVM, { containerId: "b", ctlSerial: sockets.ctl, ioSerial: sockets.io })
      )
      assert.strictEqual(yield* registering("c"), tooMany(3))
      yield* TestClock.adjust("30 seconds")
      assert.match(yield* Fiber.join(never), /READY/)
      assert.isUndefined(yield* registering("c"))
    }).pipe(proxy({ maxVms: 2 }))
  )

  it.effect("count no more where their client leaves while they are being registered", () =>
    Effect.gen(function* () {
      const { boot } = yield* FakeHyperstart
      yield* register("a")
      const leaver = yield* connect
      const agent = boot("b", { first: [] })
      leaver.send(Command.RegisterVM, {
        containerId: "b",
        ctlSerial: agent.sockets.ctl,
        ioSerial: agent.sockets.io
      })
      leaver.leave()
      yield* agent.until(() => agent.hungUp().length === 2)
      assert.isUndefined(yield* registering("c"))
      assert.strictEqual(yield* registering("d"), tooMany(3))
    }).pipe(proxy({ maxVms: 2 }))
  )

  it.effect("count after their loss, as long as they keep something for a shim", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      yield* register("b")
      shim.leave()
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      agent.exit(3, 4)
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      agent.powerOff()
      yield* TestClock.adjust("1 seconds")
      assert.strictEqual(yield* registering("a"), tooMany(3))
      yield* runtime.ask(Command.UnregisterVM, { containerId: "a" })
      yield* TestClock.adjust("1 millis")
      assert.isUndefined(yield* registering("a"))
    }).pipe(proxy({ maxVms: 2 }))
  )
})

describe("tokens", () => {
  it.effect("above the limit of a command, or of a VM, are refused and counted", () =>
    Effect.gen(function* () {
      const { boot } = yield* FakeHyperstart
      const { runtime } = yield* register("a", 3)
      const ask = (numIOStreams: number) => runtime.refused(Command.AttachVM, { containerId: "a", numIOStreams })
      assert.strictEqual(yield* ask(5), "numIOStreams must be between 0 and 4, got 5")
      yield* counts("tokens", 1)
      assert.strictEqual(yield* ask(-1), "numIOStreams must be between 0 and 4, got -1")
      yield* counts("tokens", 1)
      const tooMany = "too many tokens for this VM: 4 with those asked for, the limit is 3"
      assert.strictEqual(yield* ask(1), tooMany)
      const { sockets } = boot("b")
      const vm = { containerId: "b", ctlSerial: sockets.ctl, ioSerial: sockets.io }
      assert.strictEqual(yield* runtime.refused(Command.RegisterVM, { ...vm, numIOStreams: 4 }), tooMany)
      yield* runtime.ask(Command.RegisterVM, { ...vm, numIOStreams: 3 })
      yield* counts("vm tokens", 2)
    }).pipe(proxy({ maxTokens: 4, maxVmTokens: 3 }))
  )
})

describe("a frame", () => {
  const limits = { maxHyper: 300, maxCommand: 200, maxStdin: 100 }
  const header = (type: Frame.FrameType, opcode: number, length: number) => {
    const bytes = new Uint8Array(Frame.headerSize)
    Frame.writeHeader(bytes, 0, type, opcode, length)
    return bytes
  }

  for (const [what, type, opcode, limit] of [
    ["a Hyper command", Frame.FrameType.command, Command.Hyper, limits.maxHyper],
    ["another command", Frame.FrameType.command, Command.AttachVM, limits.maxCommand],
    ["a log entry", Frame.FrameType.stream, Frame.StreamKind.log, limits.maxCommand],
    ["stdin", Frame.FrameType.stream, Frame.StreamKind.stdin, limits.maxStdin]
  ] as const)
    it.effect(`above the limit of ${what} ends its connection and is counted, one at the limit is not`, () =>
      Effect.gen(function* () {
        const { runtime } = yield* register("a")
        const fine = yield* connect
        fine.raw(header(type, opcode, limit))
        const large = yield* connect
        large.raw(header(type, opcode, limit + 1))
        yield* large.until(() => large.ended())
        yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
        assert.isFalse(fine.ended())
        yield* counts("frame", 1)
      }).pipe(proxy(limits))
    )

  it.effect("that is none counts for no limit", () =>
    Effect.gen(function* () {
      const client = yield* connect
      client.raw(new Uint8Array(12))
      yield* client.until(() => client.ended())
      yield* counts("frame", 0)
    }).pipe(proxy())
  )

  it.effect("that is left half-sent is counted when its time is over", () =>
    Effect.gen(function* () {
      const client = yield* connect
      client.raw(Uint8Array.of(0))
      yield* TestClock.adjust("30 seconds")
      yield* client.until(() => client.ended())
      yield* counts("frame time", 1)
    }).pipe(proxy())
  )

  const attach = frame(Command.AttachVM, JSON.stringify({ containerId: "x".repeat(400) }))
  const entry = logEntry(JSON.stringify({ source: "shim", level: "info", msg: "x".repeat(400) }))

  for (const [what, bytes] of [
    ["a command", attach],
    ["a log entry", entry],
    ["a header", attach.subarray(0, 11)]
  ] as const)
    it.effect(`that comes in drops ends its connection after ten times as long: ${what}`, () => {
      const { layer, records } = Records.make()
      return Effect.gen(function* () {
        const client = yield* connect
        for (let sent = 0; sent < 11; sent++) {
          assert.isFalse(client.ended(), String(sent))
          client.raw(bytes.subarray(sent, sent + 1))
          yield* TestClock.adjust("27 seconds")
        }
        yield* TestClock.adjust("3 seconds")
        yield* client.until(() => client.ended())
        yield* counts("frame time", 1)
        assert.deepInclude(
          records.map(({ fields, level, msg }) => ({ fields, level, msg })),
          { level: "Warn", msg: "client's connection ended", fields: { reason: "a frame was not whole for 5m" } }
        )
      }).pipe(proxy(), Effect.provide(layer))
    })

  it.effect("that is stdin may take as long as it likes, as it is handed on in pieces", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running("a")
      shim.raw(header(Frame.FrameType.stream, Frame.StreamKind.stdin, 100))
      for (let sent = 0; sent < 100; sent++) {
        shim.raw(Uint8Array.of(sent))
        yield* TestClock.adjust("29 seconds")
      }
      yield* agent.until(() => agent.stdin.length === 100)
      assert.isFalse(shim.ended())
    }).pipe(proxy())
  )

  it.effect("has its own time, however many came before it", () =>
    Effect.gen(function* () {
      const client = yield* connect
      for (let sent = 1; sent <= 20; sent++) {
        client.raw(attach.subarray(0, 100))
        yield* TestClock.adjust("29 seconds")
        client.raw(attach.subarray(100))
        client.raw(entry.subarray(0, 50))
        yield* TestClock.adjust("29 seconds")
        client.raw(entry.subarray(50))
        yield* client.until(() => client.responses().length === sent)
      }
      assert.isFalse(client.ended())
    }).pipe(proxy())
  )

  it.effect("is not late for the time in which the proxy does not read", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1)
      const shim = yield* shimFor(tokens[0])
      for (let sent = 0; sent < 20; sent++) shim.stdin(pattern(30_000))
      const signal = frame(Command.Signal, JSON.stringify({ signalNumber: 99 }))
      shim.raw(signal.subarray(0, 20))
      yield* TestClock.adjust("1 hours")
      assert.isFalse(shim.ended())
      yield* runtime.ask(Command.Hyper, newContainer(tokens[0]))
      const stdin = () => agent.stdin.reduce((total, { data }) => total + data.length, 0)
      yield* TestClock.adjust("29 seconds")
      yield* agent.until(() => stdin() === 600_000)
      shim.raw(signal.subarray(20))
      yield* shim.until(() => shim.responses().length === 2)
      assert.match(shim.responses()[1]!.text, /invalid signal number 99/)
    }).pipe(proxy({ stdinLimit: 100_000, spoolLimit: 0 }))
  )
})

describe("a message of the agent's", () => {
  const lost = { maxCtlReply: 1000, maxIoMessage: 1000 }

  it.effect("on ctl above the limit loses its VM and is counted, one at the limit is not", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* register("a")
      const other = yield* register("b")
      agent.respond = () => ack(pattern(992))
      assert.strictEqual((yield* runtime.call(Command.Hyper, { hyperName: "ping" })).payload.length, 992)
      agent.respond = () => ack(pattern(993))
      assert.strictEqual(
        yield* runtime.refused(Command.Hyper, { hyperName: "ping" }),
        "VM lost: bad ctl message: length 1001, expected 8 to 1000"
      )
      yield* other.runtime.ask(Command.Hyper, { hyperName: "ping" })
      yield* counts("ctl reply", 1)
    }).pipe(proxy(lost))
  )

  it.effect("on io above the limit loses its VM and is counted, one at the limit is not", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      const other = yield* register("b")
      agent.io(3, pattern(988))
      yield* shim.until(() => shim.received.some(({ payload }) => payload.length === 988))
      agent.io(3, pattern(989))
      yield* TestClock.adjust("1 seconds")
      yield* shim.until(() => shim.ended())
      assert.strictEqual(
        yield* runtime.refused(Command.Hyper, { hyperName: "ping" }),
        "VM lost: bad io message: length 1001, expected 12 to 1000"
      )
      yield* other.runtime.ask(Command.Hyper, { hyperName: "ping" })
      yield* counts("io message", 1)
    }).pipe(proxy(lost))
  )

  it.effect("that is none loses its VM, and counts for no limit", () =>
    Effect.gen(function* () {
      const a = yield* register("a")
      const b = yield* register("b")
      a.agent.raw("ctl", Uint8Array.of(0, 0, 0, 9, 0, 0, 0, 7))
      b.agent.raw("io", Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 11))
      yield* TestClock.adjust("1 seconds")
      for (const { runtime } of [a, b])
        assert.match(yield* runtime.refused(Command.Hyper, { hyperName: "ping" }), /^VM lost: bad (ctl|io) message/)
      yield* counts("ctl reply", 0)
      yield* counts("io message", 0)
    }).pipe(proxy(lost))
  )

  it.effect("to the agent above the limit is an error, is counted, and leaves the VM usable", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* register("a")
      const write = (size: number) => ({ hyperName: "writefile", data: "x".repeat(size - CtlMessage.headerSize - 2) })
      yield* runtime.ask(Command.Hyper, write(200))
      assert.strictEqual(
        yield* runtime.refused(Command.Hyper, write(201)),
        "writefile is too large: 201 bytes, the limit is 200"
      )
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      assert.strictEqual(agent.commands.length, 2)
      yield* counts("ctl command", 1)
    }).pipe(proxy({ maxCtlCommand: 200 }))
  )
})

describe("log entries", () => {
  const entries = (count: number, msg = "from a shim") =>
    Buffer.concat(
      Array.from({ length: count }, () => logEntry(JSON.stringify({ source: "shim", level: "debug", msg })))
    )
  const dropped = (records: ReadonlyArray<Records.Record>) =>
    records.flatMap(({ fields, level, msg }) =>
      msg === "log entries dropped" ? [{ level, count: fields["count"], reason: fields["reason"] }] : []
    )
  const passed = (records: ReadonlyArray<Records.Record>) => records.filter(({ msg }) => msg === "from a shim").length

  /** Waits until all that the client has sent is handled. */
  const settle = (client: { readonly refused: (opcode: Frame.Command, payload: object) => Effect.Effect<string> }) =>
    client.refused(Command.AttachVM, { containerId: "x" })

  it.effect("above the rate are dropped, told once a second, and counted; the connection stays", () => {
    const { layer, records } = Records.make()
    return Effect.gen(function* () {
      const client = yield* connect
      const other = yield* connect
      client.raw(entries(1000))
      yield* settle(client)
      assert.strictEqual(passed(records), 100)
      const reason = "more than 100 a second"
      assert.deepStrictEqual(dropped(records), [{ level: "Warn", count: 1, reason }])
      yield* TestClock.adjust("500 millis")
      client.raw(entries(60))
      yield* settle(client)
      assert.strictEqual(passed(records), 150)
      yield* TestClock.adjust("500 millis")
      assert.deepStrictEqual(dropped(records), [
        { level: "Warn", count: 1, reason },
        { level: "Warn", count: 909, reason }
      ])
      yield* counts("log rate", 910)
      other.raw(entries(1))
      yield* settle(other)
      assert.strictEqual(passed(records), 151)
      assert.isFalse(client.ended())
    }).pipe(proxy(), Effect.provide(layer))
  })

  it.effect("below the rate all get through", () => {
    const { layer, records } = Records.make()
    return Effect.gen(function* () {
      const client = yield* connect
      for (let second = 0; second < 10; second++) {
        client.raw(entries(7))
        yield* settle(client)
        yield* TestClock.adjust("1 seconds")
      }
      assert.strictEqual(passed(records), 70)
      assert.deepStrictEqual(dropped(records), [])
    }).pipe(proxy({ logRate: 7 }), Effect.provide(layer))
  })

  it.effect("that were dropped are told when their client leaves", () => {
    const { layer, records } = Records.make()
    return Effect.gen(function* () {
      const client = yield* connect
      client.raw(entries(110))
      yield* settle(client)
      client.leave()
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(
        dropped(records).map(({ count }) => count),
        [1, 9]
      )
      yield* TestClock.adjust("1 minutes")
      assert.strictEqual(dropped(records).length, 2)
      yield* counts("log rate", 10)
    }).pipe(proxy(), Effect.provide(layer))
  })

  it.effect("that are invalid end the connection, whatever the rate", () =>
    Effect.gen(function* () {
      const client = yield* connect
      client.raw(entries(1000))
      client.raw(logEntry("{}"))
      yield* client.until(() => client.ended())
    }).pipe(proxy())
  )
})

describe("responses that a client does not read", () => {
  const large = pattern(16 * mebibyte - CtlMessage.headerSize)
  const ended = (records: ReadonlyArray<Records.Record>) =>
    records.filter(({ msg }) => msg === "client's connection ended").map(({ fields }) => String(fields["reason"]))

  it.effect("end its connection at the next one above 64 MiB", () => {
    const { layer, records } = Records.make()
    return Effect.gen(function* () {
      const { agent, runtime } = yield* register("a")
      const other = yield* connect
      yield* other.ask(Command.AttachVM, { containerId: "a" })
      runtime.stopReading()
      agent.respond = ({ code }) => ack(code === CtlMessage.Code.readfile ? large : undefined)
      for (let i = 0; i < 4; i++) runtime.send(Command.Hyper, { hyperName: "readfile" })
      yield* other.ask(Command.Hyper, { hyperName: "ping" })
      assert.deepStrictEqual(ended(records), [])
      runtime.send(Command.Hyper, { hyperName: "ping" })
      yield* other.ask(Command.Hyper, { hyperName: "ping" })
      const unread = 4 * (large.length + Frame.headerSize)
      assert.deepStrictEqual(ended(records), [`${unread} bytes of responses are not read: the limit is 67108864`])
      yield* counts("unread", 1)
    }).pipe(proxy({ maxPending: 1024 * mebibyte }), Effect.provide(layer))
  })

  it.effect("end it also where they wait for one before them", () => {
    const { layer, records } = Records.make()
    return Effect.gen(function* () {
      const slow = yield* register("a")
      const { agent } = yield* register("b")
      slow.agent.respond = () => silence
      agent.respond = ({ code }) => ack(code === CtlMessage.Code.readfile ? large : undefined)
      slow.runtime.send(Command.Hyper, { hyperName: "ping" })
      slow.runtime.send(Command.AttachVM, { containerId: "b" })
      for (let i = 0; i < 6; i++) slow.runtime.send(Command.Hyper, { hyperName: "readfile" })
      yield* slow.runtime.until(() => slow.runtime.ended())
      const [reason, ...more] = ended(records)
      assert.match(reason!, /^\d+ bytes of responses are not read: the limit is 67108864$/)
      assert.deepStrictEqual(more, [])
      yield* counts("unread", 1)
      const next = yield* connect
      yield* next.ask(Command.AttachVM, { containerId: "b" })
      yield* next.ask(Command.Hyper, { hyperName: "ping" })
    }).pipe(proxy(), Effect.provide(layer))
  })
})

describe("JSON that nests too deep", () => {
  it.effect("is refused as malformed and counted, and the client goes on", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* register("a")
      const payload = (data: string) => `{"hyperName":"writefile","data":${data}}`
      assert.strictEqual(
        yield* runtime.refused(Command.Hyper, payload(tooDeep)),
        "malformed Hyper command: the payload nests deeper than 10000 levels"
      )
      yield* counts("depth", 1)
      const deep = tooDeep.slice(1, -1)
      yield* runtime.ask(Command.Hyper, payload(deep))
      assert.strictEqual(agent.commands.at(-1)!.text, deep)
      yield* counts("depth", 1)
    }).pipe(proxy())
  )

  it.effect("in a log entry ends the connection", () =>
    Effect.gen(function* () {
      const client = yield* connect
      client.raw(logEntry(`{"source":"shim","level":"info","msg":"m","more":${tooDeep}}`))
      yield* client.until(() => client.ended())
      yield* counts("depth", 1)
    }).pipe(proxy())
  )
})
