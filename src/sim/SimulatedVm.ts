/**
 * A virtual machine that is none: hyperstart as the proxy meets it behind QEMU's sockets, with real processes of this host in
 * the place of containers. For demonstrations and end-to-end tests.
 *
 * What it keeps of a real one: the order and number of replies, the sizes of messages, where output waits, what a lost
 * connection loses, the limits of stdin, and the messages that an agent does not survive. What it leaves out: images, networks,
 * users and namespaces; `startpod` need not come first.
 *
 * Source: PROTOCOL.md, "Agent protocol" and "Agents".
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as Os from "node:os"
import * as AgentModel from "./AgentModel.ts"
import * as GuestAgent from "./GuestAgent.ts"
import * as GuestContainers from "./GuestContainers.ts"
import * as QemuSocket from "./QemuSocket.ts"

export interface Options {
  readonly ctlPath: string
  readonly ioPath: string
  /** Without it the VM has no console. */
  readonly consolePath?: string | undefined
  /** `c` unless told otherwise. */
  readonly agent?: "c" | "go" | undefined
}

export type StopReason = "powerOff" | GuestAgent.End

/** What tests and demonstrations want to know of a container. */
export interface ContainerStatus {
  readonly id: string
  /** Whether its init process lives. */
  readonly running: boolean
  /** The processes that commands have started and whose end has not been told. */
  readonly pids: ReadonlyArray<number>
}

export interface SimulatedVm {
  readonly ctlPath: string
  readonly ioPath: string
  readonly consolePath: string | undefined
  /** Ends the VM: first its sockets, then its processes. Returns when all are gone. */
  readonly powerOff: Effect.Effect<void>
  /** Waits until the VM is gone. */
  readonly stopped: Effect.Effect<StopReason>
  readonly containers: () => ReadonlyArray<ContainerStatus>
  /** Bytes of stdin that the C agent has dropped because they did not fit in its buffer. */
  readonly droppedStdin: () => number
}

/** Starts a VM, which sends READY to the first client of ctl. The scope powers it off. */
export const make = Effect.fnUntraced(function* (
  options: Options
): Effect.fn.Return<SimulatedVm, QemuSocket.SocketError, Scope.Scope> {
  const reason = yield* Deferred.make<StopReason>()
  const gone = yield* Deferred.make<StopReason>()
  const scope = yield* Scope.fork(yield* Effect.scope)
  const turnOff = Deferred.succeed(reason, "powerOff")
  yield* Scope.addFinalizer(scope, Effect.andThen(turnOff, Deferred.completeWith(gone, Deferred.await(reason))))
  const containers = yield* boot(options, (end) => Deferred.succeed(reason, end)).pipe(Scope.provide(scope))
  yield* Deferred.await(reason).pipe(
    Effect.andThen(Effect.uninterruptible(Scope.close(scope, Exit.void))),
    Effect.forkScoped
  )
  return {
    ctlPath: options.ctlPath,
    ioPath: options.ioPath,
    consolePath: options.consolePath,
    powerOff: Effect.andThen(turnOff, Effect.asVoid(Deferred.await(gone))),
    stopped: Deferred.await(gone),
    containers: () =>
      Array.from(containers.all(), ({ id, processes, running }) => ({
        id,
        running,
        pids: [...processes].flatMap((guest) => guest.leader()?.pid ?? [])
      })),
    droppedStdin: containers.droppedStdin
  }
})

const boot = Effect.fnUntraced(function* (
  { agent: kind, consolePath, ctlPath, ioPath }: Options,
  stop: (end: GuestAgent.End) => Effect.Effect<unknown>
): Effect.fn.Return<GuestContainers.GuestContainers, QemuSocket.SocketError, Scope.Scope> {
  const agent = kind === "go" ? AgentModel.go : AgentModel.c
  const ctl = QemuSocket.make(ctlPath)
  const io = QemuSocket.make(ioPath)
  const console = consolePath === undefined ? undefined : QemuSocket.make(consolePath)
  const booted = performance.now()
  const report = (line: string) => {
    const seconds = ((performance.now() - booted) / 1000).toFixed(6).padStart(12)
    console?.offer(Buffer.from(`[${seconds}] ${line}\r\n`))
  }
  report(`Linux version ${Os.release()} (simulated)`)
  report(`Run /init as init process`)
  report(`hyperstart: API version ${agent.apiVersion}`)

  // what is acquired last goes first: the loops, the sockets, the processes
  const containers = yield* GuestContainers.make({ agent, report, sendOutput: io.send })
  for (const socket of [ctl, io, ...(console === undefined ? [] : [console])]) yield* socket.listen
  for (const loop of [GuestAgent.control, GuestAgent.stdin]) {
    yield* loop({ agent, containers, ctl, io }).pipe(Effect.flatMap(stop), Effect.forkScoped)
  }
  if (console !== undefined) yield* Effect.forkScoped(Effect.forever(console.pull)) // nobody reads what is typed at it
  return containers
})
