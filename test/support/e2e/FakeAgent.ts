/** A VM as the proxy sees it: the two sockets of a hyperstart, played by a script. */
import * as Effect from "effect/Effect"
import * as Net from "node:net"
import * as Path from "node:path"
import * as Raw from "./RawBytes.ts"
import { happened, until } from "./Wait.ts"

export interface CtlMessage {
  readonly channel: "ctl"
  readonly code: number
  readonly payload: Buffer
  /** Over how many reads it was spread. */
  readonly reads: number
}

export interface IoMessage {
  readonly channel: "io"
  readonly sequence: number
  readonly data: Buffer
}

/** What the agent does with a command: ACK with a payload, ERROR with a text, or nothing before the test says so. */
export type Answer = { readonly ack: unknown } | { readonly error: string } | "hold"

export interface Options {
  /** Whether READY comes by itself on connection; default true. */
  readonly ready?: boolean
  /** READY comes on the first connection only, as from a VM that stays while its proxy goes. */
  readonly once?: boolean
  /** The C agent: two NEXT before each reply. */
  readonly next?: boolean
  /** What `version` answers; 4243 by default, the last API without events. */
  readonly api?: number
}

/** The one connection of one channel. */
class Channel {
  socket: Net.Socket | undefined
  /** Connections so far. */
  connections = 0
  readonly server: Net.Server

  constructor(onConnect: () => void, makeCut: () => (chunk: Buffer) => void) {
    this.server = Net.createServer((socket) => {
      this.connections++
      this.socket = socket
      const cut = makeCut()
      socket.on("data", (chunk: Buffer) => {
        cut(chunk)
        happened()
      })
      socket.on("error", happened)
      socket.on("close", () => {
        if (this.socket === socket) this.socket = undefined
        happened()
      })
      onConnect()
      happened()
    })
  }

  close(): void {
    this.socket?.destroy()
    this.server.close()
  }
}

export class FakeAgent {
  readonly ctlPath: string
  readonly ioPath: string
  /** All that the proxy wrote, in the order in which it was read. */
  readonly history: Array<CtlMessage | IoMessage> = []
  readonly ctl: Array<CtlMessage> = []
  readonly io: Array<IoMessage> = []
  readonly #answers = new Map<number, (payload: Buffer) => Answer>()
  readonly #ctlChannel: Channel
  readonly #ioChannel: Channel
  readonly #options: Options

  constructor(directory: string, options: Options) {
    this.ctlPath = Path.join(directory, "ctl.sock")
    this.ioPath = Path.join(directory, "io.sock")
    this.#options = options
    const version = Buffer.alloc(4)
    version.writeUInt32BE(options.api ?? 4243)
    this.answer(Raw.Ctl.version, { ack: version })
    this.#ctlChannel = new Channel(
      () => {
        if (options.ready !== false && !(options.once === true && this.connections[0] > 1)) this.ready()
      },
      () =>
        Raw.makeCutter(
          8,
          (bytes) => bytes.readUInt32BE(4),
          (bytes, reads) =>
            // what was written to io before this message can be read by now, and comes first in the history
            void setImmediate(() => {
              this.#command(bytes.readUInt32BE(0), bytes.subarray(8), reads)
              happened()
            })
        )
    )
    this.#ioChannel = new Channel(
      () => undefined,
      () =>
        Raw.makeCutter(
          12,
          (bytes) => bytes.readUInt32BE(8),
          (bytes) => this.#input(Number(bytes.readBigUInt64BE(0)), bytes.subarray(12))
        )
    )
  }

  #command(code: number, payload: Buffer, reads: number): void {
    const message: CtlMessage = { channel: "ctl", code, payload, reads }
    this.ctl.push(message)
    this.history.push(message)
    if (this.#options.next === true) {
      this.next(8)
      this.next(payload.length)
    }
    const answer = this.#answers.get(code)?.(payload) ?? { ack: "" }
    if (answer === "hold") return
    if ("ack" in answer) this.ack(answer.ack)
    else this.fail(answer.error)
  }

  #input(sequence: number, data: Buffer): void {
    const message: IoMessage = { channel: "io", sequence, data }
    this.io.push(message)
    this.history.push(message)
  }

  /** Listens on both sockets. */
  get listen(): Effect.Effect<void> {
    const open = ([server, path]: readonly [Net.Server, string]) =>
      Effect.callback<void>((resume) => {
        server.listen(path, () => resume(Effect.void))
      })
    return Effect.forEach(
      [
        [this.#ctlChannel.server, this.ctlPath],
        [this.#ioChannel.server, this.ioPath]
      ] as const,
      open,
      { discard: true }
    )
  }

  /** How commands of this code are answered from now on; by default each gets an empty ACK. */
  answer(code: number, answer: Answer | ((payload: Buffer) => Answer)): void {
    this.#answers.set(code, typeof answer === "function" ? answer : () => answer)
  }

  sendCtl(code: number, payload: unknown = ""): void {
    this.#ctlChannel.socket?.write(Raw.ctlMessage(code, payload))
  }

  /** Raw bytes on the control channel. */
  sendCtlBytes(bytes: Uint8Array): void {
    this.#ctlChannel.socket?.write(bytes)
  }

  ready(): void {
    this.sendCtl(Raw.Ctl.ready)
  }

  next(bytes: number): void {
    const payload = Buffer.alloc(4)
    payload.writeUInt32BE(bytes)
    this.sendCtl(Raw.Ctl.next, payload)
  }

  ack(payload: unknown = ""): void {
    this.sendCtl(Raw.Ctl.ack, payload)
  }

  fail(text: string): void {
    this.sendCtl(Raw.Ctl.error, text)
  }

  /** A process of an agent with events has ended. */
  finished(container: string, process: string, status: number): void {
    this.sendCtl(Raw.Ctl.processEvent, { container, process, event: "finished", status })
  }

  /** Messages on the io channel, in one write. */
  sendIo(...messages: ReadonlyArray<readonly [sequence: number | bigint, data?: Uint8Array | string]>): void {
    this.#ioChannel.socket?.write(Buffer.concat(messages.map(([sequence, data]) => Raw.ioMessage(sequence, data))))
  }

  /** Raw bytes on the io channel. */
  sendIoBytes(bytes: Uint8Array): void {
    this.#ioChannel.socket?.write(bytes)
  }

  /** The end of a process: the empty message and its status, both on its stdio sequence. */
  exit(stdio: number, status: number): void {
    this.sendIo([stdio], [stdio, Uint8Array.of(status)])
  }

  /** Control messages of one code. */
  commands(code: number): ReadonlyArray<CtlMessage> {
    return this.ctl.filter((message) => message.code === code)
  }

  /** Codes of all control messages, in order. */
  get codes(): ReadonlyArray<number> {
    return this.ctl.map((message) => message.code)
  }

  /** Waits for the `nth` control message of one code. */
  command(code: number, nth = 1): Effect.Effect<CtlMessage> {
    return until(`control message ${code} number ${nth}`, () => this.commands(code)[nth - 1])
  }

  /** Messages to one sequence. */
  inputs(sequence: number): ReadonlyArray<IoMessage> {
    return this.io.filter((message) => message.sequence === sequence)
  }

  /** Data to one sequence. */
  stdin(sequence: number): Buffer {
    return Buffer.concat(this.inputs(sequence).map((message) => message.data))
  }

  /** Waits until `length` bytes have come for one sequence. */
  stdinLength(sequence: number, length: number): Effect.Effect<number> {
    return until(`${length} bytes of stdin for sequence ${sequence}`, () => {
      let sum = 0
      for (const message of this.io) if (message.sequence === sequence) sum += message.data.length
      return sum >= length && sum
    })
  }

  /** Waits for the end of stdin of one sequence. */
  stdinEnd(sequence: number): Effect.Effect<boolean> {
    return until(`the end of stdin for sequence ${sequence}`, () =>
      this.io.some((message) => message.sequence === sequence && message.data.length === 0)
    )
  }

  /** Connections that the proxy has made: to ctl and to io. */
  get connections(): readonly [number, number] {
    return [this.#ctlChannel.connections, this.#ioChannel.connections]
  }

  /** Whether each channel is connected now: ctl, io. */
  get connected(): readonly [boolean, boolean] {
    return [this.#ctlChannel.socket !== undefined, this.#ioChannel.socket !== undefined]
  }

  /** Stops reading stdin, so that the kernel's buffers fill. */
  pauseIo(): void {
    this.#ioChannel.socket?.pause()
  }

  resumeIo(): void {
    this.#ioChannel.socket?.resume()
  }

  /** Stops reading commands, so that the kernel's buffers fill. */
  pauseCtl(): void {
    this.#ctlChannel.socket?.pause()
  }

  resumeCtl(): void {
    this.#ctlChannel.socket?.resume()
  }

  /** Shuts down the writing side of one channel, after what was written. */
  endCtl(): void {
    this.#ctlChannel.socket?.end()
  }

  endIo(): void {
    this.#ioChannel.socket?.end()
  }

  closeCtl(): void {
    this.#ctlChannel.close()
  }

  closeIo(): void {
    this.#ioChannel.close()
  }

  /** The VM powers off: both channels end after what was written. */
  powerOff(): void {
    for (const channel of [this.#ioChannel, this.#ctlChannel]) {
      channel.socket?.end()
      channel.server.close()
    }
  }

  close(): void {
    this.closeCtl()
    this.closeIo()
  }
}

/** An agent that listens in `directory`. */
export const start = (directory: string, options: Options = {}) =>
  Effect.acquireRelease(
    Effect.suspend(() => {
      const agent = new FakeAgent(directory, options)
      return Effect.as(agent.listen, agent)
    }),
    (agent) => Effect.sync(() => agent.close())
  )
