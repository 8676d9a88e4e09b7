import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { execFile } from "node:child_process"
import * as Fs from "node:fs"
import * as Http from "node:http"
import type * as Net from "node:net"
import * as Os from "node:os"
import * as Path from "node:path"
import * as OtlpTracing from "../../src/layers/OtlpTracing.ts"
import * as StderrLog from "../../src/layers/StderrLog.ts"
import { parse } from "../support/e2e/Logfmt.ts"

interface Attribute {
  readonly key: string
  readonly value: Readonly<Record<string, unknown>>
}
interface Span {
  readonly name: string
  readonly traceId: string
  readonly spanId: string
  readonly parentSpanId?: string
  readonly attributes: ReadonlyArray<Attribute>
  readonly status: { readonly code: number; readonly message?: string }
}
interface Request {
  readonly url: string
  readonly headers: Http.IncomingHttpHeaders
  readonly resource: Readonly<Record<string, unknown>>
  readonly spans: ReadonlyArray<Span>
}

const plain = (attributes: ReadonlyArray<Attribute>) =>
  Object.fromEntries(attributes.map(({ key, value }) => [key, Object.values(value)[0]]))

/** A collector on a port of its own that answers with `status`, or never. */
const collector = (status: number | "never") =>
  Effect.gen(function* () {
    const requests: Array<Request> = []
    const server = yield* Effect.acquireRelease(
      Effect.callback<Http.Server>((resume) => {
        const server = Http.createServer((request, response) => {
          let text = ""
          request.on("data", (data) => (text += String(data)))
          request.on("end", () => {
            const { resource, scopeSpans } = JSON.parse(text).resourceSpans[0]
            requests.push({
              url: request.url!,
              headers: request.headers,
              resource: plain(resource.attributes),
              spans: scopeSpans[0].spans
            })
            if (status !== "never") response.writeHead(status).end("{}")
          })
        })
        server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
      }),
      (server) =>
        Effect.sync(() => {
          server.close()
          server.closeAllConnections()
        })
    )
    return { requests, url: `http://127.0.0.1:${(server.address() as Net.AddressInfo).port}` }
  })

/** Runs `program` with tracing in the environment `variables`; its log is what it warned of, and shows commands if `logged`. */
const traced = <A, E>(variables: Record<string, string>, program: Effect.Effect<A, E>, logged = false) =>
  Effect.gen(function* () {
    const warnings: Array<unknown> = []
    const log = Logger.layer([
      Logger.make(({ logLevel, message }) => void (logLevel === "Warn" && warnings.push(message)))
    ])
    yield* program.pipe(
      Effect.provide(
        OtlpTracing.layer({ version: "1.2.3", logged }).pipe(
          Layer.provideMerge(log),
          Layer.provide(ConfigProvider.layer(ConfigProvider.fromEnvRecord(variables)))
        )
      )
    )
    return warnings
  })

const span = Effect.void.pipe(Effect.withSpan("Session.start"))

/** How long `effect` takes, in milliseconds. */
const timed = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const start = performance.now()
    return Effect.map(effect, (result) => [result, performance.now() - start] as const)
  })

describe("OtlpTracing", () => {
  it.live("exports spans with their names, parents, attributes and outcomes, as who they are", () =>
    Effect.gen(function* () {
      const { requests, url } = yield* collector(200)
      const warnings = yield* traced(
        { OTEL_EXPORTER_OTLP_ENDPOINT: url },
        Effect.fail("no such VM").pipe(
          Effect.withSpan("Hyper", { attributes: { vm: "pod 1", bytes: 7 } }),
          Effect.ignore,
          Effect.withSpan("Client.command")
        )
      )
      assert.deepStrictEqual(warnings, [])
      assert.lengthOf(requests, 1)
      const [request] = requests
      assert.strictEqual(request!.url, "/v1/traces")
      assert.strictEqual(request!.headers["content-type"], "application/json")
      assert.strictEqual(request!.resource["service.name"], "cc-proxy")
      assert.strictEqual(request!.resource["service.version"], "1.2.3")
      const [inner, outer] = request!.spans
      assert.deepStrictEqual([inner!.name, outer!.name], ["Hyper", "Client.command"])
      assert.strictEqual(inner!.parentSpanId, outer!.spanId)
      assert.strictEqual(inner!.traceId, outer!.traceId)
      assert.deepStrictEqual(plain(inner!.attributes), { vm: "pod 1", bytes: 7 })
      assert.deepStrictEqual(inner!.status, { code: 2, message: "no such VM" })
      assert.strictEqual(outer!.status.code, 1)
    })
  )

  it.live("gives log records the ids of the spans they are made in", () =>
    Effect.gen(function* () {
      const { requests, url } = yield* collector(200)
      const path = Path.join(Fs.mkdtempSync(Path.join(Os.tmpdir(), "otlp-")), "log")
      const fd = Fs.openSync(path, "a")
      yield* Effect.logInfo("RegisterVM").pipe(
        Effect.withSpan("Client.command"),
        Effect.provide(
          OtlpTracing.layer({ version: "1.2.3", logged: true }).pipe(
            Layer.provideMerge(StderrLog.layer({ level: "info", fd })),
            Layer.provide(ConfigProvider.layer(ConfigProvider.fromEnvRecord({ OTEL_EXPORTER_OTLP_ENDPOINT: url })))
          )
        )
      )
      const record = parse(Fs.readFileSync(path, "utf8").trimEnd())
      Fs.closeSync(fd)
      Fs.rmSync(Path.dirname(path), { recursive: true })
      const [exported] = requests[0]!.spans
      assert.strictEqual(record.get("trace_id"), exported!.traceId)
      assert.strictEqual(record.get("span_id"), exported!.spanId)
      assert.match(exported!.traceId, /^[0-9a-f]{32}$/)
    })
  )

  it.live("heeds OpenTelemetry's variables", () =>
    Effect.gen(function* () {
      const { requests, url } = yield* collector(200)
      const variables = {
        OTEL_EXPORTER_OTLP_HEADERS: "x-key=a%20b,x-other=c",
        OTEL_RESOURCE_ATTRIBUTES: "host.name=node7",
        OTEL_SERVICE_NAME: "proxy-of-node7"
      }
      yield* traced({ ...variables, OTEL_EXPORTER_OTLP_ENDPOINT: `${url}/base/` }, span)
      yield* traced({ ...variables, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: `${url}/as/it/is` }, span)
      assert.deepStrictEqual(
        requests.map((request) => request.url),
        ["/base/v1/traces", "/as/it/is"]
      )
      for (const { headers, resource } of requests) {
        assert.strictEqual(headers["x-key"], "a b")
        assert.strictEqual(headers["x-other"], "c")
        assert.strictEqual(resource["host.name"], "node7")
        assert.strictEqual(resource["service.name"], "proxy-of-node7")
      }
      yield* traced({ OTEL_EXPORTER_OTLP_ENDPOINT: url, OTEL_SDK_DISABLED: "true" }, span)
      yield* traced({ OTEL_EXPORTER_OTLP_ENDPOINT: url, OTEL_TRACES_EXPORTER: "none" }, span)
      assert.lengthOf(requests, 2)
    })
  )

  it.live("makes spans for a log that shows commands where no collector is named, and none for one that does not", () =>
    Effect.gen(function* () {
      for (const variables of [{}, { OTEL_EXPORTER_OTLP_ENDPOINT: "" }])
        for (const logged of [true, false]) {
          const program = Effect.gen(function* () {
            assert.strictEqual((yield* Effect.currentSpan).sampled, logged)
          }).pipe(Effect.withSpan("Client.command"), Effect.orDie)
          assert.deepStrictEqual(yield* traced(variables, program, logged), [])
        }
    })
  )

  it.live(
    "loads an HTTP client and an exporter only where a collector is named",
    () =>
      Effect.gen(function* () {
        const script = `
        import { registerHooks } from "node:module"
        const loaded = []
        registerHooks({ load: (url, context, next) => (loaded.push(url), next(url, context)) })
        const Effect = await import("effect/Effect")
        const Layer = await import("effect/Layer")
        const { layer } = await import(${JSON.stringify(new URL("../../src/layers/OtlpTracing.ts", import.meta.url).href)})
        await Effect.runPromise(Effect.scoped(Layer.build(layer({ version: "1.2.3", logged: true }))))
        console.log(loaded.filter((url) => /otlpExporter|observability|HttpClient|node:http/.test(url)).length)`
        const count = (env: Record<string, string>) =>
          Effect.callback<number>((resume) => {
            const done = (error: Error | null, stdout: string) =>
              resume(error === null ? Effect.succeed(Number(stdout)) : Effect.die(error))
            execFile(process.execPath, ["--input-type=module", "-e", script], { env }, done)
          })
        assert.strictEqual(yield* count({}), 0)
        assert.isAbove(yield* count({ OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:9" }), 3)
      }),
    30_000
  )

  it.live("warns once of a collector that is not there, and does not wait for it", () =>
    Effect.gen(function* () {
      const [warnings, milliseconds] = yield* timed(
        traced({ OTEL_EXPORTER_OTLP_ENDPOINT: "http://user:secret@127.0.0.1:1" }, span)
      )
      assert.deepStrictEqual(warnings, [["the trace collector does not take spans", { reason: "ECONNREFUSED" }]])
      assert.isBelow(milliseconds, 2500)
    })
  )

  it.live("waits for a collector that does not answer for a second at most", () =>
    Effect.gen(function* () {
      const { requests, url } = yield* collector("never")
      const [warnings, milliseconds] = yield* timed(
        traced({ OTEL_EXPORTER_OTLP_ENDPOINT: url, OTEL_EXPORTER_OTLP_TIMEOUT: "20000" }, span)
      )
      assert.lengthOf(requests, 1)
      assert.deepStrictEqual(warnings, [])
      assert.isBelow(milliseconds, 2500)
    })
  )

  it.live("gives up on an answer after the timeout", () =>
    Effect.gen(function* () {
      const { url } = yield* collector("never")
      const warnings = yield* traced({ OTEL_EXPORTER_OTLP_ENDPOINT: url, OTEL_EXPORTER_OTLP_TIMEOUT: "50" }, span)
      assert.deepStrictEqual(warnings, [["the trace collector does not take spans", { reason: "no answer in 50 ms" }]])
    })
  )

  it.live("warns once of a collector that refuses, however many batches it refuses", () =>
    Effect.gen(function* () {
      const { requests, url } = yield* collector(400)
      const warnings = yield* traced(
        { OTEL_EXPORTER_OTLP_ENDPOINT: url, OTEL_BSP_MAX_EXPORT_BATCH_SIZE: "1" },
        Effect.gen(function* () {
          yield* Effect.all([span, span, span])
          while (requests.length < 3) yield* Effect.yieldNow
        })
      )
      assert.deepStrictEqual(warnings, [["the trace collector does not take spans", { reason: "status 400" }]])
    })
  )

  it.live("does not fail over variables that make no sense, and does not repeat them", () =>
    Effect.gen(function* () {
      const { requests, url } = yield* collector(200)
      for (const [variable, variables] of [
        ["OTEL_EXPORTER_OTLP_ENDPOINT", { OTEL_EXPORTER_OTLP_ENDPOINT: "secret" }],
        ["OTEL_EXPORTER_OTLP_TIMEOUT", { OTEL_EXPORTER_OTLP_ENDPOINT: url, OTEL_EXPORTER_OTLP_TIMEOUT: "secret" }],
        ["OTEL_EXPORTER_OTLP_HEADERS", { OTEL_EXPORTER_OTLP_ENDPOINT: url, OTEL_EXPORTER_OTLP_HEADERS: "key=%secret" }]
      ] as const)
        assert.deepStrictEqual(yield* traced(variables, span), [["no traces are exported", { variable }]])
      assert.lengthOf(requests, 0)
    })
  )
})
