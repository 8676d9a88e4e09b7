/** Many VMs that begin together, do a little, and go together. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type { Daemon } from "../e2e/DaemonProcess.ts"
import * as Raw from "../e2e/RawBytes.ts"
import * as Scenario from "../e2e/Scenario.ts"
import * as Baseline from "./Baseline.ts"

const all = { concurrency: "unbounded" } as const

/** One container's life: output, a status, and the shim's goodbye. */
const runContainer = Effect.fnUntraced(function* (
  daemon: Daemon,
  { agent, runtime, tokens }: Scenario.Vm,
  nth: number
) {
  const shim = yield* Scenario.connectShim(daemon, tokens[0])
  const start = Scenario.hyper("newcontainer", Scenario.container("c1"), tokens[0])
  Scenario.accepted(yield* runtime.request(Raw.Op.hyper, start, 60))
  const output = Scenario.pattern(20_000, nth)
  for (let at = 0; at < output.length; at += 1_000) agent.sendIo([3, output.subarray(at, at + 1_000)], [4, "."])
  agent.exit(3, nth % 256)
  yield* shim.until("the exit", () => shim.exits.length === 1, 60)
  assert.isTrue(shim.stdout.equals(output))
  assert.strictEqual(shim.stderr.toString(), ".".repeat(20))
  assert.deepStrictEqual(shim.exits, [nth % 256])
  assert.strictEqual(shim.frames.at(-1)!.type, Raw.Type.notification)
  shim.send(Raw.command(Raw.Op.disconnectShim))
  yield* shim.dropped(60)
}, Effect.scoped)

/** A round: all are registered at once, each runs its container, and all are removed at once. */
const round = Effect.fnUntraced(function* (daemon: Daemon, vms: number) {
  const nths = Array.from({ length: vms }, (_, nth) => nth)
  const pods = yield* Effect.forEach(nths, () => Scenario.boot(daemon, { streams: 1 }), all)
  yield* Effect.forEach(pods, (pod, nth) => runContainer(daemon, pod, nth), all)
  yield* Effect.forEach(
    pods,
    ({ agent, id }) =>
      Effect.map(Scenario.unregister(daemon, id), (response) => {
        Scenario.accepted(response)
        agent.powerOff()
      }),
    all
  )
}, Effect.scoped)

/** Each round leaves the daemon's descriptors as it found them; its memory does not grow any more in the second half. */
export const run = Effect.fnUntraced(function* (daemon: Daemon, rounds: number, vms: number) {
  const witness = yield* daemon.connect
  const before = yield* Baseline.descriptors(daemon, witness)
  const resident: Array<number> = []
  for (let n = 0; n < rounds; n++) {
    yield* round(daemon, vms)
    assert.isAtMost(yield* Baseline.descriptors(daemon, witness, before), before)
    resident.push(daemon.child.memory.resident)
  }
  const half = resident[Math.floor(rounds / 2)]!
  assert.isAtMost(resident.at(-1)!, half * 1.1, `bytes in use: ${resident.join(", ")}`)
})
