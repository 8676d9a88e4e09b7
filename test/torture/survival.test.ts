/** Daemons that go by the hundred while VMs work. CC_PROXY_TORTURE_GONE tells how many. */
import { layer } from "@effect/vitest"
import { describe } from "vitest"
import { hasCompiler, PeerProgram } from "../support/torture/Peer.ts"
import { count, make, seed } from "../support/torture/Random.ts"
import * as Survival from "../support/torture/Survival.ts"

const timeout = 1_800_000
const rounds = count("GONE", 100)
const MiB = 1024 * 1024

describe.skipIf(!hasCompiler)(`survival (seed ${seed})`, () => {
  layer(PeerProgram.layer, { excludeTestServices: true })((it) => {
    const run = (ways: ReadonlyArray<Survival.Way>, output: number, args: ReadonlyArray<string> = []) =>
      Survival.run({ random: make(seed), ways, rounds, vms: 3, output, args })

    it.effect(`${rounds} hand-overs lose nothing`, () => run(["handOver"], 8 * MiB), timeout)

    it.effect(
      `${rounds} hand-overs and clean stops lose nothing but what the log admits`,
      () => run(["handOver", "stop"], 8 * MiB, ["-outbox", "64KiB"]),
      timeout
    )

    it.effect(
      `${rounds} deaths mix nothing up, and lose nothing but what the log admits`,
      () => run(["kill"], 4 * MiB),
      timeout
    )

    it.effect(
      `${rounds} of all, deaths within hand-overs too`,
      () => run(["handOver", "stop", "kill", "killedOver"], 4 * MiB, ["-outbox", "64KiB"]),
      timeout
    )
  })
})
