/**
 * One process's I/O session: a token, two sequence numbers, the shim that has claimed the token at the moment, the output
 * that waits for it, and the stdin that waits for the process. Its VM owns it; it outlives any number of shims.
 *
 * Output and stdin pass through without an effect of their own: whoever brings a batch calls `deliver` and `flush`, or `feed`
 * and `pump`.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Agent from "../domain/Agent.ts"
import { ByteQueue } from "../domain/ByteQueue.ts"
import { redactToken, type Signal } from "../domain/ClientCommand.ts"
import type { ProcessStart } from "../domain/HyperData.ts"
import * as IoMessage from "../domain/IoMessage.ts"
import * as ProcessOutput from "../domain/ProcessOutput.ts"
import { Condition } from "./Condition.ts"
import type { VmLost } from "./CtlChannel.ts"
import type { Wire } from "./Wire.ts"

/** What a token cannot be used for, and why. */
export class SessionError extends Schema.TaggedError<SessionError>()("SessionError", { reason: Schema.String }) {
  override get message(): string {
    return this.reason
  }
}

/** What a command may fail with: an error whose message is for the log and for the client, unless it has more to tell. */
export interface Told {
  readonly message: string
  readonly told?: string
}

/** The VM, as its sessions see it. What they tell, they tell inside the call that caused it. */
export interface Owner {
  /** The `containerId` it was registered with. */
  readonly id: string
  /** Stdin may have become sendable. */
  readonly stdin: (session: Session) => void
  readonly firstOutput: (session: Session) => void
  readonly exited: (session: Session, status: number) => void
  /** Sends a checked signal, or a terminal size, to the process. Waits until the process has started. */
  readonly signal: (session: Session, signal: Signal) => Effect.Effect<void, Told>
  /** The shim has said goodbye: ends the session for good. */
  readonly close: (session: Session) => void
}

/** The shim's connection, as its session sees it. */
export interface Shim {
  readonly wire: Wire
  /** Runs an effect for as long as the connection lasts. */
  readonly run: (effect: Effect.Effect<void>) => void
  /** Ends the connection, by half-close. */
  readonly end: (reason: string) => void
}

/**
 * `idle`: nothing asked, or the last start failed. `waiting`: a start waits for the shim or for its turn. `written`: the
 * agent has been asked. `started`: it has said ACK. Output may come, and end, before the ACK.
 */
export type Phase = "idle" | "waiting" | "written" | "started"

/** Most bytes handed to a shim's wire at once, one chunk at least: a read's worth, and the message that straddles into it. */
const sliceSize = 128 * 1024

/** Bytes that a shim's wire may hold and still be handed more, so that it never runs dry: the rest waits here. */
const wireSize = 64 * 1024

const nothing: ReadonlyArray<Uint8Array> = []

export class Session {
  readonly token: string
  /** Sequence number of stdin and stdout; stderr's is the next one. */
  readonly stdio: number
  readonly owner: Owner
  readonly #changed = new Condition()
  #phase: Phase = "idle"
  #process: ProcessStart | undefined
  #shim: Shim | undefined
  #attached = false
  #over: SessionError | VmLost | undefined
  #heard = false

  // output: the range that is being extended, what waits, in whole frames, and the last that was handed over
  readonly #output: ProcessOutput.ProcessOutput
  #open: Uint8Array | undefined
  #openStart = 0
  #openEnd = 0
  readonly #outbox = new ByteQueue()
  #handed = nothing
  #handedSize = 0
  #draining = false

  // stdin
  readonly #inbox = new ByteQueue()
  #eof: "none" | "waiting" | "sent" = "none"
  #window = Number.POSITIVE_INFINITY
  #fed = 0
  #flooding = false // the last message was full

  /** A session with its token and its stdio sequence number. */
  constructor(token: string, stdio: number, owner: Owner) {
    this.token = token
    this.stdio = stdio
    this.owner = owner
    this.#output = ProcessOutput.make(stdio)
  }

  get phase(): Phase {
    return this.#phase
  }
  get process(): ProcessStart | undefined {
    return this.#process
  }
  get shim(): Shim | undefined {
    return this.#shim
  }
  /** Whether the shim has had the answer to its claim. */
  get attached(): boolean {
    return this.#attached
  }
  get outputEnded(): boolean {
    return this.#output.ended()
  }
  get status(): number | undefined {
    return this.#output.status()
  }
  /** Why nothing can be waited for any more. */
  get over(): SessionError | VmLost | undefined {
    return this.#over
  }
  /** Notified at every change of the above, and of what waits. */
  get changed(): Condition {
    return this.#changed
  }

  /** Gives the session to a shim. Its output is not sent before `attach`: the response comes first. */
  claim(candidate: Shim): SessionError | undefined {
    if (this.#shim !== undefined)
      return new SessionError({ reason: `token already claimed: ${redactToken(this.token)}` })
    this.#shim = candidate
    this.#changed.notify()
    return undefined
  }

  /** Sends what has waited for the shim that claimed, and from now on what comes. */
  attach(candidate: Shim): void {
    if (this.#shim !== candidate) return
    this.#attached = true
    this.flush()
    this.#changed.notify()
  }

  /** The shim's connection is about to end: it gets no more than it has been handed. */
  detach(candidate: Shim): void {
    if (this.#shim === candidate) this.#attached = false
  }

  /** The shim's connection has ended. What it did not take is kept for the next. */
  release(candidate: Shim): void {
    if (this.#shim !== candidate) return
    // what the kernel did not take to its end, the shim cannot have read
    this.#trim(candidate.wire)
    this.#outbox.unshift(this.#handed)
    this.#handed = nothing
    this.#handedSize = 0
    this.#shim = undefined
    this.#attached = false
    this.#draining = false
    this.#changed.notify()
  }

  /** Reserves the session for one process. */
  begin(start: ProcessStart): SessionError | VmLost | undefined {
    if (this.#over !== undefined) return this.#over
    if (this.#phase !== "idle")
      return new SessionError({ reason: `token already used: ${redactToken(this.token)} has started a process` })
    if (this.status !== undefined) return this.killed()
    this.#phase = "waiting"
    this.#process = start
    return undefined
  }

  written(): void {
    this.#phase = "written"
    this.#changed.notify()
  }

  /** What became of the start: it runs, or another may be tried. */
  settled(started: boolean): void {
    this.#phase = started ? "started" : "idle"
    this.#changed.notify()
    this.#wake()
  }

  /** What a start fails with that `killUnstarted` came before. */
  killed(): SessionError {
    return new SessionError({ reason: `process of token ${redactToken(this.token)} was killed before its start` })
  }

  /** Ends a process that nothing has been written for, with status 0. False where it is too late for that. */
  killUnstarted(): boolean {
    if (this.#phase === "written" || this.#phase === "started") return false
    const frame = this.#output.exit(0, "never started")
    if (frame !== undefined) {
      this.#outbox.push(frame)
      // the response to the signal follows, so this leaves now: 13 bytes, even to a shim that is behind
      if (this.#attached) this.#shim!.wire.offer(this.#outbox.take(sliceSize))
      this.#exited(0)
    }
    return true
  }

  /** Takes the ownership of a run of output. Follow it with `flush`, once a batch. Returns bytes dropped after the end. */
  deliver(run: IoMessage.Run): number {
    if (!this.#heard) {
      this.#heard = true
      this.owner.firstOutput(this)
    }
    const running = this.status === undefined
    const dropped = this.#output.rewrite(run, this)
    const status = this.status
    if (running && status !== undefined) this.#exited(status)
    return dropped
  }

  /** Takes the next range of frames, as `ProcessOutput` makes them. */
  emit(bytes: Uint8Array, start: number, end: number): void {
    if (this.#open === bytes && this.#openEnd === start) {
      this.#openEnd = end
      return
    }
    this.#seal()
    this.#open = bytes
    this.#openStart = start
    this.#openEnd = end
  }

  flush(): void {
    this.#seal()
    const outbox = this.#outbox
    if (this.#attached && (outbox.size > 0 || this.#handed.length > 0)) this.#send(this.#shim!)
    if (outbox.size > 0) outbox.settle()
    if (outbox.size > 0 || this.#handed.length > 0) this.#changed.notify()
  }

  /** The exit status, told by an event. */
  exit(status: number): void {
    const frame = this.#output.exit(status)
    if (frame === undefined) return
    this.emit(frame, 0, frame.length)
    this.flush()
    this.#exited(status)
  }

  /** Bytes of output that wait, here or in the shim's wire. */
  backlog(): number {
    return this.#outbox.size + (this.#shim !== undefined && this.#handed.length > 0 ? this.#shim.wire.pending() : 0)
  }

  /** Takes stdin, or its end where `data` is empty. Follow it with `pump`, once a batch. */
  feed(data: Uint8Array): void {
    // what nobody can take any more is not kept: its shim must not stop at it
    if (this.#eof !== "none" || this.#over !== undefined || this.status !== undefined) return
    if (data.length === 0) this.#eof = "waiting"
    else this.#inbox.push(data)
    this.#fed += data.length
  }

  /** Sends stdin, if the process has started. */
  pump(): void {
    this.#wake()
    if (this.#inbox.size > 0) this.#inbox.settle()
  }

  /** Bytes of stdin that wait. */
  unfed(): number {
    return this.#inbox.size
  }

  /** Takes up to `size` bytes of messages for the agent, in a buffer of its own; `undefined` where none may be sent now. */
  takeStdin(rule: Agent.StdinRule, size: number): Uint8Array | undefined {
    if (this.#phase !== "started" || this.#over !== undefined) return undefined
    if (this.#inbox.size === 0 && this.#eof !== "waiting") return undefined
    this.#window = Math.min(this.#window, rule.window)
    const { headerSize } = IoMessage
    const inbox = this.#inbox
    const most = Math.min(inbox.size, this.#window)
    const out = new Uint8Array(Math.min(size, most + (Math.ceil(most / rule.messageData) + 1) * headerSize))
    let at = 0
    for (;;) {
      const length = Math.min(rule.messageData, inbox.size, this.#window)
      if (length === 0 || at + headerSize + length > out.length) break
      if (rule.full && this.#flooding && length < rule.messageData && this.#eof === "none") break
      this.#flooding = length === rule.messageData
      IoMessage.writeHeader(out, at, this.stdio, length)
      inbox.read(out, at + headerSize, length)
      at += headerSize + length
      this.#window -= length
    }
    if (inbox.size === 0 && this.#eof === "waiting" && at + headerSize <= out.length) {
      IoMessage.writeHeader(out, at, this.stdio, 0)
      at += headerSize
      this.#eof = "sent"
    }
    if (at === 0) return undefined
    this.#changed.notify()
    return out.subarray(0, at)
  }

  /** Whether stdin waits for nothing but a new window. */
  needsWindow(): boolean {
    return this.#inbox.size > 0 && this.#window === 0
  }

  openWindow(): void {
    this.#window = Number.POSITIVE_INFINITY
  }

  /** Whether stdin waits for more, so that its messages stay full, and how many bytes have come in all. */
  waitsForMore(): number | undefined {
    return this.#flooding && this.#inbox.size > 0 && this.#eof === "none" ? this.#fed : undefined
  }

  /** Nothing more has come in time: what is there may go. */
  sendTail(): void {
    this.#flooding = false
  }

  /** The shim has said goodbye, or nobody may come back: drops what waits. */
  close(reason: SessionError | VmLost): void {
    this.#over ??= reason
    this.#outbox.clear()
    this.#handed = nothing
    this.#handedSize = 0
    this.#open = undefined
    this.#inbox.clear()
    this.#changed.notify()
  }

  /** The VM is gone: what was received is still delivered. */
  lose(lost: VmLost): void {
    this.#over ??= lost
    this.#inbox.clear()
    this.#changed.notify()
  }

  #seal() {
    const bytes = this.#open
    if (bytes === undefined) return
    const whole = this.#openStart === 0 && this.#openEnd === bytes.length
    this.#outbox.push(whole ? bytes : bytes.subarray(this.#openStart, this.#openEnd))
    this.#open = undefined
  }

  /** Forgets what the kernel has taken of what was handed over, but for the chunk that it may have taken in part. */
  #trim(wire: Wire) {
    const pending = wire.pending()
    if (pending === 0) {
      this.#handed = nothing
      this.#handedSize = 0
      return
    }
    let taken = 0
    for (; taken < this.#handed.length; taken++) {
      const size = this.#handed[taken]!.length
      if (this.#handedSize - size < pending) break
      this.#handedSize -= size
    }
    if (taken > 0) this.#handed = this.#handed.slice(taken)
  }

  /** Hands over what waits, as long as the shim keeps up; and goes on with it once the wire has drained. */
  #send(shim: Shim) {
    const { wire } = shim
    while (this.#outbox.size > 0 && wire.pending() <= wireSize) {
      const slice = this.#outbox.take(sliceSize)
      wire.offer(slice)
      if (wire.pending() === 0) {
        this.#trim(wire)
        continue
      }
      for (const chunk of slice) this.#handedSize += chunk.length
      this.#handed = this.#handed.concat(slice)
      this.#trim(wire)
    }
    if (this.#draining || (this.#outbox.size === 0 && this.#handed.length === 0)) return
    this.#draining = true
    shim.run(
      Effect.matchEffect(wire.drained, {
        onSuccess: () => Effect.sync(() => this.#drained(shim)),
        onFailure: () => Effect.void // its end releases it
      })
    )
  }

  #drained(shim: Shim) {
    if (this.#shim !== shim) return
    this.#draining = false
    this.#trim(shim.wire)
    this.flush()
    this.#changed.notify()
  }

  /** The process has ended: its shim may be stuck in writing stdin, and would never read the status. */
  #exited(status: number) {
    this.#inbox.clear()
    this.#changed.notify()
    this.owner.exited(this, status)
  }

  #wake() {
    if (this.#phase === "started" && this.#over === undefined && (this.#inbox.size > 0 || this.#eof === "waiting"))
      this.owner.stdin(this)
  }
}
