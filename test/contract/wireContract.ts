/** What every `Wire` keeps to: sentences about the wire, and a peer at its other end that the test moves. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { Reading, type Wire, type WireClosed } from "../../src/services/Wire.ts"
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

/** A kind of wires. */
export interface Kind {
  readonly connect: Effect.Effect<Connection, never, Scope.Scope>
  readonly reading: Layer.Layer<Reading>
  /** The wire of another process that takes over where reading is held; the one that it replaces is gone. */
  readonly replace: (wire: Wire) => Effect.Effect<Wire, never, Scope.Scope>
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

/** The suite, for one kind of wires. */
export const wireContract = (name: string, { connect, reading, replace }: Kind) =>
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

    /** Holds all reading, to the scope's end at most, and lets what is under way come to rest. */
    const hold = Reading.pipe(
      Effect.tap(({ hold }) => Effect.sync(hold)),
      (held) => Effect.acquireRelease(held, ({ resume }) => Effect.sync(resume)),
      Effect.tap(() => Effect.repeat(turn, { times: 3 })),
      Effect.provide(reading)
    )

    const sizeOf = (chunks: ReadonlyArray<Uint8Array>) => concat(chunks).length

    describe("while reading is held", () => {
      it.live(
        "no pull resumes, one that waits no more than one that comes; then all do, with the bytes in their order",
        () =>
          Effect.gen(function* () {
            const [waiting, coming, full] = [yield* connect, yield* connect, yield* connect]
            const sent = pattern(300_000)
            for (const { peer, wire } of [coming, full]) {
              peer.write(utf8("early"))
              assert.strictEqual(toText(yield* wire.pull), "early")
            }
            full.peer.write(utf8("before"))
            yield* Effect.repeat(turn, { times: 2 })
            const first = yield* Effect.forkChild(waiting.wire.pull, now)
            const { resume } = yield* hold
            const third = yield* Effect.forkChild(full.wire.pull, now)
            waiting.peer.write(sent)
            coming.peer.write(sent)
            yield* turn
            const second = yield* Effect.forkChild(coming.wire.pull, now)
            yield* turn
            assert.isAbove(sizeOf(waiting.wire.carry()!.unread), 0)
            for (const pull of [first, second, third]) assert.isUndefined(pull.pollUnsafe())
            resume()
            assert.strictEqual(toText(yield* Fiber.join(third)), "before")
            waiting.peer.end()
            coming.peer.end()
            same(concat([yield* Fiber.join(first), (yield* drain(waiting.wire)).bytes]), sent)
            same(concat([yield* Fiber.join(second), (yield* drain(coming.wire)).bytes]), sent)
          })
      )

      it.live("the end of a peer is not seen, but is when reading goes on", () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          const reader = yield* Effect.forkChild(drain(wire), now)
          const { resume } = yield* hold
          peer.write(utf8("last words"))
          peer.end()
          yield* Effect.repeat(turn, { times: 3 })
          assert.isUndefined(reader.pollUnsafe())
          resume()
          const { bytes, error } = yield* Fiber.join(reader)
          assert.strictEqual(toText(bytes), "last words")
          assert.isUndefined(error.cause)
        })
      )

      it.live("what was offered still leaves", () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          yield* hold
          const sent = pattern(much)
          wire.offer([sent])
          peer.read()
          yield* wire.drained
          yield* peer.until(() => peer.size() >= much)
          same(peer.received(), sent)
          assert.deepStrictEqual(wire.carry()!.unsent, [])
        })
      )
    })

    describe("carry", () => {
      it.live("changes nothing for a wire that nobody takes over", () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          const [there, back] = [pattern(400_000), pattern(much)]
          peer.write(there)
          const chunks = [yield* wire.pull]
          wire.offer([back])
          const { resume } = yield* hold
          const [once, again] = [wire.carry()!, wire.carry()!]
          same(concat(once.unread), concat(again.unread))
          same(concat(once.unsent), concat(again.unsent))
          assert.strictEqual(sizeOf(once.unsent), wire.pending())
          same(concat(once.unsent), back.subarray(much - wire.pending()))
          wire.offer([utf8("behind")])
          assert.strictEqual(wire.offered(), much + 6)
          resume()
          peer.end()
          peer.read()
          chunks.push(...(yield* drain(wire)).chunks)
          same(concat(chunks), there)
        })
      )

      it.live("has nothing of a wire that is closed", () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          assert.isDefined(wire.descriptor())
          wire.offer([pattern(much)])
          peer.vanish()
          yield* drain(wire)
          yield* hold
          assert.isUndefined(wire.carry())
          assert.isUndefined(wire.descriptor())
        })
      )
    })

    describe("the one that takes over", () => {
      it.live("is given what the other one had not pulled, then what came later, each byte once", () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          const sent = pattern(700_000)
          peer.write(sent.subarray(0, 400_000))
          const chunks = [yield* wire.pull]
          const waiting = yield* Effect.forkChild(
            Effect.forever(Effect.map(wire.pull, (chunk) => void chunks.push(chunk))),
            now
          )
          yield* turn
          const { resume } = yield* hold
          yield* Fiber.interrupt(waiting) // with its process
          peer.write(sent.subarray(400_000, 500_000))
          yield* turn
          const successor = yield* replace(wire)
          resume()
          assert.strictEqual(successor.peer, wire.peer)
          peer.write(sent.subarray(500_000))
          peer.end()
          const { chunks: rest, error } = yield* drain(successor)
          same(concat([...chunks, ...rest]), sent)
          assert.isUndefined(error.cause)
        })
      )

      it.live("sends what the other one had not, each byte once, and counts it", () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          const parts = [pattern(much), utf8("queued"), pattern(70_000, 3)]
          wire.offer([parts[0]!])
          wire.offer([parts[1]!])
          const { resume } = yield* hold
          const pending = wire.pending()
          assert.isAbove(pending, 0)
          const successor = yield* replace(wire)
          resume()
          assert.strictEqual(successor.offered(), pending)
          assert.strictEqual(successor.pending(), pending)
          successor.offer([parts[2]!])
          peer.read()
          const sent = concat(parts)
          yield* peer.until(() => peer.size() >= sent.length)
          same(peer.received(), sent)
          yield* successor.drained
          assert.strictEqual(successor.pending(), 0)
        })
      )

      it.live("starts with nothing where nothing waited, and serves as the other one did", () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          peer.read()
          peer.write(utf8("ping"))
          assert.strictEqual(toText(yield* wire.pull), "ping")
          wire.offer([utf8("pong")])
          const { resume } = yield* hold
          const carried = wire.carry()!
          assert.deepStrictEqual([carried.unread, carried.unsent], [[], []])
          const successor = yield* replace(wire)
          resume()
          assert.deepStrictEqual([successor.offered(), successor.pending()], [0, 0])
          peer.write(utf8("again"))
          assert.strictEqual(toText(yield* successor.pull), "again")
          successor.offer([utf8("and again")])
          yield* peer.until(() => peer.size() >= 13)
          assert.strictEqual(toText(peer.received()), "pongand again")
        })
      )

      for (const seen of [true, false])
        it.live(`reads the peer's end, which the other one had ${seen ? "" : "not "}seen`, () =>
          Effect.gen(function* () {
            const { peer, wire } = yield* connect
            peer.write(utf8("last words"))
            peer.end()
            const before = seen ? (yield* drain(wire)).bytes : new Uint8Array(0)
            const { resume } = yield* hold
            const successor = yield* replace(wire)
            resume()
            const { bytes, error } = yield* drain(successor)
            assert.strictEqual(toText(concat([before, bytes])), "last words")
            assert.isUndefined(error.cause)
          })
        )
    })
  })
