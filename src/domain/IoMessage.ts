/**
 * Wire codec of hyperstart's I/O channel, which carries every process's stdin, stdout and stderr of one VM.
 * Pure: bytes in, bytes or plain data out.
 *
 * ```text
 * offset  size  field
 *      0     8  sequence  u64, big endian: which stream of which process
 *      8     4  length    u32, big endian, in bytes, these 12 included
 *     12     -  data      nothing: the end of the stream
 * ```
 *
 * Its header is as long as a client frame's, so output is turned into frames in place (`ProcessOutput.ts`).
 *
 * Source: PROTOCOL.md, "Agent protocol".
 */
import * as Data from "effect/Data"
import * as Result from "effect/Result"
import * as Assembly from "./Assembly.ts"
import { putU32, u32 } from "./Bytes.ts"
import type * as Recovery from "./Recovery.ts"

/** Bytes before the data. */
export const headerSize = 12

/** Largest message accepted from an agent by default, in bytes, header included. Source: PROTOCOL.md, "Limits". */
export const maxMessage = 1024 * 1024

/** The agent sent bytes that are not a message. Terminal for the VM: the channel has lost its framing. */
export class IoError extends Data.TaggedError("IoError")<{ readonly length: number; readonly limit: number }> {
  override get message(): string {
    return `bad io message: length ${this.length}, expected ${headerSize} to ${this.limit}`
  }
}

/**
 * Consecutive whole messages of one sequence, in `bytes[start..end)`. The consumer owns that range: it may rewrite it in
 * place and forward views of it. A view keeps the whole chunk alive; copy what has to wait.
 */
export interface Run {
  readonly sequence: number
  readonly bytes: Uint8Array
  readonly start: number
  readonly end: number
}

/** An incremental decoder; one per channel. */
export interface Parser {
  /**
   * Feeds the next chunk of socket bytes and appends the runs that are now complete to `runs`. A failure is terminal; what
   * came whole before it has been appended.
   */
  readonly push: (chunk: Uint8Array, runs: Array<Run>) => Result.Result<void, IoError>
  /** Bytes that put a new parser where this one stands: the part of a message that has no rest yet. */
  readonly rest: () => Uint8Array
}

const nothing = new Uint8Array(0)

/** The sequence number at `at`. Exact below 2^53; the proxy itself gives out small ones only. */
export const sequenceAt = (bytes: Uint8Array, at: number): number => {
  const low = u32(bytes, at + 4)
  return bytes[at] === 0 && bytes[at + 1] === 0 && bytes[at + 2] === 0 && bytes[at + 3] === 0
    ? low
    : u32(bytes, at) * 0x1_0000_0000 + low
}

/** Length of the message whose header is at `at`, in bytes, header included. */
export const lengthAt = (bytes: Uint8Array, at: number): number => u32(bytes, at + 8)

/** A class, as every VM has one: methods cost nothing an instance. */
class IoParser implements Parser {
  readonly #limit: number
  readonly #straddling = Assembly.make()

  constructor(limit: number) {
    this.#limit = limit
  }

  rest() {
    return this.#straddling.active() ? this.#straddling.bytes().slice() : nothing
  }

  push(chunk: Uint8Array, runs: Array<Run>): Result.Result<void, IoError> {
    const straddling = this.#straddling
    const limit = this.#limit
    const end = chunk.length
    let offset = 0
    while (straddling.active()) {
      offset += straddling.take(chunk, offset, end)
      if (!straddling.complete()) return Result.void
      const bytes = straddling.bytes()
      const length = lengthAt(bytes, 0)
      if (length < headerSize || length > limit) return Result.fail(new IoError({ length, limit }))
      if (length > bytes.length) {
        straddling.extend(length)
      } else {
        const whole = straddling.finish()
        runs.push({ sequence: sequenceAt(whole, 0), bytes: whole, start: 0, end: whole.length })
      }
    }
    let sequence = -1
    let start = offset
    let length = headerSize
    while (end - offset >= headerSize) {
      length = lengthAt(chunk, offset)
      if (length < headerSize || length > limit || end - offset < length) break
      const next = sequenceAt(chunk, offset)
      if (next !== sequence) {
        if (offset > start) runs.push({ sequence, bytes: chunk, start, end: offset })
        sequence = next
        start = offset
      }
      offset += length
    }
    if (offset > start) runs.push({ sequence, bytes: chunk, start, end: offset })
    if (length < headerSize || length > limit) return Result.fail(new IoError({ length, limit }))
    if (offset < end) {
      straddling.begin(end - offset >= headerSize ? length : headerSize)
      straddling.take(chunk, offset, end)
    }
    return Result.void
  }
}

/** A `Parser` that refuses messages above `limit` bytes, header included. */
export const makeParser = (limit: number = maxMessage): Parser => new IoParser(limit)

/**
 * What the messages of an agent look like that was given sequence numbers below `end`, of up to `limit` bytes: to find the
 * first in bytes that begin anywhere. 0 is no sequence of a stream.
 */
export const traits = (end: number, limit: number = maxMessage): Recovery.Traits => ({
  headerSize,
  lengthAt,
  plausible: (bytes, at) => {
    const length = lengthAt(bytes, at)
    const sequence = sequenceAt(bytes, at)
    return length >= headerSize && length <= limit && sequence > 0 && sequence < end
  }
})

/**
 * Writes the header of a message with `length` bytes of data at `at`. `sequence` is below 2^53.
 * Data may stand after it already, or be copied there.
 */
export const writeHeader = (bytes: Uint8Array, at: number, sequence: number, length: number): void => {
  putU32(bytes, at, Math.floor(sequence / 0x1_0000_0000))
  putU32(bytes, at + 4, sequence)
  putU32(bytes, at + 8, headerSize + length)
}

/** One message in a buffer of its own. */
export const encode = (sequence: number, data: Uint8Array): Uint8Array => {
  const out = new Uint8Array(headerSize + data.length)
  writeHeader(out, 0, sequence, data.length)
  out.set(data, headerSize)
  return out
}
