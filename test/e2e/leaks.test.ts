/** Nothing stays behind, however everybody dies. */
import { assert, it, vi } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as DaemonProcess from "../support/e2e/DaemonProcess.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import type { RawClient } from "../support/e2e/RawClient.ts"
import * as Scenario from "../support/e2e/Scenario.ts"

const { accepted, attach, boot, connectShim, container, hyper, tokensOf, unregister } = Scenario

/** More lives than the usual 200, for a longer look. */
const lives = Number(process.env["CC_PROXY_E2E_LIVES"] ?? 200)
const seed = Number(process.env["CC_PROXY_E2E_SEED"] ?? Date.now() % 1_000_000)

vi.setConfig({ testTimeout: Math.max(60_000, lives * 150) })

/** A small generator of repeatable choices (mulberry32). */
const makeRandom = (seed: number) => {
  let state = seed
  return (below: number): number => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below
  }
}

/** A pod's life up to a random point, ended in a random way by a random one of those who live in it. */
const life = (daemon: DaemonProcess.Daemon, random: (below: number) => number) =>
  Effect.gen(function* () {
    const { agent, id, runtime, tokens } = yield* boot(daemon, { next: random(2) === 0, streams: 2 })
    const shim = yield* connectShim(daemon, tokens[0])
    if (random(8) === 0) agent.answer(Raw.Ctl.newcontainer, "hold")
    const start = runtime.post(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0]))
    if (random(4) === 0) runtime.post(Raw.Op.hyper, hyper("execcmd", Scenario.exec("c1"), tokens[1])) // waits for its shim
    yield* agent.command(Raw.Ctl.newcontainer)
    if (random(2) === 0) shim.send(Raw.stdin(Scenario.pattern(random(20_000))))
    if (random(2) === 0) agent.sendIo([3, Buffer.alloc(random(100_000))], [4, "err"], [99, "lost"])
    if (random(3) === 0) agent.answer(Raw.Ctl.readfile, "hold")
    const waiting = yield* attach(daemon, id)
    if (random(2) === 0) waiting.post(Raw.Op.hyper, hyper("readfile"))
    if (random(3) === 0) shim.post(Raw.Op.signal, { signalNumber: 10 })
    if (random(2) === 0) agent.exit(3, random(256))
    if (random(3) === 0) yield* daemon.settle
    const ends = [
      () => shim.hangUp(),
      () => shim.send(Raw.command(Raw.Op.disconnectShim)),
      () => shim.send(Raw.header({ type: 7, opcode: 0, length: 0 })),
      () => runtime.hangUp(),
      () => waiting.end(),
      () => agent.closeIo(),
      () => agent.closeCtl(),
      () => agent.powerOff(),
      () => agent.sendCtlBytes(Buffer.alloc(8)),
      () => agent.sendIoBytes(Buffer.alloc(12)),
      () => void start
    ]
    for (let n = random(4); n > 0; n--) ends[random(ends.length)]!()
    if (random(2) === 0) yield* unregister(daemon, id)
  })

/** Descriptors of the daemon once they are at most `goal`, or else the fewest of a number of looks; between looks are round trips. */
const lowest = (daemon: DaemonProcess.Daemon, witness: RawClient, goal = 0) =>
  Effect.gen(function* () {
    let least = Number.POSITIVE_INFINITY
    for (let look = 0; look < 50 && least > goal; look++) {
      for (let trip = 0; trip < 3; trip++) yield* witness.request(Raw.Op.attachVM, { containerId: "nobody's" })
      least = Math.min(least, daemon.child.descriptors)
    }
    return least
  })

it.live(`after ${lives} lives and random deaths descriptors and memory are back (seed ${seed})`, () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start({ args: ["-log", "error"] })
    const random = makeRandom(seed)
    const run = (count: number) =>
      Effect.all(
        Array.from({ length: count }, () => Effect.scoped(life(daemon, random))),
        { concurrency: 4, discard: true }
      )
    const witness = yield* daemon.connect
    // V8 takes its time to collect: what the first lives add tells nothing, what the later ones do does
    yield* run(lives / 2)
    const descriptors = yield* lowest(daemon, witness)
    const before = daemon.child.memory.resident
    yield* run(lives)
    assert.isAtMost(yield* lowest(daemon, witness, descriptors), descriptors)
    assert.isBelow(daemon.child.memory.resident - before, 64 * 1024 * 1024 + lives * 4_096)
    const { runtime } = yield* boot(daemon)
    yield* Scenario.answers(runtime)
    assert.strictEqual(daemon.child.stderr, "")
  })
)

it.live("clients that come and go by the thousand leave nothing", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start()
    const witness = yield* daemon.connect
    const descriptors = yield* lowest(daemon, witness)
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
    assert.isAtMost(yield* lowest(daemon, witness, descriptors + 3), descriptors + 3) // one client, two channels
  })
)
