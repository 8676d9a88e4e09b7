import { assert, describe, it } from "@effect/vitest"
import * as TestClock from "effect/testing/TestClock"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import type { AgentKind } from "../../src/domain/Agent.ts"
import * as IoMessage from "../../src/domain/IoMessage.ts"
import { Condition } from "../../src/services/Condition.ts"
import {
  AgentRefused,
  CtlChannel,
  type CtlFailure,
  type CtlRequest,
  CtlTimeout,
  VmLost
} from "../../src/services/CtlChannel.ts"
import { Deadlines } from "../../src/services/Deadlines.ts"
import { Session } from "../../src/services/Session.ts"
import { defaults } from "../../src/services/Settings.ts"
import { StdinWriter } from "../../src/services/StdinWriter.ts"
import { concat, pattern, toText, utf8 } from "../support/Bytes.ts"
import { unused } from "../support/MemorySpool.ts"
import * as MemoryWire from "../support/MemoryWire.ts"
import * as Owner from "../support/Owner.ts"
import * as Records from "../support/Records.ts"

/** A writer, what it has written, one entry a write, and the pings that it waits for. */
const make = Effect.fnUntraced(function* (kind: AgentKind, debug = false) {
  const { a, b } = MemoryWire.pair("vm.io", "proxy")
  const changed = new Condition()
  const writes: Array<Uint8Array> = []
  yield* Effect.forkScoped(
    b.pull.pipe(
      Effect.map((chunk) => {
        writes.push(chunk)
        changed.notify()
      }),
      Effect.forever,
      Effect.ignore
    ),
    { startImmediately: true }
  )
  const pings: Array<(answer: Effect.Effect<Uint8Array, CtlFailure>) => void> = []
  const run = yield* FiberSet.makeRuntime()
  class FakeCtl extends CtlChannel {
    override kind() {
      return kind
    }
    override request({ command }: CtlRequest) {
      return Effect.callback<Uint8Array, CtlFailure>((resume) => {
        assert.strictEqual(command, "ping")
        pings.push(resume)
        changed.notify()
      })
    }
  }
  const handlers = { connecting: () => {}, event: () => undefined, lost: () => {}, run }
  const wire = MemoryWire.pair("vm.ctl", "proxy").a
  const ctl = new FakeCtl(wire, handlers, defaults, yield* Clock.Clock, yield* Deadlines.make)
  const writer = new StdinWriter(a, ctl, debug, run)
  /** A session whose process has started. */
  const session = (stdio: number) => {
    const session = new Session(`token ${stdio}`, stdio, Owner.make({ stdin: (woken) => writer.wake(woken) }), unused)
    session.begin({ container: "c", process: undefined, terminal: false, init: true })
    session.written()
    session.settled(true)
    return {
      /** A batch of its own. */
      feed: (data: Uint8Array) => {
        session.feed(data)
        session.pump()
      }
    }
  }
  /** Sequence and size of each message of a write. */
  const messages = (write: Uint8Array) => {
    const found: Array<readonly [sequence: number, size: number]> = []
    let at = 0
    for (; at < write.length; at += IoMessage.lengthAt(write, at))
      found.push([IoMessage.sequenceAt(write, at), IoMessage.lengthAt(write, at) - IoMessage.headerSize])
    assert.strictEqual(at, write.length, "a write that cuts a message")
    return found
  }
  /** All that was written for one session. */
  const dataOf = (sequence: number) => {
    const parts: Array<Uint8Array> = []
    for (const write of writes)
      for (let at = 0; at < write.length; at += IoMessage.lengthAt(write, at))
        if (IoMessage.sequenceAt(write, at) === sequence)
          parts.push(write.subarray(at + IoMessage.headerSize, at + IoMessage.lengthAt(write, at)))
    return concat(parts)
  }
  const until = (test: () => boolean) => changed.until(test)
  return { wire: a, agent: b, writes, pings, session, messages, dataOf, until }
})

describe("StdinWriter", () => {
  it.effect("writes at once, whole messages, 32 KiB at most", () =>
    Effect.gen(function* () {
      const { dataOf, messages, session, until, writes } = yield* make("go")
      const sent = pattern(200_000)
      session(3).feed(sent)
      yield* TestClock.adjust("20 millis")
      yield* until(() => writes.length === Math.ceil(200_000 / (32 * 1012)) + 1) // the rest comes by itself
      assert.isTrue(Buffer.from(dataOf(3)).equals(sent))
      for (const write of writes) assert.isAtMost(write.length, 32 * 1024)
      const sizes = writes.flatMap(messages).map(([, size]) => size)
      assert.deepStrictEqual(new Set(sizes.slice(0, -1)), new Set([1012]))
    })
  )

  it.effect("writes nothing while the agent is behind, and goes on once it has caught up", () =>
    Effect.gen(function* () {
      const { dataOf, session, until, wire, writes } = yield* make("go")
      const it = session(3)
      wire.stall()
      it.feed(utf8("a"))
      for (const text of ["b", "c", "d"]) it.feed(utf8(text))
      assert.strictEqual(wire.pending(), 13) // the first only
      wire.resume()
      yield* until(() => writes.length === 2)
      assert.strictEqual(toText(dataOf(3)), "abcd")
    })
  )

  it.effect("gives each session its turn", () =>
    Effect.gen(function* () {
      const { messages, session, until, wire, writes } = yield* make("go")
      wire.stall()
      const [a, b, c] = [session(3), session(5), session(7)]
      for (const it of [a, b, c]) it.feed(pattern(64 * 1012))
      wire.resume()
      yield* until(() => writes.length >= 6)
      const turns = writes.map((write) => messages(write)[0]![0])
      assert.deepStrictEqual(turns, [3, 3, 5, 7, 5, 7]) // nobody else was there yet at the first
      for (const write of writes) assert.strictEqual(new Set(messages(write).map(([sequence]) => sequence)).size, 1)
    })
  )

  it.effect("stops with the wire", () =>
    Effect.gen(function* () {
      const { agent, session, wire, writes } = yield* make("go")
      wire.stall()
      const it = session(3)
      it.feed(utf8("a"))
      it.feed(utf8("b"))
      agent.close()
      yield* Effect.yieldNow
      it.feed(utf8("c"))
      yield* Effect.yieldNow
      assert.deepStrictEqual(writes, [])
    })
  )

  describe("for a C agent", () => {
    const ok = Effect.succeed(new Uint8Array(0))

    it.effect("waits for four answered pings between 512 bytes and the next, one at a time", () =>
      Effect.gen(function* () {
        const { dataOf, pings, session, until, writes } = yield* make("c")
        const it = session(3)
        it.feed(pattern(700))
        it.feed(pattern(300, 1))
        for (let answered = 1; answered <= 4; answered++) {
          yield* until(() => pings.length === answered)
          it.feed(utf8("x")) // asks for nothing more
          assert.strictEqual(dataOf(3).length, 512)
          pings[answered - 1]!(ok)
        }
        yield* until(() => writes.length === 2)
        assert.deepStrictEqual(dataOf(3), concat([pattern(700), pattern(300, 1), utf8("xxxx")]).subarray(0, 1004))
        assert.strictEqual(pings.length, 4)
      })
    )

    it.effect("holds up one session only", () =>
      Effect.gen(function* () {
        const { dataOf, pings, session, until } = yield* make("c")
        session(3).feed(pattern(600))
        yield* until(() => pings.length === 1)
        session(5).feed(pattern(600))
        yield* until(() => pings.length === 2 && dataOf(5).length > 0)
        assert.deepStrictEqual([dataOf(3).length, dataOf(5).length], [512, 512])
      })
    )

    it.effect("counts a ping that was refused as answered, and asks again for one that was not", () =>
      Effect.gen(function* () {
        const { dataOf, pings, session, until } = yield* make("c")
        session(3).feed(pattern(600))
        const timeout = new CtlTimeout({ command: "ping", written: true, after: defaults.ctlTimeout })
        const refused = new AgentRefused({ command: "ping", text: "" })
        const answers = [ok, Effect.fail(timeout), Effect.fail(refused), Effect.fail(timeout), ok, ok]
        for (const [at, answer] of answers.entries()) {
          yield* until(() => pings.length === at + 1)
          assert.strictEqual(dataOf(3).length, 512)
          pings[at]!(answer)
        }
        yield* until(() => dataOf(3).length === 600)
        assert.strictEqual(pings.length, answers.length)
      })
    )

    it.effect("gives up with the VM", () =>
      Effect.gen(function* () {
        const { dataOf, pings, session, until } = yield* make("c")
        session(3).feed(pattern(600))
        yield* until(() => pings.length === 1)
        pings[0]!(Effect.fail(new VmLost({ reason: "gone" })))
        yield* Effect.yieldNow
        assert.deepStrictEqual([pings.length, dataOf(3).length], [1, 512])
      })
    )
  })

  it.effect("dumps what it writes, at debug only", () =>
    Effect.gen(function* () {
      for (const debug of [false, true]) {
        const { layer, records } = Records.make()
        yield* Effect.gen(function* () {
          const { session } = yield* make("go", debug)
          session(3).feed(utf8("secret"))
          session(3).feed(new Uint8Array(0))
          yield* Effect.yieldNow
        }).pipe(Effect.scoped, Effect.provide(layer))
        assert.deepStrictEqual(
          records.map(({ fields, level, msg }) => [level, fields, msg]),
          debug
            ? [
                [
                  "Debug",
                  { io: "to agent", sequence: 3 },
                  "00000000  73 65 63 72 65 74                                 |secret|"
                ],
                ["Debug", { io: "to agent", sequence: 3 }, "end of the stream"]
              ]
            : []
        )
      }
    })
  )
})
