/**
 * Spans for a collector, where the environment names one. Without, they are for the log, whose records carry their ids; a log
 * that shows no command has none, as making spans costs more than all the rest of a command.
 */
import * as Cause from "effect/Cause"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as References from "effect/References"

const endpoint = Config.option(
  Config.NonEmptyString("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").pipe(
    Config.orElse(() => Config.NonEmptyString("OTEL_EXPORTER_OTLP_ENDPOINT"))
  )
)

export interface Options {
  readonly version: string
  /** Whether the log shows the records of commands, which carry their spans' ids. Nobody else sees spans without a collector. */
  readonly logged: boolean
}

/**
 * Exports spans by OTLP/HTTP with JSON to `OTEL_EXPORTER_OTLP_ENDPOINT`. Never fails: variables that make no sense are one
 * warning. Provide the log to this layer: it warns of a collector that does not answer.
 */
export const layer = (options: Options): Layer.Layer<never> =>
  Effect.gen(function* () {
    if (Option.isNone(yield* endpoint)) return Layer.succeed(References.TracerEnabled, options.logged)
    // loaded only here, for it brings an HTTP client along
    const exporter = yield* Effect.promise(() => import("./otlpExporter.ts"))
    return exporter.layer(options)
  }).pipe(
    Layer.unwrap,
    // the cause would repeat the variable's value, which may be a password
    Layer.catchCause((cause) => {
      const variable = /OTEL_\w+/.exec(Cause.pretty(cause))?.[0]
      return Layer.effectDiscard(Effect.logWarning("no traces are exported", { variable }))
    })
  )
