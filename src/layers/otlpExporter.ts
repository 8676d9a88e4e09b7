/** The exporter of `OtlpTracing.ts`, which imports it on use. */
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientError from "effect/http/HttpClientError"
import type * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as Layer from "effect/Layer"
import * as OtlpSerialization from "effect/observability/OtlpSerialization"
import * as OtlpTracer from "effect/observability/OtlpTracer"
import * as References from "effect/References"

/** Least time between two warnings about the collector, in milliseconds. */
const warningInterval = 60_000

/** How long the exit may wait for the last spans to leave, in milliseconds. */
const shutdownTimeout = 1000

const requestTimeout = Config.Int("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT").pipe(
  Config.orElse(() => Config.Int("OTEL_EXPORTER_OTLP_TIMEOUT")),
  Config.withDefault(10_000) // the default of the OpenTelemetry specification
)

/** Why a request failed. Never its URL or headers, which may hold a password. */
const reasonOf = ({ reason }: HttpClientError.HttpClientError): string => {
  const cause = "cause" in reason ? reason.cause : undefined
  if (cause instanceof Error) return "code" in cause ? String(cause.code) : cause.name
  return reason.description ?? reason._tag
}

/** An HTTP client that gives up on a collector in time, and warns of it now and then. */
const client = Layer.effect(
  HttpClient.HttpClient,
  Effect.gen(function* () {
    const timeout = yield* requestTimeout
    const clock = yield* Clock.Clock
    let silentUntil = Number.NEGATIVE_INFINITY
    const warn = (reason: string) =>
      Effect.suspend(() => {
        const now = clock.currentTimeMillisUnsafe()
        if (now < silentUntil) return Effect.void
        silentUntil = now + warningInterval
        return Effect.logWarning("the trace collector does not take spans", { reason })
      }).pipe(Effect.provideService(References.CurrentLogAnnotations, {}))
    return HttpClient.transform(yield* HttpClient.HttpClient, (response, request) =>
      response.pipe(
        Effect.tap((received: HttpClientResponse.HttpClientResponse) => received.arrayBuffer),
        Effect.timeoutOrElse({
          duration: timeout,
          orElse: () =>
            Effect.fail(
              new HttpClientError.HttpClientError({
                reason: new HttpClientError.TransportError({ request, description: `no answer in ${timeout} ms` })
              })
            )
        }),
        Effect.tapError((error) => warn(reasonOf(error))),
        Effect.tap(({ status }) => (status >= 400 ? warn(`status ${status}`) : Effect.void))
      )
    )
  })
).pipe(Layer.provide(NodeHttpClient.layerNodeHttp))

/** The tracer. What it knows of the environment is what `OtlpTracer.layerFromConfig` does, with the defaults below. */
export const layer = ({ version }: { readonly version: string }): Layer.Layer<never, Config.ConfigError> =>
  Layer.unwrap(
    Effect.gen(function* () {
      const environment = yield* ConfigProvider.ConfigProvider
      const provider = ConfigProvider.fromEnvRecord({
        OTEL_EXPORTER_OTLP_TRACES_TIMEOUT: String(shutdownTimeout) // which the tracer takes for the shutdown only
      }).pipe(
        ConfigProvider.orElse(environment),
        ConfigProvider.orElse(
          ConfigProvider.fromEnvRecord({
            OTEL_TRACES_EXPORTER: "otlp",
            OTEL_SERVICE_NAME: "cc-proxy",
            OTEL_SERVICE_VERSION: version
          })
        )
      )
      return OtlpTracer.layerFromConfig().pipe(
        Layer.provide(ConfigProvider.layer(provider)),
        Layer.provide([OtlpSerialization.layerJson, client])
      )
    })
  )
