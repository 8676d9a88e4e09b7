/**
 * One connection in memory: at its one end the proxy's `Wire`, at the other a peer that takes as many bytes as its buffer has
 * room for, whole chunks or not. What one side writes the other has inside the call.
 */
import * as Effect from "effect/Effect"
import { type Wire, WireClosed } from "../../src/services/Wire.ts"

/** A chunk that the proxy has offered, and how many of its bytes the peer has taken. */
interface Offered {
  readonly bytes: Uint8Array
  taken: number
}

export class Link implements Wire {
  readonly peer: string
  /** Chunks that the proxy has not pulled yet, oldest first. */
  readonly #toProxy: Array<Uint8Array> = []
  #pulling: ((next: Effect.Effect<Uint8Array, WireClosed>) => void) | undefined
  /** What the proxy has pulled since it was last asked for. */
  readonly #pulled: Array<Uint8Array> = []

  readonly #toPeer: Array<Offered> = []
  readonly #taken: Array<Uint8Array> = []
  readonly #offers: Array<Uint8Array> = []
  #room = Number.POSITIVE_INFINITY
  #offered = 0
  #refused = 0 // bytes offered after the end
  readonly #waiters = new Set<() => void>()

  #end: "peer" | "proxy" | undefined
  /** Whether the proxy is done with it, also after the peer. */
  released = false

  constructor(peer: string) {
    this.peer = peer
  }

  // the proxy's end

  readonly pull = Effect.callback<Uint8Array, WireClosed>((resume) => {
    const next = this.#toProxy.shift()
    if (next !== undefined) {
      this.#pulled.push(next)
      return resume(Effect.succeed(next.slice()))
    }
    if (this.#end !== undefined) return resume(this.#failure)
    this.#pulling = resume
    return Effect.sync(() => {
      if (this.#pulling === resume) this.#pulling = undefined
    })
  })

  offer(chunks: ReadonlyArray<Uint8Array>): void {
    this.#offers.push(Uint8Array.from(Buffer.concat(chunks)))
    for (const bytes of chunks) {
      this.#offered += bytes.length
      if (this.#end !== undefined) this.#refused += bytes.length
      else if (bytes.length > 0) this.#toPeer.push({ bytes, taken: 0 })
    }
    this.#move()
  }

  offered(): number {
    return this.#offered
  }

  pending(): number {
    return this.#toPeer.reduce((sum, { bytes, taken }) => sum + bytes.length - taken, this.#refused)
  }

  readonly drained = Effect.suspend(() => {
    const ended = () => this.#end !== undefined
    return Effect.flatMap(
      this.#until(() => ended() || this.#toPeer.length === 0),
      () => (ended() ? this.#failure : Effect.void)
    )
  })

  readonly closed = Effect.suspend(() => this.#until(() => this.#end !== undefined))

  shutDown(): void {}

  drainAndClose(): ReadonlyArray<Uint8Array> {
    return []
  }

  descriptor(): undefined {}

  carry(): undefined {}

  /** The proxy is done with it. */
  close(): void {
    this.released = true
    this.#finish("proxy")
  }

  // the peer's end

  write(bytes: Uint8Array): void {
    if (this.#end !== undefined || bytes.length === 0) return
    const resume = this.#pulling
    if (resume === undefined) {
      this.#toProxy.push(bytes)
      return
    }
    this.#pulling = undefined
    this.#pulled.push(bytes)
    resume(Effect.succeed(bytes.slice()))
  }

  /** From now on it takes `bytes` more. */
  takes(bytes: number): void {
    this.#room = bytes
    this.#move()
    this.#wake()
  }

  /** Whether it takes whatever comes. */
  get reading(): boolean {
    return this.#room === Number.POSITIVE_INFINITY
  }

  leave(): void {
    this.#finish("peer")
  }

  // what the test sees

  /** Which side has ended it. */
  get ended(): "peer" | "proxy" | undefined {
    return this.#end
  }

  /** Whether the peer has taken anything since it was last asked what. */
  get fresh(): boolean {
    return this.#taken.length > 0
  }

  /** Bytes that the peer has taken since it was last asked. */
  taken(): Uint8Array {
    return Uint8Array.from(Buffer.concat(this.#taken.splice(0)))
  }

  /** What was offered at once, since it was last asked. */
  offers(): ReadonlyArray<Uint8Array> {
    return this.#offers.splice(0)
  }

  /** Chunks that the proxy has pulled, since it was last asked. */
  pulled(): ReadonlyArray<Uint8Array> {
    return this.#pulled.splice(0)
  }

  /** Bytes that the proxy has not pulled. */
  unread(): number {
    return this.#toProxy.reduce((sum, { length }) => sum + length, 0)
  }

  #move() {
    let moved = false
    for (let head = this.#toPeer[0]; head !== undefined && this.#room > 0; head = this.#toPeer[0]) {
      const size = Math.min(this.#room, head.bytes.length - head.taken)
      this.#taken.push(head.bytes.slice(head.taken, head.taken + size))
      head.taken += size
      this.#room -= size
      if (head.taken === head.bytes.length) this.#toPeer.shift()
      moved = true
    }
    if (moved) this.#wake()
  }

  #finish(side: "peer" | "proxy") {
    if (this.#end !== undefined) return
    this.#end = side
    const resume = this.#pulling
    this.#pulling = undefined
    resume?.(this.#failure)
    this.#wake()
  }

  get #failure() {
    return Effect.fail(new WireClosed({ peer: this.peer }))
  }

  #wake() {
    for (const ask of Array.from(this.#waiters)) ask()
  }

  #until(test: () => boolean): Effect.Effect<void> {
    return Effect.callback<void>((resume) => {
      const ask = () => {
        if (!test()) return
        this.#waiters.delete(ask)
        resume(Effect.void)
      }
      this.#waiters.add(ask)
      ask()
      return Effect.sync(() => this.#waiters.delete(ask))
    })
  }
}
