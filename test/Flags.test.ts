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

  it("have the daemon's own limits for defaults, each under its setting's key", () => {
    const config = read([])!
    const shared = Object.keys(defaults).filter((key) => key in config) as Array<
      keyof typeof defaults & keyof typeof config
    >
    assert.strictEqual(shared.length, 23)
    for (const key of shared) assert.deepStrictEqual(config[key], defaults[key], key)
  })

  it("read sizes and numbers", () => {
    const config = read([
      "-max-connections=1",
      "-max-vms",
      "7",
      "-max-hyper=64KiB",
      "-max-command",
      "1",
      "-outbox=64k",
      "-stdin-buffer=1g",
      "-spool-limit=0",
      "-spool-total=1",
      "-spool-dir=/var/spool/x y",
      "-log-rate=999999999999999"
    ])!
    assert.strictEqual(config.maxConnections, 1)
    assert.strictEqual(config.maxVms, 7)
    assert.strictEqual(config.maxHyper, 64 * 1024)
    assert.strictEqual(config.maxCommand, 1)
    assert.strictEqual(config.outboxLimit, 64 * 1024)
    assert.strictEqual(config.stdinLimit, 1024 ** 3)
    assert.strictEqual(config.spoolLimit, 0)
    assert.strictEqual(config.spoolTotal, 1)
    assert.strictEqual(config.spoolDir, "/var/spool/x y")
    assert.strictEqual(config.logRate, 999_999_999_999_999)
    assert.strictEqual(config.maxStdin, defaults.maxStdin)
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
      ["-pprof-port=1e3"],
      ["-max-connections=0"],
      ["-max-connections=-1"],
      ["-max-vms=1K"],
      ["-max-vms=1e3"],
      ["-max-tokens="],
      ["-log-rate=0"],
      ["-log-rate=9999999999999999"],
      ["-max-hyper=0"],
      ["-max-hyper=8Mi"],
      ["-outbox=65535"],
      ["-stdin-buffer=63KiB"],
      ["-spool-total=0"],
      ["-spool-dir="],
      ["-orphan-timeout=0s"]
    ])
      assert.isUndefined(read(args), args.join(" "))
  })
})
