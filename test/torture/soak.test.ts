/** Lives by the thousand: what they leave behind would show. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type { Daemon } from "../support/e2e/DaemonProcess.ts"
import * as Scenario from "../support/e2e/Scenario.ts"
import * as Baseline from "../support/torture/Baseline.ts"
import * as Life from "../support/torture/Life.ts"
import { count, make, seed } from "../support/torture/Random.ts"

const lives = count("LIVES", 20_000)

/** Descriptors after all lives are those after the first tenth. So is memory, at its lowest of three looks: V8 collects when it likes. */
const soak = Effect.fnUntraced(function* (daemon: Daemon) {
  const random = make(seed)
  const witness = yield* daemon.connect
  const tenth = Effect.map(Life.many(daemon, random, Math.ceil(lives / 10), 16), () => daemon.child.memory.resident)
  const first = yield* tenth
  const descriptors = yield* Baseline.descriptors(daemon, witness)
  const later = yield* Effect.replicateEffect(tenth, 9)
  assert.isAtMost(yield* Baseline.descriptors(daemon, witness, descriptors), descriptors)
  // it takes some 1,500 lives until V8's heap has its size
  if (lives >= 20_000)
    assert.isAtMost(Math.min(...later.slice(-3)), first * 1.1, `bytes in use: ${[first, ...later].join(", ")}`)
  const { runtime } = yield* Scenario.boot(daemon)
  yield* Scenario.answers(runtime)
})

it.live(
  `after ${lives} lives and random deaths descriptors are back, and memory within 10 % (seed ${seed})`,
  () =>
    // what a lost VM's sessions hold is for shims that may come back: not for long here, or it would be all that is measured
    Baseline.restored(soak, { args: ["-outbox", "64KiB", "-stdin-buffer", "64KiB", "-orphan-timeout", "1s"] }),
  Math.max(60_000, lives * 150)
)
