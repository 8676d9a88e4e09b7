import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Client from "../../src/client/index.ts"
import * as FakeProxy from "./FakeProxy.ts"
import { exited, response, stderr, stdout, turns, wire } from "./FakeProxy.ts"

const { Command } = Client.Frame
const text = (bytes: Uint8Array) => Buffer.from(bytes).toString()
const bytes = (text: string) => Buffer.from(text)

/** A connection and the proxy's end of it. */
const connected = Effect.fnUntraced(function* (options?: { readonly allowHalfOpen?: boolean }) {
  const proxy = yield* FakeProxy.make
  const connection = yield* Client.connect(proxy.path, options)
  return { connection, peer: yield* proxy.accept }
})

/** One whose ConnectShim has been answered. */
const claimed = Effect.fnUntraced(function* () {
  const both = yield* connected()
  const claim = yield* Effect.forkChild(both.connection.command(Command.ConnectShim, bytes("{}")))
  yield* both.peer.frame
  yield* both.peer.send(response(Command.ConnectShim))
  yield* Fiber.join(claim)
  return both
})

describe("connecting", () => {
  it.effect("fails with the path and the cause where nobody listens", () =>
    Effect.gen(function* () {
      const path = yield* FakeProxy.freePath
      const error = yield* Effect.flip(Client.connect(path))
      assert.strictEqual(error._tag, "ConnectFailed")
      assert.strictEqual(error.path, path)
      assert.match(error.message, /^cannot connect to .*ENOENT/)
    })
  )

  it.effect("fails likewise with a path that is too long for a socket", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(Client.connect(`/tmp/${"x".repeat(200)}`))
      assert.strictEqual(error._tag, "ConnectFailed")
    })
  )

  it.effect("takes the URL that RegisterVM gives", () =>
    Effect.gen(function* () {
      const proxy = yield* FakeProxy.make
      yield* Client.connect(`unix://${proxy.path}`)
      yield* proxy.accept
    })
  )

  it.effect("ends with its scope, at once, whatever the proxy does not read", () =>
    Effect.gen(function* () {
      const proxy = yield* FakeProxy.make
      const scope = yield* Scope.make()
      const connection = yield* Scope.provide(Client.connect(proxy.path), scope)
      const peer = yield* proxy.accept
      const sending = yield* Effect.forkChild(Effect.exit(connection.sendRaw(new Uint8Array(4 * 1024 * 1024))))
      const command = yield* Effect.forkChild(Effect.flip(connection.command(Command.Hyper, bytes("{}"))))
      const exitStatus = yield* Effect.forkChild(Effect.flip(connection.exitStatus))
      yield* turns(5)
      yield* Scope.close(scope, Exit.void)
      assert.isTrue(Exit.isFailure(yield* Fiber.join(sending)))
      const expected = new Client.ConnectionClosed({ reason: "closed by this side" })
      for (const error of [yield* Fiber.join(command), yield* Fiber.join(exitStatus), yield* connection.closed])
        assert.deepStrictEqual(error, expected)
      assert.isBelow((yield* peer.rest).length, 4 * 1024 * 1024)
    })
  )
})

describe("commands", () => {
  it.effect("get their responses in order with several in flight, however the bytes are cut", () =>
    Effect.gen(function* () {
      const { connection, peer } = yield* connected()
      const commands = yield* Effect.forkChild(
        Effect.forEach(["one", "two", "three"], (payload) => connection.command(Command.Hyper, bytes(payload)), {
          concurrency: "unbounded"
        })
      )
      for (const payload of ["one", "two", "three"]) assert.strictEqual(text((yield* peer.frame).payload), payload)
      const answers = ["first", "", "third"].map((payload) => response(Command.Hyper, payload))
      yield* peer.send(Buffer.concat(answers), 5)
      assert.deepStrictEqual((yield* Fiber.join(commands)).map(text), ["first", "", "third"])
    })
  )

  it.effect("that nobody waits for any more still take their place in the order", () =>
    Effect.gen(function* () {
      const { connection, peer } = yield* connected()
      const given = yield* Effect.forkChild(connection.command(Command.Hyper, bytes("up")))
      yield* peer.frame
      yield* Fiber.interrupt(given)
      const kept = yield* Effect.forkChild(connection.command(Command.Hyper, bytes("kept")))
      yield* peer.frame
      yield* peer.send(Buffer.concat([response(Command.Hyper, "late"), response(Command.Hyper, "mine")]))
      assert.strictEqual(text(yield* Fiber.join(kept)), "mine")
    })
  )

  it.effect("fail with the proxy's text, and the connection stays", () =>
    Effect.gen(function* () {
      const { connection, peer } = yield* connected()
      const failing = yield* Effect.forkChild(Effect.flip(connection.command(Command.AttachVM, bytes("{}"))))
      yield* peer.frame
      yield* peer.send(wire("00020300 00001102 00000020", '{"msg":"unknown containerID: p"}'), 1)
      assert.deepStrictEqual(
        yield* Fiber.join(failing),
        new Client.CommandFailed({ command: "AttachVM", message: "unknown containerID: p" })
      )
      const next = yield* Effect.forkChild(connection.command(Command.Hyper, bytes("{}")))
      yield* peer.frame
      yield* peer.send(response(Command.Hyper, "fine"))
      assert.strictEqual(text(yield* Fiber.join(next)), "fine")
    })
  )

  it.effect("fail even where the error response gives no reason", () =>
    Effect.gen(function* () {
      const { connection, peer } = yield* connected()
      const failing = yield* Effect.forkChild(Effect.flip(connection.command(Command.Hyper, bytes("{}"))))
      yield* peer.frame
      yield* peer.send(response(Command.Hyper, "not JSON", true))
      const error = yield* Fiber.join(failing)
      assert.deepStrictEqual(
        error,
        new Client.CommandFailed({ command: "Hyper", message: "the error response gives no reason" })
      )
    })
  )

  it.effect("never repeat a whole token in an error", () =>
    Effect.gen(function* () {
      const { connection, peer } = yield* connected()
      const token = "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRW-_8="
      const failing = yield* Effect.forkChild(Effect.flip(Client.connectShim(connection, token)))
      yield* peer.frame
      yield* peer.send(response(Command.ConnectShim, JSON.stringify({ msg: `unknown token: ${token}, sorry` }), true))
      const error = yield* Fiber.join(failing)
      assert.strictEqual(error.message, "unknown token: q83vEj…, sorry")
      assert.notInclude(JSON.stringify(error), token)
    })
  )

  it.effect("all fail when the proxy ends the connection, and so does every later one", () =>
    Effect.gen(function* () {
      const { connection, peer } = yield* connected()
      const waiting = yield* Effect.forkChild(
        Effect.forEach([1, 2], () => Effect.flip(connection.command(Command.Hyper, bytes("{}"))), {
          concurrency: "unbounded"
        })
      )
      yield* peer.frame
      yield* peer.end
      const expected = new Client.ConnectionClosed({ reason: "ended by the proxy" })
      assert.deepStrictEqual(yield* Fiber.join(waiting), [expected, expected])
      assert.deepStrictEqual(yield* Effect.flip(connection.command(Command.Hyper, bytes("{}"))), expected)
      assert.deepStrictEqual(yield* Effect.flip(connection.sendRaw(bytes("x"))), expected)
      assert.deepStrictEqual(yield* connection.closed, expected)
      assert.strictEqual(expected.message, "connection ended by the proxy")
    })
  )
})

describe("the end of a connection", () => {
  it.effect.each([1, 11, 12, 14])("inside a frame is told apart from an orderly one: after %i bytes", (size) =>
    Effect.gen(function* () {
      const { connection, peer } = yield* connected()
      const answer = yield* connection.expect(Command.Hyper)
      yield* peer.send(response(Command.Hyper, "reply").subarray(0, size))
      yield* peer.end
      const expected = new Client.ConnectionClosed({ reason: "ended by the proxy inside a frame" })
      assert.deepStrictEqual(yield* Effect.flip(answer), expected)
    })
  )

  it.effect("by a proxy that left bytes unread gives out first what it had sent", () =>
    Effect.gen(function* () {
      const { connection, peer } = yield* claimed()
      yield* connection.sendRaw(bytes("never read"))
      const frames = 12_000 // more than this side reads ahead
      yield* peer.send(Buffer.concat(Array.from({ length: frames }, () => stdout("y\n"))))
      yield* peer.destroy
      yield* turns(10)
      const pieces = yield* Stream.runCollect(connection.output)
      assert.strictEqual(pieces.map(({ data }) => text(data)).join(""), "y\n".repeat(frames))
      const end = yield* connection.closed
      assert.match(end.message, /^connection broken: .*ECONNRESET/)
      assert.deepStrictEqual(yield* Effect.flip(connection.exitStatus), end)
    })
  )

  it.effect("of which this side knows by a write that fails is told to everyone", () =>
    Effect.gen(function* () {
      const { connection, peer } = yield* connected()
      const answer = yield* connection.expect(Command.Hyper)
      const sending = yield* Effect.forkChild(Effect.flip(connection.sendRaw(new Uint8Array(4 * 1024 * 1024))))
      yield* turns(5)
      yield* peer.destroy
      const end = yield* Effect.flip(answer)
      assert.match(end.message, /^connection broken/)
      assert.match((yield* Fiber.join(sending)).message, /^connection broken/)
      assert.deepStrictEqual(yield* connection.closed, end)
    })
  )

  it.effect("by half-close leaves the other direction open", () =>
    Effect.gen(function* () {
      const { connection, peer } = yield* connected()
      const answer = yield* connection.expect(Command.Hyper)
      yield* connection.sendRaw(bytes("last words"))
      yield* connection.halfClose
      assert.strictEqual(text(yield* peer.rest), "last words")
      assert.deepStrictEqual(
        yield* Effect.flip(connection.sendRaw(bytes("more"))),
        new Client.ConnectionClosed({ reason: "closed by this side" })
      )
      yield* peer.send(response(Command.Hyper, "still here"))
      assert.strictEqual(text(yield* answer), "still here")
    })
  )

  it.effect("by the proxy ends this side too, unless it may stay half open", () =>
    Effect.gen(function* () {
      const usual = yield* connected()
      yield* usual.peer.end
      assert.strictEqual((yield* usual.peer.rest).length, 0)

      const halfOpen = yield* connected({ allowHalfOpen: true })
      yield* halfOpen.peer.end
      yield* halfOpen.connection.closed
      yield* halfOpen.connection.sendRaw(bytes("one more thing"))
      assert.strictEqual(text(yield* halfOpen.peer.take(14)), "one more thing")
    })
  )
})

describe("raw bytes", () => {
  it.effect("go out as they are, and their response is waited for by `expect`", () =>
    Effect.gen(function* () {
      const { connection, peer } = yield* connected()
      const answer = yield* connection.expect(Command.Hyper)
      yield* connection.sendRaw(bytes("\0\u0002rubb"))
      yield* connection.sendRaw(bytes("ish"))
      const later = yield* Effect.forkChild(connection.command(Command.UnregisterVM, bytes("{}")))
      assert.strictEqual(text(yield* peer.take(9)), "\0\u0002rubbish")
      assert.strictEqual(text((yield* peer.frame).payload), "{}")
      yield* peer.send(Buffer.concat([response(Command.Hyper, "x"), response(Command.UnregisterVM)]))
      assert.strictEqual(text(yield* answer), "x")
      assert.strictEqual(text(yield* Fiber.join(later)), "")
    })
  )
})

describe("a proxy that breaks the protocol", () => {
  const violations: ReadonlyArray<readonly [what: string, sent: Uint8Array, reason: string]> = [
    ["another version", wire("00030300 00000103 00000000"), "bad frame: version 3, expected 2"],
    ["a header too short", wire("00020200 00000103 00000000"), "bad frame: header length 2, expected 3 or more"],
    ["a command", wire("00020300 00000003 00000000"), "bad frame: type 0, expected one this side may send"],
    ["an unknown response", wire("00020300 00000107 00000000"), "bad frame: opcode 7, expected one this side may send"],
    ["stdin", wire("00020300 00000200 00000001", "x"), "bad frame: opcode 0, expected one this side may send"],
    ["17 MiB", wire("00020300 00000103 01100000"), "bad frame: payload length 17825792, expected 16777216 or less"],
    ["another command's response", response(Command.AttachVM), "a response to AttachVM, expected one to Hyper"],
    [
      "one response too many",
      Buffer.concat([response(Command.Hyper), response(Command.Hyper)]),
      "a response to Hyper, expected none"
    ],
    ["output that nobody asked for", stderr("x"), "a process's output before ConnectShim"],
    ["an exit status likewise", exited(0), "a process's output before ConnectShim"]
  ]

  it.effect.each(violations)("by %s ends the connection with a reason", ([, sent, reason]) =>
    Effect.gen(function* () {
      const { connection, peer } = yield* connected()
      const command = yield* Effect.forkChild(Effect.exit(connection.command(Command.Hyper, bytes("{}"))))
      yield* peer.frame
      yield* peer.send(sent, 3)
      const expected = new Client.ProtocolViolation({ reason })
      assert.deepStrictEqual(yield* connection.closed, expected)
      assert.strictEqual(expected.message, `protocol violation: ${reason}`)
      const outcome = yield* Fiber.join(command)
      assert.deepStrictEqual(outcome, reason.endsWith("none") ? Exit.succeed(Buffer.alloc(0)) : Exit.fail(expected))
      yield* peer.rest
    })
  )

  it.effect.each([
    [
      "output after the exit status",
      Buffer.concat([exited(1), stdout("x")]),
      "a process's output after its exit status"
    ],
    ["a second exit status", Buffer.concat([exited(1), exited(2)]), "a process's output after its exit status"],
    ["an exit without status", exited(), "ProcessExited without a status"]
  ] as const)("by %s ends a shim's connection", ([, sent, reason]) =>
    Effect.gen(function* () {
      const { connection, peer } = yield* claimed()
      yield* peer.send(sent)
      assert.deepStrictEqual(yield* connection.closed, new Client.ProtocolViolation({ reason }))
      yield* peer.rest
    })
  )
})
