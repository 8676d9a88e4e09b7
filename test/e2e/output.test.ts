/** What a process prints and how it ends, on the way to its shim. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { SharedDaemon, withDaemon } from "../support/e2e/DaemonProcess.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import * as Scenario from "../support/e2e/Scenario.ts"
import { until } from "../support/e2e/Wait.ts"

const { accepted, boot, connectShim, container, hyper, running } = Scenario

withDaemon()("output", (it) => {
  it.effect("stdout, stderr and the exit status arrive in the agent's order, the status last", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running(yield* SharedDaemon)
      agent.sendIo([3, "a"], [3, "b"], [4, "c"], [3, "d"], [4, "e"])
      agent.exit(3, 42)
      yield* shim.until("the exit", () => shim.exits.length === 1)
      assert.deepStrictEqual(shim.story, ["stdout ab", "stderr c", "stdout d", "stderr e", "exit 42"])
      const last = shim.frames.at(-1)!
      assert.deepStrictEqual([last.type, last.opcode, last.payload.length], [Raw.Type.notification, 0, 1])
    })
  )

  for (const status of [0, 1, 127, 128, 255]) {
    it.effect(`status ${status} arrives as it is`, () =>
      Effect.gen(function* () {
        const { agent, shim } = yield* running(yield* SharedDaemon)
        agent.exit(3, status)
        yield* shim.until("the exit", () => shim.exits.length === 1)
        assert.deepStrictEqual(shim.story, [`exit ${status}`])
      })
    )
  }

  it.effect("one byte before the end of output is output, and two or more after it are still output", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running(yield* SharedDaemon)
      agent.sendIo([3, "\u0007"], [4, "\u0008"], [3], [3, "xy"], [4, "z"], [3, "uvw"], [3, Uint8Array.of(9)])
      yield* shim.until("the exit", () => shim.exits.length === 1)
      assert.strictEqual(shim.stdout.toString(), "\u0007xyuvw")
      assert.strictEqual(shim.stderr.toString(), "\u0008z")
      assert.strictEqual(shim.story.at(-1), "exit 9")
      assert.strictEqual(shim.exits.length, 1)
    })
  )

  it.effect("the end of output and the status may come long after each other, and in pieces", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, shim } = yield* running(daemon)
      const bytes = Buffer.concat([
        Raw.ioMessage(3, "out"),
        Raw.ioMessage(4, "err"),
        Raw.ioMessage(3),
        Raw.ioMessage(3, "\u0005")
      ])
      for (const byte of bytes) {
        agent.sendIoBytes(Uint8Array.of(byte))
        yield* daemon.settle
      }
      yield* shim.until("the exit", () => shim.exits.length === 1)
      assert.deepStrictEqual(shim.story, ["stdout out", "stderr err", "exit 5"])
    })
  )

  it.effect("before the status nothing tells the shim that output has ended", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, shim } = yield* running(daemon)
      agent.sendIo([3, "out"], [3])
      yield* shim.until("the output", () => shim.received.stdout === 3)
      yield* daemon.settle
      assert.strictEqual(shim.frames.length, 2) // ConnectShim's response, and the output
      assert.isFalse(shim.isDropped)
    })
  )

  it.effect("what comes after the status is not delivered", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* running(daemon, { streams: 2 })
      const second = yield* Scenario.runExec(daemon, vm, vm.tokens[1])
      vm.agent.exit(3, 1)
      vm.agent.sendIo([3, "ghost"], [4, "ghost"], [3], [3, Uint8Array.of(2)], [5, "alive"])
      yield* second.until("the output", () => second.received.stdout === 5)
      yield* daemon.settle
      assert.deepStrictEqual(vm.shim.story, ["exit 1"])
    })
  )

  it.effect("a terminal's output all arrives as stdout", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running(yield* SharedDaemon, { process: { terminal: true } })
      agent.sendIo([3, "$ ls\r\n"], [3, "ls: error\r\n"])
      agent.exit(3, 2)
      yield* shim.until("the exit", () => shim.exits.length === 1)
      assert.deepStrictEqual(shim.story, ["stdout $ ls\r\nls: error\r\n", "exit 2"])
    })
  )

  it.effect("data for numbers that nobody has harms nothing", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running(yield* SharedDaemon)
      agent.sendIo([0, "x"], [5, "x"], [999, "x"], [2n ** 63n, "x"], [2n ** 64n - 1n, "x"], [2n ** 32n + 3n, "x"])
      agent.sendIo([7], [7, Uint8Array.of(1)], [3, "mine"])
      yield* shim.until("the output", () => shim.received.stdout > 0)
      assert.deepStrictEqual(shim.story, ["stdout mine"])
      yield* Scenario.answers(runtime)
    })
  )

  it.effect("a process may print and end before its start is answered", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, runtime, tokens } = yield* boot(daemon, { streams: 1 })
      const shim = yield* connectShim(daemon, tokens[0])
      agent.answer(Raw.Ctl.newcontainer, "hold")
      const number = runtime.post(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0]))
      yield* agent.command(Raw.Ctl.newcontainer)
      agent.sendIo([3, "quick"])
      agent.exit(3, 3)
      yield* daemon.settle
      agent.ack()
      accepted(yield* runtime.response(number))
      yield* shim.until("the exit", () => shim.exits.length === 1)
      assert.deepStrictEqual(shim.story, ["stdout quick", "exit 3"])
    })
  )

  it.effect("large output arrives byte for byte, in messages of any size", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running(yield* SharedDaemon)
      const data = Scenario.pattern(8 * 1024 * 1024)
      const sizes = [1, 10_228, 1_024, 7, 64, 4_096, 10_228, 65_536, 333]
      let at = 0
      for (let n = 0; at < data.length; n++) {
        const size = sizes[n % sizes.length]!
        agent.sendIo([3, data.subarray(at, at + size)])
        at += size
      }
      agent.exit(3, 0)
      yield* shim.until("the exit", () => shim.exits.length === 1)
      assert.strictEqual(shim.received.stdout, data.length)
      assert.isTrue(shim.stdout.equals(data))
    })
  )

  it.effect("two shims of one VM get each its own, however it is interleaved", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const vm = yield* running(daemon, { streams: 2 })
      const second = yield* Scenario.runExec(daemon, vm, vm.tokens[1])
      const [one, two] = [Scenario.pattern(400_000, 1), Scenario.pattern(400_000, 2)]
      for (let at = 0; at < 400_000; at += 1_000) {
        vm.agent.sendIo([3, one.subarray(at, at + 1_000)], [5, two.subarray(at, at + 1_000)], [6, "e"])
      }
      vm.agent.exit(5, 5)
      vm.agent.exit(3, 3)
      yield* until("both exits", () => vm.shim.exits.length === 1 && second.exits.length === 1)
      assert.isTrue(vm.shim.stdout.equals(one))
      assert.isTrue(second.stdout.equals(two))
      assert.strictEqual(second.stderr.toString(), "e".repeat(400))
      assert.strictEqual(vm.shim.stderr.length, 0)
      assert.deepStrictEqual([vm.shim.exits, second.exits], [[3], [5]])
    })
  )

  it.effect("an io message of 1 MiB is delivered", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running(yield* SharedDaemon)
      const data = Scenario.pattern(1024 * 1024 - 12)
      agent.sendIo([3, data])
      agent.exit(3, 0)
      yield* shim.until("the exit", () => shim.exits.length === 1)
      assert.isTrue(shim.stdout.equals(data))
    })
  )

  for (const length of [0, 11, 1024 * 1024 + 1, 0xffff_ffff]) {
    it.effect(`an io message that claims ${length} bytes is a lost VM, and no other VM's loss`, () =>
      Effect.gen(function* () {
        const daemon = yield* SharedDaemon
        const { agent, id, shim } = yield* running(daemon)
        const other = yield* running(daemon)
        const head = Raw.ioMessage(3)
        head.writeUInt32BE(length, 8)
        agent.sendIo([3, "last words"])
        agent.sendIoBytes(head)
        yield* shim.dropped()
        assert.deepStrictEqual(shim.story, ["stdout last words"])
        yield* until("the connections' end", () => !agent.connected[0] && !agent.connected[1])
        yield* Scenario.answers(other.runtime)
        accepted(yield* Scenario.register(daemon, id, yield* Scenario.startAgent()))
      })
    )
  }
})
