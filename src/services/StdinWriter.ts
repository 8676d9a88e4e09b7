/**
 * Writes one VM's stdin: whole messages, 32 KiB at once, process after process, as fast as its agent may be sent them.
 */
import * as Effect from "effect/Effect"
import * as Agent from "../domain/Agent.ts"
import * as CtlMessage from "../domain/CtlMessage.ts"
import type { CtlChannel } from "./CtlChannel.ts"
import * as IoDump from "./IoDump.ts"
import type { Session } from "./Session.ts"
import type { Wire } from "./Wire.ts"

/** Largest write to an agent, in bytes: up to this size AF_UNIX takes all or nothing, so no death can tear a message. */
const maxWrite = 32 * 1024

const empty = new Uint8Array(0)

export class StdinWriter {
  readonly #wire: Wire
  readonly #ctl: CtlChannel
  readonly #debug: boolean
  readonly #run: (effect: Effect.Effect<void>) => void
  readonly #ready = new Set<Session>() // in the order of their turns
  readonly #pinging = new Set<Session>()
  readonly #tails = new Set<Session>()
  #waiting = false
  #writing = false
  #tailWait: number = Agent.tailWait

  /** `resumed`: an earlier daemon has written to the agent before. `debug`: whether stdin is dumped to the log. `run` runs effects for as long as the VM lives. */
  constructor(
    wire: Wire,
    ctl: CtlChannel,
    debug: boolean,
    run: (effect: Effect.Effect<void>) => void,
    resumed = false
  ) {
    this.#wire = wire
    this.#ctl = ctl
    this.#debug = debug
    this.#run = run
    if (!resumed) return
    this.#tailWait = Agent.resumedTailWait
    run(
      Effect.andThen(
        Effect.sleep(Agent.resumedFor),
        Effect.sync(() => (this.#tailWait = Agent.tailWait))
      )
    )
  }

  /** `session` may have stdin to send: sends it now, or as soon as the agent keeps up. */
  wake(session: Session): void {
    this.#ready.add(session)
    this.#write()
  }

  #write() {
    // taking stdin wakes its shim's connection, which may bring more before what was taken has been offered
    if (this.#writing) return
    this.#writing = true
    for (const session of this.#ready) {
      if (this.#wire.pending() > 0) break
      this.#ready.delete(session)
      const rule = Agent.stdinRules[this.#ctl.kind()]
      const messages = session.takeStdin(rule, maxWrite)
      if (messages === undefined) {
        if (session.needsWindow())
          this.#once(
            this.#pinging,
            session,
            Effect.gen(() => this.#window()),
            openWindow
          )
        if (rule.full && session.waitsForMore() !== undefined)
          this.#once(
            this.#tails,
            session,
            Effect.gen(() => this.#tail(session)),
            sendTail
          )
      } else {
        if (this.#debug) this.#run(IoDump.dump("to agent", messages, 0, messages.length))
        this.#wire.offer([messages])
        this.#ready.add(session) // behind the others
      }
    }
    this.#writing = false
    if (this.#ready.size === 0 || this.#waiting) return
    this.#waiting = true
    this.#run(
      this.#wire.drained.pipe(
        Effect.ensuring(Effect.sync(() => (this.#waiting = false))),
        Effect.andThen(Effect.sync(() => this.#write())),
        Effect.ignore // the VM is gone
      )
    )
  }

  /** Runs one of `kind` for a session at a time, and what follows from it once another may be run. */
  #once(kind: Set<Session>, session: Session, wait: Effect.Effect<boolean>, then: (session: Session) => void) {
    if (kind.has(session)) return
    kind.add(session)
    this.#run(
      Effect.map(
        Effect.ensuring(
          wait,
          Effect.sync(() => kind.delete(session))
        ),
        (came) => {
          if (!came) return
          then(session)
          this.wake(session)
        }
      )
    )
  }

  /** Waits until the agent has answered as many pings as it takes to empty its buffer. It is asked for as long as the VM lives. */
  *#window() {
    for (let answered = 0; answered < Agent.pingsPerWindow;) {
      const reply = yield* this.#ctl
        .request({ command: "ping", code: CtlMessage.Code.ping, payload: empty, own: true })
        .pipe(Effect.result)
      if (reply._tag === "Success" || reply.failure._tag === "AgentRefused") answered++
      else if (reply.failure._tag === "VmLost") return false
    }
    return true
  }

  /** Waits until what makes messages full has come, or nothing has come for a while. */
  *#tail(session: Session) {
    for (let seen: number | undefined; session.waitsForMore() !== seen;) {
      seen = session.waitsForMore()
      if (seen === undefined) return false
      yield* Effect.sleep(this.#tailWait)
    }
    return true
  }
}

const openWindow = (session: Session) => session.openWindow()
const sendTail = (session: Session) => session.sendTail()
