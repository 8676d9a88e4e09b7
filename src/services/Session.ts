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
import { redactToken, type Signal } from "../domain/ClientCommand.ts"
import type * as DaemonState from "../domain/DaemonState.ts"
import * as Frame from "../domain/Frame.ts"
import type { ProcessStart } from "../domain/HyperData.ts"
import * as IoMessage from "../domain/IoMessage.ts"
import * as ProcessOutput from "../domain/ProcessOutput.ts"
import { Backlog, type Holder, type Keeping } from "./Backlog.ts"
import { Condition } from "./Condition.ts"
import type { VmLost } from "./CtlChannel.ts"
import type { Deadline } from "./Deadlines.ts"
import type { Settings } from "./Settings.ts"
import type { SpoolError } from "./Spool.ts"
import type { Ticket } from "./Ticket.ts"
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
  readonly signal: (session: Session, signal: Signal, ticket: Ticket) => Effect.Effect<void, Told>
  /** Waits for the reply to what an earlier daemon had written for `ticket`. */
  readonly rejoin: (ticket: Ticket) => Effect.Effect<unknown, Told>
  /** Waits until the VM is in step after a restart; absent where it is. */
  readonly restored: Effect.Effect<void> | undefined
  /** Its process has ended, or its VM, and it has no shim: frees it, unless the deadline is cancelled before. `millis`: what is left. */
  readonly orphaned: (session: Session, millis?: number) => Deadline
  /** Its record is no longer true. What depends on it may follow at once where `now` says so. */
  readonly changed: (session: Session, now: boolean) => void
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

/** How what waits in sessions is kept. */
export interface Keepings {
  readonly output: Keeping
  readonly stdin: Keeping
}

/** From the limits of memory, and the spool for what exceeds them. */
export const keepings = (
  { outboxLimit, stdinLimit }: Pick<Settings, "outboxLimit" | "stdinLimit">,
  spool: Keeping["spool"]
): Keepings => ({
  output: { memory: outboxLimit, whole: Frame.wholeEnd, spool },
  stdin: { memory: stdinLimit, whole: ({ length }) => length, spool }
})

/**
 * `idle`: nothing asked, or the last start failed. `waiting`: a start waits for the shim or for its turn. `written`: the
 * agent has been asked. `started`: it has said ACK. Output may come, and end, before the ACK.
 */
export type Phase = "idle" | "waiting" | "written" | "started"

/** Most bytes handed to a shim's wire at once, one chunk at least: a read's worth, and the message that straddles into it. */
const sliceSize = 128 * 1024

/** Bytes that a shim's wire may hold and still be handed more, so that it never runs dry: the rest waits here. */
const wireSize = 64 * 1024

/** A chunk that has been handed to a wire, and where it ends among the bytes that the wire was offered. */
interface Handed {
  readonly chunk: Uint8Array
  readonly end: number
}

/** A session as an earlier daemon had it; `memory` where nothing of that is lost. */
export interface Earlier {
  readonly record: DaemonState.SessionRecord
  readonly memory?: DaemonState.SessionMemory
  /** Whether what it had in memory is lost: its daemon was killed. */
  readonly torn: boolean
  readonly bytesOf: (ref: DaemonState.Ref) => Uint8Array
}

const empty = new Uint8Array(0)

const outputOf = ({ output: { early, ended, status } }: DaemonState.SessionRecord): ProcessOutput.Carried => ({
  early,
  ended,
  status
})

/** How many of a wire's bytes the kernel has taken. */
const takenOf = (wire: Wire): number => wire.offered() - wire.pending()

export class Session implements Holder {
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
  #orphan: Deadline | undefined
  #heard = false

  // output: the range that is being extended, what waits, in whole frames, and the last that was handed over
  readonly #output: ProcessOutput.ProcessOutput
  #open: Uint8Array | undefined
  #openStart = 0
  #openEnd = 0
  readonly #outbox: Backlog
  #handed: Array<Handed> = [] // what the kernel may not have taken, oldest first
  #draining = false
  #statusDue = false // it stood behind what is on disk, in the memory of a daemon that was killed, or it is the last on disk

  // stdin
  readonly #inbox: Backlog
  #eof: "none" | "waiting" | "sent" = "none"
  #window = Number.POSITIVE_INFINITY
  #fed = 0
  #flooding = false // the last message was full

  /** A session with its token and its stdio sequence number. */
  constructor(token: string, stdio: number, owner: Owner, { output, stdin }: Keepings, earlier?: Earlier) {
    this.token = token
    this.stdio = stdio
    this.owner = owner
    this.#output = ProcessOutput.make(stdio, earlier && outputOf(earlier.record))
    this.#outbox = new Backlog(output, this)
    this.#inbox = new Backlog(stdin, this)
    if (earlier !== undefined) this.#resume(earlier)
  }

  #resume({ bytesOf, memory, record, torn }: Earlier) {
    this.#phase = record.phase
    if (record.process !== undefined) this.#process = { ...record.process, process: record.process.process }
    this.#eof = record.stdinEnd
    const { output, stdin } = record.waiting
    const bytes = (ref: DaemonState.Ref | undefined) => (ref === undefined ? empty : bytesOf(ref))
    this.#outbox.resume({ head: bytes(memory?.output.head), segments: output, tail: bytes(memory?.output.tail) })
    this.#inbox.resume({ head: bytes(memory?.stdin.head), segments: stdin, tail: bytes(memory?.stdin.tail) })
    this.#statusDue = torn && record.output.status !== undefined && this.#outbox.size > 0
    if (memory === undefined) return
    this.#handed = memory.handed.map(({ chunk, end }) => ({ chunk: bytesOf(chunk).slice(), end }))
    this.#window = memory.window ?? Number.POSITIVE_INFINITY
    this.#fed = memory.fed
    this.#flooding = memory.flooding
    this.#heard = memory.heard
  }

  /** What a new daemon needs of it after any death of this one. */
  record(): DaemonState.SessionRecord {
    const phase = this.#phase === "waiting" ? "idle" : this.#phase
    return {
      token: this.token,
      stdio: this.stdio,
      claimed: this.#shim !== undefined,
      phase,
      process: phase === "idle" ? undefined : this.#process,
      output: this.#output.carry(),
      stdinEnd: this.#eof,
      waiting: { output: this.#outbox.segments(), stdin: this.#inbox.segments() }
    }
  }

  /** What it has in memory, for a daemon that takes this one's place at `now`. Changes nothing. */
  carry(blobs: DaemonState.Blobs, now: number): DaemonState.SessionMemory {
    const put = (backlog: Backlog) => {
      const { head, tail } = backlog.carry()
      return { head: blobs.put(head), tail: blobs.put(tail) }
    }
    const taken = this.#shim === undefined ? 0 : takenOf(this.#shim.wire)
    return {
      output: put(this.#outbox),
      stdin: put(this.#inbox),
      handed: this.#handed.map(({ chunk, end }) => ({ chunk: blobs.put([chunk]), end: end - taken })),
      window: Number.isFinite(this.#window) ? this.#window : undefined,
      fed: this.#fed,
      flooding: this.#flooding,
      heard: this.#heard,
      orphan: this.#orphan && Math.max(this.#orphan.due - now, 0)
    }
  }

  /** Gives it back to the shim that an earlier daemon served, whose new wire has unsent what the old one had. */
  rejoin(shim: Shim, attached: boolean): void {
    this.#shim = shim
    this.#attached = attached
    if (attached) this.flush()
    this.#changed.notify()
  }

  /** Every shim that an earlier daemon served is there again, or gone. `orphan`: millis that are left without one. */
  resumed(orphan?: number): void {
    if (this.#shim === undefined) {
      this.#takeBack(0)
      if (this.#over !== undefined || this.status !== undefined) this.#orphan ??= this.owner.orphaned(this, orphan)
    }
    this.#outbox.settle()
    this.#inbox.settle()
    this.#wake()
  }

  /** The process may have ended unseen: its status is not to be had any more. */
  lost(status: number): void {
    if (this.status !== undefined) return
    const frame = this.#output.exit(status, "never started")
    if (frame === undefined) return
    this.emit(frame, 0, frame.length)
    this.flush()
    this.#exited(status)
  }

  /** Puts what waits on disk, for a daemon that comes later. Nothing is delivered or fed any more. */
  get park(): Effect.Effect<void, SpoolError> {
    return Effect.ensuring(this.#outbox.park, Effect.ignore(this.#inbox.park))
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
  /** Whether any output has come. */
  get heard(): boolean {
    return this.#heard
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
    this.#orphan?.cancel()
    this.#orphan = undefined
    this.#changed.notify()
    return undefined
  }

  /** Sends what has waited for the shim that claimed, and from now on what comes. */
  attach(candidate: Shim): void {
    if (this.#shim !== candidate) return
    this.#attached = true
    const { status } = this
    // an earlier shim was sent it, and may not have lived to read it
    if (status !== undefined && this.#outbox.size === 0) this.#outbox.push(ProcessOutput.exitFrame(status))
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
    this.#takeBack(takenOf(candidate.wire))
    this.#shim = undefined
    this.#attached = false
    this.#draining = false
    this.#orphaned()
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
    this.#output.reset()
    this.owner.changed(this, true)
    this.#changed.notify()
  }

  /** What became of the start: it runs, or another may be tried. */
  settled(started: boolean): void {
    const asked = this.#phase === "written"
    this.#phase = started ? "started" : "idle"
    if (!started) this.#output.reset()
    if (asked) this.owner.changed(this, true)
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
      if (this.#attached) this.#hand(this.#shim!.wire, this.#outbox.take(sliceSize))
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
    if (this.#attached && (outbox.ready > 0 || this.#handed.length > 0)) this.#send(this.#shim!)
    outbox.settle()
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

  /** Output for which there is no room: its VM's output should pause. */
  get output(): Pick<Backlog, "full" | "roomy" | "stuck"> {
    return this.#outbox
  }

  /** Bytes of output that wait, here, in the spool, or in the shim's wire. */
  backlog(): number {
    return this.#outbox.size + (this.#shim !== undefined && this.#handed.length > 0 ? this.#shim.wire.pending() : 0)
  }

  /** Takes stdin, or its end where `data` is empty. Follow it with `pump`, once a batch. */
  feed(data: Uint8Array): void {
    // what nobody can take any more is not kept: its shim must not stop at it
    if (this.#eof !== "none" || this.#over !== undefined || this.status !== undefined) return
    if (data.length === 0) {
      this.#eof = "waiting"
      this.owner.changed(this, false)
    } else {
      this.#inbox.push(data)
    }
    this.#fed += data.length
  }

  /** Sends stdin, if the process has started. */
  pump(): void {
    this.#wake()
    this.#inbox.settle()
  }

  /** Whether there is no room for more stdin: the shim's should pause. */
  stuffed(): boolean {
    return this.#inbox.full()
  }

  /** Takes up to `size` bytes of messages for the agent, in a buffer of its own; `undefined` where none may be sent now. */
  takeStdin(rule: Agent.StdinRule, size: number): Uint8Array | undefined {
    if (!this.#hasStdin()) return undefined
    this.#window = Math.min(this.#window, rule.window)
    const { headerSize } = IoMessage
    const inbox = this.#inbox
    const most = Math.min(inbox.ready, this.#window)
    const out = new Uint8Array(Math.min(size, most + (Math.ceil(most / rule.messageData) + 1) * headerSize))
    let at = 0
    for (;;) {
      const length = Math.min(rule.messageData, inbox.ready, this.#window)
      if (length === 0 || at + headerSize + length > out.length) break
      if (inbox.ready < rule.messageData && inbox.coming) break
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
      this.owner.changed(this, false)
    }
    if (at === 0) return undefined
    inbox.settle()
    this.#changed.notify()
    return out.subarray(0, at)
  }

  /** Takes back a message of stdin that has not left: the last of those that were taken and not taken back. */
  untake(data: Uint8Array): void {
    if (data.length > 0) this.#inbox.unshift([data])
    else if (this.#eof === "sent") this.#eof = "waiting"
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
    const { coming, size } = this.#inbox
    return this.#flooding && size > 0 && !coming && this.#eof === "none" ? this.#fed : undefined
  }

  /** Nothing more has come in time: what is there may go. */
  sendTail(): void {
    this.#flooding = false
  }

  /** The shim has said goodbye, or nobody may come back: drops what waits. */
  close(reason: SessionError | VmLost): void {
    this.#over ??= reason
    this.#shim = undefined // its end is nobody's any more
    this.#attached = false
    this.#outbox.clear()
    this.#handed = []
    this.#open = undefined
    this.#inbox.clear()
    this.#orphan?.cancel()
    this.#changed.notify()
  }

  /** The VM is gone: what was received is still delivered. */
  lose(lost: VmLost): void {
    this.#over ??= lost
    this.#inbox.clear()
    this.#orphaned()
    this.#changed.notify()
  }

  moved(backlog: Backlog): void {
    if (backlog === this.#inbox) this.#wake()
    else this.flush()
    this.#changed.notify()
  }

  cut(backlog: Backlog): void {
    // the status was the last of it
    if (backlog === this.#outbox && this.status !== undefined) this.#outbox.push(ProcessOutput.exitFrame(this.status))
  }

  kept(): void {
    this.owner.changed(this, true)
  }

  fields(backlog: Backlog): Readonly<Record<string, unknown>> {
    const stream = backlog === this.#inbox ? "stdin" : "output"
    return { vm: this.owner.id, container: this.#process?.container, stream }
  }

  #seal() {
    const bytes = this.#open
    if (bytes === undefined) return
    const whole = this.#openStart === 0 && this.#openEnd === bytes.length
    this.#outbox.push(whole ? bytes : bytes.subarray(this.#openStart, this.#openEnd))
    this.#open = undefined
  }

  /** What the kernel did not take, the shim cannot have read; the next one begins with a whole frame. */
  #takeBack(taken: number) {
    this.#trim(taken)
    const [torn, ...rest] = this.#handed
    this.#handed = []
    if (torn === undefined) return
    const left = Math.min(torn.end - taken, torn.chunk.length)
    const whole = Frame.wholeEnd(torn.chunk.subarray(0, torn.chunk.length - left))
    this.#outbox.unshift([torn.chunk.subarray(whole), ...rest.map(({ chunk }) => chunk)])
  }

  /** Forgets the chunks that the kernel has taken to their ends. */
  #trim(taken: number) {
    let count = 0
    while (count < this.#handed.length && this.#handed[count]!.end <= taken) count++
    if (count > 0) this.#handed.splice(0, count)
  }

  /** Hands over what waits, as long as the shim keeps up; and goes on with it once the wire has drained. */
  #send(shim: Shim) {
    const { wire } = shim
    while (this.#outbox.ready > 0 && wire.pending() <= wireSize) {
      const chunks = this.#outbox.take(sliceSize)
      if (this.#statusDue && this.#outbox.size === 0) {
        this.#statusDue = false
        if (!Frame.endsWithNotification(chunks.at(-1)!)) this.#outbox.push(ProcessOutput.exitFrame(this.status!))
      }
      this.#hand(wire, chunks)
    }
    if (this.#draining || (this.#outbox.ready === 0 && this.#handed.length === 0)) return
    this.#draining = true
    shim.run(
      Effect.matchEffect(wire.drained, {
        onSuccess: () => Effect.sync(() => this.#drained(shim)),
        onFailure: () => Effect.void // its end releases it
      })
    )
  }

  #hand(wire: Wire, chunks: ReadonlyArray<Uint8Array>) {
    let end = wire.offered()
    wire.offer(chunks)
    if (wire.pending() > 0) for (const chunk of chunks) this.#handed.push({ chunk, end: (end += chunk.length) })
    this.#trim(takenOf(wire))
  }

  #drained(shim: Shim) {
    if (this.#shim !== shim) return
    this.#draining = false
    this.#trim(takenOf(shim.wire))
    this.flush()
    this.#changed.notify()
  }

  /** The process has ended: its shim may be stuck in writing stdin, and would never read the status. */
  #exited(status: number) {
    this.#inbox.clear()
    this.owner.changed(this, false)
    this.#changed.notify()
    this.owner.exited(this, status)
    this.#orphaned()
  }

  #orphaned() {
    if (this.#shim !== undefined || (this.#over === undefined && this.status === undefined)) return
    this.#orphan ??= this.owner.orphaned(this)
  }

  #wake() {
    if (this.#hasStdin()) this.owner.stdin(this)
  }

  /** Whether there is stdin, and a process that runs. */
  #hasStdin(): boolean {
    const running = this.#phase === "started" && this.#over === undefined && this.status === undefined
    return running && (this.#inbox.size > 0 || this.#eof === "waiting")
  }
}
