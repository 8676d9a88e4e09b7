/** The long forms of `e2e/torture`: more of everything, several times. CC_PROXY_TORTURE_ROUNDS tells how often. */
import { it, layer } from "@effect/vitest"
import { describe } from "vitest"
import * as Baseline from "../support/torture/Baseline.ts"
import * as Exhaustion from "../support/torture/Exhaustion.ts"
import * as Faults from "../support/torture/Faults.ts"
import * as Laggard from "../support/torture/Laggard.ts"
import { hasCompiler, PeerProgram } from "../support/torture/Peer.ts"
import * as Pods from "../support/torture/Pods.ts"
import { count, make, seed } from "../support/torture/Random.ts"
import * as WireFaults from "../support/torture/WireFaults.ts"

const MiB = 1024 * 1024
const timeout = 600_000

/** Each round has a seed of its own, which a run of one round repeats. */
const seeds = Array.from({ length: count("ROUNDS", 3) }, (_, round) => seed + round)

const vms = count("VMS", 110)

describe(`pods (seed ${seed})`, () => {
  it.live(
    `${vms} pods that begin and end together leave nothing, 24 times`,
    () => Baseline.restored((daemon) => Pods.run(daemon, 24, vms)),
    timeout
  )
})

describe.skipIf(!hasCompiler).each(seeds)("torture with gcc (seed %i)", (seed) => {
  const random = make(seed)

  layer(PeerProgram.layer, { excludeTestServices: true })((it) => {
    it.effect(
      "peers that stop and die lose nothing but what the kernel had taken for them, and nobody else notices",
      () =>
        Baseline.restored((daemon) =>
          Faults.run(daemon, {
            random,
            spared: 2,
            haunted: 3,
            doomed: 2,
            sessions: 4,
            kills: 5,
            output: 12 * MiB,
            stdin: 3 * MiB
          })
        ),
      timeout
    )

    it.effect(
      "the same with little memory, so that much waits on disk",
      () =>
        Baseline.restored(
          (daemon) =>
            Faults.run(daemon, {
              random,
              spared: 1,
              haunted: 3,
              doomed: 2,
              sessions: 4,
              kills: 5,
              output: 12 * MiB,
              stdin: 3 * MiB
            }),
          { args: ["-outbox", "64KiB", "-stdin-buffer", "64KiB"] }
        ),
      timeout
    )

    it.effect(
      "shims that were killed with the status unread leave it to the next ones",
      () => Baseline.restored((daemon) => Faults.afterTheEnd(daemon, random, 20)),
      timeout
    )

    it.effect(
      "streams that are cut anyhow, on small sockets and beside peers that break off, are whole",
      () =>
        Baseline.restored((daemon) => WireFaults.run(daemon, { random, rude: 1_000, output: 8 * MiB, stdin: 2 * MiB })),
      timeout
    )

    it.effect(
      "shims that do not read hold up nobody in their VM, and get everything when they do",
      () =>
        Baseline.restored((daemon) =>
          Laggard.run(daemon, { random, sessions: 5, output: 100 * MiB, memory: 96 * MiB })
        ),
      timeout
    )

    it.effect(
      "a storm of clients that takes all descriptors harms no stream, and is soon forgotten",
      () =>
        Baseline.restored(
          (daemon) => Exhaustion.storm(daemon, { random, output: 20 * MiB }, 30),
          Exhaustion.fewDescriptors
        ),
      timeout
    )

    it.effect(
      "a spool whose directory vanishes is made again, and what was in it is missed to the byte",
      () =>
        Baseline.restored(
          (daemon) => Exhaustion.vanishingSpool(daemon, { random, output: 20 * MiB }),
          { args: ["-outbox", "64KiB"] },
          Exhaustion.lostFiles
        ),
      timeout
    )

    it.effect.skipIf(!Exhaustion.canMount)(
      "a disk that is full makes one VM wait for the shim that does not read (needs the right to mount)",
      () =>
        Baseline.restored(
          (daemon) => Exhaustion.fullDisk(daemon, { random, output: 30 * MiB }),
          Exhaustion.smallDisk(8 * MiB)
        ),
      timeout
    )

    it.effect.skipIf(!Exhaustion.canMount)(
      "a disk that was full and has room again lets a VM go on whose shim still does not read (needs the right to mount)",
      () =>
        Baseline.restored(
          (daemon) => Exhaustion.filledDisk(daemon, { random, output: 20 * MiB }),
          Exhaustion.smallDisk(64 * MiB)
        ),
      timeout
    )

    it.effect.skipIf(!Exhaustion.canMount)(
      "a disk that cannot be written for a while loses nothing (needs the right to mount)",
      () =>
        Baseline.restored(
          (daemon) => Exhaustion.readOnlyDisk(daemon, { random, output: 20 * MiB }),
          Exhaustion.smallDisk(64 * MiB)
        ),
      timeout
    )
  })
})
