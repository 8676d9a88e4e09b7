/**
 * Bytes that may have to wait, in chunks: what passes through at once is never copied, and what waits costs little more memory
 * than its size, however small the pieces it came in. Pure.
 */
import * as Bytes from "./Bytes.ts"

/** Chunks below this size are joined while they wait, in bytes: a view of its own costs about 200. */
const small = 1024

/** Sizes of the buffers they are joined in, in bytes: the first, and the largest. */
const firstJoin = 1024
const largestJoin = 64 * 1024

/** A class, as every process has two: methods cost nothing an instance. */
export class ByteQueue {
  #chunks: Array<Uint8Array> = []
  #size = 0
  #settled = 0 // how many of the chunks are in a shape to wait
  #at = 0 // bytes of the first chunk that have been read
  #join: Uint8Array | undefined // the buffer of the last settled chunk, where there is room behind it

  /** Bytes in all. */
  get size(): number {
    return this.#size
  }

  /** Appends a chunk, which is the queue's from here on. Follow with `settle` if it is not taken in this turn. */
  push(chunk: Uint8Array): void {
    this.#chunks.push(chunk)
    this.#size += chunk.length
  }

  /** What is still there waits: copies what would keep more memory alive than it needs. */
  settle(): void {
    const fresh = this.#chunks.splice(this.#settled)
    for (const chunk of fresh) {
      const last = this.#chunks.length - 1
      if (chunk.length >= small || (this.#at > 0 && last < 0)) {
        this.#chunks.push(Bytes.keep(chunk))
        this.#join = undefined
        continue
      }
      const used = this.#join === undefined ? 0 : this.#chunks[last]!.length
      if (this.#join === undefined || used + chunk.length > this.#join.length) {
        const size = Math.min(Math.max((this.#join?.length ?? 0) * 2, firstJoin), largestJoin)
        this.#join = new Uint8Array(Math.max(size, chunk.length))
        this.#join.set(chunk)
        this.#chunks.push(this.#join.subarray(0, chunk.length))
      } else {
        this.#join.set(chunk, used)
        this.#chunks[last] = this.#join.subarray(0, used + chunk.length)
      }
    }
    this.#settled = this.#chunks.length
  }

  /** Takes whole chunks, up to `most` bytes but one at least; none of an empty queue. Not to be mixed with `read`. */
  take(most: number): ReadonlyArray<Uint8Array> {
    let count = 0
    let size = 0
    while (count < this.#chunks.length && (count === 0 || size + this.#chunks[count]!.length <= most))
      size += this.#chunks[count++]!.length
    this.#taken(count, size)
    return this.#chunks.splice(0, count)
  }

  /** Copies the next `length` bytes, which must be there, to `out[at..]`. */
  read(out: Uint8Array, at: number, length: number): void {
    let done = 0
    let count = 0
    while (done < length) {
      const head = this.#chunks[count]!
      const taken = Math.min(length - done, head.length - this.#at)
      out.set(head.subarray(this.#at, this.#at + taken), at + done)
      done += taken
      this.#at += taken
      if (this.#at === head.length) {
        this.#at = 0
        count++
      }
    }
    this.#taken(count, length)
    if (count > 0) this.#chunks.splice(0, count)
  }

  /** Puts chunks back that `take` gave out. */
  unshift(chunks: ReadonlyArray<Uint8Array>): void {
    if (this.#at > 0) this.#chunks[0] = this.#chunks[0]!.subarray(this.#at)
    this.#at = 0
    this.#chunks.unshift(...chunks)
    this.#settled += chunks.length
    for (const chunk of chunks) this.#size += chunk.length
  }

  /** All of it, left where it is. */
  chunks(): ReadonlyArray<Uint8Array> {
    return this.#at === 0
      ? this.#chunks
      : this.#chunks.map((chunk, at) => (at === 0 ? chunk.subarray(this.#at) : chunk))
  }

  clear(): void {
    this.#chunks = []
    this.#size = 0
    this.#settled = 0
    this.#at = 0
    this.#join = undefined
  }

  #taken(count: number, size: number): void {
    this.#size -= size
    this.#settled = Math.max(this.#settled - count, 0)
    if (this.#settled === 0) this.#join = undefined
  }
}
