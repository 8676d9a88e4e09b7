/** What stands around the daemon: no service manager, no daemon before it, and none that comes after it, unless a test says so. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { none, ServiceManager } from "../../src/services/ServiceManager.ts"
import { Predecessor, Successor, SuccessorError } from "../../src/services/Successor.ts"
import { Descriptors } from "../../src/services/Wire.ts"
import { MemoryState } from "./MemoryState.ts"
import * as MemoryWire from "./MemoryWire.ts"

/** Nobody asks for a hand-over. */
export const alone = Successor.of({
  asked: Effect.never,
  prepare: () => Effect.fail(new SuccessorError({ reason: "there is none" })),
  handOver: () => new SuccessorError({ reason: "there is none" }),
  leave: () => {
    throw new Error("the daemon leaves")
  }
})

/** Nothing was left. */
export const first = Predecessor.of({
  pid: undefined,
  receive: () => undefined,
  inherited: [],
  accept: () => {},
  refuse: () => {}
})

/** An inode that tells its descriptor. */
export const inodeOf = (descriptor: number): number => descriptor + 1_000_000

export const layerDescriptors = Layer.succeed(Descriptors, { inode: inodeOf, close: () => {} })

export const layer = Layer.mergeAll(
  layerDescriptors,
  MemoryState.layer,
  MemoryWire.layerReading,
  Layer.succeed(Predecessor, first),
  Layer.succeed(ServiceManager, none),
  Layer.succeed(Successor, alone)
)
