/**
 * The containers of one simulated VM and the life of their processes: started, their output sent, their end told.
 *
 * A process's end: the empty message on its stdio sequence, then one byte of status, after all output of both streams. As in
 * the C agent a stream ends when the last process that has it open is gone, and with a container's init process everything
 * else in the container.
 *
 * Source: PROTOCOL.md, "The end of a process".
 */
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import type * as Scope from "effect/Scope"
import * as Fs from "node:fs/promises"
import * as Os from "node:os"
import * as Path from "node:path"
import * as IoMessage from "../domain/IoMessage.ts"
import type { AgentModel } from "./AgentModel.ts"
import { CommandRefused, type Process } from "./GuestCommand.ts"
import * as GuestProcess from "./GuestProcess.ts"
import * as ProcessTree from "./ProcessTree.ts"

export interface Container {
  readonly id: string
  /** Its files, a directory of this host. */
  readonly directory: string
  /** Those that have not been told ended. */
  readonly processes: Set<GuestProcess.GuestProcess>
  /** Every process it has had: children may outlive one that was exec'ed. */
  readonly leaders: Array<ProcessTree.Leader>
  init: GuestProcess.GuestProcess | undefined
  /** Whether its init process lives. */
  running: boolean
}

export interface GuestContainers {
  readonly all: () => Iterable<Container>
  readonly get: (id: string) => Effect.Effect<Container, CommandRefused>
  /** Makes a container and starts its init process. */
  readonly create: (id: string, init: Process) => Effect.Effect<void, CommandRefused>
  /** Starts one more process in a container whose init process lives. */
  readonly exec: (id: string, process: Process) => Effect.Effect<void, CommandRefused>
  /** Forgets a container whose init process has ended. */
  readonly remove: (id: string) => Effect.Effect<void, CommandRefused>
  /** Signals a container's init process or, with `all`, everything in the container. */
  readonly signal: (id: string, number: number, all: boolean) => Effect.Effect<void, CommandRefused>
  /** The first process with this stdio sequence that has not been told ended. */
  readonly bySequence: (stdio: number) => GuestProcess.GuestProcess | undefined
  /** One turn of the agent's event loop, for every process's stdin. */
  readonly turn: () => void
  /** Kills everything. */
  readonly killAll: Effect.Effect<void>
  /** Waits until no process is left whose end has not been told. */
  readonly finished: Effect.Effect<void>
  /** Bytes of stdin that were dropped. */
  readonly droppedStdin: () => number
}

export interface Options {
  readonly agent: AgentModel
  readonly sendOutput: (message: Uint8Array) => Effect.Effect<void>
  /** Takes a line for the console. */
  readonly report: (line: string) => void
}

const nothing = new Uint8Array(0)

/** No containers yet. The scope kills whatever has been started and removes the files. */
export const make = Effect.fnUntraced(function* ({
  agent,
  report,
  sendOutput
}: Options): Effect.fn.Return<GuestContainers, never, Scope.Scope> {
  const containers = new Map<string, Container>()
  const processes = new Set<GuestProcess.GuestProcess>()
  const launchers: Array<ProcessTree.Leader> = []
  let created = 0
  let droppedStdin = 0

  const directory = yield* Effect.acquireRelease(
    Effect.promise(() => Fs.mkdtemp(Path.join(Os.tmpdir(), "cc-proxy-vm-"))),
    (path) => Effect.promise(() => Fs.rm(path, { recursive: true, force: true }))
  )
  const killAll = Effect.gen(function* () {
    yield* ProcessTree.killAll(() => [...launchers, ...[...containers.values()].flatMap(({ leaders }) => leaders)])
    for (const guest of processes) yield* guest.exited
  })
  yield* Effect.addFinalizer(() => killAll)
  const lifetimes = yield* FiberSet.make<void>()

  // real time, as the processes have it: the event loop turns by itself soon after stdin has come
  let timer: NodeJS.Timeout | undefined
  const turn = () => {
    clearTimeout(timer)
    timer = undefined
    let more = false
    for (const guest of processes) more = guest.stdin.turn() || more
    if (more) wind()
  }
  const wind = () => {
    timer ??= setTimeout(turn, 1)
  }
  yield* Effect.addFinalizer(() => Effect.sync(() => clearTimeout(timer)))

  const killContainer = (container: Container) =>
    Effect.suspend(() => {
      for (const guest of container.processes) guest.signal(9)
      return ProcessTree.killAll(() => container.leaders)
    })

  const forward = Effect.fnUntraced(function* (output: GuestProcess.Output, sequence: number) {
    const size = agent.maxOutput - IoMessage.headerSize
    for (let bytes = yield* output.pull; bytes !== null; bytes = yield* output.pull) {
      for (let at = 0; at < bytes.length; at += size) {
        yield* sendOutput(IoMessage.encode(sequence, bytes.subarray(at, at + size)))
      }
    }
  })

  const ended = (container: Container, guest: GuestProcess.GuestProcess, status: number) =>
    Effect.suspend(() => {
      report(`container ${container.id}: process ${guest.leader()?.pid ?? "?"} ended, status ${status}`)
      if (guest !== container.init) return Effect.void
      container.running = false
      return killContainer(container)
    })

  const lifetime = Effect.fnUntraced(
    function* (container: Container, guest: GuestProcess.GuestProcess) {
      const { stderr, stdio } = guest.spec
      const [status] = yield* Effect.all(
        [
          Effect.tap(guest.exited, (status) => ended(container, guest, status)),
          forward(guest.stdout, stdio),
          guest.stderr === undefined ? Effect.void : forward(guest.stderr, stderr ?? stdio)
        ],
        { concurrency: "unbounded" }
      )
      processes.delete(guest)
      container.processes.delete(guest)
      yield* sendOutput(IoMessage.encode(stdio, nothing))
      yield* sendOutput(IoMessage.encode(stdio, Uint8Array.of(status)))
    },
    (effect, _container, guest) => Effect.ensuring(effect, Effect.sync(guest.release))
  )

  const start = Effect.fnUntraced(function* (
    container: Container,
    spec: Process
  ): Effect.fn.Return<void, CommandRefused> {
    if (spec.terminal !== true && (spec.stderr ?? 0) < 1) {
      return yield* new CommandRefused({ reason: "a process without a terminal needs a sequence for stderr" })
    }
    // not interruptible: what has been spawned is in the books
    const guest = yield* Effect.uninterruptible(
      Effect.tap(
        GuestProcess.start({
          spec,
          directory,
          makeStdin: (pipe, terminal) =>
            agent.makeStdin({ pipe, terminal, onWork: wind, onDropped: (bytes) => void (droppedStdin += bytes) })
        }),
        (guest) => {
          processes.add(guest)
          container.processes.add(guest)
          container.init ??= guest
          containers.set(container.id, container)
          if (guest.launcher === undefined) enter(container, guest)
          else launchers.push(guest.launcher)
          return FiberSet.run(lifetimes, lifetime(container, guest))
        }
      )
    )
    yield* guest.started
    if (guest.launcher !== undefined) enter(container, guest)
    report(`container ${container.id}: process ${guest.leader()?.pid ?? "?"} started`)
    // init may have ended before this process was in the books
    return yield* container.running ? Effect.void : killContainer(container)
  })

  const enter = (container: Container, guest: GuestProcess.GuestProcess) => {
    const leader = guest.leader()
    if (leader !== undefined) container.leaders.push(leader)
  }

  const get = (id: string) =>
    Effect.suspend(() => {
      const container = containers.get(id)
      return container === undefined
        ? Effect.fail(new CommandRefused({ reason: `no container ${id}` }))
        : Effect.succeed(container)
    })

  return {
    all: () => containers.values(),
    get,
    create: (id, init) =>
      Effect.suspend(() =>
        containers.has(id)
          ? Effect.fail(new CommandRefused({ reason: `container ${id} exists` }))
          : start(
              {
                id,
                directory: Path.join(directory, `container${created++}`),
                processes: new Set(),
                leaders: [],
                init: undefined,
                running: true
              },
              init
            )
      ),
    exec: (id, process) =>
      Effect.flatMap(get(id), (container) =>
        container.running
          ? start(container, process)
          : Effect.fail(new CommandRefused({ reason: `container ${id} has ended` }))
      ),
    remove: (id) =>
      Effect.flatMap(get(id), (container) => {
        if (container.running) return Effect.fail(new CommandRefused({ reason: `container ${id} is running` }))
        return Effect.andThen(
          killContainer(container),
          Effect.sync(() => void containers.delete(id))
        )
      }),
    signal: (id, number, all) =>
      Effect.map(get(id), ({ init, leaders, processes }) => {
        if (!all) return init?.signal(number)
        const signalled = new Set(leaders.map(({ pid }) => pid))
        const descendants = [...ProcessTree.membersOf(leaders)].filter((pid) => !signalled.has(pid))
        for (const guest of processes) guest.signal(number)
        for (const pid of descendants) ProcessTree.signal(pid, number)
      }),
    bySequence(stdio) {
      for (const guest of processes) if (guest.spec.stdio === stdio) return guest
      return undefined
    },
    turn,
    killAll,
    finished: FiberSet.awaitEmpty(lifetimes),
    droppedStdin: () => droppedStdin
  }
})
