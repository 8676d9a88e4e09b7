import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as TestClock from "effect/testing/TestClock"
import * as DaemonState from "../../src/domain/DaemonState.ts"
import { Deadlines } from "../../src/services/Deadlines.ts"
import { Listener } from "../../src/services/Listener.ts"
import { type Recorded, States } from "../../src/services/States.ts"
import { concat, utf8 } from "../support/Bytes.ts"
import { MemoryState } from "../support/MemoryState.ts"
import * as Records from "../support/Records.ts"
import { closedDoor } from "../support/TestProxy.ts"

const services = (files: Map<string, Uint8Array> = new Map()) =>
  Layer.provideMerge(
    States.layer,
    Layer.mergeAll(MemoryState.layerOver(files), Deadlines.layer, Layer.succeed(Listener, closedDoor))
  )

const told: ReturnType<Recorded["record"]> = {
  id: "a",
  ctl: "a.ctl",
  io: "a.io",
  registered: true,
  agent: "unknown",
  unnamed: false,
  nextSequence: 3,
  starting: false,
  clean: false,
  sessions: []
}

/** A VM that counts how often it is asked. */
const vm = (file: string, id = "a") => {
  const recorded = { file, asked: 0, next: 3, record: () => ({ ...told, id, nextSequence: recorded.next }) }
  return {
    ...recorded,
    record: () => {
      recorded.asked++
      return recorded.record()
    },
    change: () => void recorded.next++,
    asks: () => recorded.asked
  }
}

const sequenceIn = (bytes: Uint8Array | undefined) =>
  Result.getOrThrow(DaemonState.decodeVm(bytes ?? assert.fail("no file"))).nextSequence

const snapshotOf = (socket: string): Uint8Array =>
  concat(
    DaemonState.encodeSnapshot(
      {
        version: 1,
        socket,
        held: 0,
        listener: 0,
        inodes: [],
        registry: { vms: [], booting: [], lostIds: [], ended: 0, unregistered: 0 },
        clients: [],
        ending: [],
        count: 7
      },
      new DaemonState.Blobs()
    )
  )

describe("a record", () => {
  it.effect("is written at once, with the socket that its daemon listened at", () =>
    Effect.gen(function* () {
      const states = yield* States
      const { files } = yield* MemoryState
      const a = vm("a.state")
      states.save(a)
      assert.deepStrictEqual(Result.getOrThrow(DaemonState.decodeVm(files.get("a.state")!)), {
        version: 1,
        socket: "unix:///run/test.sock",
        ...told
      })
      assert.deepStrictEqual(states.recordOf(a), Result.getOrThrow(DaemonState.decodeVm(files.get("a.state")!)))
    }).pipe(Effect.provide(services()))
  )

  it.effect("that changes often is written once, and as it is then", () =>
    Effect.gen(function* () {
      const states = yield* States
      const { files, log } = yield* MemoryState
      const [a, b] = [vm("a.state"), vm("b.state")]
      for (let n = 0; n < 100; n++) {
        states.later(a)
        states.later(b)
        a.change()
      }
      assert.deepStrictEqual(log, [])
      assert.strictEqual(a.asks(), 0)
      yield* TestClock.adjust("20 millis")
      assert.deepStrictEqual(log, ["write a.state", "write b.state"])
      assert.strictEqual(sequenceIn(files.get("a.state")), 103)
      yield* TestClock.adjust("1 minutes")
      assert.strictEqual(log.length, 2)
      states.later(a)
      yield* TestClock.adjust("20 millis")
      assert.strictEqual(log.length, 3)
    }).pipe(Effect.provide(services()))
  )

  it.effect("that has been written at once is not written again later, and one that is forgotten never", () =>
    Effect.gen(function* () {
      const states = yield* States
      const { files, log } = yield* MemoryState
      const [a, b] = [vm("a.state"), vm("b.state")]
      states.later(a)
      states.save(a)
      states.save(b)
      states.later(b)
      states.forget(b)
      yield* TestClock.adjust("1 minutes")
      assert.deepStrictEqual(log, ["write a.state", "write b.state", "remove b.state"])
      assert.deepStrictEqual([...files.keys()], ["a.state"])
    }).pipe(Effect.provide(services()))
  )

  it.effect("that cannot be written is told once, and again only after one could be", () => {
    const { layer, records } = Records.make()
    return Effect.gen(function* () {
      const states = yield* States
      const memory = yield* MemoryState
      const a = vm("a.state")
      const warnings = () => records.filter(({ level }) => level === "Warn")
      for (let n = 1; n <= 2; n++) {
        memory.break("write", "no space left")
        for (let m = 0; m < 3; m++) states.save(a)
        yield* Effect.yieldNow
        assert.strictEqual(warnings().length, n)
        assert.deepStrictEqual(warnings()[0]?.fields, { error: "no space left" })
        memory.break("write", undefined)
        states.save(a)
      }
      memory.break("remove", "read only")
      states.forget(a)
      yield* Effect.yieldNow
      assert.strictEqual(warnings().length, 3)
    }).pipe(Effect.provide(Layer.provideMerge(services(), layer)))
  })

  it.effect("has a name that no other has", () =>
    Effect.gen(function* () {
      const { name } = yield* States
      const names = Array.from({ length: 100 }, name)
      assert.strictEqual(new Set(names).size, 100)
      for (const each of names) assert.match(each, /^vm-[a-z0-9]+-\d+\.state$/)
    }).pipe(Effect.provide(services()))
  )
})

describe("what an earlier daemon left", () => {
  const other = "unix:///run/other.sock"
  const record = (socket: string, id: string) => DaemonState.encodeVm({ version: 1, socket, ...told, id })

  it.effect("is read where it is this socket's, and left alone where it is another's", () =>
    Effect.gen(function* () {
      const states = yield* States
      const { files } = yield* MemoryState
      const { records, snapshot } = yield* states.open
      assert.deepStrictEqual(
        records.map(({ file, record: { id } }) => [file, id]),
        [
          ["a.state", "a"],
          ["b.state", "b"]
        ]
      )
      assert.isUndefined(snapshot)
      assert.strictEqual(files.size, 3)
    }).pipe(
      Effect.provide(
        services(
          new Map([
            ["a.state", record("unix:///run/test.sock", "a")],
            ["b.state", record("unix:///run/test.sock", "b")],
            ["c.state", record(other, "c")]
          ])
        )
      )
    )
  )

  it.effect("is set aside where it cannot be read, which stops nothing and tells nothing of it", () => {
    const { layer, records: log } = Records.make()
    return Effect.gen(function* () {
      const states = yield* States
      const { files } = yield* MemoryState
      const { records } = yield* states.open
      assert.deepStrictEqual(
        records.map(({ record: { id } }) => id),
        ["d"]
      )
      assert.sameMembers(
        [...files.keys()],
        ["a.state.unreadable", "b.state.unreadable", "c.state.unreadable", "d.state", "stop.carried.unreadable"]
      )
      const errors = log.filter(({ level }) => level === "Error")
      assert.deepStrictEqual(
        errors.map(({ fields: { file, reason } }) => [file, reason]),
        [
          ["a.state", "its version is 9, this daemon reads up to 1"],
          ["b.state", "it is not JSON"],
          ["c.state", "it does not fit its schema"],
          ["stop.carried", "it is cut off"]
        ]
      )
      assert.notInclude(JSON.stringify(log), "s3cret")
    }).pipe(
      Effect.provide(
        Layer.provideMerge(
          services(
            new Map([
              ["a.state", utf8('{"version":9,"token":"s3cret"}')],
              ["b.state", utf8('{"token":"s3cret"')],
              ["c.state", utf8('{"version":1,"id":"s3cret"}')],
              ["d.state", record("unix:///run/test.sock", "d")],
              ["stop.carried", utf8("\0\0\u0010\0{s3cret")]
            ])
          ),
          layer
        )
      )
    )
  })

  it.effect("at its stop is true once", () =>
    Effect.gen(function* () {
      const states = yield* States
      const { files } = yield* MemoryState
      assert.isTrue(states.stop([snapshotOf(closedDoor.url)]))
      assert.strictEqual(files.size, 1)
      assert.strictEqual((yield* states.open).snapshot?.snapshot.count, 7)
      assert.strictEqual(files.size, 0)
      assert.isUndefined((yield* states.open).snapshot)
    }).pipe(Effect.provide(services()))
  )

  it.effect("at its stop stays where it is another socket's, and may be taken back", () =>
    Effect.gen(function* () {
      const states = yield* States
      const memory = yield* MemoryState
      states.stop([snapshotOf(other)])
      assert.isUndefined((yield* states.open).snapshot)
      assert.strictEqual(memory.files.size, 1)
      states.discard()
      assert.strictEqual(memory.files.size, 0)
      memory.break("write", "no space left")
      assert.isFalse(states.stop([snapshotOf(other)]))
    }).pipe(Effect.provide(services()))
  )
})
