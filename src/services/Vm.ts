/**
 * One VM's life: its agent's two channels, the sessions of its processes, and what clients may ask of them. It ends when one
 * of the channels does.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberSet from "effect/FiberSet"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type * as Tracer from "effect/Tracer"
import * as Agent from "../domain/Agent.ts"
import * as Bytes from "../domain/Bytes.ts"
import { type Hyper, type MalformedCommand, redactToken, Sig, type Signal } from "../domain/ClientCommand.ts"
import * as CtlMessage from "../domain/CtlMessage.ts"
import type * as DaemonState from "../domain/DaemonState.ts"
import * as HyperData from "../domain/HyperData.ts"
import * as IoMessage from "../domain/IoMessage.ts"
import * as Condition from "./Condition.ts"
import * as Counters from "./Counters.ts"
import { type Carried, type CtlChannel, type CtlFailure, type CtlRequest, type Handlers, VmLost } from "./CtlChannel.ts"
import { type Deadline, Deadlines, elapsedMillis } from "./Deadlines.ts"
import { type ConnectFailed, Hyperstart, type HyperstartConnection, type VmSockets } from "./Hyperstart.ts"
import { type Keepings, keepings, type Owner, Session, SessionError } from "./Session.ts"
import { Sessions, UnknownToken } from "./Sessions.ts"
import { ServiceManager } from "./ServiceManager.ts"
import { Settings } from "./Settings.ts"
import { Spool } from "./Spool.ts"
import { type Recorded, States } from "./States.ts"
import { StdinWriter } from "./StdinWriter.ts"
import type { Ticket } from "./Ticket.ts"
import { type CarriedWire, Descriptors } from "./Wire.ts"

/** A client named a command that no client may send, or that does not exist. Nothing has been queued. */
export class UnknownCommand extends Schema.TaggedError<UnknownCommand>()("UnknownCommand", {
  command: Schema.String
}) {
  override get message(): string {
    return `unknown command '${this.command}'`
  }
}

/** A command came with more tokens than it takes: none, or one for a command that starts a process. */
export class TooManyTokens extends Schema.TaggedError<TooManyTokens>()("TooManyTokens", {
  command: Schema.String,
  given: Schema.Int,
  taken: Schema.Literals([0, 1])
}) {
  override get message(): string {
    return this.taken === 0
      ? `${this.command} doesn't need tokens but ${this.given} token(s) were given`
      : `expected 0 or 1 token, got ${this.given}`
  }
}

/** Somebody else did not come in time: the shim of a start, or the process of a signal. */
export class WaitTimeout extends Schema.TaggedError<WaitTimeout>()("WaitTimeout", {
  what: Schema.String,
  after: Schema.Duration
}) {
  override get message(): string {
    return `timeout waiting for ${this.what}, ${Duration.format(this.after)}`
  }
}

/** A signal cannot be delivered: its process has ended, or its agent has no way to signal it. */
export class SignalRefused extends Schema.TaggedError<SignalRefused>()("SignalRefused", { reason: Schema.String }) {
  override get message(): string {
    return this.reason
  }
}

export type HyperFailure =
  | CtlFailure
  | MalformedCommand
  | UnknownCommand
  | TooManyTokens
  | UnknownToken
  | SessionError
  | WaitTimeout

export type SignalFailure = CtlFailure | SessionError | WaitTimeout | SignalRefused

/** The first token gets 3 and 4; 1 and 2 are the null session's. Source: PROTOCOL.md, "Starting processes". */
const firstSequence = 3
const nullStdio = 1
const nullStderr = 2

/** Millis that the second channel may take to end after the first, and that it may be silent while it gives out what it holds. */
const lastWords = 100

/** Millis between two looks at a channel that is not pulled. */
const lookEvery = 1000

/** Millis that what the kernel had may take until it is on its way to the sessions, while the daemon stops. */
const lastPull = 500

/** Millis without output after which no more is on its way. */
const quietMillis = 100

/** How often that is waited for, at most: what a socket holds is read in far less. */
const mostLastWords = 10

/** Most bytes read from a VM's io channel after its loss: more than a socket holds, and no flood of one whose ctl has ended. */
const maxLastWords = 4 * 1024 * 1024

const empty = new Uint8Array(0)
const disconnected = new SessionError({ reason: "the shim has disconnected" })
const abandoned = new SessionError({ reason: "no shim came back" })
const notConnected = new VmLost({ reason: "it is not connected yet" })
const stopped = new SessionError({ reason: "the daemon stops" })

/** Status of a process whose own is not to be had any more. Source: PROTOCOL.md, "Restarts". */
const unknownStatus = 255

/** Millis that a VM has to get in step after a restart before its shims are answered all the same. */
const restoreMillis = 10_000

/** A VM as an earlier daemon had it. */
export interface Earlier {
  readonly file: string
  readonly record: DaemonState.VmRecord
  /** What else is known where nothing is lost: of a daemon that has handed over, or stopped in good order. */
  readonly rest?: DaemonState.Vm
  readonly bytesOf: (ref: DaemonState.Ref) => Uint8Array
  /** Its connections, where they have been kept. */
  readonly wires: Carried | undefined
}

/** A start in the session of a token. */
interface StartRequest extends CtlRequest {
  readonly ticket: Ticket
  readonly onWritten: () => void
  readonly onReply: () => void
}

/** What a VM is made with: its surroundings. */
interface Surroundings {
  readonly states: States["Service"]
  readonly manager: ServiceManager["Service"]
  readonly inode: Descriptors["Service"]["inode"]
  readonly settings: Settings
  readonly sessions: Sessions["Service"]
  readonly deadlines: Deadlines["Service"]
  readonly clock: Clock.Clock
  readonly keepings: Keepings
  /** Runs effects for as long as the VM lives. */
  readonly run: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
  readonly span: Tracer.Span
}

export class Vm implements Owner, Handlers, Recorded {
  /** The `containerId` it was registered with. */
  readonly id: string
  readonly file: string
  readonly #sockets: VmSockets
  readonly #around: Surroundings
  readonly #changed = new Condition.Condition()
  readonly #routes = new Map<number, Session>() // by both sequence numbers
  readonly #sessions = new Set<Session>()
  readonly #spans = new Map<Session, Tracer.Span>()
  #connection: HyperstartConnection | undefined // none of a VM that an earlier daemon had lost
  #carryBooting: (() => Carried | undefined) | undefined
  #inodes: ReadonlyArray<number> | undefined
  #starting = false // a start has been written, and has no reply yet
  #restoring = false // not in step yet, after a restart
  #parked = false // it is a later daemon's
  #stdin!: StdinWriter
  #nextSequence = firstSequence
  #exits: Array<Agent.ProcessEvent> = [] // of processes without a name, whose output had not ended
  #unnamed = false // a process was started without an id
  #unregistered = false
  #lost: VmLost | undefined
  #api: number | undefined
  #asking: Fiber.Fiber<number, CtlFailure> | undefined

  // output
  readonly #touched = new Set<Session>()
  #batches = 0
  #pauses = 0
  #afterLoss = 0 // bytes read since
  #stray = 0
  #readAll = false // the stream of output has ended
  #drained = false // after the loss: everything that had been sent has been read

  constructor(id: string, file: string, sockets: VmSockets, around: Surroundings) {
    this.id = id
    this.file = file
    this.#sockets = sockets
    this.#around = around
  }

  /** Takes the connection over, once there is one. `kept`: the service manager has it already. */
  connected(connection: HyperstartConnection, kept = false): void {
    const { inode, manager, run, settings, span } = this.#around
    this.#connection = connection
    this.#carryBooting = undefined
    this.#stdin = new StdinWriter(connection.input, connection.ctl, settings.debug, run, kept)
    span.attribute("ready", true)
    const descriptors = connection.descriptors()
    const inodes = descriptors.flatMap((descriptor) => inode(descriptor) ?? [])
    this.#inodes = inodes.length > 0 ? inodes : undefined
    if (!kept && manager.keeps && descriptors.length > 0) run(manager.keep(this.file, descriptors))
  }

  connecting(carry: () => Carried | undefined): void {
    this.#carryBooting = carry
  }

  /** Its connections before READY has come, for a daemon that takes this one's place. */
  carryBooting(): Carried | undefined {
    return this.#carryBooting?.()
  }

  /** What a new daemon needs of it after any death of this one. */
  record(): Omit<DaemonState.VmRecord, "version" | "socket"> {
    const { console, ctl, io } = this.#sockets
    return {
      id: this.id,
      ctl,
      io,
      console,
      inodes: this.#inodes,
      registered: !this.#unregistered,
      lost: this.#lost?.reason,
      agent: this.#connection?.ctl.kind() ?? "unknown",
      api: this.#api,
      unnamed: this.#unnamed,
      nextSequence: this.#nextSequence,
      starting: this.#starting,
      clean: this.#parked,
      inStep: this.#parked && this.#connection !== undefined && !this.#connection.ctl.busy(),
      sessions: Array.from(this.#sessions, (session) => session.record())
    }
  }

  /** Writes its record, before anything that depends on it follows. */
  save(): void {
    this.#around.states.save(this)
  }

  /** All that it is at `now`, for a daemon that takes this one's place; and the ticket of the command that its agent owes. */
  carry(
    blobs: DaemonState.Blobs,
    wire: (carried: CarriedWire) => DaemonState.Wire,
    now: number
  ): { readonly vm: Omit<DaemonState.Vm, "record">; readonly ticket: Ticket | undefined } {
    const carried = this.#lost === undefined ? this.#connection?.carry() : undefined
    const { channel, ticket } = this.#connection?.ctl.carry(now) ?? { channel: undefined, ticket: undefined }
    const live =
      carried === undefined || channel === undefined
        ? undefined
        : { ctl: wire(carried.ctl), io: wire(carried.io), channel }
    const sessions = Array.from(this.#sessions, (session) => session.carry(blobs, now))
    return { vm: { file: this.file, live, sessions, exits: this.#exits }, ticket }
  }

  /** Takes over what an earlier daemon had, but its connection. */
  resume({ bytesOf, record, rest }: Earlier): void {
    this.#nextSequence = record.nextSequence
    this.#unregistered = !record.registered
    this.#api = record.api
    this.#unnamed = record.unnamed
    this.#starting = record.starting
    this.#exits = Array.from(rest?.exits ?? [])
    this.#restoring = record.lost === undefined && rest?.live === undefined
    if (record.lost !== undefined) this.#lost = new VmLost({ reason: record.lost })
    for (const [at, session] of record.sessions.entries()) {
      const memory = rest?.sessions[at]
      this.#add(
        new Session(session.token, session.stdio, this, this.#around.keepings, {
          record: session,
          bytesOf,
          torn: rest === undefined && !record.clean,
          ...(memory !== undefined && { memory })
        })
      )
    }
  }

  /** Every shim that an earlier daemon served is there again, or gone. */
  resumed(rest?: DaemonState.Vm): void {
    for (const [at, session] of Array.from(this.#sessions).entries()) session.resumed(rest?.sessions[at]?.orphan)
    this.#changed.notify()
  }

  /** Takes over the connection of a VM that is there; fails where there is none any more: it is lost then. */
  reconnect(earlier: Earlier): Effect.Effect<void, never, Hyperstart | Scope.Scope> {
    return Effect.gen(() => this.#reconnect(earlier))
  }

  *#reconnect({ record, rest, wires }: Earlier) {
    const hyperstart = yield* Hyperstart
    const started = Array.from(this.#sessions).filter(({ phase }) => phase === "written")
    const exact = rest?.live !== undefined && wires !== undefined
    const inStep = record.clean && record.inStep === true
    this.#restoring = !exact && !inStep
    const connection = yield* Effect.result(
      hyperstart.resume(this.#sockets, this, {
        wires,
        nextSequence: record.nextSequence,
        channel: {
          agent: record.agent,
          channel: exact ? rest.live.channel : inStep ? { owed: 0, sawNext: false } : undefined,
          starting: record.starting,
          torn: wires !== undefined && !exact && !record.clean,
          onReply: (reply) => {
            this.#starting = false
            // a reply that a killed daemon may have read says nothing: the process is looked for
            if (exact || reply !== "lost") for (const session of started) session.settled(reply === "ack")
          }
        }
      })
    )
    if (connection._tag === "Failure") return this.lost(new VmLost({ reason: connection.failure.reason }))
    this.connected(connection.success, wires !== undefined)
    if (this.#restoring) this.run(Effect.gen(() => this.#restored(record.clean)))
    this.#changed.notify()
  }

  /** Waits until its agent is in step; looks for processes whose end may have been read, and lost, by a daemon that was killed. */
  *#restored(clean: boolean) {
    const ctl = this.#ctl
    const inStep = yield* ctl.inStep(restoreMillis)
    if (!inStep)
      yield* Effect.logWarning("VM suspect: its agent does not answer; it is kept, and asked again and again")
    this.#restoring = false
    this.#changed.notify()
    if (clean) return
    if (!inStep) yield* ctl.inStep(Number.MAX_SAFE_INTEGER)
    if (this.#lost === undefined) yield* Effect.gen(() => this.#lookForProcesses())
  }

  *#lookForProcesses() {
    const containers = new Map<string, Array<Session>>()
    for (const session of this.#sessions) {
      if (session.process === undefined || session.status !== undefined || session.phase === "idle") continue
      const { container } = session.process
      containers.set(container, [...(containers.get(container) ?? []), session])
    }
    for (const [container, sessions] of containers) {
      const gone = yield* Effect.gen(() => this.#gone(container))
      if (gone === undefined) continue // suspect again, or lost
      // the end of its output may still be on its way, on the other channel
      if (gone) yield* this.#quiet
      for (const session of sessions) {
        if (session.phase === "written") session.settled(!gone || session.heard)
        if (!gone || session.status !== undefined || session.phase === "idle") continue
        yield* Effect.logWarning("exit status unknown: the process has ended, and its status may have been lost", {
          container
        })
        session.lost(unknownStatus)
      }
    }
  }

  /** Whether the agent says that a container does not run; `undefined` where it says nothing. */
  *#gone(container: string) {
    const ask = (command: "killcontainer" | "pscontainer", payload: Uint8Array) =>
      Effect.result(this.#ctl.request({ command, code: CtlMessage.Code[command], payload, own: true }))
    const signalled = yield* ask("killcontainer", Agent.killContainer(container, 0))
    if (signalled._tag === "Failure") return signalled.failure._tag === "AgentRefused" ? true : undefined
    // an ACK says that the container is known, whether it runs or not
    if (this.#ctl.kind() !== "go") return false
    const listed = yield* ask("pscontainer", Agent.psContainer(container))
    if (listed._tag === "Success") return false
    return listed.failure._tag === "AgentRefused" ? Agent.saysGone(listed.failure.text) : undefined
  }

  /** Waits until no output has come for a while. */
  get #quiet(): Effect.Effect<void> {
    return Effect.gen(() => this.#untilQuiet())
  }

  *#untilQuiet() {
    const never = () => this.#lost !== undefined
    for (let seen = -1; seen !== this.#batches;) {
      seen = this.#batches
      yield* this.#around.deadlines.within(quietMillis, never, this.#changed)
    }
  }

  /** Waits until its agent is in step after a restart, or has had its time for that. */
  get restored(): Effect.Effect<void> | undefined {
    return this.#restoring ? this.#changed.until(() => !this.#restoring || this.#lost !== undefined) : undefined
  }

  /** Waits for the reply to the command that an earlier daemon had written for `ticket`. */
  rejoin(ticket: Ticket): Effect.Effect<Uint8Array, CtlFailure> {
    return this.#connection === undefined ? Effect.fail(this.#lost!) : this.#ctl.rejoin(ticket)
  }

  /** Whether it is lost, and what it said last is still being read. */
  lingers(): boolean {
    return this.#lost !== undefined && this.#connection !== undefined && !this.#drained
  }

  /** Leaves everything to a later daemon: puts what waits on disk, and writes the record. Its channels have been read to their ends. */
  get park(): Effect.Effect<void> {
    return Effect.gen(() => this.#park())
  }

  *#park() {
    this.#parked = true
    const input = this.#lost === undefined ? this.#connection?.input : undefined
    if (input !== undefined) {
      this.#takeBack(Bytes.concat(input.drainAndClose()))
      yield* this.#around.deadlines.within(lastPull, () => this.#readAll, this.#changed)
    }
    let bytes = 0
    for (const session of this.#sessions) {
      const parked = yield* Effect.result(session.park)
      if (parked._tag === "Success") continue
      bytes += session.backlog()
      yield* Effect.logError("output cannot be put on disk", { error: parked.failure.message })
    }
    if (bytes > 0) yield* Counters.dropped("spool lost", bytes)
    this.save()
  }

  /** Gives sessions back what was on its way to the agent and has not left: whole messages, as a write of theirs leaves whole or not at all. */
  #takeBack(unsent: Uint8Array) {
    const starts: Array<number> = []
    for (let at = 0; at < unsent.length; at += IoMessage.lengthAt(unsent, at)) starts.push(at)
    for (const at of starts.toReversed()) {
      const data = unsent.subarray(at + IoMessage.headerSize, at + IoMessage.lengthAt(unsent, at))
      this.#routes.get(IoMessage.sequenceAt(unsent, at))?.untake(data)
    }
  }

  /** Millis since output came; a daemon that stops reads on while it comes. */
  get quiet(): Effect.Effect<void> {
    return this.#connection === undefined ? Effect.void : this.#quiet
  }

  /** How many sessions there are. */
  sessions(): number {
    return this.#sessions.size
  }

  /** Makes `count` sessions and tells their tokens. */
  allocate(count: number): ReadonlyArray<string> {
    return Array.from({ length: count }, () => {
      const session = new Session(this.#around.sessions.token(), this.#nextSequence, this, this.#around.keepings)
      this.#nextSequence += 2
      this.#add(session)
      return session.token
    })
  }

  #add(session: Session) {
    this.#routes.set(session.stdio, session)
    this.#routes.set(session.stdio + 1, session)
    this.#sessions.add(session)
    this.#around.sessions.add(session)
  }

  /** Sends one Hyper command and waits for the agent's reply. `payload` is the frame's, of which `command` was decoded. */
  hyper(command: Hyper, payload: Uint8Array, ticket: Ticket): Effect.Effect<Uint8Array, HyperFailure> {
    const { hyperName } = command
    const code = CtlMessage.hyperCodes.get(hyperName)
    if (code === undefined) return Effect.fail(new UnknownCommand({ command: hyperName }))
    const given = command.tokens?.length ?? 0
    const starts = HyperData.starters.has(hyperName)
    if (given > (starts ? 1 : 0))
      return Effect.fail(new TooManyTokens({ command: hyperName, given, taken: starts ? 1 : 0 }))
    const data = command.data === undefined ? empty : HyperData.dataOf(payload)
    return starts
      ? Effect.gen(() => this.#start(command, data, ticket))
      : this.#request({ command: hyperName, code, payload: data, ticket })
  }

  /** Nobody needs to come back for what is left, once the VM is lost. */
  unregister(): void {
    this.#unregistered = true
    this.save()
    this.#changed.notify()
  }

  /**
   * The rest of its life. Calls `onLost` as soon as a channel has ended; completes when what its sessions had received is
   * delivered.
   */
  live(onLost: () => void): Effect.Effect<void> {
    return Effect.gen(() => this.#live(onLost))
  }

  *#live(onLost: () => void) {
    const connection = this.#connection
    if (connection?.reading !== undefined) this.run(connection.reading)
    const reading = connection === undefined ? undefined : this.run(this.#fanOut(connection))
    yield* this.#changed.until(() => this.#lost !== undefined)
    const reason = this.#lost!
    onLost()
    this.#around.states.later(this)
    // the other channel ends in the same moment, if the VM does: let it say what it still has to say
    if (connection !== undefined) yield* connection.ctl.ended(lastWords)
    connection?.ctl.lose(reason)
    yield* Effect.logInfo("VM lost", { reason: reason.reason })
    const sessions = Array.from(this.#sessions)
    for (const session of sessions) session.lose(reason)
    const finishing = Array.from(sessions, (session) => this.run(Effect.gen(() => this.#finish(session, reason))))
    const readAll = () => reading === undefined || this.#readAll
    for (let seen = -1, waits = 0; !readAll() && seen !== this.#batches && waits < mostLastWords; waits++) {
      seen = this.#batches
      yield* this.#around.deadlines.within(lastWords, readAll, this.#changed)
    }
    if (reading !== undefined && !this.#readAll) yield* Fiber.interrupt(reading)
    this.#drained = true
    connection?.close() // what its sessions have may wait for long
    this.#changed.notify()
    if (finishing.length > 0) yield* Fiber.awaitAll(finishing)
  }

  /** Frees every session: the VM is gone, or the daemon stops. */
  get end(): Effect.Effect<void> {
    return Effect.suspend(() => {
      if (this.#parked) return Effect.void
      let bytes = 0
      for (const session of this.#sessions) {
        bytes += session.backlog()
        this.#free(session, this.#lost ?? stopped)
      }
      const { manager, states } = this.#around
      this.#parked = true // nothing is to be written any more
      states.forget(this)
      const forget = manager.keeps ? manager.forget(this.file) : Effect.void
      if (bytes === 0) return forget
      const log = Effect.logWarning("output that was not delivered dropped", { bytes })
      return Effect.andThen(forget, Effect.andThen(Counters.dropped("orphan", bytes), log))
    })
  }

  // what its channel and its sessions tell

  get run(): Surroundings["run"] {
    return this.#around.run
  }

  event(code: number, payload: Uint8Array): Effect.Effect<void> | undefined {
    const event = code === CtlMessage.Code.processEvent ? Agent.decodeProcessEvent(payload) : undefined
    if (event === undefined) return Effect.logDebug(`ctl message ${code} ignored`)
    if (event.event !== "finished") return Effect.logDebug("process event ignored")
    const named = event.process !== Agent.unnamedProcess
    const sessions = this.#running(event.container, named ? event.process : undefined)
    // of several without a name it is the one whose output ends: the two channels are not in step
    const session = sessions.length === 1 || named ? sessions[0] : sessions.find(({ outputEnded }) => outputEnded)
    if (session !== undefined) {
      session.exit(event.status & 0xff)
      return undefined
    }
    const early = this.#exits.filter(({ container }) => container === event.container)
    if (early.length >= sessions.length) return Effect.logDebug("exit of a process without a session ignored")
    this.#exits = this.#exits.filter(({ container }) => this.#running(container, undefined).length > 0)
    this.#exits.push(event)
    return undefined
  }

  /** The sessions of a container's processes that have been started, have no status yet, and go by `name`. */
  #running(container: string, name: string | undefined): ReadonlyArray<Session> {
    return Array.from(this.#sessions).filter(
      ({ phase, process, status }) =>
        (phase === "written" || phase === "started") &&
        status === undefined &&
        process!.container === container &&
        process!.process === name
    )
  }

  /** The output of a process without a name has ended: an exit that came before may have been its. */
  #claimExit(session: Session) {
    if (!session.outputEnded || session.status !== undefined || session.process?.process !== undefined) return
    const at = this.#exits.findIndex(({ container }) => container === session.process?.container)
    if (at >= 0) session.exit(this.#exits.splice(at, 1)[0]!.status & 0xff)
  }

  lost(reason: VmLost): void {
    if (!this.#parked) this.#lost ??= reason
    this.#changed.notify()
  }

  stdin(session: Session): void {
    if (this.#connection !== undefined) this.#stdin.wake(session)
  }

  changed(_: Session, now: boolean): void {
    if (this.#parked) return
    if (now) this.save()
    else this.#around.states.later(this)
  }

  firstOutput(session: Session): void {
    this.#mark(session, "first byte")
  }

  exited(session: Session, status: number): void {
    this.#spans.get(session)?.attribute("status", status)
    this.#mark(session, "exit")
    this.#endSpan(session, Exit.void)
    this.run(Effect.logInfo("process exited", { container: session.process?.container, status }))
  }

  /** In the VM's own fibers: the last thing that a dying shim sends may be the SIGKILL for its process. */
  signal(session: Session, given: Signal, ticket: Ticket): Effect.Effect<void, SignalFailure> {
    return Effect.suspend(() => Fiber.join(this.run(Effect.gen(() => this.#signal(session, given, ticket)))))
  }

  orphaned(session: Session, millis = Duration.toMillis(this.#around.settings.orphanTimeout)): Deadline {
    return this.#around.deadlines.set(millis, () => this.#abandon(session))
  }

  close(session: Session): void {
    this.#free(session, disconnected)
  }

  get #ctl(): CtlChannel {
    return this.#connection!.ctl
  }

  #request(request: CtlRequest): Effect.Effect<Uint8Array, CtlFailure> {
    return this.#connection === undefined ? Effect.fail(this.#lost ?? notConnected) : this.#ctl.request(request)
  }

  /** Millis that are left of a wait that begins now. */
  #left(ticket: Ticket, timeout: Duration.Duration): number {
    return ticket.begin(Duration.toMillis(timeout), elapsedMillis(this.#around.clock))
  }

  #mark(session: Session, event: string) {
    this.#spans.get(session)?.event(event, this.#around.clock.currentTimeNanosUnsafe())
  }

  #endSpan(session: Session, exit: Exit.Exit<unknown, unknown>) {
    this.#spans.get(session)?.end(this.#around.clock.currentTimeNanosUnsafe(), exit)
    this.#spans.delete(session)
  }

  #free(session: Session, reason: SessionError | VmLost) {
    // first: closing it lets output go on, which must not find it any more
    this.#around.sessions.forget(session.token)
    this.#routes.delete(session.stdio)
    this.#routes.delete(session.stdio + 1)
    this.#sessions.delete(session)
    this.#endSpan(session, Exit.void)
    session.close(reason)
    if (!this.#parked) this.#around.states.later(this)
    this.#changed.notify()
  }

  /** Starts a process in the session of the command's token, or in the null session. */
  *#start({ data: parsed, hyperName, tokens }: Hyper, data: Uint8Array, ticket: Ticket) {
    const process = yield* Effect.fromResult(HyperData.decodeStart(hyperName, parsed))
    const token = tokens?.[0]
    const session = token === undefined ? undefined : yield* Effect.fromResult(this.#around.sessions.find(token))
    if (session !== undefined && !this.#sessions.has(session))
      return yield* new UnknownToken({ prefix: redactToken(session.token) })
    const stderr = session === undefined ? nullStderr : session.stdio + 1
    const payload = yield* Effect.fromResult(
      HyperData.setSequences(hyperName, data, session?.stdio ?? nullStdio, process.terminal ? undefined : stderr)
    )
    const request: CtlRequest = { command: hyperName, code: CtlMessage.hyperCodes.get(hyperName)!, payload, ticket }
    const onWritten = () => {
      this.#unnamed ||= !process.process
      this.#starting = true
      if (session === undefined) this.save()
    }
    const onReply = () => {
      this.#starting = false
      if (session === undefined) this.#around.states.later(this)
    }
    if (session === undefined) return yield* this.#request({ ...request, onWritten, onReply })
    const busy = session.begin(process)
    if (busy !== undefined) return yield* Effect.fail(busy)
    const span = yield* Effect.makeSpan("process", {
      parent: this.#around.span,
      attributes: {
        vm: this.id,
        container: process.container,
        command: hyperName,
        "agent.kind": this.#connection?.ctl.kind() ?? "unknown"
      }
    })
    this.#spans.set(session, span)
    return yield* this.#startIn(session, { ...request, onWritten, onReply, ticket })
  }

  /** Sends the start of a session's process, once its shim is there. What has been written takes its course. */
  #startIn(session: Session, request: StartRequest) {
    return Effect.ensuring(
      Effect.gen(() => this.#ask(session, request)),
      Effect.sync(() => {
        if (session.phase !== "waiting") return
        this.#endSpan(session, Exit.fail("not started"))
        session.settled(false)
      })
    )
  }

  *#ask(session: Session, request: StartRequest) {
    const { deadlines, settings } = this.#around
    const withdrawn = () => session.phase === "waiting" && (session.status !== undefined || session.over !== undefined)
    const failure = () => session.over ?? session.killed()
    const millis = this.#left(request.ticket, settings.shimTimeout)
    if (!(yield* deadlines.within(millis, () => session.attached || withdrawn(), session.changed))) {
      const what = `shim with token ${redactToken(session.token)}`
      const error = new WaitTimeout({ what, after: settings.shimTimeout })
      yield* Effect.logWarning(error.message, { vm: this.id })
      return yield* error
    }
    if (withdrawn()) return yield* Effect.fail(failure())
    this.#mark(session, "shim connected")
    if (this.#connection === undefined) return yield* Effect.fail(this.#lost ?? notConnected)
    const asked = this.#ctl.request({
      ...request,
      onWritten: () => {
        request.onWritten()
        session.written()
      },
      onReply: (reply) => {
        request.onReply()
        this.#mark(session, reply)
        if (reply !== "ack") this.#endSpan(session, Exit.fail(reply))
        session.settled(reply === "ack")
        if (reply === "ack") this.run(Effect.logInfo("process started", { container: session.process?.container }))
      }
    })
    if (!this.#ctl.busy()) return yield* asked
    const failed = Effect.flatMap(session.changed.until(withdrawn), () => Effect.fail(failure()))
    return yield* Effect.raceFirst(asked, failed)
  }

  /** The agent's API, asked for once and only where it matters; 0 for agents older than the question. */
  get #apiVersion(): Effect.Effect<number, CtlFailure> {
    const asked = Effect.suspend(() => {
      if (this.#api !== undefined) return Effect.succeed(this.#api)
      // the Go agent descends from the API before events
      if (this.#connection?.ctl.kind() === "go") return Effect.succeed(0)
      return this.#request({ command: "version", code: CtlMessage.Code.version, payload: empty }).pipe(
        Effect.map(Agent.apiVersionOf),
        Effect.catchTag("AgentRefused", () => Effect.succeed(0)),
        Effect.tap((version) =>
          Effect.sync(() => {
            this.#api = version
            this.#around.states.later(this)
          })
        )
      )
    })
    // whoever waits for it shares the answer, or its failure: nobody waits for more than one
    return Effect.suspend(() => {
      this.#asking ??= this.run(
        Effect.ensuring(
          asked,
          Effect.sync(() => (this.#asking = undefined))
        )
      )
      return Fiber.join(this.#asking)
    })
  }

  /** Waits until the process runs, or, for a signal that would kill it, until there is nothing to kill. */
  *#untilStarted(session: Session, killing: boolean, ticket: Ticket) {
    const { deadlines, settings } = this.#around
    const settled = () =>
      session.over !== undefined ||
      session.status !== undefined ||
      session.phase === "started" ||
      (killing && session.phase !== "written")
    if (!(yield* deadlines.within(this.#left(ticket, settings.processTimeout), settled, session.changed))) {
      const error = new WaitTimeout({ what: "the process to start", after: settings.processTimeout })
      yield* Effect.logWarning(error.message)
      return yield* error
    }
    if (session.over !== undefined) return yield* Effect.fail(session.over)
    if (session.status !== undefined) return yield* new SignalRefused({ reason: "the process has already ended" })
  }

  *#signal(session: Session, { columns, rows, signalNumber }: Signal, ticket: Ticket) {
    const killing = signalNumber === Sig.KILL || signalNumber === Sig.TERM
    yield* Effect.gen(() => this.#untilStarted(session, killing, ticket))
    if (killing && session.killUnstarted()) return
    const process = session.process!
    const winch = signalNumber === Sig.WINCH
    const send = (command: "winsize" | "killcontainer" | "signalprocess", payload: Uint8Array) =>
      Effect.asVoid(this.#request({ command, code: CtlMessage.Code[command], payload, ticket }))
    if (process.init && !winch)
      return yield* send("killcontainer", Agent.killContainer(process.container, signalNumber))
    const byProcess = (yield* this.#apiVersion) >= Agent.eventApi
    if (winch && !byProcess)
      return yield* send("winsize", Agent.winsizeBySequence(session.stdio, rows ?? 0, columns ?? 0))
    if (!byProcess)
      return yield* new SignalRefused({ reason: "this VM's agent cannot signal a process started by execcmd" })
    if (this.#unnamed || process.process === undefined)
      return yield* new SignalRefused({
        reason: "this VM's agent can only address processes by id, and one was started without"
      })
    return yield* winch
      ? send("winsize", Agent.winsizeByProcess(process.container, process.process, rows ?? 0, columns ?? 0))
      : send("signalprocess", Agent.signalProcess(process.container, process.process, signalNumber))
  }

  /** All output of the VM to its sessions: one effect per batch, one write per session and batch. */
  #fanOut(connection: HyperstartConnection): Effect.Effect<void> {
    return Stream.runForEachArray(connection.output, (runs) => this.#deliver(runs)).pipe(
      Effect.catch((reason) => Effect.sync(() => this.lost(reason))), // the stream ends by its error only
      Effect.andThen(
        Effect.sync(() => {
          this.#readAll = true
          this.#changed.notify()
        })
      )
    )
  }

  #deliver(runs: ReadonlyArray<IoMessage.Run>): Effect.Effect<void> {
    this.#batches++
    let dropped = 0
    for (const run of runs) {
      if (this.#lost !== undefined) this.#afterLoss += run.end - run.start
      const session = this.#routes.get(run.sequence)
      if (session === undefined) {
        if (run.sequence >= firstSequence) dropped += run.end - run.start
      } else {
        dropped += session.deliver(run)
        if (this.#exits.length > 0) this.#claimExit(session)
        this.#touched.add(session)
      }
    }
    if (this.#afterLoss > maxLastWords) return Effect.never
    let full: Array<Session> | undefined
    for (const session of this.#touched) {
      session.flush()
      if (session.output.full()) (full ??= []).push(session)
    }
    this.#touched.clear()
    if (dropped > 0) {
      this.#stray += dropped
      const log = Effect.logDebug("output for nobody dropped", { bytes: dropped, total: this.#stray })
      this.run(Effect.andThen(Counters.dropped("stray", dropped), log))
    }
    return full === undefined
      ? Effect.void
      : Effect.forEach(full, (session) => Effect.gen(() => this.#pause(session)), { discard: true })
  }

  /** Waits until there is room for a session's output. */
  *#pause({ changed, output, process }: Session) {
    const goOn = () => output.roomy() || this.#lost !== undefined
    // the spool may only be slower than the agent for a moment
    const told = () => goOn() || output.stuck()
    yield* this.#around.deadlines.within(lookEvery, told, changed, this.#changed)
    if (goOn()) return
    const container = process?.container
    const log = ++this.#pauses === 1 ? Effect.logWarning : Effect.logDebug
    yield* log("output of the VM pauses: a shim is behind, and the spool takes no more", { container })
    yield* Effect.raceFirst(
      Effect.gen(() => this.#untilRoom(goOn, changed)),
      this.#connection!.input.closed
    )
    if (!goOn()) this.lost(new VmLost({ reason: `io: ${this.#connection!.input.peer} closed the connection` }))
    yield* Effect.logDebug("output of the VM goes on", { container, pauses: this.#pauses })
  }

  *#untilRoom(goOn: () => boolean, changed: Condition.Condition) {
    const { deadlines } = this.#around
    // nobody pulls meanwhile: only a write shows whether the channel has ended
    while (!(yield* deadlines.within(lookEvery, goOn, changed, this.#changed))) this.#connection!.input.offer([empty])
  }

  /** Delivers what is left of a lost VM's session, and ends its shim's connection. */
  *#finish(session: Session, reason: VmLost) {
    // nothing can come for a process that never was
    const delivered = () => (this.#drained || session.phase === "idle") && session.backlog() === 0
    const givenUp = () => this.#unregistered && session.shim === undefined
    const settled = () => delivered() || givenUp() || !this.#sessions.has(session)
    yield* Condition.until(settled, session.changed, this.#changed)
    if (!this.#sessions.has(session)) return
    if (!delivered()) return this.#abandon(session)
    const { shim } = session
    this.#free(session, reason)
    shim?.end(reason.message)
  }

  /** Frees a session that no shim came back for. */
  #abandon(session: Session) {
    const bytes = session.backlog()
    if (bytes > 0) {
      const container = session.process?.container
      const log = Effect.logWarning("output that no shim came back for dropped", { bytes, container })
      this.run(Effect.andThen(Counters.dropped("orphan", bytes), log))
    }
    this.#free(session, abandoned)
  }
}

/** Makes VMs; the scope that each is called in owns all of the VM. */
export interface Maker {
  /** Connects to a VM and takes it over. `wires`: an earlier daemon had connected, and waited for READY. */
  readonly connect: (
    id: string,
    sockets: VmSockets,
    booting: { readonly wires: Carried | undefined; readonly ticket: Ticket },
    made: (vm: Vm) => void
  ) => Effect.Effect<Vm, ConnectFailed, Scope.Scope>
  /** A VM that an earlier daemon had, without its connection. */
  readonly resume: (earlier: Earlier) => Effect.Effect<Vm, never, Scope.Scope>
  /** `Vm.reconnect`. */
  readonly reconnect: (vm: Vm, earlier: Earlier) => Effect.Effect<void, never, Scope.Scope>
}

export const make: Effect.Effect<
  Maker,
  never,
  Deadlines | Descriptors | Hyperstart | ServiceManager | Sessions | Spool | States
> = Effect.gen(function* () {
  const hyperstart = yield* Hyperstart
  const settings = yield* Settings
  const states = yield* States
  const services = {
    settings,
    states,
    manager: yield* ServiceManager,
    inode: (yield* Descriptors).inode,
    sessions: yield* Sessions,
    deadlines: yield* Deadlines,
    clock: yield* Clock.Clock,
    keepings: keepings(settings, yield* Spool)
  }
  const make = Effect.fnUntraced(function* (id: string, file: string, sockets: VmSockets) {
    const run = yield* FiberSet.makeRuntime()
    const span = yield* Effect.makeSpan("vm", { root: true, attributes: { vm: id } })
    const vm = new Vm(id, file, sockets, { ...services, run, span })
    yield* Effect.addFinalizer((exit) =>
      Effect.ensuring(
        vm.end,
        Effect.sync(() => span.end(services.clock.currentTimeNanosUnsafe(), exit))
      )
    )
    return vm
  })
  const connect: Maker["connect"] = Effect.fnUntraced(function* (id, sockets, booting, made) {
    const vm = yield* make(id, states.name(), sockets)
    made(vm)
    vm.connected(yield* hyperstart.connect(sockets, vm, booting))
    return vm
  })
  const resume: Maker["resume"] = Effect.fnUntraced(function* (earlier) {
    const { console, ctl, id, io } = earlier.record
    const vm = yield* make(id, earlier.file, { console, ctl, io })
    vm.resume(earlier)
    return vm
  })
  return {
    connect,
    resume,
    reconnect: (vm, earlier) => Effect.provideService(vm.reconnect(earlier), Hyperstart, hyperstart)
  }
})
