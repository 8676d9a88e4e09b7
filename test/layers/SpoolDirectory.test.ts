import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Scope from "effect/Scope"
import { execFileSync } from "node:child_process"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as SpoolDirectory from "../../src/layers/SpoolDirectory.ts"
import { SpoolFiles } from "../../src/services/Spool.ts"
import { concat, pattern, toText, utf8 } from "../support/Bytes.ts"
import * as Records from "../support/Records.ts"
import { directory, eventually } from "../support/SocketPair.ts"

/** Nothing that has to stay. */
const none: ReadonlySet<string> = new Set()

const quiet = Logger.layer([])
const root = process.geteuid?.() === 0

/** A pid that no process has: above the largest. Source: proc_sys_kernel(5). */
const nobody = "99999999"

/** The files of a daemon on `socketPath`, for as long as the scope lasts. Nothing has been opened yet. */
const filesOf = (parents: ReadonlyArray<string>, socketPath: string) =>
  Effect.map(Layer.build(SpoolDirectory.layer({ parents, socketPath })), Context.get(SpoolFiles))

/** A parent, a daemon's socket elsewhere, its directory, and its files. */
const make = Effect.gen(function* () {
  const parent = Path.join(yield* directory, "spool")
  const socketPath = Path.join(yield* directory, "proxy.sock")
  const own = Path.join(parent, SpoolDirectory.nameOf(socketPath))
  return { parent, socketPath, own, files: yield* filesOf([parent], socketPath) }
})

/** A test without a log, unless it brings one. */
const live = (name: string, test: () => Effect.Effect<void, unknown, Scope.Scope>) =>
  it.live(name, () => Effect.provide(test(), quiet))

const mode = (path: string): string => (Fs.statSync(path).mode & 0o7777).toString(8)

/** What another daemon's directory holds. */
const leave = (parent: string, name: string, files: Readonly<Record<string, string>>): string => {
  const path = Path.join(parent, name)
  Fs.mkdirSync(path, { recursive: true })
  for (const [file, text] of Object.entries(files)) Fs.writeFileSync(Path.join(path, file), text)
  return path
}

/** Runs a test with a log of its own. */
const logged = <A, E, R>(test: (records: ReadonlyArray<Records.Record>) => Effect.Effect<A, E, R>) => {
  const { layer, records } = Records.make()
  return Effect.provide(test(records), layer)
}

describe("the directory", () => {
  live("is named after the socket, which its name tells again", () =>
    Effect.sync(() => {
      assert.strictEqual(SpoolDirectory.nameOf("/run/a b%/x%2F.sock"), "%2Frun%2Fa b%25%2Fx%252F.sock")
    })
  )

  live("and its files are for the daemon's user only", () =>
    Effect.gen(function* () {
      const { files, own, parent } = yield* make
      yield* files.open(none)
      yield* files.write("1", 0, [utf8("secret")])
      yield* files.write("1", 6, [utf8("secret")])
      assert.deepStrictEqual(Fs.readdirSync(own).toSorted(), ["1", "pid"])
      assert.strictEqual(mode(parent), "700")
      assert.strictEqual(mode(own), "700")
      assert.strictEqual(mode(Path.join(own, "1")), "600")
      assert.strictEqual(mode(Path.join(own, "pid")), "600")
      assert.strictEqual(Fs.readFileSync(Path.join(own, "pid"), "utf8"), String(process.pid))
    })
  )

  live("is made that way again where an earlier daemon's stood open", () =>
    Effect.gen(function* () {
      const { files, own, parent } = yield* make
      Fs.mkdirSync(parent)
      Fs.mkdirSync(own, { mode: 0o777 })
      Fs.chmodSync(own, 0o777)
      yield* files.open(none)
      assert.strictEqual(mode(own), "700")
    })
  )

  live("is not made before it is opened, or written to", () =>
    Effect.gen(function* () {
      const { files, own, parent } = yield* make
      assert.isFalse(Fs.existsSync(parent))
      yield* files.write("1", 0, [utf8("early")])
      assert.deepStrictEqual(Fs.readdirSync(own).toSorted(), ["1", "pid"])
      assert.strictEqual(toText(yield* files.read("1", 0, 9)), "early")
    })
  )

  live("is gone with the daemon, and nothing else is", () =>
    Effect.gen(function* () {
      const parent = Path.join(yield* directory, "spool")
      const neighbour = leave(parent, "%2Fneighbour.sock", { "1": "theirs" })
      const scope = yield* Scope.make()
      const files = yield* Scope.provide(filesOf([parent], "/own.sock"), scope)
      yield* files.open(none)
      yield* files.write("1", 0, [utf8("a")])
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(Fs.readdirSync(parent), [Path.basename(neighbour)])
      assert.deepStrictEqual(Fs.readdirSync(neighbour), ["1"])
    })
  )

  live("stays where it is left to the next daemon", () =>
    Effect.gen(function* () {
      const parent = yield* directory
      const scope = yield* Scope.make()
      const files = yield* Scope.provide(filesOf([parent], "/own.sock"), scope)
      yield* files.open(none)
      yield* files.write("1", 0, [utf8("waits")])
      files.leave()
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(Fs.readFileSync(Path.join(parent, "%2Fown.sock", "1"), "utf8"), "waits")
    })
  )

  live("of a daemon that never served its socket is not touched", () =>
    Effect.gen(function* () {
      const parent = yield* directory
      const own = leave(parent, SpoolDirectory.nameOf("/own.sock"), { pid: "1", "1": "the living one's" })
      yield* Effect.scoped(filesOf([parent], "/own.sock"))
      assert.deepStrictEqual(Fs.readdirSync(own).toSorted(), ["1", "pid"])
    })
  )

  live("is left to the daemon that has taken the socket over", () =>
    Effect.gen(function* () {
      const parent = yield* directory
      const scope = yield* Scope.make()
      const files = yield* Scope.provide(filesOf([parent], "/own.sock"), scope)
      yield* files.open(none)
      const own = leave(parent, SpoolDirectory.nameOf("/own.sock"), { pid: "1", "1": "its files" })
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(Fs.readdirSync(own).toSorted(), ["1", "pid"])
    })
  )

  live("may vanish: what is begun next makes it again, and what was in it is lost for good", () =>
    logged((records) =>
      Effect.gen(function* () {
        const { files, own, parent } = yield* make
        yield* files.open(none)
        yield* files.write("1", 0, [utf8("lost")])
        Fs.rmSync(parent, { recursive: true })
        assert.isFalse((yield* Effect.flip(files.write("1", 4, [utf8("more")]))).passing)
        assert.isFalse((yield* Effect.flip(files.read("1", 0, 4))).passing)
        yield* files.remove("1")
        yield* files.write("2", 0, [utf8("kept")])
        assert.strictEqual(toText(yield* files.read("2", 0, 4)), "kept")
        assert.deepStrictEqual(Fs.readdirSync(own).toSorted(), ["2", "pid"])
        assert.strictEqual(mode(own), "700")
        assert.isTrue(records.every(({ level }) => level === "Info"))
      })
    )
  )

  live("takes no descriptor while nothing is done", () =>
    Effect.gen(function* () {
      const { files } = yield* make
      yield* files.open(none)
      const open = () => Fs.readdirSync("/proc/self/fd").length
      const before = open()
      for (let n = 0; n < 20; n++) yield* files.write(String(n), 0, [pattern(1000, n)])
      for (let n = 0; n < 20; n++) yield* files.read(String(n), 0, 1000)
      yield* Effect.flip(files.read("none", 0, 1))
      assert.strictEqual(open(), before)
    })
  )
})

describe("a parent that cannot be used", () => {
  /** Ways to be of no use, for a directory that is to be made at `own`. */
  const ways: ReadonlyArray<readonly [string, (parent: string, own: string) => void]> = [
    ["is a file", (parent) => Fs.writeFileSync(parent, "")],
    ["is a link to nowhere", (parent) => Fs.symlinkSync("/nowhere", parent)],
    [
      "has a file in the directory's place",
      (parent, own) => {
        Fs.mkdirSync(parent)
        Fs.writeFileSync(own, "")
      }
    ],
    [
      "has a link in the directory's place",
      (parent, own) => {
        Fs.mkdirSync(Path.join(parent, "elsewhere"), { recursive: true })
        Fs.symlinkSync("elsewhere", own)
      }
    ]
  ]

  for (const [what, spoil] of ways)
    live(`leaves it to the next: one that ${what}`, () =>
      logged((records) =>
        Effect.gen(function* () {
          const base = yield* directory
          const [first, second] = [Path.join(base, "first"), Path.join(base, "second")] as const
          const name = SpoolDirectory.nameOf("/own.sock")
          spoil(first, Path.join(first, name))
          const files = yield* filesOf([first, second], "/own.sock")
          yield* files.open(none)
          yield* files.write("1", 0, [utf8("a")])
          assert.deepStrictEqual(Fs.readdirSync(Path.join(second, name)).toSorted(), ["1", "pid"])
          assert.deepStrictEqual(records[0]?.fields, { path: Path.join(second, name) })
          if (what.includes("link in")) assert.deepStrictEqual(Fs.readdirSync(Path.join(first, "elsewhere")), [])
          assert.isTrue(records.every(({ level }) => level === "Info"))
        })
      )
    )

  it.live.skipIf(!root)("leaves it to the next: one where the directory is another user's", () =>
    Effect.gen(function* () {
      const [first, second] = [yield* directory, yield* directory]
      const name = SpoolDirectory.nameOf("/own.sock")
      Fs.chownSync(leave(first, name, {}), 65_534, 65_534)
      const files = yield* filesOf([first, second], "/own.sock")
      yield* files.open(none)
      yield* files.write("1", 0, [utf8("a")])
      assert.deepStrictEqual(Fs.readdirSync(Path.join(second, name)).toSorted(), ["1", "pid"])
    }).pipe(Effect.provide(quiet))
  )

  live("is told where there is no other; it is tried again with each new file", () =>
    logged((records) =>
      Effect.gen(function* () {
        const parent = Path.join(yield* directory, "spool")
        Fs.writeFileSync(parent, "")
        const files = yield* filesOf([parent], "/own.sock")
        yield* files.open(none)
        assert.deepStrictEqual(
          records.map(({ level, msg }) => [level, msg]),
          [["Warn", "the spool cannot be used"]]
        )
        assert.include(String(records[0]!.fields["error"]), parent)
        const error = yield* Effect.flip(files.write("1", 0, [utf8("a")]))
        assert.isTrue(error.passing)
        assert.include(error.message, parent)
        Fs.unlinkSync(parent)
        yield* files.write("1", 0, [utf8("a")])
        assert.strictEqual(toText(yield* files.read("1", 0, 1)), "a")
      })
    )
  )
})

describe("what earlier daemons left", () => {
  live("on the same socket is removed, in every parent, however they ended", () =>
    Effect.gen(function* () {
      const base = yield* directory
      const parents = ["one", "two"].map((name) => Path.join(base, name))
      const name = SpoolDirectory.nameOf("/own.sock")
      for (const parent of parents) leave(parent, name, { pid: String(process.pid), "1-1": "a", "1-2": "b" })
      Fs.mkdirSync(Path.join(parents[0]!, name, "directory"))
      const files = yield* filesOf(parents, "/own.sock")
      yield* files.open(none)
      // the second parent's is the last
      yield* eventually(() => Fs.readdirSync(parents[1]!).length === 0)
      assert.deepStrictEqual(Fs.readdirSync(Path.join(parents[0]!, name)), ["pid"])
    })
  )

  live("is removed where both their process and their socket are gone, and stays where one of them is there", () =>
    Effect.gen(function* () {
      const parent = yield* directory
      const socket = Path.join(yield* directory, "there.sock")
      Fs.writeFileSync(socket, "")
      const there = SpoolDirectory.nameOf(socket)
      leave(parent, "%2Fnowhere%2Fdead.sock", { pid: nobody, "1": "a" })
      leave(parent, "%2Fnowhere%2Fliving.sock", { pid: String(process.pid), "1": "a" })
      leave(parent, "%2Fnowhere%2Funtold.sock", { "1": "a" })
      leave(parent, there, { pid: nobody, "1": "a" })
      const files = yield* filesOf([parent], "/own.sock")
      yield* files.open(none)
      yield* eventually(() => !Fs.existsSync(Path.join(parent, "%2Fnowhere%2Fdead.sock")))
      assert.deepStrictEqual(
        Fs.readdirSync(parent).toSorted(),
        ["%2Fnowhere%2Fliving.sock", "%2Fnowhere%2Funtold.sock", "%2Fown.sock", there].toSorted()
      )
      assert.strictEqual(Fs.readFileSync(Path.join(parent, there, "1"), "utf8"), "a")
    })
  )

  live("is not what others keep beside it", () =>
    Effect.gen(function* () {
      const parent = yield* directory
      // pid files of other programs end in a line feed
      const others = { nginx: { pid: `${process.pid}\n`, "1": "a" }, backup: { pid: nobody, "1": "a" } }
      for (const [name, files] of Object.entries(others)) leave(parent, name, files)
      leave(parent, "%2Fnowhere%2Fdead.sock", { pid: nobody, "1": "a" })
      const files = yield* filesOf([parent], "/own.sock")
      yield* files.open(none)
      yield* eventually(() => !Fs.existsSync(Path.join(parent, "%2Fnowhere%2Fdead.sock")))
      assert.deepStrictEqual(Fs.readdirSync(parent).toSorted(), ["%2Fown.sock", "backup", "nginx"])
    })
  )

  live("through a link is not followed", () =>
    Effect.gen(function* () {
      const [parent, elsewhere] = [yield* directory, yield* directory]
      leave(elsewhere, "other", { pid: nobody, "1": "a" })
      Fs.symlinkSync(Path.join(elsewhere, "other"), Path.join(parent, "%2Fnowhere%2Flink.sock"))
      leave(parent, "%2Fnowhere%2Fdead.sock", { pid: nobody, "1": "a" })
      const files = yield* filesOf([parent], "/own.sock")
      yield* files.open(none)
      yield* eventually(() => !Fs.existsSync(Path.join(parent, "%2Fnowhere%2Fdead.sock")))
      assert.deepStrictEqual(Fs.readdirSync(Path.join(elsewhere, "other")).toSorted(), ["1", "pid"])
    })
  )

  live("is removed while the daemon writes already, and what it has written stays", () =>
    Effect.gen(function* () {
      const parent = yield* directory
      const files = yield* filesOf([parent], "/own.sock")
      const old = Object.fromEntries(Array.from({ length: 100 }, (_, n) => [`1-${n}`, "a"]))
      const own = leave(parent, "%2Fown.sock", { ...old, pid: nobody })
      const opening = yield* Effect.forkChild(files.open(none), { startImmediately: true })
      yield* files.write("2-1", 0, [utf8("mine")])
      yield* Fiber.join(opening)
      yield* eventually(() => Fs.readdirSync(own).length <= 2)
      assert.deepStrictEqual(Fs.readdirSync(own).toSorted(), ["2-1", "pid"])
      assert.strictEqual(Fs.readFileSync(Path.join(own, "pid"), "utf8"), String(process.pid))
    })
  )

  live("is removed from all parents while the daemon writes to the second, and what it has written stays", () =>
    Effect.gen(function* () {
      const [first, second] = [yield* directory, yield* directory]
      const files = yield* filesOf([first, second], "/own.sock")
      const old = Object.fromEntries(Array.from({ length: 100 }, (_, n) => [`1-${n}`, "a"]))
      Fs.mkdirSync(Path.join(leave(first, "%2Fown.sock", old), "pid")) // which is of no use
      const opening = yield* Effect.forkChild(files.open(none), { startImmediately: true })
      yield* files.write("2-1", 0, [utf8("mine")])
      yield* Fiber.join(opening)
      yield* eventually(() => !Fs.existsSync(Path.join(first, "%2Fown.sock")))
      assert.strictEqual(toText(yield* files.read("2-1", 0, 4)), "mine")
    })
  )

  live("stays where it is still wanted, and may be read and gone on with", () =>
    Effect.gen(function* () {
      const parent = yield* directory
      const own = leave(parent, "%2Fown.sock", { pid: nobody, "1-1": "unwanted", "1-2": "wanted", "1-3": "too" })
      const files = yield* filesOf([parent], "/own.sock")
      const sizes = yield* files.open(new Set(["1-2", "1-3", "1-4"]))
      assert.deepStrictEqual(
        sizes,
        new Map([
          ["1-2", 6],
          ["1-3", 3]
        ])
      )
      yield* eventually(() => !Fs.existsSync(Path.join(own, "1-1")))
      assert.strictEqual(toText(yield* files.read("1-2", 0, 9)), "wanted")
      yield* files.write("1-2", 6, [utf8(" more")])
      assert.strictEqual(toText(yield* files.read("1-2", 0, 99)), "wanted more")
      yield* files.remove("1-3")
      assert.deepStrictEqual(Fs.readdirSync(own).toSorted(), ["1-2", "pid"])
    })
  )

  live("that is still wanted goes with this daemon all the same, where it is left to no other", () =>
    Effect.gen(function* () {
      const parent = yield* directory
      leave(parent, "%2Fown.sock", { "1-2": "wanted" })
      const scope = yield* Scope.make()
      const files = yield* Scope.provide(filesOf([parent], "/own.sock"), scope)
      yield* files.open(new Set(["1-2"]))
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(Fs.readdirSync(parent), [])
    })
  )
})

describe("a file", () => {
  live("that is a link is neither written nor read", () =>
    Effect.gen(function* () {
      const { files, own } = yield* make
      yield* files.open(none)
      const target = Path.join(yield* directory, "target")
      Fs.writeFileSync(target, "theirs")
      Fs.symlinkSync(target, Path.join(own, "1"))
      for (const failing of [
        files.write("1", 0, [utf8("mine")]),
        files.write("1", 3, [utf8("mine")]),
        files.read("1", 0, 6)
      ])
        assert.include((yield* Effect.flip(failing)).message, "ELOOP")
      yield* files.remove("1")
      assert.strictEqual(Fs.readFileSync(target, "utf8"), "theirs")
    })
  )

  live("that somebody has cut gives what is left of it", () =>
    Effect.gen(function* () {
      const { files, own } = yield* make
      yield* files.write("1", 0, [pattern(10_000)])
      Fs.truncateSync(Path.join(own, "1"), 4321)
      const read = yield* files.read("1", 1000, 9000)
      assert.isTrue(Buffer.from(read).equals(pattern(10_000).subarray(1000, 4321)))
    })
  )

  live("that cannot be removed is told, and harms nothing else", () =>
    logged((records) =>
      Effect.gen(function* () {
        const { files, parent } = yield* make
        yield* files.open(none)
        yield* files.remove("x".repeat(300))
        assert.deepStrictEqual(
          records.slice(1).map(({ level, msg }) => [level, msg]),
          [["Warn", "a file of the spool cannot be removed"]]
        )
        assert.isTrue(Fs.existsSync(parent))
      })
    )
  )
})

/** A directory on a file system of its own, of one mebibyte. */
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
  const fill = 700 * 1024

  live("fails for a while, and leaves what was there as it was", () =>
    Effect.gen(function* () {
      const files = yield* filesOf([yield* small], "/own.sock")
      yield* files.open(none)
      yield* files.write("1", 0, [pattern(fill)])
      for (let n = 0; n < 2; n++) {
        // the first of the chunks fits
        const error = yield* Effect.flip(files.write("1", fill, [pattern(100_000, 2), pattern(fill, 3)]))
        assert.isTrue(error.passing)
        assert.include(error.message, "ENOSPC")
        assert.strictEqual((yield* files.read("1", 0, 2 * fill)).length, fill)
      }
      assert.isTrue((yield* Effect.flip(files.write("2", 0, [pattern(fill, 4)]))).passing)
      yield* files.write("1", fill, [pattern(100_000, 2)])
      const all = yield* files.read("1", 0, 2 * fill)
      assert.isTrue(Buffer.from(all).equals(concat([pattern(fill), pattern(100_000, 2)])))
      yield* files.remove("1")
      yield* files.write("2", 0, [pattern(fill, 4)])
      assert.isTrue(Buffer.from(yield* files.read("2", 0, fill)).equals(pattern(fill, 4)))
    })
  )

  live("is no reason to take the directory again", () =>
    Effect.gen(function* () {
      const parent = yield* small
      const pid = Path.join(parent, "%2Fown.sock", "pid")
      const files = yield* filesOf([parent], "/own.sock")
      yield* files.open(none)
      yield* files.write("1", 0, [pattern(fill)])
      Fs.writeFileSync(pid, "1")
      yield* Effect.flip(files.write("2", 0, [pattern(fill)]))
      assert.strictEqual(Fs.readFileSync(pid, "utf8"), "1")
    })
  )
})
