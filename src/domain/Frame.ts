/**
 * Wire codec of the client protocol, version 2: runtimes and shims on one side, the proxy on the other.
 * Pure: bytes in, bytes or plain data out. No socket, no session, no meaning of a payload.
 *
 * ```text
 * offset  size  field
 *      0     2  version          u16, big endian, 2
 *      2     1  header length    u8, in 32-bit words, >= 3; what is beyond 12 bytes is skipped
 *      3     3  reserved         zero
 *      6     1  flags | type     high nibble (bit 0x10: error) | low nibble
 *      7     1  opcode           u8, meaning depends on the type
 *      8     4  payload length   u32, big endian, in bytes
 * ```
 *
 * Source: PROTOCOL.md, "Client protocol".
 */
import * as Data from "effect/Data"
import * as Result from "effect/Result"
import * as Assembly from "./Assembly.ts"
import { putU32, u32 } from "./Bytes.ts"

/** The version this codec speaks. */
export const version = 2

/** Bytes in the smallest legal header, and in every header this codec writes. */
export const headerSize = 12

/** The low nibble of byte 6. */
export const FrameType = { command: 0, response: 1, stream: 2, notification: 3 } as const
export type FrameType = (typeof FrameType)[keyof typeof FrameType]

/** Opcodes of commands and of their responses. */
export const Command = {
  RegisterVM: 0,
  UnregisterVM: 1,
  AttachVM: 2,
  Hyper: 3,
  ConnectShim: 4,
  DisconnectShim: 5,
  Signal: 6
} as const
export type Command = (typeof Command)[keyof typeof Command]

/** Opcodes of streams. */
export const StreamKind = { stdin: 0, stdout: 1, stderr: 2, log: 3 } as const
export type StreamKind = (typeof StreamKind)[keyof typeof StreamKind]

/** Opcodes of notifications. */
export const Notification = { ProcessExited: 0 } as const

/** The flag of an error response. */
export const errorFlag = 0x10

/**
 * One frame, or one piece of a stdin, stdout or stderr frame: their payloads are bytes of a stream and are handed on as
 * they come. No piece is empty, so an empty payload is an empty frame: the end of the stream.
 * `payload` is a view of the chunk it came in; copy it to keep it.
 */
export interface Frame {
  readonly type: FrameType
  readonly opcode: number
  readonly inError: boolean
  readonly payload: Uint8Array
}

/** The peer sent bytes that are not a frame it may send. Terminal for the connection. */
export class FrameError extends Data.TaggedError("FrameError")<{
  readonly reason: "version" | "header length" | "type" | "opcode" | "payload length"
  readonly value: number
  /** What would have been accepted. */
  readonly expected: string
}> {
  override get message(): string {
    return `bad frame: ${this.reason} ${this.value}, expected ${this.expected}`
  }
}

/** The largest payloads accepted from a client, in bytes. Source: PROTOCOL.md, "Limits". */
export interface PayloadLimits {
  readonly hyper: number
  /** Every other command, and a log entry. */
  readonly command: number
  readonly stdin: number
}

export const defaultLimits: PayloadLimits = {
  hyper: 8 * 1024 * 1024,
  command: 1024 * 1024,
  stdin: 16 * 1024 * 1024
}

/** What one side accepts: the largest payload of a kind of frame, or why that kind is refused. */
export type Policy = (type: number, opcode: number) => number | "type" | "opcode"

/** What the proxy accepts from a client: commands, stdin and log entries. */
export const fromClient =
  (limits: PayloadLimits): Policy =>
  (type, opcode) => {
    if (type === FrameType.command) {
      if (opcode > Command.Signal) return "opcode"
      return opcode === Command.Hyper ? limits.hyper : limits.command
    }
    if (type !== FrameType.stream) return "type"
    if (opcode === StreamKind.stdin) return limits.stdin
    return opcode === StreamKind.log ? limits.command : "opcode"
  }

/** What a client accepts from the proxy: responses, stdout, stderr and notifications, of up to 16 MiB each. */
export const fromProxy: Policy = (type, opcode) => {
  if (type === FrameType.response) return opcode > Command.Signal ? "opcode" : 16 * 1024 * 1024
  if (type === FrameType.notification) return opcode === Notification.ProcessExited ? 1 : "opcode"
  if (type !== FrameType.stream) return "type"
  return opcode === StreamKind.stdout || opcode === StreamKind.stderr ? 16 * 1024 * 1024 : "opcode"
}

/**
 * Writes a header of 12 bytes in place, for a payload of `length` bytes that follows it or stands there already.
 * `flags` is 0 or `errorFlag`.
 */
export const writeHeader = (
  bytes: Uint8Array,
  at: number,
  type: FrameType,
  opcode: number,
  length: number,
  flags = 0
): void => {
  bytes[at] = 0
  bytes[at + 1] = version
  bytes[at + 2] = headerSize / 4
  bytes[at + 3] = bytes[at + 4] = bytes[at + 5] = 0
  bytes[at + 6] = flags | type
  bytes[at + 7] = opcode
  putU32(bytes, at + 8, length)
}

/** One frame in a buffer of its own, of 12 + `payload.length` bytes. */
export const encode = (frame: Frame): Uint8Array => {
  const out = new Uint8Array(headerSize + frame.payload.length)
  writeHeader(out, 0, frame.type, frame.opcode, frame.payload.length, frame.inError ? errorFlag : 0)
  out.set(frame.payload, headerSize)
  return out
}

/** Where the last whole frame of `bytes` ends: of frames as `encode` and `writeHeader` make them, the first at 0. */
export const wholeEnd = (bytes: Uint8Array): number => {
  let end = 0
  while (end + headerSize <= bytes.length) {
    const next = end + headerSize + u32(bytes, end + 8)
    if (next > bytes.length) break
    end = next
  }
  return end
}

const nothing = new Uint8Array(0)

/** Whether the last of `bytes`, whole frames as `wholeEnd` takes them, is a notification. */
export const endsWithNotification = (bytes: Uint8Array): boolean => {
  let last = 0
  for (let at = 0; at + headerSize <= bytes.length; at += headerSize + u32(bytes, at + 8)) last = at
  return bytes.length >= headerSize && (bytes[last + 6]! & 0x0f) === FrameType.notification
}

/** An incremental decoder; one per connection. */
export interface Parser {
  /**
   * Feeds the next chunk of socket bytes and calls `onFrame` for what is now there, in order: whole frames, but stdin,
   * stdout and stderr in pieces. A failure is terminal: the stream has lost its framing, so close it.
   */
  readonly push: (chunk: Uint8Array, onFrame: (frame: Frame) => void) => Result.Result<void, FrameError>
  /** Whether the bytes so far end inside a frame. */
  readonly midFrame: () => boolean
  /** Bytes that put a new parser of the same policy where this one stands: the part of a frame that has no rest yet. */
  readonly rest: () => Uint8Array
}

/** A class, as every connection has one: methods cost nothing an instance. */
class FrameParser implements Parser {
  readonly #policy: Policy
  #header: Uint8Array | undefined // of a frame whose header straddles chunks
  #headerFilled = 0
  readonly #body = Assembly.make()
  // the frame whose header has been read
  #type: FrameType = FrameType.command
  #opcode = 0
  #inError = false
  #padding = 0 // header bytes beyond 12, still to skip
  #remaining = 0 // payload bytes still to come
  #open = false

  constructor(policy: Policy) {
    this.#policy = policy
  }

  midFrame() {
    return this.#open || this.#headerFilled > 0
  }

  rest() {
    if (!this.#open) return (this.#header ?? nothing).slice(0, this.#headerFilled)
    // of a header's padding as much is made up as makes whole words of what is still to come
    const words = Math.ceil(this.#padding / 4)
    const madeUp = words * 4 - this.#padding
    const body = this.#body.active() ? this.#body.bytes() : nothing
    const out = new Uint8Array(headerSize + madeUp + body.length)
    const length = body.length + this.#remaining
    writeHeader(out, 0, this.#type, this.#opcode, length, this.#inError ? errorFlag : 0)
    out[2] = headerSize / 4 + words
    out.set(body, headerSize + madeUp)
    return out
  }

  push(chunk: Uint8Array, onFrame: (frame: Frame) => void): Result.Result<void, FrameError> {
    const end = chunk.length
    const body = this.#body
    let offset = 0
    for (;;) {
      if (!this.#open) {
        let error: FrameError | undefined
        if (this.#headerFilled === 0 && end - offset >= headerSize) {
          error = this.#readHeader(chunk, offset)
          offset += headerSize
        } else {
          const header = (this.#header ??= new Uint8Array(headerSize))
          while (this.#headerFilled < headerSize && offset < end) header[this.#headerFilled++] = chunk[offset++]!
          if (this.#headerFilled < headerSize) return Result.void
          error = this.#readHeader(header, 0)
          this.#headerFilled = 0
        }
        if (error !== undefined) return Result.fail(error)
      }
      if (this.#padding > 0) {
        const skipped = Math.min(this.#padding, end - offset)
        this.#padding -= skipped
        offset += skipped
        if (this.#padding > 0) return Result.void
      }
      const here = Math.min(this.#remaining, end - offset)
      if (this.#type === FrameType.stream && this.#opcode !== StreamKind.log) {
        if (this.#remaining > 0 && here === 0) return Result.void
        this.#remaining -= here
        this.#open = this.#remaining > 0
        onFrame(this.#frame(chunk.subarray(offset, offset + here)))
      } else if (here === this.#remaining && !body.active()) {
        this.#open = false
        onFrame(this.#frame(chunk.subarray(offset, offset + here)))
      } else {
        if (!body.active()) body.begin(this.#remaining)
        body.take(chunk, offset, offset + here)
        this.#remaining -= here
        if (this.#remaining > 0) return Result.void
        this.#open = false
        onFrame(this.#frame(body.finish()))
      }
      offset += here
      if (offset === end && !this.#open) return Result.void
    }
  }

  #frame(payload: Uint8Array): Frame {
    return { type: this.#type, opcode: this.#opcode, inError: this.#inError, payload }
  }

  /** Takes the header at `at` for the current frame, or tells why it is not one. */
  #readHeader(bytes: Uint8Array, at: number): FrameError | undefined {
    const given = (bytes[at]! << 8) | bytes[at + 1]!
    if (given !== version) return new FrameError({ reason: "version", value: given, expected: `${version}` })
    const words = bytes[at + 2]!
    if (words < headerSize / 4) return new FrameError({ reason: "header length", value: words, expected: "3 or more" })
    const flags = bytes[at + 6]!
    const limit = this.#policy(flags & 0x0f, bytes[at + 7]!)
    if (limit === "type")
      return new FrameError({ reason: "type", value: flags & 0x0f, expected: "one this side may send" })
    if (limit === "opcode")
      return new FrameError({ reason: "opcode", value: bytes[at + 7]!, expected: "one this side may send" })
    const length = u32(bytes, at + 8)
    if (length > limit) return new FrameError({ reason: "payload length", value: length, expected: `${limit} or less` })
    this.#type = (flags & 0x0f) as FrameType
    this.#opcode = bytes[at + 7]!
    this.#inError = (flags & errorFlag) !== 0
    this.#padding = words * 4 - headerSize
    this.#remaining = length
    this.#open = true
    return undefined
  }
}

/** A `Parser` that accepts what `policy` does. Lengths are checked before anything is allocated. */
export const makeParser = (policy: Policy): Parser => new FrameParser(policy)
