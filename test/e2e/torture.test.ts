/** A little of each kind of torture; `test/torture` has more of it. */
import { it, layer } from "@effect/vitest"
import { describe } from "vitest"
import * as Baseline from "../support/torture/Baseline.ts"
import * as Exhaustion from "../support/torture/Exhaustion.ts"
import * as Faults from "../support/torture/Faults.ts"
import * as Laggard from "../support/torture/Laggard.ts"
import { hasCompiler, PeerProgram } from "../support/torture/Peer.ts"
import * as Pods from "../support/torture/Pods.ts"
import { make, seed } from "../support/torture/Random.ts"
import * as WireFaults from "../support/torture/WireFaults.ts"

const timeout = 120_000
const MiB = 1024 * 1024

describe(`torture (seed ${seed})`, () => {
  it.live(
    "pods that begin and end together leave nothing",
    () => Baseline.restored((daemon) => Pods.run(daemon, 3, 20)),
    timeout
  )
})

describe.skipIf(!hasCompiler)(`torture with gcc (seed ${seed})`, () => {
  layer(PeerProgram.layer, { excludeTestServices: true })((it) => {
    it.effect(
      "peers that stop and die lose nothing but what the kernel had taken for them, and nobody else notices",
      () =>
        Baseline.restored((daemon) =>
          Faults.run(daemon, {
            random: make(seed),
            spared: 1,
            haunted: 1,
            doomed: 1,
            sessions: 3,
            kills: 2,
            output: 2_000_000,
            stdin: 500_000
          })
        ),
      timeout
    )

    it.effect(
      "a shim that was killed with the status unread leaves it to the next one",
      () => Baseline.restored((daemon) => Faults.afterTheEnd(daemon, make(seed), 3)),
      timeout
    )

    it.effect(
      "streams that are cut anyhow, on small sockets and beside peers that break off, are whole",
      () =>
        Baseline.restored((daemon) =>
          WireFaults.run(daemon, { random: make(seed), rude: 60, output: 500_000, stdin: 200_000 })
        ),
      timeout
    )

    it.effect(
      "shims that do not read hold up nobody in their VM, and get everything when they do",
      () =>
        Baseline.restored((daemon) =>
          Laggard.run(daemon, { random: make(seed), sessions: 4, output: 15 * MiB, memory: 64 * MiB })
        ),
      timeout
    )

    it.effect(
      "a storm of clients that takes all descriptors harms no stream, and is soon forgotten",
      () =>
        Baseline.restored(
          (daemon) => Exhaustion.storm(daemon, { random: make(seed), output: 2 * MiB }, 3),
          Exhaustion.fewDescriptors
        ),
      timeout
    )

    it.effect(
      "a spool whose directory vanishes is made again, and what was in it is missed to the byte",
      () =>
        Baseline.restored(
          (daemon) => Exhaustion.vanishingSpool(daemon, { random: make(seed), output: 2 * MiB }),
          { args: ["-outbox", "64KiB"] },
          Exhaustion.lostFiles
        ),
      timeout
    )

    it.effect.skipIf(!Exhaustion.canMount)(
      "a disk that is full makes one VM wait for the shim that does not read (needs the right to mount)",
      () =>
        Baseline.restored(
          (daemon) => Exhaustion.fullDisk(daemon, { random: make(seed), output: 6 * MiB }),
          Exhaustion.smallDisk(3 * MiB)
        ),
      timeout
    )

    it.effect.skipIf(!Exhaustion.canMount)(
      "a disk that was full and has room again lets a VM go on whose shim still does not read (needs the right to mount)",
      () =>
        Baseline.restored(
          (daemon) => Exhaustion.filledDisk(daemon, { random: make(seed), output: 2 * MiB }),
          Exhaustion.smallDisk(8 * MiB)
        ),
      timeout
    )

    it.effect.skipIf(!Exhaustion.canMount)(
      "a disk that cannot be written for a while loses nothing (needs the right to mount)",
      () =>
        Baseline.restored(
          (daemon) => Exhaustion.readOnlyDisk(daemon, { random: make(seed), output: 2 * MiB }),
          Exhaustion.smallDisk(8 * MiB)
        ),
      timeout
    )
  })
})
