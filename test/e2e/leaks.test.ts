/** Nothing stays behind, however everybody dies. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as DaemonProcess from "../support/e2e/DaemonProcess.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import * as Scenario from "../support/e2e/Scenario.ts"
import * as Baseline from "../support/torture/Baseline.ts"
import * as Life from "../support/torture/Life.ts"
import { make, seed } from "../support/torture/Random.ts"

const { accepted, attach, boot, hyper, tokensOf } = Scenario

/** `torture/soak` has more of them. */
const lives = 200

it.live(
  `after ${lives} lives and random deaths descriptors and memory are back (seed ${seed})`,
  () =>
    Effect.gen(function* () {
      const daemon = yield* DaemonProcess.start({ args: ["-log", "error"] })
      const random = make(seed)
      const witness = yield* daemon.connect
      // V8 takes its time to collect: what the first lives add tells nothing, what the later ones do does
      yield* Life.many(daemon, random, lives / 2)
      const descriptors = yield* Baseline.descriptors(daemon, witness)
      const before = daemon.child.memory.resident
      yield* Life.many(daemon, random, lives)
      assert.isAtMost(yield* Baseline.descriptors(daemon, witness, descriptors), descriptors)
      assert.isBelow(daemon.child.memory.resident - before, 64 * 1024 * 1024 + lives * 4_096)
      const { runtime } = yield* boot(daemon)
      yield* Scenario.answers(runtime)
      assert.strictEqual(daemon.child.stderr, "")
    }),
  60_000
)

it.live("clients that come and go by the thousand leave nothing", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start()
    const witness = yield* daemon.connect
    const descriptors = yield* Baseline.descriptors(daemon, witness)
    const { id } = yield* boot(daemon)
    const visit = Effect.scoped(
      Effect.gen(function* () {
        const client = yield* attach(daemon, id)
        accepted(yield* client.request(Raw.Op.hyper, hyper("ping")))
        tokensOf(yield* client.request(Raw.Op.attachVM, { containerId: id, numIOStreams: 1 }))
      })
    )
    yield* Effect.all(
      Array.from({ length: 1_000 }, () => visit),
      { concurrency: 8, discard: true }
    )
    assert.isAtMost(yield* Baseline.descriptors(daemon, witness, descriptors + 3), descriptors + 3) // one client, two channels
  })
)
