import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import * as Client from "../../src/client/index.ts"
import * as FakeProxy from "./FakeProxy.ts"
import { exited, response, stderr, stdout, turns, wire } from "./FakeProxy.ts"

const { Command } = Client.Frame
const KiB = 1024
const claimBytes = wire("00020300 00000004 00000011", '{"token":"abcde"}')

/** A shim of the token `abcde`, and the proxy's end of its connection. */
const connected = Effect.gen(function* () {
  const proxy = yield* FakeProxy.make
  const connection = yield* Client.connect(proxy.path)
  const peer = yield* proxy.accept
  const claim = yield* Effect.forkChild(Client.connectShim(connection, "abcde"))
  assert.deepStrictEqual(yield* peer.take(claimBytes.length), claimBytes)
  yield* peer.send(response(Command.ConnectShim))
  return { shim: yield* Fiber.join(claim), connection, peer }
})

/** Output as one line per run of a stream. */
const transcript = (pieces: ReadonlyArray<Client.Output>): ReadonlyArray<string> => {
  const lines: Array<string> = []
  let last: string | undefined
  for (const { data, stream } of pieces) {
    if (stream === last) lines[lines.length - 1] += Buffer.from(data).toString()
    else lines.push(`${stream}: ${Buffer.from(data).toString()}`)
    last = stream
  }
  return lines
}

describe("output", () => {
  it.effect.each([1, 7, 12, 13, 1000])("comes in order and ends after the exit status, cut every %i bytes", (cut) =>
    Effect.gen(function* () {
      const { peer, shim } = yield* connected
      const collecting = yield* Effect.forkChild(Stream.runCollect(shim.output))
      const frames = [stdout("hello\n"), stderr("err\n"), stderr("more\n"), stdout(""), stdout("bye\n"), exited(7)]
      yield* peer.send(Buffer.concat(frames), cut)
      const pieces = yield* Fiber.join(collecting)
      assert.deepStrictEqual(transcript(pieces), ["stdout: hello\n", "stderr: err\nmore\n", "stdout: bye\n"])
      assert.isTrue(pieces.every(({ data }) => data.length > 0))
      assert.strictEqual(yield* shim.exitStatus, 7)
    })
  )

  it.effect("that came with the response to ConnectShim is not lost", () =>
    Effect.gen(function* () {
      const proxy = yield* FakeProxy.make
      const connection = yield* Client.connect(proxy.path)
      const peer = yield* proxy.accept
      const claim = yield* Effect.forkChild(Client.connectShim(connection, "abcde"))
      yield* peer.frame
      yield* peer.send(Buffer.concat([response(Command.ConnectShim), stdout("early"), exited(0)]))
      const shim = yield* Fiber.join(claim)
      assert.deepStrictEqual(transcript(yield* Stream.runCollect(shim.output)), ["stdout: early"])
    })
  )

  it.effect("ends with the connection, and the exit status then tells why there is none", () =>
    Effect.gen(function* () {
      const { peer, shim } = yield* connected
      yield* peer.send(stdout("half a"))
      yield* peer.end
      assert.deepStrictEqual(transcript(yield* Stream.runCollect(shim.output)), ["stdout: half a"])
      const expected = new Client.ConnectionClosed({ reason: "ended by the proxy" })
      assert.deepStrictEqual(yield* Effect.flip(shim.exitStatus), expected)
    })
  )

  it.effect("is a piece of a frame as soon as it is there", () =>
    Effect.gen(function* () {
      const { peer, shim } = yield* connected
      const whole = stdout("x".repeat(100))
      yield* peer.send(whole.subarray(0, 12 + 40))
      const first = yield* shim.output.pipe(Stream.take(1), Stream.runCollect)
      assert.deepStrictEqual(transcript(first), [`stdout: ${"x".repeat(40)}`])
      yield* peer.send(Buffer.concat([whole.subarray(12 + 40), exited(0)]))
      assert.deepStrictEqual(transcript(yield* Stream.runCollect(shim.output)), [`stdout: ${"x".repeat(60)}`])
    })
  )

  it.effect("holds the proxy back while nobody reads, and loses nothing", () =>
    Effect.gen(function* () {
      const { peer, shim } = yield* connected
      const frame = stdout(Buffer.alloc(64 * KiB, "x"))
      let sent = 0
      const flood = yield* Effect.forkChild(
        Effect.gen(function* () {
          for (; sent < 256; sent++) yield* peer.send(frame)
          yield* peer.send(exited(0))
        })
      )
      yield* turns(400)
      assert.isAbove(sent, 0)
      assert.isBelow(sent, 16, "the kernel's buffers and two of 64 KiB on this side, not 16 MiB")

      let received = 0
      const read = (piece: Client.Output) => Effect.sync(() => (received += piece.data.length))
      yield* Stream.runForEach(shim.output, read)
      assert.strictEqual(received, 256 * 64 * KiB)
      yield* Fiber.join(flood)
      assert.strictEqual(yield* shim.exitStatus, 0)
    })
  )

  it.effect("counts tiny pieces by what they cost, not by what they hold", () =>
    Effect.gen(function* () {
      const { peer, shim } = yield* connected
      const frames = Buffer.concat(Array.from({ length: 4096 }, () => stdout("x")))
      let sent = 0
      const flood = yield* Effect.forkChild(
        Effect.gen(function* () {
          for (; sent < 100; sent++) yield* peer.send(frames)
          yield* peer.send(exited(0))
        })
      )
      yield* turns(400)
      assert.isBelow(sent * frames.length, 1024 * KiB)
      assert.strictEqual(yield* shim.discardOutput, 0)
      yield* Fiber.join(flood)
    })
  )
})

describe("the exit status", () => {
  it.effect("comes after the reader has handled the last piece", () =>
    Effect.gen(function* () {
      const { peer, shim } = yield* connected
      const handled: Array<string> = []
      const gate = yield* Deferred.make<void>()
      yield* Effect.forkChild(
        Stream.runForEach(shim.output, ({ data }) =>
          Effect.gen(function* () {
            if (data[0] === 50) yield* Deferred.await(gate)
            handled.push(Buffer.from(data).toString())
          })
        )
      )
      const status = yield* Effect.forkChild(shim.exitStatus)
      yield* peer.send(Buffer.concat([stdout("1"), stdout("2"), exited(3)]))
      yield* turns(10)
      assert.deepStrictEqual(handled, ["1"])
      assert.isUndefined(status.pollUnsafe())
      yield* Deferred.succeed(gate, undefined)
      assert.strictEqual(yield* Fiber.join(status), 3)
      assert.deepStrictEqual(handled, ["1", "2"])
    })
  )

  it.effect("waits for somebody to read the output; discardOutput does", () =>
    Effect.gen(function* () {
      const { peer, shim } = yield* connected
      const status = yield* Effect.forkChild(shim.exitStatus)
      yield* peer.send(Buffer.concat([stdout("x".repeat(300 * KiB)).subarray(0, 100 * KiB)]))
      yield* turns(10)
      assert.isUndefined(status.pollUnsafe())
      const discarding = yield* Effect.forkChild(shim.discardOutput)
      yield* peer.send(Buffer.concat([stdout("x".repeat(300 * KiB)).subarray(100 * KiB), exited(255)]))
      assert.strictEqual(yield* Fiber.join(discarding), 255)
      assert.strictEqual(yield* Fiber.join(status), 255)
    })
  )

  it.effect("that has come stays known after the connection's end", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const { peer, shim } = yield* Scope.provide(connected, scope)
      yield* peer.send(exited(4))
      yield* turns(5)
      yield* Scope.close(scope, yield* Effect.exit(Effect.void))
      assert.strictEqual(yield* shim.exitStatus, 4)
    })
  )
})

describe("input", () => {
  it.effect("goes out in frames of 64 KiB at most, and its end is an empty one", () =>
    Effect.gen(function* () {
      const { peer, shim } = yield* connected
      const data = Buffer.from(Array.from({ length: 130 * KiB }, (_, at) => at % 251))
      const sending = yield* Effect.forkChild(
        Effect.gen(function* () {
          yield* shim.stdin(data)
          yield* shim.stdin(new Uint8Array(0)) // must not look like the end
          yield* shim.stdin(Buffer.from("tail"))
          yield* shim.endStdin
        })
      )
      const expected = Buffer.concat([
        wire("00020300 00000200 00010000"),
        data.subarray(0, 64 * KiB),
        wire("00020300 00000200 00010000"),
        data.subarray(64 * KiB, 128 * KiB),
        wire("00020300 00000200 00000800"),
        data.subarray(128 * KiB),
        wire("00020300 00000200 00000004", "tail"),
        wire("00020300 00000200 00000000")
      ])
      assert.isTrue((yield* peer.take(expected.length)).equals(expected))
      yield* Fiber.join(sending)
    })
  )

  it.effect("waits while the proxy does not read", () =>
    Effect.gen(function* () {
      const { peer, shim } = yield* connected
      const piece = new Uint8Array(16 * KiB)
      let taken = 0
      const feeding = yield* Effect.forkChild(
        Effect.gen(function* () {
          for (; taken < 1024; taken++) yield* shim.stdin(piece)
          yield* shim.endStdin
        })
      )
      yield* turns(1200)
      assert.isAbove(taken, 0)
      assert.isBelow(taken, 64, "1 MiB at most has left the caller's hands, not 16 MiB")

      let received = 0
      for (let size = -1; size !== 0; received += size) size = (yield* peer.frame).payload.length
      assert.strictEqual(received, 1024 * 16 * KiB)
      yield* Fiber.join(feeding)
    })
  )

  it.effect("goes on while output waits for its reader", () =>
    Effect.gen(function* () {
      const { peer, shim } = yield* connected
      const flood = yield* Effect.forkChild(peer.send(stdout(Buffer.alloc(1024 * KiB))))
      yield* turns(10)
      yield* shim.stdin(Buffer.from("typed"))
      assert.strictEqual((yield* peer.frame).payload.toString(), "typed")
      yield* Fiber.interrupt(flood)
    })
  )

  it.effect("fails once the connection is over", () =>
    Effect.gen(function* () {
      const { connection, peer, shim } = yield* connected
      yield* peer.end
      yield* connection.closed
      const expected = new Client.ConnectionClosed({ reason: "ended by the proxy" })
      assert.deepStrictEqual(yield* Effect.flip(shim.stdin(Buffer.from("x"))), expected)
      assert.deepStrictEqual(yield* Effect.flip(shim.endStdin), expected)
      assert.deepStrictEqual(yield* Effect.flip(shim.signal(2)), expected)
      assert.deepStrictEqual(yield* Effect.flip(shim.disconnect), expected)
    })
  )
})

describe("signals", () => {
  it.effect("and sizes go out as the Signal command and wait for its response", () =>
    Effect.gen(function* () {
      const { peer, shim } = yield* connected
      const signal = yield* Effect.forkChild(shim.signal(15))
      const expectedSignal = wire("00020300 00000006 00000013", '{"signalNumber":15}')
      assert.deepStrictEqual(yield* peer.take(expectedSignal.length), expectedSignal)
      yield* peer.send(response(Command.Signal))
      yield* Fiber.join(signal)

      const resize = yield* Effect.forkChild(Effect.flip(shim.resize(80, 24)))
      const expectedSize = wire("00020300 00000006 0000002a", '{"signalNumber":28,"columns":80,"rows":24}')
      assert.deepStrictEqual(yield* peer.take(expectedSize.length), expectedSize)
      yield* peer.send(response(Command.Signal, '{"msg":"no terminal"}', true))
      assert.deepStrictEqual(
        yield* Fiber.join(resize),
        new Client.CommandFailed({ command: "Signal", message: "no terminal" })
      )
    })
  )
})

describe("disconnect", () => {
  const disconnectBytes = wire("00020300 00000005 00000000")

  it.effect("says so, drops what is left and returns when the proxy has closed the connection", () =>
    Effect.gen(function* () {
      const { peer, shim } = yield* connected
      yield* peer.send(stdout(Buffer.alloc(90 * KiB)))
      const leaving = yield* Effect.forkChild(shim.disconnect)
      assert.deepStrictEqual(yield* peer.take(disconnectBytes.length), disconnectBytes)
      yield* turns(5)
      assert.isUndefined(leaving.pollUnsafe())
      yield* peer.end
      yield* Fiber.join(leaving)
      assert.strictEqual((yield* peer.rest).length, 0)
    })
  )

  it.effect("is the usual end after the exit status", () =>
    Effect.gen(function* () {
      const { peer, shim } = yield* connected
      yield* peer.send(exited(0))
      yield* Stream.runDrain(shim.output)
      const leaving = yield* Effect.forkChild(shim.disconnect)
      yield* peer.take(disconnectBytes.length)
      yield* peer.end
      yield* Fiber.join(leaving)
    })
  )

  it.effect("fails where the proxy answers with rubbish", () =>
    Effect.gen(function* () {
      const { peer, shim } = yield* connected
      const leaving = yield* Effect.forkChild(Effect.flip(shim.disconnect))
      yield* peer.take(disconnectBytes.length)
      yield* peer.send(response(Command.DisconnectShim))
      assert.strictEqual((yield* Fiber.join(leaving))._tag, "ProtocolViolation")
    })
  )
})

describe("withShim", () => {
  const claim = Effect.fnUntraced(function* (proxy: FakeProxy.FakeProxy) {
    const peer = yield* proxy.accept
    assert.deepStrictEqual(yield* peer.take(claimBytes.length), claimBytes)
    yield* peer.send(response(Command.ConnectShim))
    return peer
  })

  /** Collects output over all connections until the process has exited. */
  const run = (path: string, collected: Array<string>) =>
    Client.withShim(path, "abcde", (shim) =>
      Effect.gen(function* () {
        yield* Stream.runForEach(shim.output, ({ data }) =>
          Effect.sync(() => void collected.push(Buffer.from(data).toString()))
        )
        return yield* shim.exitStatus
      })
    )

  it.effect("connects again 0.1 s after each close, with the same token", () =>
    Effect.gen(function* () {
      const proxy = yield* FakeProxy.make
      const collected: Array<string> = []
      const running = yield* Effect.forkChild(run(proxy.path, collected))
      for (const word of ["one", "two", "three"]) {
        const peer = yield* claim(proxy)
        yield* peer.send(stdout(word))
        yield* peer.end
        yield* peer.rest
        yield* turns(5)
        const before = proxy.connections()
        yield* TestClock.adjust("99 millis")
        yield* turns(5)
        assert.strictEqual(proxy.connections(), before)
        yield* TestClock.adjust("1 millis")
      }
      const last = yield* claim(proxy)
      yield* last.send(exited(9))
      assert.strictEqual(yield* Fiber.join(running), 9)
      assert.deepStrictEqual(collected, ["one", "two", "three"])
      yield* last.rest
      assert.strictEqual(proxy.connections(), 4)
    })
  )

  it.effect("waits out a proxy that is not there for a while", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const path = yield* FakeProxy.freePath
      const first = yield* Scope.provide(FakeProxy.listen(path), scope)
      const running = yield* Effect.forkChild(run(path, []))
      yield* claim(first)
      yield* Scope.close(scope, yield* Effect.exit(Effect.void))
      for (let tenths = 0; tenths < 50; tenths++) {
        yield* turns(5)
        yield* TestClock.adjust("100 millis")
      }
      const second = yield* FakeProxy.listen(path)
      yield* turns(5)
      yield* TestClock.adjust("100 millis")
      const peer = yield* claim(second)
      yield* peer.send(exited(1))
      assert.strictEqual(yield* Fiber.join(running), 1)
    })
  )

  it.effect("gives up 10 s after the close, having tried every 0.1 s", () =>
    Effect.gen(function* () {
      const proxy = yield* FakeProxy.make
      const running = yield* Effect.forkChild(Effect.flip(run(proxy.path, [])))
      // a claim that succeeds starts the count anew
      for (const _ of [1, 2]) {
        const peer = yield* claim(proxy)
        yield* peer.end
        yield* peer.rest
        yield* turns(5)
        yield* TestClock.adjust("100 millis")
      }
      const closed = (yield* Clock.currentTimeMillis) - 100
      while (running.pollUnsafe() === undefined) {
        const peer = yield* proxy.accept
        yield* peer.end
        yield* peer.rest
        yield* turns(5)
        yield* TestClock.adjust(running.pollUnsafe() === undefined ? "100 millis" : 0)
      }
      const expected = new Client.ConnectionClosed({ reason: "ended by the proxy" })
      assert.deepStrictEqual(yield* Fiber.join(running), expected)
      assert.strictEqual(proxy.connections(), 2 + 100)
      assert.strictEqual((yield* Clock.currentTimeMillis) - closed, 10_000)
    })
  )

  it.effect("takes an error response to the claim as final", () =>
    Effect.gen(function* () {
      const proxy = yield* FakeProxy.make
      const running = yield* Effect.forkChild(Effect.flip(run(proxy.path, [])))
      yield* Effect.flatMap(claim(proxy), (peer) => peer.end)
      yield* turns(10)
      yield* TestClock.adjust("100 millis")
      const peer = yield* proxy.accept
      yield* peer.frame
      yield* peer.send(response(Command.ConnectShim, '{"msg":"unknown token: abc"}', true))
      assert.deepStrictEqual(
        yield* Fiber.join(running),
        new Client.CommandFailed({ command: "ConnectShim", message: "unknown token: abc" })
      )
      yield* peer.rest
    })
  )

  it.effect("does not insist on a first connection that cannot be made", () =>
    Effect.gen(function* () {
      const path = yield* FakeProxy.freePath
      const error = yield* Effect.flip(run(path, []))
      assert.strictEqual(error._tag, "ConnectFailed")
    })
  )

  it.effect("hands on what its user fails with, and leaves", () =>
    Effect.gen(function* () {
      const proxy = yield* FakeProxy.make
      const running = yield* Effect.forkChild(
        Effect.flip(Client.withShim(proxy.path, "abcde", () => Effect.fail("enough" as const)))
      )
      const peer = yield* claim(proxy)
      assert.strictEqual(yield* Fiber.join(running), "enough")
      yield* peer.rest
    })
  )
})
