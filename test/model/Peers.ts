/** Whoever is at the other end of the daemon's connections: what they say, byte by byte, and what they have got. */
import * as Result from "effect/Result"
import * as CtlMessage from "../../src/domain/CtlMessage.ts"
import * as Frame from "../../src/domain/Frame.ts"
import * as IoMessage from "../../src/domain/IoMessage.ts"
import { Link } from "./Link.ts"
import { Client, type Said, symbolOf, type Vm } from "./Model.ts"

export const latin = (bytes: Uint8Array): string => Buffer.from(bytes).toString("latin1")

/** A response as it came; an error's text in place of its payload. */
export interface Answer {
  readonly command: Frame.Command
  readonly inError: boolean
  readonly text: string
}

/** A client. */
export class ClientEnd {
  readonly model: Client
  readonly link: Link
  readonly answers: Array<Answer> = []
  /** How many of them have been compared. */
  checked = 0
  /** How many symbols of its session's output have come. */
  got = 0
  readonly #parser = Frame.makeParser(Frame.fromProxy)
  /** What it has said and not sent, and how much of that it has. */
  readonly #unsent: Array<{ readonly said: Said; readonly frame: Uint8Array; sent: number }> = []

  constructor(name: string) {
    this.model = new Client(name)
    this.link = new Link(name)
  }

  say(said: Said, frame: Uint8Array): void {
    this.#unsent.push({ said, frame, sent: 0 })
  }

  /** Bytes that it has said and not sent. */
  unsent(): number {
    return this.#unsent.reduce((sum, { frame, sent }) => sum + frame.length - sent, 0)
  }

  /** Bytes of the first frame that are not sent. */
  unsentOfFirst(): number {
    const first = this.#unsent[0]
    return first === undefined ? 0 : first.frame.length - first.sent
  }

  /** Takes the next `size` bytes to send, what a proxy has then heard, and whether a frame is half sent. */
  next(size: number): { readonly chunk: Uint8Array; readonly heard: ReadonlyArray<Said>; readonly midFrame: boolean } {
    const chunks: Array<Uint8Array> = []
    const heard: Array<Said> = []
    for (let left = size; left > 0;) {
      const next = this.#unsent[0]!
      const piece = next.frame.subarray(next.sent, next.sent + left)
      const data = next.frame.subarray(Math.max(next.sent, Frame.headerSize), next.sent + piece.length)
      next.sent += piece.length
      left -= piece.length
      chunks.push(piece)
      const whole = next.sent === next.frame.length
      // stdin is heard in pieces
      if (next.said.kind === "stdin" && (data.length > 0 || whole)) heard.push({ kind: "stdin", data: data.slice() })
      else if (next.said.kind !== "stdin" && whole) heard.push(next.said)
      if (whole) this.#unsent.shift()
    }
    return { chunk: Uint8Array.from(Buffer.concat(chunks)), heard, midFrame: (this.#unsent[0]?.sent ?? 0) > 0 }
  }

  /** Reads what has come: answers, and symbols of output. */
  read(): ReadonlyArray<number> {
    const symbols: Array<number> = []
    const read = this.#parser.push(this.link.taken(), ({ inError, opcode, payload, type }) => {
      if (type === Frame.FrameType.response) {
        const text = inError ? String(JSON.parse(Buffer.from(payload).toString()).msg) : latin(payload)
        this.answers.push({ command: opcode as Frame.Command, inError, text })
        return
      }
      const stream = opcode === Frame.StreamKind.stdout ? "stdout" : "stderr"
      const offset = symbolOf[type === Frame.FrameType.notification ? "exit" : stream]
      for (const byte of payload) symbols.push(byte + offset)
    })
    Result.getOrThrow(read)
    return symbols
  }
}

/** A command as an agent has read it. */
export interface Told {
  readonly code: number
  readonly payload: string
}

/** What an agent has got for one process. */
interface Fed {
  bytes: number
  ended: boolean
  /** Length of the last message, and when it came. */
  last: number
  at: number
}

/** An agent. */
export class AgentEnd {
  readonly model: Vm
  readonly ctl: Link
  readonly io: Link
  readonly commands: Array<Told> = []
  /** How many of them have been compared, and replied to. */
  checked = 0
  answered = 0
  readonly #parser = CtlMessage.makeParser()
  readonly #fed = new Map<number, Fed>()
  readonly #unsent: Array<Uint8Array> = []

  constructor(model: Vm) {
    this.model = model
    this.ctl = new Link(`${model.name}.ctl`)
    this.io = new Link(`${model.name}.io`)
  }

  /** Reads the commands that have come. */
  readCommands(): void {
    Result.getOrThrow(
      this.#parser.push(this.ctl.taken(), (code, payload) => void this.commands.push({ code, payload: latin(payload) }))
    )
  }

  fed(stdio: number): Fed {
    const known = this.#fed.get(stdio) ?? { bytes: 0, ended: false, last: 0, at: 0 }
    this.#fed.set(stdio, known)
    return known
  }

  /** Writes a message on io later, in one go with those before it. */
  hold(sequence: number, data: Uint8Array): void {
    this.#unsent.push(IoMessage.encode(sequence, data))
  }

  /** What it has held. */
  release(): Uint8Array {
    return Uint8Array.from(Buffer.concat(this.#unsent.splice(0)))
  }
}
