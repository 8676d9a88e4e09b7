import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberSet from "effect/FiberSet"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import * as CtlMessage from "../../src/domain/CtlMessage.ts"
import * as IoMessage from "../../src/domain/IoMessage.ts"
import type * as CtlChannel from "../../src/services/CtlChannel.ts"
import { Deadlines } from "../../src/services/Deadlines.ts"
import { Hyperstart, type VmSockets } from "../../src/services/Hyperstart.ts"
import { defaults, Settings } from "../../src/services/Settings.ts"
import { concat, toText, utf8 } from "../support/Bytes.ts"
import { type FakeAgent, FakeHyperstart } from "../support/FakeHyperstart.ts"
import * as Records from "../support/Records.ts"

const { Code } = CtlMessage
const now = { startImmediately: true } as const

const services = (settings: Partial<Settings> = {}) =>
  Hyperstart.layer.pipe(
    Layer.provideMerge([FakeHyperstart.layer, Deadlines.layer]),
    Layer.provideMerge(Layer.succeed(Settings, { ...defaults, ...settings }))
  )

/** Connects, and remembers what nobody asked for. */
const connect = Effect.fnUntraced(function* (sockets: VmSockets) {
  const events: Array<string> = []
  const { connect } = yield* Hyperstart
  const connection = yield* connect(sockets, {
    connecting: () => {},
    event: (code, payload) => {
      events.push(`${code} ${toText(payload)}`)
      return undefined
    },
    lost: ({ reason }) => void events.push(`lost: ${reason}`),
    run: yield* FiberSet.makeRuntime()
  })
  return { ...connection, events }
})

const textOf = ({ bytes, end, start }: IoMessage.Run) => {
  const texts: Array<string> = []
  for (let at = start; at < end; at += IoMessage.lengthAt(bytes, at))
    texts.push(toText(bytes.subarray(at + IoMessage.headerSize, at + IoMessage.lengthAt(bytes, at))))
  return texts.join("|")
}

/** All of the output, one entry an array of runs, and what it ended with. */
const read = (output: Stream.Stream<IoMessage.Run, CtlChannel.VmLost>) => {
  const arrays: Array<string> = []
  return Stream.runForEachArray(output, (runs) =>
    Effect.sync(() => void arrays.push(runs.map((run) => `${run.sequence}: ${textOf(run)}`).join(", ")))
  ).pipe(
    Effect.flip,
    Effect.map(({ reason }) => ({ arrays, reason }))
  )
}

const boot = Effect.fnUntraced(function* (name: string, first?: ReadonlyArray<readonly [number, Uint8Array]>) {
  const { boot } = yield* FakeHyperstart
  return boot(name, first === undefined ? {} : { first })
})

const message = (sequence: number, text: string) => IoMessage.encode(sequence, utf8(text))

describe("connecting", () => {
  it.effect("waits for READY, then talks on both channels and passes on what the agent says by itself", () =>
    Effect.gen(function* () {
      const agent = yield* boot("vm", [])
      const connecting = yield* Effect.forkChild(connect(agent.sockets), now)
      yield* Effect.yieldNow
      assert.isUndefined(connecting.pollUnsafe())
      agent.ctl(Code.ready)
      const { ctl, events, input } = yield* Fiber.join(connecting)
      yield* ctl.request({ command: "ping", code: Code.ping, payload: new Uint8Array(0) })
      input.offer([message(3, "stdin")])
      yield* agent.until(() => agent.stdin.length === 1)
      agent.ctl(Code.processEvent, utf8("{}"))
      agent.powerOff()
      assert.isTrue(yield* ctl.ended(0))
      assert.deepStrictEqual(events, ["23 {}", "lost: ctl: vm.ctl closed the connection"])
    }).pipe(Effect.scoped, Effect.provide(services()))
  )

  it.effect("fails at once where io ends before READY, and closes ctl", () =>
    Effect.gen(function* () {
      const agent = yield* boot("vm", [])
      const scope = yield* Scope.make()
      const connecting = yield* Effect.forkChild(Effect.flip(connect(agent.sockets).pipe(Scope.provide(scope))), now)
      agent.close("io")
      const error = yield* Fiber.join(connecting)
      assert.strictEqual(error.message, "VM lost: io: vm.io closed the connection")
      yield* Scope.close(scope, Exit.void)
      yield* agent.until(() => agent.hungUp().includes("ctl"))
    }).pipe(Effect.provide(services()))
  )

  it.effect("warns of every failure", () =>
    Effect.gen(function* () {
      const { layer, records } = Records.make()
      const agent = yield* boot("vm", [])
      for (const sockets of [agent.sockets, { ctl: "black-hole", io: "black-hole" }, { ctl: "none", io: "none" }]) {
        const connecting = yield* Effect.forkChild(
          connect(sockets).pipe(Effect.scoped, Effect.ignore, Effect.provide(layer)),
          now
        )
        yield* TestClock.adjust("30 seconds")
        yield* Fiber.join(connecting)
      }
      assert.deepStrictEqual(
        records.map(({ fields, level, msg }) => [level, msg, String(fields["reason"]).replace(/'s (io|ctl)/, "'s …")]),
        [
          ["Warn", "VM not registered", "timeout: the VM's agent did not say READY, 30s"],
          ["Warn", "VM not registered", "timeout: couldn't connect to the VM's … at black-hole, 5s"],
          ["Warn", "VM not registered", "couldn't connect to the VM's …: none: connect ENOENT none"]
        ]
      )
    }).pipe(Effect.provide(services()))
  )

  it.effect("closes every socket at the end of the scope", () =>
    Effect.gen(function* () {
      const agent = yield* boot("vm")
      yield* Effect.scoped(Effect.andThen(connect(agent.sockets), Effect.yieldNow)) // the console is dialled beside it
      yield* agent.until(() => agent.hungUp().length === 3)
      assert.deepStrictEqual(agent.hungUp().toSorted(), ["console", "ctl", "io"])
    }).pipe(Effect.provide(services({ debug: true })))
  )
})

describe("output", () => {
  it.effect("comes in one array of runs for each read that completed any, and ends with the VM", () =>
    Effect.gen(function* () {
      const agent = yield* boot("vm", [])
      const connecting = yield* Effect.forkChild(connect(agent.sockets), now)
      agent.io(3, "before READY")
      agent.ctl(Code.ready)
      const { output } = yield* Fiber.join(connecting)
      const long = message(3, "long")
      for (const bytes of [
        concat([message(3, "a"), message(3, "b"), message(4, "c"), message(3, "d"), long.subarray(0, 5)]),
        long.subarray(5, 6), // completes nothing
        concat([long.subarray(6), message(5, "")])
      ])
        agent.raw("io", bytes)
      agent.close("io")
      assert.deepStrictEqual(yield* read(output), {
        arrays: ["3: before READY", "3: a|b, 4: c, 3: d", "3: long, 5: "],
        reason: "io: vm.io closed the connection"
      })
    }).pipe(Effect.scoped, Effect.provide(services()))
  )

  it.effect("is given out up to a message that is none", () =>
    Effect.gen(function* () {
      const agent = yield* boot("vm")
      const { output } = yield* connect(agent.sockets)
      agent.raw("io", concat([message(3, "whole"), new Uint8Array(12)]))
      agent.io(3, "nobody knows what this is")
      const { arrays, reason } = yield* read(output)
      assert.deepStrictEqual(arrays, ["3: whole"])
      assert.match(reason, /^bad io message: length 0/)
    }).pipe(Effect.scoped, Effect.provide(services()))
  )
})

describe("at debug", () => {
  const speak = (agent: FakeAgent) =>
    Effect.gen(function* () {
      const { output } = yield* connect(agent.sockets)
      yield* Effect.yieldNow // the console is dialled beside it
      agent.raw("console", utf8("[0.0] Linux version\r\n"))
      agent.io(3, "hello")
      agent.close("io")
      yield* read(output)
      yield* Effect.yieldNow
    }).pipe(Effect.scoped)

  const heard = (records: ReadonlyArray<Records.Record>) =>
    records.map(({ annotations, fields, msg }) => [annotations["source"] ?? fields["io"], msg])

  it.effect("the output is dumped before anybody has it, and the console is followed", () =>
    Effect.gen(function* () {
      const { layer, records } = Records.make()
      yield* Effect.provide(speak(yield* boot("vm")), layer)
      assert.deepStrictEqual(heard(records), [
        ["qemu", "[0.0] Linux version"],
        ["from agent", "00000000  68 65 6c 6c 6f                                    |hello|"]
      ])
    }).pipe(Effect.provide(services({ debug: true })))
  )

  it.effect("only", () =>
    Effect.gen(function* () {
      const { layer, records } = Records.make()
      const agent = yield* boot("vm")
      yield* Effect.provide(speak(agent), layer)
      assert.deepStrictEqual(heard(records), [])
      assert.notInclude(agent.hungUp(), "console") // nobody dialled it
    }).pipe(Effect.provide(services()))
  )

  for (const console of ["", undefined])
    it.effect(`a VM may have no console: ${console === undefined ? "absent" : "empty"}`, () =>
      Effect.gen(function* () {
        const { layer, records } = Records.make()
        const { sockets } = yield* boot("vm")
        yield* Effect.provide(Effect.scoped(Effect.andThen(connect({ ...sockets, console }), Effect.yieldNow)), layer)
        assert.deepStrictEqual(records, [])
      }).pipe(Effect.provide(services({ debug: true })))
    )

  it.effect("a console that cannot be dialled is a warning, and the VM is as good", () =>
    Effect.gen(function* () {
      const { layer, records } = Records.make()
      const { sockets } = yield* boot("vm")
      yield* Effect.gen(function* () {
        const { ctl } = yield* connect({ ...sockets, console: "nowhere" })
        yield* Effect.yieldNow // it is dialled beside the rest
        yield* ctl.request({ command: "ping", code: Code.ping, payload: new Uint8Array(0) })
      }).pipe(Effect.scoped, Effect.provide(layer))
      assert.deepStrictEqual(
        records.map(({ level }) => level),
        ["Warn"]
      )
    }).pipe(Effect.provide(services({ debug: true })))
  )
})
