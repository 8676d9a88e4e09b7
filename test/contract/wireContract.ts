/** What every `Wire` keeps to: sentences about the wire, and a peer at its other end that the test moves. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import type { Wire, WireClosed } from "../../src/services/Wire.ts"
import { concat, pattern, toText, utf8 } from "../support/Bytes.ts"
import { turn } from "../support/SocketPair.ts"

/** The other end of a wire. It reads nothing before `read`. */
export interface Peer {
  readonly write: (bytes: Uint8Array) => void
  /** All that it has read, and how much that is. */
  readonly received: () => Uint8Array
  readonly size: () => number
  readonly read: () => void
  /** Closes in order, behind what it wrote. */
  readonly end: () => void
  /** Is gone at once, and leaves unread what it has not read. */
  readonly vanish: () => void
  readonly until: (test: () => boolean) => Effect.Effect<void>
}

export interface Connection {
  readonly wire: Wire
  readonly peer: Peer
}

/** More than any kernel takes for a peer that does not read. */
const much = 4 * 1024 * 1024

export const same = (actual: Uint8Array, expected: Uint8Array): void => {
  assert.strictEqual(actual.length, expected.length)
  assert.isTrue(Buffer.from(actual.buffer, actual.byteOffset, actual.length).equals(expected), "other bytes")
}

/** All that a wire still gives out, and what it fails with then. */
export const drain = (wire: Wire) =>
  Effect.gen(function* () {
    const chunks: Array<Uint8Array> = []
    const error: WireClosed = yield* wire.pull.pipe(
      Effect.map((chunk) => chunks.push(chunk)),
      Effect.forever,
      Effect.flip
    )
    return { chunks, bytes: concat(chunks), error }
  })

const now = { startImmediately: true } as const

/** The suite, for wires that `connect` makes. */
export const wireContract = (name: string, connect: Effect.Effect<Connection, never, Scope.Scope>) =>
  describe(name, () => {
    describe("pull", () => {
      it.live("waits for bytes, and gives them out in their order", () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          const first = yield* Effect.forkChild(wire.pull, now)
          yield* turn
          assert.isUndefined(first.pollUnsafe())
          peer.write(utf8("first"))
          assert.strictEqual(toText(yield* Fiber.join(first)), "first")
          const sent = pattern(1_000_000)
          for (let at = 0; at < sent.length; at += 33_333) peer.write(sent.subarray(at, at + 33_333))
          peer.end()
          same((yield* drain(wire)).bytes, sent)
        })
      )

      it.live("gives out what came before the peer's end, then fails without a cause, however often it is asked", () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          peer.write(utf8("a"))
          assert.strictEqual(toText(yield* wire.pull), "a")
          for (const text of ["b", "c", "d"]) {
            peer.write(utf8(text))
            yield* turn // so that each comes by itself
          }
          peer.end()
          yield* turn
          const { bytes, error } = yield* drain(wire)
          assert.strictEqual(toText(bytes), "bcd")
          assert.strictEqual(error._tag, "WireClosed")
          assert.isUndefined(error.cause)
          assert.strictEqual(error.message, `${wire.peer} closed the connection`)
          assert.strictEqual((yield* Effect.flip(wire.pull)).message, error.message)
        })
      )

      it.live("gives out what came before the peer vanished, then fails with the cause", () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          peer.write(utf8("a"))
          assert.strictEqual(toText(yield* wire.pull), "a")
          wire.offer([utf8("never read")])
          for (const text of ["b", "c", "d"]) {
            peer.write(utf8(text))
            yield* turn
          }
          peer.vanish()
          yield* turn
          const { bytes, error } = yield* drain(wire)
          assert.strictEqual(toText(bytes), "bcd")
          assert.instanceOf(error.cause, Error)
          assert.include(error.message, `${wire.peer}: `)
          assert.include(error.message, "ECONNRESET")
        })
      )

      it.live("gives out what came before the peer vanished, even where writing is what shows that it did", () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          peer.write(utf8("a"))
          assert.strictEqual(toText(yield* wire.pull), "a")
          for (const text of ["b", "c"]) {
            peer.write(utf8(text))
            yield* turn
          }
          const sent = pattern(100_000)
          peer.write(sent)
          peer.vanish()
          wire.offer([utf8("never read")])
          wire.offer([utf8("nor this")])
          const { bytes, chunks, error } = yield* drain(wire)
          same(bytes, concat([utf8("bc"), sent]))
          for (const { length } of chunks.slice(0, -1)) assert.isAtMost(length, 64 * 1024)
          assert.instanceOf(error.cause, Error)
        })
      )

      it.live("that waits is failed by the peer's end", () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          const waiting = yield* Effect.forkChild(Effect.flip(wire.pull), now)
          yield* turn
          peer.end()
          assert.isUndefined((yield* Fiber.join(waiting)).cause)
        })
      )

      it.live("that is interrupted loses nothing", () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          const sent = pattern(2000)
          const chunks: Array<Uint8Array> = []
          for (let at = 0; at < sent.length; at += 100) {
            const pulling = yield* Effect.forkChild(
              Effect.map(wire.pull, (chunk) => void chunks.push(chunk)),
              now
            )
            // once before it comes, once while it is on its way, once after
            if (at % 300 === 0) yield* Fiber.interrupt(pulling)
            peer.write(sent.subarray(at, at + 100))
            if (at % 300 === 200) yield* turn
            yield* Fiber.interrupt(pulling)
          }
          peer.end()
          same(concat([...chunks, ...(yield* drain(wire)).chunks]), sent)
        })
      )
    })

    describe("offer", () => {
      it.live("hands over at once what the peer has room for, so that nothing is pending", () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          peer.read()
          for (const chunks of [[utf8("a")], [utf8("b"), utf8("c")], [pattern(3000), pattern(3000, 1)]]) {
            wire.offer(chunks)
            assert.strictEqual(wire.pending(), 0)
            yield* wire.drained
          }
          wire.offer([])
          const sent = concat([utf8("abc"), pattern(3000), pattern(3000, 1)])
          yield* peer.until(() => peer.size() >= sent.length)
          same(peer.received(), sent)
        })
      )

      it.live("queues behind what is pending, in order", () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          const parts = [pattern(much), utf8("one"), pattern(5000, 2), utf8("two"), utf8("three"), pattern(70_000, 3)]
          wire.offer([parts[0]!])
          const pending = wire.pending()
          assert.isAbove(pending, 0)
          wire.offer([parts[1]!, parts[2]!])
          wire.offer([parts[3]!, parts[4]!])
          wire.offer([parts[5]!])
          assert.strictEqual(wire.pending(), pending + concat(parts.slice(1)).length)
          peer.read()
          const sent = concat(parts)
          yield* peer.until(() => peer.size() >= sent.length)
          same(peer.received(), sent)
          yield* wire.drained
          assert.strictEqual(wire.pending(), 0)
        })
      )

      it.live("sends nothing once the wire is closed, and keeps it pending", () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          peer.end()
          yield* drain(wire)
          assert.strictEqual(wire.pending(), 0)
          wire.offer([pattern(much)])
          wire.offer([utf8("a"), utf8("b")])
          assert.strictEqual(wire.pending(), much + 2)
          peer.read()
          yield* turn
          assert.strictEqual(peer.size(), 0)
          assert.strictEqual(wire.pending(), much + 2)
        })
      )
    })

    describe("pending", () => {
      for (const how of ["end", "vanish"] as const)
        it.live(`still counts what the kernel never took once the peer is gone: ${how}`, () =>
          Effect.gen(function* () {
            const { peer, wire } = yield* connect
            wire.offer([pattern(much), utf8("behind")])
            peer[how]()
            yield* drain(wire)
            const pending = wire.pending()
            assert.isAbove(pending, 0)
            wire.offer([utf8("too late")])
            assert.strictEqual(wire.pending(), pending + 8)
          })
        )
    })

    it.live(
      "counts what was offered to a peer that has just vanished, and fails who waits for it, though nobody reads",
      () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          wire.offer([pattern(much)])
          const before = wire.pending()
          const waiting = yield* Effect.forkChild(Effect.flip(wire.drained), now)
          peer.vanish()
          assert.instanceOf((yield* Fiber.join(waiting)).cause, Error)
          assert.isAtLeast(wire.pending(), before)
        })
    )

    describe("drained", () => {
      it.live("waits until the peer has taken everything, whoever waits", () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          yield* wire.drained
          wire.offer([pattern(much)])
          const order: Array<string> = []
          const waiter = (name: string) =>
            Effect.forkChild(
              Effect.map(wire.drained, () => void order.push(`${name}: ${wire.pending()}`)),
              now
            )
          const waiters = [yield* waiter("first"), yield* waiter("left"), yield* waiter("third")]
          yield* Fiber.interrupt(waiters[1]!)
          yield* turn
          assert.deepStrictEqual(order, [])
          peer.read()
          yield* Fiber.join(waiters[0]!)
          yield* Fiber.join(waiters[2]!)
          assert.deepStrictEqual(order, ["first: 0", "third: 0"])
        })
      )

      for (const how of ["end", "vanish"] as const)
        it.live(`fails for whoever waits when the peer goes, and from then on: ${how}`, () =>
          Effect.gen(function* () {
            const { peer, wire } = yield* connect
            wire.offer([pattern(much)])
            const waiters = [
              yield* Effect.forkChild(Effect.flip(wire.drained), now),
              yield* Effect.forkChild(Effect.flip(wire.drained), now)
            ]
            // somebody always reads a wire, which is how it sees the end
            const reader = yield* Effect.forkChild(Effect.flip(wire.pull), now)
            peer[how]()
            const error = yield* Fiber.join(reader)
            const errors = [
              error,
              yield* Fiber.join(waiters[0]!),
              yield* Fiber.join(waiters[1]!),
              yield* Effect.flip(wire.drained)
            ]
            for (const { cause } of errors) assert.strictEqual(cause === undefined, how === "end")
          })
        )
    })
  })
