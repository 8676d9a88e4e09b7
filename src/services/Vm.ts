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
import { type Hyper, type MalformedCommand, redactToken, Sig, type Signal } from "../domain/ClientCommand.ts"
import * as CtlMessage from "../domain/CtlMessage.ts"
import * as HyperData from "../domain/HyperData.ts"
import type * as IoMessage from "../domain/IoMessage.ts"
import * as Condition from "./Condition.ts"
import * as Counters from "./Counters.ts"
import { type CtlChannel, type CtlFailure, type CtlRequest, type Handlers, VmLost } from "./CtlChannel.ts"
import { type Deadline, Deadlines } from "./Deadlines.ts"
import { type ConnectFailed, Hyperstart, type HyperstartConnection, type VmSockets } from "./Hyperstart.ts"
import { type Keepings, keepings, type Owner, Session, SessionError } from "./Session.ts"
import { Sessions, UnknownToken } from "./Sessions.ts"
import { Settings } from "./Settings.ts"
import { Spool } from "./Spool.ts"
import { StdinWriter } from "./StdinWriter.ts"

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

/** How often that is waited for, at most: what a socket holds is read in far less. */
const mostLastWords = 10

/** Most bytes read from a VM's io channel after its loss: more than a socket holds, and no flood of one whose ctl has ended. */
const maxLastWords = 4 * 1024 * 1024

const empty = new Uint8Array(0)
const disconnected = new SessionError({ reason: "the shim has disconnected" })
const abandoned = new SessionError({ reason: "no shim came back" })
const stopped = new SessionError({ reason: "the daemon stops" })

/** What a VM is made with: its surroundings. */
interface Surroundings {
  readonly settings: Settings
  readonly sessions: Sessions["Service"]
  readonly deadlines: Deadlines["Service"]
  readonly clock: Clock.Clock
  readonly keepings: Keepings
  /** Runs effects for as long as the VM lives. */
  readonly run: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
  readonly span: Tracer.Span
}

export class Vm implements Owner, Handlers {
  /** The `containerId` it was registered with. */
  readonly id: string
  readonly #around: Surroundings
  readonly #changed = new Condition.Condition()
  readonly #routes = new Map<number, Session>() // by both sequence numbers
  readonly #sessions = new Set<Session>()
  readonly #spans = new Map<Session, Tracer.Span>()
  #connection!: HyperstartConnection
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

  constructor(id: string, around: Surroundings) {
    this.id = id
    this.#around = around
  }

  /** Takes the connection over, once there is one. */
  connected(connection: HyperstartConnection): void {
    const { run, settings, span } = this.#around
    this.#connection = connection
    this.#stdin = new StdinWriter(connection.input, connection.ctl, settings.debug, run)
    span.attribute("ready", true)
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
      this.#routes.set(session.stdio, session)
      this.#routes.set(session.stdio + 1, session)
      this.#sessions.add(session)
      this.#around.sessions.add(session)
      return session.token
    })
  }

  /** Sends one Hyper command and waits for the agent's reply. `payload` is the frame's, of which `command` was decoded. */
  hyper(command: Hyper, payload: Uint8Array): Effect.Effect<Uint8Array, HyperFailure> {
    const { hyperName } = command
    const code = CtlMessage.hyperCodes.get(hyperName)
    if (code === undefined) return Effect.fail(new UnknownCommand({ command: hyperName }))
    const given = command.tokens?.length ?? 0
    const starts = HyperData.starters.has(hyperName)
    if (given > (starts ? 1 : 0))
      return Effect.fail(new TooManyTokens({ command: hyperName, given, taken: starts ? 1 : 0 }))
    const data = command.data === undefined ? empty : HyperData.dataOf(payload)
    return starts
      ? Effect.gen(() => this.#start(command, data))
      : this.#connection.ctl.request({ command: hyperName, code, payload: data })
  }

  /** Nobody needs to come back for what is left, once the VM is lost. */
  unregister(): void {
    this.#unregistered = true
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
    const reading = this.#around.run(this.#fanOut)
    yield* this.#changed.until(() => this.#lost !== undefined)
    const reason = this.#lost!
    onLost()
    // the other channel ends in the same moment, if the VM does: let it say what it still has to say
    yield* this.#ctl.ended(lastWords)
    this.#ctl.lose(reason)
    yield* Effect.logInfo("VM lost", { reason: reason.reason })
    const sessions = Array.from(this.#sessions)
    for (const session of sessions) session.lose(reason)
    const finishing = Array.from(sessions, (session) => this.run(Effect.gen(() => this.#finish(session, reason))))
    for (let seen = -1, waits = 0; !this.#readAll && seen !== this.#batches && waits < mostLastWords; waits++) {
      seen = this.#batches
      yield* this.#around.deadlines.within(lastWords, () => this.#readAll, this.#changed)
    }
    if (!this.#readAll) yield* Fiber.interrupt(reading)
    this.#drained = true
    this.#changed.notify()
    if (finishing.length > 0) yield* Fiber.awaitAll(finishing)
  }

  /** Frees every session: the VM is gone, or the daemon stops. */
  get end(): Effect.Effect<void> {
    return Effect.suspend(() => {
      let bytes = 0
      for (const session of this.#sessions) {
        bytes += session.backlog()
        this.#free(session, this.#lost ?? stopped)
      }
      if (bytes === 0) return Effect.void
      const log = Effect.logWarning("output that was not delivered dropped", { bytes })
      return Effect.andThen(Counters.dropped("orphan", bytes), log)
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
    this.#lost ??= reason
    this.#changed.notify()
  }

  stdin(session: Session): void {
    this.#stdin.wake(session)
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
  signal(session: Session, given: Signal): Effect.Effect<void, SignalFailure> {
    return Effect.suspend(() => Fiber.join(this.run(Effect.gen(() => this.#signal(session, given)))))
  }

  orphaned(session: Session): Deadline {
    const { deadlines, settings } = this.#around
    return deadlines.set(Duration.toMillis(settings.orphanTimeout), () => this.#abandon(session))
  }

  close(session: Session): void {
    this.#free(session, disconnected)
  }

  get #ctl(): CtlChannel {
    return this.#connection.ctl
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
    this.#changed.notify()
  }

  /** Starts a process in the session of the command's token, or in the null session. */
  *#start({ data: parsed, hyperName, tokens }: Hyper, data: Uint8Array) {
    const process = yield* Effect.fromResult(HyperData.decodeStart(hyperName, parsed))
    const token = tokens?.[0]
    const session = token === undefined ? undefined : yield* Effect.fromResult(this.#around.sessions.find(token))
    if (session !== undefined && !this.#sessions.has(session))
      return yield* new UnknownToken({ prefix: redactToken(session.token) })
    const stderr = session === undefined ? nullStderr : session.stdio + 1
    const payload = yield* Effect.fromResult(
      HyperData.setSequences(hyperName, data, session?.stdio ?? nullStdio, process.terminal ? undefined : stderr)
    )
    const request: CtlRequest = { command: hyperName, code: CtlMessage.hyperCodes.get(hyperName)!, payload }
    const onWritten = () => (this.#unnamed ||= !process.process)
    if (session === undefined) return yield* this.#ctl.request({ ...request, onWritten })
    const busy = session.begin(process)
    if (busy !== undefined) return yield* Effect.fail(busy)
    const span = yield* Effect.makeSpan("process", {
      parent: this.#around.span,
      attributes: { vm: this.id, container: process.container, command: hyperName, "agent.kind": this.#ctl.kind() }
    })
    this.#spans.set(session, span)
    return yield* this.#startIn(session, { ...request, onWritten })
  }

  /** Sends the start of a session's process, once its shim is there. What has been written takes its course. */
  #startIn(session: Session, request: CtlRequest) {
    return Effect.ensuring(
      Effect.gen(() => this.#ask(session, request)),
      Effect.sync(() => {
        if (session.phase !== "waiting") return
        this.#endSpan(session, Exit.fail("not started"))
        session.settled(false)
      })
    )
  }

  *#ask(session: Session, request: CtlRequest) {
    const { deadlines, settings } = this.#around
    const withdrawn = () => session.phase === "waiting" && (session.status !== undefined || session.over !== undefined)
    const failure = () => session.over ?? session.killed()
    const millis = Duration.toMillis(settings.shimTimeout)
    if (!(yield* deadlines.within(millis, () => session.attached || withdrawn(), session.changed))) {
      const what = `shim with token ${redactToken(session.token)}`
      const error = new WaitTimeout({ what, after: settings.shimTimeout })
      yield* Effect.logWarning(error.message, { vm: this.id })
      return yield* error
    }
    if (withdrawn()) return yield* Effect.fail(failure())
    this.#mark(session, "shim connected")
    const asked = this.#ctl.request({
      ...request,
      onWritten: () => {
        request.onWritten?.()
        session.written()
      },
      onReply: (reply) => {
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
      if (this.#ctl.kind() === "go") return Effect.succeed(0)
      return this.#ctl.request({ command: "version", code: CtlMessage.Code.version, payload: empty }).pipe(
        Effect.map(Agent.apiVersionOf),
        Effect.catchTag("AgentRefused", () => Effect.succeed(0)),
        Effect.tap((version) => Effect.sync(() => (this.#api = version)))
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
  *#untilStarted(session: Session, killing: boolean) {
    const { deadlines, settings } = this.#around
    const settled = () =>
      session.over !== undefined ||
      session.status !== undefined ||
      session.phase === "started" ||
      (killing && session.phase !== "written")
    if (!(yield* deadlines.within(Duration.toMillis(settings.processTimeout), settled, session.changed))) {
      const error = new WaitTimeout({ what: "the process to start", after: settings.processTimeout })
      yield* Effect.logWarning(error.message)
      return yield* error
    }
    if (session.over !== undefined) return yield* Effect.fail(session.over)
    if (session.status !== undefined) return yield* new SignalRefused({ reason: "the process has already ended" })
  }

  *#signal(session: Session, { columns, rows, signalNumber }: Signal) {
    const killing = signalNumber === Sig.KILL || signalNumber === Sig.TERM
    yield* Effect.gen(() => this.#untilStarted(session, killing))
    if (killing && session.killUnstarted()) return
    const process = session.process!
    const winch = signalNumber === Sig.WINCH
    const send = (command: "winsize" | "killcontainer" | "signalprocess", payload: Uint8Array) =>
      Effect.asVoid(this.#ctl.request({ command, code: CtlMessage.Code[command], payload }))
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
  get #fanOut(): Effect.Effect<void> {
    return Stream.runForEachArray(this.#connection.output, (runs) => this.#deliver(runs)).pipe(
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
      this.#connection.input.closed
    )
    if (!goOn()) this.lost(new VmLost({ reason: `io: ${this.#connection.input.peer} closed the connection` }))
    yield* Effect.logDebug("output of the VM goes on", { container, pauses: this.#pauses })
  }

  *#untilRoom(goOn: () => boolean, changed: Condition.Condition) {
    const { deadlines } = this.#around
    // nobody pulls meanwhile: only a write shows whether the channel has ended
    while (!(yield* deadlines.within(lookEvery, goOn, changed, this.#changed))) this.#connection.input.offer([empty])
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

/** Makes the function that connects to a VM and takes it over; the scope that it is called in owns all of the VM. */
export const make: Effect.Effect<
  (id: string, sockets: VmSockets) => Effect.Effect<Vm, ConnectFailed, Scope.Scope>,
  never,
  Deadlines | Hyperstart | Sessions | Spool
> = Effect.gen(function* () {
  const hyperstart = yield* Hyperstart
  const settings = yield* Settings
  const services = {
    settings,
    sessions: yield* Sessions,
    deadlines: yield* Deadlines,
    clock: yield* Clock.Clock,
    keepings: keepings(settings, yield* Spool)
  }
  return Effect.fnUntraced(function* (id, sockets) {
    const run = yield* FiberSet.makeRuntime()
    const span = yield* Effect.makeSpan("vm", { root: true, attributes: { vm: id } })
    const vm = new Vm(id, { ...services, run, span })
    yield* Effect.addFinalizer((exit) =>
      Effect.ensuring(
        vm.end,
        Effect.sync(() => span.end(services.clock.currentTimeNanosUnsafe(), exit))
      )
    )
    vm.connected(yield* hyperstart.connect(sockets, vm))
    return vm
  })
})
