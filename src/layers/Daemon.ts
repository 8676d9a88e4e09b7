/** The one composition: every service of the daemon, over this machine. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Deadlines } from "../services/Deadlines.ts"
import { Hyperstart } from "../services/Hyperstart.ts"
import type { ListenError } from "../services/Listener.ts"
import * as Proxy from "../services/Proxy.ts"
import { Sessions } from "../services/Sessions.ts"
import { Settings } from "../services/Settings.ts"
import { Spool } from "../services/Spool.ts"
import { States } from "../services/States.ts"
import { VmRegistry } from "../services/VmRegistry.ts"
import * as CryptoTokens from "./CryptoTokens.ts"
import * as NodeWire from "./NodeWire.ts"
import * as SpoolDirectory from "./SpoolDirectory.ts"
import * as StateDirectory from "./StateDirectory.ts"
import * as Succession from "./Succession.ts"
import * as Systemd from "./Systemd.ts"
import * as UnixListener from "./UnixListener.ts"

export interface Options {
  readonly settings: Settings
  /** Where clients connect. */
  readonly socketPath: string
  /** The listening socket that systemd passed, or an earlier daemon, if one did; and whether it is a daemon's own. */
  readonly listening: { readonly fd: number | undefined; readonly owned: boolean }
  /** Serve one pod, and end with it. */
  readonly pod: boolean
  /** Where what waits on disk may be: the first of these directories that can be used. */
  readonly spoolParents: ReadonlyArray<string>
  readonly state: StateDirectory.Options
  /** How this program is started again. */
  readonly program: Pick<Succession.Options, "args" | "environment" | "program">
  /** Whether a service manager that the environment tells of is its own. */
  readonly managed: boolean
  /** Whose place it takes, and what the service manager has kept. */
  readonly predecessor: Succession.Place | undefined
  readonly stored: ReadonlyArray<number>
  /** The process whose place it has taken is no more. */
  readonly onSuccession: () => void
}

const services = VmRegistry.layer.pipe(
  Layer.provideMerge(Hyperstart.layer),
  Layer.provideMerge(Sessions.layer),
  Layer.provideMerge(States.layer),
  Layer.provideMerge(Spool.layer),
  Layer.provideMerge(Deadlines.layer),
  Layer.provideMerge([NodeWire.layerDescriptors, NodeWire.layerReading]),
  Layer.provide([NodeWire.layerDialer, CryptoTokens.layer])
)

/** Runs the daemon until it is interrupted or, in pod mode, its pod has come to its end. */
export const run = (options: Options): Effect.Effect<void, ListenError> => {
  const { listening, managed, pod, predecessor, program, settings, socketPath, spoolParents, state, stored } = options
  return Effect.gen(function* () {
    const registry = yield* VmRegistry
    const proxy = yield* Proxy.make
    const served = pod ? Effect.raceFirst(proxy.serve, registry.podEnded) : proxy.serve
    yield* Effect.uninterruptibleMask((restore) =>
      restore(Effect.raceFirst(served, proxy.handOvers)).pipe(Effect.onInterrupt(() => proxy.stop))
    )
  }).pipe(
    Effect.scoped,
    Effect.provide(
      services.pipe(
        Layer.provideMerge(SpoolDirectory.layer({ parents: spoolParents, socketPath })),
        Layer.provideMerge(StateDirectory.layer(state)),
        Layer.provideMerge(UnixListener.layer({ path: socketPath, ...listening })),
        Layer.provideMerge(Succession.layerPredecessor(predecessor, stored, options.onSuccession)),
        Layer.provideMerge(Succession.layerSuccessor({ ...program, owned: listening.owned })),
        Layer.provideMerge(Systemd.layer({ environment: managed ? program.environment : {} }))
      )
    ),
    Effect.provideService(Settings, settings)
  )
}
