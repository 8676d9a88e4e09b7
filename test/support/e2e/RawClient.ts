/** A client of the proxy, runtime or shim, that sends any bytes it likes and remembers all it gets. */
import * as Effect from "effect/Effect"
import * as Net from "node:net"
import * as Raw from "./RawBytes.ts"
import { happened, until } from "./Wait.ts"

export class RawClient {
  /** All that came, in order. */
  readonly frames: Array<Raw.Frame> = []
  readonly responses: Array<Raw.Frame> = []
  /** Statuses of ProcessExited. */
  readonly exits: Array<number> = []
  /** Bytes of stdout and stderr so far. */
  readonly received = { stdout: 0, stderr: 0 }
  /** The proxy has shut down its writing side. */
  ended = false
  /** The connection is over in both directions. */
  closed = false
  /** What writing or reading failed with. */
  error: NodeJS.ErrnoException | undefined
  readonly #socket: Net.Socket
  #requests = 0

  constructor(socket: Net.Socket) {
    this.#socket = socket
    const cut = Raw.makeCutter(
      12,
      (bytes) => 12 + bytes.readUInt32BE(8),
      (bytes) => this.#take(Raw.readFrame(bytes))
    )
    socket.on("data", (chunk: Buffer) => {
      try {
        cut(chunk)
      } catch (cause) {
        socket.destroy(cause instanceof Error ? cause : new Error(String(cause)))
      }
      happened()
    })
    socket.on("end", () => {
      this.ended = true
      happened()
    })
    socket.on("error", (error) => {
      this.error = error
      happened()
    })
    socket.on("close", () => {
      this.closed = true
      happened()
    })
    socket.on("drain", happened)
  }

  #take(frame: Raw.Frame): void {
    this.frames.push(frame)
    if (frame.type === Raw.Type.response) this.responses.push(frame)
    if (frame.type === Raw.Type.notification) this.exits.push(frame.payload.readUInt8(0))
    if (frame.type !== Raw.Type.stream) return
    if (frame.opcode === Raw.Stream.stdout) this.received.stdout += frame.payload.length
    if (frame.opcode === Raw.Stream.stderr) this.received.stderr += frame.payload.length
  }

  #stream(opcode: number): Buffer {
    const wanted = this.frames.filter((frame) => frame.type === Raw.Type.stream && frame.opcode === opcode)
    return Buffer.concat(wanted.map((frame) => frame.payload))
  }

  /** Everything that came as stdout. */
  get stdout(): Buffer {
    return this.#stream(Raw.Stream.stdout)
  }

  /** Everything that came as stderr. */
  get stderr(): Buffer {
    return this.#stream(Raw.Stream.stderr)
  }

  /** stdout, stderr and exits in their order, neighbours of one kind joined: `["stdout abc", "exit 0"]`. */
  get story(): ReadonlyArray<string> {
    const story: Array<{ readonly kind: string; text: string }> = []
    for (const frame of this.frames) {
      const kind =
        frame.type === Raw.Type.notification ? "exit" : frame.opcode === Raw.Stream.stdout ? "stdout" : "stderr"
      if (frame.type === Raw.Type.response) continue
      const text = kind === "exit" ? String(frame.payload.readUInt8(0)) : frame.payload.toString("latin1")
      const last = story.at(-1)
      if (last?.kind === kind && kind !== "exit") last.text += text
      else story.push({ kind, text })
    }
    return story.map(({ kind, text }) => `${kind} ${text}`)
  }

  /** Hands bytes to the kernel in one piece, or as soon as it takes them. */
  send(...parts: ReadonlyArray<Uint8Array>): void {
    this.#socket.write(Buffer.concat(parts))
  }

  /** Sends bytes one at a time, each in a write of its own. */
  trickle(bytes: Uint8Array): Effect.Effect<void> {
    return Effect.forEach(
      bytes,
      (byte) =>
        Effect.callback<void>((resume) => {
          this.#socket.write(Uint8Array.of(byte), () => resume(Effect.void))
        }),
      { discard: true }
    )
  }

  /** Bytes that the kernel has not taken. */
  get unsent(): number {
    return this.#socket.writableLength
  }

  /** Sends a command whose response is asked for by `response`; returns that response's number. */
  post(opcode: number, payload: unknown = ""): number {
    this.send(Raw.command(opcode, payload))
    return this.#requests++
  }

  /** Waits for the response to the command that `post` numbered. */
  response(number: number, seconds?: number): Effect.Effect<Raw.Frame> {
    return this.until(`response ${number}`, () => this.responses[number], seconds)
  }

  /** Sends a command and waits for its response. */
  request(opcode: number, payload: unknown = "", seconds?: number): Effect.Effect<Raw.Frame> {
    return Effect.suspend(() => this.response(this.post(opcode, payload), seconds))
  }

  /** Like `until`, but hopeless once the proxy has ended the connection. */
  until<A>(what: string, condition: () => A | undefined | false, seconds?: number): Effect.Effect<A> {
    return until(
      what,
      () => {
        const value = condition()
        if ((value === undefined || value === false) && (this.ended || this.closed)) {
          throw new Error(`the connection ended before ${what} came: ${this.error?.message ?? "EOF"}`)
        }
        return value
      },
      seconds
    )
  }

  /** Waits until the proxy has ended the connection, in whatever manner. */
  dropped(seconds?: number): Effect.Effect<boolean> {
    return until("the end of the connection", () => this.ended || this.closed, seconds)
  }

  /** Whether the proxy has ended the connection. */
  get isDropped(): boolean {
    return this.ended || this.closed
  }

  /** Stops reading, so that the kernel's buffers fill. */
  pause(): void {
    this.#socket.pause()
  }

  resume(): void {
    this.#socket.resume()
  }

  /** Shuts down the writing side, after what was written. */
  end(): void {
    this.#socket.end()
  }

  /** Closes the connection without a word. */
  hangUp(): void {
    this.#socket.destroy()
  }
}

/** Connects to a Unix socket. */
export const connect = (path: string) =>
  Effect.acquireRelease(
    Effect.callback<RawClient, Error>((resume) => {
      const socket = Net.connect({ path, allowHalfOpen: true })
      const refuse = (error: Error) => resume(Effect.fail(error))
      socket.once("error", refuse)
      socket.once("connect", () => {
        socket.off("error", refuse)
        resume(Effect.succeed(new RawClient(socket)))
      })
    }),
    (client) => Effect.sync(() => client.hangUp())
  )
