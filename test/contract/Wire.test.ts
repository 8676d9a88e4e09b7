/** The rules of `Wire`, for the wires in memory that services are tested with and for those over sockets. */
import * as Effect from "effect/Effect"
import * as NodeWire from "../../src/layers/NodeWire.ts"
import { Condition } from "../../src/services/Condition.ts"
import type { Wire } from "../../src/services/Wire.ts"
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

const replaceInMemory = (wire: Wire) => Effect.sync(() => MemoryWire.adopt(wire.carry()!))

wireContract("a wire in memory", { connect: inMemory, replace: replaceInMemory, reading: MemoryWire.layerReading })
for (const [name, connect] of [
  ["an accepted socket", SocketPair.accepted],
  ["a dialled socket", SocketPair.dialled]
] as const)
  wireContract(name, { connect, replace: SocketPair.replace, reading: NodeWire.layerReading })
