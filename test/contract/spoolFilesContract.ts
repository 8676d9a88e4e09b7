/** What every `SpoolFiles` keeps to. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { SpoolFiles } from "../../src/services/Spool.ts"
import { concat, pattern } from "../support/Bytes.ts"

export interface Opened {
  readonly files: SpoolFiles["Service"]
  /** The files there are. */
  readonly names: () => ReadonlyArray<string>
}

const same = (actual: Uint8Array, expected: Uint8Array): void => {
  assert.strictEqual(actual.length, expected.length)
  assert.isTrue(Buffer.from(actual).equals(expected), "other bytes")
}

/** The suite, for files that `open` makes ready. */
export const spoolFilesContract = (name: string, open: Effect.Effect<Opened, never, Scope.Scope>) =>
  describe(name, () => {
    it.live("gives back what has been written, from any byte on", () =>
      Effect.gen(function* () {
        const { files } = yield* open
        const bytes = pattern(300_000)
        yield* files.write("a", 0, [bytes])
        same(yield* files.read("a", 0, bytes.length), bytes)
        same(yield* files.read("a", 123_457, 70_001), bytes.subarray(123_457, 193_458))
        same(yield* files.read("a", bytes.length - 1, 1), bytes.subarray(-1))
      })
    )

    it.live("goes on where the last write ended, in as many chunks as there are", () =>
      Effect.gen(function* () {
        const { files } = yield* open
        const parts = Array.from({ length: 3000 }, (_, n) => pattern(n % 7, n))
        let at = 0
        for (let n = 0; n < parts.length; n += 1000) {
          const chunks = parts.slice(n, n + 1000)
          yield* files.write("a", at, chunks)
          at += concat(chunks).length
        }
        same(yield* files.read("a", 0, at), concat(parts))
      })
    )

    it.live("writes again from a byte on which a write has failed before", () =>
      Effect.gen(function* () {
        const { files } = yield* open
        yield* files.write("a", 0, [pattern(100, 1), pattern(100, 2)])
        yield* files.write("a", 100, [pattern(100, 3), pattern(50, 4)])
        same(yield* files.read("a", 0, 250), concat([pattern(100, 1), pattern(100, 3), pattern(50, 4)]))
      })
    )

    it.live("gives fewer bytes where a file ends before, and none at its end", () =>
      Effect.gen(function* () {
        const { files } = yield* open
        yield* files.write("a", 0, [pattern(1000)])
        same(yield* files.read("a", 900, 4096), pattern(1000).subarray(900))
        assert.strictEqual((yield* files.read("a", 1000, 10)).length, 0)
        assert.strictEqual((yield* files.read("a", 5000, 10)).length, 0)
      })
    )

    it.live("keeps what it was given, whatever becomes of the buffers, and gives each reader its own", () =>
      Effect.gen(function* () {
        const { files } = yield* open
        const bytes = pattern(1000)
        yield* files.write("a", 0, [bytes])
        bytes.fill(0)
        const first = yield* files.read("a", 0, 1000)
        same(first, pattern(1000))
        first.fill(0)
        same(yield* files.read("a", 0, 1000), pattern(1000))
      })
    )

    it.live("keeps files apart, also while several are written and read at once", () =>
      Effect.gen(function* () {
        const { files, names } = yield* open
        const all = Array.from({ length: 20 }, (_, n) => ({ name: `file-${n}`, bytes: pattern(50_000, n) }))
        yield* Effect.forEach(all, ({ bytes, name }) => files.write(name, 0, [bytes.subarray(0, 20_000)]), {
          concurrency: "unbounded"
        })
        yield* Effect.forEach(all, ({ bytes, name }) => files.write(name, 20_000, [bytes.subarray(20_000)]), {
          concurrency: "unbounded"
        })
        const read = yield* Effect.forEach(all, ({ name }) => files.read(name, 0, 50_000), { concurrency: "unbounded" })
        for (const [n, bytes] of read.entries()) same(bytes, all[n]!.bytes)
        assert.deepStrictEqual(names().toSorted(), all.map(({ name }) => name).toSorted())
      })
    )

    it.live("fails for good to read what is not there, and to go on with it; neither makes it", () =>
      Effect.gen(function* () {
        const { files, names } = yield* open
        for (const failing of [files.read("a", 0, 1), files.read("a", 5, 0), files.write("a", 1, [pattern(1)])]) {
          const error = yield* Effect.flip(failing)
          assert.strictEqual(error._tag, "SpoolError")
          assert.isFalse(error.passing)
          assert.isNotEmpty(error.message)
        }
        assert.deepStrictEqual(names(), [])
      })
    )

    it.live("removes a file, and nothing where there is none", () =>
      Effect.gen(function* () {
        const { files, names } = yield* open
        yield* files.write("a", 0, [pattern(10, 1)])
        yield* files.write("b", 0, [pattern(10, 2)])
        yield* files.remove("a")
        yield* files.remove("a")
        yield* files.remove("never")
        assert.deepStrictEqual(names(), ["b"])
        same(yield* files.read("b", 0, 10), pattern(10, 2))
        assert.isFalse((yield* Effect.flip(files.read("a", 0, 10))).passing)
      })
    )
  })
