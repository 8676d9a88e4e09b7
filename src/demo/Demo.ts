/** The demonstration: a guided tour, or one command in a simulated VM. */
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Schema from "effect/Schema"
import * as OwnStreams from "./OwnStreams.ts"
import * as RunCommand from "./RunCommand.ts"
import * as Signals from "./Signals.ts"
import * as Tour from "./Tour.ts"

/** What a shell reports for a program that nobody reads any more: 128 and SIGPIPE. */
const readerGone = 141

export class NoCommand extends Schema.TaggedError<NoCommand>()("NoCommand", {}) {
  override get message(): string {
    return "-i and -t want a command: cc-proxy demo -it -- bash"
  }
}

/** Runs it. The program's exit status is the command's; 128 + n where signal n has stopped it. */
export const run = Effect.fn("Demo.run")(
  function* (options: RunCommand.Options) {
    yield* OwnStreams.guard
    const signals = yield* Signals.take
    if (options.command.length > 0) return yield* RunCommand.run(options, signals)
    if (options.interactive || options.terminal) return yield* new NoCommand()
    yield* Effect.raceFirst(
      Tour.run,
      Effect.flatMap(Queue.take(signals), (signal) => new Signals.Stopped({ signal }))
    )
    return 0
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
