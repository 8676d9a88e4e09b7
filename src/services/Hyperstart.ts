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
import * as Counters from "./Counters.ts"
import * as CtlChannel from "./CtlChannel.ts"
import { Deadlines } from "./Deadlines.ts"
import * as IoDump from "./IoDump.ts"
import { Settings } from "./Settings.ts"
import { Dialer, type Wire, type WireClosed } from "./Wire.ts"

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
    const deadlines = yield* Deadlines

    const dial = (channel: string, path: string) =>
      Effect.mapError(
        dialer.dial(path, Duration.toMillis(settings.dialTimeout)),
        (error) =>
          new ConnectFailed({
            reason:
              error._tag === "WireClosed"
                ? `couldn't connect to the VM's ${channel}: ${error.message}`
                : `timeout: couldn't connect to the VM's ${channel} at ${path}, ${Duration.format(settings.dialTimeout)}`
          })
      )

    const connect = Effect.fnUntraced(function* (
      sockets: VmSockets,
      handlers: CtlChannel.Handlers
    ): Effect.fn.Return<HyperstartConnection, ConnectFailed, Scope.Scope> {
      const ctlWire = yield* dial("ctl", sockets.ctl)
      const input = yield* dial("io", sockets.io)
      if (settings.debug && sockets.console !== undefined && sockets.console !== "")
        yield* Effect.forkScoped(Console.follow(dialer, sockets.console, Duration.toMillis(settings.dialTimeout)))
      const ctl = yield* CtlChannel.make(ctlWire, handlers).pipe(Effect.provideService(Deadlines, deadlines))
      yield* Effect.forkScoped(ctl.run, { startImmediately: true })
      // nothing comes on io before READY, but its end may
      let booting = true
      const first = yield* Effect.forkScoped(
        Effect.tapError(input.pull, (closed) => Effect.sync(() => booting && ctl.lose(lost(closed)))),
        { startImmediately: true }
      )
      const ready = yield* Effect.mapError(
        ctl.ready(Duration.toMillis(settings.readyTimeout)),
        (error) => new ConnectFailed({ reason: error.message })
      )
      booting = false
      if (!ready)
        return yield* new ConnectFailed({
          reason: `timeout: the VM's agent did not say READY, ${Duration.format(settings.readyTimeout)}`
        })
      let early: typeof first | undefined = first
      const pull = Effect.suspend(() => {
        const pulled = early
        early = undefined
        return pulled === undefined ? input.pull : Fiber.join(pulled)
      })
      return { ctl, input, output: output(pull, settings) }
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
const output = (
  pullWire: Wire["pull"],
  { debug, maxIoMessage }: Settings
): Stream.Stream<IoMessage.Run, CtlChannel.VmLost> => {
  const parser = IoMessage.makeParser(maxIoMessage)
  let broken: Effect.Effect<never, CtlChannel.VmLost> | undefined
  const parse = (chunk: Uint8Array): Pulled => {
    const runs: Array<IoMessage.Run> = []
    const parsed = parser.push(chunk, runs)
    // what came whole before the damage is still output
    if (Result.isFailure(parsed)) {
      const { length, limit, message } = parsed.failure
      const counted = length > limit ? Counters.limited("io message") : Effect.void
      broken = Effect.andThen(counted, Effect.fail(new CtlChannel.VmLost({ reason: message })))
    }
    const dumped = debug
      ? Effect.forEach(runs, ({ bytes, end, start }) => IoDump.dump("from agent", bytes, start, end), { discard: true })
      : Effect.void
    return Effect.andThen(dumped, runs.length > 0 ? Effect.succeed(runs as [IoMessage.Run]) : pull)
  }
  const pull: Pulled = Effect.suspend(() =>
    broken === undefined
      ? Effect.matchEffect(pullWire, { onSuccess: parse, onFailure: (closed) => Effect.fail(lost(closed)) })
      : broken
  )
  return Stream.fromPull(Effect.succeed(pull))
}

type Pulled = Effect.Effect<[IoMessage.Run, ...Array<IoMessage.Run>], CtlChannel.VmLost>

const lost = (closed: WireClosed) => new CtlChannel.VmLost({ reason: `io: ${closed.message}` })
