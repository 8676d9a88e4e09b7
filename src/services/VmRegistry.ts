/** The VMs that clients see, by the id they were registered with; and every VM's scope. */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberSet from "effect/FiberSet"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import type { RegisterVM } from "../domain/ClientCommand.ts"
import { Condition } from "./Condition.ts"
import { Deadlines } from "./Deadlines.ts"
import type { ConnectFailed } from "./Hyperstart.ts"
import { Settings } from "./Settings.ts"
import * as Vm from "./Vm.ts"

/** No VM has this id. */
export class UnknownContainer extends Schema.TaggedError<UnknownContainer>()("UnknownContainer", {
  id: Schema.String
}) {
  override get message(): string {
    return `unknown containerID: ${this.id}`
  }
}

/** A VM has this id already, or is just being registered with it. */
export class AlreadyRegistered extends Schema.TaggedError<AlreadyRegistered>()("AlreadyRegistered", {
  id: Schema.String
}) {
  override get message(): string {
    return `${this.id}: container already registered`
  }
}

/** A client asked for fewer than no tokens, or for more than one command may have. */
export class BadTokenCount extends Schema.TaggedError<BadTokenCount>()("BadTokenCount", {
  count: Schema.Finite,
  limit: Schema.Finite
}) {
  get above(): "tokens" | undefined {
    return this.count > this.limit ? "tokens" : undefined
  }
  override get message(): string {
    return `numIOStreams must be between 0 and ${this.limit}, got ${this.count}`
  }
}

/** Most ids remembered after their loss; the oldest are forgotten first. */
const maxLostIds = 10_000

/** A VM has as many sessions as it may have. */
export class TooManySessions extends Schema.TaggedError<TooManySessions>()("TooManySessions", {
  count: Schema.Finite,
  limit: Schema.Finite
}) {
  readonly above = "vm tokens"
  override get message(): string {
    return `too many tokens for this VM: ${this.count} with those asked for, the limit is ${this.limit}`
  }
}

/** There are as many VMs as there may be; those that have been unregistered, or lost, count until they are gone. */
export class TooManyVms extends Schema.TaggedError<TooManyVms>()("TooManyVms", {
  count: Schema.Int,
  limit: Schema.Int
}) {
  readonly above = "vms"
  override get message(): string {
    return `too many VMs: ${this.count} with this one, the limit is ${this.limit}`
  }
}

/** A VM, and the tokens asked for. */
export interface Attached {
  readonly vm: Vm.Vm
  readonly tokens: ReadonlyArray<string>
}

export class VmRegistry extends Context.Service<
  VmRegistry,
  {
    /** Connects to a VM; nobody else sees it before its agent is ready. A failure, or an interruption, frees the id. */
    readonly register: (
      command: RegisterVM
    ) => Effect.Effect<Attached, AlreadyRegistered | BadTokenCount | ConnectFailed | TooManySessions | TooManyVms>
    readonly attach: (
      id: string,
      count: number
    ) => Effect.Effect<Attached, UnknownContainer | BadTokenCount | TooManySessions>
    /** Hides a VM. What is attached to it goes on; its sockets are closed when it is gone. */
    readonly unregister: (id: string) => Effect.Effect<void, UnknownContainer>
    /** Completes when a VM has been registered and has come to its end: pod mode's only one. */
    readonly podEnded: Effect.Effect<void>
  }
>()("cc-proxy/services/VmRegistry") {
  static readonly make = Effect.gen(function* () {
    const settings = yield* Settings
    const clock = yield* Clock.Clock
    const scope = yield* Effect.scope
    const makeVm = yield* Vm.make
    const deadlines = yield* Deadlines
    const run = yield* FiberSet.makeRuntime()
    const changed = new Condition()
    const lostIdMillis = Duration.toMillis(settings.lostIdTimeout)

    const vms = new Map<string, Vm.Vm | "registering">()
    /** Ids lost before they were unregistered, oldest first, with the time to forget them at. */
    const lostIds = new Map<string, { vm: Vm.Vm | undefined; readonly until: number }>()
    let alive = 0 // registered, being registered, and those that nobody sees any more
    let ended = 0
    let unregistered = 0

    const forgetOldIds = () => {
      const now = clock.currentTimeMillisUnsafe()
      for (const [id, { until }] of lostIds) {
        if (until > now && lostIds.size <= maxLostIds) break
        lostIds.delete(id)
      }
    }

    const rememberLost = (vm: Vm.Vm) => {
      lostIds.delete(vm.id) // to the end of the order
      lostIds.set(vm.id, { vm, until: clock.currentTimeMillisUnsafe() + lostIdMillis })
      forgetOldIds()
    }

    const checkCount = (count: number) =>
      count < 0 || count > settings.maxTokens
        ? Effect.fail(new BadTokenCount({ count, limit: settings.maxTokens }))
        : Effect.void

    const checkTotal = (count: number) =>
      count > settings.maxVmTokens
        ? Effect.fail(new TooManySessions({ count, limit: settings.maxVmTokens }))
        : Effect.void

    const ends = (vm: Vm.Vm) => {
      const remembered = lostIds.get(vm.id)
      if (remembered?.vm === vm) remembered.vm = undefined // the id is kept, not the VM
      alive--
      ended++
      changed.notify()
    }

    /** The rest of a registered VM's life. */
    const live = (vm: Vm.Vm, vmScope: Scope.Closeable) => {
      const onLost = () => {
        if (vms.get(vm.id) !== vm) return
        vms.delete(vm.id)
        rememberLost(vm)
      }
      return vm.live(onLost).pipe(
        Effect.onExit((exit) => {
          const closed = Effect.ensuring(
            Scope.close(vmScope, Exit.void),
            Effect.sync(() => ends(vm))
          )
          if (Exit.isSuccess(exit) || !Cause.hasDies(exit.cause)) return closed
          return Effect.andThen(Effect.logError("a VM failed by a bug", exit.cause), closed)
        }),
        Effect.provideService(References.CurrentLogAnnotations, { vm: vm.id })
      )
    }

    const register = Effect.fnUntraced(function* (command: RegisterVM) {
      const id = command.containerId
      const count = command.numIOStreams ?? 0
      yield* checkCount(count)
      yield* checkTotal(count)
      if (vms.has(id)) return yield* new AlreadyRegistered({ id })
      if (alive >= settings.maxVms) return yield* new TooManyVms({ count: alive + 1, limit: settings.maxVms })
      alive++
      vms.set(id, "registering")
      const vmScope = yield* Scope.fork(scope)
      const vm = yield* makeVm(id, {
        ctl: command.ctlSerial,
        io: command.ioSerial,
        console: command.console ?? undefined
      }).pipe(
        Scope.provide(vmScope),
        // its records are its own, whoever registered it
        Effect.provideService(References.CurrentLogAnnotations, { vm: id }),
        Effect.onExit((exit) =>
          Exit.isSuccess(exit)
            ? Effect.void
            : Effect.sync(() => vms.delete(id)).pipe(
                Effect.andThen(Scope.close(vmScope, exit)),
                Effect.ensuring(Effect.sync(() => alive--))
              )
        )
      )
      vms.set(id, vm)
      lostIds.delete(id)
      const tokens = vm.allocate(count)
      run(live(vm, vmScope))
      return { vm, tokens }
    })

    const attach = Effect.fnUntraced(function* (id: string, count: number) {
      yield* checkCount(count)
      const vm = vms.get(id)
      if (vm === undefined || vm === "registering") return yield* new UnknownContainer({ id })
      yield* checkTotal(vm.sessions() + count)
      return { vm, tokens: vm.allocate(count) }
    })

    const unregister = Effect.fnUntraced(function* (id: string) {
      forgetOldIds()
      const vm = vms.get(id)
      const lost = lostIds.get(id)
      if (vm === "registering" || (vm ?? lost) === undefined) return yield* new UnknownContainer({ id })
      vms.delete(id)
      lostIds.delete(id)
      ;(vm ?? lost?.vm)?.unregister()
      unregistered++
      changed.notify()
    })

    const podEnded = Effect.gen(function* () {
      yield* changed.until(() => ended > 0)
      yield* deadlines.within(Duration.toMillis(settings.podTimeout), () => unregistered > 0, changed)
      yield* Effect.yieldNow // the answer to UnregisterVM leaves before the daemon does
    })

    return VmRegistry.of({ register, attach, unregister, podEnded })
  })

  static readonly layer = Layer.effect(VmRegistry, VmRegistry.make)
}
