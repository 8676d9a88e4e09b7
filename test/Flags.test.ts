import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Result from "effect/Result"
import { defaults } from "../src/services/Settings.ts"

Object.assign(globalThis, { CC_PROXY_SOCKET: "/var/run/proxy.sock" }) // which the build puts in
const Flags = await import("../src/Flags.ts")

const read = (args: ReadonlyArray<string>, environment: Readonly<Record<string, string>> = {}) =>
  Flags.read(Result.getOrThrow(Flags.normalize(args, environment)))

describe("flags", () => {
  it("have their defaults without a command line", () => {
    const config = read([])!
    assert.strictEqual(config.log, "warn")
    assert.strictEqual(config.socketPath, "/var/run/proxy.sock")
    assert.strictEqual(config.uri, undefined)
    assert.strictEqual(config.pprof, false)
    assert.strictEqual(config.pprofPort, 6060)
    assert.deepStrictEqual(config.ctlTimeout, defaults.ctlTimeout)
  })

  it("are read, each into its own key", () => {
    const config = read([
      "-v",
      "debug",
      "--uri=unix:///run/a=b",
      "-ksm",
      "off",
      "-stop-timeout=1m30s",
      "-pprof",
      "-pprof-port",
      "0"
    ])!
    assert.strictEqual(config.log, "debug")
    assert.strictEqual(config.uri, "/run/a=b")
    assert.strictEqual(config.ksm, "off")
    assert.strictEqual(Duration.toSeconds(config.stopTimeout), 90)
    assert.strictEqual(config.pprof, true)
    assert.strictEqual(config.pprofPort, 0)
    assert.deepStrictEqual(config.dialTimeout, defaults.dialTimeout)
  })

  it("take the level from the environment where the command line has none", () => {
    assert.strictEqual(read([], { CC_PROXY_LOG_LEVEL: "error" })!.log, "error")
    assert.strictEqual(read(["-log=info"], { CC_PROXY_LOG_LEVEL: "error" })!.log, "info")
    assert.strictEqual(read([], { CC_PROXY_LOG_LEVEL: "" })!.log, "warn")
  })

  it("are not all there is to a command line with a subcommand, an operand, a question or a value that does not fit", () => {
    for (const args of [
      ["demo"],
      ["-log", "info", "demo"],
      ["--"],
      ["-h"],
      ["-version"],
      ["-log=loud"],
      ["-ksm="],
      ["-uri=tcp://x"],
      ["-socket-path="],
      ["-ctl-timeout=soon"],
      ["-pprof-port=65536"],
      ["-pprof-port=-1"],
      ["-pprof-port=1e3"]
    ])
      assert.isUndefined(read(args), args.join(" "))
  })
})
