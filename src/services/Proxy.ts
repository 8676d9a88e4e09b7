/** The daemon's one loop: every client that arrives is served in a fiber and a scope of its own; and how it leaves all to the next. */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import * as DaemonState from "../domain/DaemonState.ts"
import * as Frame from "../domain/Frame.ts"
import * as Client from "./Client.ts"
import * as Counters from "./Counters.ts"
import { Deadlines, elapsedMillis } from "./Deadlines.ts"
import * as Inheritance from "./Inheritance.ts"
import { type Crowded, Listener, type ListenError, type Listening, turnedAwayMillis } from "./Listener.ts"
import { ServiceManager } from "./ServiceManager.ts"
import type { Sessions } from "./Sessions.ts"
import { Settings } from "./Settings.ts"
import { Spool } from "./Spool.ts"
import { States } from "./States.ts"
import { type Predecessor, Successor } from "./Successor.ts"
import { Tally } from "./Tally.ts"
import { VmRegistry } from "./VmRegistry.ts"
import { type CarriedWire, Descriptors, Reading, type Wire } from "./Wire.ts"

/** Milliseconds between two records of clients that were turned away. */
const tellCrowded = 10_000

const utf8 = new TextEncoder()

/** Reads as far as a client's first header, so that no payload is kept. The opcode, if it is a command's. */
const firstCommand = Effect.fnUntraced(function* (wire: Wire) {
  let command: number | undefined
  const parser = Frame.makeParser((type, opcode) => {
    if (type === Frame.FrameType.command && opcode <= Frame.Command.Signal) command = opcode
    return "type" // of whatever it is
  })
  while (Result.isSuccess(parser.push(yield* wire.pull, () => {})));
  return command
})

/**
 * Answers the first command of a client that there is no room for. But not a shim's claim: after an error it would give up
 * for good, after the mere end of its connection it tries again for ten seconds.
 */
const turnAway = Effect.fnUntraced(function* (wire: Wire, crowded: Crowded) {
  const read = Effect.orElseSucceed(firstCommand(wire), () => undefined)
  const opcode = Option.getOrUndefined(yield* Effect.timeoutOption(read, turnedAwayMillis))
  if (opcode === undefined || opcode === Frame.Command.ConnectShim || opcode === Frame.Command.DisconnectShim) return
  const payload = utf8.encode(JSON.stringify({ msg: crowded.message }))
  wire.offer([Frame.encode({ type: Frame.FrameType.response, opcode, inError: true, payload })])
})

/** The daemon's work. */
export interface Proxy {
  /** Takes over what an earlier daemon left, and serves clients until it is interrupted, or the listening socket breaks. */
  readonly serve: Effect.Effect<never, ListenError>
  /** Hands everything over to a new process, each time that somebody asks for that. */
  readonly handOvers: Effect.Effect<never>
  /** Leaves everything to a daemon that comes later. Nobody is accepted any more. */
  readonly stop: Effect.Effect<void>
}

/** Turns of the event loop after which whatever had been read before reading was held has been handled. */
const settlingTurns = 8

/** Looks at VMs that have just ended, and millis between them. */
const mostLooks = 50
const lookMillis = 20

/**
 * Parts of the time for a clean stop: for commands under way, for clients to take what is left and to close, and for output that
 * still comes; and the most that each may have, in millis.
 */
const stopShares = { commands: 0.3, clients: 0.2, output: 0.2 }
const mostOfStop = { commands: 1000, clients: 500, output: 500 }

export const make: Effect.Effect<
  Proxy,
  never,
  | Deadlines
  | Descriptors
  | Listener
  | Predecessor
  | Reading
  | Scope.Scope
  | ServiceManager
  | Sessions
  | Spool
  | States
  | Successor
  | VmRegistry
> = Effect.gen(function* () {
  const listener = yield* Listener
  const settings = yield* Settings
  const clock = yield* Clock.Clock
  const clients = yield* Client.make
  const deadlines = yield* Deadlines
  const descriptors = yield* Descriptors
  const manager = yield* ServiceManager
  const reading = yield* Reading
  const registry = yield* VmRegistry
  const spool = yield* Spool
  const states = yield* States
  const successor = yield* Successor
  const context = yield* Effect.context<Descriptors | Predecessor | Spool | States>()
  const run = yield* FiberSet.makeRuntime()
  const tallies = new Map<Crowded["what"], Tally>()
  const tally = ({ message, what }: Crowded) => {
    const known = tallies.get(what)
    if (known !== undefined) return known
    const tell = (count: number) => void run(Effect.logWarning("clients turned away", { reason: message, count }))
    const made = new Tally(deadlines, tellCrowded, tell)
    tallies.set(what, made)
    return made
  }
  let count = 0
  let listening: Listening | undefined

  const serveClient = (connection: Effect.Effect<void, never, Scope.Scope>, client: number) =>
    run(
      connection.pipe(
        Effect.scoped,
        Effect.catchDefect((defect) => Effect.logError("a client's connection failed by a bug", Cause.die(defect))),
        Effect.annotateLogs({ client })
      )
    )

  const resume = Effect.fnUntraced(function* (handed: DaemonState.Decoded | undefined) {
    const inherited = yield* Effect.provideContext(Inheritance.take(handed), context)
    count = inherited.count
    const vms = yield* registry.resume(inherited.vms)
    for (const { client, wire } of inherited.clients) {
      const earlier = { client, vms, bytesOf: inherited.bytesOf }
      const connection = Effect.flatMap(listener.adopt(client.name, wire), (adopted) => clients.serve(adopted, earlier))
      serveClient(connection, Number(/\d+$/.exec(client.name)?.[0] ?? 0))
    }
    for (const wire of inherited.ending) listener.finish(wire)
    yield* registry.begin
    if (inherited.from === undefined || inherited.from === "state") return
    const pause = inherited.held === undefined ? undefined : Math.round(elapsedMillis(clock) - inherited.held)
    yield* Effect.logInfo("everything goes on", {
      vms: vms.length,
      clients: inherited.clients.length,
      pause: `${pause}ms`
    })
    yield* inherited.from === "stop" && manager.keeps ? manager.release : Effect.void
  })

  const serve = Effect.gen(function* () {
    const handed = yield* Effect.provideContext(Inheritance.handedOver, context)
    const open = yield* listener.listen
    listening = open
    yield* resume(handed)
    yield* manager.ready
    for (;;) {
      const { connection, crowded } = yield* open.accept
      if (crowded !== undefined) {
        yield* Counters.limited(crowded.what)
        tally(crowded).add()
      }
      if (connection === undefined) continue
      serveClient(
        connection.pipe(
          Effect.tap(() => Effect.logDebug("client connected")),
          Effect.flatMap((wire) => (crowded === undefined ? clients.serve(wire) : turnAway(wire, crowded)))
        ),
        ++count
      )
    }
  }).pipe(Effect.scoped)

  const stopMillis = (part: keyof typeof stopShares): number =>
    Math.min(Duration.toMillis(settings.stopTimeout) * stopShares[part], mostOfStop[part])

  /** Holds reading, and lets everything come to rest that had been read. */
  const settle = Effect.gen(function* () {
    // what a VM says last can be read by who hears of its end only
    for (let look = 0; look < mostLooks && registry.all().some((vm) => vm.lingers()); look++)
      yield* Effect.sleep(lookMillis)
    const held = elapsedMillis(clock)
    reading.hold()
    for (let turn = 0; turn < settlingTurns; turn++) yield* Effect.yieldNow
    return held
  })

  /** All that this daemon is, in this moment, and the descriptors that it refers to. */
  const snapshot = (held: number) => {
    const blobs = new DaemonState.Blobs()
    const { descriptor: listenerDescriptor, ending } = listening?.carry() ?? { descriptor: undefined, ending: [] }
    const all = [listenerDescriptor ?? -1] // the first, so that the next daemon finds it before it reads anything
    const vmDescriptors: Array<number> = []
    const into = (list: Array<number>) => (carried: CarriedWire) => {
      list.push(carried.descriptor)
      const index = all.push(carried.descriptor) - 1
      return { descriptor: index, unread: blobs.put(carried.unread), unsent: blobs.put(carried.unsent) }
    }
    const clientDescriptors: Array<number> = []
    const { registry: vms, tickets, vms: living } = registry.carry(blobs, into(vmDescriptors))
    const wire = into(clientDescriptors)
    const carried: DaemonState.Snapshot = {
      version: DaemonState.version,
      socket: listener.url,
      held,
      listener: 0,
      registry: vms,
      clients: clients.carry({ blobs, wire, vms: living, tickets }),
      ending: ending.map(wire),
      inodes: [],
      count
    }
    const inodes = all.map((descriptor) => descriptors.inode(descriptor) ?? 0)
    return {
      parts: DaemonState.encodeSnapshot({ ...carried, inodes }, blobs),
      descriptors: all,
      vmDescriptors,
      clientDescriptors
    }
  }

  const handOver = Effect.gen(function* () {
    const prepared = yield* successor.prepare(listening?.carry().descriptor ?? -1)
    yield* Effect.logInfo("hand-over", { version: prepared.version, vms: registry.all().length })
    const held = yield* settle
    const error = yield* Effect.sync(() => {
      const { descriptors: passed, parts } = snapshot(held)
      return successor.handOver(prepared, parts, passed)
    }).pipe(Effect.tapDefect(() => Effect.sync(() => prepared.abandon())))
    reading.resume()
    return yield* error
  }).pipe(
    Effect.catch((error) => Effect.logError("hand-over failed: this process goes on", { error: error.message })),
    Effect.catchDefect((defect) => {
      reading.resume()
      return Effect.logError("hand-over failed by a bug: this process goes on", Cause.die(defect))
    }),
    Effect.uninterruptible
  )

  /** Leaves every connection to the service manager, and what this daemon knows in a file: no peer sees anything. */
  const leaveConnected = Effect.gen(function* () {
    const { clientDescriptors, parts, vmDescriptors } = snapshot(yield* settle)
    const left =
      states.stop(parts) && manager.keepAll("vm", vmDescriptors) && manager.keepAll("client", clientDescriptors)
    if (left) successor.leave()
    states.discard()
    reading.resume()
    yield* Effect.logWarning("the service manager does not keep the connections: they are closed")
  }).pipe(
    Effect.catchDefect((defect) => {
      states.discard()
      reading.resume()
      return Effect.logError("the connections cannot be kept, by a bug: they are closed", Cause.die(defect))
    })
  )

  /** Closes every connection in good order, and leaves what has to be known of VMs, and what waits, on disk. */
  const leaveClosed = Effect.gen(function* () {
    yield* Effect.timeoutOption(clients.endAll, stopMillis("clients"))
    const vms = registry.all()
    const read = Effect.forEach(vms, (vm) => vm.quiet, { concurrency: "unbounded", discard: true })
    const quiet = yield* Effect.timeoutOption(read, stopMillis("output"))
    yield* Effect.forEach(vms, (vm) => vm.park, { discard: true })
    spool.files.leave()
    const log = Option.isSome(quiet) ? Effect.logInfo : Effect.logWarning
    const gap = Option.isSome(quiet) ? {} : { gap: "possible: output still came when the VMs' sockets were closed" }
    yield* log("VMs are left to the next daemon", { vms: vms.length, ...gap })
  })

  const stop = Effect.gen(function* () {
    if (registry.all().length === 0) return
    yield* clients.stop(stopMillis("commands"))
    if (manager.keeps) yield* leaveConnected
    yield* leaveClosed
  })

  return { serve, stop, handOvers: Effect.forever(Effect.andThen(successor.asked, handOver)) }
})
