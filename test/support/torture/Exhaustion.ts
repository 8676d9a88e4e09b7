/** Descriptors and disks that run out. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { spawnSync } from "node:child_process"
import * as Fs from "node:fs"
import type { Daemon, Options as DaemonOptions } from "../e2e/DaemonProcess.ts"
import * as Raw from "../e2e/RawBytes.ts"
import * as Scenario from "../e2e/Scenario.ts"
import { until } from "../e2e/Wait.ts"
import * as Baseline from "./Baseline.ts"
import * as Load from "./Load.ts"
import type { Random } from "./Random.ts"

export interface Options {
  readonly random: Random
  /** Bytes of each process's output, about. */
  readonly output: number
}

const max = 10_228

const load = ({ output, random }: Options, more: Partial<Load.Options> = {}): Load.Options => ({
  random,
  sessions: 2,
  max,
  records: Math.ceil(output / (max / 2)),
  ...more
})

const finish = Effect.fnUntraced(function* (vm: Load.Vm) {
  yield* Load.started(vm)
  yield* Effect.forEach(vm.sessions, Load.assertWhole)
  Scenario.accepted(yield* Scenario.unregister(vm.daemon, vm.id))
})

// descriptors

/** A daemon with few descriptors, and little memory for what waits: the spool needs descriptors too. */
export const fewDescriptors: DaemonOptions = { shell: 'ulimit -n 128; exec "$0" "$@"', args: ["-outbox", "64KiB"] }

/** More clients than there are descriptors come at once, `rounds` times, while a VM works; and a VM is registered all the same. */
export const storm = Effect.fnUntraced(function* (daemon: Daemon, options: Options, rounds: number) {
  const working = yield* Load.start(daemon, load(options, { hold: (nth) => nth === 0, stdin: 20 }))
  const runtime = yield* daemon.connect
  for (let round = 0; round < rounds; round++) {
    const [served, turnedAway] = yield* Effect.scoped(
      Effect.gen(function* () {
        const clients = yield* Effect.replicateEffect(daemon.connect, 200)
        for (const client of clients) client.post(Raw.Op.attachVM, { containerId: "nobody's" })
        const answered = () => clients.every((client) => client.responses.length > 0 || client.isDropped)
        yield* until("an answer or an end for everybody", answered, Load.patience)
        const agent = yield* Scenario.startAgent()
        const [containerId, ctlSerial, ioSerial] = [Scenario.freshId(), agent.ctlPath, agent.ioPath]
        Scenario.accepted(yield* runtime.request(Raw.Op.registerVM, { containerId, ctlSerial, ioSerial }))
        Scenario.accepted(yield* runtime.request(Raw.Op.unregisterVM, { containerId }))
        const served = clients.filter(({ responses }) => responses[0]?.payload.includes("unknown containerID") === true)
        return [served.length, clients.length - served.length]
      })
    )
    assert.isAbove(served!, 10)
    assert.isAbove(turnedAway!, 10)
  }
  working.sessions[0]!.shim.child.kill("SIGCONT")
  yield* finish(working)
  // all is well again
  yield* finish(yield* Load.start(daemon, load(options)))
  const told = daemon.child.log.length
  assert.isAbove(told, 0)
  assert.isBelow(told, 10 + rounds)
})

// disks

/** Whether this machine lets us have a file system of our own. */
export const canMount = spawnSync("unshare", ["--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).status === 0

/** A daemon whose spool is a file system of `bytes`, which nobody else sees and which goes with it. */
export const smallDisk = (bytes: number): DaemonOptions => {
  const mount = `mkdir "$SPOOL" && mount -t tmpfs -o size=${bytes} tmpfs "$SPOOL"`
  return {
    shell: `exec unshare --mount sh -c '${mount} && exec "$0" "$@"' "$0" "$@"`,
    args: ["-outbox", "64KiB"]
  }
}

/** The spool cannot take more, and the daemon has said so. */
const refusing = (daemon: Daemon) =>
  until(
    "a warning about the spool",
    () => daemon.child.log.some((record) => record.get("msg") === "the spool cannot be written"),
    Load.patience
  )

/** A VM whose first shim does not read, up to the point where the disk takes no more; and one beside it that works. */
const untilRefused = Effect.fnUntraced(function* (daemon: Daemon, options: Options) {
  const vm = yield* Load.start(daemon, load(options, { hold: (nth) => nth === 0 }))
  yield* Load.started(vm)
  yield* refusing(daemon)
  yield* finish(yield* Load.start(daemon, load(options)))
  assert.isBelow(vm.agent.slot(0).next, vm.options.records)
  assert.strictEqual(vm.sessions[0]!.progress, 0)
  return vm
})

/** The disk has room again, and the shim still does not read: the VM goes on by itself. */
const goesOn = Effect.fnUntraced(function* (vm: Load.Vm) {
  const [laggard] = vm.sessions
  yield* vm.agent.processReport(laggard!.stdio, Load.patience)
  assert.strictEqual(laggard!.progress, 0)
})

const letRead = Effect.fnUntraced(function* (vm: Load.Vm) {
  vm.sessions[0]!.shim.child.kill("SIGCONT")
  yield* finish(vm)
})

/** A disk that is smaller than what one shim leaves there: its VM waits for it, and for nothing else. */
export const fullDisk = Effect.fnUntraced(function* (daemon: Daemon, options: Options) {
  yield* letRead(yield* untilRefused(daemon, options))
})

/** A disk that somebody else has filled, and empties again. It must hold the output of both processes. */
export const filledDisk = Effect.fnUntraced(function* (daemon: Daemon, options: Options) {
  const filler = `${Baseline.spoolOf(daemon)}/filler`
  assert.strictEqual(spawnSync("dd", ["if=/dev/zero", `of=${filler}`, "bs=64k"]).status, 1) // until no space is left
  const vm = yield* untilRefused(daemon, options)
  Fs.rmSync(filler)
  yield* goesOn(vm)
  yield* letRead(vm)
})

/** A disk that becomes read-only, and writable again. */
export const readOnlyDisk = Effect.fnUntraced(function* (daemon: Daemon, options: Options) {
  const remount = (how: string) => {
    const mount = ["mount", "-o", `remount,${how}`, Baseline.spool(daemon.directory)]
    assert.strictEqual(spawnSync("nsenter", ["--mount", "--target", String(daemon.child.pid), ...mount]).status, 0)
  }
  remount("ro")
  const vm = yield* untilRefused(daemon, options)
  remount("rw")
  yield* goesOn(vm)
  yield* letRead(vm)
})

/** What the daemon says about files of the spool that somebody else has removed. */
export const lostFiles = /^what waited in the spool is lost$/

/** A spool whose directory goes before it is needed, and again when it holds what a shim has not read. */
export const vanishingSpool = Effect.fnUntraced(function* (daemon: Daemon, options: Options) {
  const remove = () => Fs.rmSync(Baseline.spoolOf(daemon), { recursive: true })
  remove()
  const first = yield* Load.start(daemon, load(options, { hold: (nth) => nth === 0 }))
  yield* goesOn(first)
  yield* letRead(first)
  const vm = yield* Load.start(daemon, load(options, { hold: (nth) => nth === 0, gaps: true }))
  yield* goesOn(vm)
  remove()
  const [robbed, other] = vm.sessions
  robbed!.shim.child.kill("SIGCONT")
  const got = yield* robbed!.shim.shimReport(Load.patience)
  const sent = yield* vm.agent.processReport(robbed!.stdio, Load.patience)
  assert.deepStrictEqual([got.connections, got.first, got.status], [1, 0, robbed!.status])
  // what is missing is what the daemon says: whole frames, with headers of 12 bytes; and maybe a status, which is told again
  const missing = sent.stdout.bytes + sent.stderr.bytes - got.stdout.bytes - got.stderr.bytes
  const lost = daemon.child.log.filter((record) => lostFiles.test(record.get("msg") ?? ""))
  const headers = lost.reduce((sum, record) => sum + Number(record.get("bytes")), 0) - missing
  assert.isAbove(missing, 0)
  assert.isTrue(headers > 0 && headers % 12 <= 1, `${headers} bytes of headers`)
  yield* Load.assertWhole(other!)
  Scenario.accepted(yield* Scenario.unregister(daemon, vm.id))
})
