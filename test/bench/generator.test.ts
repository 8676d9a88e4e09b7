/** The load checks what it carries: a spoilt byte, a lost message and exchanged ones each fail a run. */
import { assert, describe, it } from "@effect/vitest"
import { spawnSync } from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import { afterAll, beforeAll } from "vitest"

const source = fileURLToPath(new URL("../../bench/generator.c", import.meta.url))
const hasCompiler = spawnSync("gcc", ["--version"]).status === 0

describe.skipIf(!hasCompiler)("the load, with nothing between its ends", () => {
  let directory = ""

  beforeAll(() => {
    directory = Fs.mkdtempSync(Path.join(Os.tmpdir(), "cc-proxy-generator-"))
    const args = ["-Wall", "-Wextra", "-Werror", "-pthread", "-o", Path.join(directory, "generator"), source]
    assert.strictEqual(spawnSync("gcc", args, { stdio: "inherit" }).status, 0)
  })
  afterAll(() => Fs.rmSync(directory, { recursive: true, force: true }))

  /** Runs it, and gives its exit status and the one line it prints. */
  const run = (mode: string, ...options: ReadonlyArray<string>) => {
    const socket = Path.join(directory, "agent.sock")
    const short = ["--warmup", "0.02", "--seconds", "0.05", "--samples", "1500", "--timeout", "1"]
    const args = [mode, "--socket", socket, "--relay", socket, ...short, ...options]
    const { status, stdout } = spawnSync(Path.join(directory, "generator"), args, { encoding: "utf8" })
    const lines = stdout.split("\n")
    assert.deepStrictEqual(lines.slice(1), [""])
    return { status, said: JSON.parse(lines[0]!) as { readonly [key: string]: unknown } }
  }

  it("is content when every byte arrives, and tells how many and how fast", () => {
    for (const mode of ["stdout", "stdin"])
      for (const sessions of ["1", "3"]) {
        const { said, status } = run(mode, "--payload", "700", "--sessions", sessions)
        assert.strictEqual(status, 0, JSON.stringify(said))
        assert.strictEqual(said["ok"], true)
        assert.isAbove(Number(said["bytes"]), 700)
        assert.isAtLeast(Number(said["seconds"]), 0.05)
      }
    const { said, status } = run("echo")
    assert.strictEqual(status, 0, JSON.stringify(said))
    assert.isAtLeast(Number(said["samples"]), 1500)
    assert.isTrue(Number(said["p50Us"]) > 0 && Number(said["p50Us"]) <= Number(said["p99Us"]))
  })

  for (const mode of ["stdout", "stdin"])
    for (const sessions of ["1", "3"])
      for (const [fault, what] of [
        ["flip", "a changed byte"],
        ["drop", "a lost message"],
        ["swap", sessions === "1" ? "two messages in the wrong order" : "data of another session"]
      ] as const)
        it(`fails at ${what} of ${mode}, with ${sessions} at once`, () => {
          const { said, status } = run(mode, "--sessions", sessions, "--fault", fault)
          assert.strictEqual(status, 1)
          assert.strictEqual(said["ok"], false)
          assert.match(String(said["error"]), new RegExp(`^${mode} of session \\d is not what was sent`))
        })

  it("fails at a changed byte of an echo, and at one that does not come", () => {
    const changed = run("echo", "--fault", "flip")
    assert.strictEqual(changed.status, 1)
    assert.match(String(changed.said["error"]), /^stdin of session 0 is not what was sent/)
    const lost = run("echo", "--fault", "drop")
    assert.strictEqual(lost.status, 1)
    assert.match(String(lost.said["error"]), /^no end within 1 s, while measuring/)
  })
})
