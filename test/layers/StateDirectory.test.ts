import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { execFileSync } from "node:child_process"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as StateDirectory from "../../src/layers/StateDirectory.ts"
import { StateFiles } from "../../src/services/StateFiles.ts"
import { texts } from "../contract/stateFilesContract.ts"
import { pattern, utf8 } from "../support/Bytes.ts"
import * as Records from "../support/Records.ts"
import { directory } from "../support/SocketPair.ts"

const root = process.geteuid?.() === 0

/** The files of a daemon, for as long as the scope lasts. Nothing has been opened yet. */
const filesIn = (path: string, owned = true) =>
  Effect.map(Layer.build(Layer.fresh(StateDirectory.layer({ directory: path, owned }))), Context.get(StateFiles))

/** A place for the directory, and its files. */
const make = Effect.gen(function* () {
  const path = Path.join(yield* directory, "proxy.sock.state")
  return { path, files: yield* filesIn(path) }
})

/** A test with a log of its own. */
const live = (
  name: string,
  test: (records: ReadonlyArray<Records.Record>) => Effect.Effect<void, unknown, Scope.Scope>
) =>
  it.live(name, () => {
    const { layer, records } = Records.make()
    return Effect.provide(test(records), layer)
  })

const mode = (path: string): string => (Fs.statSync(path).mode & 0o7777).toString(8)

const warnings = (records: ReadonlyArray<Records.Record>) => records.filter(({ level }) => level === "Warn")

describe("the directory", () => {
  live("and its files are for the daemon's user only", (records) =>
    Effect.gen(function* () {
      const { files, path } = yield* make
      assert.deepStrictEqual(yield* files.open, [])
      files.write("a.state", utf8("secret"))
      files.write("a.state", utf8("another"))
      assert.deepStrictEqual(Fs.readdirSync(path), ["a.state"])
      assert.strictEqual(mode(path), "700")
      assert.strictEqual(mode(Path.join(path, "a.state")), "600")
      assert.deepStrictEqual(
        records.map(({ fields, level }) => ({ fields, level })),
        [{ level: "Info", fields: { path } }]
      )
    })
  )

  live("is made that way again where an earlier daemon's stood open", () =>
    Effect.gen(function* () {
      const { files, path } = yield* make
      Fs.mkdirSync(path)
      Fs.chmodSync(path, 0o777)
      yield* files.open
      assert.strictEqual(mode(path), "700")
    })
  )

  live("is not made before it is opened, or written to", () =>
    Effect.gen(function* () {
      const { files, path } = yield* make
      assert.isFalse(Fs.existsSync(path))
      assert.isUndefined(files.write("a.state", utf8("early")))
      assert.strictEqual(Fs.readFileSync(Path.join(path, "a.state"), "utf8"), "early")
      assert.strictEqual(mode(path), "700")
    })
  )

  live("may vanish: the next write makes it again", () =>
    Effect.gen(function* () {
      const { files, path } = yield* make
      yield* files.open
      files.write("a.state", utf8("lost"))
      Fs.rmSync(path, { recursive: true })
      assert.isUndefined(files.remove("a.state"))
      assert.isUndefined(files.write("b.state", utf8("kept")))
      assert.deepStrictEqual(Fs.readdirSync(path), ["b.state"])
      assert.strictEqual(mode(path), "700")
    })
  )

  for (const [what, owned, name, stays] of [
    ["is gone with the daemon that it is of, where nothing is left in it", true, undefined, false],
    ["stays where it is not the daemon's own", false, undefined, true],
    ["stays where a VM's file is left in it", true, "a.state", true],
    ["stays where a file of somebody else is in it", true, "else", true]
  ] as const)
    live(what, () =>
      Effect.gen(function* () {
        const path = Path.join(yield* directory, "state")
        const scope = yield* Scope.make()
        const files = yield* Scope.provide(filesIn(path, owned), scope)
        yield* files.open
        files.write("gone.state", utf8("gone"))
        files.remove("gone.state")
        if (name !== undefined) Fs.writeFileSync(Path.join(path, name), "")
        yield* Scope.close(scope, Exit.void)
        assert.strictEqual(Fs.existsSync(path), stays)
        if (name !== undefined) assert.deepStrictEqual(Fs.readdirSync(path), [name])
      })
    )

  live("of a daemon that never served its socket is not touched", () =>
    Effect.gen(function* () {
      const path = Path.join(yield* directory, "state")
      Fs.mkdirSync(path)
      yield* Effect.scoped(filesIn(path))
      assert.isTrue(Fs.existsSync(path))
    })
  )

  live("takes no descriptor while nothing is done, whatever has failed", () =>
    Effect.gen(function* () {
      const { files, path } = yield* make
      yield* files.open
      Fs.mkdirSync(Path.join(path, "b.state"))
      const open = () => Fs.readdirSync("/proc/self/fd").length
      const before = open()
      for (let n = 0; n < 20; n++) {
        files.write("a.state", pattern(1000, n))
        assert.isDefined(files.write("b.state", pattern(1000, n)))
      }
      yield* files.open
      assert.strictEqual(open(), before)
    })
  )
})

describe("a directory that cannot be used", () => {
  const ways: ReadonlyArray<readonly [string, (path: string) => void]> = [
    ["a file is in its place", (path) => Fs.writeFileSync(path, "")],
    ["a link is in its place", (path) => Fs.symlinkSync(Fs.mkdtempSync(`${path}-`), path)],
    ["its parent is a file", (path) => Fs.rmSync(Path.dirname(path), { recursive: true })]
  ]

  for (const [what, spoil] of ways)
    live(`is warned of, and tried again with each write: ${what}`, (records) =>
      Effect.gen(function* () {
        const parent = Path.join(yield* directory, "parent")
        const path = Path.join(parent, "state")
        Fs.mkdirSync(parent)
        spoil(path)
        if (!Fs.existsSync(parent)) Fs.writeFileSync(parent, "")
        const files = yield* filesIn(path)
        assert.deepStrictEqual(yield* files.open, [])
        assert.deepStrictEqual(
          records.map(({ fields, level }) => [level, fields["path"]]),
          [["Warn", path]]
        )
        assert.isNotEmpty(files.write("a.state", utf8("a"))?.message)
        Fs.rmSync(parent, { recursive: true })
        assert.isUndefined(files.write("a.state", utf8("a")))
        assert.strictEqual(mode(path), "700")
      })
    )

  it.live.skipIf(!root)("is another user's: nothing is read from there, or written", () => {
    const { layer, records } = Records.make()
    return Effect.gen(function* () {
      const { files, path } = yield* make
      Fs.mkdirSync(path)
      Fs.writeFileSync(Path.join(path, "a.state"), "theirs")
      Fs.chownSync(path, 65_534, 65_534)
      assert.deepStrictEqual(yield* files.open, [])
      assert.match(String(records[0]?.fields["error"]), /another user/)
      assert.match(files.write("b.state", utf8("ours"))?.message ?? "", /another user/)
      assert.deepStrictEqual(Fs.readdirSync(path), ["a.state"])
    }).pipe(Effect.provide(layer))
  })
})

describe("what an earlier daemon left", () => {
  live("is read, and other names are passed over and stay", (records) =>
    Effect.gen(function* () {
      const { files, path } = yield* make
      const others = ["A.state", "a.state.unreadable", "a.state.unreadable.2", "notes", "a.tmp", ".x.tmp", ".a.state"]
      Fs.mkdirSync(path)
      for (const name of ["vm-1.state", "all.carried", ...others]) Fs.writeFileSync(Path.join(path, name), name)
      assert.deepStrictEqual(texts(yield* files.open), [
        ["all.carried", "all.carried"],
        ["vm-1.state", "vm-1.state"]
      ])
      assert.strictEqual(Fs.readdirSync(path).length, others.length + 2)
      assert.deepStrictEqual(warnings(records), [])
    })
  )

  live("half written is gone once the next has opened, and what it was to replace is read", () =>
    Effect.gen(function* () {
      const { files, path } = yield* make
      Fs.mkdirSync(path)
      Fs.writeFileSync(Path.join(path, "a.state"), "whole")
      Fs.writeFileSync(Path.join(path, ".a.state.tmp"), "ha")
      Fs.writeFileSync(Path.join(path, ".b.carried.tmp"), "lf")
      assert.deepStrictEqual(texts(yield* files.open), [["a.state", "whole"]])
      assert.deepStrictEqual(Fs.readdirSync(path), ["a.state"])
    })
  )

  live("and cannot be read is warned of and stays, and holds nobody up", (records) =>
    Effect.gen(function* () {
      const { files, path } = yield* make
      Fs.mkdirSync(path)
      const at = (name: string) => Path.join(path, name)
      Fs.writeFileSync(at("a.state"), "fine")
      Fs.mkdirSync(at("directory.state"))
      Fs.symlinkSync("a.state", at("link.state"))
      execFileSync("mkfifo", [at("pipe.state")])
      assert.deepStrictEqual(texts(yield* files.open), [["a.state", "fine"]])
      const bad = ["directory.state", "link.state", "pipe.state"]
      assert.deepStrictEqual(
        warnings(records).map(({ fields }) => fields["file"]),
        bad.map(at)
      )
      assert.deepStrictEqual(Fs.readdirSync(path), ["a.state", ...bad])
    })
  )
})

describe("a write", () => {
  live("takes the place of what a daemon that was killed had half written since", () =>
    Effect.gen(function* () {
      const { files, path } = yield* make
      yield* files.open
      Fs.writeFileSync(Path.join(path, ".a.state.tmp"), "half, and longer")
      assert.isUndefined(files.write("a.state", utf8("whole")))
      assert.strictEqual(Fs.readFileSync(Path.join(path, "a.state"), "utf8"), "whole")
      assert.deepStrictEqual(Fs.readdirSync(path), ["a.state"])
    })
  )

  live("does not follow a link, neither to its file nor beside it", () =>
    Effect.gen(function* () {
      const { files, path } = yield* make
      yield* files.open
      const elsewhere = Path.join(path, "elsewhere")
      Fs.writeFileSync(elsewhere, "theirs")
      Fs.symlinkSync(elsewhere, Path.join(path, "a.state"))
      Fs.symlinkSync(elsewhere, Path.join(path, ".a.state.tmp"))
      assert.isUndefined(files.write("a.state", utf8("ours")))
      assert.strictEqual(Fs.readFileSync(elsewhere, "utf8"), "theirs")
      assert.strictEqual(Fs.readFileSync(Path.join(path, "a.state"), "utf8"), "ours")
    })
  )

  live("replaces the file and does not change it: who has it open reads on in the old one", () =>
    Effect.gen(function* () {
      const { files, path } = yield* make
      files.write("a.state", utf8("before"))
      const before = Fs.openSync(Path.join(path, "a.state"), "r")
      files.write("a.state", utf8("after"))
      assert.strictEqual(Fs.readFileSync(before, "utf8"), "before")
      Fs.closeSync(before)
    })
  )

  live("that cannot have its name leaves nothing beside it", () =>
    Effect.gen(function* () {
      const { files, path } = yield* make
      yield* files.open
      Fs.mkdirSync(Path.join(path, "a.state"))
      assert.match(files.write("a.state", utf8("a"))?.message ?? "", /EISDIR/)
      assert.isNotEmpty(files.remove("a.state")?.message)
      assert.deepStrictEqual(Fs.readdirSync(path), ["a.state"])
    })
  )
})

/** A file system that has 1 MiB. */
const small = Effect.gen(function* () {
  const path = yield* directory
  yield* Effect.acquireRelease(
    Effect.sync(() => execFileSync("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", path])),
    () => Effect.sync(() => execFileSync("umount", ["-l", path]))
  )
  return path
})

const mountable = (): boolean => {
  if (!root) return false
  try {
    Effect.runSync(Effect.scoped(small))
    return true
  } catch {
    return false
  }
}

describe.skipIf(!mountable())("a disk that is full", () => {
  live("leaves the file as it was, and nothing of what was written beside it", () =>
    Effect.gen(function* () {
      const path = Path.join(yield* small, "state")
      const files = yield* filesIn(path)
      yield* files.open
      const before = pattern(600_000)
      assert.isUndefined(files.write("a.state", before))
      for (let n = 0; n < 2; n++) {
        assert.match(files.write("a.state", pattern(600_000, 1))?.message ?? "", /ENOSPC/)
        assert.deepStrictEqual(Fs.readdirSync(path), ["a.state"])
      }
      const [found] = yield* files.open
      assert.isTrue(Buffer.from(before).equals(found!.bytes), "other bytes")
      // and there is room again for what fits
      assert.isUndefined(files.write("b.state", pattern(300_000)))
    })
  )
})
