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
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import type * as Tracer from "effect/Tracer"
import * as Agent from "../domain/Agent.ts"
import { type Hyper, type MalformedCommand, redactToken, Sig, type Signal } from "../domain/ClientCommand.ts"
import * as CtlMessage from "../domain/CtlMessage.ts"
import * as HyperData from "../domain/HyperData.ts"
import * as Condition from "./Condition.ts"
import type { CtlFailure, CtlRequest, VmLost } from "./CtlChannel.ts"
import { Hyperstart, type ConnectFailed, type VmSockets } from "./Hyperstart.ts"
import * as Session from "./Session.ts"
import { type SessionEntry, Sessions, type Told, UnknownToken } from "./Sessions.ts"
import { Settings } from "./Settings.ts"
import * as StdinWriter from "./StdinWriter.ts"

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
  | Session.SessionError
  | WaitTimeout

export type SignalFailure = CtlFailure | Session.SessionError | WaitTimeout | SignalRefused

export interface Vm {
  /** The `containerId` it was registered with. */
  readonly id: string
  /** Makes `count` sessions and tells their tokens. */
  readonly allocate: (count: number) => ReadonlyArray<string>
  /** How many sessions there are. */
  readonly sessions: () => number
  /** Sends one Hyper command and waits for the agent's reply. `payload` is the frame's, of which `hyper` was decoded. */
  readonly hyper: (hyper: Hyper, payload: Uint8Array) => Effect.Effect<Uint8Array, HyperFailure>
  /** Nobody needs to come back for what is left, once the VM is lost. */
  readonly unregister: () => void
  /**
   * The rest of its life. Calls `onLost` as soon as a channel has ended; completes when what its sessions had received is
   * delivered.
   */
  readonly run: (onLost: () => void) => Effect.Effect<void>
}

/** The first token gets 3 and 4; 1 and 2 are the null session's. Source: PROTOCOL.md, "Starting processes". */
const firstSequence = 3
const nullStdio = 1
const nullStderr = 2

/** Millis that the second channel may take to end after the first, and that it may be silent while it gives out what it holds. */
const lastWords = 100

/** Most bytes read from a VM's io channel after its loss: more than a socket holds, and no flood of one whose ctl has ended. */
const maxLastWords = 4 * 1024 * 1024

/** Connects to a VM and takes it over; the scope owns all of it. */
export const make = Effect.fnUntraced(function* (
  id: string,
  sockets: VmSockets
): Effect.fn.Return<Vm, ConnectFailed, Scope.Scope | Hyperstart | Sessions> {
  const settings = yield* Settings
  const sessions = yield* Sessions
  const clock = yield* Clock.Clock
  const hyperstart = yield* Hyperstart
  const run = yield* FiberSet.makeRuntime()
  const changed = Condition.make()

  const span = yield* Effect.makeSpan("vm", { root: true, attributes: { vm: id } })
  yield* Effect.addFinalizer((exit) => Effect.sync(() => span.end(clock.currentTimeNanosUnsafe(), exit)))

  const routes = new Map<number, Session.Session>() // by both sequence numbers
  const entries = new Map<Session.Session, SessionEntry<Told>>()
  const spans = new Map<Session.Session, Tracer.Span>()
  let nextSequence = firstSequence
  let unnamed = false // a process was started without an id
  let unregistered = false
  let lost: VmLost | undefined

  /** Suspends until a test holds of the VM and of one session together. */
  const untilEither = (session: Session.Session, test: () => boolean) =>
    Effect.raceFirst(session.until(test), changed.until(test))

  const findProcess = (event: Agent.ProcessEvent): Session.Session | undefined => {
    let init: Session.Session | undefined
    for (const session of entries.keys()) {
      const { outputEnded, phase, process, status } = session.state()
      // a start that was refused leaves its session idle
      if (phase === "idle" || process?.container !== event.container || status !== undefined) continue
      if (event.process === Agent.unnamedProcess) {
        if (process.process === undefined && outputEnded) return session
        if (process.init && process.process === undefined) init = session
      } else if (process.process === event.process) {
        return session
      }
    }
    return init
  }

  const onEvent = (code: number, payload: Uint8Array): Effect.Effect<void> | undefined => {
    const event = code === CtlMessage.Code.processEvent ? Agent.decodeProcessEvent(payload) : undefined
    if (event === undefined) return Effect.logDebug(`ctl message ${code} ignored`)
    if (event.event !== "finished") return Effect.logDebug("process event ignored")
    const session = findProcess(event)
    if (session === undefined) return Effect.logDebug("exit of a process without a session ignored")
    session.exit(event.status & 0xff)
    return undefined
  }

  const lose = (reason: VmLost) => {
    lost ??= reason
    changed.notify()
  }

  const connection = yield* hyperstart.connect(sockets, { event: onEvent, lost: lose })
  span.attribute("ready", true)
  const { ctl } = connection
  const stdin = yield* StdinWriter.make(connection.input, ctl)

  const mark = (session: Session.Session, event: string) =>
    spans.get(session)?.event(event, clock.currentTimeNanosUnsafe())

  const endSpan = (session: Session.Session, exit: Exit.Exit<unknown, unknown>) => {
    spans.get(session)?.end(clock.currentTimeNanosUnsafe(), exit)
    spans.delete(session)
  }

  const forget = (session: Session.Session) => {
    sessions.forget(session.token)
    routes.delete(session.stdio)
    routes.delete(session.stdio + 1)
    entries.delete(session)
    endSpan(session, Exit.void)
    changed.notify()
  }

  yield* Effect.addFinalizer(() => Effect.sync(() => Array.from(entries.keys(), forget)))

  /** Starts a process in `session`, or in the null session. */
  const start = Effect.fnUntraced(function* (
    hyperName: string,
    process: HyperData.ProcessStart,
    data: Uint8Array,
    session: Session.Session | undefined
  ) {
    const stderr = session === undefined ? nullStderr : session.stdio + 1
    const stdio = session?.stdio ?? nullStdio
    const payload = yield* Effect.fromResult(
      HyperData.setSequences(hyperName, data, stdio, process.terminal ? undefined : stderr)
    )
    const request: CtlRequest = { command: hyperName, code: CtlMessage.hyperCodes.get(hyperName)!, payload }
    if (session === undefined)
      return yield* ctl.request({ ...request, onWritten: () => (unnamed ||= !process.process) })

    const busy = session.begin(process)
    if (busy !== undefined) return yield* busy
    const processSpan = yield* Effect.makeSpan("process", {
      parent: span,
      attributes: { vm: id, container: process.container, command: hyperName, "agent.kind": ctl.kind() }
    })
    spans.set(session, processSpan)
    let written = false
    const asked = Effect.gen(function* () {
      yield* session
        .until(() => session.state().attached)
        .pipe(
          Effect.timeoutOrElse({
            duration: settings.shimTimeout,
            orElse: () =>
              Effect.fail(
                new WaitTimeout({ what: `shim with token ${redactToken(session.token)}`, after: settings.shimTimeout })
              )
          }),
          Effect.tapError((error) => Effect.logWarning(error.message))
        )
      mark(session, "shim connected")
      return yield* ctl.request({
        ...request,
        onWritten: () => {
          written = true
          unnamed ||= !process.process
          session.written()
        },
        onReply: (reply) => {
          mark(session, reply)
          if (reply !== "ack") endSpan(session, Exit.fail(reply))
          session.settled(reply === "ack")
          if (reply === "ack") run(Effect.logInfo("process started", { container: process.container }))
        }
      })
    })
    // what has been written takes its course, whatever becomes of the session
    const withdrawn = Effect.gen(function* () {
      yield* session.until(
        () => !written && (session.state().status !== undefined || session.state().over !== undefined)
      )
      return yield* session.state().over ?? session.killed()
    })
    return yield* Effect.raceFirst(asked, withdrawn).pipe(
      Effect.ensuring(
        Effect.sync(() => {
          if (written) return
          endSpan(session, Exit.fail("not started"))
          session.settled(false)
        })
      )
    )
  })

  const hyper = Effect.fnUntraced(function* (
    command: Hyper,
    payload: Uint8Array
  ): Effect.fn.Return<Uint8Array, HyperFailure> {
    const { hyperName } = command
    const code = CtlMessage.hyperCodes.get(hyperName)
    if (code === undefined) return yield* new UnknownCommand({ command: hyperName })
    const tokens = command.tokens ?? []
    const data = command.data === undefined ? new Uint8Array(0) : HyperData.dataOf(payload)
    if (!HyperData.starters.has(hyperName)) {
      if (tokens.length > 0) return yield* new TooManyTokens({ command: hyperName, given: tokens.length, taken: 0 })
      return yield* ctl.request({ command: hyperName, code, payload: data })
    }
    if (tokens.length > 1) return yield* new TooManyTokens({ command: hyperName, given: tokens.length, taken: 1 })
    const process = yield* Effect.fromResult(HyperData.decodeStart(hyperName, command.data))
    const token = tokens[0]
    if (token === undefined) return yield* start(hyperName, process, data, undefined)
    const entry = yield* Effect.fromResult(sessions.find(token))
    if (!entries.has(entry.session)) return yield* new UnknownToken({ prefix: redactToken(token) })
    return yield* start(hyperName, process, data, entry.session)
  })

  const versionOnce = yield* Semaphore.make(1)
  let api: number | undefined
  /** The agent's API, asked for once and only where it matters; 0 for agents older than the question. */
  const apiVersion = Effect.suspend(() => {
    if (api !== undefined) return Effect.succeed(api)
    // the Go agent descends from the API before events
    if (ctl.kind() === "go") return Effect.succeed(0)
    return ctl.request({ command: "version", code: CtlMessage.Code.version, payload: new Uint8Array(0) }).pipe(
      Effect.map(Agent.apiVersionOf),
      Effect.catchTag("AgentRefused", () => Effect.succeed(0)),
      Effect.tap((version) => Effect.sync(() => (api = version)))
    )
  }).pipe((asked) => versionOnce.withPermit(asked))

  /** Waits until the process runs, or, for a signal that would kill it, until there is nothing to kill. */
  const untilStarted = Effect.fnUntraced(function* (session: Session.Session, killing: boolean) {
    const state = session.state
    const settled = () =>
      state().over !== undefined ||
      state().status !== undefined ||
      state().phase === "started" ||
      (killing && state().phase !== "written")
    yield* session.until(settled).pipe(
      Effect.timeoutOrElse({
        duration: settings.processTimeout,
        orElse: () => Effect.fail(new WaitTimeout({ what: "the process to start", after: settings.processTimeout }))
      }),
      Effect.tapError((error) => Effect.logWarning(error.message))
    )
    const { over, status } = state()
    if (over !== undefined) return yield* over
    if (status !== undefined) return yield* new SignalRefused({ reason: "the process has already ended" })
  })

  const signal = Effect.fnUntraced(function* (
    session: Session.Session,
    { columns, rows, signalNumber }: Signal
  ): Effect.fn.Return<void, SignalFailure> {
    const killing = signalNumber === Sig.KILL || signalNumber === Sig.TERM
    yield* untilStarted(session, killing)
    if (killing && session.killUnstarted()) return
    const process = session.state().process!
    const winch = signalNumber === Sig.WINCH
    const send = (command: "winsize" | "killcontainer" | "signalprocess", payload: Uint8Array) =>
      Effect.asVoid(ctl.request({ command, code: CtlMessage.Code[command], payload }))
    if (process.init && !winch)
      return yield* send("killcontainer", Agent.killContainer(process.container, signalNumber))
    const byProcess = (yield* apiVersion) >= Agent.eventApi
    if (winch && !byProcess)
      return yield* send("winsize", Agent.winsizeBySequence(session.stdio, rows ?? 0, columns ?? 0))
    if (!byProcess)
      return yield* new SignalRefused({ reason: "this VM's agent cannot signal a process started by execcmd" })
    if (unnamed || process.process === undefined)
      return yield* new SignalRefused({
        reason: "this VM's agent can only address processes by id, and one was started without"
      })
    return yield* winch
      ? send("winsize", Agent.winsizeByProcess(process.container, process.process, rows ?? 0, columns ?? 0))
      : send("signalprocess", Agent.signalProcess(process.container, process.process, signalNumber))
  })

  const allocate = (count: number): ReadonlyArray<string> =>
    Array.from({ length: count }, () => {
      const session = Session.make(sessions.token(), nextSequence, {
        stdin: (woken) => stdin.wake(woken),
        firstOutput: () => mark(session, "first byte"),
        exited: (status) => {
          spans.get(session)?.attribute("status", status)
          mark(session, "exit")
          endSpan(session, Exit.void)
          run(Effect.logInfo("process exited", { container: session.state().process?.container, status }))
        }
      })
      nextSequence += 2
      routes.set(session.stdio, session)
      routes.set(session.stdio + 1, session)
      const entry: SessionEntry<Told> = {
        session,
        vm: id,
        // in the VM's scope: the last thing that a dying shim sends may be the SIGKILL for its process
        signal: (given) => Effect.suspend(() => Fiber.join(run(signal(session, given)))),
        close: () => {
          forget(session) // first: closing it lets output go on, which must not find it any more
          session.close("the shim has disconnected")
        }
      }
      entries.set(session, entry)
      sessions.add(entry)
      return session.token
    })

  // output: one effect per batch, one write per session and batch
  let batches = 0
  let pauses = 0
  let afterLoss = 0 // bytes read since
  let stray = 0
  const pause = Effect.fnUntraced(function* (session: Session.Session) {
    const container = session.state().process?.container
    pauses++
    yield* (pauses === 1 ? Effect.logInfo : Effect.logDebug)("output of the VM pauses: a shim is behind", { container })
    const goOn = () => session.backlog() <= settings.outboxLimit / 2 || lost !== undefined
    yield* untilEither(session, goOn)
    yield* Effect.logDebug("output of the VM goes on", { container, pauses })
  })
  const touched = new Set<Session.Session>()
  const fanOut = Stream.runForEachArray(connection.output, (runs) => {
    batches++
    let dropped = 0
    for (const run of runs) {
      if (lost !== undefined) afterLoss += run.end - run.start
      const session = routes.get(run.sequence)
      if (session === undefined) {
        if (run.sequence >= firstSequence) dropped += run.end - run.start
      } else {
        dropped += session.deliver(run)
        touched.add(session)
      }
    }
    if (afterLoss > maxLastWords) return Effect.never
    let full: Array<Session.Session> | undefined
    for (const session of touched) {
      session.flush()
      if (session.backlog() > settings.outboxLimit) (full ??= []).push(session)
    }
    touched.clear()
    if (dropped > 0) {
      stray += dropped
      run(Effect.logDebug("output for nobody dropped", { bytes: dropped, total: stray }))
    }
    return full === undefined ? Effect.void : Effect.forEach(full, pause, { discard: true })
  }).pipe(
    Effect.andThen(Effect.never), // the stream ends by its error only
    Effect.catch((reason) => Effect.succeed(reason))
  )

  let drained = false // after the loss: everything that had been sent has been read

  /** Delivers what is left of a lost VM's session, and ends its shim's connection. */
  const finish = Effect.fnUntraced(function* (session: Session.Session, reason: VmLost) {
    // nothing can come for a process that never was
    const delivered = () => (drained || session.state().phase === "idle") && session.backlog() === 0
    while (!delivered()) {
      const { shim } = session.state()
      if (shim !== undefined) {
        yield* untilEither(session, () => delivered() || session.state().shim !== shim)
        continue
      }
      yield* Effect.timeoutOption(
        untilEither(session, () => delivered() || unregistered || session.state().shim !== undefined),
        settings.orphanTimeout
      )
      if (session.state().shim !== undefined || delivered()) continue
      if (session.backlog() > 0)
        yield* Effect.logWarning("output that no shim came back for dropped", { bytes: session.backlog() })
      break
    }
    session.state().shim?.end(reason.message)
    forget(session)
    session.close(reason.message)
  })

  const life = Effect.fnUntraced(function* (onLost: () => void) {
    const reading = yield* Effect.forkScoped(Effect.tap(fanOut, (reason) => Effect.sync(() => lose(reason))))
    yield* changed.until(() => lost !== undefined)
    const reason = lost!
    onLost()
    // the other channel ends in the same moment, if the VM does: let it say what it still has to say
    yield* Effect.timeoutOption(ctl.ended, lastWords)
    ctl.lose(reason)
    yield* Effect.logInfo("VM lost", { reason: reason.reason })
    const sessions = Array.from(entries.keys())
    for (const session of sessions) session.lose(reason)
    const drain = Effect.gen(function* () {
      for (;;) {
        const seen = batches
        const ended = yield* Effect.timeoutOption(Fiber.await(reading), lastWords)
        if (ended._tag === "Some" || seen === batches) break
      }
      yield* Fiber.interrupt(reading)
      drained = true
      changed.notify()
    })
    yield* Effect.all([drain, ...sessions.map((session) => finish(session, reason))], {
      concurrency: "unbounded",
      discard: true
    })
  })

  return {
    id,
    allocate,
    sessions: () => entries.size,
    hyper,
    unregister() {
      unregistered = true
      changed.notify()
    },
    run: (onLost) => Effect.scoped(life(onLost))
  }
})
