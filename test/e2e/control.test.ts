/** The control channel: one agent, many clients, and replies without an address. */
import { assert, it as own } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as DaemonProcess from "../support/e2e/DaemonProcess.ts"
import { SharedDaemon, withDaemon } from "../support/e2e/DaemonProcess.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import * as Scenario from "../support/e2e/Scenario.ts"
import { until } from "../support/e2e/Wait.ts"

const { accepted, attach, boot, hyper, refused } = Scenario

const echo = (payload: Buffer) => ({ ack: payload })

withDaemon()("control", (it) => {
  for (const next of [false, true]) {
    it.effect(
      `of 1000 concurrent commands from 8 clients each gets its own reply, ${next ? "NEXTs between" : "no NEXT"}`,
      () =>
        Effect.gen(function* () {
          const daemon = yield* SharedDaemon
          const { agent, id } = yield* boot(daemon, { next })
          agent.answer(Raw.Ctl.readfile, echo)
          const clients = yield* Effect.all(Array.from({ length: 8 }, () => attach(daemon, id)))
          for (let n = 0; n < 125; n++) {
            for (const [c, client] of clients.entries())
              client.post(Raw.Op.hyper, hyper("readfile", { id: `${c}-${n}` }))
          }
          yield* until("1000 replies", () => clients.every(({ responses }) => responses.length === 126))
          for (const [c, { responses }] of clients.entries()) {
            assert.deepStrictEqual(
              responses.slice(1).map((response) => accepted(response, Raw.Op.hyper).toString()),
              Array.from({ length: 125 }, (_, n) => `{"id":"${c}-${n}"}`)
            )
          }
          assert.strictEqual(agent.ctl.length, 1000)
        })
    )
  }

  it.effect("the agent gets a command only after it has answered the one before", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, id, runtime } = yield* boot(daemon)
      const other = yield* attach(daemon, id)
      agent.answer(Raw.Ctl.readfile, "hold")
      const first = runtime.post(Raw.Op.hyper, hyper("readfile", 1))
      yield* agent.command(Raw.Ctl.readfile)
      const second = other.post(Raw.Op.hyper, hyper("readfile", 2))
      yield* daemon.settle
      assert.strictEqual(agent.ctl.length, 1)
      agent.ack("one")
      assert.strictEqual(accepted(yield* runtime.response(first)).toString(), "one")
      yield* agent.command(Raw.Ctl.readfile, 2)
      agent.ack("two")
      assert.strictEqual(accepted(yield* other.response(second)).toString(), "two")
    })
  )

  it.effect("one client's wait holds up no client of another VM", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const stuck = yield* boot(daemon)
      stuck.agent.answer(Raw.Ctl.ping, "hold")
      stuck.runtime.post(Raw.Op.hyper, hyper("ping"))
      yield* stuck.agent.command(Raw.Ctl.ping)
      const { runtime } = yield* boot(daemon)
      yield* Scenario.answers(runtime)
    })
  )

  it.effect("events are never taken for replies", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* boot(yield* SharedDaemon)
      agent.answer(Raw.Ctl.readfile, () => {
        agent.sendCtl(Raw.Ctl.processEvent, { container: "c9", process: "p", event: "finished", status: 1 })
        agent.sendCtl(Raw.Ctl.otherEvent, { anything: true })
        agent.sendCtl(Raw.Ctl.processEvent, "not JSON")
        return { ack: "mine" }
      })
      for (let n = 0; n < 3; n++) {
        assert.strictEqual(accepted(yield* runtime.request(Raw.Op.hyper, hyper("readfile"))).toString(), "mine")
      }
    })
  )

  it.effect("a hyperName that it does not know is refused before the agent hears of it", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* boot(yield* SharedDaemon)
      for (const name of ["nonsense", "", "PING", "ping ", "ready", "ack", "error", "next", "toString", "__proto__"]) {
        refused(yield* runtime.request(Raw.Op.hyper, hyper(name)), `unknown command '${name}'`, Raw.Op.hyper)
      }
      yield* Scenario.answers(runtime)
      assert.deepStrictEqual(agent.codes, [Raw.Ctl.ping])
    })
  )

  it.effect("the agent's ERROR becomes an error response with its text", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* boot(yield* SharedDaemon)
      agent.answer(Raw.Ctl.removecontainer, { error: 'No such container "c7" \\ ü' })
      refused(
        yield* runtime.request(Raw.Op.hyper, hyper("removecontainer")),
        'No such container "c7" \\ ü',
        Raw.Op.hyper
      )
      agent.answer(Raw.Ctl.removecontainer, { error: "" })
      refused(yield* runtime.request(Raw.Op.hyper, hyper("removecontainer")), "", Raw.Op.hyper)
      yield* Scenario.answers(runtime)
    })
  )

  it.effect("of a longer ERROR the first 64 KiB are told", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, runtime } = yield* boot(daemon)
      const before = daemon.child.memory.peak
      const ask = Effect.fnUntraced(function* (text: Buffer) {
        agent.answer(Raw.Ctl.readfile, "hold")
        const nth = agent.commands(Raw.Ctl.readfile).length + 1
        const number = runtime.post(Raw.Op.hyper, hyper("readfile"))
        yield* agent.command(Raw.Ctl.readfile, nth)
        agent.sendCtl(Raw.Ctl.error, text)
        return refused(yield* runtime.response(number), "agent refused readfile: ", Raw.Op.hyper)
      })
      const told = (count: number) => `agent refused readfile: ${"\u0001".repeat(count)}`
      const [kept, most] = [64 * 1024, 16 * 1024 * 1024 - 8]
      assert.strictEqual(yield* ask(Buffer.alloc(kept, 1)), told(kept))
      for (const length of [kept + 1, most]) assert.strictEqual(yield* ask(Buffer.alloc(length, 1)), `${told(kept)}…`)
      assert.isBelow(daemon.child.memory.peak - before, 128 * 1024 * 1024)
      yield* Scenario.answers(runtime)
    })
  )

  it.effect("data goes to the agent byte for byte as it stood", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* boot(yield* SharedDaemon)
      const texts = [
        '{"limit": 9223372036854775807, "less":-9007199254740993 ,"e":1.0E+2}',
        '{ "a" : 1,"a":2,\t"b":[ ] ,"a":{"a":3}}',
        '{"escaped":"\\u00fc \\/ \\ud83d\\ude42 \\"}\\\\", "plain":"ü 🙂"}',
        "[1,\n  2,\r\n  3]",
        '"just a text"',
        "0.10",
        "true",
        "{}",
        '{"data":{"hyperName":"ping"},"tokens":["x"]}'
      ]
      for (const text of texts) {
        const payload = `{"hyperName":"writefile","data":${text}}`
        accepted(yield* runtime.request(Raw.Op.hyper, payload))
        accepted(yield* runtime.request(Raw.Op.hyper, ` {\n"data" : ${text} ,"tokens":[], "hyperName":"writefile" } `))
      }
      assert.deepStrictEqual(
        agent.ctl.map(({ payload }) => payload.toString()),
        texts.flatMap((text) => [text, text])
      )
    })
  )

  it.effect("without data the agent gets a header and nothing else", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* boot(yield* SharedDaemon)
      accepted(yield* runtime.request(Raw.Op.hyper, hyper("destroypod")))
      assert.strictEqual((yield* agent.command(Raw.Ctl.destroypod)).payload.length, 0)
    })
  )

  it.effect("control messages of up to 4 MiB arrive byte for byte and in order, small ones in one piece each", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* boot(yield* SharedDaemon)
      const sizes = [10, 10_240, 32_000, 60_000, 3 * 1024 * 1024, 40, 60_000]
      const texts = sizes.map((size, n) => JSON.stringify({ n, env: "ab\\c".repeat(size / 5) }))
      const numbers = texts.map((text) => runtime.post(Raw.Op.hyper, `{"hyperName":"startpod","data":${text}}`))
      for (const number of numbers) accepted(yield* runtime.response(number))
      assert.strictEqual(agent.ctl.length, sizes.length)
      for (const [n, { payload, reads }] of agent.ctl.entries()) {
        assert.isTrue(payload.equals(Buffer.from(texts[n]!)), `message ${n}`)
        if (payload.length + 8 <= 32_768) assert.strictEqual(reads, 1, `message ${n} of ${payload.length} bytes`)
      }
    })
  )

  it.effect(
    "a control message of exactly 4 MiB goes out; one byte more is a clear error, and the VM stays usable",
    () =>
      Effect.gen(function* () {
        const { agent, runtime } = yield* boot(yield* SharedDaemon)
        const payload = (length: number) => `{"hyperName":"startpod","data":"${"x".repeat(length - 2)}"}`
        const room = 4 * 1024 * 1024 - 8
        accepted(yield* runtime.request(Raw.Op.hyper, payload(room)))
        assert.strictEqual(agent.ctl[0]!.payload.length, room)
        const reason = refused(yield* runtime.request(Raw.Op.hyper, payload(room + 1)), "", Raw.Op.hyper)
        assert.match(reason, /4194304|4 MiB|large|limit|exceed|too (big|long)/i)
        yield* Scenario.answers(runtime)
        assert.deepStrictEqual(agent.codes, [Raw.Ctl.startpod, Raw.Ctl.ping])
      })
  )

  it.effect("a reply of 16 MiB, header included, comes whole", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* boot(yield* SharedDaemon)
      const reply = Scenario.pattern(16 * 1024 * 1024 - 8)
      agent.answer(Raw.Ctl.readfile, { ack: reply })
      assert.isTrue(accepted(yield* runtime.request(Raw.Op.hyper, hyper("readfile"))).equals(reply))
      yield* Scenario.answers(runtime)
    })
  )

  it.effect("a reply that comes one byte at a time is one reply", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* boot(yield* SharedDaemon)
      agent.answer(Raw.Ctl.readfile, "hold")
      const number = runtime.post(Raw.Op.hyper, hyper("readfile"))
      yield* agent.command(Raw.Ctl.readfile)
      for (const byte of Raw.ctlMessage(Raw.Ctl.ack, "slow")) {
        agent.sendCtlBytes(Uint8Array.of(byte))
        yield* Effect.yieldNow
      }
      assert.strictEqual(accepted(yield* runtime.response(number)).toString(), "slow")
    })
  )

  it.effect("a client that leaves before its command was written takes it along", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, id, runtime } = yield* boot(daemon)
      const leaving = yield* attach(daemon, id)
      const last = yield* attach(daemon, id)
      agent.answer(Raw.Ctl.readfile, "hold")
      const first = runtime.post(Raw.Op.hyper, hyper("readfile"))
      yield* agent.command(Raw.Ctl.readfile)
      leaving.post(Raw.Op.hyper, hyper("removecontainer"))
      yield* daemon.settle
      leaving.hangUp()
      yield* daemon.settle
      agent.ack("first")
      assert.strictEqual(accepted(yield* runtime.response(first)).toString(), "first")
      yield* Scenario.answers(last)
      assert.deepStrictEqual(agent.codes, [Raw.Ctl.readfile, Raw.Ctl.ping])
    })
  )

  it.effect("a command that was written before its client left is finished, and its reply is nobody else's", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, id, runtime } = yield* boot(daemon)
      const leaving = yield* attach(daemon, id)
      agent.answer(Raw.Ctl.readfile, "hold")
      leaving.post(Raw.Op.hyper, hyper("readfile"))
      yield* agent.command(Raw.Ctl.readfile)
      leaving.hangUp()
      yield* daemon.settle
      agent.answer(Raw.Ctl.pscontainer, { ack: "mine" })
      const number = runtime.post(Raw.Op.hyper, hyper("pscontainer"))
      yield* daemon.settle
      assert.deepStrictEqual(agent.codes, [Raw.Ctl.readfile])
      agent.ack("for the one who left")
      assert.strictEqual(accepted(yield* runtime.response(number)).toString(), "mine")
    })
  )

  it.effect("a reply that nobody waits for is dropped", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, runtime } = yield* boot(daemon)
      agent.ack("nobody's")
      agent.fail("nobody's either")
      agent.next(8)
      yield* daemon.settle
      agent.answer(Raw.Ctl.readfile, { ack: "mine" })
      assert.strictEqual(accepted(yield* runtime.request(Raw.Op.hyper, hyper("readfile"))).toString(), "mine")
      yield* Scenario.answers(runtime)
    })
  )

  for (const length of [0, 7, 16 * 1024 * 1024 + 1, 0xffff_ffff]) {
    it.effect(`a ctl message that claims ${length} bytes is a lost VM`, () =>
      Effect.gen(function* () {
        const daemon = yield* SharedDaemon
        const { agent, id, runtime, shim } = yield* Scenario.running(daemon)
        agent.answer(Raw.Ctl.readfile, "hold")
        const number = runtime.post(Raw.Op.hyper, hyper("readfile"))
        yield* agent.command(Raw.Ctl.readfile)
        const before = daemon.child.memory.peak
        const head = Buffer.alloc(8)
        head.writeUInt32BE(Raw.Ctl.ack, 0)
        head.writeUInt32BE(length, 4)
        agent.sendCtlBytes(head)
        refused(yield* runtime.response(number))
        yield* shim.dropped()
        yield* until("the connections' end", () => !agent.connected[0] && !agent.connected[1])
        assert.isBelow(daemon.child.memory.peak - before, 64 * 1024 * 1024)
        accepted(yield* Scenario.register(daemon, id, yield* Scenario.startAgent()))
      })
    )
  }
})

own.live("a command that is never answered fails after -ctl-timeout, and its late reply is not given to the next", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start({ args: ["-ctl-timeout", "1s"] })
    const { agent, id, runtime } = yield* boot(daemon)
    agent.answer(Raw.Ctl.readfile, "hold")
    refused(yield* runtime.request(Raw.Op.hyper, hyper("readfile")), "", Raw.Op.hyper)
    const other = yield* attach(daemon, id)
    agent.answer(Raw.Ctl.pscontainer, { ack: "mine" })
    const number = other.post(Raw.Op.hyper, hyper("pscontainer"))
    agent.ack("late")
    assert.strictEqual(accepted(yield* other.response(number)).toString(), "mine")
    yield* Scenario.answers(runtime)
    yield* daemon.child.warned
  })
)

own.live("while a late reply is missing the commands behind it fail by their own deadline, and none is written", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start({ args: ["-ctl-timeout", "300ms"] })
    const { agent, id, runtime } = yield* boot(daemon)
    agent.answer(Raw.Ctl.readfile, "hold")
    agent.answer(Raw.Ctl.ping, "hold")
    refused(yield* runtime.request(Raw.Op.hyper, hyper("readfile")), "", Raw.Op.hyper)
    const other = yield* attach(daemon, id)
    refused(yield* other.request(Raw.Op.hyper, hyper("pscontainer")), "", Raw.Op.hyper)
    refused(yield* runtime.request(Raw.Op.hyper, hyper("removecontainer")), "", Raw.Op.hyper)
    assert.deepStrictEqual(
      agent.codes.filter((code) => code !== Raw.Ctl.ping),
      [Raw.Ctl.readfile]
    )
  })
)

own.live("the deadline counts from the write, so that a command may wait its turn", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start({ args: ["-ctl-timeout", "2s"] })
    const { agent, id, runtime } = yield* boot(daemon)
    const other = yield* attach(daemon, id)
    // each answer takes less than the deadline, the second command's turn and answer together take more
    agent.answer(Raw.Ctl.readfile, () => {
      setTimeout(() => agent.ack("slow"), 1300)
      return "hold"
    })
    const first = runtime.post(Raw.Op.hyper, hyper("readfile"))
    const second = other.post(Raw.Op.hyper, hyper("readfile"))
    assert.strictEqual(accepted(yield* runtime.response(first)).toString(), "slow")
    assert.strictEqual(accepted(yield* other.response(second)).toString(), "slow")
  })
)

own.live("a shim's output goes on while its VM's control channel is stuck", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start()
    const { agent, runtime, shim } = yield* Scenario.running(daemon)
    agent.answer(Raw.Ctl.readfile, "hold")
    runtime.post(Raw.Op.hyper, hyper("readfile"))
    yield* agent.command(Raw.Ctl.readfile)
    agent.sendIo([3, "out"], [4, "err"])
    agent.exit(3, 5)
    yield* shim.until("the exit", () => shim.exits.length === 1)
    assert.deepStrictEqual(shim.story, ["stdout out", "stderr err", "exit 5"])
  })
)
