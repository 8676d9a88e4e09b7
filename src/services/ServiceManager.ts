/**
 * Port: systemd, where it has started the daemon. Implemented by `layers/Systemd.ts`. Without it, nothing is kept, and nobody
 * needs to be told.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"

/** What kind of connection a kept descriptor is. */
export type Kept = "vm" | "client"

export class ServiceManager extends Context.Service<
  ServiceManager,
  {
    /** Whether it keeps descriptors for the next daemon. */
    readonly keeps: boolean
    /** The daemon serves. */
    readonly ready: Effect.Effect<void>
    /** Gives it descriptors of VM `name`'s connections, from now on, until it is told to forget them. */
    readonly keep: (name: string, descriptors: ReadonlyArray<number>) => Effect.Effect<void>
    /** Takes back what it was given for `name`. */
    readonly forget: (name: string) => Effect.Effect<void>
    /** Gives it all of these, and returns once it has them, or not: false. For a daemon that is about to end. */
    readonly keepAll: (kind: Kept, descriptors: ReadonlyArray<number>) => boolean
    /** Takes back the clients' connections that it was given. */
    readonly release: Effect.Effect<void>
    /** Tells that process `pid` is the daemon from now on, and returns once it knows. */
    readonly follow: (pid: number) => void
  }
>()("cc-proxy/services/ServiceManager") {}

/** Without one: nothing is kept, and nobody needs to be told. */
export const none = ServiceManager.of({
  keeps: false,
  ready: Effect.void,
  keep: () => Effect.void,
  forget: () => Effect.void,
  keepAll: () => false,
  release: Effect.void,
  follow: () => {}
})
