/** The demonstration: a guided tour, or one command in a simulated VM. */
import * as Effect from "effect/Effect"
import * as OwnStreams from "./OwnStreams.ts"
import * as RunCommand from "./RunCommand.ts"
import * as Signals from "./Signals.ts"

/** What a shell reports for a program that nobody reads any more: 128 and SIGPIPE. */
const readerGone = 141

/** Runs it. The program's exit status is the command's; 128 + n where signal n has stopped it. */
export const run = Effect.fn("Demo.run")(
  function* (options: RunCommand.Options) {
    yield* OwnStreams.guard
    const signals = yield* Signals.take
    return yield* RunCommand.run(options, signals)
  },
  Effect.catchTags({
    ReaderGone: () => Effect.succeed(readerGone),
    Stopped: (error) =>
      OwnStreams.write("stderr", `cc-proxy: ${error.message}\n`).pipe(
        Effect.ignore,
        Effect.as(128 + Signals.numberOf(error.signal))
      )
  }),
  Effect.flatMap((status) => Effect.sync(() => void (process.exitCode = status))),
  Effect.scoped
)
