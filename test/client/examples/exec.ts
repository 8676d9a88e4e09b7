import * as Effect from "effect/Effect"
import * as Client from "../../../src/client/index.ts"

/** Runs `command` with one connection of its own that is attached to a VM, as a runtime does. */
const attached = <A, E>(
  socket: string,
  containerId: string,
  command: (connection: Client.Connection) => Effect.Effect<A, E>
) =>
  Effect.gen(function* () {
    const connection = yield* Client.connect(socket)
    yield* Client.attachVM(connection, { containerId })
    return yield* command(connection)
  }).pipe(Effect.scoped)

/** Starts a process that nobody looks at. The limit is above 2^53, so this JSON must not go through `JSON.stringify`. */
export const limitCore = (socket: string) =>
  attached(socket, "pod1", (connection) =>
    Client.execCmd(connection, {
      rawData: `{"container":"c1","process":{"args":["true"],"rlimits":[{"type":"core","hard":18446744073709551615}]}}`
    })
  )

/** Stops a container: its init process gets SIGTERM. */
export const stop = (socket: string) =>
  attached(socket, "pod1", (connection) => Client.killContainer(connection, { container: "c1", signal: 15 }))
