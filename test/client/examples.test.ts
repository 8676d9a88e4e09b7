import * as Fs from "node:fs/promises"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import { state } from "./examples/errors.ts"
import { limitCore, stop } from "./examples/exec.ts"
import { tell } from "./examples/log.ts"
import { inTwoPieces, rubbish } from "./examples/raw.ts"
import { runContainer } from "./examples/run-container.ts"
import { runShim } from "./examples/shim.ts"
import * as Client from "../../src/client/index.ts"
import * as FakeProxy from "./FakeProxy.ts"
import { exited, response, stderr, stdout, turns } from "./FakeProxy.ts"

const { Command, FrameType, StreamKind } = Client.Frame

/** Answers a runtime as the proxy would, with a VM `pod1` of which it keeps what it was asked. */
const serve = Effect.fnUntraced(function* (proxy: FakeProxy.FakeProxy) {
  const asked: Array<string> = []
  let shim: FakeProxy.Peer | undefined

  const answer = (peer: FakeProxy.Peer, opcode: number, text: string) => {
    const payload = text === "" ? {} : JSON.parse(text)
    const succeed = (payload = "") => peer.send(response(opcode as Client.Frame.Command, payload))
    switch (opcode) {
      case Command.RegisterVM:
      case Command.AttachVM:
        if (payload.containerId !== "pod1")
          return peer.send(response(opcode, `{"msg":"unknown containerID: ${payload.containerId}"}`, true))
        return succeed(JSON.stringify({ io: { URL: `unix://${proxy.path}`, tokens: ["token"] } }))
      case Command.ConnectShim:
        shim = peer
        return succeed()
      case Command.DisconnectShim:
        return peer.end
      case Command.Hyper:
        if (payload.hyperName !== "newcontainer") return succeed()
        return Effect.andThen(
          succeed(),
          shim!.send(Buffer.concat([stdout("Sat "), stderr("warning\n"), stdout("25 Oct\n"), exited(3)]))
        )
      default:
        return succeed()
    }
  }

  yield* Effect.forkScoped(
    Effect.forever(
      Effect.gen(function* () {
        const peer = yield* proxy.accept
        yield* Effect.forkScoped(
          Effect.forever(
            Effect.gen(function* () {
              const { opcode, payload, type } = yield* peer.frame
              asked.push(`${type === FrameType.stream ? "stream " : ""}${opcode} ${payload.toString()}`)
              if (type === FrameType.command) yield* answer(peer, opcode, payload.toString())
            })
          ).pipe(Effect.catchCause(() => peer.end)) // the client has left
        )
      })
    )
  )
  return asked
})

describe("the examples of the client's page", () => {
  it.effect("run a container from its VM's registration to its end", () =>
    Effect.gen(function* () {
      const proxy = yield* FakeProxy.make
      const asked = yield* serve(proxy)
      assert.deepStrictEqual(yield* runContainer(proxy.path), { text: "Sat 25 Oct\n", status: 3 })
      assert.deepStrictEqual(
        asked.map((command) => command.slice(0, 31)),
        [
          '0 {"containerId":"pod1","ctlSer',
          '3 {"hyperName":"startpod","data',
          '4 {"token":"token"}',
          '3 {"hyperName":"newcontainer","',
          "5 ",
          '3 {"hyperName":"destroypod"}',
          '1 {"containerId":"pod1"}'
        ]
      )
    })
  )

  it.effect("send a 64-bit number as it stands", () =>
    Effect.gen(function* () {
      const proxy = yield* FakeProxy.make
      const asked = yield* serve(proxy)
      yield* limitCore(proxy.path)
      yield* stop(proxy.path)
      assert.match(asked[1]!, /"hard":18446744073709551615}]}}}$/)
      assert.strictEqual(
        asked[3],
        '3 {"hyperName":"killcontainer","data":{"container":"c1","signal":15,"allProcesses":false}}'
      )
    })
  )

  it.effect("are a shim that survives a restart of the proxy", () =>
    Effect.gen(function* () {
      const proxy = yield* FakeProxy.make
      const written: Array<string> = []
      const input = Stream.make("one\n", "two\n", "three\n").pipe(Stream.encodeText, Stream.rechunk(1))
      const running = yield* Effect.forkChild(
        runShim(proxy.path, "token", input, ({ data, stream }) =>
          Effect.sync(() => void written.push(`${stream} ${Buffer.from(data).toString()}`))
        )
      )
      const first = yield* proxy.accept
      yield* first.frame
      yield* first.send(Buffer.concat([response(Command.ConnectShim), stdout("hello")]))
      for (const line of ["one\n", "two\n", "three\n", ""])
        assert.strictEqual((yield* first.frame).payload.toString(), line)
      yield* first.end
      yield* first.rest
      yield* turns(5)
      yield* TestClock.adjust("100 millis")
      const second = yield* proxy.accept
      assert.strictEqual((yield* second.frame).payload.toString(), '{"token":"token"}')
      yield* second.send(Buffer.concat([response(Command.ConnectShim), stderr("bye"), exited(7)]))
      yield* second.end
      assert.strictEqual(yield* Fiber.join(running), 7)
      assert.deepStrictEqual(written, ["stdout hello", "stderr bye"])
    })
  )

  it.effect("tell one error from another", () =>
    Effect.gen(function* () {
      const path = yield* FakeProxy.freePath
      assert.strictEqual(yield* state(path, "pod1"), "no proxy")
      yield* serve(yield* FakeProxy.listen(path))
      assert.strictEqual(yield* state(path, "pod1"), "registered")
      assert.strictEqual(yield* state(path, "pod2"), "unknown")
    })
  )

  it.effect("write to the proxy's log", () =>
    Effect.gen(function* () {
      const proxy = yield* FakeProxy.make
      yield* tell(proxy.path, "hello")
      const peer = yield* proxy.accept
      const { opcode, payload, type } = yield* peer.frame
      assert.deepStrictEqual([type, opcode], [FrameType.stream, StreamKind.log])
      assert.strictEqual(payload.toString(), '{"source":"runtime","level":"info","containerId":"pod1","msg":"hello"}')
    })
  )

  it.effect("speak in bytes", () =>
    Effect.gen(function* () {
      const proxy = yield* FakeProxy.make
      yield* serve(proxy)
      assert.match(yield* inTwoPieces(proxy.path), /"tokens":\["token"\]/)

      const other = yield* FakeProxy.make
      const reaction = yield* Effect.forkChild(rubbish(other.path))
      const peer = yield* other.accept
      yield* peer.take(18)
      yield* peer.end
      assert.strictEqual(yield* Fiber.join(reaction), "ConnectionClosed")
    })
  )

  it.effect("stand on the page as they are here", () =>
    Effect.promise(async () => {
      const read = (path: string) => Fs.readFile(new URL(path, import.meta.url), "utf8")
      const page = await read("../../docs/client.md")
      const shown = [...page.matchAll(/^```ts\n([^]*?)^```$/gm)].map(([, code]) => code)
      const names = await Fs.readdir(new URL("examples", import.meta.url))
      const examples = await Promise.all(names.map((name) => read(`examples/${name}`)))
      assert.strictEqual(shown.length, names.length)
      for (const [at, code] of examples.entries())
        assert.include(shown, code.replace('"../../../src/client/index.ts"', '"cc-proxy/client"'), names[at])
    })
  )
})
