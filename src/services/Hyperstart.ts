/** The connection to one VM's agent: its control channel, its I/O channel, and its console where that is wanted. */
import * as Clock from "effect/Clock"
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
import * as Recovery from "../domain/Recovery.ts"
import * as Console from "./Console.ts"
import * as Counters from "./Counters.ts"
import * as CtlChannel from "./CtlChannel.ts"
import { Deadlines, elapsedMillis } from "./Deadlines.ts"
import * as IoDump from "./IoDump.ts"
import { Settings } from "./Settings.ts"
import { Ticket } from "./Ticket.ts"
import { type CarriedWire, Dialer, type Wire, type WireClosed } from "./Wire.ts"

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
  /** Reads ctl, where that has not been begun: run it once, in a fiber of its own. */
  readonly reading: Effect.Effect<void> | undefined
  /** What a daemon needs that takes this one's place; `undefined` where a channel has ended. */
  readonly carry: () => CtlChannel.Carried | undefined
  /** Closes both channels: all that they had to say has been read. */
  readonly close: () => void
  /** Descriptors of both channels; none where one has ended. */
  readonly descriptors: () => ReadonlyArray<number>
}

/** An agent that an earlier daemon was connected to. */
export interface Earlier {
  /** Its connections, where they have been kept. */
  readonly wires: CtlChannel.Carried | undefined
  readonly channel: CtlChannel.Earlier
  /** The sequence number that no stream has yet. */
  readonly nextSequence: number
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
      handlers: CtlChannel.Handlers,
      earlier?: { readonly wires: CtlChannel.Carried | undefined; readonly ticket: Ticket }
    ) => Effect.Effect<HyperstartConnection, ConnectFailed, Scope.Scope>
    /** Takes over both channels of an agent that has been READY, or dials them again, once. Nothing is read before `reading` runs. */
    readonly resume: (
      sockets: VmSockets,
      handlers: CtlChannel.Handlers,
      earlier: Earlier
    ) => Effect.Effect<HyperstartConnection, ConnectFailed, Scope.Scope>
  }
>()("cc-proxy/services/Hyperstart") {
  static readonly make = Effect.gen(function* () {
    const dialer = yield* Dialer
    const clock = yield* Clock.Clock
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

    const follow = ({ console }: VmSockets) =>
      settings.debug && console !== undefined && console !== ""
        ? Effect.forkScoped(Console.follow(dialer, console, Duration.toMillis(settings.dialTimeout)))
        : Effect.void

    const open = Effect.fnUntraced(function* (
      sockets: VmSockets,
      handlers: CtlChannel.Handlers,
      wires: CtlChannel.Carried | undefined
    ) {
      const ctlWire = yield* wires === undefined ? dial("ctl", sockets.ctl) : dialer.adopt(sockets.ctl, wires.ctl)
      const input = yield* wires === undefined ? dial("io", sockets.io) : dialer.adopt(sockets.io, wires.io)
      yield* follow(sockets)
      const ctl = yield* CtlChannel.make(ctlWire, handlers).pipe(Effect.provideService(Deadlines, deadlines))
      return { ctlWire, input, ctl }
    })

    const connected = (
      { ctl, ctlWire, input }: Effect.Success<ReturnType<typeof open>>,
      output: Output,
      reading: Effect.Effect<void> | undefined
    ): HyperstartConnection => ({
      ctl,
      reading,
      input,
      output: output.stream,
      carry: () => carried(ctlWire, ctl.rest(), input, output.rest()),
      close: () => {
        input.drainAndClose()
        ctlWire.drainAndClose()
      },
      descriptors: () => {
        const found = [ctlWire.descriptor(), input.descriptor()]
        return found.includes(undefined) ? [] : (found as Array<number>)
      }
    })

    const connect = Effect.fnUntraced(function* (
      sockets: VmSockets,
      handlers: CtlChannel.Handlers,
      { ticket, wires }: { readonly wires: CtlChannel.Carried | undefined; readonly ticket: Ticket }
    ): Effect.fn.Return<HyperstartConnection, ConnectFailed, Scope.Scope> {
      const opened = yield* open(sockets, handlers, wires)
      const { ctl, ctlWire, input } = opened
      handlers.connecting(() => carried(ctlWire, ctl.rest(), input, nothing))
      yield* Effect.forkScoped(ctl.run, { startImmediately: true })
      // nothing comes on io before READY, but its end may
      let booting = true
      const first = yield* Effect.forkScoped(
        Effect.tapError(input.pull, (closed) => Effect.sync(() => booting && ctl.lose(lost(closed)))),
        { startImmediately: true }
      )
      const wait = ticket.begin(Duration.toMillis(settings.readyTimeout), elapsedMillis(clock))
      const ready = yield* Effect.mapError(ctl.ready(wait), (error) => new ConnectFailed({ reason: error.message }))
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
      return connected(opened, makeOutput(pull, settings, undefined), undefined)
    })

    const resume = Effect.fnUntraced(function* (
      sockets: VmSockets,
      handlers: CtlChannel.Handlers,
      { channel, nextSequence, wires }: Earlier
    ): Effect.fn.Return<HyperstartConnection, ConnectFailed, Scope.Scope> {
      const opened = yield* open(sockets, handlers, wires)
      opened.ctl.resume(channel)
      const most = settings.maxIoMessage + IoMessage.headerSize
      const recovery = channel.torn
        ? Recovery.make(IoMessage.traits(nextSequence, settings.maxIoMessage), most)
        : undefined
      return connected(opened, makeOutput(opened.input.pull, settings, recovery), opened.ctl.run)
    })

    return Hyperstart.of({
      connect: (sockets, handlers, earlier = { wires: undefined, ticket: new Ticket() }) =>
        Effect.tapError(connect(sockets, handlers, earlier), (error) =>
          Effect.logWarning("VM not registered", { reason: error.reason })
        ),
      resume
    })
  })

  static readonly layer = Layer.effect(Hyperstart, Hyperstart.make)
}

/** Both channels, with what has been read of a message put in front of what has not been pulled. */
const carried = (ctl: Wire, ctlRest: Uint8Array, io: Wire, ioRest: Uint8Array): CtlChannel.Carried | undefined => {
  const [ctlCarried, ioCarried] = [ctl.carry(), io.carry()]
  if (ctlCarried === undefined || ioCarried === undefined) return undefined
  const behind = (rest: Uint8Array, carried: CarriedWire) => ({ ...carried, unread: [rest, ...carried.unread] })
  return { ctl: behind(ctlRest, ctlCarried), io: behind(ioRest, ioCarried) }
}

/** What every process writes, and the part of a message that has no rest yet. */
interface Output {
  readonly stream: Stream.Stream<IoMessage.Run, CtlChannel.VmLost>
  readonly rest: () => Uint8Array
}

/** Decodes the I/O channel: one element per run, one array per read that completed any. */
const makeOutput = (
  pullWire: Wire["pull"],
  { debug, maxIoMessage }: Settings,
  recovery: Recovery.Recovery | undefined
): Output => {
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
  const recover = (recovering: Recovery.Recovery, read: Uint8Array): Pulled => {
    const chunk = recovering.push(read)
    if (chunk === undefined) return Effect.fail(new CtlChannel.VmLost({ reason: "io: no message found" }))
    if (!recovering.done()) return pull
    const bytes = recovering.skipped()
    recovery = undefined
    if (bytes === 0) return parse(chunk)
    return Effect.andThen(Effect.logWarning("part of a message skipped", { bytes }), parse(chunk))
  }
  const onSuccess = (chunk: Uint8Array) => (recovery === undefined ? parse(chunk) : recover(recovery, chunk))
  const pull: Pulled = Effect.suspend(() =>
    broken === undefined
      ? Effect.matchEffect(pullWire, { onSuccess, onFailure: (closed) => Effect.fail(lost(closed)) })
      : broken
  )
  return { stream: Stream.fromPull(Effect.succeed(pull)), rest: () => parser.rest() }
}

type Pulled = Effect.Effect<[IoMessage.Run, ...Array<IoMessage.Run>], CtlChannel.VmLost>

const nothing = new Uint8Array(0)

const lost = (closed: WireClosed) => new CtlChannel.VmLost({ reason: `io: ${closed.message}` })
