/** Neighbours that are stopped, go on, and die, under load in both directions. */
import * as Effect from "effect/Effect"
import { spawnSync } from "node:child_process"
import type { Daemon } from "../e2e/DaemonProcess.ts"
import * as Scenario from "../e2e/Scenario.ts"
import * as Load from "./Load.ts"
import type { Peer } from "./Peer.ts"
import { pick, type Random } from "./Random.ts"

export interface Options {
  readonly random: Random
  /** VMs that nothing is done to, VMs whose shims are killed and followed by others, and VMs that are killed themselves. */
  readonly spared: number
  readonly haunted: number
  readonly doomed: number
  readonly sessions: number
  /** Shims of each session of a haunted VM that are killed. */
  readonly kills: number
  /** Bytes of each process's output and of its stdin, about. A C agent's stdin is a tenth of it: it takes 512 bytes in four round trips. */
  readonly output: number
  readonly stdin: number
}

/** Records of random sizes that a process writes and reads: a C agent's are larger than a Go agent's. */
const load = ({ output, random, sessions, stdin }: Options, next: boolean): Load.Options => {
  const max = next ? 10_228 : 1_024
  return {
    random,
    sessions,
    next,
    max,
    records: Math.ceil(output / (max / 2)),
    stdin: Math.ceil(stdin / (Load.maxStdin / 2) / (next ? 10 : 1))
  }
}

/** Bytes behind a stopped shim that fill its socket, and some of the daemon's memory. */
const full = 1024 * 1024

/** A VM that is killed when one of its shims has had a number of records. */
interface Doomed {
  readonly vm: Load.Vm
  readonly at: number
}

/** Bytes that a VM's processes have got rid of. */
const written = (vm: Load.Vm): number => vm.sessions.reduce((sum, { nth }) => sum + vm.agent.slot(nth).output, 0)

/** Kills a VM whose last output the daemon has not read: it stops until the sockets between them are full. */
const killVm = Effect.fnUntraced(function* (daemon: Daemon, vm: Load.Vm) {
  daemon.child.kill("SIGSTOP")
  for (let seen = -1; seen !== written(vm);) {
    seen = written(vm)
    spawnSync("true") // the others have their turn
  }
  yield* vm.agent.kill
  daemon.child.kill("SIGCONT")
  vm.lost = true
})

/** Stops and continues peers and kills those whose time has come, with turns of the daemon between, until `over`. */
const haunt = Effect.fnUntraced(function* (
  daemon: Daemon,
  random: Random,
  haunted: ReadonlyArray<Load.Vm>,
  doomed: ReadonlyArray<Doomed>
) {
  const vms = [...haunted, ...doomed.map(({ vm }) => vm)]
  const stopped = new Set<Peer>()
  while (!vms.every(({ sessions }) => sessions.every(({ over }) => over))) {
    for (const peer of stopped) {
      if (random(3) > 0) continue
      peer.child.kill("SIGCONT")
      stopped.delete(peer)
    }
    if (random(2) === 0) {
      const peer = pick(random, pick(random, vms).peers)
      peer.child.kill("SIGSTOP")
      stopped.add(peer)
    }
    for (const session of haunted.flatMap(({ sessions }) => sessions)) {
      if (!session.due) continue
      if (!session.suicidal || random(30) === 0) yield* session.shim.kill
      else if (session.ahead > full || random(10) === 0) session.shim.child.kill("SIGCONT")
      if (session.shim.child.exit !== undefined) yield* session.connect
    }
    for (const { at, vm } of doomed) {
      if (!vm.lost && vm.sessions.some(({ progress }) => progress >= at)) yield* killVm(daemon, vm)
    }
    yield* daemon.settle
  }
})

/** Stops everybody who is haunted, proves that a VM beside them gets its work done, and lets them go on. */
const whileAllOthersStop = Effect.fnUntraced(function* (daemon: Daemon, vms: ReadonlyArray<Load.Vm>, options: Options) {
  const peers = vms.flatMap((vm) => vm.peers)
  for (const peer of peers) peer.child.kill("SIGSTOP")
  const vm = yield* Load.start(daemon, load(options, false))
  yield* Effect.forEach(vm.sessions, Load.assertWhole)
  for (const peer of peers) peer.child.kill("SIGCONT")
})

/** Runs it all to its end. */
export const run = Effect.fnUntraced(function* (daemon: Daemon, options: Options) {
  const { doomed, haunted, kills, random, spared } = options
  const start = (kills: number) =>
    Effect.suspend(() => Load.start(daemon, { ...load(options, random(2) === 0), kills }))
  const untouched = yield* Effect.replicateEffect(start(0), spared)
  const victims = yield* Effect.replicateEffect(start(kills), haunted)
  const fated = (yield* Effect.replicateEffect(start(0), doomed)).map((vm) => ({
    vm,
    at: random(Math.ceil(vm.options.records / 2))
  }))
  yield* whileAllOthersStop(daemon, [...victims, ...fated.map(({ vm }) => vm)], options)
  yield* haunt(daemon, random, victims, fated)
  for (const vm of [...untouched, ...victims]) {
    yield* Load.started(vm)
    yield* Effect.forEach(vm.sessions, vm.options.kills === 0 ? Load.assertWhole : Load.assertWholeButForKills)
    Scenario.accepted(yield* Scenario.unregister(daemon, vm.id))
  }
  for (const { vm } of fated) yield* Effect.forEach(vm.sessions, Load.assertCutShort)
})

/** Shims that are killed with all they were sent unread, the status too: the next ones must not wait for it. */
export const afterTheEnd = Effect.fnUntraced(function* (daemon: Daemon, random: Random, sessions: number) {
  const vm = yield* Load.start(daemon, { random, sessions, records: 5, max: 1_024, hold: () => true })
  yield* Load.started(vm)
  yield* Effect.forEach(vm.sessions, ({ stdio }) => vm.agent.processReport(stdio, Load.patience))
  yield* daemon.settle
  for (const session of vm.sessions) {
    yield* session.shim.kill
    yield* session.connect
    yield* Load.assertWholeButForKills(session)
  }
  Scenario.accepted(yield* Scenario.unregister(daemon, vm.id))
})
