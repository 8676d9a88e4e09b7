/** Every command of the client protocol: what it answers, and what it refuses. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { SharedDaemon, withDaemon } from "../support/e2e/DaemonProcess.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import * as Scenario from "../support/e2e/Scenario.ts"
import { until } from "../support/e2e/Wait.ts"

const { accepted, attach, boot, connectShim, freshId, hyper, refused, register, startAgent, tokensOf, unregister } =
  Scenario

withDaemon()("commands", (it) => {
  it.effect("RegisterVM tells where shims connect, and no tokens where none were asked for", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const agent = yield* startAgent()
      const response = yield* register(daemon, freshId(), agent)
      assert.deepStrictEqual(JSON.parse(accepted(response, Raw.Op.registerVM).toString()), {
        io: { URL: `unix://${daemon.socketPath}`, tokens: null }
      })
    })
  )

  it.effect("RegisterVM and AttachVM give as many tokens as were asked for, all different, of 32 bytes each", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { id, tokens } = yield* boot(daemon, { streams: 3 })
      const client = yield* daemon.connect
      const response = yield* client.request(Raw.Op.attachVM, { containerId: id, numIOStreams: 2 })
      const { io } = JSON.parse(accepted(response, Raw.Op.attachVM).toString()) as {
        readonly io: { readonly URL: string; readonly tokens: ReadonlyArray<string> }
      }
      assert.strictEqual(io.URL, `unix://${daemon.socketPath}`)
      assert.strictEqual(io.tokens.length, 2)
      const all = [...tokens, ...io.tokens]
      for (const token of all) {
        assert.match(token, /^[\w-]{43}=$/)
        assert.strictEqual(Buffer.from(token, "base64url").length, 32)
      }
      assert.strictEqual(new Set(all).size, 5)
    })
  )

  it.effect("AttachVM without numIOStreams gives null for tokens", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { id } = yield* boot(daemon)
      const client = yield* daemon.connect
      const payload = accepted(yield* client.request(Raw.Op.attachVM, { containerId: id }))
      assert.deepStrictEqual(JSON.parse(payload.toString()), {
        io: { URL: `unix://${daemon.socketPath}`, tokens: null }
      })
    })
  )

  it.effect("Hyper answers with the agent's payload byte for byte, and with nothing where the agent sent none", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* boot(yield* SharedDaemon)
      const bytes = Buffer.from([0, 255, 10, 34, 92, 128, 0])
      agent.answer(Raw.Ctl.pscontainer, { ack: bytes })
      const answer = accepted(
        yield* runtime.request(Raw.Op.hyper, hyper("pscontainer", { container: "c1" })),
        Raw.Op.hyper
      )
      assert.strictEqual(answer.toString("hex"), bytes.toString("hex"))
      assert.strictEqual(accepted(yield* runtime.request(Raw.Op.hyper, hyper("ping"))).length, 0)
    })
  )

  it.effect("ConnectShim, Signal and UnregisterVM succeed with empty payloads", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { id, shim } = yield* Scenario.running(daemon)
      assert.strictEqual(accepted(shim.responses[0]!, Raw.Op.connectShim).length, 0)
      assert.strictEqual(accepted(yield* shim.request(Raw.Op.signal, { signalNumber: 10 }), Raw.Op.signal).length, 0)
      assert.strictEqual(accepted(yield* unregister(daemon, id), Raw.Op.unregisterVM).length, 0)
    })
  )

  it.effect("DisconnectShim gets no response but the end of the connection", () =>
    Effect.gen(function* () {
      const { shim } = yield* Scenario.running(yield* SharedDaemon)
      shim.send(Raw.command(Raw.Op.disconnectShim))
      yield* shim.dropped()
      assert.strictEqual(shim.responses.length, 1) // ConnectShim's
    })
  )

  it.effect("every hyperName goes out under its own code", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* boot(yield* SharedDaemon)
      const names = [
        ["version", 0],
        ["startpod", 1],
        ["destroypod", 4],
        ["winsize", 11],
        ["ping", 12],
        ["writefile", 15],
        ["readfile", 16],
        ["killcontainer", 18],
        ["onlinecpumem", 19],
        ["setupinterface", 20],
        ["setuproute", 21],
        ["removecontainer", 22],
        ["pscontainer", 23]
      ] as const
      for (const [name] of names) accepted(yield* runtime.request(Raw.Op.hyper, hyper(name, { of: name })))
      assert.deepStrictEqual(
        agent.ctl.map(({ code, payload }) => [code, payload.toString()]),
        names.map(([name, code]) => [code, `{"of":"${name}"}`])
      )
    })
  )

  it.effect("Hyper is refused from a client that is not attached", () =>
    Effect.gen(function* () {
      const client = yield* (yield* SharedDaemon).connect
      const response = yield* client.request(Raw.Op.hyper, hyper("ping"))
      refused(response, "client not attached to a vm", Raw.Op.hyper)
    })
  )

  it.effect("an unknown container is refused by its name", () =>
    Effect.gen(function* () {
      const client = yield* (yield* SharedDaemon).connect
      const payload = { containerId: "ghost" }
      refused(yield* client.request(Raw.Op.attachVM, payload), "unknown containerID: ghost", Raw.Op.attachVM)
      refused(yield* client.request(Raw.Op.unregisterVM, payload), "unknown containerID: ghost", Raw.Op.unregisterVM)
    })
  )

  it.effect("an id that is taken is refused, and its VM is not disturbed", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { id, runtime } = yield* boot(daemon)
      const rival = yield* startAgent()
      refused(yield* register(daemon, id, rival), `${id}: container already registered`, Raw.Op.registerVM)
      yield* Scenario.answers(runtime)
    })
  )

  it.effect("RegisterVM without one of its three names is malformed", () =>
    Effect.gen(function* () {
      const client = yield* (yield* SharedDaemon).connect
      const whole = { containerId: freshId(), ctlSerial: "/nowhere/ctl", ioSerial: "/nowhere/io" }
      for (const missing of ["containerId", "ctlSerial", "ioSerial"]) {
        const payload = { ...whole, [missing]: undefined }
        refused(yield* client.request(Raw.Op.registerVM, payload), "malformed RegisterVM command", Raw.Op.registerVM)
        const empty = { ...whole, [missing]: "" }
        refused(yield* client.request(Raw.Op.registerVM, empty), "malformed RegisterVM command", Raw.Op.registerVM)
      }
    })
  )

  it.effect("Signal is refused from a client that is no shim", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { runtime } = yield* boot(daemon)
      refused(yield* runtime.request(Raw.Op.signal, { signalNumber: 15 }), "client isn't a shim", Raw.Op.signal)
      const stranger = yield* daemon.connect
      refused(yield* stranger.request(Raw.Op.signal, { signalNumber: 15 }), "client isn't a shim", Raw.Op.signal)
    })
  )

  it.effect("a token that was never given out is refused, and not shown whole", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const client = yield* daemon.connect
      const token = Buffer.alloc(32, 7).toString("base64url") + "="
      const reason = refused(
        yield* client.request(Raw.Op.connectShim, { token }),
        "unknown token: ",
        Raw.Op.connectShim
      )
      assert.notInclude(reason, token.slice(0, 20))
    })
  )

  it.effect("keys that it does not know are ignored, and null tokens are none", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const id = freshId()
      const agent = yield* startAgent()
      const extra = { numIOStreams: 1, colour: "red", nested: { a: [1, null] } }
      const [token] = tokensOf(yield* register(daemon, id, agent, extra))
      const client = yield* daemon.connect
      accepted(yield* client.request(Raw.Op.attachVM, { containerId: id, extra: true }))
      accepted(yield* client.request(Raw.Op.hyper, { hyperName: "ping", tokens: null, extra: {} }))
      accepted(yield* client.request(Raw.Op.hyper, { hyperName: "ping", tokens: [] }))
      const shim = yield* daemon.connect
      accepted(yield* shim.request(Raw.Op.connectShim, { token, extra: 1 }))
    })
  )

  it.effect("commands that are sent ahead are answered in their order", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, id } = yield* boot(daemon)
      agent.answer(Raw.Ctl.readfile, (payload) => ({ ack: payload }))
      const client = yield* daemon.connect
      client.send(
        Raw.command(Raw.Op.hyper, hyper("ping")),
        Raw.command(Raw.Op.attachVM, { containerId: id }),
        Raw.command(Raw.Op.hyper, hyper("readfile", 1)),
        Raw.command(Raw.Op.hyper, hyper("nonsense")),
        Raw.command(Raw.Op.hyper, hyper("readfile", 2)),
        Raw.command(Raw.Op.connectShim, { token: "none" }),
        Raw.command(Raw.Op.signal, { signalNumber: 1 }),
        Raw.command(Raw.Op.unregisterVM, { containerId: id })
      )
      yield* client.response(7)
      assert.deepStrictEqual(
        client.responses.map(({ flags, opcode }) => [opcode, flags]),
        [
          [Raw.Op.hyper, 0x10],
          [Raw.Op.attachVM, 0],
          [Raw.Op.hyper, 0],
          [Raw.Op.hyper, 0x10],
          [Raw.Op.hyper, 0],
          [Raw.Op.connectShim, 0x10],
          [Raw.Op.signal, 0x10],
          [Raw.Op.unregisterVM, 0]
        ]
      )
      assert.strictEqual(client.responses[2]!.payload.toString(), "1")
      assert.strictEqual(client.responses[4]!.payload.toString(), "2")
    })
  )

  it.effect("RegisterVM, AttachVM and Hyper may be sent in one piece", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const id = freshId()
      const agent = yield* startAgent()
      const client = yield* daemon.connect
      client.send(
        Raw.command(Raw.Op.registerVM, { containerId: id, ctlSerial: agent.ctlPath, ioSerial: agent.ioPath }),
        Raw.command(Raw.Op.attachVM, { containerId: id, numIOStreams: 1 }),
        Raw.command(Raw.Op.hyper, hyper("ping"))
      )
      accepted(yield* client.response(0), Raw.Op.registerVM)
      assert.strictEqual(tokensOf(yield* client.response(1)).length, 1)
      accepted(yield* client.response(2), Raw.Op.hyper)
    })
  )

  it.effect("a payload that is not JSON or does not fit its command gets an error, and the connection stays", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { id, runtime } = yield* boot(daemon)
      const answered = [
        Raw.Op.registerVM,
        Raw.Op.unregisterVM,
        Raw.Op.attachVM,
        Raw.Op.hyper,
        Raw.Op.connectShim,
        Raw.Op.signal
      ]
      const payloads = ["", "{", "not json", "\u0000", "[]", "7", "null", '"text"', Buffer.from([0xff, 0xfe]), "{}"]
      for (const opcode of answered) {
        for (const payload of payloads) refused(yield* runtime.request(opcode, payload), "", opcode)
      }
      refused(yield* runtime.request(Raw.Op.attachVM, { containerId: 5 }))
      refused(yield* runtime.request(Raw.Op.attachVM, { containerId: id, numIOStreams: "two" }))
      refused(yield* runtime.request(Raw.Op.hyper, { hyperName: "ping", tokens: "one" }))
      refused(yield* runtime.request(Raw.Op.hyper, { hyperName: "ping", tokens: [1] }))
      refused(yield* runtime.request(Raw.Op.connectShim, { token: null }))
      yield* Scenario.answers(runtime)
    })
  )

  it.effect("a key of the wrong type is told by its name, not by its value, whatever the command", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { id, runtime } = yield* boot(daemon)
      const notText = ["null", "true", "0", "-1.5", "[]", '["secret"]', "{}", '{"a":"secret"}']
      const notNumber = ['"secret"', '"1"', "true", "1.5", "1e400", "[1]", "{}"]
      const notTokens = ['"secret"', "0", "true", "{}", "[0]", "[null]", '[["secret"]]']
      const whole = { containerId: id, ctlSerial: "/nowhere/ctl", ioSerial: "/nowhere/io" }
      const cases: ReadonlyArray<
        readonly [opcode: number, name: string, whole: object, wrong: Record<string, ReadonlyArray<string>>]
      > = [
        [
          Raw.Op.registerVM,
          "RegisterVM",
          whole,
          {
            containerId: [...notText, '""'],
            ctlSerial: [...notText, '""'],
            ioSerial: [...notText, '""'],
            console: notText.slice(1),
            numIOStreams: notNumber
          }
        ],
        [Raw.Op.unregisterVM, "UnregisterVM", { containerId: id }, { containerId: [...notText, '""'] }],
        [
          Raw.Op.attachVM,
          "AttachVM",
          { containerId: id },
          { containerId: [...notText, '""'], numIOStreams: notNumber }
        ],
        [Raw.Op.hyper, "Hyper", hyper("ping"), { hyperName: notText, tokens: notTokens }],
        [Raw.Op.connectShim, "ConnectShim", { token: "none" }, { token: notText }],
        [
          Raw.Op.hyper,
          "newcontainer",
          hyper("newcontainer"),
          {
            data: [
              ...notText,
              ...["id", "process"].map((key) => JSON.stringify({ id: "c1", process: {}, [key]: ["secret"] })),
              ...["id", "terminal", "stdio", "stderr"].map((key) =>
                JSON.stringify({ id: "c1", process: { [key]: ["secret"] } })
              )
            ]
          }
        ],
        [Raw.Op.hyper, "execcmd", hyper("execcmd"), { data: [...notText, '{"container":["secret"],"process":{}}'] }]
      ]
      for (const [opcode, name, whole, wrong] of cases)
        for (const [key, values] of Object.entries(wrong))
          for (const value of values) {
            const rest = JSON.stringify({ ...whole, [key]: undefined }).slice(1)
            const payload = `{"${key}":${value}${rest === "}" ? "" : ","}${rest}`
            const told = refused(yield* runtime.request(opcode, payload), `malformed ${name} command: `, opcode)
            assert.notInclude(told, "secret", payload)
          }
      const { shim } = yield* Scenario.running(daemon)
      for (const key of ["signalNumber", "columns", "rows"])
        for (const value of notNumber) {
          const payload = `{${key === "signalNumber" ? "" : '"signalNumber":28,'}"${key}":${value}}`
          const told = refused(yield* shim.request(Raw.Op.signal, payload), "malformed Signal command: ", Raw.Op.signal)
          assert.notInclude(told, "secret", payload)
        }
      yield* Scenario.answers(runtime)
    })
  )

  it.effect("a command that its client is in no position to send is refused, and the connection stays", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const notAttached = "client not attached to a vm"
      const noShim = "client isn't a shim"
      const vm = yield* Scenario.running(daemon, { streams: 2 })
      const fresh = yield* daemon.connect
      const unregistered = yield* daemon.connect
      accepted(yield* register(daemon, "gone soon", yield* startAgent()))
      accepted(yield* unregistered.request(Raw.Op.attachVM, { containerId: "gone soon" }))
      accepted(yield* unregistered.request(Raw.Op.unregisterVM, { containerId: "gone soon" }))
      const lost = yield* boot(daemon)
      lost.agent.powerOff()
      yield* until("the loss", () => !lost.agent.connected[0] && !lost.agent.connected[1])
      for (const [client, hyperIs, shimIs] of [
        [fresh, notAttached, noShim],
        [unregistered, notAttached, noShim],
        [lost.runtime, "VM lost: ", noShim],
        [vm.runtime, undefined, noShim],
        [vm.shim, notAttached, undefined]
      ] as const) {
        const ping = yield* client.request(Raw.Op.hyper, hyper("ping"))
        if (hyperIs === undefined) accepted(ping)
        else refused(ping, hyperIs, Raw.Op.hyper)
        const signal = yield* client.request(Raw.Op.signal, { signalNumber: 10 })
        if (shimIs === undefined) accepted(signal)
        else refused(signal, shimIs, Raw.Op.signal)
        if (shimIs !== undefined) refused(yield* client.request(Raw.Op.disconnectShim), shimIs, Raw.Op.disconnectShim)
        // it may become what it was not
        accepted(yield* client.request(Raw.Op.attachVM, { containerId: vm.id }))
        yield* Scenario.answers(client)
      }
      refused(yield* vm.shim.request(Raw.Op.connectShim, { token: vm.tokens[1] }), "has claimed a token already")
      accepted(yield* vm.runtime.request(Raw.Op.connectShim, { token: vm.tokens[1] }))
      yield* Scenario.answers(vm.runtime)
    })
  )

  it.effect("numIOStreams may be 0 to 1024", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { id } = yield* boot(daemon)
      const client = yield* daemon.connect
      const ask = (numIOStreams: number) => client.request(Raw.Op.attachVM, { containerId: id, numIOStreams })
      for (const count of [-1, 1025, 2 ** 31, 2 ** 32, 2 ** 53, -(2 ** 31), 1.5])
        refused(yield* ask(count), "", Raw.Op.attachVM)
      assert.deepStrictEqual(tokensOf(yield* ask(0)), [])
      assert.strictEqual(new Set(tokensOf(yield* ask(1024))).size, 1024)
    })
  )

  it.effect("a numIOStreams out of bounds leaves the id free and the VM's sockets alone", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const id = freshId()
      const agent = yield* startAgent()
      for (const numIOStreams of [-1, 1025, 2 ** 31]) {
        refused(yield* register(daemon, id, agent, { numIOStreams }), "", Raw.Op.registerVM)
      }
      assert.deepStrictEqual(agent.connections, [0, 0])
      assert.strictEqual(tokensOf(yield* register(daemon, id, agent, { numIOStreams: 1024 })).length, 1024)
    })
  )

  it.effect("a token given by AttachVM serves any client of that VM", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, id, runtime } = yield* boot(daemon)
      const other = yield* attach(daemon, id)
      const [token] = tokensOf(yield* other.request(Raw.Op.attachVM, { containerId: id, numIOStreams: 1 }))
      other.hangUp()
      yield* daemon.settle
      const shim = yield* connectShim(daemon, token)
      accepted(yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", Scenario.container("c1"), token)))
      agent.sendIo([3, "hello"])
      yield* shim.until("the output", () => shim.received.stdout === 5)
    })
  )
})
