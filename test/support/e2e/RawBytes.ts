/**
 * The three wire formats once more, written by hand from their description and from nothing in src, so that a mistake in the
 * daemon's codecs cannot be made twice. Source: PROTOCOL.md.
 */

/** The type of a client frame. */
export const Type = { command: 0, response: 1, stream: 2, notification: 3 } as const

/** Opcodes of commands. */
export const Op = {
  registerVM: 0,
  unregisterVM: 1,
  attachVM: 2,
  hyper: 3,
  connectShim: 4,
  disconnectShim: 5,
  signal: 6
} as const

/** Opcodes of streams. */
export const Stream = { stdin: 0, stdout: 1, stderr: 2, log: 3 } as const

/** Codes of control messages. */
export const Ctl = {
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
  signalprocess: 24,
  otherEvent: 24
} as const

export interface Frame {
  readonly flags: number
  readonly type: number
  readonly opcode: number
  readonly payload: Buffer
}

/** A header of `words` 32-bit words with every field free to be wrong. */
export const header = (fields: {
  readonly type: number
  readonly opcode: number
  readonly length: number
  readonly version?: number
  readonly words?: number
}): Buffer => {
  const words = fields.words ?? 3
  const bytes = Buffer.alloc(Math.max(12, words * 4))
  bytes.writeUInt16BE(fields.version ?? 2, 0)
  bytes.writeUInt8(words, 2)
  bytes.writeUInt8(fields.type, 6)
  bytes.writeUInt8(fields.opcode, 7)
  bytes.writeUInt32BE(fields.length, 8)
  return bytes
}

/** A payload: bytes and texts as they stand, everything else as JSON. */
export const payloadOf = (payload: unknown): Buffer => {
  if (payload instanceof Uint8Array) return Buffer.from(payload)
  return Buffer.from(typeof payload === "string" ? payload : JSON.stringify(payload))
}

export const frame = (type: number, opcode: number, payload: unknown = ""): Buffer => {
  const bytes = payloadOf(payload)
  return Buffer.concat([header({ type, opcode, length: bytes.length }), bytes])
}

export const command = (opcode: number, payload: unknown = ""): Buffer => frame(Type.command, opcode, payload)

export const stdin = (data: Uint8Array | string): Buffer => frame(Type.stream, Stream.stdin, data)

export const logEntry = (entry: unknown): Buffer => frame(Type.stream, Stream.log, entry)

/** Reads one whole frame, as the proxy writes them: 12-byte header, nothing reserved in use, the error flag on responses only. */
export const readFrame = (bytes: Buffer): Frame => {
  const flags = bytes.readUInt8(6) & 0xf0
  const type = bytes.readUInt8(6) & 0x0f
  const sound =
    bytes.readUInt16BE(0) === 2 &&
    bytes.readUInt8(2) === 3 &&
    bytes.readUIntBE(3, 3) === 0 &&
    (flags === 0 || (flags === 0x10 && type === Type.response))
  if (!sound) throw new Error(`the daemon sent a frame with the header ${bytes.toString("hex", 0, 12)}`)
  return { flags, type, opcode: bytes.readUInt8(7), payload: bytes.subarray(12) }
}

export const ctlMessage = (code: number, payload: unknown = ""): Buffer => {
  const bytes = payloadOf(payload)
  const head = Buffer.alloc(8)
  head.writeUInt32BE(code, 0)
  head.writeUInt32BE(8 + bytes.length, 4)
  return Buffer.concat([head, bytes])
}

export const ioMessage = (sequence: number | bigint, data: Uint8Array | string = ""): Buffer => {
  const bytes = Buffer.from(data)
  const head = Buffer.alloc(12)
  head.writeBigUInt64BE(BigInt(sequence), 0)
  head.writeUInt32BE(12 + bytes.length, 8)
  return Buffer.concat([head, bytes])
}

/**
 * Cuts a byte stream into messages: `totalSize` reads a whole header and gives header and payload together. `onMessage` also
 * learns over how many chunks the message was spread.
 */
export const makeCutter = (
  headerSize: number,
  totalSize: (bytes: Buffer) => number,
  onMessage: (message: Buffer, reads: number) => void
): ((chunk: Buffer) => void) => {
  let held: Array<Buffer> = []
  let size = 0
  let wanted = headerSize
  let reads = 0
  return (chunk) => {
    held.push(chunk)
    size += chunk.length
    reads++
    if (size < wanted) return
    let bytes = held.length === 1 ? chunk : Buffer.concat(held, size)
    for (;;) {
      wanted = headerSize
      if (bytes.length >= headerSize) wanted = totalSize(bytes)
      if (wanted < headerSize) throw new Error(`a message of ${wanted} bytes: ${bytes.toString("hex", 0, headerSize)}`)
      if (bytes.length < wanted) break
      onMessage(bytes.subarray(0, wanted), reads)
      bytes = bytes.subarray(wanted)
      reads = 1
    }
    held = bytes.length > 0 ? [bytes] : []
    size = bytes.length
    reads = held.length
  }
}
