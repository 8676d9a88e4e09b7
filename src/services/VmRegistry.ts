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
import type * as DaemonState from "../domain/DaemonState.ts"
import { Condition } from "./Condition.ts"
import type { Carried } from "./CtlChannel.ts"
import { Deadlines, elapsedMillis } from "./Deadlines.ts"
import type { ConnectFailed } from "./Hyperstart.ts"
import { Settings } from "./Settings.ts"
import { States } from "./States.ts"
import type { Ticket } from "./Ticket.ts"
import * as Vm from "./Vm.ts"
import type { CarriedWire } from "./Wire.ts"

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

export interface CarriedVms {
  readonly registry: DaemonState.Registry
  readonly vms: ReadonlyArray<Vm.Vm>
  readonly tickets: ReadonlySet<Ticket>
}

/** The VMs of an earlier daemon. */
export interface EarlierVms {
  readonly vms: ReadonlyArray<Vm.Earlier>
  /** What else it knew, where it has handed over. */
  readonly registry?: DaemonState.Registry
  /** The connections of VMs whose agents had not said READY, by id. */
  readonly booting: ReadonlyMap<string, Carried>
}

export class VmRegistry extends Context.Service<
  VmRegistry,
  {
    /** Connects to a VM; nobody else sees it before its agent is ready. A failure, or an interruption, frees the id. */
    readonly register: (
      command: RegisterVM,
      ticket: Ticket
    ) => Effect.Effect<Attached, AlreadyRegistered | BadTokenCount | ConnectFailed | TooManySessions | TooManyVms>
    readonly attach: (
      id: string,
      count: number
    ) => Effect.Effect<Attached, UnknownContainer | BadTokenCount | TooManySessions>
    /** Hides a VM. What is attached to it goes on; its sockets are closed when it is gone. */
    readonly unregister: (id: string) => Effect.Effect<void, UnknownContainer>
    /** Completes when a VM has been registered and has come to its end: pod mode's only one. */
    readonly podEnded: Effect.Effect<void>
    /**
     * What a daemon needs that takes this one's place: everything but the connections of clients. `tickets` are those of
     * commands whose replies agents owe. Changes nothing.
     */
    readonly carry: (blobs: DaemonState.Blobs, wire: (carried: CarriedWire) => DaemonState.Wire) => CarriedVms
    /** Takes over what an earlier daemon had. Nothing is read before `begin`. */
    readonly resume: (earlier: EarlierVms) => Effect.Effect<ReadonlyArray<Vm.Vm>>
    /** The clients of an earlier daemon are there again: its VMs go on. */
    readonly begin: Effect.Effect<void>
    /** Every VM that lives, clients see it or not. */
    readonly all: () => ReadonlyArray<Vm.Vm>
  }
>()("cc-proxy/services/VmRegistry") {
  static readonly make = Effect.gen(function* () {
    const settings = yield* Settings
    const clock = yield* Clock.Clock
    const scope = yield* Effect.scope
    const makeVm = yield* Vm.make
    const deadlines = yield* Deadlines
    const states = yield* States
    const run = yield* FiberSet.makeRuntime()
    const changed = new Condition()
    const lostIdMillis = Duration.toMillis(settings.lostIdTimeout)

    const vms = new Map<string, Vm.Vm | "registering">()
    /** All that live, with what is still to be done for those of an earlier daemon. */
    const living = new Set<Vm.Vm>()
    const connecting = new Map<string, Vm.Vm>() // whose agents have not said READY
    const earlierBooting = new Map<string, Carried>()
    let beginnings: Array<() => void> = []
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
      living.delete(vm)
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

    const register = Effect.fnUntraced(function* (command: RegisterVM, ticket: Ticket) {
      const id = command.containerId
      const count = command.numIOStreams ?? 0
      yield* checkCount(count)
      yield* checkTotal(count)
      if (vms.has(id)) return yield* new AlreadyRegistered({ id })
      if (alive >= settings.maxVms) return yield* new TooManyVms({ count: alive + 1, limit: settings.maxVms })
      alive++
      vms.set(id, "registering")
      const vmScope = yield* Scope.fork(scope)
      const sockets = { ctl: command.ctlSerial, io: command.ioSerial, console: command.console ?? undefined }
      const booting = { wires: earlierBooting.get(id), ticket }
      earlierBooting.delete(id)
      const vm = yield* makeVm
        .connect(id, sockets, booting, (made) => void connecting.set(id, made))
        .pipe(
          Scope.provide(vmScope),
          // its records are its own, whoever registered it
          Effect.provideService(References.CurrentLogAnnotations, { vm: id }),
          Effect.onExit((exit) => {
            connecting.delete(id)
            return Exit.isSuccess(exit)
              ? Effect.void
              : Effect.sync(() => vms.delete(id)).pipe(
                  Effect.andThen(Scope.close(vmScope, exit)),
                  Effect.ensuring(Effect.sync(() => alive--))
                )
          })
        )
      vms.set(id, vm)
      lostIds.delete(id)
      const tokens = vm.allocate(count)
      vm.save()
      living.add(vm)
      run(live(vm, vmScope))
      return { vm, tokens }
    })

    const attach = Effect.fnUntraced(function* (id: string, count: number) {
      yield* checkCount(count)
      const vm = vms.get(id)
      if (vm === undefined || vm === "registering") return yield* new UnknownContainer({ id })
      const { restored } = vm
      if (restored !== undefined) yield* restored
      yield* checkTotal(vm.sessions() + count)
      const tokens = vm.allocate(count)
      if (count > 0) vm.save()
      return { vm, tokens }
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

    const carry = (blobs: DaemonState.Blobs, wire: (carried: CarriedWire) => DaemonState.Wire): CarriedVms => {
      const now = elapsedMillis(clock)
      const wall = clock.currentTimeMillisUnsafe()
      const all = Array.from(living)
      const tickets = new Set<Ticket>()
      const carried = all.map((vm) => {
        const { ticket, vm: rest } = vm.carry(blobs, wire, now)
        if (ticket !== undefined) tickets.add(ticket)
        return { ...rest, record: states.recordOf(vm) }
      })
      const booting = Array.from(connecting).flatMap(([id, vm]) => {
        const wires = vm.carryBooting()
        return wires === undefined ? [] : [{ id, ctl: wire(wires.ctl), io: wire(wires.io) }]
      })
      const remembered = Array.from(lostIds, ([id, { until, vm }]) => ({
        id,
        millis: Math.max(until - wall, 0),
        vm: vm !== undefined && living.has(vm) ? all.indexOf(vm) : undefined
      }))
      return { registry: { vms: carried, booting, lostIds: remembered, ended, unregistered }, vms: all, tickets }
    }

    const resumeVm = Effect.fnUntraced(function* (earlier: Vm.Earlier) {
      const { record, rest } = earlier
      const vmScope = yield* Scope.fork(scope)
      const vm = yield* Scope.provide(makeVm.resume(earlier), vmScope)
      alive++
      living.add(vm)
      if (record.registered && record.lost === undefined) vms.set(record.id, vm)
      const connect = record.lost === undefined ? Scope.provide(makeVm.reconnect(vm, earlier), vmScope) : Effect.void
      // what needs no dialling is done before clients are there again
      const exact = rest?.live !== undefined && earlier.wires !== undefined
      if (exact) yield* connect
      beginnings.push(() => {
        vm.resumed(rest)
        run(Effect.andThen(exact ? Effect.void : connect, live(vm, vmScope)))
      })
      return vm
    })

    const resume = Effect.fnUntraced(function* ({ booting, registry, vms: earlier }: EarlierVms) {
      for (const [id, wires] of booting) earlierBooting.set(id, wires)
      const resumed: Array<Vm.Vm> = []
      for (const each of earlier)
        resumed.push(
          yield* Effect.provideService(resumeVm(each), References.CurrentLogAnnotations, { vm: each.record.id })
        )
      if (registry === undefined) return resumed
      ended = registry.ended
      unregistered = registry.unregistered
      for (const { id, millis, vm } of registry.lostIds)
        lostIds.set(id, {
          vm: vm === undefined ? undefined : resumed[vm],
          until: clock.currentTimeMillisUnsafe() + millis
        })
      return resumed
    })

    const begin = Effect.sync(() => {
      const begun = beginnings
      beginnings = []
      for (const each of begun) each()
    })

    return VmRegistry.of({
      register,
      attach,
      unregister,
      podEnded,
      carry,
      resume,
      begin,
      all: () => Array.from(living)
    })
  })

  static readonly layer = Layer.effect(VmRegistry, VmRegistry.make)
}
