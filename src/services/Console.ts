/** A VM's serial console in the log, at debug: one record a line, whatever the guest prints. */
import * as Effect from "effect/Effect"
import * as Bytes from "../domain/Bytes.ts"
import type { Dialer } from "./Wire.ts"

/** Longest part of a line in one record, in bytes; a longer line takes several. */
const maxLine = 8192

const newline = 10
const utf8 = new TextDecoder()

/** Logs the console's lines until it closes. One that cannot be dialled in `millis` milliseconds is a warning: a VM is as good without it. */
export const follow = (dialer: Dialer["Service"], path: string, millis: number): Effect.Effect<void> =>
  Effect.gen(function* () {
    const wire = yield* dialer.dial(path, millis)
    let rest: Uint8Array = new Uint8Array(0)
    const log = Effect.fnUntraced(function* (line: Uint8Array) {
      let at = 0
      do yield* Effect.logDebug(utf8.decode(line.subarray(at, at + maxLine)).replace(/\r+$/, ""))
      while ((at += maxLine) < line.length)
    })
    const lines = Effect.gen(function* () {
      for (;;) {
        const chunk = yield* wire.pull
        let start = 0
        for (let end = chunk.indexOf(newline); end >= 0; end = chunk.indexOf(newline, start)) {
          yield* log(Bytes.concat([rest, chunk.subarray(start, end)]))
          rest = new Uint8Array(0)
          start = end + 1
        }
        rest = Bytes.concat([rest, chunk.subarray(start)])
        for (; rest.length > maxLine; rest = rest.slice(maxLine)) yield* log(rest.subarray(0, maxLine))
      }
    })
    yield* lines.pipe(
      Effect.catchTag("WireClosed", () => (rest.length > 0 ? log(rest) : Effect.void)),
      Effect.annotateLogs("source", "qemu")
    )
  }).pipe(
    Effect.scoped,
    Effect.catch((error) => Effect.logWarning(`couldn't connect to the VM's console: ${error.message}`))
  )
