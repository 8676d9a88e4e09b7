/** Daemons that follow each other while VMs work: by hand-overs, clean stops and deaths, at random moments. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Daemon } from "../e2e/DaemonProcess.ts"
import * as Raw from "../e2e/RawBytes.ts"
import * as Scenario from "../e2e/Scenario.ts"
import * as Survival from "../e2e/Survival.ts"
import * as Load from "./Load.ts"
import { pick, type Random } from "./Random.ts"

/** How a daemon goes; `killedOver`: killed while it hands over, or what has just taken over. */
export type Way = "handOver" | "stop" | "kill" | "killedOver"

export interface Options {
  readonly random: Random
  readonly ways: ReadonlyArray<Way>
  /** How many daemons go. */
  readonly rounds: number
  /** VMs at once, of one process each. */
  readonly vms: number
  /** Bytes of each process's output, about. */
  readonly output: number
  readonly args?: ReadonlyArray<string>
}

/** Status of a process whose own is lost. Source: PROTOCOL.md, "Restarts". */
const unknownStatus = 255

/** Records of stdin for each process: few for a C agent, which takes 512 bytes in four round trips. */
const stdinRecords = { c: 10, go: 100 }

const overAll = (vms: ReadonlyArray<Load.Vm>) => vms.every(({ sessions }) => sessions[0]!.shim.child.exit !== undefined)

/** Asks a VM for files, again and again, and remembers what is no answer to that. */
const ask = Effect.fnUntraced(function* (current: () => Daemon, vm: Load.Vm, wrong: Array<string>) {
  for (let nth = 0; ; nth++) {
    const file = `${vm.id} ${nth} ${"x".repeat(nth % 500)}`
    const asked = Effect.gen(function* () {
      const client = yield* current().connect
      yield* client.request(Raw.Op.attachVM, { containerId: vm.id }, Load.patience)
      const response = yield* client.request(Raw.Op.hyper, Survival.readfile(file), Load.patience)
      const expected = JSON.stringify({ container: "c1", file })
      if (response.flags === 0 && response.payload.toString() !== expected)
        wrong.push(`${expected}: ${response.payload.toString()}`)
    }).pipe(Effect.scoped, Effect.asVoid)
    // where no daemon is, or it goes before it has answered
    yield* Effect.catchCause(asked, () => Effect.sleep("20 millis"))
  }
})

/** What its shim has told when it ended. `exact`: nothing may be missing. */
const finish = Effect.fnUntraced(function* (vm: Load.Vm, exact: boolean) {
  const session = vm.sessions[0]!
  const got = yield* session.shim.shimReport(Load.patience)
  const told = `seed of ${vm.id}: ${JSON.stringify(got)}`
  assert.isUndefined(got.refused, told)
  assert.isUndefined(got.unconnected, told)
  if (exact) {
    const sent = yield* vm.agent.processReport(session.stdio, Load.patience)
    assert.deepStrictEqual([got.gaps, got.first, got.next], [0, 0, vm.options.records], told)
    assert.deepStrictEqual([got.stdout, got.stderr], [sent.stdout, sent.stderr], told)
    assert.strictEqual(got.status, session.status, told)
    assert.deepStrictEqual([got.stdin], sent.stdin, told)
  } else if (got.status !== unknownStatus) assert.strictEqual(got.status, session.status, told)
  return got.gaps > 0 || got.next < vm.options.records || got.status !== session.status
})

/** Runs it all to its end. */
export const run = Effect.fnUntraced(function* (options: Options) {
  const { output, random, rounds, ways } = options
  const start = { args: options.args ?? [] }
  const exact = ways.every((way) => way === "handOver")
  const kills = ways.includes("kill") || ways.includes("killedOver")
  let daemon = yield* Survival.start(start)
  const daemons = [daemon]
  const all: Array<Load.Vm> = []
  const wrong: Array<string> = []
  const load = Effect.gen(function* () {
    const next = random(2) === 0
    const max = next ? 10_228 : 1_024
    const records = Math.ceil(output / (max / 2))
    // stdin that a killed daemon had in memory is lost, and the agent would miss it
    const stdin = kills ? {} : { stdin: next ? stdinRecords.c : stdinRecords.go }
    const vm = yield* Load.start(daemon, {
      random,
      sessions: 1,
      max,
      records,
      next,
      gaps: !exact,
      stay: true,
      ...stdin
    })
    yield* Load.started(vm)
    yield* Effect.forkScoped(ask(() => daemon, vm, wrong))
    all.push(vm)
    return vm
  })
  const follow = Effect.gen(function* () {
    daemon = yield* Survival.next(daemon, start)
    daemons.push(daemon)
  })
  const go: Record<Way, Effect.Effect<void, Error, Scope.Scope>> = {
    handOver: Effect.suspend(() => Effect.asVoid(Survival.handOver(daemon))),
    stop: Effect.andThen(
      Effect.suspend(() => Survival.stop(daemon)),
      follow
    ),
    kill: Effect.andThen(
      Effect.suspend(() => Survival.crash(daemon)),
      follow
    ),
    killedOver: Effect.gen(function* () {
      daemon.child.kill("SIGUSR2")
      for (let n = random(200); n > 0; n--) yield* Effect.yieldNow
      yield* Survival.crash(daemon)
      yield* follow
    })
  }
  let working = yield* Effect.replicateEffect(load, options.vms)
  for (let round = 0; round < rounds; round++) {
    if (overAll(working)) working = yield* Effect.replicateEffect(load, options.vms)
    for (let n = random(10); n > 0; n--) yield* daemon.settle // a random moment
    yield* go[pick(random, ways)]
  }
  let missing = false
  for (const vm of all) missing = (yield* finish(vm, exact)) || missing
  assert.deepStrictEqual(wrong, [])
  const told = daemons.flatMap(Survival.regrets).map((record) => [...record.values()].join(" "))
  if (missing)
    assert.isTrue(
      told.some((text) => text.includes("possible")),
      told.join("\n")
    )
  const errors = daemons.flatMap(({ child }) => child.log).filter((record) => record.get("level") === "error")
  assert.deepStrictEqual(errors, [])
  for (const vm of all) Scenario.accepted(yield* Scenario.unregister(daemon, vm.id))
  for (const vm of all) yield* vm.agent.kill
  yield* Survival.eventually(daemon, "the records' removal", () => Survival.recordsOf(daemon).length === 0)
  yield* Survival.eventually(daemon, "the spool's emptiness", () => Survival.spooled(daemon) === 0)
  yield* Survival.stop(daemon)
}, Effect.scoped)
