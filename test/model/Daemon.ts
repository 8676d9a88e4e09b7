/** The daemon in memory, all of its services but for the listening socket: its fibers run when they are told to. */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Metric from "effect/Metric"
import * as References from "effect/References"
import * as Result from "effect/Result"
import * as Scheduler from "effect/Scheduler"
import * as Scope from "effect/Scope"
import * as Client from "../../src/services/Client.ts"
import { Deadlines } from "../../src/services/Deadlines.ts"
import { Hyperstart } from "../../src/services/Hyperstart.ts"
import { Listener } from "../../src/services/Listener.ts"
import { Sessions } from "../../src/services/Sessions.ts"
import { defaults, Settings } from "../../src/services/Settings.ts"
import { Spool } from "../../src/services/Spool.ts"
import { States } from "../../src/services/States.ts"
import { TokenSource } from "../../src/services/TokenSource.ts"
import { VmRegistry } from "../../src/services/VmRegistry.ts"
import { Dialer, WireClosed } from "../../src/services/Wire.ts"
import * as Host from "../support/Host.ts"
import { MemorySpool } from "../support/MemorySpool.ts"
import { closedDoor } from "../support/TestProxy.ts"
import type { Link } from "./Link.ts"
import type { Rules } from "./Model.ts"
import { StepClock, StepScheduler } from "./Stepping.ts"

/** Where it says that clients connect. */
export const url = "unix:///run/model.sock"

/** Its `n`th token, from 1. */
export const token = (n: number): string => `${String(n).padStart(43, "tOkEn0")}=`

/** What no record may hold: more of a token than its first characters. */
const secret = /tOkEn0tOkEn/

export class Daemon {
  readonly scheduler = new StepScheduler()
  readonly clock = new StepClock(this.scheduler)
  readonly settings: Settings
  /** Listening sockets of agents, by path. */
  readonly doors = new Map<string, Link>()
  readonly spool: MemorySpool["Service"]
  /** Messages of records that held a secret. */
  readonly leaks: Array<unknown> = []
  readonly #context: Context.Context<never>
  readonly #scope = Scope.makeUnsafe()
  readonly #sessions: Sessions["Service"]
  readonly #serve: Client.Clients["serve"]
  #fibers = 0
  readonly #idleFibers: number

  constructor(rules: Rules, overrides: Partial<Settings>) {
    const { ctlTimeout, frameTimeout, lostIdTimeout, maxPipelined, maxTokens, maxVmTokens } = rules
    const { orphanTimeout, processTimeout, readyTimeout, shimTimeout } = rules
    const waits = { ctlTimeout, frameTimeout, lostIdTimeout, orphanTimeout, processTimeout, readyTimeout, shimTimeout }
    this.settings = {
      ...defaults,
      ...(Object.fromEntries(
        Object.entries(waits).map(([name, millis]) => [name, Duration.millis(millis)])
      ) as unknown as { readonly [Name in keyof typeof waits]: Duration.Duration }),
      maxPipelined,
      maxTokens,
      maxVmTokens,
      ...overrides
    }
    const surroundings = Context.make(Scheduler.Scheduler, this.scheduler as Scheduler.Scheduler).pipe(
      Context.add(Clock.Clock, this.clock as Clock.Clock),
      Context.add(Metric.FiberRuntimeMetrics, {
        recordFiberStart: () => void this.#fibers++,
        recordFiberEnd: () => void this.#fibers--
      })
    )
    const services = this.#settled(surroundings, Layer.buildWithScope(this.#layer, this.#scope))
    this.#context = Context.merge(surroundings, services)
    this.#serve = this.#settled(
      this.#context,
      Effect.provide(Client.make, Context.add(services, Scope.Scope, this.#scope))
    ).serve
    this.#sessions = Context.get(services, Sessions)
    this.spool = Context.get(services, MemorySpool)
    this.#idleFibers = this.#fibers
  }

  get #layer() {
    let count = 0
    const dial = (path: string) =>
      Effect.acquireRelease(
        Effect.suspend((): Effect.Effect<Link, WireClosed> => {
          const link = this.doors.get(path)
          this.doors.delete(path) // it takes one client
          return link === undefined ? Effect.fail(new WireClosed({ peer: path })) : Effect.succeed(link)
        }),
        (link) => Effect.sync(() => link.close()),
        { interruptible: true }
      )
    const logger = Logger.make(({ message }) => {
      if (secret.test(JSON.stringify(message))) this.leaks.push(message)
    })
    return VmRegistry.layer.pipe(
      Layer.provideMerge(Hyperstart.layer),
      Layer.provideMerge(Sessions.layer),
      Layer.provideMerge(States.layer),
      Layer.provideMerge(Spool.layer),
      Layer.provideMerge(Deadlines.layer),
      Layer.provideMerge(MemorySpool.layer),
      Layer.provideMerge(Layer.succeed(Dialer, Dialer.of({ dial, adopt: () => Effect.never }))),
      Layer.provideMerge(Layer.succeed(TokenSource, { next: () => token(++count) })),
      Layer.provideMerge([Host.layer, Layer.succeed(Listener, { ...closedDoor, url })]),
      Layer.provideMerge(Layer.succeed(Settings, this.settings)),
      Layer.provideMerge(Layer.merge(Logger.layer([logger]), Layer.succeed(References.MinimumLogLevel, "All")))
    )
  }

  /** The result of what waits for nothing but turns. */
  #settled<A, E, R>(context: Context.Context<R>, effect: Effect.Effect<A, E, R>): A {
    const fiber = Effect.runForkWith(context)(effect)
    this.scheduler.settle()
    const exit = fiber.pollUnsafe()
    if (exit === undefined || Exit.isFailure(exit)) throw new Error("the daemon does not start", { cause: exit?.cause })
    return exit.value
  }

  /** Serves a client. */
  connect(link: Link): void {
    const owned = Effect.acquireRelease(Effect.succeed(link), () => Effect.sync(() => link.close()))
    Effect.runForkWith(this.#context)(
      owned.pipe(
        Effect.flatMap((wire) => this.#serve(wire)),
        Effect.scoped
      )
    )
    this.settle()
  }

  /** Lets it do all that it has to do now. */
  settle(): void {
    this.scheduler.settle()
  }

  /** How many sessions it has. */
  sessions(): number {
    return this.#sessions.size()
  }

  knows(token: string): boolean {
    return Result.isSuccess(this.#sessions.find(token))
  }

  /** Fibers that are more than those of a daemon that has nothing to do, sleepers among them. */
  busy(): { readonly fibers: number; readonly sleeping: number } {
    return { fibers: this.#fibers - this.#idleFibers, sleeping: this.clock.sleeping() }
  }

  stop(): void {
    Effect.runForkWith(this.#context)(Scope.close(this.#scope, Exit.void))
    this.settle()
  }
}
