/** Shims that do not read, beside others whose processes write as much. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type { Daemon } from "../e2e/DaemonProcess.ts"
import * as Scenario from "../e2e/Scenario.ts"
import * as Load from "./Load.ts"
import type { Random } from "./Random.ts"

export interface Options {
  readonly random: Random
  readonly sessions: number
  /** Bytes of each process's output, about. */
  readonly output: number
  /** Bytes by which the daemon's memory may grow. */
  readonly memory: number
}

/** One shim does not read for long, one not before it is killed and followed by another. */
export const run = Effect.fnUntraced(function* (daemon: Daemon, { memory, output, random, sessions }: Options) {
  const before = daemon.child.memory.resident
  const max = 10_228
  const records = Math.ceil(output / (max / 2))
  const vm = yield* Load.start(daemon, { random, sessions, max, records, hold: (nth) => nth < 2 })
  yield* Load.started(vm)
  const [laggard, doomed, ...others] = vm.sessions
  yield* Effect.forEach(others, Load.assertWhole)
  // their processes could write all they had to, and end
  for (const session of [laggard!, doomed!]) {
    yield* vm.agent.processReport(session.stdio, Load.patience)
    assert.strictEqual(session.progress, 0)
  }
  assert.isBelow(daemon.child.memory.peak - before, memory)
  yield* doomed!.shim.kill
  yield* doomed!.connect
  yield* Load.assertWholeButForKills(doomed!)
  laggard!.shim.child.kill("SIGCONT")
  yield* Load.assertWhole(laggard!)
  Scenario.accepted(yield* Scenario.unregister(daemon, vm.id))
})
