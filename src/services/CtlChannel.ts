/**
 * One VM's control channel: the agent answers every command with exactly one ACK or ERROR, in order and without an id. So one
 * command is in flight at a time, and a reply belongs to the command that was written in that turn.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Agent from "../domain/Agent.ts"
import * as CtlMessage from "../domain/CtlMessage.ts"
import type * as DaemonState from "../domain/DaemonState.ts"
import * as Recovery from "../domain/Recovery.ts"
import { Condition } from "./Condition.ts"
import * as Counters from "./Counters.ts"
import { type Deadline, Deadlines, elapsedMillis } from "./Deadlines.ts"
import { Settings } from "./Settings.ts"
import type { Ticket } from "./Ticket.ts"
import type { CarriedWire, Wire } from "./Wire.ts"

/** The agent refused a command. `text` is its own; the C agent gives none. */
export class AgentRefused extends Schema.TaggedError<AgentRefused>()("AgentRefused", {
  command: Schema.String,
  text: Schema.String
}) {
  /** Without the agent's text, which may quote what it was sent: logs and traces hold no environments. */
  override get message(): string {
    return `agent refused ${this.command}`
  }
  /** What the client is told. */
  get told(): string {
    return this.text === "" ? this.message : `${this.message}: ${this.text}`
  }
}

/** A command had no reply in time, or its turn did not come in time because an earlier one had none. */
export class CtlTimeout extends Schema.TaggedError<CtlTimeout>()("CtlTimeout", {
  command: Schema.String,
  written: Schema.Boolean,
  after: Schema.Duration
}) {
  override get message(): string {
    const what = this.written ? "no reply from the agent" : "the agent is busy with an earlier command"
    return `timeout: ${what}: ${this.command}, ${Duration.format(this.after)}`
  }
}

/** The VM is gone, or speaks no sense; nothing more can be asked of it. Every VM ends with one: see `WireClosed`. */
export class VmLost {
  readonly _tag = "VmLost"
  readonly reason: string

  constructor({ reason }: { readonly reason: string }) {
    this.reason = reason
  }

  get message(): string {
    return `VM lost: ${this.reason}`
  }
}

/** A command is too large for its agent. The VM stays usable: nothing has been written. */
export class CommandTooLarge extends Schema.TaggedError<CommandTooLarge>()("CommandTooLarge", {
  command: Schema.String,
  size: Schema.Int,
  limit: Schema.Int
}) {
  readonly above = "ctl command"
  override get message(): string {
    return `${this.command} is too large: ${this.size} bytes, the limit is ${this.limit}`
  }
}

export type CtlFailure = AgentRefused | CtlTimeout | VmLost | CommandTooLarge

export interface CtlRequest {
  /** For errors and logs. */
  readonly command: string
  readonly code: number
  readonly payload: Uint8Array
  /** No client waits for the reply: nobody needs to be warned where its turn does not come. */
  readonly own?: true
  /** Of the client's command that it carries out. */
  readonly ticket?: Ticket | undefined
  /** The command is on its way: it cannot be withdrawn any more. */
  readonly onWritten?: () => void
  /**
   * What became of a command that was written, once: its own reply, even one that came too late for its client, or `lost`
   * where the agent turned out to have dropped it.
   */
  readonly onReply?: (reply: "ack" | "error" | "lost") => void
}

/** What the channel tells of its own accord, inside the call that caused it. */
export interface Handlers {
  /** Both channels are connected; `carry` tells what a daemon needs that takes this one's place before READY has come. */
  readonly connecting: (carry: () => Carried | undefined) => void
  /** A message that is no reply. The payload may be a view, valid during the call. Returns what is to be logged. */
  readonly event: (code: number, payload: Uint8Array) => Effect.Effect<void> | undefined
  /** The channel has ended. */
  readonly lost: (reason: VmLost) => void
  /** Runs what the channel has to do beside reading, for as long as the VM lives. */
  readonly run: (effect: Effect.Effect<void>) => void
}

interface Turn {
  readonly request: CtlRequest
  deadline: Deadline | undefined
  /** When it was written, of `elapsedMillis`. */
  since: number
  ticket: Ticket | undefined
  /** Absent once the client has its answer, or has gone. */
  resume: ((reply: Effect.Effect<Uint8Array, CtlFailure>) => void) | undefined
}

/** Both channels on their way from one daemon to the next. */
export interface Carried {
  readonly ctl: CarriedWire
  readonly io: CarriedWire
}

/** Where an earlier daemon stood. */
export interface Earlier {
  readonly agent: Agent.AgentKind
  /** What is known of the channel; absent where its daemon has been killed, or the connection is a new one. */
  readonly channel?: DaemonState.Channel | undefined
  /** What becomes of the command that had no reply. */
  readonly onReply: (reply: "ack" | "error" | "lost") => void
  /** Whether that may be a start, whose reply takes longer. */
  readonly starting: boolean
  /** Whether the first byte may stand in the middle of a message. */
  readonly torn: boolean
}

/** How the channel is brought in step again after a reply that did not come. */
const resync = {
  /** Millis without a reply after which no more is expected. Source: PROTOCOL.md, "Late replies". */
  quiet: 100,
  /** Millis to wait for a ping's reply before the next one; doubles up to `maxPause`. */
  pause: 1000,
  maxPause: 60_000,
  /** Most millis to wait for another reply behind one. */
  maxQuiet: 600_000,
  /** Millis to wait for the reply to a start that an earlier daemon had written. */
  starting: 1000
}

/** Most bytes of which the first message is looked for: a reply is small, as a rule. */
const maxTorn = 64 * 1024

/** Most bytes of an agent's text that a client is told. Source: PROTOCOL.md, "Limits". */
const maxText = 64 * 1024

const empty = new Uint8Array(0)
const utf8 = new TextDecoder()

/** An agent's text, as far as it is passed on. */
const textOf = (payload: Uint8Array): string =>
  utf8.decode(payload.subarray(0, maxText)) + (payload.length > maxText ? "…" : "")

const write = (wire: Wire, code: number, payload: Uint8Array) => wire.offer([CtlMessage.encode(code, payload)])

export class CtlChannel {
  readonly #wire: Wire
  readonly #handlers: Handlers
  readonly #settings: Settings
  readonly #clock: Clock.Clock
  readonly #deadlines: Deadlines["Service"]
  readonly #changed = new Condition()
  #ready = false
  #lost: VmLost | undefined
  #kind: Agent.AgentKind = "unknown"
  #sawNext = false // since the last reply
  readonly #waiting: Array<Turn> = []
  #current: Turn | undefined
  // in step: 0. Else how many replies may still come, and the first that did
  #owed = 0
  #first: { readonly code: number; readonly bare: boolean } | undefined
  #parser: CtlMessage.Parser
  #recovery: Recovery.Recovery | undefined
  #replies = 0 // since the last ping of a resynchronisation
  #lastBare = false // whether the last of them may be a ping's: an ACK with nothing in it
  #unasked = 0

  constructor(wire: Wire, handlers: Handlers, settings: Settings, clock: Clock.Clock, deadlines: Deadlines["Service"]) {
    this.#wire = wire
    this.#handlers = handlers
    this.#settings = settings
    this.#clock = clock
    this.#deadlines = deadlines
    this.#parser = CtlMessage.makeParser(settings.maxCtlReply)
  }

  /** Goes on where an earlier daemon stood: before anything else. */
  resume({ agent, channel, onReply, starting, torn }: Earlier): void {
    this.#ready = true
    this.#kind = agent
    if (channel === undefined) {
      if (torn) this.#recovery = Recovery.make(CtlMessage.traits(this.#settings.maxCtlReply), maxTorn)
      this.#current = earlierTurn({ command: "a command", code: CtlMessage.Code.ping }, onReply)
      this.#owed = 1
      this.#handlers.run(Effect.gen(() => this.#resynchronise(starting ? resync.starting : resync.quiet)))
      return
    }
    this.#sawNext = channel.sawNext
    this.#owed = channel.owed
    if (channel.current === undefined) return
    const turn = earlierTurn(channel.current, onReply)
    turn.since = elapsedMillis(this.#clock) - channel.current.millis
    this.#current = turn
    if (this.#owed > 0) this.#handlers.run(Effect.gen(() => this.#resynchronise()))
    else this.#setDeadline(turn, Math.max(Duration.toMillis(this.#settings.ctlTimeout) - channel.current.millis, 0))
  }

  /** Where it stands, and the ticket of the command that has been written; what has been read of a message is `rest`. */
  carry(now: number): { readonly channel: DaemonState.Channel; readonly ticket: Ticket | undefined } {
    const turn = this.#current
    const channel = { owed: this.#owed, sawNext: this.#sawNext }
    if (turn === undefined) return { channel, ticket: undefined }
    const { code, command } = turn.request
    const millis = now - turn.since
    // whoever has had an answer, or has gone, has no ticket any more
    return { channel: { ...channel, current: { command, code, millis } }, ticket: turn.resume && turn.ticket }
  }

  /** What has been read and is not a whole message yet. */
  rest(): Uint8Array {
    return this.#parser.rest()
  }

  /** Waits for the reply to the command that an earlier daemon had written for `ticket`. */
  rejoin(ticket: Ticket): Effect.Effect<Uint8Array, CtlFailure> {
    return Effect.callback<Uint8Array, CtlFailure>((resume) => {
      const turn = this.#current
      if (turn === undefined) return resume(Effect.fail(this.#lost ?? noReply))
      turn.ticket = ticket
      turn.resume = resume
      return Effect.sync(() => (turn.resume = undefined))
    })
  }

  /** Waits until it is in step, for `millis` milliseconds; whether it is. */
  inStep(millis: number): Effect.Effect<boolean> {
    return this.#deadlines.within(millis, () => this.#owed === 0 || this.#lost !== undefined, this.#changed)
  }

  /** Told from what the agent has sent so far. */
  kind(): Agent.AgentKind {
    return this.#kind
  }

  /** Whether a command has had no reply in time and the channel is not in step again yet. */
  suspect(): boolean {
    return this.#owed > 0
  }

  /** Whether a command would have to wait for its turn. */
  busy(): boolean {
    return this.#current !== undefined
  }

  /** Commands that wait for their turn. */
  waiting(): number {
    return this.#waiting.length
  }

  /** Waits for READY, for `millis` milliseconds; whether it came. Fails if any other reply stands in its place. */
  ready(millis: number): Effect.Effect<boolean, VmLost> {
    const settled = () => this.#ready || this.#lost !== undefined
    return Effect.filterOrFail(
      this.#deadlines.within(millis, settled, this.#changed),
      () => this.#lost === undefined,
      () => this.#lost!
    )
  }

  /** Waits until the channel has ended, or `lose` was called, for `millis` milliseconds. */
  ended(millis: number): Effect.Effect<boolean> {
    return this.#deadlines.within(millis, () => this.#lost !== undefined, this.#changed)
  }

  /** Sends a command in its turn and waits for its reply's payload. Interrupting it withdraws a command not yet written. */
  request(request: CtlRequest): Effect.Effect<Uint8Array, CtlFailure> {
    return Effect.callback<Uint8Array, CtlFailure>((resume) => {
      if (this.#lost !== undefined) return resume(Effect.fail(this.#lost))
      const size = CtlMessage.headerSize + request.payload.length
      const limit = this.#settings.maxCtlCommand
      if (size > limit) return resume(Effect.fail(new CommandTooLarge({ command: request.command, size, limit })))
      const turn: Turn = { request, deadline: undefined, since: 0, ticket: request.ticket, resume }
      if (this.#current === undefined) {
        this.#write(turn)
      } else {
        this.#waiting.push(turn)
        const millis = Duration.toMillis(this.#settings.ctlTimeout)
        this.#setDeadline(turn, request.ticket?.begin(millis, elapsedMillis(this.#clock)) ?? millis)
      }
      return Effect.sync(() => {
        turn.resume = undefined
        if (turn !== this.#current) this.#withdraw(turn)
      })
    })
  }

  /** Reads the channel until it ends. Run it once, in a fiber of its own. */
  get run(): Effect.Effect<void> {
    return Effect.catch(
      Effect.gen(() => this.#read()),
      (end) => Effect.sync(() => this.lose(end._tag === "VmLost" ? end : new VmLost({ reason: `ctl: ${end.message}` })))
    )
  }

  /** Fails whatever is under way and all that is asked later. */
  lose(reason: VmLost): void {
    if (this.#lost !== undefined) return
    this.#lost = reason
    const turns = this.#waiting.splice(0)
    if (this.#current !== undefined) turns.unshift(this.#current)
    this.#current = undefined
    for (const turn of turns) {
      turn.deadline?.cancel()
      turn.resume?.(Effect.fail(reason))
    }
    this.#changed.notify()
    this.#handlers.lost(reason)
  }

  *#read() {
    const logs: Array<Effect.Effect<void>> = []
    const onMessage = (code: number, payload: Uint8Array) => {
      const log = this.#onMessage(code, payload)
      if (log !== undefined) logs.push(log)
    }
    for (;;) {
      const read = yield* this.#wire.pull
      const chunk = this.#recovery === undefined ? read : yield* this.#recover(this.#recovery, read)
      const parsed = this.#parser.push(chunk, onMessage)
      if (logs.length > 0) for (const log of logs.splice(0)) yield* log
      if (Result.isFailure(parsed)) {
        if (parsed.failure.length > parsed.failure.limit) yield* Counters.limited("ctl reply")
        return yield* Effect.fail(new VmLost({ reason: parsed.failure.message }))
      }
      if (this.#lost !== undefined) return yield* Effect.fail(this.#lost)
    }
  }

  *#recover(recovery: Recovery.Recovery, read: Uint8Array) {
    const chunk = recovery.push(read)
    if (chunk === undefined) return yield* Effect.fail(new VmLost({ reason: "ctl: no message found" }))
    if (!recovery.done()) return chunk
    this.#recovery = undefined
    if (recovery.skipped() > 0) yield* Effect.logWarning("part of a reply skipped", { bytes: recovery.skipped() })
    return chunk
  }

  #setDeadline(turn: Turn, millis: number) {
    turn.deadline?.cancel()
    turn.deadline = this.#deadlines.set(millis, () => this.#expire(turn))
  }

  #write(turn: Turn) {
    this.#current = turn
    turn.since = elapsedMillis(this.#clock)
    this.#setDeadline(turn, Duration.toMillis(this.#settings.ctlTimeout))
    this.#sawNext = false
    turn.request.onWritten?.()
    write(this.#wire, turn.request.code, turn.request.payload)
  }

  #advance() {
    if (this.#current !== undefined || this.#lost !== undefined) return
    const next = this.#waiting.shift()
    if (next !== undefined) this.#write(next)
  }

  #withdraw(turn: Turn) {
    turn.deadline?.cancel()
    const at = this.#waiting.indexOf(turn)
    if (at >= 0) this.#waiting.splice(at, 1)
  }

  /** Fails a command that waits, or the one in flight, whose turn stays taken. */
  #expire(turn: Turn) {
    const written = turn === this.#current
    const { command } = turn.request
    const error = new CtlTimeout({ command, written, after: this.#settings.ctlTimeout })
    const { resume } = turn
    turn.resume = undefined
    if (written) this.#owed = 1
    else this.#withdraw(turn)
    this.#handlers.run((written || !turn.request.own ? Effect.logWarning : Effect.logDebug)(error.message))
    resume?.(Effect.fail(error))
    if (written) this.#handlers.run(Effect.gen(() => this.#resynchronise()))
  }

  /**
   * Pings until the channel is in step: either every reply has come, or two pings in a row have had exactly one each and
   * nothing followed, so the agent has dropped the command. An agent that was only slow answers all of them, in order; the
   * first lone reply may be the late one, so only the second tells how fast the agent is.
   */
  *#resynchronise(listen = 0) {
    const replied = (seen: number, millis: number) =>
      this.#deadlines.within(millis, () => this.#replies > seen || this.#lost !== undefined, this.#changed)
    let pause = resync.pause
    let alone = 0
    let quiet: number
    let since = elapsedMillis(this.#clock) // the agent has owed the next reply since the one before it, or the first ping
    // of a connection that an earlier daemon had, the reply to its last command is the first that comes
    if (listen > 0) {
      yield* replied(this.#replies, listen)
      since = elapsedMillis(this.#clock)
    }
    for (;;) {
      this.#replies = 0
      this.#owed++
      write(this.#wire, CtlMessage.Code.ping, empty)
      const answered = yield* replied(0, pause)
      if (this.#lost !== undefined) return
      if (!answered) {
        pause = Math.min(pause * 2, resync.maxPause)
        yield* Effect.logDebug("agent does not answer pings")
        continue
      }
      do {
        if (this.#lost !== undefined) return
        const now = elapsedMillis(this.#clock)
        quiet = Math.min(Math.max(resync.quiet, 4 * (now - since)), resync.maxQuiet)
        since = now
      } while (this.#owed > 0 && (yield* replied(this.#replies, quiet)))
      if (this.#lost !== undefined) return
      alone = this.#replies === 1 && this.#lastBare ? alone + 1 : 0
      if (this.#owed === 0 || alone === 2) break
    }
    const first = this.#first
    const answered = first !== undefined && (this.#owed === 0 || !first.bare)
    this.#current?.request.onReply?.(!answered ? "lost" : first.code === CtlMessage.Code.ack ? "ack" : "error")
    this.#owed = 0
    this.#first = undefined
    this.#current = undefined
    this.#changed.notify()
    yield* listen > 0
      ? Effect.logInfo("agent answers")
      : Effect.logInfo(`agent answers again, ${answered ? "late" : "a command went lost"}`)
    this.#advance()
  }

  /** A guest must not be able to flood the log. */
  #tellUnasked(what: string) {
    return (++this.#unasked === 1 ? Effect.logWarning : Effect.logDebug)(what, { count: this.#unasked })
  }

  #onReply(code: number, payload: Uint8Array): Effect.Effect<void> | undefined {
    if (this.#kind === "unknown") this.#kind = this.#sawNext ? "c" : "go"
    this.#sawNext = false
    if (this.#owed > 0) {
      this.#owed--
      this.#replies++
      this.#lastBare = code === CtlMessage.Code.ack && payload.length === 0
      this.#first ??= { code, bare: this.#lastBare }
      this.#changed.notify()
      return Effect.logDebug("late reply dropped")
    }
    const turn = this.#current
    if (turn === undefined) return this.#tellUnasked("reply that nobody waits for dropped")
    this.#current = undefined
    turn.deadline?.cancel()
    turn.request.onReply?.(code === CtlMessage.Code.ack ? "ack" : "error")
    const resume = turn.resume
    turn.resume = undefined
    // the next command leaves before this one's client goes on: the agent is idle, the client is not
    this.#advance()
    if (resume === undefined) return Effect.logDebug(`reply to ${turn.request.command} dropped: its client is gone`)
    resume(
      code === CtlMessage.Code.ack
        ? Effect.succeed(payload.length === 0 ? empty : payload.slice())
        : Effect.fail(new AgentRefused({ command: turn.request.command, text: textOf(payload) }))
    )
    return undefined
  }

  #onMessage(code: number, payload: Uint8Array): Effect.Effect<void> | undefined {
    switch (code) {
      case CtlMessage.Code.next:
        this.#sawNext = true
        this.#kind = "c"
        return undefined
      case CtlMessage.Code.ack:
      case CtlMessage.Code.error:
        if (this.#ready) return this.#onReply(code, payload)
        this.lose(new VmLost({ reason: "the agent sent a reply in place of READY" }))
        return undefined
      case CtlMessage.Code.ready:
        if (this.#ready) return this.#tellUnasked("READY came again")
        this.#ready = true
        this.#changed.notify()
        return undefined
      default:
        if (!this.#ready) {
          this.lose(new VmLost({ reason: `the agent sent code ${code} in place of READY` }))
          return undefined
        }
        return this.#handlers.event(code, payload)
    }
  }
}

const noReply = new CtlTimeout({ command: "a command", written: true, after: Duration.zero })

/** The turn of a command that an earlier daemon had written. */
const earlierTurn = (
  { code, command }: { readonly command: string; readonly code: number },
  onReply: (reply: "ack" | "error" | "lost") => void
): Turn => ({
  request: { command, code, payload: empty, onReply },
  deadline: undefined,
  since: 0,
  ticket: undefined,
  resume: undefined
})

/** Takes the channel over. Run its `run` once, in a fiber of its own. */
export const make = Effect.fnUntraced(function* (
  wire: Wire,
  handlers: Handlers
): Effect.fn.Return<CtlChannel, never, Deadlines> {
  return new CtlChannel(wire, handlers, yield* Settings, yield* Clock.Clock, yield* Deadlines)
})
