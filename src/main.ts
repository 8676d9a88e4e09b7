/**
 * The program. What a daemon does not need to accept its first client stays away from its start: whatever is more than a
 * daemon, or cannot be read, is `cli.ts`'s, which the build keeps in a file of its own.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import * as Result from "effect/Result"
import * as Flags from "./Flags.ts"
import * as Launch from "./Launch.ts"

const args = Flags.normalize(process.argv.slice(2), process.env)
const config = Result.isSuccess(args) ? Flags.read(args.success) : undefined
// told by names alone: `OtlpTracing.ts` reads them, and brings its exporter along
const traced = Object.keys(process.env).some((name) => name.startsWith("OTEL_"))

if (config === undefined || traced) {
  void import("./cli.ts")
} else {
  Launch.run(config, Layer.succeed(References.TracerEnabled, Launch.logsCommands(config))).pipe(
    NodeRuntime.runMain({
      disableErrorReporting: true,
      // exits for itself: clients that have not closed their end yet would keep the event loop alive
      teardown: (exit) => process.exit(Launch.exitCode(exit))
    })
  )
}
