/**
 * Wire codec of hyperstart's control channel. Pure: bytes in, bytes or plain data out.
 *
 * ```text
 * offset  size  field
 *      0     4  code     u32, big endian
 *      4     4  length   u32, big endian, in bytes, these 8 included
 *      8     -  payload  one JSON document, a text, or nothing
 * ```
 *
 * Source: PROTOCOL.md, "Agent protocol".
 */
import * as Data from "effect/Data"
import * as Result from "effect/Result"
import * as Assembly from "./Assembly.ts"
import { putU32, u32 } from "./Bytes.ts"
import type * as Recovery from "./Recovery.ts"

/** Bytes before the payload. */
export const headerSize = 8

/** Largest message accepted from an agent, in bytes, header included. Source: PROTOCOL.md, "Limits". */
export const defaultMaxReply = 16 * 1024 * 1024

/** Largest message sent to an agent, in bytes, header included. Source: PROTOCOL.md, "Limits". */
export const defaultMaxCommand = 4 * 1024 * 1024

/** Every code this proxy knows. 23 is a command on its way out and an event on its way in; 24 likewise. */
export const Code = {
  version: 0,
  startpod: 1,
  destroypod: 4,
  execcmd: 6,
  ready: 8,
  ack: 9,
  error: 10,
  winsize: 11,
  ping: 12,
  next: 14,
  writefile: 15,
  readfile: 16,
  newcontainer: 17,
  killcontainer: 18,
  onlinecpumem: 19,
  setupinterface: 20,
  setuproute: 21,
  removecontainer: 22,
  pscontainer: 23,
  processEvent: 23,
  signalprocess: 24
} as const

/** The codes that a client may name in a Hyper command, by `hyperName`. */
export const hyperCodes: ReadonlyMap<string, number> = new Map(
  (
    [
      "version",
      "startpod",
      "destroypod",
      "execcmd",
      "winsize",
      "ping",
      "writefile",
      "readfile",
      "newcontainer",
      "killcontainer",
      "onlinecpumem",
      "setupinterface",
      "setuproute",
      "removecontainer",
      "pscontainer"
    ] as const
  ).map((name) => [name, Code[name]])
)

/** The agent sent bytes that are not a message. Terminal for the VM: the channel has lost its framing. */
export class CtlError extends Data.TaggedError("CtlError")<{ readonly length: number; readonly limit: number }> {
  override get message(): string {
    return `bad ctl message: length ${this.length}, expected ${headerSize} to ${this.limit}`
  }
}

const nothing = new Uint8Array(0)

/** One message in a buffer of its own: it must leave in one write. */
export const encode = (code: number, payload: Uint8Array): Uint8Array => {
  const out = new Uint8Array(headerSize + payload.length)
  putU32(out, 0, code)
  putU32(out, 4, out.length)
  out.set(payload, headerSize)
  return out
}

/** An incremental decoder; one per channel. */
export interface Parser {
  /**
   * Feeds the next chunk of socket bytes and calls `onMessage` once per message that is now complete, in order.
   * `payload` may be a view of the chunk; copy it to keep it. A failure is terminal.
   */
  readonly push: (
    chunk: Uint8Array,
    onMessage: (code: number, payload: Uint8Array) => void
  ) => Result.Result<void, CtlError>
  /** Bytes that put a new parser where this one stands: the part of a message that has no rest yet. */
  readonly rest: () => Uint8Array
}

/** A class, as every VM has one: methods cost nothing an instance. */
class CtlParser implements Parser {
  readonly #limit: number
  readonly #straddling = Assembly.make()

  constructor(limit: number) {
    this.#limit = limit
  }

  rest() {
    return this.#straddling.active() ? this.#straddling.bytes().slice() : nothing
  }

  push(chunk: Uint8Array, onMessage: (code: number, payload: Uint8Array) => void): Result.Result<void, CtlError> {
    const straddling = this.#straddling
    const limit = this.#limit
    const end = chunk.length
    let offset = 0
    while (straddling.active()) {
      offset += straddling.take(chunk, offset, end)
      if (!straddling.complete()) return Result.void
      const bytes = straddling.bytes()
      const length = u32(bytes, 4)
      if (length < headerSize || length > limit) return Result.fail(new CtlError({ length, limit }))
      if (length > bytes.length) {
        straddling.extend(length)
      } else {
        const whole = straddling.finish()
        onMessage(u32(whole, 0), whole.subarray(headerSize))
      }
    }
    while (end - offset >= headerSize) {
      const length = u32(chunk, offset + 4)
      if (length < headerSize || length > limit) return Result.fail(new CtlError({ length, limit }))
      if (end - offset < length) break
      onMessage(u32(chunk, offset), chunk.subarray(offset + headerSize, offset + length))
      offset += length
    }
    if (offset < end) {
      straddling.begin(end - offset >= headerSize ? u32(chunk, offset + 4) : headerSize)
      straddling.take(chunk, offset, end)
    }
    return Result.void
  }
}

/** A `Parser` that refuses messages above `limit` bytes, header included. */
export const makeParser = (limit: number = defaultMaxReply): Parser => new CtlParser(limit)

const fromAgent: ReadonlySet<number> = new Set([
  Code.ready,
  Code.ack,
  Code.error,
  Code.next,
  Code.processEvent,
  Code.signalprocess
])

/** What the messages of an agent look like, of up to `limit` bytes: to find the first in bytes that begin anywhere. */
export const traits = (limit: number = defaultMaxReply): Recovery.Traits => ({
  headerSize,
  lengthAt: (bytes, at) => u32(bytes, at + 4),
  plausible: (bytes, at) => {
    const length = u32(bytes, at + 4)
    return fromAgent.has(u32(bytes, at)) && length >= headerSize && length <= limit
  }
})
