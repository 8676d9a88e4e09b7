/**
 * One daemon after the other in memory, over the same agents, clients and files: what one hands over, the next goes on with.
 * A daemon that has handed over is like a process that has ended: it does nothing to anybody any more.
 */
import * as Bytes from "effect/Bytes"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { Mailbox } from "../../src/layers/Mailbox.ts"
import { Condition } from "../../src/services/Condition.ts"
import { Deadlines } from "../../src/services/Deadlines.ts"
import { Hyperstart } from "../../src/services/Hyperstart.ts"
import { type Arrival, Listener, type ListenError } from "../../src/services/Listener.ts"
import * as Proxy from "../../src/services/Proxy.ts"
import { none, ServiceManager } from "../../src/services/ServiceManager.ts"
import { Sessions } from "../../src/services/Sessions.ts"
import { defaults, Settings } from "../../src/services/Settings.ts"
import { Spool, SpoolFiles } from "../../src/services/Spool.ts"
import { StateFiles } from "../../src/services/StateFiles.ts"
import { States } from "../../src/services/States.ts"
import { Predecessor, Successor, SuccessorError } from "../../src/services/Successor.ts"
import { TokenSource } from "../../src/services/TokenSource.ts"
import { VmRegistry } from "../../src/services/VmRegistry.ts"
import { Descriptors, Dialer, type Wire } from "../../src/services/Wire.ts"
import { FakeHyperstart } from "./FakeHyperstart.ts"
import * as Host from "./Host.ts"
import { MemorySpool } from "./MemorySpool.ts"
import { MemoryState } from "./MemoryState.ts"
import * as MemoryWire from "./MemoryWire.ts"
import * as Records from "./Records.ts"
import { makeClient, TestProxy } from "./TestProxy.ts"

/** What a daemon has left to the next. */
interface Left {
  readonly snapshot: Uint8Array
  readonly descriptors: ReadonlyArray<number>
}

/** A daemon, as the world around it sees it. */
class Life {
  readonly arrivals = new Mailbox<Arrival, ListenError>()
  readonly log = Records.make()
  readonly asked = new Condition()
  asks = 0
  /** Why its next hand-over fails, if it does. */
  failure: string | undefined
  left: Left | undefined
  serving = false
  /** Why it did not take what was left. */
  refusal: string | undefined

  get gone(): boolean {
    return this.left !== undefined
  }

  /** An effect that never comes back to a daemon that has gone meanwhile. */
  lives<A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> {
    const living = () => (this.gone ? Effect.never : Effect.void)
    return Effect.suspend(living).pipe(Effect.andThen(effect), Effect.tap(living), Effect.tapError(living))
  }

  wire(end: MemoryWire.End): Wire {
    return {
      ...end,
      pull: this.lives(end.pull),
      offer: (chunks) => this.gone || end.offer(chunks),
      pending: () => (this.gone ? 0 : end.pending()),
      drained: this.lives(end.drained),
      closed: this.lives(end.closed)
    }
  }

  own(end: MemoryWire.End): Effect.Effect<Wire, never, Scope.Scope> {
    return Effect.acquireRelease(
      Effect.sync(() => this.wire(end)),
      () => Effect.sync(() => this.gone || end.close())
    )
  }
}

export class HandOver extends Context.Service<
  HandOver,
  {
    /** A new daemon takes the place of the one that serves; how many bytes it was told. */
    readonly handOver: Effect.Effect<number, never, Scope.Scope>
    /** The daemon is asked to hand over, and that fails: it goes on. */
    readonly failToHandOver: (reason: string) => Effect.Effect<void>
    /** What the daemon that serves has logged. */
    readonly records: () => ReadonlyArray<Records.Record>
    /** Files of state that there are. */
    readonly states: ReadonlyMap<string, Uint8Array>
  }
>()("test/HandOver") {
  /** `overrides` replace default settings. */
  static readonly layer = (
    overrides: Partial<Settings> = {}
  ): Layer.Layer<HandOver | TestProxy | FakeHyperstart | MemorySpool> =>
    Layer.effectContext(makeWorld({ ...defaults, ...overrides })).pipe(
      Layer.provideMerge([FakeHyperstart.layer, MemorySpool.layer])
    )
}

const makeWorld = Effect.fnUntraced(function* (settings: Settings) {
  const dialer = yield* Dialer
  const spoolFiles = yield* SpoolFiles
  const states = new Map<string, Uint8Array>()
  const changed = new Condition()
  let tokens = 0
  let clients = 0
  let current = new Life()

  const ports = (life: Life, predecessor: Left | undefined) => {
    const stateFiles = Layer.effect(
      StateFiles,
      Effect.map(StateFiles, (files) => ({
        ...files,
        write: (name: string, bytes: Uint8Array) => (life.gone ? undefined : files.write(name, bytes)),
        remove: (name: string) => (life.gone ? undefined : files.remove(name))
      }))
    ).pipe(Layer.provide(MemoryState.layerOver(states)))
    return Layer.mergeAll(
      stateFiles,
      life.log.layer,
      Layer.succeed(Descriptors, {
        inode: Host.inodeOf,
        close: (descriptor) => {
          life.refusal = `descriptor ${descriptor} is nobody's`
        }
      }),
      MemoryWire.layerReading,
      Layer.succeed(Settings, settings),
      Layer.succeed(TokenSource, { next: () => `token-${String(++tokens).padStart(36, "0")}==` }),
      Layer.succeed(SpoolFiles, {
        open: (keep) => life.lives(spoolFiles.open(keep)),
        leave: () => {},
        write: (name, at, chunks) => life.lives(spoolFiles.write(name, at, chunks)),
        read: (name, at, size) => life.lives(spoolFiles.read(name, at, size)),
        remove: (name) => life.lives(spoolFiles.remove(name))
      }),
      Layer.succeed(Dialer, {
        // closed by this daemon only as long as it has not handed over
        dial: (path, millis) =>
          Effect.flatMap(Scope.provide(dialer.dial(path, millis), Scope.makeUnsafe()), (end) =>
            life.own(end as MemoryWire.End)
          ),
        adopt: (_path, carried) => life.own(MemoryWire.adopt(carried))
      }),
      Layer.succeed(Listener, {
        url: "unix:///run/test.sock",
        listen: Effect.succeed({ accept: life.arrivals.take, carry: () => ({ descriptor: 999, ending: [] }) }),
        adopt: (_name, carried) => life.own(MemoryWire.adopt(carried)),
        finish: (carried) => MemoryWire.adopt(carried).close()
      }),
      Layer.succeed(ServiceManager, {
        ...none,
        ready: Effect.sync(() => {
          life.serving = true
          changed.notify()
        })
      }),
      Layer.succeed(Predecessor, {
        ...Host.first,
        pid: predecessor && 1,
        receive: () => predecessor?.snapshot,
        inherited: predecessor?.descriptors ?? [],
        refuse: (reason) => {
          life.refusal = reason
          changed.notify()
        }
      }),
      Layer.succeed(Successor, {
        asked: Effect.andThen(
          life.asked.until(() => life.asks > 0),
          Effect.sync(() => (life.asks = 0))
        ),
        prepare: () => Effect.succeed({ version: "next", abandon: () => {} }),
        leave: Host.alone.leave,
        handOver: (_prepared, snapshot, [, ...descriptors]) => {
          if (life.failure === undefined) life.left = { snapshot: Bytes.concat(snapshot), descriptors }
          return new SuccessorError({ reason: life.failure ?? "it has gone" })
        }
      })
    )
  }

  const start = Effect.fnUntraced(function* (life: Life, predecessor?: Left) {
    const services = VmRegistry.layer.pipe(
      Layer.provideMerge(Hyperstart.layer),
      Layer.provideMerge(Sessions.layer),
      Layer.provideMerge(States.layer),
      Layer.provideMerge(Spool.layer),
      Layer.provideMerge(Deadlines.layer),
      Layer.provideMerge(ports(life, predecessor))
    )
    const context = yield* Layer.build(services)
    const proxy = yield* Effect.provideContext(Proxy.make, context)
    for (const loop of [proxy.serve, proxy.handOvers])
      yield* Effect.forkScoped(Effect.provideContext(loop, context), { startImmediately: true })
    yield* changed.until(() => life.serving || life.refusal !== undefined)
    if (life.refusal !== undefined) return yield* Effect.die(new Error(life.refusal))
  })

  yield* start(current)

  const ask = () => {
    current.asks++
    current.asked.notify()
  }

  const handOver = Effect.gen(function* () {
    const before = current
    ask()
    for (let turns = 1; !before.gone; turns++)
      // it waits for VMs that have just ended
      yield* turns % 20 === 0 ? TestClock.adjust(20) : Effect.yieldNow
    const left = before.left!
    yield* TestClock.adjust(1) // a process takes its time to start
    current = new Life()
    yield* start(current, left)
    yield* Effect.yieldNow
    return left.snapshot.length
  })

  const connect = Effect.gen(function* () {
    const { client, wire } = yield* makeClient(`client ${++clients}`)
    const life = current
    life.arrivals.offer({ crowded: undefined, connection: Effect.suspend(() => life.own(wire)) })
    return client
  })

  return Context.make(HandOver, {
    handOver,
    failToHandOver: Effect.fnUntraced(function* (reason: string) {
      current.failure = reason
      ask()
      const failed = () => current.log.records.some(({ level }) => level === "Error")
      while (!failed()) yield* Effect.yieldNow
      current.failure = undefined
    }),
    records: () => current.log.records,
    states
  }).pipe(Context.add(TestProxy, { connect }))
})
