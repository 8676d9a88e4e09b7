/** A few daemons that follow each other under load; `test/torture/survival` has a hundred. */
import { layer } from "@effect/vitest"
import { describe } from "vitest"
import { hasCompiler, PeerProgram } from "../support/torture/Peer.ts"
import { make, seed } from "../support/torture/Random.ts"
import * as Survival from "../support/torture/Survival.ts"

const MiB = 1024 * 1024
const timeout = 120_000

describe.skipIf(!hasCompiler)(`daemons that follow each other under load (seed ${seed})`, () => {
  layer(PeerProgram.layer, { excludeTestServices: true })((it) => {
    const run = (ways: ReadonlyArray<Survival.Way>, args: ReadonlyArray<string> = []) =>
      Survival.run({ random: make(seed), ways, rounds: 5, vms: 2, output: 2 * MiB, args })

    it.effect(
      "by hand-overs and clean stops lose nothing but what the log admits",
      () => run(["handOver", "stop"], ["-outbox", "64KiB"]),
      timeout
    )

    it.effect("by deaths mix nothing up, and lose nothing but what the log admits", () => run(["kill"]), timeout)
  })
})
