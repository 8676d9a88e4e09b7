/** Spans for a collector, where the environment names one. Without, they are for the log, whose records carry their ids. */
import * as Cause from "effect/Cause"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"

const endpoint = Config.option(
  Config.NonEmptyString("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").pipe(
    Config.orElse(() => Config.NonEmptyString("OTEL_EXPORTER_OTLP_ENDPOINT"))
  )
)

/**
 * Exports spans by OTLP/HTTP with JSON to `OTEL_EXPORTER_OTLP_ENDPOINT`. Never fails: variables that make no sense are one
 * warning. Provide the log to this layer: it warns of a collector that does not answer.
 */
export const layer = (options: { readonly version: string }): Layer.Layer<never> =>
  Effect.gen(function* () {
    if (Option.isNone(yield* endpoint)) return Layer.empty
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
