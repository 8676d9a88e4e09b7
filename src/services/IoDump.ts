/** The data of the I/O channel in the log, at debug: one record for each 16 bytes. The one place where stdin may be read. */
import * as Effect from "effect/Effect"
import * as HexDump from "../domain/HexDump.ts"
import * as IoMessage from "../domain/IoMessage.ts"

/** Logs the data of the whole messages in `bytes[start..end)`; `direction` as the proxy sees it. */
export const dump = (
  direction: "from agent" | "to agent",
  bytes: Uint8Array,
  start: number,
  end: number
): Effect.Effect<void> => {
  const logs: Array<Effect.Effect<void>> = []
  for (let at = start; at < end;) {
    const next = at + IoMessage.lengthAt(bytes, at)
    const sequence = IoMessage.sequenceAt(bytes, at)
    const data = bytes.subarray(at + IoMessage.headerSize, next)
    for (const line of data.length === 0 ? ["end of the stream"] : HexDump.lines(data))
      logs.push(Effect.logDebug(line, { io: direction, sequence }))
    at = next
  }
  return Effect.all(logs, { discard: true })
}
