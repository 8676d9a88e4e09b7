/** Daemons that follow each other on one socket: by a hand-over, after a stop, after a crash. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as DaemonProcess from "./DaemonProcess.ts"
import type { Daemon } from "./DaemonProcess.ts"
import type { LogRecord } from "./Logfmt.ts"
import * as Raw from "./RawBytes.ts"
import type { RawClient } from "./RawClient.ts"
import * as Scenario from "./Scenario.ts"
import { happened, until } from "./Wait.ts"

/** A daemon whose log tells of hand-overs. */
export const start = (options: DaemonProcess.Options = {}) =>
  DaemonProcess.start({ ...options, args: ["-log", "info", ...(options.args ?? [])] })

/** Hands over, and expects that to succeed. */
export const handOver = Effect.fnUntraced(function* ({ child }: Daemon) {
  const pid = yield* child.handOver
  if (pid === undefined) assert.fail(`the hand-over failed:\n${child.stderr}`)
  return pid
})

/** Stops a daemon in good order. */
export const stop = Effect.fnUntraced(function* ({ child }: Daemon) {
  assert.deepStrictEqual(yield* child.stop(), { code: 0, signal: null }, child.stderr)
})

/** Kills a daemon. */
export const crash = ({ child }: Daemon) => Effect.asVoid(child.destroyed)

/** Starts the next daemon in the place of one that has ended. */
export const next = ({ directory }: Daemon, options: DaemonProcess.Options = {}) => start({ ...options, directory })

/** Where a daemon keeps its state. */
export const stateOf = ({ socketPath }: Daemon): string => `${socketPath}.state`

const namesIn = (path: string): ReadonlyArray<string> => (Fs.existsSync(path) ? Fs.readdirSync(path) : [])

/** Records of VMs. */
export const recordsOf = (daemon: Daemon): ReadonlyArray<string> =>
  namesIn(stateOf(daemon)).filter((name) => name.endsWith(".state"))

/** Bytes that wait on disk. */
export const spooled = ({ directory }: Daemon): number => {
  const path = Path.join(directory, "spool")
  if (!Fs.existsSync(path)) return 0
  const files = Fs.readdirSync(path, { recursive: true, withFileTypes: true })
  return files
    .filter((file) => file.isFile() && file.name !== "pid")
    .reduce((sum, file) => {
      const stat = Fs.statSync(Path.join(file.parentPath, file.name), { throwIfNoEntry: false })
      return sum + (stat?.size ?? 0)
    }, 0)
}

/** Lets the daemon go on until `test` holds of what nothing tells of, such as its files. */
export const eventually = Effect.fnUntraced(function* (daemon: Daemon, what: string, test: () => boolean) {
  for (let trip = 0; trip < 2000; trip++) {
    if (test()) return
    yield* daemon.settle
  }
  assert.fail(`${what} did not come`)
})

/** Waits until a process of a simulated VM has made a file. */
export const appears = (path: string): Effect.Effect<unknown> =>
  Effect.scoped(
    Effect.andThen(
      Effect.acquireRelease(
        Effect.sync(() => Fs.watch(Path.dirname(path), happened)),
        (watcher) => Effect.sync(() => watcher.close())
      ),
      until(`the file ${path}`, () => Fs.existsSync(path))
    )
  )

/** Records of a log that are warnings or worse. */
export const regrets = ({ child }: Daemon): ReadonlyArray<LogRecord> =>
  child.log.filter((record) => /^(?:warn|error|fatal)/.test(record.get("level") ?? ""))

/** Their messages. */
export const regretted = (daemon: Daemon): ReadonlyArray<string> => regrets(daemon).map((record) => record.get("msg")!)

/** The command whose answer tests tell apart by its content. */
export const readfile = (file: string): object => Scenario.hyper("readfile", { container: "c1", file })

/** What a real shim does after the end of its connection: connects with the same token, every tenth of a second, for ten seconds. */
export const reconnect = Effect.fnUntraced(function* (daemon: Daemon, token: string | undefined) {
  for (let attempt = 0; attempt < 100; attempt++) {
    const shim: RawClient | undefined = yield* Effect.orElseSucceed(daemon.connect, () => undefined)
    if (shim !== undefined) {
      const number = shim.post(Raw.Op.connectShim, { token })
      const response = yield* Effect.option(Effect.catchDefect(shim.response(number, 15), Effect.fail))
      if (response._tag === "Some") {
        Scenario.accepted(response.value, Raw.Op.connectShim)
        return shim
      }
    }
    yield* Effect.sleep("100 millis")
  }
  return assert.fail("no daemon within ten seconds")
})
