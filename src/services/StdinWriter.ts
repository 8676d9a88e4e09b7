/**
 * Writes one VM's stdin: whole messages, 32 KiB at once, process after process, as fast as its agent may be sent them.
 */
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import type * as Scope from "effect/Scope"
import * as Agent from "../domain/Agent.ts"
import * as CtlMessage from "../domain/CtlMessage.ts"
import type { CtlChannel } from "./CtlChannel.ts"
import * as IoDump from "./IoDump.ts"
import type { Session } from "./Session.ts"
import { Settings } from "./Settings.ts"
import type { Wire } from "./Wire.ts"

/** Largest write to an agent, in bytes: up to this size AF_UNIX takes all or nothing, so no death can tear a message. */
const maxWrite = 32 * 1024

const empty = new Uint8Array(0)

export interface StdinWriter {
  /** `session` may have stdin to send: sends it now, or as soon as the agent keeps up. */
  readonly wake: (session: Session) => void
}

export const make = Effect.fnUntraced(function* (
  wire: Wire,
  ctl: CtlChannel
): Effect.fn.Return<StdinWriter, never, Scope.Scope> {
  const { debug } = yield* Settings
  const run = yield* FiberSet.makeRuntime()
  const ready = new Set<Session>() // in the order of their turns
  const pinging = new Set<Session>()
  const tails = new Set<Session>()
  let waiting = false
  let writing = false

  const write = () => {
    // taking stdin wakes its shim's fiber, which may bring more before what was taken has been offered
    if (writing) return
    writing = true
    for (const session of ready) {
      if (wire.pending() > 0) break
      ready.delete(session)
      const rule = Agent.stdinRules[ctl.kind()]
      const messages = session.takeStdin(rule, maxWrite)
      if (messages === undefined) {
        if (session.needsWindow() && !pinging.has(session)) run(openWindow(session))
        if (rule.full && session.waitsForMore() !== undefined && !tails.has(session)) run(awaitMore(session))
      } else {
        if (debug) run(IoDump.dump("to agent", messages, 0, messages.length))
        wire.offer([messages])
        ready.add(session) // behind the others
      }
    }
    writing = false
    if (ready.size > 0 && !waiting) {
      waiting = true
      run(afterDrain)
    }
  }

  const afterDrain = Effect.suspend(() => wire.drained).pipe(
    Effect.ensuring(Effect.sync(() => (waiting = false))),
    Effect.andThen(Effect.sync(write)),
    Effect.ignore // the VM is gone
  )

  /** Waits until the agent has answered as many pings as it takes to empty its buffer. It is asked for as long as the VM lives. */
  const openWindow = (session: Session) =>
    Effect.gen(function* () {
      pinging.add(session)
      for (let answered = 0; answered < Agent.pingsPerWindow;) {
        const reply = yield* ctl
          .request({ command: "ping", code: CtlMessage.Code.ping, payload: empty })
          .pipe(Effect.result)
        if (reply._tag === "Success" || reply.failure._tag === "AgentRefused") answered++
        else if (reply.failure._tag === "VmLost") return
      }
      pinging.delete(session)
      session.openWindow()
      wake(session)
    }).pipe(Effect.ensuring(Effect.sync(() => pinging.delete(session))))

  /** Waits until what makes messages full has come, or nothing has come for a while. */
  const awaitMore = (session: Session) =>
    Effect.gen(function* () {
      tails.add(session)
      for (let seen: number | undefined; session.waitsForMore() !== seen;) {
        seen = session.waitsForMore()
        if (seen === undefined) return
        yield* Effect.sleep(Agent.tailWait)
      }
      session.sendTail()
      tails.delete(session)
      wake(session)
    }).pipe(Effect.ensuring(Effect.sync(() => tails.delete(session))))

  const wake = (session: Session) => {
    ready.add(session)
    write()
  }

  return { wake }
})
