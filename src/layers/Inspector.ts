/** V8's inspector on a TCP port: CPU and heap profiles, and a debugger, which can make the daemon do anything. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Net from "node:net"

export class InspectorError extends Schema.TaggedError<InspectorError>()("InspectorError", {
  host: Schema.String,
  port: Schema.Int,
  reason: Schema.String
}) {
  override get message(): string {
    return `cannot open the inspector on ${this.host}, port ${this.port}: ${this.reason}`
  }
}

export interface Options {
  readonly host: string
  /** 0 for any that is free. */
  readonly port: number
}

/** Names and addresses that no other machine reaches. */
const isLoopback = (host: string): boolean => /^(localhost|127(\.\d{1,3}){3}|::1|\[::1\])$/i.test(host)

/** Why nothing can listen there, as far as a socket of our own can tell. */
const whyNot = ({ host, port }: Options): Effect.Effect<string> =>
  Effect.callback((resume) => {
    const server = Net.createServer()
    server.once("error", ({ message }) => resume(Effect.succeed(message)))
    server.listen({ host, port, exclusive: true }, () => server.close(() => resume(Effect.succeed("no reason known"))))
  })

/**
 * Opens the inspector for as long as the scope lasts, and returns its URL. Node itself writes lines to stderr: where it
 * listens, and each debugger that comes. Closing waits for a debugger's goodbye; without closing, the exit would wait for
 * the debugger to leave.
 */
export const open = (options: Options): Effect.Effect<string, InspectorError, Scope.Scope> =>
  Effect.flatMap(
    Effect.promise(() => import("node:inspector")),
    (inspector) =>
      Effect.acquireRelease(
        Effect.gen(function* () {
          const failed = (reason: string) => new InspectorError({ ...options, reason })
          yield* Effect.try({
            try: () => inspector.open(options.port, options.host),
            catch: (cause) => failed(cause instanceof Error ? cause.message : String(cause))
          })
          const url = inspector.url() // nothing, where it could not listen
          if (url === undefined) return yield* failed(yield* whyNot(options))
          yield* Effect.logInfo("inspector opened", { url })
          if (!isLoopback(options.host))
            yield* Effect.logWarning("whoever reaches the inspector controls this daemon and all its VMs", { url })
          return url
        }),
        () => Effect.sync(() => inspector.close())
      )
  )

/** `open`, for as long as the layer lasts, once another process has let go of the port; where it does not, a warning is all. */
export const layerLater = (options: Options): Layer.Layer<never> =>
  Layer.effectDiscard(
    open(options).pipe(
      Effect.retry({ times: 50, schedule: Schedule.spaced("100 millis") }),
      Effect.catch((error) => Effect.logWarning(error.message)),
      Effect.andThen(Effect.never),
      Effect.forkScoped
    )
  )

/** `open`, for as long as the layer lasts. */
export const layer = (options: Options): Layer.Layer<never, InspectorError> => Layer.effectDiscard(open(options))
