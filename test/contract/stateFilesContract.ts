/** What every `StateFiles` keeps to. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { StateFiles } from "../../src/services/StateFiles.ts"
import { pattern, toText, utf8 } from "../support/Bytes.ts"

export interface Opened {
  readonly files: StateFiles["Service"]
  /** The files there are, those set aside included. */
  readonly names: () => ReadonlyArray<string>
  /** What a daemon finds that is started now. */
  readonly next: Effect.Effect<ReadonlyArray<readonly [name: string, text: string]>, never, Scope.Scope>
}

/** What `open` has found, to compare. */
export const texts = (found: Effect.Success<StateFiles["Service"]["open"]>): Effect.Success<Opened["next"]> =>
  found.map(({ bytes, name }) => [name, toText(bytes)] as const)

/** The suite, for files that have been opened and found nothing. */
export const stateFilesContract = (name: string, open: Effect.Effect<Opened, never, Scope.Scope>) =>
  describe(name, () => {
    it.live("gives the next daemon what was written last, each file by its name", () =>
      Effect.gen(function* () {
        const { files, next } = yield* open
        assert.isUndefined(files.write("vm-2.state", utf8("two")))
        assert.isUndefined(files.write("vm-1.state", utf8("an early one, and longer")))
        assert.isUndefined(files.write("all.carried", utf8("all")))
        assert.isUndefined(files.write("vm-1.state", utf8("one")))
        assert.deepStrictEqual(yield* next, [
          ["all.carried", "all"],
          ["vm-1.state", "one"],
          ["vm-2.state", "two"]
        ])
      })
    )

    it.live("gives every byte of a large file, and none of an empty one", () =>
      Effect.gen(function* () {
        const { files, next } = yield* open
        const bytes = pattern(3_000_001)
        files.write("large.state", bytes)
        files.write("none.state", new Uint8Array(0))
        assert.isTrue(
          (yield* next).every(([name, text]) => text === (name === "none.state" ? "" : toText(bytes))),
          "other bytes"
        )
      })
    )

    it.live("has written when it returns: what becomes of the buffer does not matter", () =>
      Effect.gen(function* () {
        const { files, next } = yield* open
        const bytes = utf8("kept")
        files.write("a.state", bytes)
        bytes.fill(0)
        assert.deepStrictEqual(yield* next, [["a.state", "kept"]])
      })
    )

    it.live("removes a file, and nothing where there is none", () =>
      Effect.gen(function* () {
        const { files, names, next } = yield* open
        files.write("a.state", utf8("a"))
        files.write("b.state", utf8("b"))
        assert.isUndefined(files.remove("a.state"))
        assert.isUndefined(files.remove("a.state"))
        assert.isUndefined(files.remove("never.state"))
        assert.deepStrictEqual(names(), ["b.state"])
        assert.deepStrictEqual(yield* next, [["b.state", "b"]])
      })
    )

    it.live("takes no other names", () =>
      Effect.gen(function* () {
        const { files, names } = yield* open
        const others = [
          "",
          ".state",
          "a",
          "a.txt",
          "A.state",
          "a_b.state",
          "a/b.state",
          "../a.state",
          "a.state.tmp",
          "a.state\n"
        ]
        for (const other of others) assert.isNotEmpty(files.write(other, utf8("a"))?.message, other)
        assert.deepStrictEqual(names(), [])
      })
    )

    it.live("sets a file aside, where no daemon finds it, and never one over another", () =>
      Effect.gen(function* () {
        const { files, names, next } = yield* open
        const aside: Array<string> = []
        for (const text of ["first", "second", "third"]) {
          files.write("a.state", utf8(text))
          aside.push(yield* files.setAside("a.state"))
        }
        assert.deepStrictEqual(aside, ["a.state.unreadable", "a.state.unreadable.2", "a.state.unreadable.3"])
        assert.deepStrictEqual(names().toSorted(), aside)
        assert.deepStrictEqual(yield* next, [])
      })
    )

    it.live("fails to set aside what is not there", () =>
      Effect.gen(function* () {
        const { files, names } = yield* open
        assert.isNotEmpty((yield* Effect.flip(files.setAside("a.state"))).message)
        assert.deepStrictEqual(names(), [])
      })
    )
  })
