import * as Effect from "effect/Effect"
import * as Client from "../../../src/client/index.ts"

/** Whether the proxy knows a VM, and whether there is a proxy. */
export const state = (socket: string, containerId: string) =>
  Client.connect(socket).pipe(
    Effect.flatMap((connection) => Client.attachVM(connection, { containerId })),
    Effect.scoped,
    Effect.as("registered"),
    Effect.catchTags({
      ConnectFailed: () => Effect.succeed("no proxy"),
      CommandFailed: (error) =>
        error.message.startsWith("unknown containerID") ? Effect.succeed("unknown") : Effect.fail(error)
    })
  )
