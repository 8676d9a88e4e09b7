/** The daemon's one loop: every client that arrives is served in a fiber and a scope of its own. */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as Client from "./Client.ts"
import { Listener, type ListenError } from "./Listener.ts"
import type { Deadlines } from "./Deadlines.ts"
import type { Sessions } from "./Sessions.ts"
import type { VmRegistry } from "./VmRegistry.ts"

/** Serves clients until it is interrupted, which ends them all, or the listening socket breaks. */
export const serve: Effect.Effect<never, ListenError, Deadlines | Listener | Sessions | VmRegistry> = Effect.gen(
  function* () {
    const listener = yield* Listener
    const serveClient = yield* Client.make
    const run = yield* FiberSet.makeRuntime()
    let count = 0
    // after the clients' fibers: at the end the daemon stops accepting before it ends its clients
    const { accept } = yield* listener.listen
    for (;;) {
      const connection = yield* accept
      const client = ++count
      run(
        connection.pipe(
          Effect.tap(() => Effect.logDebug("client connected")),
          Effect.flatMap(serveClient),
          Effect.scoped,
          Effect.catchDefect((defect) => Effect.logError("a client's connection failed by a bug", Cause.die(defect))),
          Effect.annotateLogs({ client })
        )
      )
    }
  }
).pipe(Effect.scoped)
