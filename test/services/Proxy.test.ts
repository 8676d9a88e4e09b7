import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Result from "effect/Result"
import * as TestClock from "effect/testing/TestClock"
import * as Frame from "../../src/domain/Frame.ts"
import { Mailbox } from "../../src/layers/Mailbox.ts"
import { Condition } from "../../src/services/Condition.ts"
import * as Counters from "../../src/services/Counters.ts"
import { type Arrival, Crowded, Listener, ListenError } from "../../src/services/Listener.ts"
import * as Proxy from "../../src/services/Proxy.ts"
import type { Settings } from "../../src/services/Settings.ts"
import type { Wire } from "../../src/services/Wire.ts"
import { toText, utf8 } from "../support/Bytes.ts"
import { FakeHyperstart } from "../support/FakeHyperstart.ts"
import * as Records from "../support/Records.ts"
import * as MemoryWire from "../support/MemoryWire.ts"
import { closedDoor, TestProxy } from "../support/TestProxy.ts"

const now = { startImmediately: true } as const

/** A socket in memory, and what became of it and of its clients, in order. */
const makeDoor = () => {
  const arrivals = new Mailbox<Arrival, ListenError>()
  const events: Array<string> = []
  const changed = new Condition()
  const happened = (event: string) => {
    events.push(event)
    changed.notify()
  }
  return {
    events,
    until: (test: () => boolean) => changed.until(test),
    arrive: (connection: Arrival["connection"], crowded?: Crowded) => void arrivals.offer({ connection, crowded }),
    fail: (error: ListenError) => arrivals.fail(error),
    /** The client's end of a connection that is waiting to be accepted. `stall` leaves the proxy's answers pending. */
    knock(name: string, stall: (proxy: MemoryWire.End) => void = () => {}, crowded?: Crowded) {
      const { a, b } = MemoryWire.pair(name, "proxy")
      stall(a)
      const connection = Effect.acquireRelease(Effect.succeed<Wire>(a), () =>
        Effect.sync(() => {
          a.close()
          happened(`${name} ended`)
        })
      )
      arrivals.offer({ connection, crowded })
      return b
    },
    listener: Listener.of({
      url: "unix:///run/test.sock",
      listen: Effect.acquireRelease(
        Effect.sync(() => {
          happened("listening")
          return { accept: arrivals.take, carry: () => assert.fail("there is no hand-over") }
        }),
        () => Effect.sync(() => happened("stopped listening"))
      ),
      adopt: () => Effect.never,
      finish: () => {}
    })
  }
}

const serveAt = (listener: Listener["Service"]) =>
  Effect.scoped(
    Effect.provideService(
      Effect.flatMap(Proxy.make, ({ serve }) => serve),
      Listener,
      listener
    )
  )

/** A proxy that serves whoever comes through the door. */
const serve = Effect.fnUntraced(function* (door: ReturnType<typeof makeDoor>) {
  return yield* Effect.forkChild(serveAt(door.listener), now)
})

const attach = (containerId: string) =>
  Frame.encode({
    type: Frame.FrameType.command,
    opcode: Frame.Command.AttachVM,
    inError: false,
    payload: utf8(JSON.stringify({ containerId }))
  })

/** Asks for a VM that there is none of: the answer is served by the proxy alone. */
const asks = (client: MemoryWire.End) =>
  Effect.gen(function* () {
    client.offer([attach("nobody")])
    const frame = yield* client.pull
    assert.strictEqual(toText(frame.subarray(12)), '{"msg":"unknown containerID: nobody"}')
  })

const services = (settings: Partial<Settings> = {}) =>
  TestProxy.layer(settings).pipe(Layer.provideMerge(FakeHyperstart.layer))

describe("the proxy", () => {
  it.effect("serves clients beside each other, whatever becomes of one of them", () =>
    Effect.gen(function* () {
      const door = makeDoor()
      yield* serve(door)
      const clients = ["a", "b", "c"].map((name) => door.knock(name))
      for (const client of clients) yield* asks(client)
      clients[0]!.close()
      clients[1]!.offer([new Uint8Array(12)]) // no frame of ours
      yield* door.until(() => door.events.length === 3)
      assert.deepStrictEqual(door.events, ["listening", "a ended", "b ended"])
      yield* asks(clients[2]!)
      yield* asks(door.knock("d"))
    }).pipe(Effect.provide(services()))
  )

  it.effect("outlives a client that it has a bug with", () =>
    Effect.gen(function* () {
      const door = makeDoor()
      const serving = yield* serve(door)
      door.arrive(Effect.die("a bug"))
      yield* asks(door.knock("next"))
      assert.isUndefined(serving.pollUnsafe())
    }).pipe(Effect.provide(services()))
  )

  it.effect("stops listening, then ends its clients, when it is interrupted", () =>
    Effect.gen(function* () {
      const door = makeDoor()
      const serving = yield* serve(door)
      const clients = ["a", "b"].map((name) => door.knock(name))
      for (const client of clients) yield* asks(client)
      yield* Fiber.interrupt(serving)
      assert.deepStrictEqual(door.events.slice(0, 2), ["listening", "stopped listening"])
      assert.deepStrictEqual(door.events.slice(2).toSorted(), ["a ended", "b ended"])
      for (const client of clients) assert.strictEqual((yield* Effect.flip(client.pull))._tag, "WireClosed")
    }).pipe(Effect.provide(services()))
  )

  it.effect("ends its clients and fails when its socket breaks", () =>
    Effect.gen(function* () {
      const door = makeDoor()
      const serving = yield* serve(door)
      yield* asks(door.knock("a"))
      door.fail(new ListenError({ reason: "couldn't listen on /run/test.sock: accept EINVAL" }))
      const error = yield* Effect.flip(Fiber.join(serving))
      assert.strictEqual(error.message, "couldn't listen on /run/test.sock: accept EINVAL")
      assert.deepStrictEqual(door.events, ["listening", "stopped listening", "a ended"])
    }).pipe(Effect.provide(services()))
  )

  it.effect("fails where it cannot listen", () =>
    Effect.gen(function* () {
      const error = new ListenError({ reason: "another process serves /run/test.sock" })
      const listener = Listener.of({ ...closedDoor, listen: Effect.fail(error) })
      const exit = yield* Effect.flip(serveAt(listener))
      assert.strictEqual(exit, error)
    }).pipe(Effect.provide(services()))
  )

  describe("turns away a client that there is no room for", () => {
    const crowded = new Crowded({ what: "connections", limit: 7 })
    const header = (type: number, opcode: number, length = 0) => {
      const bytes = new Uint8Array(Frame.headerSize)
      Frame.writeHeader(bytes, 0, type as Frame.FrameType, opcode, length)
      return bytes
    }

    /** All that a client gets before its connection ends. */
    const got = Effect.fnUntraced(function* (client: MemoryWire.End) {
      const frames: Array<Frame.Frame> = []
      const parser = Frame.makeParser(Frame.fromProxy)
      for (;;) {
        const chunk = yield* Effect.result(client.pull)
        if (Result.isFailure(chunk)) return frames
        Result.getOrThrow(parser.push(chunk.success, (frame) => frames.push(frame)))
      }
    })

    for (const name of ["RegisterVM", "UnregisterVM", "AttachVM", "Hyper", "Signal"] as const)
      it.effect(`with an error to its first command, and no look at what it says: ${name}`, () =>
        Effect.gen(function* () {
          const door = makeDoor()
          yield* serve(door)
          const client = door.knock("late", undefined, crowded)
          const opcode = Frame.Command[name]
          client.offer([header(Frame.FrameType.command, opcode, 0xffff_ffff)])
          const [answer, ...more] = yield* got(client)
          assert.deepStrictEqual(
            { ...answer, payload: toText(answer!.payload) },
            {
              type: Frame.FrameType.response,
              opcode,
              inError: true,
              payload: '{"msg":"too many connections: the limit is 7"}'
            }
          )
          assert.deepStrictEqual(more, [])
          assert.deepStrictEqual(door.events, ["listening", "late ended"])
        }).pipe(Effect.provide(services()))
      )

    for (const [what, bytes] of [
      ["a shim's claim, after whose error it would not come back", header(0, Frame.Command.ConnectShim, 50)],
      ["a shim's goodbye", header(0, Frame.Command.DisconnectShim)],
      ["stdin", header(2, Frame.StreamKind.stdin, 5)],
      ["a log entry", header(2, Frame.StreamKind.log, 5)],
      ["a response", header(1, Frame.Command.Hyper)],
      ["an unknown command", header(0, 7)],
      ["what is no frame", new Uint8Array(12)]
    ] as const)
      it.effect(`without a word to ${what}`, () =>
        Effect.gen(function* () {
          const door = makeDoor()
          yield* serve(door)
          const client = door.knock("late", undefined, crowded)
          client.offer([bytes])
          assert.deepStrictEqual(yield* got(client), [])
          assert.deepStrictEqual(door.events, ["listening", "late ended"])
        }).pipe(Effect.provide(services()))
      )

    it.effect("that sends its command in pieces, or leaves", () =>
      Effect.gen(function* () {
        const door = makeDoor()
        yield* serve(door)
        const slow = door.knock("slow", undefined, crowded)
        for (const byte of attach("x")) slow.offer([Uint8Array.of(byte)])
        assert.strictEqual((yield* got(slow)).length, 1)
        door.knock("leaver", undefined, crowded).close()
        yield* door.until(() => door.events.includes("leaver ended"))
      }).pipe(Effect.provide(services()))
    )

    it.effect("after a second, if it says nothing", () =>
      Effect.gen(function* () {
        const door = makeDoor()
        yield* serve(door)
        const client = door.knock("silent", undefined, crowded)
        client.offer([header(0, 0).subarray(0, 11)])
        yield* TestClock.adjust("999 millis")
        assert.deepStrictEqual(door.events, ["listening"])
        yield* TestClock.adjust("1 millis")
        assert.deepStrictEqual(yield* got(client), [])
      }).pipe(Effect.provide(services()))
    )

    it.effect(
      "and counts all of them, also those whose connection is closed already, but tells once in ten seconds",
      () => {
        const { layer, records } = Records.make()
        const told = () =>
          records.filter(({ msg }) => msg === "clients turned away").map(({ fields, level }) => ({ fields, level }))
        return Effect.gen(function* () {
          const door = makeDoor()
          yield* serve(door)
          const served = door.knock("served")
          for (let i = 0; i < 100; i++) door.arrive(undefined, crowded)
          const reason = "too many connections: the limit is 7"
          assert.deepStrictEqual(told(), [{ level: "Warn", fields: { reason, count: 1 } }])
          door.arrive(undefined, new Crowded({ what: "descriptors", limit: 20 }))
          assert.deepStrictEqual(told().at(-1), {
            level: "Warn",
            fields: { reason: "too many descriptors: the limit is 20", count: 1 }
          })
          yield* TestClock.adjust("10 seconds")
          assert.deepStrictEqual(told().slice(2), [{ level: "Warn", fields: { reason, count: 99 } }])
          yield* TestClock.adjust("1 hours")
          assert.strictEqual(told().length, 3)
          assert.strictEqual(yield* Counters.limitedSoFar("connections"), 100)
          assert.strictEqual(yield* Counters.limitedSoFar("descriptors"), 1)
          yield* asks(served)
          yield* asks(door.knock("next"))
        }).pipe(Effect.provide([services(), layer]), Effect.provideService(Metric.MetricRegistry, new Map()))
      }
    )
  })

  describe("with a client that does not take its answers", () => {
    const answer = 12 + '{"msg":"unknown containerID: nobody"}'.length
    const settings = { maxPending: 500 }

    /** A client that has asked `count` times, and the proxy's end of it, with as many answers pending as there may be. */
    const slow = Effect.fnUntraced(function* (door: ReturnType<typeof makeDoor>, count: number) {
      let proxy: MemoryWire.End | undefined
      const client = door.knock("slow", (end) => {
        proxy = end
        end.stall()
      })
      for (let i = 0; i < count; i++) client.offer([attach("nobody")])
      while (proxy!.pending() <= settings.maxPending) yield* Effect.yieldNow
      for (let trips = 0; trips < 3; trips++) yield* asks(door.knock("beside it"))
      return { client, proxy: proxy! }
    })

    it.effect("stops at the limit, and goes on once it takes them", () =>
      Effect.gen(function* () {
        const door = makeDoor()
        yield* serve(door)
        const { client, proxy } = yield* slow(door, 100)
        assert.strictEqual(proxy.pending(), Math.ceil(501 / answer) * answer)
        proxy.resume()
        for (let i = 0; i < 100; i++) yield* client.pull
        yield* asks(client)
      }).pipe(Effect.provide(services(settings)))
    )

    for (const [what, count] of [
      ["little", 100],
      ["more than is read ahead", 10_000]
    ] as const)
      it.effect(`lets it go when it leaves, having sent ${what}`, () =>
        Effect.gen(function* () {
          const door = makeDoor()
          yield* serve(door)
          const { client } = yield* slow(door, count)
          client.close()
          yield* door.until(() => door.events.includes("slow ended"))
        }).pipe(Effect.provide(services(settings)))
      )
  })
})
