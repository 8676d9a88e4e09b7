/** The connection to one VM's agent: its control channel, its I/O channel, and its console where that is wanted. */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as IoMessage from "../domain/IoMessage.ts"
import * as Console from "./Console.ts"
import * as CtlChannel from "./CtlChannel.ts"
import * as IoDump from "./IoDump.ts"
import { Settings } from "./Settings.ts"
import { Dialer, type Wire } from "./Wire.ts"

/** The paths of a VM's sockets. */
export interface VmSockets {
  readonly ctl: string
  readonly io: string
  readonly console?: string | undefined
}

/** A VM could not be reached, or its agent did not say READY. RegisterVM fails with it. */
export class ConnectFailed extends Schema.TaggedError<ConnectFailed>()("ConnectFailed", { reason: Schema.String }) {
  override get message(): string {
    return this.reason
  }
}

export interface HyperstartConnection {
  readonly ctl: CtlChannel.CtlChannel
  /** The I/O channel towards the agent. Whoever writes keeps to whole messages, 32 KiB at once, while nothing is pending. */
  readonly input: Wire
  /**
   * What every process writes: runs of messages, one array per read. Ends with `VmLost`. Not pulled, it stops the VM's output.
   */
  readonly output: Stream.Stream<IoMessage.Run, CtlChannel.VmLost>
}

export class Hyperstart extends Context.Service<
  Hyperstart,
  {
    /**
     * Dials both channels and waits for READY; each has its deadline. The scope owns the sockets and the fiber that reads
     * the control channel, which tells `handlers` what nobody asked for.
     */
    readonly connect: (
      sockets: VmSockets,
      handlers: CtlChannel.Handlers
    ) => Effect.Effect<HyperstartConnection, ConnectFailed, Scope.Scope>
  }
>()("cc-proxy/services/Hyperstart") {
  static readonly make = Effect.gen(function* () {
    const dialer = yield* Dialer
    const settings = yield* Settings

    const dial = (channel: string, path: string) =>
      dialer.dial(path).pipe(
        Effect.mapError(
          (error) => new ConnectFailed({ reason: `couldn't connect to the VM's ${channel}: ${error.message}` })
        ),
        Effect.timeoutOrElse({
          duration: settings.dialTimeout,
          orElse: () =>
            Effect.fail(
              new ConnectFailed({
                reason: `timeout: couldn't connect to the VM's ${channel} at ${path}, ${Duration.format(settings.dialTimeout)}`
              })
            )
        })
      )

    const connect = Effect.fn("Hyperstart.connect")(function* (
      sockets: VmSockets,
      handlers: CtlChannel.Handlers
    ): Effect.fn.Return<HyperstartConnection, ConnectFailed, Scope.Scope> {
      const [ctlWire, input] = yield* Effect.all([dial("ctl", sockets.ctl), dial("io", sockets.io)], {
        concurrency: "unbounded"
      })
      if (settings.debug && sockets.console !== undefined && sockets.console !== "")
        yield* Effect.forkScoped(Console.follow(dialer, sockets.console))
      const ctl = yield* CtlChannel.make(ctlWire, handlers)
      yield* Effect.forkScoped(Effect.ignore(ctl.run))
      // nothing comes on io before READY, but its end may
      const first = yield* Effect.forkScoped(input.pull, { startImmediately: true })
      const ioEnded = Effect.andThen(Fiber.join(first), Effect.never)
      yield* Effect.raceFirst(ctl.ready, ioEnded).pipe(
        Effect.mapError((error) => new ConnectFailed({ reason: error.message })),
        Effect.timeoutOrElse({
          duration: settings.readyTimeout,
          orElse: () =>
            Effect.fail(
              new ConnectFailed({
                reason: `timeout: the VM's agent did not say READY, ${Duration.format(settings.readyTimeout)}`
              })
            )
        })
      )
      let started = false
      const pull = Effect.suspend(() => {
        if (started) return input.pull
        started = true
        return Fiber.join(first)
      })
      return { ctl, input, output: output(pull, settings.debug) }
    })

    return Hyperstart.of({
      connect: (sockets, handlers) =>
        Effect.tapError(connect(sockets, handlers), (error) =>
          Effect.logWarning("VM not registered", { reason: error.reason })
        )
    })
  })

  static readonly layer = Layer.effect(Hyperstart, Hyperstart.make)
}

/** Decodes the I/O channel: one element per run, one array per read that completed any. */
const output = (pullWire: Wire["pull"], debug: boolean): Stream.Stream<IoMessage.Run, CtlChannel.VmLost> => {
  const parser = IoMessage.makeParser()
  let broken: CtlChannel.VmLost | undefined
  const pull = Effect.gen(function* () {
    for (;;) {
      if (broken !== undefined) return yield* broken
      const runs: Array<IoMessage.Run> = []
      const chunk = yield* pullWire
      const parsed = parser.push(chunk, runs)
      if (debug) for (const { bytes, end, start } of runs) yield* IoDump.dump("from agent", bytes, start, end)
      // what came whole before the damage is still output
      if (Result.isFailure(parsed)) broken = new CtlChannel.VmLost({ reason: parsed.failure.message })
      if (runs.length > 0) return runs as [IoMessage.Run, ...Array<IoMessage.Run>]
    }
  }).pipe(
    Effect.catchTag("WireClosed", (closed) => Effect.fail(new CtlChannel.VmLost({ reason: `io: ${closed.message}` })))
  )
  return Stream.fromPull(Effect.succeed(pull))
}
