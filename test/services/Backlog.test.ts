import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/testing/TestClock"
import * as Frame from "../../src/domain/Frame.ts"
import { Backlog, type Carried, type Keeping } from "../../src/services/Backlog.ts"
import { Condition } from "../../src/services/Condition.ts"
import * as Counters from "../../src/services/Counters.ts"
import { Deadlines } from "../../src/services/Deadlines.ts"
import { defaults, Settings } from "../../src/services/Settings.ts"
import { Spool } from "../../src/services/Spool.ts"
import { concat, pattern } from "../support/Bytes.ts"
import { MemorySpool } from "../support/MemorySpool.ts"
import * as Records from "../support/Records.ts"

const kibibyte = 1024

/** Runs a test over a spool in memory, with counters and a log of its own. */
const spooled =
  (settings: Partial<Settings> = {}, log = Records.make()) =>
  <A, E>(test: Effect.Effect<A, E, MemorySpool | Spool>) =>
    test.pipe(
      Effect.provide(Spool.layer.pipe(Layer.provideMerge(MemorySpool.layer), Layer.provide(Deadlines.layer))),
      Effect.provideService(Settings, { ...defaults, ...settings }),
      Effect.provideService(Metric.MetricRegistry, new Map()),
      Effect.provide(log.layer)
    )

/** One more stdout frame in all, with `size` bytes of payload. */
const frame = (size: number, seed: number): Uint8Array =>
  Frame.encode({
    type: Frame.FrameType.stream,
    opcode: Frame.StreamKind.stdout,
    inError: false,
    payload: pattern(size, seed)
  })

/** Bytes without frames: all of them are whole. */
const anywhere: Keeping["whole"] = ({ length }) => length

/**
 * A backlog beside a plain queue of what it should hold. `takes`: its holder takes all that is ready as soon as it hears
 * of it.
 */
const make = Effect.fnUntraced(function* (
  memory: number,
  { takes = false, whole = anywhere }: { readonly takes?: boolean; readonly whole?: Keeping["whole"] } = {}
) {
  const spool = yield* Spool
  const disk = yield* MemorySpool
  const changed = new Condition()
  const queue: Array<Uint8Array> = []
  let waiting = 0
  let pushed = 0
  let moves = 0
  let cuts = 0
  let onKept = () => {}
  const backlog = new Backlog(
    { memory, whole, spool },
    {
      moved: () => {
        moves++
        if (takes) take()
        changed.notify()
      },
      cut: () => void cuts++,
      kept: () => onKept(),
      fields: () => ({ vm: "pod" })
    }
  )

  /** What should come next. */
  const next = (size: number): Uint8Array => {
    const parts: Array<Uint8Array> = []
    for (let left = size; left > 0;) {
      const chunk = queue.shift()
      if (chunk === undefined) assert.fail(`${left} bytes more than there should be`)
      parts.push(chunk.subarray(0, left))
      if (chunk.length > left) queue.unshift(chunk.subarray(left))
      left -= parts.at(-1)!.length
    }
    waiting -= size
    return concat(parts)
  }
  const check = (bytes: Uint8Array) => {
    assert.isTrue(Buffer.from(bytes).equals(next(bytes.length)), "other bytes than were pushed")
    return bytes.length
  }
  const push = (...chunks: ReadonlyArray<Uint8Array>) => {
    for (const chunk of chunks) {
      queue.push(chunk.slice())
      waiting += chunk.length
      backlog.push(chunk)
    }
    backlog.settle()
  }
  /** Reads `length` bytes, which have to be those that come next. */
  const read = (length: number) => {
    const out = new Uint8Array(length + 2)
    backlog.read(out, 1, length)
    check(out.subarray(1, length + 1))
    backlog.settle()
    return length
  }
  /** Takes, or reads, what has to come next: whole chunks, where there are frames in it. */
  const take = (most = Number.POSITIVE_INFINITY) => {
    if (whole === anywhere) return read(Math.min(most, backlog.ready))
    const chunks = backlog.take(most)
    for (const chunk of chunks) assert.strictEqual(whole(chunk), chunk.length, "a torn frame")
    const size = check(concat(chunks))
    backlog.settle()
    return size
  }
  const until = (test: () => boolean) => Effect.andThen(changed.until(test), Effect.yieldNow)
  return {
    backlog,
    disk,
    spool,
    moves: () => moves,
    cuts: () => cuts,
    waiting: () => waiting,
    /** All that should come, oldest first. */
    expected: () => concat(queue),
    /** Calls `then` whenever the files have changed. */
    whenKept: (then: () => void) => void (onKept = then),
    chunk: (size: number) => (whole === anywhere ? pattern(size, ++pushed) : frame(size, ++pushed)),
    push,
    take,
    read,
    until,
    /** Takes all there is, as it comes back, and finds nothing left behind. */
    drain: Effect.gen(function* () {
      while (backlog.size > 0) {
        yield* until(() => backlog.ready > 0 || backlog.size === 0)
        take()
      }
      assert.strictEqual(waiting, 0, "bytes are missing")
    })
  }
})

/** Nothing is left: no file, nothing reserved. */
const nothingLeft = Effect.gen(function* () {
  const { available } = yield* Spool
  const { files } = yield* MemorySpool
  const { spoolTotal } = yield* Settings
  yield* Effect.yieldNow
  assert.deepStrictEqual([...files.keys()], [])
  assert.strictEqual(available(), spoolTotal)
})

describe("what waits", () => {
  it.effect("stays in memory up to the bound, and costs the disk nothing", () =>
    Effect.gen(function* () {
      const { backlog, chunk, disk, moves, push, take } = yield* make(1000)
      push(chunk(400), chunk(600))
      assert.strictEqual(backlog.size, 1000)
      assert.strictEqual(backlog.ready, 1000)
      assert.isFalse(backlog.coming)
      assert.isFalse(backlog.full())
      assert.isTrue(backlog.roomy())
      assert.strictEqual(take(), 1000)
      push(chunk(1000))
      assert.strictEqual(take(), 1000)
      assert.strictEqual(disk.written(), 0)
      assert.strictEqual(moves(), 0)
    }).pipe(spooled())
  )

  it.effect("goes to a file above the bound, and comes back behind what is in memory", () =>
    Effect.gen(function* () {
      const { backlog, chunk, disk, drain, push, take } = yield* make(1000)
      push(chunk(1001))
      for (let n = 0; n < 20; n++) push(chunk(300))
      assert.strictEqual(backlog.size, 7001)
      assert.strictEqual(backlog.ready, 1001)
      assert.strictEqual(disk.size(), 6000)
      assert.strictEqual(take(), 1001)
      assert.isAbove(backlog.ready, 0)
      yield* drain
      assert.strictEqual(disk.written(), 6000)
      yield* nothingLeft
    }).pipe(spooled())
  )

  it.effect("costs the disk nothing any more once all has come back", () =>
    Effect.gen(function* () {
      const { backlog, chunk, disk, drain, push, take } = yield* make(1000)
      for (let round = 1; round <= 3; round++) {
        push(chunk(1100))
        push(chunk(700))
        yield* drain
        assert.strictEqual(disk.written(), 700 * round)
        push(chunk(900))
        assert.strictEqual(backlog.ready, 900)
        assert.strictEqual(take(), 900)
        assert.strictEqual(disk.written(), 700 * round)
        yield* nothingLeft
      }
    }).pipe(spooled())
  )

  it.effect("comes back a piece at a time, as it is taken", () =>
    Effect.gen(function* () {
      const { backlog, chunk, drain, push, read } = yield* make(8000)
      push(chunk(8001))
      for (let n = 0; n < 40; n++) push(chunk(1000))
      read(5000) // above a quarter of the memory: nothing has to come yet
      assert.strictEqual(backlog.ready, 3001)
      read(1001)
      assert.strictEqual(backlog.ready, 3000) // an eighth more
      for (let left = backlog.size; left > 2000; left = backlog.size) {
        read(100)
        assert.isAtLeast(backlog.ready, 2000)
        assert.isAtMost(backlog.ready, 3000)
      }
      read(backlog.ready)
      yield* drain
    }).pipe(spooled())
  )

  it.effect("comes back while more goes out, and in its order", () =>
    Effect.gen(function* () {
      const { backlog, chunk, disk, drain, push, take } = yield* make(1000)
      push(chunk(1001))
      for (let n = 0; n < 200; n++) {
        push(chunk(300))
        push(chunk(1))
        if (n % 3 === 2) take(500)
      }
      assert.isAbove(disk.written(), 50_000)
      assert.isAbove(backlog.size, 0)
      yield* drain
      yield* nothingLeft
    }).pipe(spooled())
  )

  it.effect("is taken inside the call that tells of it, by a holder that does so", () =>
    Effect.gen(function* () {
      const { backlog, chunk, disk, push, take, until, waiting } = yield* make(1000, { takes: true })
      disk.hold()
      push(chunk(1001))
      for (let n = 0; n < 30; n++) push(chunk(100))
      disk.release()
      take()
      yield* until(() => backlog.size === 0)
      assert.strictEqual(waiting(), 0)
      yield* nothingLeft
    }).pipe(spooled())
  )

  it.effect("has what was put back in front of it, whatever is on disk", () =>
    Effect.gen(function* () {
      const { backlog, chunk, disk, drain, push } = yield* make(8000)
      push(chunk(2000), chunk(2000), chunk(2000), chunk(2001))
      for (let n = 0; n < 20; n++) push(chunk(1000))
      const taken = backlog.take(7000)
      assert.strictEqual(taken.length, 3)
      disk.hold()
      backlog.settle() // more is on its way
      backlog.unshift(taken)
      assert.strictEqual(backlog.size, 28_001)
      disk.release()
      yield* drain
      yield* nothingLeft
    }).pipe(spooled())
  )

  it.effect("tells of what comes back by itself", () =>
    Effect.gen(function* () {
      const { backlog, chunk, disk, drain, moves, push, take, until } = yield* make(1000)
      push(chunk(1001))
      push(chunk(500))
      assert.isFalse(backlog.coming) // nothing comes before there is room
      disk.hold()
      take()
      assert.isTrue(backlog.coming)
      assert.strictEqual(backlog.ready, 0)
      const before = moves()
      disk.release()
      yield* until(() => backlog.ready > 0)
      assert.isAbove(moves(), before)
      assert.isFalse(backlog.coming) // what has come has to be taken first
      assert.isAbove(backlog.size, backlog.ready)
      yield* drain
      assert.isFalse(backlog.coming)
    }).pipe(spooled())
  )
})

describe("frames", () => {
  it.effect("come back whole, however many fit into a read", () =>
    Effect.gen(function* () {
      const { chunk, disk, drain, push } = yield* make(1000, { whole: Frame.wholeEnd })
      push(chunk(1001))
      for (let n = 0; n < 50; n++) push(chunk((n * 37) % 120), chunk(1))
      assert.isAbove(disk.size(), 3000)
      yield* drain
      yield* nothingLeft
    }).pipe(spooled())
  )

  it.effect("that are larger than a read, and larger than the memory, come back whole", () =>
    Effect.gen(function* () {
      const { chunk, drain, push } = yield* make(1000, { whole: Frame.wholeEnd })
      push(chunk(1001))
      for (const size of [126, 10, 500, 9000, 3, 70_000, 0, 1]) push(chunk(size))
      yield* drain
      yield* nothingLeft
    }).pipe(spooled())
  )

  it.effect("come back by small reads again after a large one", () =>
    Effect.gen(function* () {
      const { backlog, chunk, drain, push, take } = yield* make(1000, { whole: Frame.wholeEnd })
      push(chunk(1001))
      push(chunk(5000))
      for (let n = 0; n < 1000; n++) push(chunk(10))
      while (backlog.size > 12_000) take(1)
      assert.isAtMost(backlog.ready, 500)
      yield* drain
    }).pipe(spooled())
  )
})

describe("files", () => {
  it.effect("have a size of their own, and each is removed once it has been read", () =>
    Effect.gen(function* () {
      const { backlog, chunk, disk, push, spool, take } = yield* make(1000)
      push(chunk(1001))
      for (let n = 0; n < 100; n++) push(chunk(500))
      // a sixteenth of the limit
      assert.deepStrictEqual(
        [...disk.files.values()].map(({ length }) => length),
        Array.from({ length: 10 }, () => 5000)
      )
      for (let left = 10; left > 0; left--) {
        assert.strictEqual(spool.available(), defaults.spoolTotal - 5000 * left)
        while (disk.files.size === left && backlog.size > 0) take()
      }
      yield* nothingLeft
    }).pipe(spooled({ spoolLimit: 80_000 }))
  )

  it.effect("of several backlogs are their own", () =>
    Effect.gen(function* () {
      const backlogs = [yield* make(1000), yield* make(1000), yield* make(1000)]
      for (const { chunk, push } of backlogs) push(chunk(1001))
      for (let n = 0; n < 20; n++) for (const { chunk, push } of backlogs) push(chunk(100))
      assert.strictEqual(backlogs[0]?.disk.files.size, 3)
      for (const { drain } of backlogs) yield* drain
      yield* nothingLeft
    }).pipe(spooled())
  )
})

describe("a source", () => {
  it.effect("has to pause only where the disk is slower, and goes on once it has caught up", () =>
    Effect.gen(function* () {
      const { backlog, chunk, disk, drain, moves, push, until } = yield* make(1000)
      disk.hold()
      push(chunk(1001))
      push(chunk(400)) // on its way to the disk
      push(chunk(500))
      assert.isFalse(backlog.full())
      push(chunk(1))
      assert.isTrue(backlog.full())
      assert.isFalse(backlog.roomy())
      assert.isFalse(backlog.stuck())
      const before = moves()
      disk.release()
      yield* until(() => backlog.roomy())
      assert.isAbove(moves(), before)
      assert.isFalse(backlog.full())
      assert.strictEqual(yield* Counters.limitedSoFar("spool"), 0)
      yield* drain
    }).pipe(spooled())
  )

  it.effect("may go on once the reader has caught up, though nothing can be written", () =>
    Effect.gen(function* () {
      const { backlog, chunk, disk, drain, push, take } = yield* make(1000)
      disk.break("write", { passing: false })
      push(chunk(1001))
      push(chunk(600))
      assert.isTrue(backlog.full())
      assert.isTrue(backlog.stuck())
      assert.strictEqual(take(), 1001) // without waiting for another try
      assert.isFalse(backlog.full())
      assert.isTrue(backlog.roomy())
      assert.isFalse(backlog.stuck())
      assert.strictEqual(backlog.ready, 600)
      yield* drain
      assert.strictEqual(disk.written(), 0)
      yield* nothingLeft
    }).pipe(spooled())
  )
})

describe("the limit", () => {
  it.effect("is never exceeded; above it the source pauses, and goes on as files have been read", () => {
    const log = Records.make()
    return Effect.gen(function* () {
      const { backlog, chunk, disk, drain, push, take } = yield* make(1000)
      push(chunk(1001))
      let pushed = 0
      for (; !backlog.full(); pushed++) push(chunk(100))
      assert.isAtMost(disk.size(), 10_000)
      assert.isAbove(disk.size(), 9500)
      assert.isTrue(backlog.stuck())
      assert.isFalse(backlog.roomy())
      take(900) // brings nothing back yet
      assert.isTrue(backlog.full())
      for (let n = 0; n < 500; n++) {
        take(100)
        assert.isAtMost(disk.size(), 10_000)
        assert.isAbove(disk.size(), 8500)
        while (backlog.roomy()) push(chunk(100))
      }
      yield* drain
      assert.isFalse(backlog.stuck())
      yield* nothingLeft
      const full = log.records.filter(({ msg }) => msg === "the spool is full")
      assert.strictEqual(full.length, 1) // however often there was room for a moment
      assert.deepStrictEqual(full[0]!.annotations, { vm: "pod" })
      assert.isAbove(yield* Counters.limitedSoFar("spool"), 1)
    }).pipe(spooled({ spoolLimit: 10_000 }, log))
  })

  it.effect("is counted and logged once, however long it lasts", () => {
    const log = Records.make()
    return Effect.gen(function* () {
      const { backlog, chunk, disk, drain, moves, push } = yield* make(1000)
      push(chunk(1001))
      while (!backlog.stuck()) push(chunk(100))
      const before = moves()
      for (let n = 0; n < 10; n++) {
        push(chunk(100))
        yield* TestClock.adjust("1 minutes")
      }
      assert.strictEqual(moves(), before)
      assert.deepStrictEqual(
        log.records.map(({ fields, level, msg }) => [level, msg, fields]),
        [["Info", "the spool is full", { bytes: disk.size() }]]
      )
      assert.strictEqual(yield* Counters.limitedSoFar("spool"), 1)
      yield* drain
    }).pipe(spooled({ spoolLimit: 3000 }, log))
  })

  it.effect("is used as far as whole chunks fit", () =>
    Effect.gen(function* () {
      const { backlog, chunk, disk, drain, push } = yield* make(8000)
      disk.hold()
      push(chunk(8001))
      push(chunk(2001)) // on its way to the disk
      push(chunk(1500), chunk(1500), chunk(1500), chunk(1500))
      disk.release()
      yield* Effect.yieldNow
      assert.isTrue(backlog.stuck())
      assert.strictEqual(disk.size(), 5001)
      yield* drain
      yield* nothingLeft
    }).pipe(spooled({ spoolLimit: 6000 }))
  )

  it.effect("of nothing keeps everything in memory, with the same bound", () =>
    Effect.gen(function* () {
      const { backlog, chunk, disk, drain, moves, push, take } = yield* make(1000)
      push(chunk(1001))
      assert.isFalse(backlog.full())
      for (let n = 0; n < 6; n++) push(chunk(100))
      assert.isTrue(backlog.full())
      assert.isTrue(backlog.stuck())
      const before = moves()
      take()
      assert.isAbove(moves(), before)
      assert.isFalse(backlog.full())
      yield* drain
      assert.strictEqual(disk.written(), 0)
      yield* nothingLeft
    }).pipe(spooled({ spoolLimit: 0 }))
  )

  it.effect("below one chunk keeps that chunk in memory", () =>
    Effect.gen(function* () {
      const { backlog, chunk, disk, drain, moves, push } = yield* make(1000)
      push(chunk(1001))
      push(chunk(300))
      assert.strictEqual(moves(), 1) // of which the holder hears
      push(chunk(201))
      assert.isTrue(backlog.stuck())
      assert.isTrue(backlog.full())
      assert.strictEqual(disk.written(), 0)
      yield* drain
      yield* nothingLeft
    }).pipe(spooled({ spoolLimit: 299 }))
  )
})

describe("the total", () => {
  it.effect("is shared; who finds it full goes on once another has been read", () =>
    Effect.gen(function* () {
      const first = yield* make(1000)
      const second = yield* make(1000)
      first.push(first.chunk(1001))
      while (!first.backlog.stuck()) first.push(first.chunk(100))
      second.push(second.chunk(1001))
      second.push(second.chunk(600))
      assert.isTrue(second.backlog.full())
      assert.isTrue(second.backlog.stuck())
      assert.isAtMost(first.disk.size(), 3000)
      yield* first.drain
      yield* second.until(() => second.backlog.roomy())
      assert.isFalse(second.backlog.stuck())
      assert.strictEqual(first.disk.size(), 600)
      yield* second.drain
      yield* nothingLeft
    }).pipe(spooled({ spoolTotal: 3000 }))
  )

  it.effect("is used as far as whole chunks fit", () =>
    Effect.gen(function* () {
      const { backlog, chunk, disk, drain, push, spool } = yield* make(8000)
      spool.reserve(44_000)
      disk.hold()
      push(chunk(8001))
      push(chunk(2001)) // on its way to the disk
      push(chunk(1500), chunk(1500), chunk(1500), chunk(1500))
      disk.release()
      yield* Effect.yieldNow
      assert.isTrue(backlog.stuck())
      assert.strictEqual(disk.size(), 5001)
      spool.release(44_000)
      yield* Effect.yieldNow
      assert.strictEqual(disk.size(), 8001)
      yield* drain
      yield* nothingLeft
    }).pipe(spooled({ spoolTotal: 50_000 }))
  )

  it.effect("is given back by a backlog that is cleared, to all who wait, as far as it goes", () =>
    Effect.gen(function* () {
      const first = yield* make(1000)
      first.push(first.chunk(1001))
      while (!first.backlog.stuck()) first.push(first.chunk(100))
      const waiting = [yield* make(1000), yield* make(1000), yield* make(1000)]
      for (const { backlog, chunk, push } of waiting) {
        push(chunk(1001))
        push(chunk(500), chunk(500), chunk(500))
        assert.isTrue(backlog.stuck())
      }
      first.backlog.clear()
      yield* Effect.yieldNow
      assert.isAtMost(first.disk.size(), 3000)
      assert.strictEqual(first.disk.size(), 3000)
      assert.isTrue(waiting.every(({ backlog }) => backlog.size === 2501))
      for (const { drain } of waiting) yield* drain
      yield* nothingLeft
    }).pipe(spooled({ spoolTotal: 3000 }))
  )
})

describe("a write that fails", () => {
  for (const passing of [true, false])
    it.effect(`is tried again every second, and nothing is lost: ${passing ? "passing" : "lasting"}`, () => {
      const log = Records.make()
      return Effect.gen(function* () {
        const { backlog, chunk, disk, drain, push, until } = yield* make(1000)
        push(chunk(1001))
        push(chunk(300))
        disk.break("write", { passing })
        push(chunk(501))
        assert.isTrue(backlog.stuck())
        assert.isTrue(backlog.full())
        yield* TestClock.adjust("10 seconds")
        assert.isTrue(backlog.stuck())
        assert.deepStrictEqual(
          log.records.map(({ annotations, fields, level, msg }) => [level, msg, fields, annotations]),
          [["Warn", "the spool cannot be written", { error: "write is broken" }, { vm: "pod" }]]
        )
        assert.strictEqual(yield* Counters.limitedSoFar("spool"), 1)
        disk.break("write", undefined)
        yield* TestClock.adjust("999 millis")
        assert.isTrue(backlog.full())
        yield* TestClock.adjust("1 millis")
        yield* until(() => backlog.roomy())
        assert.isFalse(backlog.stuck())
        assert.strictEqual(backlog.size, 1802)
        assert.strictEqual(disk.files.size, 2) // the first may be gone
        yield* drain
        yield* nothingLeft
      }).pipe(spooled({}, log))
    })

  it.effect("takes nothing of the limit, nor of the total", () =>
    Effect.gen(function* () {
      const { chunk, disk, drain, push, spool } = yield* make(1000)
      disk.break("write", { passing: true })
      push(chunk(1001))
      push(chunk(400))
      yield* TestClock.adjust("1 minutes")
      assert.strictEqual(spool.available(), 450)
      disk.break("write", undefined)
      yield* TestClock.adjust("1 seconds")
      assert.strictEqual(disk.size(), 400)
      assert.strictEqual(spool.available(), 50)
      yield* drain
      assert.strictEqual(spool.available(), 450)
    }).pipe(spooled({ spoolLimit: 450, spoolTotal: 450 }))
  )

  it.effect("is logged once more where it fails again after it went well", () => {
    const log = Records.make()
    return Effect.gen(function* () {
      const { chunk, disk, drain, push } = yield* make(1000)
      push(chunk(1001))
      for (let n = 0; n < 3; n++) {
        disk.break("write", { passing: true })
        push(chunk(300))
        yield* TestClock.adjust("5 seconds")
        disk.break("write", undefined)
        yield* TestClock.adjust("1 seconds")
      }
      assert.strictEqual(log.records.length, 3)
      assert.strictEqual(yield* Counters.limitedSoFar("spool"), 3)
      yield* drain
      yield* nothingLeft
    }).pipe(spooled({}, log))
  })

  it.effect("leaves no empty file behind that would be read later", () => {
    const log = Records.make()
    return Effect.gen(function* () {
      const { chunk, disk, drain, push } = yield* make(1000)
      disk.break("write", { passing: true })
      push(chunk(1001))
      push(chunk(700)) // more than a file has: a sixteenth of the limit, half of the memory
      yield* TestClock.adjust("10 seconds")
      disk.break("write", undefined)
      yield* TestClock.adjust("1 seconds")
      assert.strictEqual(disk.size(), 700)
      yield* drain
      assert.deepStrictEqual(
        log.records.map(({ msg }) => msg),
        ["the spool cannot be written"]
      )
      yield* nothingLeft
    }).pipe(spooled({ spoolLimit: 2000 }, log))
  })
})

describe("a read that fails", () => {
  it.effect("for a while is tried again after a second, and nothing is lost", () => {
    const log = Records.make()
    return Effect.gen(function* () {
      const { backlog, chunk, disk, drain, push, take, until, waiting } = yield* make(1000)
      push(chunk(1001))
      for (let n = 0; n < 10; n++) push(chunk(100))
      disk.break("read", { passing: true })
      take()
      assert.strictEqual(backlog.ready, 0)
      assert.strictEqual(backlog.size, 1000)
      yield* TestClock.adjust("10 seconds") // told once
      yield* TestClock.adjust("999 millis")
      disk.break("read", undefined)
      push(chunk(100)) // does not make it come earlier, nor pass it
      assert.strictEqual(backlog.ready, 0)
      yield* TestClock.adjust("1 millis")
      yield* until(() => backlog.ready > 0)
      assert.strictEqual(waiting(), 1100)
      yield* drain
      assert.deepStrictEqual(
        log.records.map(({ annotations, fields, level, msg }) => [level, msg, fields, annotations]),
        [["Warn", "the spool cannot be read", { error: "read is broken" }, { vm: "pod" }]]
      )
      assert.strictEqual(yield* Counters.droppedSoFar("spool lost"), 0)
      yield* nothingLeft
    }).pipe(spooled({}, log))
  })

  it.effect("for good loses one file, counted and logged, and goes on behind it", () => {
    const log = Records.make()
    return Effect.gen(function* () {
      const { backlog, chunk, cuts, disk, push, spool, take } = yield* make(1000)
      push(chunk(1001))
      for (let n = 0; n < 3; n++) push(pattern(500, 100 + n), pattern(500, 200 + n)) // a file each
      assert.strictEqual(disk.files.size, 3)
      const [, second] = [...disk.files.keys()]
      disk.files.delete(second!)
      const got: Array<Uint8Array> = []
      while (backlog.size > 0) {
        got.push(...backlog.take(Number.POSITIVE_INFINITY))
        backlog.settle()
        yield* Effect.yieldNow
      }
      const expected = [0, 2].flatMap((n) => [pattern(500, 100 + n), pattern(500, 200 + n)])
      assert.isTrue(Buffer.from(concat(got).subarray(1001)).equals(concat(expected)))
      assert.deepStrictEqual(
        log.records.map(({ annotations, fields, level, msg }) => [level, msg, fields, annotations]),
        [["Error", "what waited in the spool is lost", { bytes: 1000, error: "no such file" }, { vm: "pod" }]]
      )
      assert.strictEqual(yield* Counters.droppedSoFar("spool lost"), 1000)
      assert.strictEqual(take(), 0)
      assert.strictEqual(cuts(), 0)
      assert.strictEqual(spool.available(), defaults.spoolTotal)
      yield* nothingLeft
    }).pipe(spooled({ spoolLimit: 16_000 }, log))
  })

  it.effect("for good tells its holder, once, where it loses the last of what waited", () =>
    Effect.gen(function* () {
      const { backlog, chunk, cuts, disk, moves, push } = yield* make(1000)
      push(chunk(1001))
      for (let n = 0; n < 18; n++) push(chunk(100)) // two files
      assert.strictEqual(disk.files.size, 2)
      disk.break("read", { passing: false })
      const before = moves()
      backlog.take(Number.POSITIVE_INFINITY)
      backlog.settle()
      yield* Effect.yieldNow
      assert.strictEqual(cuts(), 1)
      assert.isAbove(moves(), before)
      assert.strictEqual(backlog.size, 0)
      assert.strictEqual(yield* Counters.droppedSoFar("spool lost"), 1800)
      yield* nothingLeft
    }).pipe(spooled({ spoolLimit: 16_000 }))
  )

  it.effect("for good does not tell so where more has come behind it", () =>
    Effect.gen(function* () {
      const { backlog, chunk, cuts, disk, push } = yield* make(1000)
      push(chunk(1001))
      push(chunk(100))
      disk.hold()
      push(chunk(200))
      disk.break("read", { passing: false })
      backlog.take(Number.POSITIVE_INFINITY)
      backlog.settle()
      backlog.push(pattern(300, 9))
      backlog.settle()
      disk.release()
      yield* Effect.yieldNow
      assert.strictEqual(cuts(), 0)
      assert.isTrue(Buffer.from(concat(backlog.take(1000))).equals(pattern(300, 9)))
      assert.strictEqual(yield* Counters.droppedSoFar("spool lost"), 300)
      backlog.settle()
      yield* nothingLeft
    }).pipe(spooled())
  )

  it.effect("of a file that somebody has cut gives what is whole, and loses the rest of that file", () => {
    const log = Records.make()
    return Effect.gen(function* () {
      const { backlog, disk, push } = yield* make(1000, { whole: Frame.wholeEnd })
      const frames = Array.from({ length: 12 }, (_, n) => frame(488, n)) // two of them a file
      push(frame(1001, 99))
      for (const chunk of frames) push(chunk)
      const [name, bytes] = [...disk.files][1]!
      disk.files.set(name, bytes.subarray(0, 900))
      const got: Array<Uint8Array> = []
      while (backlog.size > 0) {
        got.push(...backlog.take(Number.POSITIVE_INFINITY))
        backlog.settle()
        yield* Effect.yieldNow
      }
      const expected = frames.filter((_, n) => n !== 3)
      assert.isTrue(Buffer.from(concat(got).subarray(1013)).equals(concat(expected)))
      assert.deepStrictEqual(
        log.records.map(({ fields }) => fields),
        [{ bytes: 500, error: "a file has been cut" }]
      )
      assert.strictEqual(yield* Counters.droppedSoFar("spool lost"), 500)
      yield* nothingLeft
    }).pipe(spooled({ spoolLimit: 16_000 }, log))
  })
})

describe("a backlog that is cleared", () => {
  const spilled = Effect.gen(function* () {
    const made = yield* make(1000)
    const { chunk, push } = made
    push(chunk(1001))
    for (let n = 0; n < 10; n++) push(chunk(100))
    return made
  })
  type Made = Effect.Success<ReturnType<typeof make>>

  /** What it may be doing, and how to let that go on afterwards. */
  const doing: ReadonlyArray<readonly [string, Partial<Settings>, (made: Made) => void]> = [
    ["waits for its reader", {}, () => {}],
    [
      "writes",
      {},
      ({ chunk, disk, push }) => {
        disk.hold()
        push(chunk(100))
        push(chunk(100))
      }
    ],
    [
      "writes in vain",
      {},
      ({ chunk, disk, push }) => {
        disk.hold()
        disk.break("write", { passing: false })
        push(chunk(100))
      }
    ],
    [
      "reads",
      {},
      ({ disk, take }) => {
        disk.hold()
        take()
      }
    ],
    [
      "waits for room",
      { spoolLimit: 1000 },
      ({ chunk, push }) => {
        push(chunk(100))
      }
    ],
    [
      "waits for another try to write",
      {},
      ({ chunk, disk, push }) => {
        disk.break("write", { passing: true })
        push(chunk(100))
      }
    ],
    [
      "waits for another try to read",
      {},
      ({ disk, take }) => {
        disk.break("read", { passing: true })
        take()
      }
    ]
  ]

  for (const [what, settings, prepare] of doing)
    it.effect(`while it ${what} leaves nothing behind, and nobody hears more of it`, () => {
      const log = Records.make()
      return Effect.gen(function* () {
        const made = yield* spilled
        const { backlog, disk, moves } = made
        prepare(made)
        const before = moves()
        const records = log.records.length
        backlog.clear()
        assert.strictEqual(backlog.size, 0)
        assert.strictEqual(backlog.ready, 0)
        assert.isTrue(backlog.roomy())
        assert.isFalse(backlog.full())
        disk.release()
        disk.break("read", undefined)
        disk.break("write", undefined)
        yield* nothingLeft
        yield* TestClock.adjust("1 minutes")
        assert.strictEqual(moves(), before)
        assert.strictEqual(log.records.length, records)
        assert.strictEqual(backlog.size, 0)
        yield* nothingLeft
      }).pipe(spooled(settings, log))
    })

  it.effect("keeps what comes after it apart from what is still on its way", () =>
    Effect.gen(function* () {
      const { backlog, disk } = yield* spilled
      disk.hold()
      backlog.push(pattern(100, 7)) // being written
      backlog.settle()
      backlog.clear()
      const rest = [pattern(1001, 1), pattern(400, 2), pattern(400, 3)]
      for (const chunk of rest) {
        backlog.push(chunk.slice())
        backlog.settle()
      }
      disk.release()
      yield* Effect.yieldNow
      assert.strictEqual(backlog.size, 1801)
      const got: Array<Uint8Array> = []
      while (backlog.size > 0) {
        got.push(...backlog.take(Number.POSITIVE_INFINITY))
        backlog.settle()
        yield* Effect.yieldNow
      }
      assert.isTrue(Buffer.from(concat(got)).equals(concat(rest)))
      yield* nothingLeft
    }).pipe(spooled())
  )

  it.effect("may be cleared again, and by whoever hears of it", () =>
    Effect.gen(function* () {
      const spool = yield* Spool
      const disk = yield* MemorySpool
      const backlog: Backlog = new Backlog(
        { memory: 1000, whole: anywhere, spool },
        {
          moved: () => backlog.clear(),
          cut: () => assert.fail("nothing is lost"),
          kept: () => {},
          fields: () => ({})
        }
      )
      backlog.push(pattern(1001))
      backlog.settle()
      backlog.push(pattern(500))
      backlog.settle() // written, which it hears of
      assert.strictEqual(backlog.size, 0)
      assert.isAbove(disk.written(), 0)
      backlog.clear()
      yield* nothingLeft
    }).pipe(spooled())
  )

  it.effect("leaves nothing on disk when the daemon stops in the middle of it", () =>
    Effect.gen(function* () {
      const made = yield* spilled
      yield* Effect.addFinalizer(() => Effect.sync(() => made.backlog.clear()))
      made.disk.hold()
      made.push(made.chunk(100))
    }).pipe(Effect.scoped, spooled())
  )
})

const size = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 900 }))

/** What may happen to a backlog, and to the spool beside it. */
const Step = Schema.Struct({
  do: Schema.Literals([
    ...(["push", "push", "push", "take", "take", "push two", "put back", "pass time"] as const),
    ...(["hold", "release", "break writes", "break reads", "mend", "others come", "others leave"] as const)
  ]),
  size
})
const Steps = Schema.Array(Step).check(Schema.isMinLength(10), Schema.isMaxLength(80))

const limit = 6 * kibibyte
const total = 8 * kibibyte
const memory = kibibyte

/** Takes the steps, as a source that pauses when it should; then mends everything and takes the rest. */
const follow = (steps: typeof Steps.Type, whole: Keeping["whole"]) =>
  Effect.gen(function* () {
    const made = yield* make(memory, { whole })
    const { backlog, chunk, disk, drain, push, spool, take, waiting } = made
    let others = 0
    let paused = false
    let well = true
    for (const { do: step, size } of steps) {
      if (backlog.roomy()) paused = false
      switch (step) {
        case "push":
          if (!paused) push(chunk(size))
          break
        case "push two":
          if (!paused) push(chunk(size), chunk(1))
          break
        case "take":
          take(size * 2)
          break
        case "put back":
          if (whole !== anywhere) {
            const taken = backlog.take(size)
            backlog.settle()
            backlog.unshift(taken)
          }
          break
        case "pass time":
          yield* TestClock.adjust(size)
          break
        case "hold":
          disk.hold()
          well = false
          break
        case "break writes":
          disk.break("write", { passing: size % 2 === 0 })
          well = false
          break
        case "break reads":
          disk.break("read", { passing: true })
          well = false
          break
        case "release":
        case "mend":
          disk.break("write", undefined)
          disk.break("read", undefined)
          disk.release()
          yield* TestClock.adjust("1 seconds")
          well = true
          break
        case "others come":
          if (spool.available() >= size) {
            others += size
            spool.reserve(size)
          }
          break
        case "others leave":
          spool.release(others)
          others = 0
          break
      }
      yield* Effect.yieldNow
      if (backlog.full()) paused = true
      assert.strictEqual(backlog.size, waiting())
      assert.isAtMost(disk.size(), limit)
      assert.isAtLeast(spool.available(), 0)
      assert.isAtLeast(total - spool.available() - others, disk.size())
      // the memory, and the largest that may be pushed at once
      assert.isAtMost(backlog.ready, memory * 1.5 + 1000)
      // half of it waits to be written, and half is being written
      assert.isAtMost(backlog.size - backlog.ready, disk.size() + memory + 2 * 1000)
      if (well && backlog.size > 0) assert.isAbove(backlog.ready, 0, "nothing comes")
    }
    disk.break("write", undefined)
    disk.break("read", undefined)
    disk.release()
    spool.release(others)
    yield* TestClock.adjust("1 seconds")
    yield* drain
    assert.isTrue(backlog.roomy())
    assert.isFalse(backlog.stuck())
    assert.strictEqual(yield* Counters.droppedSoFar("spool lost"), 0)
    yield* Effect.yieldNow
    assert.strictEqual(disk.files.size, 0)
    assert.strictEqual(spool.available(), total)
  }).pipe(spooled({ spoolLimit: limit, spoolTotal: total }))

describe("whatever happens to the disk and however the bytes come", () => {
  it.effect.prop("they are read in their order, in bounded memory, and nothing is left", [Steps], ([steps]) =>
    follow(steps, anywhere)
  )

  it.effect.prop("frames are taken in their order, whole, in bounded memory, and nothing is left", [Steps], ([steps]) =>
    follow(steps, Frame.wholeEnd)
  )
})

/** The next daemon's backlog, over the same files; all that it gives out. */
const goOn = Effect.fnUntraced(function* (
  carried: Carried,
  { memory = 1000, whole = anywhere }: { readonly memory?: number; readonly whole?: Keeping["whole"] } = {}
) {
  const spool = yield* Spool
  const changed = new Condition()
  const backlog = new Backlog(
    { memory, whole, spool },
    { moved: () => changed.notify(), cut: () => assert.fail("nothing is lost"), kept: () => {}, fields: () => ({}) }
  )
  backlog.resume(carried)
  backlog.settle()
  const size = backlog.size
  const parts: Array<Uint8Array> = []
  const all = Effect.gen(function* () {
    while (backlog.size > 0) {
      yield* changed.until(() => backlog.ready > 0 || backlog.size === 0)
      for (const chunk of backlog.take(500)) {
        if (whole !== anywhere) assert.strictEqual(whole(chunk), chunk.length, "a torn frame")
        parts.push(chunk)
      }
      backlog.settle()
    }
    return concat(parts)
  })
  return { all, backlog, parts, size }
})

const carriedFrom = (backlog: Backlog): Carried => {
  const { head, tail } = backlog.carry()
  return { head: concat(head), segments: backlog.segments(), tail: concat(tail) }
}

const equal = (actual: Uint8Array, expected: Uint8Array): void => {
  assert.strictEqual(actual.length, expected.length)
  assert.isTrue(Buffer.from(actual).equals(expected), "other bytes")
}

describe("what the next daemon goes on with", () => {
  it.effect("is all that waits, in its order: in memory, in files, and on its way to one", () =>
    Effect.gen(function* () {
      const { backlog, chunk, expected, push, take } = yield* make(1000)
      for (let n = 0; n < 30; n++) {
        push(chunk(170 + n))
        const carried = carriedFrom(backlog)
        assert.deepStrictEqual(carriedFrom(backlog), carried, "asking changes nothing")
      }
      take(900) // some comes back: a file has been read in part
      yield* Effect.yieldNow
      push(chunk(100)) // too little to be written
      assert.isTrue(backlog.segments().some(({ read }) => read > 0))
      assert.isAbove(backlog.carry().tail.length, 0)
      const next = yield* goOn(carriedFrom(backlog))
      assert.strictEqual(next.size, backlog.size)
      equal(yield* next.all, expected())
    }).pipe(spooled())
  )

  it.effect("has what is just being written, and what is just being read", () =>
    Effect.gen(function* () {
      for (const under of ["write", "read"]) {
        const { backlog, chunk, disk, expected, push, take } = yield* make(1000)
        push(chunk(1001))
        if (under === "read") push(chunk(2000), chunk(300))
        disk.hold()
        if (under === "read") take(900)
        else push(chunk(2000), chunk(300))
        yield* Effect.yieldNow
        const carried = carriedFrom(backlog)
        const waits = expected()
        const next = yield* goOn(carried)
        assert.strictEqual(next.size, waits.length, under)
        disk.release()
        equal(yield* next.all, waits)
      }
    }).pipe(spooled())
  )

  it.effect("comes in whole frames, none of which is larger than need be", () =>
    Effect.gen(function* () {
      const frames = [10, 70_000, 3, 200_000, 1000, 0, 65_000, 500].map((size, n) => frame(size, n))
      const next = yield* goOn(
        { head: concat(frames), segments: [], tail: new Uint8Array(0) },
        { memory: 1024 * 1024, whole: Frame.wholeEnd }
      )
      equal(yield* next.all, concat(frames))
      for (const part of next.parts) assert.isAtMost(part.length, 65_536 * 4)
      assert.isAbove(next.parts.length, 3)
    }).pipe(spooled())
  )

  it.effect("counts against the spool until it has been read, and no file stays", () =>
    Effect.gen(function* () {
      const { available } = yield* Spool
      const { files } = yield* MemorySpool
      files.set("0-1", pattern(3000))
      const before = available()
      const next = yield* goOn({
        head: new Uint8Array(0),
        segments: [{ name: "0-1", read: 1000, written: 2500 }],
        tail: pattern(10, 5)
      })
      assert.isAtMost(available(), before)
      equal(yield* next.all, concat([pattern(3000).subarray(1000, 2500), pattern(10, 5)]))
      yield* nothingLeft
    }).pipe(spooled())
  )

  it.effect("is known to have been read from a file before it is given out", () =>
    Effect.gen(function* () {
      const { backlog, chunk, push, take, until, waiting, whenKept } = yield* make(1000)
      let recorded: Carried["segments"] = []
      let records = 0
      whenKept(() => {
        records++
        recorded = backlog.segments()
      })
      for (let n = 0; n < 30; n++) push(chunk(300))
      const places = (segments: Carried["segments"]) => segments.map(({ name, read }) => [name, read])
      while (waiting() > 0) {
        yield* until(() => backlog.ready > 0)
        assert.deepStrictEqual(places(recorded), places(backlog.segments()))
        take(400)
      }
      assert.isAbove(records, 10)
    }).pipe(spooled())
  )
})

describe("what is parked", () => {
  it.effect("is all on disk, in its order, and stays there", () =>
    Effect.gen(function* () {
      for (const rounds of [0, 1, 3, 30]) {
        const { backlog, chunk, disk, expected, push, take } = yield* make(1000)
        for (let n = 0; n < rounds; n++) push(chunk(170 + n))
        if (rounds > 3) take(900)
        yield* backlog.park
        const segments = backlog.segments()
        assert.strictEqual(
          segments.reduce((sum, { read, written }) => sum + written - read, 0),
          expected().length
        )
        for (const { name, written } of segments) assert.isAtLeast(disk.files.get(name)!.length, written)
        assert.strictEqual(carriedFrom(backlog).head.length + carriedFrom(backlog).tail.length, 0)
        const next = yield* goOn({ head: new Uint8Array(0), segments, tail: new Uint8Array(0) })
        equal(yield* next.all, expected())
      }
    }).pipe(spooled())
  )

  it.effect("waits for what is just being written", () =>
    Effect.gen(function* () {
      const { backlog, chunk, disk, expected, push } = yield* make(1000)
      push(chunk(1001))
      disk.hold()
      push(chunk(2000), chunk(300))
      yield* Effect.yieldNow
      const parking = yield* Effect.forkChild(backlog.park, { startImmediately: true })
      assert.isUndefined(parking.pollUnsafe())
      disk.release()
      yield* Fiber.join(parking)
      const next = yield* goOn({ head: new Uint8Array(0), segments: backlog.segments(), tail: new Uint8Array(0) })
      equal(yield* next.all, expected())
    }).pipe(spooled())
  )

  it.effect("fails where the disk does, and what was there already is still known", () =>
    Effect.gen(function* () {
      const { backlog, chunk, disk, push } = yield* make(1000)
      push(chunk(1001))
      push(chunk(700))
      assert.isAbove(disk.written(), 0)
      const before = backlog.segments()
      disk.break("write", { passing: true })
      assert.strictEqual((yield* Effect.flip(backlog.park))._tag, "SpoolError")
      assert.deepStrictEqual(backlog.segments(), before)
    }).pipe(spooled())
  )
})
