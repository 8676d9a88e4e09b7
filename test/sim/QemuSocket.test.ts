import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Path from "node:path"
import * as IoMessage from "../../src/domain/IoMessage.ts"
import * as QemuSocket from "../../src/sim/QemuSocket.ts"
import * as VmClient from "./VmClient.ts"
import { toText, utf8 } from "./VmClient.ts"

const device = Effect.gen(function* () {
  const socket = QemuSocket.make(Path.join(yield* VmClient.directory, "io.sock"))
  yield* socket.listen
  return socket
})

/** More than a socket has room for. */
const large = IoMessage.encode(3, Buffer.alloc(1_000_000))

describe("QemuSocket", { timeout: 30_000 }, () => {
  it.live("hands on what a client had written that left without reading, before what the next one writes", () =>
    Effect.gen(function* () {
      const socket = yield* device
      const first = yield* VmClient.connectIo(socket.path, true)
      yield* socket.send(IoMessage.encode(3, utf8("unread")))
      first.socket.write("first")
      yield* first.leave
      yield* socket.left // while nobody pulled
      const second = yield* VmClient.connectIo(socket.path)
      second.socket.write("second")
      let read = ""
      while (read.length < "firstsecond".length) read += toText(yield* socket.pull)
      assert.strictEqual(read, "firstsecond")
    })
  )

  it.live("holds 128 messages for a client that has stalled, the one under way included", () =>
    Effect.gen(function* () {
      const socket = yield* device
      const client = yield* VmClient.connectIo(socket.path, true)
      yield* socket.send(large)
      for (let i = 0; i < 200; i++) socket.offer(IoMessage.encode(5, utf8(`${i}`)))
      client.socket.resume()
      yield* client.arrived(128)
      yield* socket.send(IoMessage.encode(7, utf8("later")))
      yield* client.arrived(129)
      const [under, ...others] = client.drain()
      assert.strictEqual(under!.sequence, 3)
      const expected = Array.from({ length: 127 }, (_, i) => ({ sequence: 5, data: utf8(`${i}`) }))
      assert.deepStrictEqual(others, [...expected, { sequence: 7, data: utf8("later") }])
    })
  )

  it.live("begins with a whole message on a new connection, though the old one has read half of the last", () =>
    Effect.gen(function* () {
      const socket = yield* device
      const first = yield* VmClient.connectIo(socket.path, true)
      yield* socket.send(large)
      socket.offer(IoMessage.encode(5, utf8("held")))
      yield* Effect.callback<void>((resume) => {
        first.socket
          .removeAllListeners("data")
          .once("data", () => resume(Effect.void))
          .resume()
      })
      first.socket.pause()
      yield* first.leave
      yield* socket.left
      const second = yield* VmClient.connectIo(socket.path)
      yield* socket.send(IoMessage.encode(7, utf8("next")))
      assert.deepStrictEqual(yield* second.next, { sequence: 7, data: utf8("next") })
    })
  )
})
