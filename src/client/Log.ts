/** Entries for the proxy's log. */
import type * as Effect from "effect/Effect"
import type * as ClientCommand from "../domain/ClientCommand.ts"
import * as Frame from "../domain/Frame.ts"
import type { Connection, ConnectionError } from "./Connection.ts"

const toUtf8 = new TextEncoder()

/**
 * Writes an entry to the proxy's log. There is no answer: the proxy closes the connection over an entry that is not valid,
 * such as one with an empty `msg`.
 *
 * ```ts
 * yield* Client.log(connection, { source: "runtime", level: "info", containerId: "pod1", msg: "pod started" })
 * ```
 */
export const log = (connection: Connection, entry: ClientCommand.LogEntry): Effect.Effect<void, ConnectionError> =>
  connection.sendRaw(
    Frame.encode({
      type: Frame.FrameType.stream,
      opcode: Frame.StreamKind.log,
      inError: false,
      payload: toUtf8.encode(JSON.stringify(entry))
    })
  )
