/**
 * Agents that break every rule of theirs. Whatever a VM does, its clients get an answer or an error in time, another VM on the
 * same daemon notices nothing, the log stays short, and nothing is left.
 */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type Daemon, SharedDaemon, withDaemon } from "../support/e2e/DaemonProcess.ts"
import type * as FakeAgent from "../support/e2e/FakeAgent.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import type { RawClient } from "../support/e2e/RawClient.ts"
import * as Scenario from "../support/e2e/Scenario.ts"
import { until } from "../support/e2e/Wait.ts"
import * as Random from "../support/torture/Random.ts"

const { accepted, answers, attach, boot, connectShim, container, exec, freshId, hyper, refused, register, running } =
  Scenario

const mebibyte = 1024 * 1024

const noise = (random: Random.Random, length: number): Buffer =>
  Buffer.from(Uint8Array.from({ length }, () => random(256)))

/** A well-behaved VM, and one round of its work, in which nothing may be missing, late or foreign. */
const bystander = (daemon: Daemon) =>
  Effect.gen(function* () {
    const { agent, runtime, shim } = yield* running(daemon)
    let said = ""
    const unaffected = Effect.gen(function* () {
      const word = `<${said.length}>`
      said += word
      agent.sendIo([3, word])
      yield* shim.until("the output", () => shim.received.stdout >= said.length)
      shim.send(Raw.stdin(word))
      yield* agent.stdinLength(3, said.length)
      yield* answers(runtime)
      assert.strictEqual(shim.stdout.toString(), said)
      assert.strictEqual(agent.stdin(3).toString(), said)
      assert.strictEqual(shim.received.stderr, 0)
      assert.deepStrictEqual(shim.exits, [])
    })
    return { unaffected }
  })

/** Waits until the daemon has no more than `goal` descriptors; between looks are round trips of `witness`. */
const descriptorsAreBack = (daemon: Daemon, witness: RawClient, goal: number) =>
  Effect.gen(function* () {
    for (let look = 0; daemon.child.descriptors > goal; look++) {
      assert.isBelow(look, 200, `${daemon.child.descriptors} descriptors, ${goal} before`)
      yield* witness.request(Raw.Op.attachVM, { containerId: "nobody's" })
    }
  })

interface Stage {
  readonly daemon: Daemon
  /** Another VM works as if nothing were the matter. */
  readonly unaffected: Effect.Effect<void>
}

/** Plays a scene beside a well-behaved VM. It may log `records` warnings at most, and no error, and leaves nothing. */
const beside = <E>(scene: (stage: Stage) => Effect.Effect<unknown, E, Scope.Scope>, records = 4) =>
  Effect.gen(function* () {
    const daemon = yield* SharedDaemon
    const witness = yield* daemon.connect
    yield* daemon.settle
    const descriptors = daemon.child.descriptors
    const logged = daemon.child.log.length
    yield* Effect.scoped(
      Effect.gen(function* () {
        const { unaffected } = yield* bystander(daemon)
        yield* unaffected
        yield* Effect.scoped(scene({ daemon, unaffected }))
        yield* unaffected
      })
    )
    yield* descriptorsAreBack(daemon, witness, descriptors)
    const worse = daemon.child.log
      .slice(logged)
      .filter((record) => record.get("level") !== "info")
      .map((record) => `${record.get("level")} ${record.get("msg")}`)
    assert.isAtMost(worse.length, records, worse.slice(0, 20).join("\n"))
    assert.isUndefined(worse.find((record) => record.startsWith("error")))
  })

/** The proxy has let go of both channels. */
const gone = (agent: FakeAgent.FakeAgent) =>
  until("the end of the VM", () => !agent.connected[0] && !agent.connected[1])

/** A VM's id may be registered again, and its tokens are unknown. */
const free = (daemon: Daemon, { id, tokens }: { readonly id: string; readonly tokens: ReadonlyArray<string> }) =>
  Effect.gen(function* () {
    const client = yield* daemon.connect
    for (const token of tokens) refused(yield* client.request(Raw.Op.connectShim, { token }), "unknown token: ")
    accepted(yield* register(daemon, id, yield* Scenario.startAgent()))
    accepted(yield* Scenario.unregister(daemon, id))
  })

/** Starts a RegisterVM whose response can be waited for. */
const registering = (daemon: Daemon, id: string, agent: FakeAgent.FakeAgent) =>
  Effect.gen(function* () {
    const client = yield* daemon.connect
    const paths = { ctlSerial: agent.ctlPath, ioSerial: agent.ioPath }
    client.post(Raw.Op.registerVM, { containerId: id, numIOStreams: 1, ...paths })
    yield* until("the connections", () => agent.connected[0] && agent.connected[1])
    return client
  })

const ends = [
  ["closes ctl", (agent: FakeAgent.FakeAgent) => agent.closeCtl()],
  ["closes io", (agent: FakeAgent.FakeAgent) => agent.closeIo()],
  ["half-closes ctl", (agent: FakeAgent.FakeAgent) => agent.endCtl()],
  ["half-closes io", (agent: FakeAgent.FakeAgent) => agent.endIo()],
  ["powers off", (agent: FakeAgent.FakeAgent) => agent.powerOff()]
] as const

/** An agent that does what comes to its mind, its clients meanwhile, and its end. */
const life = (daemon: Daemon, random: Random.Random) =>
  Effect.gen(function* () {
    const any = <A>(...choices: ReadonlyArray<A>): A => choices[random(choices.length)]!
    const vm = yield* boot(daemon, { streams: 3, next: random(2) === 0, api: any(4243, 4244) })
    const { agent, id, runtime, tokens } = vm
    const shims = [yield* connectShim(daemon, tokens[0]), yield* connectShim(daemon, tokens[1])]
    const runtimes = [runtime, yield* attach(daemon, id)]
    const asked: Array<readonly [client: RawClient, number: number]> = []
    const ask = (client: RawClient, opcode: number, payload: unknown) =>
      void asked.push([client, client.post(opcode, payload)])
    const { execcmd, killcontainer, newcontainer, ping, readfile, version } = Raw.Ctl
    for (const code of [execcmd, killcontainer, newcontainer, ping, readfile, version])
      agent.answer(code, () => {
        if (random(6) === 0) agent.ack("stray")
        return any<FakeAgent.Answer>({ ack: "" }, { ack: "" }, { ack: { code } }, { error: "no" }, "hold")
      })
    const sequence = () => any(0, 1, 3, 3, 4, 5, 6, 7, 99, 2 ** 40)
    const process = () => any({}, { id: "p" }, { terminal: true })
    const event = () => ({
      container: any("c1", "c2"),
      process: any("p", "(null)"),
      event: "finished",
      status: random(300)
    })
    const deeds = [
      () => ask(any(...runtimes), Raw.Op.hyper, hyper(any("ping", "readfile", "version", "nonsense"))),
      () =>
        ask(any(...runtimes), Raw.Op.hyper, hyper("newcontainer", { id: "c1", process: process() }, any(...tokens))),
      () =>
        ask(any(...runtimes), Raw.Op.hyper, hyper("execcmd", { container: "c1", process: process() }, any(...tokens))),
      () => ask(any(...shims), Raw.Op.signal, { signalNumber: any(1, 9, 15, 99) }),
      () => ask(any(...shims), Raw.Op.signal, { signalNumber: 28, columns: 80, rows: 24 }),
      () => any(...shims).send(Raw.stdin(Buffer.alloc(random(50_000)))),
      () =>
        agent.sendCtl(
          any(Raw.Ctl.ack, Raw.Ctl.error, Raw.Ctl.ready, Raw.Ctl.next, random(256)),
          noise(random, random(20))
        ),
      () => agent.sendCtl(Raw.Ctl.processEvent, event()),
      () => agent.sendIo([sequence(), Buffer.alloc(random(100_000))]),
      () => agent.sendIo([sequence()], [sequence(), Uint8Array.of(random(256))]),
      () => agent.exit(any(3, 5, 7), random(256)),
      () =>
        any(
          () => agent.pauseCtl(),
          () => agent.resumeCtl(),
          () => agent.pauseIo(),
          () => agent.resumeIo()
        )()
    ]
    const ends = [
      () => agent.sendCtlBytes(noise(random, 8 + random(100))),
      () => agent.sendIoBytes(noise(random, 12 + random(100))),
      () => agent.sendCtlBytes(Raw.ctlMessage(Raw.Ctl.ack, "half").subarray(0, 1 + random(11))),
      () => agent.sendIoBytes(Raw.ioMessage(3, "half").subarray(0, 1 + random(15))),
      () => agent.endCtl(),
      () => agent.endIo(),
      () => agent.powerOff()
    ]
    for (let n = random(30); n > 0; n--) {
      any(...deeds)()
      if (random(5) === 0) yield* daemon.settle
    }
    for (let n = random(3); n > 0; n--) any(...ends)()
    if (random(2) === 0) yield* daemon.settle
    agent.close()
    const settled = () => asked.every(([client, number]) => client.responses.length > number || client.isDropped)
    yield* until("every answer", settled)
    for (const shim of shims) yield* shim.dropped()
    for (const { exits } of shims) assert.isAtMost(exits.length, 1)
    accepted(yield* Scenario.unregister(daemon, id)) // drops what was kept for a shim that never came
    yield* daemon.settle
    yield* free(daemon, vm)
  })

const waits = ["-ctl-timeout", "2s", "-ready-timeout", "500ms", "-shim-timeout", "20s", "-process-timeout", "20s"]

withDaemon(...waits)("an agent that", (it) => {
  it.effect("says anything but READY first fails RegisterVM at once; NEXT is nothing", () =>
    beside(
      ({ daemon }) =>
        Effect.gen(function* () {
          const id = freshId()
          for (let code = 0; code < 256; code++) {
            const agent = yield* Scenario.startAgent({ ready: false })
            const client = yield* registering(daemon, id, agent)
            agent.sendCtl(code)
            if (code === Raw.Ctl.next) agent.ready()
            const response = yield* client.response(0)
            if (code === Raw.Ctl.ready || code === Raw.Ctl.next) {
              accepted(response)
              accepted(yield* Scenario.unregister(daemon, id))
              agent.close()
            } else {
              refused(response, "in place of READY")
            }
            yield* gone(agent)
            client.hangUp()
          }
        }),
      254
    )
  )

  for (const [what, say] of [
    ["says nothing", () => {}],
    [
      "says half of READY",
      (agent: FakeAgent.FakeAgent) => agent.sendCtlBytes(Raw.ctlMessage(Raw.Ctl.ready).subarray(0, 7))
    ],
    [
      "says NEXT without end",
      (agent: FakeAgent.FakeAgent) => {
        for (let n = 0; n < 10_000; n++) agent.next(n)
      }
    ],
    ["writes output at once", (agent: FakeAgent.FakeAgent) => agent.sendIo([3, Buffer.alloc(mebibyte / 2)])],
    ["sends what is no message on io", (agent: FakeAgent.FakeAgent) => agent.sendIoBytes(Buffer.alloc(100))]
  ] as const)
    it.effect(`${what}, and not READY, fails RegisterVM in time, and the id is free`, () =>
      beside(({ daemon, unaffected }) =>
        Effect.gen(function* () {
          const id = freshId()
          const agent = yield* Scenario.startAgent({ ready: false })
          const client = yield* registering(daemon, id, agent)
          say(agent)
          yield* unaffected
          refused(yield* client.response(0), "did not say READY, 500ms")
          yield* gone(agent)
          yield* free(daemon, { id, tokens: [] })
        })
      )
    )

  for (const [how, end] of ends)
    it.effect(`${how} with READY leaves no half of a VM`, () =>
      beside(
        ({ daemon }) =>
          Effect.gen(function* () {
            const round = Effect.gen(function* () {
              const id = freshId()
              const agent = yield* Scenario.startAgent({ ready: false })
              const client = yield* registering(daemon, id, agent)
              agent.ready()
              end(agent)
              yield* client.response(0) // whichever came first
              yield* gone(agent)
              yield* free(daemon, { id, tokens: [] })
            })
            yield* Effect.all(
              Array.from({ length: 10 }, () => round),
              { concurrency: "unbounded", discard: true }
            )
          }),
        10
      )
    )

  for (const [how, end] of ends)
    it.effect(`${how} ends all that waits for it: a start, a signal, a command, and what waits behind them`, () =>
      beside(({ daemon, unaffected }) =>
        Effect.gen(function* () {
          const vm = yield* boot(daemon, { streams: 4 })
          const { agent, id, runtime, tokens } = vm
          const started = yield* connectShim(daemon, tokens[0])
          accepted(yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0])))
          const starting = yield* connectShim(daemon, tokens[1])
          const unstarted = yield* connectShim(daemon, tokens[2])
          agent.answer(Raw.Ctl.execcmd, "hold")
          const other = yield* attach(daemon, id)
          const start = runtime.post(Raw.Op.hyper, hyper("execcmd", exec("c1"), tokens[1]))
          yield* agent.command(Raw.Ctl.execcmd)
          const pending = [
            [runtime, start],
            [other, other.post(Raw.Op.hyper, hyper("ping"))],
            [other, other.post(Raw.Op.hyper, hyper("execcmd", exec("c1"), tokens[3]))], // for a shim that never comes
            [started, started.post(Raw.Op.signal, { signalNumber: 10 })],
            [starting, starting.post(Raw.Op.signal, { signalNumber: 9 })],
            [unstarted, unstarted.post(Raw.Op.signal, { signalNumber: 10 })]
          ] as const
          started.send(Raw.stdin(Scenario.pattern(100_000)))
          unstarted.send(Raw.stdin("never read"))
          yield* daemon.settle
          assert.strictEqual(agent.ctl.length, 2)
          end(agent)
          for (const [client, number] of pending) refused(yield* client.response(number), "VM lost")
          for (const shim of [started, starting, unstarted]) yield* shim.dropped()
          yield* gone(agent)
          yield* free(daemon, vm)
          yield* unaffected
        })
      )
    )

  it.effect("never answers is suspect: its clients fail in time, and its late answers are nobody's", () =>
    beside(({ daemon, unaffected }) =>
      Effect.gen(function* () {
        const { agent, id, runtime, shim } = yield* running(daemon)
        const other = yield* attach(daemon, id)
        agent.answer(Raw.Ctl.readfile, "hold")
        agent.answer(Raw.Ctl.ping, "hold")
        const first = runtime.post(Raw.Op.hyper, hyper("readfile"))
        yield* agent.command(Raw.Ctl.readfile)
        const waiting = [
          [other, other.post(Raw.Op.hyper, hyper("pscontainer"))],
          [shim, shim.post(Raw.Op.signal, { signalNumber: 10 })]
        ] as const
        refused(yield* runtime.response(first), "no reply from the agent: readfile, 2s")
        for (const [client, number] of waiting)
          refused(yield* client.response(number), "the agent is busy with an earlier command")
        yield* agent.command(Raw.Ctl.ping)
        yield* unaffected
        agent.answer(Raw.Ctl.pscontainer, { ack: "mine" })
        const last = other.post(Raw.Op.hyper, hyper("pscontainer"))
        yield* daemon.settle
        agent.answer(Raw.Ctl.ping, { ack: "" })
        agent.ack("late")
        for (let n = agent.commands(Raw.Ctl.ping).length; n > 0; n--) agent.ack()
        assert.strictEqual(accepted(yield* other.response(last)).toString(), "mine")
        assert.strictEqual(agent.commands(Raw.Ctl.killcontainer).length, 0)
        yield* answers(runtime)
      })
    )
  )

  it.effect("drops a command, and answers what comes behind it, is in step again", () =>
    beside(({ daemon }) =>
      Effect.gen(function* () {
        const { agent, runtime } = yield* boot(daemon)
        agent.answer(Raw.Ctl.readfile, "hold")
        refused(yield* runtime.request(Raw.Op.hyper, hyper("readfile")), "no reply from the agent")
        agent.answer(Raw.Ctl.pscontainer, { ack: "mine" })
        assert.strictEqual(accepted(yield* runtime.request(Raw.Op.hyper, hyper("pscontainer"))).toString(), "mine")
      })
    )
  )

  it.effect("answers each command twice is told once, and what comes later is not mixed up", () =>
    beside(({ daemon }) =>
      Effect.gen(function* () {
        const { agent, runtime } = yield* boot(daemon)
        agent.answer(Raw.Ctl.readfile, (payload) => {
          agent.ack(payload)
          return { ack: "once more" }
        })
        for (let n = 0; n < 100; n++) {
          assert.strictEqual(accepted(yield* runtime.request(Raw.Op.hyper, hyper("readfile", n))).toString(), String(n))
          yield* daemon.settle
        }
        yield* answers(runtime)
      })
    )
  )

  it.effect("says every code there is between a command and its answer changes nothing", () =>
    beside(({ daemon }) =>
      Effect.gen(function* () {
        const { agent, runtime, shim } = yield* running(daemon)
        agent.answer(Raw.Ctl.readfile, () => {
          for (let code = 0; code < 256; code++) {
            if (code === Raw.Ctl.ack || code === Raw.Ctl.error) continue
            for (const payload of ["", "{}", "\u0000", Scenario.pattern(5000)]) agent.sendCtl(code, payload)
          }
          for (const code of [256, 0x0900_0000, 0xffff_ffff]) agent.sendCtl(code)
          return { ack: "mine" }
        })
        for (let n = 0; n < 3; n++)
          assert.strictEqual(accepted(yield* runtime.request(Raw.Op.hyper, hyper("readfile"))).toString(), "mine")
        assert.deepStrictEqual(shim.exits, [])
      })
    )
  )

  it.effect("sends a ctl message of a length that there is not is lost", () =>
    beside(({ daemon }) =>
      Effect.forEach(
        [0, 1, 2, 3, 4, 5, 6, 7, 16 * mebibyte + 1, 0x8000_0000, 0xffff_ffff],
        Effect.fnUntraced(function* (length) {
          const vm = yield* running(daemon)
          const { agent, runtime, shim } = vm
          agent.answer(Raw.Ctl.readfile, "hold")
          const number = runtime.post(Raw.Op.hyper, hyper("readfile"))
          yield* agent.command(Raw.Ctl.readfile)
          const head = Raw.ctlMessage(Raw.Ctl.ack)
          head.writeUInt32BE(length, 4)
          agent.sendCtlBytes(head)
          refused(yield* runtime.response(number), `VM lost: bad ctl message: length ${length}`)
          yield* shim.dropped()
          yield* gone(agent)
          yield* free(daemon, vm)
        }),
        { concurrency: "unbounded" }
      )
    )
  )

  it.effect("sends half a reply and stops costs that command; with the other half it is in step again", () =>
    beside(
      ({ daemon, unaffected }) =>
        Effect.forEach(
          [1, 7, 8, 9, 100],
          Effect.fnUntraced(function* (length) {
            const { agent, runtime } = yield* boot(daemon)
            agent.answer(Raw.Ctl.readfile, "hold")
            agent.answer(Raw.Ctl.ping, "hold")
            const number = runtime.post(Raw.Op.hyper, hyper("readfile"))
            yield* agent.command(Raw.Ctl.readfile)
            const reply = Raw.ctlMessage(Raw.Ctl.ack, Scenario.pattern(1000))
            agent.sendCtlBytes(reply.subarray(0, length))
            refused(yield* runtime.response(number), "no reply from the agent")
            yield* agent.command(Raw.Ctl.ping)
            agent.answer(Raw.Ctl.pscontainer, { ack: "mine" })
            const next = runtime.post(Raw.Op.hyper, hyper("pscontainer"))
            agent.answer(Raw.Ctl.ping, { ack: "" })
            agent.sendCtlBytes(reply.subarray(length))
            for (let n = agent.commands(Raw.Ctl.ping).length; n > 0; n--) agent.ack()
            assert.strictEqual(accepted(yield* runtime.response(next)).toString(), "mine")
          }),
          { concurrency: "unbounded" }
        ).pipe(Effect.andThen(unaffected)),
      5
    )
  )

  it.effect("sends half a message of output and stops still answers; the half is nobody's output when it ends", () =>
    beside(({ daemon, unaffected }) =>
      Effect.gen(function* () {
        for (const length of [1, 11, 12, 13, 20]) {
          const { agent, runtime, shim } = yield* running(daemon)
          agent.sendIo([3, "whole"])
          agent.sendIoBytes(Raw.ioMessage(3, "only half of this").subarray(0, length))
          yield* shim.until("the output", () => shim.received.stdout === 5)
          yield* answers(runtime)
          yield* unaffected
          agent.powerOff()
          yield* shim.dropped()
          assert.deepStrictEqual(shim.story, ["stdout whole"])
        }
      })
    )
  )

  it.effect("sends an io message of a length that there is not is lost; what came whole before it is delivered", () =>
    beside(({ daemon }) =>
      Effect.forEach(
        [0, 1, 11, mebibyte + 1, 0xffff_ffff],
        Effect.fnUntraced(function* (length) {
          const vm = yield* running(daemon)
          const head = Raw.ioMessage(3)
          head.writeUInt32BE(length, 8)
          vm.agent.sendIoBytes(Buffer.concat([Raw.ioMessage(3, "whole"), head]))
          yield* vm.shim.dropped()
          assert.deepStrictEqual(vm.shim.story, ["stdout whole"])
          refused(yield* vm.runtime.request(Raw.Op.hyper, hyper("ping")), "VM lost: bad io message")
          yield* gone(vm.agent)
          yield* free(daemon, vm)
        }),
        { concurrency: "unbounded" }
      )
    )
  )

  it.effect(
    `sends random bytes for a reply costs its own clients an error, and nobody else anything (seed ${Random.seed})`,
    () =>
      beside(
        ({ daemon, unaffected }) =>
          Effect.gen(function* () {
            const random = Random.make(Random.seed)
            yield* Effect.forEach(
              Array.from({ length: 20 }),
              () =>
                Effect.gen(function* () {
                  const vm = yield* running(daemon)
                  const { agent, runtime, shim } = vm
                  agent.answer(Raw.Ctl.readfile, "hold")
                  const number = runtime.post(Raw.Op.hyper, hyper("readfile"))
                  yield* agent.command(Raw.Ctl.readfile)
                  agent.sendCtlBytes(noise(random, 8 + random(500)))
                  // the length may happen to be one that is waited for
                  refused(yield* runtime.response(number))
                  agent.sendIoBytes(noise(random, 12 + random(500)))
                  agent.close()
                  yield* shim.dropped()
                  assert.deepStrictEqual(shim.exits, [])
                  yield* gone(agent)
                  yield* free(daemon, vm)
                }),
              { concurrency: 4, discard: true }
            )
            yield* unaffected
          }),
        20
      )
  )

  for (const [what, code, payload] of [
    ["READY", Raw.Ctl.ready, ""],
    ["NEXT", Raw.Ctl.next, Buffer.alloc(4)],
    ["ACK", Raw.Ctl.ack, "nobody's"],
    ["ERROR", Raw.Ctl.error, "nobody's"],
    [
      "exits of processes that nobody knows",
      Raw.Ctl.processEvent,
      '{"container":"x","process":"x","event":"finished","status":1}'
    ],
    ["events that make no sense", Raw.Ctl.otherEvent, "{"],
    ["codes that there are not", 99, Scenario.pattern(100)]
  ] as const)
    it.effect(`floods ${what} is told once, and answers as before`, () =>
      beside(
        ({ daemon, unaffected }) =>
          Effect.gen(function* () {
            const { agent, runtime, shim } = yield* running(daemon)
            const one = Raw.ctlMessage(code, payload)
            agent.sendIo([3])
            agent.sendCtlBytes(Buffer.concat(Array.from({ length: 50_000 }, () => one)))
            agent.finished("c1", "c1-init", 7) // the last of it
            yield* unaffected
            yield* shim.until("the exit", () => shim.exits.length === 1)
            agent.answer(Raw.Ctl.readfile, { ack: "mine" })
            assert.strictEqual(accepted(yield* runtime.request(Raw.Op.hyper, hyper("readfile"))).toString(), "mine")
          }),
        1
      )
    )

  it.effect("floods output that belongs to nobody, and to another VM's numbers, is not listened to", () =>
    beside(
      ({ daemon, unaffected }) =>
        Effect.gen(function* () {
          const { agent, runtime, shim } = yield* running(daemon, { streams: 1 })
          const before = daemon.child.memory.resident
          const data = Buffer.alloc(10_000)
          const foreign = [1, 2, 5, 6, 7, 99, 2 ** 31, 2 ** 40, 0xffff_ffff_ffff_ffffn]
          for (let n = 0; n < 200; n++) for (const sequence of foreign) agent.sendIo([sequence, data])
          for (const sequence of foreign) agent.sendIo([sequence], [sequence, Uint8Array.of(1)])
          yield* unaffected
          agent.sendIo([3, "mine"])
          yield* shim.until("the output", () => shim.received.stdout >= 4)
          assert.deepStrictEqual(shim.story, ["stdout mine"])
          assert.isBelow(daemon.child.memory.resident - before, 64 * mebibyte)
          yield* answers(runtime)
        }),
      0
    )
  )

  for (const [reply, say] of [
    ["ACK", { ack: "" }],
    ["ERROR", { error: "changed my mind" }]
  ] as const)
    it.effect(`writes output and a status before the ${reply} of the start has both delivered`, () =>
      beside(({ daemon }) =>
        Effect.gen(function* () {
          const { agent, runtime, tokens } = yield* boot(daemon, { streams: 1 })
          const shim = yield* connectShim(daemon, tokens[0])
          agent.answer(Raw.Ctl.newcontainer, "hold")
          const start = runtime.post(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0]))
          yield* agent.command(Raw.Ctl.newcontainer)
          agent.sendIo([3, "early"], [4, "bird"])
          agent.exit(3, 4)
          yield* shim.until("the exit", () => shim.exits.length === 1)
          if ("ack" in say) agent.ack()
          else agent.fail(say.error)
          const response = yield* runtime.response(start)
          if ("ack" in say) accepted(response)
          else refused(response, say.error)
          assert.deepStrictEqual(shim.story, ["stdout early", "stderr bird", "exit 4"])
        })
      )
    )

  it.effect("ends a process twice, on both streams, with two statuses, has the first one delivered, and last", () =>
    beside(({ daemon }) =>
      Effect.gen(function* () {
        const { agent, runtime, shim } = yield* running(daemon)
        agent.sendIo(
          [4],
          [4, Uint8Array.of(9)],
          [3, "out"],
          [3],
          [3],
          [4],
          [3, "two bytes and more"],
          [3, Uint8Array.of(5)],
          [3, Uint8Array.of(6)],
          [3],
          [3, Uint8Array.of(7)],
          [4, "too late"]
        )
        yield* shim.until("the exit", () => shim.exits.length === 1)
        yield* answers(runtime)
        yield* daemon.settle
        assert.deepStrictEqual(shim.story, ["stderr \u0009", "stdout outtwo bytes and more", "exit 5"])
      })
    )
  )

  it.effect("says all that it says one byte at a time is understood", () =>
    beside(({ daemon }) =>
      Effect.gen(function* () {
        const agent = yield* Scenario.startAgent({ ready: false })
        const trickle = (send: (bytes: Uint8Array) => void, bytes: Uint8Array) =>
          Effect.gen(function* () {
            for (const byte of bytes) {
              send(Uint8Array.of(byte))
              yield* Effect.yieldNow
            }
          })
        const ctl = (code: number, payload: unknown = "") =>
          trickle((bytes) => agent.sendCtlBytes(bytes), Raw.ctlMessage(code, payload))
        const client = yield* registering(daemon, freshId(), agent)
        yield* ctl(Raw.Ctl.ready)
        const [token] = Scenario.tokensOf(yield* client.response(0))
        agent.answer(Raw.Ctl.readfile, "hold")
        const number = client.post(Raw.Op.hyper, hyper("readfile"))
        yield* agent.command(Raw.Ctl.readfile)
        yield* ctl(Raw.Ctl.next, Buffer.alloc(4))
        yield* ctl(Raw.Ctl.ack, "slowly")
        assert.strictEqual(accepted(yield* client.response(number)).toString(), "slowly")
        const shim = yield* connectShim(daemon, token)
        accepted(yield* client.request(Raw.Op.hyper, hyper("newcontainer", container("c1"), token)))
        const output = Buffer.concat([
          Raw.ioMessage(3, "out"),
          Raw.ioMessage(4, "err"),
          Raw.ioMessage(3),
          Raw.ioMessage(3, Uint8Array.of(7))
        ])
        yield* trickle((bytes) => agent.sendIoBytes(bytes), output)
        yield* shim.until("the exit", () => shim.exits.length === 1)
        assert.deepStrictEqual(shim.story, ["stdout out", "stderr err", "exit 7"])
      })
    )
  )

  it.effect("never reads its stdin costs bounded memory; its commands, signals and output go on", () =>
    beside(
      ({ daemon, unaffected }) =>
        Effect.gen(function* () {
          const { agent, runtime, shim } = yield* running(daemon)
          yield* answers(runtime)
          agent.pauseIo()
          const before = daemon.child.memory.resident
          shim.send(Raw.stdin(Scenario.pattern(200_000)))
          accepted(yield* shim.request(Raw.Op.signal, { signalNumber: 10 }))
          for (let n = 0; n < 16; n++) shim.send(Raw.stdin(Buffer.alloc(mebibyte)))
          yield* unaffected
          agent.sendIo([3, "still here"])
          yield* shim.until("the output", () => shim.received.stdout === 10)
          yield* answers(runtime)
          assert.isBelow(daemon.child.memory.resident - before, 64 * mebibyte)
          agent.exit(3, 3)
          yield* shim.until("the exit", () => shim.exits.length === 1)
        }),
      0
    )
  )

  it.effect(
    "never reads its commands costs bounded memory; each fails in time, and when it reads again it is in step",
    () =>
      beside(
        ({ daemon, unaffected }) =>
          Effect.gen(function* () {
            const { agent, id, runtime, shim } = yield* running(daemon)
            const other = yield* attach(daemon, id)
            agent.answer(Raw.Ctl.readfile, { ack: "mine" })
            agent.pauseCtl()
            const before = daemon.child.memory.resident
            const large = `{"hyperName":"writefile","data":"${"x".repeat(3 * mebibyte)}"}`
            const numbers = Array.from({ length: 4 }, () => runtime.post(Raw.Op.hyper, large))
            yield* until("the first of them", () =>
              daemon.child.log.some((record) => record.get("vm") === id && record.get("command") === "writefile")
            )
            const signal = shim.post(Raw.Op.signal, { signalNumber: 15 })
            const waiting = Array.from({ length: 64 }, () => other.post(Raw.Op.hyper, hyper("readfile")))
            yield* unaffected
            agent.sendIo([3, "still here"])
            yield* shim.until("the output", () => shim.received.stdout === 10)
            refused(yield* runtime.response(numbers[0]!), "no reply from the agent: writefile")
            refused(yield* shim.response(signal), "the agent is busy with an earlier command: killcontainer")
            for (const number of waiting)
              refused(yield* other.response(number), "the agent is busy with an earlier command")
            for (const number of numbers.slice(1)) refused(yield* runtime.response(number), "timeout: ")
            assert.isBelow(daemon.child.memory.resident - before, 96 * mebibyte)
            agent.resumeCtl()
            assert.strictEqual(accepted(yield* other.request(Raw.Op.hyper, hyper("readfile"), 30)).toString(), "mine")
            assert.deepStrictEqual(
              agent.codes.filter((code) => code !== Raw.Ctl.ping),
              [Raw.Ctl.newcontainer, Raw.Ctl.writefile, Raw.Ctl.readfile]
            )
          }),
        80
      )
  )

  it.effect(
    `does all of this at random leaves every client with an answer, or with its end (seed ${Random.seed})`,
    () =>
      beside(({ daemon, unaffected }) => {
        const lives = Array.from({ length: 40 }, (_, n) => Effect.scoped(life(daemon, Random.make(Random.seed + n))))
        return Effect.andThen(Effect.all(lives, { concurrency: 4 }), unaffected)
      }, 400)
  )
})
