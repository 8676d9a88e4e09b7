/**
 * One direction of a session: bytes that wait for whoever takes them. The oldest are in memory, up to a bound; what comes
 * while that is full goes to files of the spool, and comes back in its order.
 *
 * ```text
 * take, read ◀─ head (memory) ◀─ segments (files, oldest first) ◀─ tail (memory, on its way to a file) ◀─ push
 * ```
 *
 * Without segments and tail, `push` appends to the head, and nothing but that costs anything.
 */
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import { ByteQueue } from "../domain/ByteQueue.ts"
import type * as DaemonState from "../domain/DaemonState.ts"
import { Condition, until } from "./Condition.ts"
import * as Counters from "./Counters.ts"
import type { Spool, SpoolError } from "./Spool.ts"

/** Whoever pushes and takes. */
export interface Holder {
  /** Bytes have come back to memory, or there is room again. */
  readonly moved: (backlog: Backlog) => void
  /** The last of what waited is lost. */
  readonly cut: (backlog: Backlog) => void
  /** `segments` has changed. What has been read from one is not given out before this returns. */
  readonly kept: (backlog: Backlog) => void
  /** What the log says about whose bytes these are. */
  readonly fields: (backlog: Backlog) => Readonly<Record<string, unknown>>
}

/** How one kind of backlog is kept. */
export interface Keeping {
  /** Bytes of the head above which a file is begun. The tail may have half as many before its source should pause. */
  readonly memory: number
  /** How many of the first bytes of a chunk are whole: what comes back from a file is cut there. */
  readonly whole: (bytes: Uint8Array) => number
  readonly spool: Spool["Service"]
}

/** A file, with how much has been written to it, and read from it. */
interface Segment {
  readonly name: string
  written: number
  read: number
  /** Nothing more goes to it. */
  full: boolean
}

/** A backlog on its way from one daemon to the next. */
export interface Carried {
  readonly head: Uint8Array
  readonly segments: ReadonlyArray<DaemonState.Segment>
  readonly tail: Uint8Array
}

/** Largest file, in bytes. One is removed once it has been read, so what waits takes at most so much more than its size. */
const largestSegment = 16 * 1024 * 1024

/** Millis until a file that could not be written or read is tried again. */
const retryAfter = 1000

/** Bytes of the chunks that what an earlier daemon had is cut into. */
const pieceSize = 64 * 1024

const nothing = new Uint8Array(0)

/** What there is of a backlog beside its head. */
class Spill {
  readonly tail = new ByteQueue()
  readonly segments: Array<Segment> = []
  readonly changed = new Condition()
  /** Bytes in the segments that have not come back. */
  stored = 0
  /** What is being written of the tail, and its bytes. */
  leavingChunks: ReadonlyArray<Uint8Array> = []
  leaving = 0
  /** Bytes of all segments, what has come back included. */
  disk = 0
  /** Bytes to read at once, where the usual number holds no whole chunk. */
  readSize = 0
  /** The spool has not taken the last that was to be written. */
  stuck = false
  /** There was no room once: it will be so again and again, each time that some is made. */
  wasFull = false
  /** The last that was to be read could not be, for now. */
  unread = false
  /** Nothing of it is wanted any more, or by a later daemon. */
  over = false
  /** The files stay. */
  parked = false
  /** Nothing moves any more. */
  still = false
}

export class Backlog {
  readonly #keeping: Keeping
  readonly #holder: Holder
  readonly #head = new ByteQueue()
  #spill: Spill | undefined

  constructor(keeping: Keeping, holder: Holder) {
    this.#keeping = keeping
    this.#holder = holder
  }

  /** Bytes in all. */
  get size(): number {
    const spill = this.#spill
    return spill === undefined ? this.#head.size : this.#head.size + spill.stored + spill.leaving + spill.tail.size
  }

  /** Bytes that may be taken, or read, now. */
  get ready(): number {
    return this.#head.size
  }

  /** Whether more will be ready though nothing is taken. */
  get coming(): boolean {
    return this.size > this.ready && this.#low()
  }

  /** Whether the source should pause: the memory on the way to the spool is full. */
  full(): boolean {
    return this.#spill !== undefined && this.#spill.tail.size > this.#keeping.memory / 2
  }

  /** Whether a source that has paused may go on. */
  roomy(): boolean {
    return this.#spill === undefined || this.#spill.tail.size <= this.#keeping.memory / 4
  }

  /** Whether the spool is full, or cannot be written: not just slower than the source. */
  stuck(): boolean {
    return this.#spill?.stuck === true
  }

  /** Appends a chunk, which is the backlog's from here on. Follow with `settle`. */
  push(chunk: Uint8Array): void {
    if (this.#spill === undefined) this.#head.push(chunk)
    else this.#spill.tail.push(chunk)
  }

  /** Call it after pushing and taking, once a batch and not before it is done: what comes back may call the holder. */
  settle(): void {
    const spill = this.#spill
    if (spill !== undefined) {
      spill.tail.settle()
      spill.changed.notify()
    } else if (this.#head.size > 0) {
      this.#head.settle()
      if (this.#head.size > this.#keeping.memory) this.#begin()
    }
  }

  /** Takes whole chunks of what is ready, up to `most` bytes but one at least. Follow with `settle`. Not to be mixed with `read`. */
  take(most: number): ReadonlyArray<Uint8Array> {
    return this.#head.take(most)
  }

  /** Copies the next `length` bytes, which must be ready, to `out[at..]`. Follow with `settle`. */
  read(out: Uint8Array, at: number, length: number): void {
    this.#head.read(out, at, length)
  }

  /** Puts chunks back that `take` gave out. */
  unshift(chunks: ReadonlyArray<Uint8Array>): void {
    this.#head.unshift(chunks)
  }

  clear(): void {
    this.#head.clear()
    const spill = this.#spill
    if (spill === undefined) return
    this.#spill = undefined
    spill.tail.clear()
    spill.over = true
    spill.changed.notify()
  }

  /** The files, oldest first. */
  segments(): ReadonlyArray<DaemonState.Segment> {
    return (this.#spill?.segments ?? []).map(({ name, read, written }) => ({ name, read, written }))
  }

  /** What there is, for a daemon that takes this one's place. Changes nothing. */
  carry(): { readonly head: ReadonlyArray<Uint8Array>; readonly tail: ReadonlyArray<Uint8Array> } {
    const spill = this.#spill
    const tail = spill === undefined ? [] : [...spill.leavingChunks, ...spill.tail.chunks()]
    return { head: this.#head.chunks(), tail }
  }

  /** Goes on with what an earlier daemon had: of an empty backlog. Follow with `settle`. */
  resume({ head, segments, tail }: Carried): void {
    // in pieces, as whoever takes it takes whole chunks
    for (let at = 0, size = pieceSize; at < head.length;) {
      const rest = head.subarray(at)
      const whole = rest.length <= size ? rest.length : this.#keeping.whole(rest.subarray(0, size))
      size = whole === 0 ? size * 2 : pieceSize
      if (whole > 0) this.#head.push(rest.slice(0, whole))
      at += whole
    }
    if (segments.length === 0 && tail.length === 0) return
    const spill = new Spill()
    for (const { name, read, written } of segments) {
      spill.segments.push({ name, read, written, full: true })
      spill.stored += written - read
      spill.disk += written
    }
    this.#keeping.spool.reserve(spill.disk)
    if (tail.length > 0) spill.tail.push(tail.slice())
    this.#begin(spill)
  }

  /**
   * Puts all of it on disk and leaves it there, for a daemon that comes later; `segments` then tells where. Nothing is pushed
   * or taken any more. Fails where that cannot be written: what was in memory is lost with the daemon.
   */
  get park(): Effect.Effect<void, SpoolError> {
    return Effect.gen(() => this.#park())
  }

  *#park() {
    const { spool } = this.#keeping
    let spill = this.#spill
    if (spill === undefined) {
      if (this.#head.size === 0) return
      spill = this.#spill = new Spill()
    } else {
      const moving = spill
      moving.over = moving.parked = true
      moving.changed.notify()
      yield* moving.changed.until(() => moving.still)
    }
    const { head, tail } = this.carry()
    const segments = [...spill.segments]
    for (const [chunks, place] of [
      [head, 0],
      [tail, spill.segments.length + 1]
    ] as const) {
      const written = chunks.reduce((sum, { length }) => sum + length, 0)
      if (written === 0) continue
      const name = spool.name()
      yield* spool.files.write(name, 0, chunks)
      segments.splice(place, 0, { name, read: 0, written, full: true })
    }
    spill.segments.splice(0, Number.POSITIVE_INFINITY, ...segments)
    this.#head.clear()
    spill.tail.clear()
  }

  #begin(spill = new Spill()) {
    this.#spill = spill
    this.#keeping.spool.run(
      Effect.gen(() => this.#move(spill)).pipe(
        Effect.ensuring(
          Effect.sync(() => {
            spill.still = true
            if (!spill.parked) this.#discard(spill, spill.segments.splice(0))
            spill.changed.notify()
          })
        ),
        Effect.annotateLogs(this.#holder.fields(this))
      )
    )
  }

  /** Moves bytes to files and back, until the head is all there is, or nothing is wanted any more. */
  *#move(spill: Spill) {
    const { changed, tail } = spill
    const head = this.#head
    while (!spill.over) {
      if (!this.#low()) {
        // a little stays in memory: each write costs as much as many bytes do
        const much = () => tail.size > this.#keeping.memory / 4
        if (much()) yield* Effect.gen(() => this.#store(spill))
        else yield* changed.until(() => spill.over || much() || this.#low())
      } else if (spill.stored > 0) {
        yield* Effect.gen(() => this.#fetch(spill))
      } else {
        for (const chunk of tail.take(Number.POSITIVE_INFINITY)) head.push(chunk)
        head.settle()
        this.#spill = undefined
        this.#holder.moved(this)
        return
      }
    }
  }

  /** Whether the head may have more. */
  #low(): boolean {
    return this.#head.size <= this.#keeping.memory / 4
  }

  /** Writes what the tail has; or waits, where there is no room. */
  *#store(spill: Spill) {
    const { memory, spool } = this.#keeping
    const chunks = spill.tail.take(Math.min(memory / 2, spool.limit - spill.disk, spool.available()))
    const size = chunks.reduce((sum, { length }) => sum + length, 0)
    const fits = () => spill.disk + size <= spool.limit && spool.available() >= size
    let failure: SpoolError | undefined
    if (fits()) {
      const segment = this.#segmentFor(spill, size)
      spool.reserve(size)
      spill.disk += size
      spill.leaving = size
      spill.leavingChunks = chunks
      const written = yield* Effect.result(spool.files.write(segment.name, segment.written, chunks))
      spill.leaving = 0
      spill.leavingChunks = []
      if (Result.isSuccess(written)) {
        segment.written += size
        spill.stored += size
        spill.stuck = false
        if (!spill.over) this.#holder.moved(this)
        return
      }
      failure = written.failure
      segment.full = segment.written > 0 // it may be gone
      spill.disk -= size
      spool.release(size)
    }
    spill.tail.unshift(chunks)
    if (spill.over) return
    if (!spill.stuck) {
      spill.stuck = true
      yield* Counters.limited("spool")
      if (failure !== undefined) yield* Effect.logWarning("the spool cannot be written", { error: failure.message })
      else if (!spill.wasFull) yield* Effect.logInfo("the spool is full", { bytes: spill.disk })
      spill.wasFull ||= failure === undefined
      this.#holder.moved(this)
    }
    const goOn = () => spill.over || this.#low() || (failure === undefined && fits())
    yield* failure === undefined
      ? until(goOn, spill.changed, spool.released)
      : spool.deadlines.within(retryAfter, goOn, spill.changed)
  }

  #segmentFor(spill: Spill, size: number): Segment {
    const { memory, spool } = this.#keeping
    const last = spill.segments.at(-1)
    const most = Math.min(Math.max(spool.limit / 16, memory / 2), largestSegment)
    if (last !== undefined && !last.full && (last.written === 0 || last.written + size <= most)) return last
    const segment = { name: spool.name(), written: 0, read: 0, full: false }
    spill.segments.push(segment)
    this.#holder.kept(this)
    return segment
  }

  /** Brings the oldest of what is on disk back. */
  *#fetch(spill: Spill) {
    const { memory, spool, whole } = this.#keeping
    const segment = spill.segments[0]!
    const left = segment.written - segment.read
    const size = Math.min(left, Math.max(spill.readSize, Math.ceil(memory / 8)))
    const read = yield* Effect.result(spool.files.read(segment.name, segment.read, size))
    if (spill.over) return
    if (Result.isFailure(read) && read.failure.passing) {
      if (!spill.unread) yield* Effect.logWarning("the spool cannot be read", { error: read.failure.message })
      spill.unread = true
      yield* spool.deadlines.within(retryAfter, () => spill.over, spill.changed)
      return
    }
    const bytes = Result.getOrElse(read, () => nothing)
    const end = whole(bytes)
    spill.unread = false
    spill.readSize = 0
    if (end > 0) {
      segment.read += end
      spill.stored -= end
      this.#head.push(bytes.subarray(0, end))
      this.#head.settle()
    } else if (bytes.length === size && size < left) {
      spill.readSize = size * 2 // the first of them is larger
      return
    } else {
      spill.stored -= left
      yield* Counters.dropped("spool lost", left)
      const error = Result.isFailure(read) ? read.failure.message : "a file has been cut"
      yield* Effect.logError("what waited in the spool is lost", { bytes: left, error })
      if (!spill.over && spill.stored === 0 && spill.tail.size === 0) this.#holder.cut(this)
    }
    const done = end === left || end === 0 ? spill.segments.splice(0, 1) : []
    if (!spill.over) this.#holder.kept(this)
    this.#discard(spill, done)
    if (!spill.over) this.#holder.moved(this)
  }

  #discard(spill: Spill, segments: ReadonlyArray<Segment>) {
    const { spool } = this.#keeping
    for (const { name, written } of segments) {
      spill.disk -= written
      spool.release(written)
      spool.run(spool.files.remove(name))
    }
  }
}
