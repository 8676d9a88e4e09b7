/**
 * One VM's control channel: the agent answers every command with exactly one ACK or ERROR, in order and without an id. So one
 * command is in flight at a time, and a reply belongs to the command that was written in that turn.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type * as Agent from "../domain/Agent.ts"
import * as CtlMessage from "../domain/CtlMessage.ts"
import * as Condition from "./Condition.ts"
import { Settings } from "./Settings.ts"
import * as Watchdog from "./Watchdog.ts"
import type { Wire } from "./Wire.ts"

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

/** The VM is gone, or speaks no sense; nothing more can be asked of it. */
export class VmLost extends Schema.TaggedError<VmLost>()("VmLost", { reason: Schema.String }) {
  override get message(): string {
    return `VM lost: ${this.reason}`
  }
}

/** A command is too large for its agent. The VM stays usable: nothing has been written. */
export class CommandTooLarge extends Schema.TaggedError<CommandTooLarge>()("CommandTooLarge", {
  command: Schema.String,
  size: Schema.Int,
  limit: Schema.Int
}) {
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
  /** The command is on its way: it cannot be withdrawn any more. */
  readonly onWritten?: () => void
  /**
   * What became of a command that was written, once: its own reply, even one that came too late for its client, or `lost`
   * where the agent turned out to have dropped it.
   */
  readonly onReply?: (reply: "ack" | "error" | "lost") => void
}

export interface CtlChannel {
  /** Told from what the agent has sent so far. */
  readonly kind: () => Agent.AgentKind
  /** Whether a command has had no reply in time and the channel is not in step again yet. */
  readonly suspect: () => boolean
  /** Commands that wait for their turn. */
  readonly waiting: () => number
  /** Waits for READY; fails if any other reply stands in its place. */
  readonly ready: Effect.Effect<void, VmLost>
  /** Sends a command in its turn and waits for its reply's payload. Interrupting it withdraws a command not yet written. */
  readonly request: (request: CtlRequest) => Effect.Effect<Uint8Array, CtlFailure>
  /** Reads the channel until it ends. Run it once, in a fiber of its own. */
  readonly run: Effect.Effect<never, VmLost>
  /** Completes once the channel has ended, or `lose` was called. */
  readonly ended: Effect.Effect<VmLost>
  /** Fails whatever is under way and all that is asked later. */
  readonly lose: (lost: VmLost) => void
}

/** What the channel tells of its own accord, inside the call that caused it. */
export interface Handlers {
  /** A message that is no reply. The payload may be a view, valid during the call. Returns what is to be logged. */
  readonly event: (code: number, payload: Uint8Array) => Effect.Effect<void> | undefined
  /** The channel has ended. */
  readonly lost: (reason: VmLost) => void
}

interface Turn {
  readonly request: CtlRequest
  /** Milliseconds of the clock. */
  due: number
  /** Absent once the client has its answer, or has gone. */
  resume: ((reply: Effect.Effect<Uint8Array, CtlFailure>) => void) | undefined
}

/** How the channel is brought in step again after a reply that did not come. */
const resync = {
  /** Millis without a reply after which no more is expected. Source: PROTOCOL.md, "Late replies". */
  quiet: 100,
  /** Millis to wait for a ping's reply before the next one; doubles up to `maxPause`. */
  pause: 1000,
  maxPause: 60_000
}

const empty = new Uint8Array(0)
const utf8 = new TextDecoder()

/**
 * Takes the channel over. Run `run` once, in a fiber of its own.
 */
export const make = Effect.fnUntraced(function* (
  wire: Wire,
  handlers: Handlers
): Effect.fn.Return<CtlChannel, never, Scope.Scope> {
  const settings = yield* Settings
  const clock = yield* Clock.Clock
  const timeout = Duration.toMillis(settings.ctlTimeout)
  const changed = Condition.make()
  const run = yield* FiberSet.makeRuntime()

  let state: "booting" | "ready" = "booting"
  let lost: VmLost | undefined
  let kind: Agent.AgentKind = "unknown"
  let sawNext = false // since the last reply
  const waiting: Array<Turn> = []
  let current: Turn | undefined
  // in step: 0. Else how many replies may still come, and the first that did
  let owed = 0
  let first: { readonly code: number; readonly bare: boolean } | undefined
  let replies = 0 // since the last ping of a resynchronisation
  let lastBare = false // whether the last of them may be a ping's: an ACK with nothing in it

  const expired = () => current !== undefined && owed > 0

  const lose = (reason: VmLost) => {
    if (lost !== undefined) return
    lost = reason
    const turns = current === undefined ? waiting.splice(0) : [current, ...waiting.splice(0)]
    current = undefined
    for (const turn of turns) turn.resume?.(Effect.fail(reason))
    changed.notify()
    handlers.lost(reason)
  }

  const write = (turn: Turn) => {
    current = turn
    turn.due = clock.currentTimeMillisUnsafe() + timeout
    sawNext = false
    turn.request.onWritten?.()
    wire.offer([CtlMessage.encode(turn.request.code, turn.request.payload)])
    watch()
  }

  const advance = () => {
    if (current !== undefined || lost !== undefined) return
    const next = waiting.shift()
    if (next !== undefined) write(next)
  }

  const due = () =>
    Math.min(
      current === undefined || expired() ? Number.POSITIVE_INFINITY : current.due,
      waiting[0]?.due ?? Number.POSITIVE_INFINITY
    )

  /** Fails what is due: commands that wait, and the one in flight, whose turn stays taken. */
  const expire = Effect.suspend(() => {
    const now = clock.currentTimeMillisUnsafe()
    const fail = (turn: Turn, written: boolean) => {
      const error = new CtlTimeout({ command: turn.request.command, written, after: settings.ctlTimeout })
      turn.resume?.(Effect.fail(error))
      turn.resume = undefined
      return Effect.logWarning(error.message)
    }
    const logs: Array<Effect.Effect<void>> = []
    while (waiting[0] !== undefined && waiting[0].due <= now) logs.push(fail(waiting.shift()!, false))
    if (current !== undefined && !expired() && current.due <= now) {
      owed = 1
      logs.push(fail(current, true))
      run(resynchronise)
    }
    return Effect.all(logs, { discard: true })
  })
  const watch = Watchdog.make(run, clock, due, expire)

  /**
   * Pings until the channel is in step: either every reply has come, or two pings in a row have had exactly one each and
   * nothing followed, so the agent has dropped the command. An agent that was only slow answers all of them, in order; the
   * first lone reply may be the late one, so only the second tells how fast the agent is.
   */
  const resynchronise = Effect.gen(function* () {
    let pause = resync.pause
    let alone = 0
    for (;;) {
      replies = 0
      owed++
      const sent = clock.currentTimeMillisUnsafe()
      wire.offer([CtlMessage.encode(CtlMessage.Code.ping, empty)])
      const answered = yield* changed
        .until(() => replies > 0 || lost !== undefined)
        .pipe(
          Effect.timeoutOption(pause),
          Effect.map((done) => done._tag === "Some")
        )
      if (lost !== undefined) return
      if (!answered) {
        pause = Math.min(pause * 2, resync.maxPause)
        yield* Effect.logDebug("agent does not answer pings")
        continue
      }
      const latency = clock.currentTimeMillisUnsafe() - sent
      const quiet = Math.min(Math.max(resync.quiet, 4 * latency), resync.maxPause)
      for (;;) {
        if (owed === 0) break
        const seen = replies
        const more = yield* changed.until(() => replies > seen || lost !== undefined).pipe(Effect.timeoutOption(quiet))
        if (more._tag === "None" || lost !== undefined) break
      }
      if (lost !== undefined) return
      alone = replies === 1 && lastBare ? alone + 1 : 0
      if (owed === 0 || alone === 2) break
    }
    const answered = first !== undefined && (owed === 0 || !first.bare)
    current?.request.onReply?.(!answered ? "lost" : first!.code === CtlMessage.Code.ack ? "ack" : "error")
    owed = 0
    first = undefined
    current = undefined
    yield* Effect.logInfo(`agent answers again, ${answered ? "late" : "a command went lost"}`)
    advance()
  })

  // a guest must not be able to flood the log
  let unaskedCount = 0
  const unasked = (what: string) =>
    (++unaskedCount === 1 ? Effect.logWarning : Effect.logDebug)(what, { count: unaskedCount })

  const onReply = (code: number, payload: Uint8Array): Effect.Effect<void> | undefined => {
    if (kind === "unknown") kind = sawNext ? "c" : "go"
    sawNext = false
    if (owed > 0) {
      owed--
      replies++
      lastBare = code === CtlMessage.Code.ack && payload.length === 0
      first ??= { code, bare: lastBare }
      changed.notify()
      return Effect.logDebug("late reply dropped")
    }
    const turn = current
    if (turn === undefined) return unasked("reply that nobody waits for dropped")
    current = undefined
    turn.request.onReply?.(code === CtlMessage.Code.ack ? "ack" : "error")
    const resume = turn.resume
    turn.resume = undefined
    // the next command leaves before this one's client goes on: the agent is idle, the client is not
    advance()
    if (resume === undefined) return Effect.logDebug(`reply to ${turn.request.command} dropped: its client is gone`)
    resume(
      code === CtlMessage.Code.ack
        ? Effect.succeed(payload.slice())
        : Effect.fail(new AgentRefused({ command: turn.request.command, text: utf8.decode(payload) }))
    )
    return undefined
  }

  const onMessage = (code: number, payload: Uint8Array): Effect.Effect<void> | undefined => {
    switch (code) {
      case CtlMessage.Code.next:
        sawNext = true
        kind = "c"
        return undefined
      case CtlMessage.Code.ack:
      case CtlMessage.Code.error:
        if (state === "ready") return onReply(code, payload)
        lose(new VmLost({ reason: "the agent sent a reply in place of READY" }))
        return undefined
      case CtlMessage.Code.ready:
        if (state === "ready") return unasked("READY came again")
        state = "ready"
        changed.notify()
        return undefined
      default:
        if (state === "booting") {
          lose(new VmLost({ reason: `the agent sent code ${code} in place of READY` }))
          return undefined
        }
        return handlers.event(code, payload)
    }
  }

  return {
    kind: () => kind,
    suspect: () => owed > 0,
    waiting: () => waiting.length,
    ready: changed
      .until(() => state === "ready" || lost !== undefined)
      .pipe(Effect.flatMap(() => (lost === undefined ? Effect.void : Effect.fail(lost)))),
    request: (request) =>
      Effect.callback<Uint8Array, CtlFailure>((resume) => {
        if (lost !== undefined) return resume(Effect.fail(lost))
        const size = CtlMessage.headerSize + request.payload.length
        if (size > settings.maxCtlCommand)
          return resume(
            Effect.fail(new CommandTooLarge({ command: request.command, size, limit: settings.maxCtlCommand }))
          )
        const turn: Turn = { request, due: clock.currentTimeMillisUnsafe() + timeout, resume }
        if (current === undefined) {
          write(turn)
        } else {
          waiting.push(turn)
          watch()
        }
        return Effect.sync(() => {
          turn.resume = undefined
          const at = waiting.indexOf(turn)
          if (at >= 0) waiting.splice(at, 1)
        })
      }),
    ended: changed.until(() => lost !== undefined).pipe(Effect.map(() => lost!)),
    lose,
    run: Effect.gen(function* () {
      const parser = CtlMessage.makeParser()
      for (;;) {
        const chunk = yield* wire.pull
        const logs: Array<Effect.Effect<void>> = []
        const parsed = parser.push(chunk, (code, payload) => {
          const log = onMessage(code, payload)
          if (log !== undefined) logs.push(log)
        })
        for (const log of logs) yield* log
        if (Result.isFailure(parsed)) return yield* new VmLost({ reason: parsed.failure.message })
        if (lost !== undefined) return yield* lost
      }
    }).pipe(
      Effect.catchTag("WireClosed", (closed) => Effect.fail(new VmLost({ reason: `ctl: ${closed.message}` }))),
      Effect.tapError((reason) => Effect.sync(() => lose(reason)))
    )
  }
})
