import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Console from "../../src/services/Console.ts"
import { Dialer, WireClosed } from "../../src/services/Wire.ts"
import { utf8 } from "../support/Bytes.ts"
import * as MemoryWire from "../support/MemoryWire.ts"
import * as Records from "../support/Records.ts"

/** Follows a console that says `chunks` and then closes; what was logged. */
const follow = Effect.fnUntraced(function* (...chunks: ReadonlyArray<string | Uint8Array>) {
  const { a, b } = MemoryWire.pair("vm.console", "proxy")
  const { layer, records } = Records.make()
  let hungUp = false
  const dialer = Dialer.of({
    dial: () => Effect.acquireRelease(Effect.succeed(a), () => Effect.sync(() => void (hungUp = true))),
    adopt: () => Effect.never
  })
  const following = yield* Effect.forkChild(Console.follow(dialer, "vm.console", 1000).pipe(Effect.provide(layer)), {
    startImmediately: true
  })
  for (const chunk of chunks) {
    b.offer([typeof chunk === "string" ? utf8(chunk) : chunk])
    yield* Effect.yieldNow
  }
  assert.isFalse(hungUp)
  b.close()
  yield* Fiber.join(following)
  assert.isTrue(hungUp)
  for (const { annotations, level } of records)
    assert.deepStrictEqual([level, annotations["source"]], ["Debug", "qemu"])
  return records.map(({ msg }) => msg as string)
})

describe("a VM's console", () => {
  it.effect("is logged line by line, however it is cut", () =>
    Effect.gen(function* () {
      const lines = ["first", "second", "", "fourth"]
      assert.deepStrictEqual(yield* follow("first\nsecond\n\nfourth\n"), lines)
      assert.deepStrictEqual(yield* follow(...Array.from("first\nsecond\n\nfourth\n")), lines)
      assert.deepStrictEqual(yield* follow("fir", "st\nsec", "ond\n", "\nfourth", "\n"), lines)
    })
  )

  it.effect("loses its carriage returns at the ends of lines, and no others", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* follow("dos\r\n", "twice\r\r\n", "over\rwritten\r\n", "cut\r", "\n"), [
        "dos",
        "twice",
        "over\rwritten",
        "cut"
      ])
    })
  )

  it.effect("is logged to its last line, finished or not", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* follow("first\nKernel pan", "ic"), ["first", "Kernel panic"])
      assert.deepStrictEqual(yield* follow(), [])
    })
  )

  it.effect("takes several records for a long line, whether or not its end has come", () =>
    Effect.gen(function* () {
      const line = Array.from({ length: 20_000 }, (_, at) => String(at % 10)).join("")
      for (const chunks of [
        [`${line}\nnext\n`],
        [line, "\nnext\n"],
        [line.slice(0, 8000), `${line.slice(8000)}\nnext\n`]
      ]) {
        const records = yield* follow(...chunks)
        assert.strictEqual(records.pop(), "next")
        assert.strictEqual(records.join(""), line)
        for (const { length } of records) assert.isAtMost(length, 8192)
      }
    })
  )

  it.effect("takes one record for a line that just fits", () =>
    Effect.gen(function* () {
      const line = "x".repeat(8192)
      assert.deepStrictEqual(yield* follow(`${line}\nnext\n`), [line, "next"])
      assert.deepStrictEqual(yield* follow(line, "\nnext\n"), [line, "next"])
    })
  )

  it.effect("may print what is no UTF-8", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* follow(Uint8Array.of(0x61, 0xff, 0x62, 10)), ["a\ufffdb"])
    })
  )

  it.effect("that cannot be dialled is a warning", () =>
    Effect.gen(function* () {
      const { layer, records } = Records.make()
      const dialer = Dialer.of({
        dial: (path) => Effect.fail(new WireClosed({ peer: path, cause: new Error("connect ENOENT") })),
        adopt: () => Effect.never
      })
      yield* Console.follow(dialer, "/run/vm.console", 1000).pipe(Effect.provide(layer))
      assert.deepStrictEqual(
        records.map(({ level, msg }) => [level, msg]),
        [["Warn", "couldn't connect to the VM's console: /run/vm.console: connect ENOENT"]]
      )
    })
  )
})
