/** What a client may send and in which pieces; and that nothing it may not send harms anybody but itself. */
import { assert, it as own } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as DaemonProcess from "../support/e2e/DaemonProcess.ts"
import { SharedDaemon, withDaemon } from "../support/e2e/DaemonProcess.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import type { RawClient } from "../support/e2e/RawClient.ts"
import * as Scenario from "../support/e2e/Scenario.ts"
import { until } from "../support/e2e/Wait.ts"

const { accepted, attach, boot, freshId, hyper, refused } = Scenario

const mebibyte = 1024 * 1024

/** Proves that these bytes end the connection they come on, with or without one that is in use, and nothing else. */
const endsOnly = (...bytes: ReadonlyArray<Uint8Array>) =>
  Effect.gen(function* () {
    const daemon = yield* SharedDaemon
    const { id, runtime } = yield* boot(daemon)
    const fresh = yield* daemon.connect
    const used = yield* attach(daemon, id)
    for (const client of [fresh, used]) {
      client.send(...bytes)
      yield* client.dropped()
    }
    yield* Scenario.answers(runtime)
    yield* Scenario.answers(yield* attach(daemon, id))
  })

withDaemon()("framing", (it) => {
  it.effect("a frame may come one byte at a time", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, id } = yield* boot(daemon)
      const client = yield* daemon.connect
      yield* client.trickle(Raw.command(Raw.Op.attachVM, { containerId: id }))
      yield* client.trickle(Raw.command(Raw.Op.hyper, hyper("writefile", { file: "x" })))
      accepted(yield* client.response(0), Raw.Op.attachVM)
      accepted(yield* client.response(1), Raw.Op.hyper)
      assert.deepStrictEqual(
        agent.ctl.map(({ payload }) => payload.toString()),
        ['{"file":"x"}']
      )
    })
  )

  it.effect("many frames may come in one piece", () =>
    Effect.gen(function* () {
      const { agent, runtime } = yield* boot(yield* SharedDaemon)
      agent.answer(Raw.Ctl.readfile, (payload) => ({ ack: payload }))
      runtime.send(...Array.from({ length: 200 }, (_, n) => Raw.command(Raw.Op.hyper, hyper("readfile", n))))
      yield* runtime.until("200 answers", () => runtime.responses.length === 201)
      assert.deepStrictEqual(
        runtime.responses.slice(1).map(({ payload }) => payload.toString()),
        Array.from({ length: 200 }, (_, n) => String(n))
      )
    })
  )

  for (const words of [0, 1, 2]) {
    it.effect(`a header of ${words} words ends only the connection it came on`, () =>
      endsOnly(Raw.header({ type: Raw.Type.command, opcode: Raw.Op.attachVM, words, length: 0 }))
    )
  }

  it.effect("what a header has beyond 12 bytes is skipped, up to 255 words of it", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { id, runtime } = yield* boot(daemon)
      const payload = Buffer.from(JSON.stringify({ containerId: id }))
      const client = yield* daemon.connect
      for (const words of [4, 5, 255]) {
        const header = Raw.header({ type: Raw.Type.command, opcode: Raw.Op.attachVM, words, length: payload.length })
        header.fill(0xee, 12)
        client.send(header, payload)
      }
      for (const number of [0, 1, 2]) accepted(yield* client.response(number), Raw.Op.attachVM)
      const ping = Buffer.from(JSON.stringify(hyper("ping")))
      const header = Raw.header({ type: Raw.Type.command, opcode: Raw.Op.hyper, words: 255, length: ping.length })
      yield* runtime.trickle(Buffer.concat([header, ping]))
      accepted(yield* runtime.response(1), Raw.Op.hyper)
    })
  )

  it.effect("a header may have any number of words from 3 to 255", () =>
    Effect.gen(function* () {
      const client = yield* (yield* SharedDaemon).connect
      const payload = Buffer.from('{"containerId":"ghost"}')
      for (let words = 3; words < 256; words++) {
        const header = Raw.header({ type: Raw.Type.command, opcode: Raw.Op.attachVM, words, length: payload.length })
        header.fill(words, 12)
        client.send(header, payload)
      }
      yield* client.until("253 answers", () => client.responses.length === 253)
      for (const response of client.responses) refused(response, "unknown containerID: ghost", Raw.Op.attachVM)
    })
  )

  it.effect(
    "of all types, opcodes and flags a client's commands are answered, and the rest end their connections",
    () =>
      Effect.gen(function* () {
        const daemon = yield* SharedDaemon
        const { runtime } = yield* boot(daemon)
        const opcodes = [0, 1, 2, 3, 4, 5, 6, 7, 8, 255]
        yield* Effect.forEach(
          Array.from({ length: 256 }, (_, byte) => byte), // flags and type
          Effect.fnUntraced(function* (byte) {
            const isCommand = (opcode: number) => (byte & 0x0f) === Raw.Type.command && opcode <= Raw.Op.signal
            const asking = yield* daemon.connect
            for (const opcode of opcodes) {
              const frame = Raw.header({ type: byte, opcode, length: 0 })
              if (isCommand(opcode)) {
                refused(yield* asking.response((asking.send(frame), opcode)), "", opcode)
              } else {
                const client = yield* daemon.connect
                client.send(frame)
                yield* client.dropped()
                assert.deepStrictEqual(client.frames, [])
                client.hangUp()
              }
            }
            assert.isFalse(asking.isDropped)
            asking.hangUp()
          }),
          { concurrency: 8, discard: true }
        )
        yield* Scenario.answers(runtime)
      })
  )

  for (const version of [0, 1, 3, 0x0200, 0xffff]) {
    it.effect(`version ${version} ends only the connection it came on`, () =>
      endsOnly(Raw.header({ type: Raw.Type.command, opcode: Raw.Op.attachVM, version, length: 0 }))
    )
  }

  const foreign = [
    ["a response", Raw.Type.response, Raw.Op.hyper],
    ["a notification", Raw.Type.notification, 0],
    ["stdout", Raw.Type.stream, Raw.Stream.stdout],
    ["stderr", Raw.Type.stream, Raw.Stream.stderr],
    ["an unknown stream", Raw.Type.stream, 4],
    ["stream 255", Raw.Type.stream, 255],
    ["an unknown command", Raw.Type.command, 7],
    ["command 255", Raw.Type.command, 255],
    ["type 4", 4, 0],
    ["type 15", 15, 0]
  ] as const
  for (const [name, type, opcode] of foreign) {
    it.effect(`${name} from a client ends only its connection`, () => endsOnly(Raw.frame(type, opcode, "x")))
  }

  const kinds = [
    ["RegisterVM", Raw.Type.command, Raw.Op.registerVM, mebibyte],
    ["UnregisterVM", Raw.Type.command, Raw.Op.unregisterVM, mebibyte],
    ["AttachVM", Raw.Type.command, Raw.Op.attachVM, mebibyte],
    ["Hyper", Raw.Type.command, Raw.Op.hyper, 8 * mebibyte],
    ["ConnectShim", Raw.Type.command, Raw.Op.connectShim, mebibyte],
    ["DisconnectShim", Raw.Type.command, Raw.Op.disconnectShim, mebibyte],
    ["Signal", Raw.Type.command, Raw.Op.signal, mebibyte],
    ["a log entry", Raw.Type.stream, Raw.Stream.log, mebibyte],
    ["stdin", Raw.Type.stream, Raw.Stream.stdin, 16 * mebibyte]
  ] as const
  for (const [name, type, opcode, cap] of kinds) {
    it.effect(`${name} just over its cap, or of 4 GiB, ends only its connection and takes no memory`, () =>
      Effect.gen(function* () {
        const { child } = yield* SharedDaemon
        const before = child.memory.peak
        yield* endsOnly(Raw.header({ type, opcode, length: cap + 1 }))
        yield* endsOnly(Raw.header({ type, opcode, length: 0xffff_ffff }))
        assert.isBelow(child.memory.peak - before, 128 * mebibyte)
      })
    )
  }

  it.effect("a frame of any kind at its cap, or a byte below, is taken", () =>
    Effect.gen(function* () {
      const client = yield* (yield* SharedDaemon).connect
      let asked = 0
      for (const [, type, opcode, cap] of kinds) {
        if (opcode === Raw.Stream.stdin && type === Raw.Type.stream) continue // below
        const text = JSON.stringify(type === Raw.Type.stream ? { source: "shim", level: "debug", msg: "x" } : {})
        for (const length of [cap - 1, cap]) {
          client.send(Raw.frame(type, opcode, text.padEnd(length)))
          if (type === Raw.Type.command) refused(yield* client.response(asked++), "", opcode)
        }
      }
      client.send(Raw.command(Raw.Op.attachVM, { containerId: "ghost" })) // still connected
      refused(yield* client.response(asked), "unknown containerID: ghost", Raw.Op.attachVM)
    })
  )

  it.effect("a command as large as its cap is answered", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, id, runtime } = yield* boot(daemon)
      const fill = (length: number, json: string) => json.replace("@", "x".repeat(length - json.length + 1))
      accepted(yield* runtime.request(Raw.Op.attachVM, fill(mebibyte, `{"containerId":"${id}","extra":"@"}`)))
      // more than any agent takes, but a well-formed frame
      refused(yield* runtime.request(Raw.Op.hyper, fill(8 * mebibyte, '{"hyperName":"writefile","data":"@"}')))
      assert.deepStrictEqual(agent.ctl, [])
      yield* Scenario.answers(runtime)
    })
  )

  it.effect("stdin as large as its cap is taken", () =>
    Effect.gen(function* () {
      const { agent, shim } = yield* Scenario.running(yield* SharedDaemon)
      const data = Scenario.pattern(16 * mebibyte)
      shim.send(Raw.stdin(data))
      yield* agent.stdinLength(3, data.length)
      assert.isTrue(agent.stdin(3).equals(data))
    })
  )

  const entries = [
    ["not JSON", "text"],
    ["of an unknown source", { source: "kernel", level: "info", msg: "x" }],
    ["without a source", { level: "info", msg: "x" }],
    ["of an unknown level", { source: "shim", level: "loud", msg: "x" }],
    ["without a message", { source: "shim", level: "info" }],
    ["with an empty message", { source: "shim", level: "info", msg: "" }]
  ] as const
  for (const [name, entry] of entries) {
    it.effect(`a log entry ${name} ends only its connection`, () => endsOnly(Raw.logEntry(entry)))
  }

  it.effect("a log entry with a key of the wrong type ends only its connection", () =>
    Effect.gen(function* () {
      const entry = { source: "shim", level: "info", msg: "x", containerId: "c" }
      for (const key of Object.keys(entry))
        for (const value of [0, true, [], ["shim"], {}, ...(key === "containerId" ? [] : [null])])
          yield* endsOnly(Raw.logEntry({ ...entry, [key]: value }))
    })
  )

  it.effect("what only a shim may say harms nobody when another says it", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, id, runtime } = yield* boot(daemon)
      for (const bytes of [Raw.stdin("typed"), Raw.stdin(""), Raw.command(Raw.Op.disconnectShim)]) {
        const stranger = yield* daemon.connect
        stranger.send(bytes)
        const attached = yield* attach(daemon, id)
        attached.send(bytes)
      }
      yield* daemon.settle
      yield* Scenario.answers(runtime)
      assert.deepStrictEqual(agent.io, [])
    })
  )

  it.effect("a connection that ends in the middle of a frame harms nobody", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { id, runtime } = yield* boot(daemon)
      const whole = Raw.command(Raw.Op.attachVM, { containerId: id })
      for (const length of [1, 2, 6, 11, 12, 13, whole.length - 1]) {
        const client = yield* daemon.connect
        client.send(whole.subarray(0, length))
        client.end()
        yield* client.dropped()
      }
      yield* Scenario.answers(runtime)
    })
  )
})

own.live("a valid log entry appears in the log at its level, with its source and what it says quoted", () =>
  Effect.gen(function* () {
    const { child, connect } = yield* DaemonProcess.start({ args: ["-log", "debug"] })
    const client = yield* connect
    const entries = [
      { source: "shim", level: "debug", msg: "first" },
      { source: "runtime", level: "info", containerId: freshId(), msg: 'says "hi" = \\ 7\nsecond line\u001b[31m' },
      { source: "runtime", level: "warn", msg: "third ünï 🙂" },
      { source: "shim", level: "error", msg: "fourth" }
    ]
    client.send(...entries.map((entry) => Raw.logEntry(entry)))
    const told = () =>
      child.log.filter((record) => record.get("source") === "shim" || record.get("source") === "runtime")
    const records = yield* until("four records", () => told().length >= 4 && told())
    assert.deepStrictEqual(
      records.map((record) => [
        record.get("source"),
        record.get("level")?.replace("warning", "warn"),
        record.get("msg")
      ]),
      entries.map(({ source, level, msg }) => [source, level, msg])
    )
    assert.include([...records[1]!.values()], entries[1]!.containerId)
    assert.isFalse(client.isDropped)
  })
)

own.live("a frame that stops half-way ends its connection after -frame-timeout, an idle connection stays", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start({ args: ["-frame-timeout", "300ms"] })
    const { id, runtime } = yield* boot(daemon)
    const halves = [1, 12, 20]
    for (const length of halves) {
      const client = yield* daemon.connect
      client.send(Raw.command(Raw.Op.attachVM, { containerId: id }).subarray(0, length))
      yield* client.dropped()
    }
    yield* Scenario.answers(runtime)
    assert.deepStrictEqual(
      daemon.child.log.map((record) => `${record.get("level")} ${record.get("msg")}: ${record.get("reason")}`),
      halves.map(() => "warn client's connection ended: a frame was left half-sent for 300ms")
    )
  })
)

own.live("a client that asks a thousand times and reads nothing costs bounded memory, and nobody else anything", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start()
    const { agent, id, runtime } = yield* boot(daemon)
    const deaf = yield* attach(daemon, id)
    agent.answer(Raw.Ctl.readfile, (payload) => ({ ack: Buffer.concat([payload, Buffer.alloc(64 * 1024)]) }))
    const before = daemon.child.memory.resident
    deaf.pause()
    for (let n = 0; n < 1000; n++) deaf.post(Raw.Op.hyper, hyper("readfile", n))
    for (let round = 0; round < 50; round++) yield* Scenario.answers(runtime)
    // 64 under way at once, and as many answers as fit into its socket and 1 MiB
    assert.isBelow(agent.commands(Raw.Ctl.readfile).length, 200)
    assert.isBelow(daemon.child.memory.resident - before, 64 * mebibyte)
    deaf.resume()
    yield* deaf.until("every answer", () => deaf.responses.length === 1001, 20)
    for (const [n, response] of deaf.responses.slice(1).entries()) {
      const payload = accepted(response, Raw.Op.hyper)
      assert.strictEqual(payload.toString("latin1", 0, payload.indexOf(0)), String(n))
    }
  })
)

own.live("storms of clients that leave at once, or with half a frame, leave nothing, and others are served", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start()
    const { runtime } = yield* boot(daemon)
    yield* Scenario.answers(runtime)
    const before = daemon.child.descriptors
    const half = Raw.command(Raw.Op.attachVM, { containerId: "x" }).subarray(0, 15)
    const deeds = [
      (client: RawClient) => client.hangUp(),
      (client: RawClient) => client.end(),
      (client: RawClient) => (client.send(half), client.hangUp()),
      (client: RawClient) => (client.send(half), client.end()),
      (client: RawClient) => (client.send(Buffer.alloc(100)), client.hangUp()),
      (client: RawClient) => (client.send(Raw.command(Raw.Op.attachVM, { containerId: "x" })), client.hangUp())
    ]
    for (let storm = 0; storm < 3; storm++) {
      yield* Effect.scoped(
        Effect.gen(function* () {
          const crowd = yield* Effect.all(
            Array.from({ length: 300 }, () => daemon.connect),
            { concurrency: "unbounded" }
          )
          for (const [n, client] of crowd.entries()) deeds[n % deeds.length]!(client)
          yield* Scenario.answers(runtime)
        })
      )
    }
    yield* daemon.settle // whoever was still to be accepted has been
    for (let look = 0; daemon.child.descriptors > before; look++) {
      assert.isBelow(look, 200, `${daemon.child.descriptors} descriptors, ${before} before`)
      yield* Scenario.answers(runtime)
    }
  })
)

own.live("a frame that the proxy itself leaves unread is not held against its client", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start({ args: ["-frame-timeout", "300ms"] })
    const { agent, shim } = yield* Scenario.running(daemon)
    agent.pauseIo()
    const data = Scenario.pattern(8 * mebibyte)
    shim.send(Raw.stdin(data), Raw.stdin(""))
    // one that times out after the stall has begun, and then another, is the clock
    for (let n = 0; n < 2; n++) {
      const late = yield* daemon.connect
      late.send(Raw.command(Raw.Op.attachVM, { containerId: "x" }).subarray(0, 5))
      yield* late.dropped()
    }
    assert.isFalse(shim.isDropped)
    agent.resumeIo()
    yield* agent.stdinEnd(3)
    assert.isTrue(agent.stdin(3).equals(data))
  })
)

own.live("when descriptors run out clients wait, and are served when there are some again", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start({ shell: 'ulimit -n 60; exec "$0" "$@"' })
    const { runtime } = yield* boot(daemon)
    const crowd = yield* Effect.all(Array.from({ length: 100 }, () => daemon.connect))
    yield* Scenario.answers(runtime)
    const waiting = crowd.map((client) => client.post(Raw.Op.attachVM, { containerId: "ghost" }))
    yield* until("the first to be served", () => crowd[0]!.responses.length === 1)
    yield* Scenario.answers(runtime)
    for (const client of crowd.slice(0, 90)) client.hangUp()
    for (const [n, client] of crowd.entries()) {
      if (n >= 90 && !client.isDropped) refused(yield* client.response(waiting[n]!), "unknown containerID: ghost")
    }
    yield* daemon.settle
    yield* Scenario.answers(runtime)
    assert.isBelow(daemon.child.log.length, 20)
  })
)

own.live("forty clients that claim 16 MiB each and send little take no memory", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start()
    const before = daemon.child.memory.resident
    for (let n = 0; n < 40; n++) {
      const client = yield* daemon.connect
      const length = 8 * mebibyte
      client.send(Raw.header({ type: Raw.Type.command, opcode: Raw.Op.hyper, length }), Buffer.alloc(100))
    }
    yield* daemon.settle
    assert.isBelow(daemon.child.memory.resident - before, 128 * mebibyte)
  })
)
