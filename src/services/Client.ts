/**
 * One client's connection: a runtime that asks for VMs and sends commands, or a shim that carries one process's stdio. Reads
 * frames until the client leaves, and answers commands in their order.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FiberSet from "effect/FiberSet"
import * as References from "effect/References"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Bytes from "../domain/Bytes.ts"
import * as ClientCommand from "../domain/ClientCommand.ts"
import type * as DaemonState from "../domain/DaemonState.ts"
import * as Frame from "../domain/Frame.ts"
import { RateLimit } from "../domain/RateLimit.ts"
import { Condition, until } from "./Condition.ts"
import * as Counters from "./Counters.ts"
import { type Deadline, Deadlines, elapsedMillis } from "./Deadlines.ts"
import { Listener } from "./Listener.ts"
import type { Session, Shim, Told } from "./Session.ts"
import { Sessions } from "./Sessions.ts"
import { Settings } from "./Settings.ts"
import { Tally } from "./Tally.ts"
import { Ticket } from "./Ticket.ts"
import type { Vm } from "./Vm.ts"
import { type Attached, VmRegistry } from "./VmRegistry.ts"
import type { CarriedWire, Wire, WireClosed } from "./Wire.ts"

/** A command needs a VM, or a session, that this client does not have. */
export class WrongClient extends Schema.TaggedError<WrongClient>()("WrongClient", {
  needs: Schema.Literals(["vm", "shim"])
}) {
  override get message(): string {
    return this.needs === "vm" ? "client not attached to a vm" : "client isn't a shim"
  }
}

/** A command makes no sense for this client, or never does. */
export class CommandRefused extends Schema.TaggedError<CommandRefused>()("CommandRefused", {
  reason: Schema.String
}) {
  override get message(): string {
    return this.reason
  }
}

/** A command's place in the order of answers. */
interface Answer {
  /** Absent until the command is done; empty where nobody may have an answer any more. */
  frames: ReadonlyArray<Uint8Array> | undefined
  /** The session whose output may leave once the answer has. */
  attaches: Session | undefined
  readonly opcode: Frame.Command
  readonly payload: Uint8Array
  readonly ticket: Ticket
  /** The VM that it was sent to. */
  vm: Vm | undefined
}

/** A client that an earlier daemon served, with what it refers to. */
export interface Earlier {
  readonly client: DaemonState.Client
  readonly vms: ReadonlyArray<Vm>
  readonly bytesOf: (ref: DaemonState.Ref) => Uint8Array
}

/** How the parts of a snapshot refer to each other. */
export interface Carrying {
  readonly blobs: DaemonState.Blobs
  readonly wire: (carried: CarriedWire) => DaemonState.Wire
  readonly vms: ReadonlyArray<Vm>
  /** Of the commands whose replies agents owe. */
  readonly tickets: ReadonlySet<Ticket>
}

/** What a command fails with while the daemon stops. */
const stopping = "the daemon stops"

/** What no client may send: in the place of what broke the protocol. */
const noFrame = new Uint8Array(Frame.headerSize)

const utf8 = new TextEncoder()
const empty = new Uint8Array(0)
const json = (value: unknown): Uint8Array => utf8.encode(JSON.stringify(value))

/** Bytes read ahead of what may be handled: more than a socket's buffer holds, so that the end behind it is seen. */
const maxAhead = 256 * 1024

/** Millis that a claim waits for the end of an earlier one. */
const claimGrace = 100

/** What is kept until it is whole may take as many times `frameTimeout`, however steadily its bytes come. */
const frameTimeouts = 10

/**
 * Bytes of responses that a client may leave unread and still get one more: four of the largest that agents give by default.
 * Where commands are pipelined there may be `maxPipelined` of them.
 */
const maxUnread = 64 * 1024 * 1024

/** Millis between two looks at the commands under way, while the daemon stops. */
const stopStep = 10

/** Millis between two records of log entries that were dropped. */
const tellDropped = 1000

/** A command's error; `above` is the limit that it ran into, if it did. */
interface Refusal extends Told {
  readonly above?: Counters.Limit | undefined
}

const internalError: Told = { message: "internal error: the proxy's log tells more" }

/** Logs why a command fails. A bug costs that command, not the client. */
const refused = (cause: Cause.Cause<Told>): Effect.Effect<never, Told> => {
  if (Cause.hasDies(cause))
    return Effect.andThen(Effect.logError("a command failed by a bug", cause), Effect.fail(internalError))
  const found = Cause.findError(cause)
  if (Result.isFailure(found)) return Effect.failCause(found.failure) // the client has left
  const error: Refusal = found.success
  const logged = Effect.logInfo("command refused", { error: error.message })
  const counted = error.above === undefined ? logged : Effect.andThen(Counters.limited(error.above), logged)
  return Effect.andThen(counted, Effect.fail(error))
}

const levels = { debug: "Debug", info: "Info", warn: "Warn", error: "Error" } as const

/** What every client needs, gathered once. */
interface Surroundings {
  readonly settings: Settings
  readonly clock: Clock.Clock
  readonly deadlines: Deadlines["Service"]
  readonly sessions: Sessions["Service"]
  readonly registry: VmRegistry["Service"]
  /** Where clients connect: what RegisterVM and AttachVM tell. */
  readonly url: string
  readonly policy: Frame.Policy
  /** Whether anybody sees spans. */
  readonly traced: boolean
}

type Run = <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>

class Client implements Shim {
  readonly wire: Wire
  readonly #around: Surroundings
  readonly #self: Fiber.Fiber<unknown, unknown>
  readonly #fork: Run
  #fibers: Set<Fiber.Fiber<unknown, unknown>> | undefined
  readonly #changed = new Condition()
  #vm: Vm | undefined
  #session: Session | undefined
  #turnedAway = false // the last claim was refused

  // what has been read and not been handled
  readonly #parser: Frame.Parser
  #frames: Array<Frame.Frame> = []
  #ahead = 0 // bytes of it
  #broken: Frame.FrameError | undefined // what came behind it is no frame
  #frameDeadline: Deadline | undefined
  #wholeDeadline: Deadline | undefined
  #handling = false
  #busy: Frame.Command | undefined // the command under way whose result those behind it need
  #stalled = false

  readonly #answers: Array<Answer> = []
  #stopping = false
  #underWayCount = 0
  #underWay = 0 // payload bytes of commands that have no answer yet
  #held = 0 // bytes of answers that wait for those before them

  // made with the first log entry, and the first that is dropped
  #logRate: RateLimit | undefined
  #dropped: Tally | undefined

  // how it ends
  #leaving = false
  #goodbye = false
  #ended = false

  constructor(wire: Wire, around: Surroundings, self: Fiber.Fiber<unknown, unknown>, fork: Run) {
    this.wire = wire
    this.#around = around
    this.#self = self
    this.#fork = fork
    this.#parser = Frame.makeParser(around.policy)
  }

  /** Runs an effect for as long as the client is connected. */
  run<A, E>(effect: Effect.Effect<A, E>): void {
    const fiber = this.#fork(effect)
    if (fiber.pollUnsafe() !== undefined) return
    const fibers = (this.#fibers ??= new Set())
    fibers.add(fiber)
    fiber.addObserver(() => fibers.delete(fiber))
  }

  /** Ends the connection from outside of its fiber. */
  end(reason: string): void {
    this.#end(Effect.logInfo("client's connection ended", { reason }))
  }

  /** Goes on where an earlier daemon stood. */
  resume({ bytesOf, client, vms }: Earlier): void {
    this.#vm = client.vm === undefined ? undefined : vms[client.vm]
    this.#turnedAway = client.turnedAway
    const found = client.session === undefined ? undefined : this.#around.sessions.find(client.session)
    const session = found !== undefined && Result.isSuccess(found) ? found.success : undefined
    this.#session = session
    session?.rejoin(this, client.attached)
    this.#ended = client.ended
    if (client.ended) return
    for (const answer of client.answers) {
      const opcode = answer.opcode as Frame.Command
      const payload = bytesOf(answer.payload).slice()
      if (answer.done) {
        const attaches = answer.attaches ? session : undefined
        const ticket = new Ticket()
        this.#answers.push({ frames: [payload], attaches, opcode, payload, ticket, vm: undefined })
        this.#held += payload.length
      } else {
        const vm = answer.vm === undefined ? undefined : vms[answer.vm]
        this.#begin(opcode, payload, new Ticket(answer.waited), vm, answer.written)
      }
    }
  }

  /** All that it is, for a daemon that takes this one's place; `undefined` where its connection has ended. Changes nothing. */
  carry({ blobs, tickets, vms, wire }: Carrying): DaemonState.Client | undefined {
    const carried = this.wire.carry()
    if (carried === undefined) return undefined
    const now = elapsedMillis(this.#around.clock)
    const place = (vm: Vm | undefined) => {
      const at = vm === undefined ? -1 : vms.indexOf(vm)
      return at < 0 ? undefined : at // one that is gone
    }
    const broken = this.#broken === undefined ? [] : [noFrame]
    const unread = [...this.#frames.map(Frame.encode), ...broken, this.#parser.rest(), ...carried.unread]
    return {
      name: this.wire.peer,
      wire: wire({ ...carried, unread }),
      vm: place(this.#vm),
      session: this.#session?.token,
      attached: this.#session?.shim === this && this.#session.attached,
      turnedAway: this.#turnedAway,
      ended: this.#ended,
      answers: this.#answers.map(({ attaches, frames, opcode, payload, ticket, vm }) => ({
        opcode,
        payload: blobs.put(frames ?? [payload]),
        done: frames !== undefined,
        attaches: attaches !== undefined,
        written: tickets.has(ticket),
        waited: ticket.waited(now),
        vm: place(vm)
      }))
    }
  }

  /** Whether a command of it is under way. */
  busy(): boolean {
    return this.#underWayCount > 0
  }

  /** The daemon stops: what is under way fails, and nothing more is carried out. What its shim sends is still fed. */
  stop(): void {
    this.#stopping = true
    // an error would make a shim give up for good
    for (const slot of this.#answers)
      if (slot.frames === undefined && slot.opcode !== Frame.Command.ConnectShim)
        this.#done(slot, slot.opcode, json({ msg: stopping }), true)
  }

  /** The client reads an end once it has taken what is left; its shim's output waits for the next from here on. */
  shutDown(): void {
    this.#session?.detach(this)
    this.wire.shutDown()
  }

  /** Reads until the client leaves, or is ended. It reads on while nothing may be handled: a client's end must be seen. */
  get serve(): Effect.Effect<void> {
    // of one that an earlier daemon was about to end, nothing is read
    if (this.#ended) return Effect.suspend(() => this.#release())
    return Effect.gen(() => this.#read()).pipe(
      Effect.catch((closed) => this.#left(closed)),
      Effect.ensuring(Effect.suspend(() => this.#release()))
    )
  }

  *#read() {
    const keep = (frame: Frame.Frame) => {
      if (this.#wholeDeadline !== undefined) this.#whole()
      this.#frames.push(frame)
      this.#ahead += Frame.headerSize + frame.payload.length
    }
    for (;;) {
      const chunk = yield* this.wire.pull
      this.#frameDeadline?.cancel()
      if (this.#broken === undefined) {
        const parsed = this.#parser.push(chunk, keep)
        if (Result.isFailure(parsed)) this.#broken = parsed.failure
      }
      this.#handle()
      if (this.#ended) return
      if (this.#ahead >= maxAhead)
        yield* Effect.raceFirst(
          this.#changed.until(() => this.#ahead < maxAhead),
          this.wire.closed
        )
      if (this.#parser.midFrame()) this.#awaitRest()
    }
  }

  /** The client has left: what it said before still counts, but a VM that is only just being registered goes with it. */
  #left(closed: WireClosed): Effect.Effect<void> {
    this.#leaving = true
    this.#handle()
    const log =
      this.#parser.midFrame() && closed.cause === undefined
        ? Effect.logInfo("client left in the middle of a frame")
        : Effect.logDebug("client left", { reason: closed.message })
    const done = () =>
      this.#busy === Frame.Command.RegisterVM || (this.#frames.length === 0 && this.#busy === undefined)
    return done() ? log : Effect.andThen(this.#changed.until(done), log)
  }

  /** Gives up what is under way. What the half-close still gets to this shim must not go to the next one too. */
  #release(): Effect.Effect<void> {
    this.#ended = true
    this.#frameDeadline?.cancel()
    this.#wholeDeadline?.cancel()
    this.#dropped?.end()
    const stopped = this.#fibers === undefined ? Effect.void : Fiber.interruptAll(this.#fibers)
    const session = this.#session
    if (session === undefined) return stopped
    session.detach(this)
    const drained =
      this.wire.pending() === 0
        ? Effect.void
        : Effect.ignore(Effect.timeoutOption(this.wire.drained, this.#around.settings.frameTimeout))
    return Effect.ensuring(
      Effect.andThen(stopped, drained),
      Effect.sync(() => session.release(this))
    )
  }

  #end(log?: Effect.Effect<void>) {
    if (this.#ended) return
    this.#ended = true
    if (log !== undefined) this.#fork(log)
    this.#self.interruptUnsafe()
  }

  #violated(reason: string, above?: Counters.Limit) {
    const logged = Effect.logWarning("client broke the protocol", { error: reason })
    this.#end(above === undefined ? logged : Effect.andThen(Counters.limited(above), logged))
  }

  #exceeded(limit: Counters.Limit, reason: string) {
    this.#end(Effect.andThen(Counters.limited(limit), Effect.logWarning("client's connection ended", { reason })))
  }

  /** Ends a client that leaves a frame half-sent while the proxy reads, or sends one that takes memory in drops. */
  #awaitRest() {
    this.#frameDeadline = this.#frameDue(1)
    this.#wholeDeadline ??= this.#frameDue(frameTimeouts)
  }

  #frameDue(times: number): Deadline {
    const { deadlines, settings } = this.#around
    return deadlines.set(Duration.toMillis(settings.frameTimeout) * times, () => {
      const time = Duration.format(Duration.times(settings.frameTimeout, times))
      this.#exceeded("frame time", `a frame was ${times === 1 ? "left half-sent" : "not whole"} for ${time}`)
    })
  }

  /** A frame is whole, or a piece of stdin has come, which is handed on. */
  #whole() {
    this.#wholeDeadline?.cancel()
    this.#wholeDeadline = undefined
  }

  /** Whether the client does not take its responses. */
  #behind(): boolean {
    return this.wire.pending() > this.#around.settings.maxPending
  }

  /** Whether more may be handled now. */
  #room(): boolean {
    const { maxHyper, maxPipelined } = this.#around.settings
    return (
      this.#leaving ||
      (this.#answers.length < maxPipelined &&
        this.#underWay <= maxHyper &&
        !this.#behind() &&
        this.#session?.stuffed() !== true)
    )
  }

  /** Handles what has been read, as far as may be. */
  #handle() {
    if (this.#handling) return
    this.#handling = true
    const frames = this.#frames
    let at = 0
    for (; at < frames.length && !this.#ended && this.#busy === undefined && this.#room(); at++) {
      const frame = frames[at]!
      this.#ahead -= Frame.headerSize + frame.payload.length
      this.#take(frame)
      if (this.#goodbye) this.#end()
    }
    this.#frames = at === frames.length ? [] : frames.slice(at)
    this.#session?.pump()
    this.#handling = false
    if (this.#broken !== undefined && this.#frames.length === 0 && this.#busy === undefined)
      this.#violated(this.#broken.message, this.#broken.reason === "payload length" ? "frame" : undefined)
    this.#changed.notify()
    if (this.#frames.length > 0 && this.#busy === undefined && !this.#ended) this.#awaitRoom()
  }

  #awaitRoom() {
    if (this.#stalled) return
    this.#stalled = true
    const session = this.#session
    const drains = this.#behind() // else what is waited for may come while the client falls behind: then for its wire, next
    const room = until(
      () => this.#room() || (!drains && this.#behind()),
      this.#changed,
      ...(session === undefined ? [] : [session.changed])
    )
    const drained = Effect.catch(this.wire.drained, () => Effect.never) // a wire that breaks is seen by whoever reads
    this.run(
      Effect.andThen(
        drains ? Effect.raceFirst(room, drained) : room,
        Effect.sync(() => {
          this.#stalled = false
          this.#handle()
        })
      )
    )
  }

  #take(frame: Frame.Frame) {
    if (frame.type !== Frame.FrameType.stream) return this.#command(frame.opcode as Frame.Command, frame.payload)
    if (frame.opcode === Frame.StreamKind.log) return this.#log(frame.payload)
    if (this.#session !== undefined) return this.#session.feed(frame.payload)
    // a shim's first stdin comes right behind its claim, before it knows that it was refused
    if (this.#turnedAway) this.#goodbye = true
    else this.#violated("stdin from a client that isn't a shim")
  }

  #log(payload: Uint8Array) {
    const decoded = ClientCommand.decodeLogEntry(payload)
    if (Result.isFailure(decoded)) return this.#violated(decoded.failure.message, decoded.failure.above)
    const { clock, deadlines, settings } = this.#around
    const now = elapsedMillis(clock)
    if (!(this.#logRate ??= new RateLimit(settings.logRate, now)).admits(now)) {
      this.#dropped ??= new Tally(deadlines, tellDropped, (count) => {
        const logged = Effect.logWarning("log entries dropped", {
          count,
          reason: `more than ${settings.logRate} a second`
        })
        this.#fork(Effect.andThen(Counters.limited("log rate", count), logged))
      })
      return this.#dropped.add()
    }
    const { containerId, level, msg, source } = decoded.success
    const annotations =
      containerId === null || containerId === undefined ? { source } : { source, container: containerId }
    this.#fork(Effect.annotateLogs(Effect.logWithLevel(levels[level])(msg), annotations))
  }

  #command(opcode: Frame.Command, view: Uint8Array) {
    // nobody waits for the answer, but a shim's last word counts
    if (this.#leaving && opcode !== Frame.Command.Signal && opcode !== Frame.Command.DisconnectShim) return
    this.#begin(opcode, Bytes.keep(view), new Ticket(), this.#vm, false)
  }

  /** Carries a command out, or waits for what an earlier daemon had `written` of it. */
  #begin(opcode: Frame.Command, payload: Uint8Array, ticket: Ticket, vm: Vm | undefined, written: boolean) {
    const slot: Answer = { frames: undefined, attaches: undefined, opcode, payload, ticket, vm }
    this.#answers.push(slot)
    this.#underWay += payload.length
    this.#underWayCount++
    const execution = written ? this.#rejoin(slot) : this.#execute(slot)
    const executed = Effect.catchCause(execution, refused)
    const name = ClientCommand.commandNames[opcode]
    const traced = this.#around.traced
      ? Effect.withSpan(name, { root: true, kind: "server" }, { captureStackTrace: false })(executed)
      : executed
    const answered = Effect.match(traced, {
      onSuccess: (reply) => this.#done(slot, opcode, reply, false),
      onFailure: (error) => this.#done(slot, opcode, json({ msg: error.told ?? error.message }), true)
    })
    // what waits for the agent, a shim or a process must not hold up what comes behind it
    if (opcode === Frame.Command.Hyper || opcode === Frame.Command.Signal) return this.run(answered)
    this.#busy = opcode
    this.run(
      Effect.andThen(
        answered,
        Effect.sync(() => {
          this.#busy = undefined
          this.#handle()
        })
      )
    )
  }

  /** A command is done: sends the answers that are next in order. */
  #done(slot: Answer, opcode: Frame.Command, payload: Uint8Array, inError: boolean) {
    if (slot.frames !== undefined) return // the daemon stops
    this.#underWay -= slot.payload.length
    this.#underWayCount--
    const unread = this.#held + this.wire.pending()
    if (unread > maxUnread)
      return this.#exceeded("unread", `${unread} bytes of responses are not read: the limit is ${maxUnread}`)
    slot.frames = this.#goodbye ? [] : [Frame.encode({ type: Frame.FrameType.response, opcode, inError, payload })]
    for (const frame of slot.frames) this.#held += frame.length
    for (let next = this.#answers[0]; next?.frames !== undefined; next = this.#answers[0]) {
      this.#answers.shift()
      for (const frame of next.frames) this.#held -= frame.length
      if (next.frames.length > 0) this.wire.offer(next.frames)
      next.attaches?.attach(this)
    }
    this.#changed.notify()
  }

  #rejoin({ opcode, ticket, vm }: Answer): Effect.Effect<Uint8Array, Told> {
    if (opcode === Frame.Command.Signal && this.#session !== undefined)
      return Effect.as(this.#session.owner.rejoin(ticket), empty)
    return vm === undefined ? Effect.fail(internalError) : vm.rejoin(ticket)
  }

  #execute(slot: Answer): Effect.Effect<Uint8Array, Told> {
    const { opcode, payload, ticket } = slot
    if (this.#stopping && opcode === Frame.Command.ConnectShim) return Effect.never // its connection ends, and it tries again
    if (this.#stopping && opcode !== Frame.Command.DisconnectShim)
      return Effect.fail(new CommandRefused({ reason: stopping }))
    switch (opcode) {
      case Frame.Command.RegisterVM:
        return Effect.gen(() => this.#registerVM(payload, ticket))
      case Frame.Command.AttachVM:
        return Effect.gen(() => this.#attachVM(payload))
      case Frame.Command.UnregisterVM:
        return Effect.gen(() => this.#unregisterVM(payload))
      case Frame.Command.Hyper:
        return this.#hyper(payload, slot)
      case Frame.Command.ConnectShim:
        return Effect.gen(() => this.#connectShim(payload, slot))
      case Frame.Command.DisconnectShim:
        return this.#disconnectShim()
      case Frame.Command.Signal:
        return Effect.gen(() => this.#signal(payload, ticket))
    }
  }

  /** Tells log and span what a command is about. */
  #accepted(name: string, fields: Readonly<Record<string, unknown>>, span = fields): Effect.Effect<void> {
    const logged = Effect.logInfo(name, fields)
    return this.#around.traced ? Effect.andThen(Effect.annotateCurrentSpan(span), logged) : logged
  }

  #io({ tokens }: Attached, asked: number): Uint8Array {
    return json({ io: { URL: this.#around.url, tokens: asked > 0 ? tokens : null } })
  }

  *#registerVM(payload: Uint8Array, ticket: Ticket) {
    const command = yield* Effect.fromResult(ClientCommand.decodeRegisterVM(payload))
    const { console, containerId: id, ctlSerial, ioSerial } = command
    yield* this.#accepted("RegisterVM", { vm: id, ctl: ctlSerial, io: ioSerial, console }, { vm: id })
    const attached = yield* this.#around.registry.register(command, ticket)
    this.#vm = attached.vm
    return this.#io(attached, command.numIOStreams ?? 0)
  }

  *#attachVM(payload: Uint8Array) {
    const { containerId: id, numIOStreams } = yield* Effect.fromResult(ClientCommand.decodeAttachVM(payload))
    const attached = yield* this.#around.registry.attach(id, numIOStreams ?? 0)
    yield* this.#accepted("AttachVM", { vm: id })
    this.#vm = attached.vm
    return this.#io(attached, numIOStreams ?? 0)
  }

  *#unregisterVM(payload: Uint8Array) {
    const { containerId: id } = yield* Effect.fromResult(ClientCommand.decodeUnregisterVM(payload))
    yield* this.#around.registry.unregister(id)
    yield* this.#accepted("UnregisterVM", { vm: id })
    if (this.#vm?.id === id) this.#vm = undefined
    return empty
  }

  #hyper(payload: Uint8Array, { ticket, vm }: Answer): Effect.Effect<Uint8Array, Told> {
    const decoded = ClientCommand.decodeHyper(payload)
    if (Result.isFailure(decoded)) return Effect.fail(decoded.failure)
    if (vm === undefined) return Effect.fail(new WrongClient({ needs: "vm" }))
    const { hyperName } = decoded.success
    return Effect.andThen(
      this.#accepted("Hyper", { vm: vm.id, command: hyperName }),
      vm.hyper(decoded.success, payload, ticket)
    )
  }

  *#connectShim(payload: Uint8Array, slot: Answer) {
    const { deadlines, sessions } = this.#around
    const { token } = yield* Effect.fromResult(ClientCommand.decodeConnectShim(payload))
    if (this.#session !== undefined)
      return yield* new CommandRefused({ reason: "this shim has claimed a token already" })
    this.#turnedAway = true
    let session = yield* Effect.fromResult(sessions.find(token))
    const { restored } = session.owner
    if (restored !== undefined) {
      yield* restored
      session = yield* Effect.fromResult(sessions.find(token))
    }
    // the end of the last shim's connection may be on its way; an error would make this one give up for good
    if (session.shim !== undefined) {
      const taken = session
      session.shim.wire.offer([empty]) // shows whether it has gone, where its socket is left unread
      yield* deadlines.within(claimGrace, () => taken.shim === undefined, taken.changed)
      session = yield* Effect.fromResult(sessions.find(token)) // the earlier shim may have said goodbye
    }
    const refused = session.claim(this)
    if (refused !== undefined) return yield* refused
    this.#session = session
    this.#turnedAway = false
    const vm = session.owner.id
    yield* this.#accepted("ConnectShim", { vm, token: ClientCommand.redactToken(token) }, { vm })
    slot.attaches = session
    return empty
  }

  #disconnectShim() {
    return Effect.suspend(() => {
      const session = this.#session
      if (session === undefined) return Effect.fail(new WrongClient({ needs: "shim" }))
      const { owner } = session
      return Effect.map(this.#accepted("DisconnectShim", { vm: owner.id }), () => {
        owner.close(session)
        this.#goodbye = true
        return empty
      })
    })
  }

  *#signal(payload: Uint8Array, ticket: Ticket) {
    const session = this.#session
    if (session === undefined) return yield* new WrongClient({ needs: "shim" })
    const command = yield* Effect.fromResult(ClientCommand.decodeSignal(payload))
    const refused = ClientCommand.checkSignal(command)
    if (refused !== undefined) return yield* new CommandRefused({ reason: refused })
    yield* this.#accepted("Signal", { vm: session.owner.id, signal: command.signalNumber })
    yield* session.owner.signal(session, command, ticket)
    return empty
  }
}

/** The clients that are being served. */
export interface Clients {
  /** Serves one until it leaves, breaks the protocol, or is ended from within. Whoever calls it owns the connection. */
  readonly serve: (wire: Wire, earlier?: Earlier) => Effect.Effect<void>
  /** All of them, for a daemon that takes this one's place. */
  readonly carry: (carrying: Carrying) => ReadonlyArray<DaemonState.Client>
  /** Waits until no command is under way, for `millis` milliseconds, and lets fail what is; nothing more is carried out. */
  readonly stop: (millis: number) => Effect.Effect<void>
  /** Ends all, by half-close, once they have taken what is left; what they still send is taken. Completes when they are gone. */
  readonly endAll: Effect.Effect<void>
}

export const make: Effect.Effect<Clients, never, Deadlines | Listener | Scope.Scope | Sessions | VmRegistry> =
  Effect.gen(function* () {
    const settings = yield* Settings
    const { url } = yield* Listener
    const deadlines = yield* Deadlines
    const around: Surroundings = {
      settings,
      clock: yield* Clock.Clock,
      deadlines,
      sessions: yield* Sessions,
      registry: yield* VmRegistry,
      url,
      policy: Frame.fromClient({ hyper: settings.maxHyper, command: settings.maxCommand, stdin: settings.maxStdin }),
      traced: yield* References.TracerEnabled
    }
    const fibers = yield* FiberSet.make()
    const runtime = FiberSet.runtime(fibers)()
    const clients = new Set<Client>()
    const changed = new Condition()
    return {
      serve: (wire, earlier) =>
        Effect.withFiber((self) =>
          Effect.flatMap(runtime, (fork) => {
            const client = new Client(wire, around, self, fork)
            clients.add(client)
            if (earlier !== undefined) client.resume(earlier)
            return Effect.ensuring(
              client.serve,
              Effect.sync(() => {
                clients.delete(client)
                changed.notify()
              })
            )
          })
        ),
      carry: (carrying) => Array.from(clients).flatMap((client) => client.carry(carrying) ?? []),
      stop: Effect.fnUntraced(function* (millis: number) {
        const idle = () => Array.from(clients).every((client) => !client.busy())
        // asked again and again: nobody tells
        for (let left = millis; left > 0 && !idle(); left -= stopStep) yield* Effect.sleep(stopStep)
        for (const client of clients) client.stop()
      }),
      endAll: Effect.suspend(() => {
        for (const client of clients) client.shutDown()
        return changed.until(() => clients.size === 0)
      })
    }
  })
