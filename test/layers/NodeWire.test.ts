import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { spawn } from "node:child_process"
import { randomBytes } from "node:crypto"
import * as Fs from "node:fs"
import * as Net from "node:net"
import * as Path from "node:path"
import * as NodeWire from "../../src/layers/NodeWire.ts"
import { Descriptors, Dialer, Reading, type Wire } from "../../src/services/Wire.ts"
import { drain, same } from "../contract/wireContract.ts"
import { concat, pattern, toText, utf8 } from "../support/Bytes.ts"
import * as SocketPair from "../support/SocketPair.ts"

const { eventually, openSockets, turn } = SocketPair

const now = { startImmediately: true } as const

/** System calls that wrote something, of this process. */
const writes = (): number => Number(/^syscw: (\d+)$/m.exec(Fs.readFileSync("/proc/self/io", "utf8"))![1])

/** How many writes `act` takes. Other threads of the process write too, so the least of several looks counts. */
const writesOf = (act: () => void) =>
  Effect.gen(function* () {
    let least = Number.POSITIVE_INFINITY
    for (let look = 0; look < 10; look++) {
      const before = writes()
      act()
      least = Math.min(least, writes() - before)
      yield* turn
    }
    return least
  })

/** How long a peer that does not close is waited for, in milliseconds, where that is not what the test is about. */
const long = 60_000

/** A wire that was accepted with `linger`, in a scope of its own, and what it stands on. */
const accepted = Effect.fnUntraced(function* (linger: number) {
  const { peer, socket } = yield* SocketPair.pair
  const scope = yield* Scope.make()
  const ending = new Set<Wire>()
  const wire = yield* NodeWire.accepted(socket, "peer", linger, ending).pipe(Scope.provide(scope))
  const closed = Effect.callback<void>((resume) => {
    if (socket.closed) return resume(Effect.void)
    socket.once("close", () => resume(Effect.void))
  })
  return { wire, peer, socket, closed, ending, close: Scope.close(scope, Exit.void) }
})

describe("a wire over a socket", () => {
  for (const [how, connect] of [
    ["accepted", SocketPair.accepted],
    ["dialled", SocketPair.dialled]
  ] as const)
    describe(how, () => {
      it.live("gives out 64 KiB at most", () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          peer.write(pattern(1_000_000))
          peer.end()
          yield* turn
          const { bytes, chunks } = yield* drain(wire)
          assert.strictEqual(bytes.length, 1_000_000)
          for (const { length } of chunks) assert.isAtMost(length, 64 * 1024)
        })
      )

      it.live("holds up a peer that nobody reads, before the first pull and after it", () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          for (let i = 0; i < 100; i++) peer.write(pattern(64 * 1024, i))
          const settled = Effect.gen(function* () {
            for (let turns = 0; turns < 30; turns++) yield* turn
            return peer.taken()
          })
          assert.isBelow(yield* settled, 512 * 1024)
          let pulled = 0
          for (let i = 0; i < 3; i++) {
            pulled += (yield* wire.pull).length
            assert.isBelow((yield* settled) - pulled, 512 * 1024)
          }
          for (; pulled < 6_553_600;) pulled += (yield* wire.pull).length
          assert.strictEqual(peer.taken(), 6_553_600)
        })
      )

      it.live("writes what is offered while nothing is pending at once, and in one piece", () =>
        Effect.gen(function* () {
          const { peer, wire } = yield* connect
          peer.read()
          const small = Array.from({ length: 50 }, (_, i) => pattern(100, i))
          for (const chunks of [[utf8("a")], small, [pattern(32 * 1024)]]) {
            assert.strictEqual(yield* writesOf(() => wire.offer(chunks)), 1)
            assert.strictEqual(wire.pending(), 0)
          }
          // a read may find several, but never a part of one
          assert.strictEqual((peer.reads.at(-1) ?? 0) % (32 * 1024), 0)
          assert.isAtMost(yield* writesOf(() => wire.offer([pattern(5000), pattern(6000)])), 2)
        })
      )

      it.live("reads nothing more once its scope has ended, and leaves no descriptor", () =>
        Effect.gen(function* () {
          const before = openSockets()
          yield* Effect.scoped(
            Effect.gen(function* () {
              const { peer, wire } = yield* connect
              peer.write(utf8("hello"))
              assert.strictEqual(toText(yield* wire.pull), "hello")
            })
          )
          yield* eventually(() => openSockets() === before)
        })
      )
    })

  it.live("is not read from before the first pull", () =>
    Effect.gen(function* () {
      const { peer, socket, wire } = yield* accepted(long)
      peer.write(utf8("early"))
      yield* turn
      assert.strictEqual(socket.bytesRead, 0)
      assert.strictEqual(toText(yield* wire.pull), "early")
    })
  )

  it.live("reads one full chunk in a turn of the event loop, so that a flood leaves the others their turns", () =>
    Effect.gen(function* () {
      const { peer, wire } = yield* SocketPair.accepted
      const size = 2_000_000
      peer.write(pattern(size))
      const seen: Array<number> = []
      yield* Effect.forkScoped(
        Effect.gen(function* () {
          for (;;) seen.push((yield* wire.pull).length)
        }),
        now
      )
      let read = 0
      let most = 0
      while (read < size) {
        yield* turn
        const chunks = seen.splice(0)
        most = Math.max(most, chunks.filter((length) => length === 64 * 1024).length)
        for (const length of chunks) read += length
      }
      assert.strictEqual(most, 1)
    })
  )

  it.live("counts at once what it could not write", () =>
    Effect.gen(function* () {
      const { peer, wire } = yield* accepted(long)
      peer.vanish()
      wire.offer([utf8("too late")])
      assert.strictEqual(wire.pending(), 8)
      wire.offer([utf8("and this all the more")])
      assert.strictEqual(wire.pending(), 29)
      assert.instanceOf((yield* Effect.flip(wire.drained)).cause, Error)
      assert.strictEqual(wire.pending(), 29)
    })
  )

  it.live("counts as taken whatever its peer has read, also of a chunk that the kernel took in part", () =>
    Effect.gen(function* () {
      for (let reads = 1; reads <= 12; reads++) {
        const { peer, wire } = yield* SocketPair.accepted
        for (let n = 0; n < 3; n++) wire.offer([pattern(512 * 1024)])
        assert.isAbove(wire.pending(), 0)
        let read = 0
        for (let n = 0; n < reads; n++) {
          read += peer.readNow(50_000)
          yield* turn
          yield* turn
        }
        peer.vanish()
        yield* Effect.ignore(Effect.forever(wire.pull))
        assert.isAtLeast(wire.offered() - wire.pending(), read)
      }
    }).pipe(Effect.scoped)
  )

  it.live("hands on once what it has read ahead, where a write fails", () =>
    Effect.gen(function* () {
      const { peer, wire } = yield* SocketPair.accepted
      const sent = randomBytes(1_000_000)
      peer.write(sent)
      const chunks = [yield* wire.pull] // and no more for now: what else has been read waits in the socket
      yield* turn
      yield* turn
      for (let n = 0; n < 4; n++) wire.offer([pattern(100_000)]) // more than the kernel takes
      peer.vanish()
      yield* Effect.ignore(Effect.forever(Effect.map(wire.pull, (chunk) => chunks.push(chunk))))
      const received = concat(chunks)
      same(received, sent.subarray(0, received.length))
    }).pipe(Effect.scoped)
  )

  it.live("is closed from the start over a socket that was destroyed", () =>
    Effect.gen(function* () {
      const { socket } = yield* SocketPair.pair
      socket.destroy()
      const wire = NodeWire.make(socket, "peer")
      assert.strictEqual((yield* Effect.flip(wire.pull))._tag, "WireClosed")
      wire.offer([utf8("a")])
      assert.strictEqual(wire.pending(), 1)
    })
  )
})

/** Holds all reading until `resume`, or the scope's end, and lets what is under way come to rest. */
const hold = Reading.pipe(
  Effect.tap(({ hold }) => Effect.sync(hold)),
  (held) => Effect.acquireRelease(held, ({ resume }) => Effect.sync(resume)),
  Effect.tap(() => Effect.repeat(turn, { times: 3 })),
  Effect.provide(NodeWire.layerReading)
)

describe("a wire that is carried", () => {
  it.live("has what Node read ahead, in chunks of 64 KiB at most, and goes on with them", () =>
    Effect.gen(function* () {
      const { peer, socket, wire } = yield* accepted(long)
      const sent = pattern(1_000_000)
      peer.write(sent)
      const chunks = [yield* wire.pull]
      yield* turn
      const { resume } = yield* hold
      assert.isAbove(socket.readableLength, 0)
      const { unread } = wire.carry()!
      assert.strictEqual(socket.readableLength, 0)
      same(concat([...chunks, ...unread]), sent.subarray(0, socket.bytesRead))
      resume()
      peer.end()
      chunks.push(...(yield* drain(wire)).chunks)
      same(concat(chunks), sent)
      for (const { length } of [...chunks, ...unread]) assert.isAtMost(length, 64 * 1024)
    })
  )

  it.live("counts a piece that Node is writing as not sent, and neither loses nor doubles it", () =>
    Effect.gen(function* () {
      const { peer, wire } = yield* SocketPair.accepted
      const sent = pattern(2_000_000)
      wire.offer([sent])
      let read = 0
      for (let n = 0; n < 5; n++) {
        read += peer.readNow(50_000)
        yield* turn
        const { unsent } = wire.carry()!
        same(concat(unsent), sent.subarray(sent.length - wire.pending()))
      }
      const { resume } = yield* hold
      const successor = yield* SocketPair.replace(wire)
      resume()
      peer.read()
      yield* peer.until(() => read + peer.size() >= sent.length)
      yield* successor.drained
      same(peer.received(), sent.subarray(read))
    })
  )

  it.live("is not closed by its peer's end while reading is held: what is offered leaves, or is carried", () =>
    Effect.gen(function* () {
      const { peer, wire } = yield* accepted(long)
      const reader = yield* Effect.forkChild(drain(wire), now)
      const closing = yield* Effect.forkChild(wire.closed, now)
      const { resume } = yield* hold
      peer.end()
      yield* Effect.repeat(turn, { times: 3 })
      const sent = pattern(3_000_000)
      wire.offer([sent])
      same(concat(wire.carry()!.unsent), sent.subarray(sent.length - wire.pending()))
      assert.isBelow(wire.pending(), sent.length)
      assert.isUndefined(closing.pollUnsafe())
      resume()
      assert.isUndefined((yield* Fiber.join(reader)).error.cause)
      yield* Fiber.join(closing)
    })
  )

  it.live("is not held where it breaks: nobody else could go on with it", () =>
    Effect.gen(function* () {
      const { peer, wire } = yield* accepted(long)
      const reader = yield* Effect.forkChild(drain(wire), now)
      yield* hold
      wire.offer([utf8("never read")])
      peer.write(utf8("last words"))
      peer.vanish()
      const { bytes, error } = yield* Fiber.join(reader)
      assert.strictEqual(toText(bytes), "last words")
      assert.instanceOf(error.cause, Error)
      assert.isUndefined(wire.carry())
    })
  )

  it.live("is not read from by the one that takes over before its first pull, and leaves no descriptor behind", () =>
    Effect.gen(function* () {
      const before = openSockets()
      yield* Effect.scoped(
        Effect.gen(function* () {
          const { peer, wire } = yield* SocketPair.dialled
          const { resume } = yield* hold
          const successor = yield* SocketPair.replace(wire)
          resume()
          peer.write(utf8("early"))
          yield* Effect.repeat(turn, { times: 3 })
          assert.strictEqual(SocketPair.socketOf(successor.descriptor()!).bytesRead, 0)
          assert.strictEqual(toText(yield* successor.pull), "early")
        })
      )
      yield* eventually(() => openSockets() <= before + 1) // and the one by which descriptors are duplicated
    })
  )

  it.live("is what its descriptor tells: another of the same socket has its inode, and a file has none", () =>
    Effect.gen(function* () {
      const { close, inode } = yield* Descriptors
      const { wire } = yield* SocketPair.dialled
      const other = yield* SocketPair.dialled
      const known = inode(wire.descriptor()!)
      assert.isDefined(known)
      assert.notStrictEqual(inode(other.wire.descriptor()!), known)
      yield* hold
      const { descriptor } = yield* SocketPair.handedOver(() => wire.carry())
      assert.strictEqual(inode(descriptor), known)
      close(descriptor)
      assert.isUndefined(inode(descriptor))
      const file = Fs.openSync("/dev/null", "r")
      assert.isUndefined(inode(file))
      close(file)
      assert.throws(() => Fs.fstatSync(file), /EBADF/)
    }).pipe(Effect.provide(NodeWire.layerDescriptors))
  )
})

describe("the end of an accepted connection", () => {
  it.live("lets what was offered leave, then tells the peer, which may go on writing until it closes", () =>
    Effect.gen(function* () {
      const { close, closed, peer, socket, wire } = yield* accepted(long)
      const offered = [pattern(3_000_000), utf8("last words")]
      wire.offer(offered)
      const closing = yield* Effect.forkChild(close, { startImmediately: true })
      yield* turn
      assert.isUndefined(closing.pollUnsafe()) // it is still leaving
      peer.read()
      yield* Fiber.join(closing)
      yield* peer.until(peer.ended)
      same(peer.received(), concat(offered))
      for (let i = 0; i < 50; i++) peer.write(pattern(100_000, i))
      yield* peer.until(() => peer.taken() === 5_000_000)
      assert.isFalse(socket.destroyed)
      peer.end()
      yield* closed
      yield* eventually(peer.closed)
      assert.isUndefined(peer.error())
    })
  )

  it.live("loses a flooding peer nothing of what it was about to read", () =>
    Effect.gen(function* () {
      const { close, closed, peer, wire } = yield* accepted(long)
      for (let i = 0; i < 100; i++) peer.write(pattern(100_000, i))
      yield* wire.pull
      const answer = pattern(100_000, 7)
      wire.offer([answer])
      yield* close
      yield* peer.until(() => peer.taken() === 10_000_000)
      peer.read()
      yield* peer.until(peer.ended)
      same(peer.received(), answer)
      assert.isUndefined(peer.error())
      peer.end()
      yield* closed
    })
  )

  it.live("does not wait for a peer that stays, but closes upon it after a while", () =>
    Effect.gen(function* () {
      const { close, closed, peer, socket, wire } = yield* accepted(50)
      wire.offer([utf8("bye")])
      peer.read()
      yield* close
      assert.isFalse(socket.destroyed)
      yield* peer.until(peer.ended)
      assert.strictEqual(toText(peer.received()), "bye")
      yield* closed
    })
  )

  it.live("waits no longer than that for a peer that does not read", () =>
    Effect.gen(function* () {
      const { close, socket, wire } = yield* accepted(50)
      wire.offer([pattern(3_000_000)])
      const start = performance.now()
      yield* close
      assert.isAtLeast(performance.now() - start, 45)
      assert.isTrue(socket.destroyed)
    })
  )

  it.live("that its peer began lets what was offered leave all the same", () =>
    Effect.gen(function* () {
      const { close, closed, peer, wire } = yield* accepted(long)
      const offered = pattern(1_000_000)
      wire.offer([offered])
      peer.end()
      yield* Effect.flip(wire.pull)
      peer.read()
      yield* close
      yield* peer.until(peer.ended)
      same(peer.received(), offered)
      yield* closed
    })
  )

  it.live("is over at once where the peer has vanished", () =>
    Effect.gen(function* () {
      const { close, peer, socket, wire } = yield* accepted(long)
      wire.offer([pattern(3_000_000)])
      peer.vanish()
      yield* Effect.flip(wire.pull)
      yield* close
      assert.isTrue(socket.destroyed)
    })
  )

  it.live("can be carried, as long as it lasts, with nothing but what is still to leave", () =>
    Effect.gen(function* () {
      const { close, closed, ending, peer, wire } = yield* accepted(long)
      const offered = pattern(3_000_000)
      peer.write(utf8("a"))
      yield* wire.pull
      peer.write(utf8("never pulled"))
      yield* Effect.repeat(turn, { times: 2 })
      wire.offer([offered])
      assert.strictEqual(ending.size, 0)
      const closing = yield* Effect.forkChild(close, now)
      const { resume } = yield* hold
      assert.deepStrictEqual(Array.from(ending), [wire])
      const { unread, unsent } = wire.carry()!
      assert.deepStrictEqual(unread, [])
      same(concat(unsent), offered.subarray(offered.length - wire.pending()))
      resume()
      peer.read()
      yield* peer.until(peer.ended)
      yield* Fiber.join(closing)
      same(peer.received(), offered)
      assert.deepStrictEqual(wire.carry()!.unsent, [])
      peer.end()
      yield* closed
      assert.strictEqual(ending.size, 0)
    })
  )

  it.live("survives a peer that vanishes behind it", () =>
    Effect.gen(function* () {
      const { close, closed, peer, wire } = yield* accepted(long)
      wire.offer([utf8("never read")])
      yield* close
      peer.vanish()
      yield* closed
    })
  )
})

describe("dialling", () => {
  const dial = (path: string, millis = 1000) =>
    Effect.flatMap(Dialer, ({ dial }) => dial(path, millis)).pipe(Effect.provide(NodeWire.layerDialer))

  /** Connects until no more may wait to be accepted, without letting anybody accept. */
  const fill = (path: string) =>
    Effect.acquireRelease(
      Effect.sync(() =>
        Array.from({ length: 3 }, () => {
          const socket = Net.connect({ path })
          socket.on("error", NodeWire.heard)
          return socket
        })
      ),
      (sockets) => Effect.sync(() => sockets.forEach((socket) => socket.destroy()))
    )

  it.live("waits for a peer with whom as many wait already as may", () =>
    Effect.gen(function* () {
      const path = Path.join(yield* SocketPair.directory, "socket")
      const accepted: Array<Net.Socket> = []
      const server = yield* Effect.acquireRelease(
        Effect.callback<Net.Server>((resume) => {
          const server = Net.createServer((socket) => void accepted.push(socket))
          server.listen({ path, backlog: 1 }, () => resume(Effect.succeed(server)))
        }),
        (server) => Effect.sync(() => server.close())
      )
      const [first, second, third] = yield* fill(path)
      const wire = yield* dial(path, long) // which accepts while it waits
      assert.deepStrictEqual(
        [first!, second!, third!].map(({ destroyed }) => destroyed),
        [false, false, true] // there was no room for it
      )
      assert.strictEqual(accepted.length, 3)
      accepted.at(-1)!.end("hello")
      assert.strictEqual(toText(yield* wire.pull), "hello")
      for (const socket of accepted) socket.destroy()
      assert.isTrue(server.listening)
    })
  )

  it.live("gives up on a peer that accepts nobody in time, and leaves no descriptor", () =>
    Effect.gen(function* () {
      const path = Path.join(yield* SocketPair.directory, "socket")
      const deaf = `const { createServer } = require("node:net")
        createServer().listen({ path: ${JSON.stringify(path)}, backlog: 1 }, () => {
          require("node:fs").writeSync(1, "listening")
          Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
        })`
      yield* Effect.acquireRelease(
        Effect.callback<{ readonly kill: () => void }>((resume) => {
          const child = spawn(process.execPath, ["-e", deaf], { stdio: ["ignore", "pipe", "inherit"] })
          child.stdout.once("data", () => resume(Effect.succeed({ kill: () => child.kill("SIGKILL") })))
        }),
        ({ kill }) => Effect.sync(kill)
      )
      yield* fill(path)
      yield* turn
      const before = openSockets()
      const error = yield* Effect.flip(dial(path, 100))
      assert.strictEqual(error.message, `${path} does not accept connections`)
      const dialling = yield* Effect.forkChild(Effect.scoped(dial(path, long)), now)
      yield* turn
      yield* Fiber.interrupt(dialling)
      yield* eventually(() => openSockets() === before)
    })
  )

  it.live("fails with the cause, and leaves no descriptor, where nobody listens", () =>
    Effect.gen(function* () {
      const path = Path.join(yield* SocketPair.directory, "nobody")
      const before = openSockets()
      const error = yield* Effect.flip(dial(path))
      assert.strictEqual(error.message, `${path}: connect ENOENT ${path}`)
      assert.strictEqual(error.peer, path)
      yield* eventually(() => openSockets() === before)
    })
  )

  it.live("that is interrupted leaves no descriptor", () =>
    Effect.gen(function* () {
      const before = openSockets()
      const dialling = yield* Effect.forkChild(Effect.scoped(SocketPair.dialled), { startImmediately: true })
      yield* Fiber.interrupt(dialling)
      yield* eventually(() => openSockets() === before)
    })
  )

  it.live("closes the connection at the end of its scope", () =>
    Effect.gen(function* () {
      const path = Path.join(yield* SocketPair.directory, "socket")
      const { accept } = yield* SocketPair.serve(path)
      yield* Effect.scoped(dial(path))
      const socket = yield* Effect.acquireRelease(accept, (socket) => Effect.sync(() => socket.destroy()))
      const peer = SocketPair.makePeer(socket)
      peer.read()
      yield* peer.until(peer.ended)
    })
  )
})
