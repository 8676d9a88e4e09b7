import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as Daemon from "../../src/layers/Daemon.ts"
import { defaults, type Settings } from "../../src/services/Settings.ts"
import * as FakeAgent from "../support/e2e/FakeAgent.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import * as RawClient from "../support/e2e/RawClient.ts"
import { accepted, hyper, tokensOf } from "../support/e2e/Scenario.ts"
import { happened, until } from "../support/e2e/Wait.ts"
import * as Records from "../support/Records.ts"
import { directory, eventually, openSockets } from "../support/SocketPair.ts"

/** A daemon that was started by nobody, and follows none. */
const alone = (path: string): Omit<Daemon.Options, "settings" | "socketPath"> => ({
  listening: { fd: undefined, owned: true },
  pod: false,
  spoolParents: [path],
  state: { directory: Path.join(path, "state"), owned: true },
  program: { program: process.execPath, args: [], environment: {} },
  managed: false,
  predecessor: undefined,
  stored: [],
  onSuccession: () => {}
})

/** A daemon in this process, with one agent in its directory. */
const start = Effect.fnUntraced(function* (options: Partial<Daemon.Options> = {}, settings: Partial<Settings> = {}) {
  const path = yield* directory
  const socketPath = Path.join(path, "proxy.sock")
  const agent = yield* FakeAgent.start(path)
  const { layer, records } = Records.make(happened)
  const running = yield* Effect.forkScoped(
    Daemon.run({
      settings: { ...defaults, ...settings },
      socketPath,
      ...alone(path),
      ...options
    }).pipe(Effect.provide(layer))
  )
  yield* until("the daemon to listen", () => records.some(({ msg }) => msg === "listening") || running.pollUnsafe())
  const connect = RawClient.connect(socketPath)
  const logged = (msg: string) => until(msg, () => records.some((record) => record.msg === msg))
  return { agent, connect, logged, records, running, socketPath }
})

/** A pod whose only process runs, its runtime and its shim. */
const boot = Effect.fnUntraced(function* ({ agent, connect }: Effect.Success<ReturnType<typeof start>>) {
  const runtime = yield* connect
  const registered = yield* runtime.request(Raw.Op.registerVM, {
    containerId: "pod",
    ctlSerial: agent.ctlPath,
    ioSerial: agent.ioPath,
    numIOStreams: 1
  })
  const [token] = tokensOf(registered)
  const shim = yield* connect
  accepted(yield* shim.request(Raw.Op.connectShim, { token }))
  accepted(
    yield* runtime.request(Raw.Op.hyper, {
      hyperName: "newcontainer",
      tokens: [token],
      data: { id: "c1", process: {} }
    })
  )
  return { runtime, shim, url: (JSON.parse(registered.payload.toString()) as { io: { URL: string } }).io.URL }
})

/** The rest of that pod's life. */
const finish = Effect.fnUntraced(function* (
  { agent, connect, logged }: Effect.Success<ReturnType<typeof start>>,
  { shim, runtime }: Effect.Success<ReturnType<typeof boot>>
) {
  shim.send(Raw.stdin("hello\n"), Raw.stdin(""))
  yield* agent.stdinEnd(3)
  assert.strictEqual(agent.stdin(3).toString(), "hello\n")
  agent.sendIo([3, "hello "], [4, "oops"], [3, "world"])
  agent.exit(3, 7)
  yield* shim.until("its status", () => shim.exits.length === 1)
  assert.deepStrictEqual(shim.story, ["stdout hello ", "stderr oops", "stdout world", "exit 7"])
  shim.send(Raw.command(Raw.Op.disconnectShim))
  yield* shim.dropped()
  shim.hangUp()
  accepted(yield* runtime.request(Raw.Op.hyper, hyper("destroypod")))
  agent.powerOff()
  yield* logged("VM lost")
  const last = yield* connect
  accepted(yield* last.request(Raw.Op.unregisterVM, { containerId: "pod" }))
})

describe("the daemon", () => {
  it.live("serves a pod from its registration to its end, and goes on", () =>
    Effect.gen(function* () {
      const daemon = yield* start()
      const pod = yield* boot(daemon)
      assert.strictEqual(pod.url, `unix://${daemon.socketPath}`)
      yield* finish(daemon, pod)
      const next = yield* daemon.connect
      const answer = yield* next.request(Raw.Op.attachVM, { containerId: "pod" })
      assert.strictEqual(answer.payload.toString(), '{"msg":"unknown containerID: pod"}')
      assert.isUndefined(daemon.running.pollUnsafe())
    })
  )

  it.live("closes everything when it is interrupted, in the middle of a pod's life", () =>
    Effect.gen(function* () {
      const before = openSockets()
      yield* Effect.scoped(
        Effect.gen(function* () {
          const daemon = yield* start()
          const { runtime, shim } = yield* boot(daemon)
          const idle = yield* daemon.connect
          daemon.agent.answer(Raw.Ctl.readfile, "hold")
          runtime.post(Raw.Op.hyper, hyper("readfile"))
          yield* daemon.agent.command(Raw.Ctl.readfile)
          yield* Fiber.interrupt(daemon.running)
          assert.isFalse(Fs.existsSync(daemon.socketPath))
          for (const client of [runtime, shim, idle]) {
            yield* client.dropped()
            assert.isUndefined(client.error)
            client.hangUp()
          }
          yield* until("the agent's channels to end", () => daemon.agent.connected.every((connected) => !connected))
          daemon.agent.close()
          yield* eventually(() => openSockets() === before)
        })
      )
    })
  )

  it.live("ends with its pod in pod mode", () =>
    Effect.gen(function* () {
      const daemon = yield* start({ pod: true })
      yield* finish(daemon, yield* boot(daemon))
      yield* Fiber.join(daemon.running)
      assert.isFalse(Fs.existsSync(daemon.socketPath))
    })
  )

  it.live("ends in pod mode although nobody unregisters its VM, after a while", () =>
    Effect.gen(function* () {
      const daemon = yield* start({ pod: true }, { podTimeout: Duration.millis(50) })
      const { runtime } = yield* boot(daemon)
      daemon.agent.powerOff()
      yield* Fiber.join(daemon.running)
      yield* runtime.dropped()
    })
  )

  it.live("fails where it cannot listen", () =>
    Effect.gen(function* () {
      const daemon = yield* start()
      const second = Daemon.run({
        settings: defaults,
        socketPath: daemon.socketPath,
        ...alone(Path.dirname(daemon.socketPath))
      })
      const error = yield* Effect.flip(second)
      assert.strictEqual(error.message, `another process serves ${daemon.socketPath}`)
      yield* daemon.connect
    })
  )
})
