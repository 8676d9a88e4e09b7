import * as Effect from "effect/Effect"
import * as Client from "../../../src/client/index.ts"

/** Puts a line of the runtime's own into the proxy's log. */
export const tell = Effect.fn("tell")(function* (socket: string, msg: string) {
  const connection = yield* Client.connect(socket)
  yield* Client.log(connection, { source: "runtime", level: "info", containerId: "pod1", msg })
}, Effect.scoped)
