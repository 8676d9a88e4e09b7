import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as TestClock from "effect/testing/TestClock"
import { Command } from "../../src/domain/Frame.ts"
import * as CtlMessage from "../../src/domain/CtlMessage.ts"
import { ack, likeC, refuse, type Respond, silence } from "../support/FakeHyperstart.ts"
import { execCmd, newContainer, register, running, shimFor } from "../support/Pod.ts"
import * as Records from "../support/Records.ts"
import { TestProxy } from "../support/TestProxy.ts"

const { Code } = CtlMessage
const redacted = "token-…"
const call = <A, E>(effect: Effect.Effect<A, E>) => Effect.forkChild(effect, { startImmediately: true })
const version = (api: number) => {
  const payload = new Uint8Array(4)
  new DataView(payload.buffer).setUint32(0, api)
  return payload
}
/** A C agent of API `api`. */
const hyperstart = (api: number): Respond =>
  likeC(({ code }) => ack(code === Code.version ? version(api) : new Uint8Array(0)))

describe("a wait that expires", () => {
  it.effect("is warned of once, with its VM, and costs whoever waited an error, and nobody else anything", () => {
    const log = Records.make()
    const warnings = () =>
      log.records.flatMap(({ annotations, fields, level, msg }) =>
        level === "Warn" ? [{ msg, ...annotations, ...fields }] : []
      )
    return Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 2)
      const other = yield* running("b")
      const second = yield* (yield* TestProxy).connect
      yield* second.ask(Command.AttachVM, { containerId: "a" })
      const shim = yield* shimFor(tokens[0])
      const told = (waits: ReadonlyArray<Effect.Effect<string>>, seconds: number) =>
        Effect.gen(function* () {
          const waiting = yield* Effect.forEach(waits, (wait) => call(wait))
          yield* TestClock.adjust(`${seconds - 1} seconds`)
          for (const wait of waiting) assert.isUndefined(wait.pollUnsafe())
          yield* other.runtime.ask(Command.Hyper, { hyperName: "ping" })
          yield* TestClock.adjust("1 seconds")
          return yield* Effect.forEach(waiting, (wait) => Fiber.join(wait))
        })
      const errors = yield* told(
        [runtime.refused(Command.Hyper, newContainer(tokens[1])), shim.refused(Command.Signal, { signalNumber: 1 })],
        30
      )
      agent.respond = () => silence
      errors.push(
        ...(yield* told(
          [
            runtime.refused(Command.Hyper, { hyperName: "readfile" }),
            second.refused(Command.Hyper, { hyperName: "ping" })
          ],
          60
        ))
      )
      assert.deepStrictEqual(errors, [
        `timeout waiting for shim with token ${redacted}, 30s`,
        "timeout waiting for the process to start, 30s",
        "timeout: no reply from the agent: readfile, 1m",
        "timeout: the agent is busy with an earlier command: ping, 1m"
      ])
      assert.deepStrictEqual(
        warnings(),
        errors.map((msg) => ({ msg, vm: "a" }))
      )
      other.agent.io(3, "as ever")
      yield* other.shim.until(() => other.shim.output() === "as ever")
    }).pipe(Effect.provide(TestProxy.layer().pipe(Layer.provideMerge(log.layer))))
  })
})

describe("starting a process", () => {
  it.effect("gives tokens the numbers 3 and 4, 5 and 6, and leaves the rest of the data alone", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 2)
      yield* shimFor(tokens[0])
      yield* shimFor(tokens[1])
      yield* runtime.ask(
        Command.Hyper,
        `{"hyperName":"newcontainer","tokens":["${tokens[0]}"],"data":{"id":"c1", "limit":9223372036854775807,"process":{"stdio":0,"args":["x"]}}}`
      )
      yield* runtime.ask(Command.Hyper, execCmd(tokens[1], { terminal: true, args: ["y"] }))
      assert.deepStrictEqual(
        agent.commands.map(({ text }) => text),
        [
          '{"id":"c1", "limit":9223372036854775807,"process":{"stderr":4,"stdio":3,"args":["x"]}}',
          '{"container":"c1","process":{"stdio":5,"terminal":true,"args":["y"]}}'
        ]
      )
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("gives processes without a token to the null session, any number of them, and discards their output", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1)
      const shim = yield* shimFor(tokens[0])
      yield* runtime.ask(Command.Hyper, newContainer(undefined))
      yield* runtime.ask(Command.Hyper, execCmd(undefined, { terminal: true }))
      assert.deepStrictEqual(
        agent.commands.map(({ text }) => text),
        ['{"id":"c1","process":{"stdio":1,"stderr":2}}', '{"container":"c1","process":{"stdio":1,"terminal":true}}']
      )
      agent.io(1, "nobody hears this")
      agent.exit(1, 0)
      yield* runtime.ask(Command.Hyper, execCmd(tokens[0]))
      agent.io(3, "heard")
      yield* shim.until(() => shim.output() === "heard")
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("refuses numbers from the client, a missing process, two tokens, and tokens where none are taken", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 2)
      yield* shimFor(tokens[0])
      assert.match(
        yield* runtime.refused(Command.Hyper, newContainer(tokens[0], { stdio: 7 })),
        /process.stdio must be 0 or absent/
      )
      assert.match(
        yield* runtime.refused(Command.Hyper, newContainer(undefined, { stderr: 7 })),
        /process.stderr must be 0 or absent/
      )
      assert.match(
        yield* runtime.refused(Command.Hyper, { hyperName: "execcmd", tokens: [tokens[0]], data: { container: "c1" } }),
        /^malformed execcmd command/
      )
      assert.match(
        yield* runtime.refused(Command.Hyper, { hyperName: "newcontainer" }),
        /^malformed newcontainer command/
      )
      assert.strictEqual(
        yield* runtime.refused(Command.Hyper, { ...newContainer(undefined), tokens }),
        "expected 0 or 1 token, got 2"
      )
      assert.strictEqual(
        yield* runtime.refused(Command.Hyper, { hyperName: "ping", tokens }),
        "ping doesn't need tokens but 2 token(s) were given"
      )
      assert.deepStrictEqual(agent.commands, [])
      yield* runtime.ask(Command.Hyper, newContainer(tokens[0]))
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("refuses unknown tokens, and those of another VM, and shows none of them whole", () =>
    Effect.gen(function* () {
      const a = yield* register("a", 1)
      const b = yield* register("b", 1)
      assert.strictEqual(
        yield* a.runtime.refused(Command.Hyper, newContainer("0123456789012345678901234567890123456789012=")),
        "unknown token: 012345…"
      )
      assert.strictEqual(yield* a.runtime.refused(Command.Hyper, newContainer("short")), "unknown token: …")
      assert.strictEqual(
        yield* a.runtime.refused(Command.Hyper, newContainer(b.tokens[0])),
        `unknown token: ${redacted}`
      )
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("waits for the shim, and holds no turn meanwhile", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1)
      const start = yield* call(runtime.ask(Command.Hyper, newContainer(tokens[0])))
      const other = yield* (yield* TestProxy).connect
      yield* other.ask(Command.AttachVM, { containerId: "a" })
      yield* other.ask(Command.Hyper, { hyperName: "ping" })
      assert.strictEqual(agent.commands.length, 1)
      yield* shimFor(tokens[0])
      yield* Fiber.join(start)
      assert.strictEqual(agent.commands.length, 2)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("gives up after 30 s without a shim, and may be tried again", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1)
      const start = yield* call(runtime.refused(Command.Hyper, newContainer(tokens[0])))
      yield* TestClock.adjust("29 seconds")
      assert.isUndefined(start.pollUnsafe())
      yield* TestClock.adjust("1 seconds")
      assert.strictEqual(yield* Fiber.join(start), `timeout waiting for shim with token ${redacted}, 30s`)
      assert.deepStrictEqual(agent.commands, [])
      yield* shimFor(tokens[0])
      yield* runtime.ask(Command.Hyper, newContainer(tokens[0]))
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("is not sent when its client leaves while it waits", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1)
      const leaver = yield* (yield* TestProxy).connect
      yield* leaver.ask(Command.AttachVM, { containerId: "a" })
      leaver.send(Command.Hyper, newContainer(tokens[0]))
      leaver.leave()
      yield* shimFor(tokens[0])
      yield* runtime.ask(Command.Hyper, newContainer(tokens[0], {}, "another"))
      assert.deepStrictEqual(
        agent.commands.map(({ text }) => JSON.parse(text).id),
        ["another"]
      )
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("leaves the token usable when the agent refuses, and not when it has started", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1)
      yield* shimFor(tokens[0])
      agent.respond = () => refuse("no")
      assert.strictEqual(
        yield* runtime.refused(Command.Hyper, newContainer(tokens[0])),
        "agent refused newcontainer: no"
      )
      agent.respond = () => ack()
      yield* runtime.ask(Command.Hyper, newContainer(tokens[0]))
      assert.strictEqual(
        yield* runtime.refused(Command.Hyper, execCmd(tokens[0])),
        `token already used: ${redacted} has started a process`
      )
    }).pipe(Effect.provide(TestProxy.layer()))
  )
})

describe("signals", () => {
  it.effect("reach a container's init process by killcontainer", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running("a")
      yield* shim.ask(Command.Signal, { signalNumber: 15 })
      yield* shim.ask(Command.Signal, { signalNumber: 0, columns: 0, rows: null })
      assert.deepStrictEqual(
        agent.commands.slice(1).map(({ code, text }) => [code, text]),
        [
          [Code.killcontainer, '{"container":"c1","signal":15,"allProcesses":false}'],
          [Code.killcontainer, '{"container":"c1","signal":0,"allProcesses":false}']
        ]
      )
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("are checked", () =>
    Effect.gen(function* () {
      const { shim } = yield* running("a")
      for (const signalNumber of [-1, 31, 64])
        assert.strictEqual(
          yield* shim.refused(Command.Signal, { signalNumber }),
          `invalid signal number ${signalNumber}`
        )
      assert.match(yield* shim.refused(Command.Signal, { signalNumber: 28, columns: 80 }), /terminal size is invalid/)
      assert.match(yield* shim.refused(Command.Signal, { signalNumber: 15, rows: 1 }), /received a terminal size/)
      yield* shim.ask(Command.Signal, { signalNumber: 30 })
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("wait for the process to start, in order, and hold up nothing else", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1)
      const shim = yield* shimFor(tokens[0])
      shim.send(Command.Signal, { signalNumber: 28, columns: 80, rows: 24 })
      shim.send(Command.Signal, { signalNumber: 10 })
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      assert.strictEqual(shim.responses().length, 1)
      yield* runtime.ask(Command.Hyper, newContainer(tokens[0]))
      yield* shim.until(() => shim.responses().length === 3)
      assert.deepStrictEqual(
        agent.commands.slice(2).map(({ code, text }) => [code, text]),
        [
          [Code.winsize, '{"seq":3,"row":24,"column":80}'],
          [Code.killcontainer, '{"container":"c1","signal":10,"allProcesses":false}']
        ]
      )
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("give up after 30 s without a process", () =>
    Effect.gen(function* () {
      const { tokens } = yield* register("a", 1)
      const shim = yield* shimFor(tokens[0])
      const signal = yield* call(shim.refused(Command.Signal, { signalNumber: 1 }))
      yield* TestClock.adjust("29 seconds")
      assert.isUndefined(signal.pollUnsafe())
      yield* TestClock.adjust("1 seconds")
      assert.strictEqual(yield* Fiber.join(signal), "timeout waiting for the process to start, 30s")
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  for (const signalNumber of [9, 15])
    it.effect(`end a process before its start with status 0, then the response: ${signalNumber}`, () =>
      Effect.gen(function* () {
        const { agent, runtime, tokens } = yield* register("a", 1, { respond: () => silence })
        const shim = yield* shimFor(tokens[0])
        const other = yield* (yield* TestProxy).connect
        yield* other.ask(Command.AttachVM, { containerId: "a" })
        other.send(Command.Hyper, { hyperName: "ping" })
        // the agent is busy with the ping, so the start waits for its turn
        const start = yield* call(runtime.refused(Command.Hyper, newContainer(tokens[0])))
        yield* shim.ask(Command.Signal, { signalNumber })
        assert.deepStrictEqual(
          shim.received.map(({ type }) => type),
          ["response", "exit", "response"]
        )
        assert.strictEqual(shim.status(), 0)
        assert.match(yield* Fiber.join(start), /was killed before its start$/)
        agent.ctl(Code.ack)
        assert.match(yield* runtime.refused(Command.Hyper, newContainer(tokens[0])), /was killed before its start$/)
        assert.deepStrictEqual(
          agent.commands.map(({ code }) => code),
          [Code.ping]
        )
      }).pipe(Effect.provide(TestProxy.layer()))
    )

  it.effect("wait for the ACK where the start has been written", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1, { respond: () => silence })
      const shim = yield* shimFor(tokens[0])
      const start = yield* call(runtime.ask(Command.Hyper, newContainer(tokens[0])))
      const signal = yield* call(shim.ask(Command.Signal, { signalNumber: 9 }))
      yield* Effect.yieldNow
      assert.strictEqual(agent.commands.length, 1)
      agent.respond = () => ack()
      agent.ctl(Code.ack)
      yield* Fiber.join(start)
      yield* Fiber.join(signal)
      assert.strictEqual(agent.commands[1]?.code, Code.killcontainer)
      assert.isUndefined(shim.status())
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("end the process with status 0 where the start that had been written fails", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* register("a", 1, { respond: () => silence })
      const shim = yield* shimFor(tokens[0])
      const start = yield* call(runtime.refused(Command.Hyper, newContainer(tokens[0])))
      const signal = yield* call(shim.ask(Command.Signal, { signalNumber: 9 }))
      agent.ctl(Code.error)
      yield* Fiber.join(start)
      yield* Fiber.join(signal)
      assert.strictEqual(shim.status(), 0)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("reach the process even if the shim dies right behind them", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim } = yield* running("a")
      agent.respond = () => silence
      runtime.send(Command.Hyper, { hyperName: "readfile" })
      yield* agent.until(() => agent.commands.length === 2)
      shim.send(Command.Signal, { signalNumber: 9 })
      shim.leave()
      yield* Effect.yieldNow
      agent.ctl(Code.ack)
      yield* agent.until(() => agent.commands.length === 3)
      assert.strictEqual(agent.commands[2]?.code, Code.killcontainer)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("are refused once the process has ended", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running("a")
      agent.exit(3, 1)
      yield* shim.until(() => shim.status() === 1)
      assert.strictEqual(yield* shim.refused(Command.Signal, { signalNumber: 9 }), "the process has already ended")
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  describe("for a process started by execcmd", () => {
    const exec = Effect.fnUntraced(function* (api: number | "go", id?: string, init: object = { id: "init" }) {
      const pod = yield* running("a", api === "go" ? {} : { respond: hyperstart(api) }, init)
      const shim = yield* shimFor(pod.tokens[1])
      yield* pod.runtime.ask(Command.Hyper, execCmd(pod.tokens[1], id === undefined ? {} : { id }))
      pod.agent.commands.splice(0)
      return { ...pod, shim }
    })

    it.effect("are refused where the agent has no way to send them", () =>
      Effect.gen(function* () {
        const { agent, shim } = yield* exec(4242, "e")
        assert.match(
          yield* shim.refused(Command.Signal, { signalNumber: 9 }),
          /cannot signal a process started by execcmd/
        )
        assert.match(yield* shim.refused(Command.Signal, { signalNumber: 9 }), /cannot signal/)
        assert.deepStrictEqual(
          agent.commands.map(({ code }) => code),
          [Code.version]
        )
      }).pipe(Effect.provide(TestProxy.layer()))
    )

    it.effect("are refused by a Go agent without asking it for its version", () =>
      Effect.gen(function* () {
        const { agent, shim } = yield* exec("go", "e")
        yield* shim.refused(Command.Signal, { signalNumber: 9 })
        assert.deepStrictEqual(agent.commands, [])
      }).pipe(Effect.provide(TestProxy.layer()))
    )

    it.effect("go by signalprocess to an agent that knows it, asked for its version once", () =>
      Effect.gen(function* () {
        const { agent, shim } = yield* exec(4244, "e")
        shim.send(Command.Signal, { signalNumber: 9 })
        shim.send(Command.Signal, { signalNumber: 28, columns: 80, rows: 24 })
        yield* shim.until(() => shim.responses().length === 3)
        assert.deepStrictEqual(
          agent.commands.map(({ code, text }) => [code, text]),
          [
            [Code.version, ""],
            [Code.signalprocess, '{"container":"c1","process":"e","signal":9}'],
            [Code.winsize, '{"container":"c1","process":"e","row":24,"column":80}']
          ]
        )
      }).pipe(Effect.provide(TestProxy.layer()))
    )

    it.effect("are refused where any process of the VM was started without an id", () =>
      Effect.gen(function* () {
        const { agent, shim } = yield* exec(4244, "e", {})
        assert.match(yield* shim.refused(Command.Signal, { signalNumber: 9 }), /was started without/)
        assert.match(
          yield* shim.refused(Command.Signal, { signalNumber: 28, columns: 80, rows: 24 }),
          /was started without/
        )
        assert.deepStrictEqual(
          agent.commands.map(({ code }) => code),
          [Code.version]
        )
      }).pipe(Effect.provide(TestProxy.layer()))
    )

    it.effect("share one question for the version, and its deadline, where the agent does not answer", () =>
      Effect.gen(function* () {
        const { agent, shim } = yield* exec(4244, "e")
        agent.respond = () => silence
        for (let n = 0; n < 5; n++) shim.send(Command.Signal, { signalNumber: 10 })
        yield* TestClock.adjust("59 seconds")
        assert.strictEqual(shim.responses().length, 1)
        yield* TestClock.adjust("1 seconds")
        yield* shim.until(() => shim.responses().length === 6)
        for (const { text } of shim.responses().slice(1)) assert.match(text, /no reply from the agent: version, 1m/)
        agent.respond = hyperstart(4244)
        for (let owed = agent.commands.length; owed > 0; owed--) agent.ctl(Code.ack)
        yield* shim.ask(Command.Signal, { signalNumber: 9 }) // it is asked again
        assert.deepStrictEqual(
          agent.commands.filter(({ code }) => code !== Code.ping).map(({ code }) => code),
          [Code.version, Code.version, Code.signalprocess]
        )
      }).pipe(Effect.provide(TestProxy.layer()))
    )

    it.effect("take an agent that refuses to tell its version for an old one", () =>
      Effect.gen(function* () {
        const { agent, shim } = yield* exec(4242, "e")
        agent.respond = likeC(({ code }) => (code === Code.version ? refuse() : ack()))
        yield* shim.ask(Command.Signal, { signalNumber: 28, columns: 80, rows: 24 })
        assert.strictEqual(agent.commands.at(-1)?.text, '{"seq":5,"row":24,"column":80}')
      }).pipe(Effect.provide(TestProxy.layer()))
    )
  })
})

describe("exits that come as events", () => {
  const finished = (process: string, status: number, container = "c1") =>
    new TextEncoder().encode(JSON.stringify({ container, process, event: "finished", status }))

  it.effect("are delivered after the end of the output, whichever comes first", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* running("a", {}, { id: "init" })
      agent.io(3, "last words")
      agent.ctl(Code.processEvent, finished("init", 9))
      yield* shim.until(() => shim.output() === "last words")
      assert.isUndefined(shim.status())
      agent.io(4, "and stderr")
      agent.io(3, "")
      yield* shim.until(() => shim.status() === 9)
      assert.deepStrictEqual(
        shim.received.map(({ type }) => type),
        ["response", "stdout", "stderr", "exit"]
      )
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  it.effect("find a process without an id: the one whose output has ended, else the container's init", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim, tokens } = yield* running("a")
      const second = yield* shimFor(tokens[1])
      yield* runtime.ask(Command.Hyper, execCmd(tokens[1]))
      agent.io(5, "")
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      agent.ctl(Code.processEvent, finished("(null)", 2))
      yield* second.until(() => second.status() === 2)
      agent.ctl(Code.processEvent, finished("(null)", 3))
      agent.io(3, "")
      yield* shim.until(() => shim.status() === 3)
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  for (const exits of [
    [5, 3],
    [3, 5]
  ] as const)
    it.effect(`of processes without an id may come before the ends of their outputs: ${exits.join(" before ")}`, () =>
      Effect.gen(function* () {
        const { agent, runtime, shim, tokens } = yield* running("a")
        const second = yield* shimFor(tokens[1])
        yield* runtime.ask(Command.Hyper, execCmd(tokens[1]))
        const statuses = () => [shim.status(), second.status()]
        agent.ctl(Code.processEvent, finished("(null)", exits[0]))
        yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
        assert.deepStrictEqual(statuses(), [undefined, undefined])
        agent.io(exits[0], "last words")
        agent.io(exits[0], "")
        const first = exits[0] === 3 ? shim : second
        yield* first.until(() => first.status() === exits[0])
        agent.io(exits[1], "")
        yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
        agent.ctl(Code.processEvent, finished("(null)", exits[1]))
        yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
        assert.deepStrictEqual(statuses(), [3, 5])
      }).pipe(Effect.provide(TestProxy.layer()))
    )

  it.effect("are kept for no more processes than there are", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim, tokens } = yield* running("a")
      const second = yield* shimFor(tokens[1])
      yield* runtime.ask(Command.Hyper, execCmd(tokens[1]))
      for (let n = 0; n < 1000; n++) agent.ctl(Code.processEvent, finished("(null)", n & 0xff))
      agent.io(5, "")
      agent.io(3, "")
      yield* second.until(() => second.status() === 0)
      yield* shim.until(() => shim.status() === 1)
      const { io } = yield* runtime.ask(Command.AttachVM, { containerId: "a", numIOStreams: 1 })
      const third = yield* shimFor(io.tokens[0])
      yield* runtime.ask(Command.Hyper, execCmd(io.tokens[0]))
      agent.io(7, "")
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
      assert.isUndefined(third.status())
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  for (const name of ["e", undefined])
    it.effect(`are not for a start that has not been written: ${name ?? "without an id"}`, () =>
      Effect.gen(function* () {
        const { agent, runtime, tokens } = yield* running("a", {}, { id: "init" })
        const process = name === undefined ? {} : { id: name }
        const one = yield* shimFor(tokens[1])
        yield* runtime.ask(Command.Hyper, execCmd(tokens[1], process))
        one.send(Command.DisconnectShim, {})
        yield* one.until(() => one.ended())
        const { io } = yield* runtime.ask(Command.AttachVM, { containerId: "a", numIOStreams: 1 })
        runtime.send(Command.Hyper, execCmd(io.tokens[0], process)) // waits for its shim
        yield* (yield* (yield* TestProxy).connect).refused(Command.AttachVM, { containerId: "x" })
        agent.ctl(Code.processEvent, finished(name ?? "(null)", 9))
        const two = yield* shimFor(io.tokens[0])
        yield* agent.until(() => agent.commands.length === 3)
        agent.io(7, "")
        agent.ctl(Code.processEvent, finished(name ?? "(null)", 4))
        yield* two.until(() => two.status() !== undefined)
        assert.strictEqual(two.status(), 4)
      }).pipe(Effect.provide(TestProxy.layer()))
    )

  it.effect("are not for a session whose start was refused, nor for an init that has an id", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim, tokens } = yield* running("a", {}, { id: "init" })
      const failed = yield* shimFor(tokens[1])
      agent.respond = () => refuse()
      yield* runtime.refused(Command.Hyper, execCmd(tokens[1], { id: "e1" }))
      agent.respond = () => ack()
      const { io } = yield* runtime.ask(Command.AttachVM, { containerId: "a", numIOStreams: 1 })
      const second = yield* shimFor(io.tokens[0])
      yield* runtime.ask(Command.Hyper, execCmd(io.tokens[0], { id: "e1" }))
      agent.ctl(Code.processEvent, finished("e1", 4))
      agent.ctl(Code.processEvent, finished("(null)", 77))
      agent.io(7, "")
      agent.ctl(Code.processEvent, finished("init", 5))
      agent.io(3, "")
      yield* second.until(() => second.status() === 4)
      yield* shim.until(() => shim.status() === 5)
      assert.isUndefined(failed.status())
    }).pipe(Effect.provide(TestProxy.layer()))
  )

  for (const what of ["a status", "an end of output"])
    it.effect(`come for a start that is then refused are forgotten: ${what}`, () =>
      Effect.gen(function* () {
        const { agent, runtime, tokens } = yield* register("a", 1, { respond: () => silence })
        const shim = yield* shimFor(tokens[0])
        const start = newContainer(tokens[0], { id: "p1" })
        const refused = yield* Effect.forkChild(runtime.refused(Command.Hyper, start), { startImmediately: true })
        yield* agent.until(() => agent.commands.length === 1)
        if (what === "a status") agent.ctl(Code.processEvent, finished("p1", 9))
        else agent.io(3, "")
        agent.ctl(Code.error)
        yield* Fiber.join(refused)
        const started = yield* Effect.forkChild(runtime.ask(Command.Hyper, start), { startImmediately: true })
        yield* agent.until(() => agent.commands.length === 2)
        agent.ctl(Code.ack)
        yield* Fiber.join(started)
        agent.io(3, "x") // one byte, before the end
        agent.exit(3, 4)
        yield* shim.until(() => shim.status() !== undefined)
        assert.strictEqual(shim.output(), "x")
        assert.strictEqual(shim.status(), 4)
      }).pipe(Effect.provide(TestProxy.layer()))
    )

  it.effect("harm nothing where they make no sense", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* running("a", {}, { id: "init" })
      agent.ctl(Code.processEvent, finished("init", 1, "no such container"))
      agent.ctl(Code.processEvent, new TextEncoder().encode("not json"))
      agent.ctl(
        Code.processEvent,
        new TextEncoder().encode('{"container":"c1","process":"init","event":"x","status":1}')
      )
      agent.ctl(Code.signalprocess)
      agent.ctl(99)
      yield* runtime.ask(Command.Hyper, { hyperName: "ping" })
    }).pipe(Effect.provide(TestProxy.layer()))
  )
})
