/** The daemon's one loop: every client that arrives is served in a fiber and a scope of its own. */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Frame from "../domain/Frame.ts"
import * as Client from "./Client.ts"
import * as Counters from "./Counters.ts"
import { Deadlines } from "./Deadlines.ts"
import { type Crowded, Listener, type ListenError, turnedAwayMillis } from "./Listener.ts"
import type { Sessions } from "./Sessions.ts"
import { Spool } from "./Spool.ts"
import { Tally } from "./Tally.ts"
import type { VmRegistry } from "./VmRegistry.ts"
import type { Wire } from "./Wire.ts"

/** Milliseconds between two records of clients that were turned away. */
const tellCrowded = 10_000

const utf8 = new TextEncoder()

/** Reads as far as a client's first header, so that no payload is kept. The opcode, if it is a command's. */
const firstCommand = Effect.fnUntraced(function* (wire: Wire) {
  let command: number | undefined
  const parser = Frame.makeParser((type, opcode) => {
    if (type === Frame.FrameType.command && opcode <= Frame.Command.Signal) command = opcode
    return "type" // of whatever it is
  })
  while (Result.isSuccess(parser.push(yield* wire.pull, () => {})));
  return command
})

/**
 * Answers the first command of a client that there is no room for. But not a shim's claim: after an error it would give up
 * for good, after the mere end of its connection it tries again for ten seconds.
 */
const turnAway = Effect.fnUntraced(function* (wire: Wire, crowded: Crowded) {
  const read = Effect.orElseSucceed(firstCommand(wire), () => undefined)
  const opcode = Option.getOrUndefined(yield* Effect.timeoutOption(read, turnedAwayMillis))
  if (opcode === undefined || opcode === Frame.Command.ConnectShim || opcode === Frame.Command.DisconnectShim) return
  const payload = utf8.encode(JSON.stringify({ msg: crowded.message }))
  wire.offer([Frame.encode({ type: Frame.FrameType.response, opcode, inError: true, payload })])
})

/** Serves clients until it is interrupted, which ends them all, or the listening socket breaks. */
export const serve: Effect.Effect<never, ListenError, Deadlines | Listener | Sessions | Spool | VmRegistry> =
  Effect.gen(function* () {
    const listener = yield* Listener
    const serveClient = yield* Client.make
    const deadlines = yield* Deadlines
    const { files } = yield* Spool
    const run = yield* FiberSet.makeRuntime()
    const tallies = new Map<Crowded["what"], Tally>()
    const tally = ({ message, what }: Crowded) => {
      const known = tallies.get(what)
      if (known !== undefined) return known
      const tell = (count: number) => void run(Effect.logWarning("clients turned away", { reason: message, count }))
      const made = new Tally(deadlines, tellCrowded, tell)
      tallies.set(what, made)
      return made
    }
    let count = 0
    // after the clients' fibers: at the end the daemon stops accepting before it ends its clients
    const { accept } = yield* listener.listen
    run(files.open)
    for (;;) {
      const { connection, crowded } = yield* accept
      if (crowded !== undefined) {
        yield* Counters.limited(crowded.what)
        tally(crowded).add()
      }
      if (connection === undefined) continue
      const client = ++count
      run(
        connection.pipe(
          Effect.tap(() => Effect.logDebug("client connected")),
          Effect.flatMap((wire) => (crowded === undefined ? serveClient(wire) : turnAway(wire, crowded))),
          Effect.scoped,
          Effect.catchDefect((defect) => Effect.logError("a client's connection failed by a bug", Cause.die(defect))),
          Effect.annotateLogs({ client })
        )
      )
    }
  }).pipe(Effect.scoped)
