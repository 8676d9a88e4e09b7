/** The daemon as systemd's: started by its first client, handed over, restarted, killed, and stopped for a while. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fs from "node:fs"
import * as Client from "../../src/client/index.ts"
import { until } from "../support/e2e/Wait.ts"
import * as Load from "./Load.ts"
import * as Unit from "./Unit.ts"

const agents = ["c", "go"] as const

/** A VM of each kind of agent, with a load. */
const loads = Effect.forEach(agents, Load.start)

/** Whether a VM is known. */
const known = (containerId: string) =>
  Effect.scoped(
    Effect.gen(function* () {
      const client = yield* Client.connect(Unit.socketPath)
      return yield* Client.attachVM(client, { containerId }).pipe(
        Effect.as(true),
        Effect.catchTag("CommandFailed", () => Effect.succeed(false))
      )
    })
  )

/** Waits until systemd has the sockets of so many VMs. */
const kept = (vms: number) => Unit.become("NFileDescriptorStore", (value) => Number(value) === 2 * vms)

describe("the units", () => {
  it.live("are what a package needs: the first client starts the daemon, which says that it is ready", () =>
    Effect.gen(function* () {
      yield* Unit.make()
      assert.strictEqual(yield* Unit.property("ActiveState"), "inactive")
      assert.strictEqual(Fs.statSync(Unit.socketPath).mode & 0o777, 0o660)
      assert.isFalse(yield* known("nobody's"))
      yield* Unit.become("ActiveState", (value) => value !== "activating")
      yield* Unit.healthy
      assert.strictEqual(Fs.statSync("/run/cc-proxy").mode & 0o777, 0o700)
    })
  )

  it.live("stop the daemon cleanly, and their socket with its path", () =>
    Effect.gen(function* () {
      yield* Unit.make()
      yield* Unit.start
      yield* Unit.stop
      const { ActiveState, Result } = yield* Unit.state
      assert.deepStrictEqual([ActiveState, Result], ["inactive", "success"])
      assert.isFalse(yield* known("nobody's"), "its next client starts it again")
      yield* Unit.stopAll
      assert.isFalse(Fs.existsSync(Unit.socketPath))
      assert.strictEqual((yield* Unit.state)["ActiveState"], "inactive")
    })
  )
})

describe("systemctl reload", () => {
  it.live("hands everything over to a new process, five times in a row: no peer sees a close, no byte is lost", () =>
    Effect.gen(function* () {
      yield* Unit.make()
      const vms = yield* loads
      const before = vms.map((vm) => vm.connections())
      const pids = [yield* Unit.mainPid]
      for (let round = 0; round < 5; round++) {
        yield* Unit.reload
        pids.push(yield* Unit.mainPid)
        yield* Unit.healthy
        yield* Effect.forEach(vms, Load.goesOn)
      }
      assert.strictEqual(new Set(pids).size, 6, `each a process of its own: ${pids.join(" ")}`)
      assert.deepStrictEqual(
        pids.map((pid) => Fs.existsSync(`/proc/${pid}`)),
        [false, false, false, false, false, true]
      )
      assert.deepStrictEqual(
        vms.map((vm) => vm.connections()),
        before
      )
      for (const vm of vms) yield* Client.ping(vm.runtime)
      yield* Effect.forEach(vms, Load.finishWhole)
      yield* Unit.healthy
    })
  )

  it.live("fails where the new program does, and the daemon goes on", () =>
    Effect.gen(function* () {
      yield* Unit.make()
      const vm = yield* Load.start("c")
      const before = [yield* Unit.mainPid, vm.connections()]
      yield* Unit.install("#!/bin/sh\nexit 1\n")
      assert.isFalse(yield* Unit.tryReload)
      yield* Unit.healthy
      yield* Load.goesOn(vm)
      yield* Unit.install()
      yield* Load.finishWhole(vm)
      assert.deepStrictEqual([yield* Unit.mainPid, vm.connections()], before)
    })
  )
})

describe("systemctl restart", () => {
  it.live("closes no connection and loses no byte: systemd holds the descriptors meanwhile", () =>
    Effect.gen(function* () {
      yield* Unit.make()
      const vms = yield* loads
      const before = vms.map((vm) => vm.connections())
      for (let round = 0; round < 2; round++) {
        const pid = yield* Unit.mainPid
        yield* Unit.restart
        assert.notStrictEqual(yield* Unit.mainPid, pid)
        yield* Effect.forEach(vms, Load.goesOn)
        yield* kept(vms.length) // the clients are the daemon's own again
      }
      assert.deepStrictEqual(
        vms.map((vm) => vm.connections()),
        before
      )
      for (const vm of vms) yield* Client.ping(vm.runtime)
      yield* Effect.forEach(vms, Load.finishWhole)
      yield* Unit.healthy
    })
  )

  it.live("may be a stop, and a start later: what ended meanwhile is told, its output first", () =>
    Effect.gen(function* () {
      yield* Unit.make()
      const vm = yield* Load.start("c")
      const before = vm.connections()
      const shim = yield* Load.runLate(vm)
      yield* Unit.stop
      yield* Load.endLate(vm)
      assert.deepStrictEqual([yield* Unit.property("ActiveState"), shim.stdout], ["inactive", ""])
      yield* Unit.start
      yield* shim.over
      Load.assertLate(shim, 1)
      yield* Load.goesOn(vm)
      assert.deepStrictEqual(vm.connections(), before)
      yield* Load.finishWhole(vm)
    })
  )

  it.live("is no stop for good: after that, systemctl clean lets go of the VMs", () =>
    Effect.gen(function* () {
      yield* Unit.make()
      const vm = yield* Load.boot("c")
      yield* Unit.stopAll
      assert.deepStrictEqual(
        vm.connections().map(({ length }) => length),
        [1, 1]
      )
      yield* Unit.clean("runtime", "fdstore")
      while (vm.connections().flat().length > 0) yield* Effect.yieldNow
      yield* Unit.start
      assert.isFalse(yield* known(vm.id))
    })
  )

  it.live("finds out that a VM has ended meanwhile: its last output is delivered, then its shims are told", () =>
    Effect.gen(function* () {
      yield* Unit.make()
      const [dying, living] = [yield* Load.boot("c"), yield* Load.start("go")]
      const [idle, shim] = [yield* Load.connect(dying.tokens[0]!), yield* Load.runLate(dying)]
      yield* Unit.stop
      yield* Load.endLate(dying)
      yield* dying.machine.powerOff
      yield* Unit.start
      yield* shim.over
      Load.assertLate(shim, 1)
      yield* idle.over
      assert.include(idle.failure ?? "", "unknown token")
      assert.isFalse(yield* known(dying.id))
      yield* Effect.scoped(
        Effect.flatMap(Client.connect(Unit.socketPath), (client) =>
          Client.unregisterVM(client, { containerId: dying.id })
        )
      )
      yield* Load.finishWhole(living)
      yield* living.machine.powerOff
      yield* kept(0)
    })
  )
})

describe("kill -9", () => {
  /** Kills the daemon, and waits until all shims have connected to the next. */
  const kill = Effect.fnUntraced(function* (vms: ReadonlyArray<Load.Load>) {
    const pid = yield* Unit.mainPid
    process.kill(pid, "SIGKILL")
    yield* until(
      "the shims to connect again",
      () => vms.every(({ reader, writer }) => reader.claims > 1 && writer.claims > 1),
      30
    )
    yield* Unit.become("ActiveState", (value) => value === "active")
    assert.notStrictEqual(yield* Unit.mainPid, pid)
  })

  for (const [name, prepare] of [
    ["the daemon", Effect.void],
    ["the daemon that another one has handed over to", Unit.reload]
  ] as const) {
    it.live(`of ${name}: systemd starts it again, VMs keep their connections, and shims come back and go on`, () =>
      Effect.gen(function* () {
        yield* Unit.make()
        const vms = yield* loads
        yield* prepare
        yield* kept(vms.length)
        const before = vms.map((vm) => vm.connections())
        yield* kill(vms)
        yield* Effect.forEach(vms, Load.goesOn)
        assert.deepStrictEqual(
          vms.map((vm) => vm.connections()),
          before
        )
        assert.strictEqual(yield* Unit.property("NRestarts"), "1")
        yield* Effect.forEach(vms, Load.finishReconnected)
        const log = yield* Unit.journal
        for (const { id } of vms) assert.match(log, new RegExp(`gap possible.* vm="${id}"`))
        for (const token of vms.flatMap(({ tokens }) => tokens)) assert.notInclude(log, token)
        for (const { id } of vms) assert.isTrue(yield* known(id))
      })
    )
  }

  it.live("loses nothing of a VM that is at rest", () =>
    Effect.gen(function* () {
      yield* Unit.make()
      const vm = yield* Load.boot("c")
      const shim = yield* Load.runAlone(vm, 'read -r line; echo "$line"; read -r line; echo "$line"; exit 4')
      yield* shim.type("before\n")
      yield* until("the echo", () => shim.stdout === "before\n")
      yield* kept(1)
      process.kill(yield* Unit.mainPid, "SIGKILL")
      yield* until("the shim to connect again", () => shim.claims === 2, 30)
      yield* shim.type("after\n")
      yield* shim.over
      assert.deepStrictEqual([shim.failure, shim.stdout, shim.status], [undefined, "before\nafter\n", 4])
    })
  )
})

describe("without systemd's store of descriptors", () => {
  it.live("a restart dials the VMs again, shims come back with their tokens, and what ended meanwhile is told", () =>
    Effect.gen(function* () {
      yield* Unit.make("FileDescriptorStoreMax=0")
      const vm = yield* Load.start("c")
      const before = vm.connections()
      const shim = yield* Load.runLate(vm)
      yield* Unit.stopAll
      yield* Load.endLate(vm)
      yield* Unit.start
      yield* shim.over
      Load.assertLate(shim, 2)
      yield* Load.goesOn(vm)
      assert.notDeepEqual(vm.connections(), before)
      yield* Load.finishReconnected(vm)
    })
  )
})
