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
import { VmRegistry } from "../services/VmRegistry.ts"
import * as CryptoTokens from "./CryptoTokens.ts"
import * as NodeWire from "./NodeWire.ts"
import * as SpoolDirectory from "./SpoolDirectory.ts"
import * as UnixListener from "./UnixListener.ts"

export interface Options {
  readonly settings: Settings
  /** Where clients connect. */
  readonly socketPath: string
  /** The listening socket that systemd passed, if it did. */
  readonly fd: number | undefined
  /** Serve one pod, and end with it. */
  readonly pod: boolean
  /** Where what waits on disk may be: the first of these directories that can be used. */
  readonly spoolParents: ReadonlyArray<string>
}

const services = VmRegistry.layer.pipe(
  Layer.provideMerge(Hyperstart.layer),
  Layer.provideMerge(Sessions.layer),
  Layer.provideMerge(Spool.layer),
  Layer.provideMerge(Deadlines.layer),
  Layer.provide([NodeWire.layerDialer, CryptoTokens.layer])
)

/** Runs the daemon until it is interrupted or, in pod mode, its pod has come to its end. */
export const run = ({ fd, pod, settings, socketPath, spoolParents }: Options): Effect.Effect<void, ListenError> =>
  Effect.gen(function* () {
    const registry = yield* VmRegistry
    yield* pod ? Effect.raceFirst(Proxy.serve, registry.podEnded) : Proxy.serve
  }).pipe(
    Effect.provide(
      services.pipe(
        Layer.provide(SpoolDirectory.layer({ parents: spoolParents, socketPath })),
        Layer.provideMerge(UnixListener.layer({ path: socketPath, fd }))
      )
    ),
    Effect.provideService(Settings, settings)
  )
