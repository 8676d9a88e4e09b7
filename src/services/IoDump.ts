/** The raw I/O channel in the log, at debug: one record for each 16 bytes. The one place where stdin may be read. */
import * as Effect from "effect/Effect"
import * as HexDump from "../domain/HexDump.ts"

/** Logs `bytes` as they passed; `direction` as the agent sees it. */
export const dump = (direction: "from agent" | "to agent", bytes: Uint8Array): Effect.Effect<void> =>
  Effect.forEach(HexDump.lines(bytes), (line) => Effect.logDebug(line, { io: direction }), { discard: true })
