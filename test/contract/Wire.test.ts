/** The rules of `Wire`, for the wires in memory that services are tested with and for those over sockets. */
import * as Effect from "effect/Effect"
import { Condition } from "../../src/services/Condition.ts"
import { concat } from "../support/Bytes.ts"
import * as MemoryWire from "../support/MemoryWire.ts"
import * as SocketPair from "../support/SocketPair.ts"
import { type Connection, type Peer, wireContract } from "./wireContract.ts"

const inMemory = Effect.gen(function* () {
  const { a, b } = MemoryWire.pair("peer", "wire")
  const changed = new Condition()
  const chunks: Array<Uint8Array> = []
  let size = 0
  a.stall()
  yield* Effect.forkScoped(
    b.pull.pipe(
      Effect.map((chunk) => {
        chunks.push(chunk)
        size += chunk.length
        changed.notify()
      }),
      Effect.forever,
      Effect.ignore
    ),
    { startImmediately: true }
  )
  const peer: Peer = {
    write: (bytes) => b.offer([bytes]),
    received: () => concat(chunks),
    size: () => size,
    read: () => a.resume(),
    end: () => b.close(),
    vanish: () => b.close(new Error("read ECONNRESET")),
    until: (test) => changed.until(test)
  }
  return { wire: a, peer } satisfies Connection
})

wireContract("a wire in memory", inMemory)
wireContract("an accepted socket", SocketPair.accepted)
wireContract("a dialled socket", SocketPair.dialled)
