/** What a daemon keeps when everybody has gone. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as DaemonProcess from "../e2e/DaemonProcess.ts"
import * as Raw from "../e2e/RawBytes.ts"
import type { RawClient } from "../e2e/RawClient.ts"

/** Looks again and again, with round trips between, for as long as there is more than `goal`. Returns the least that was seen. */
const least = Effect.fnUntraced(function* (witness: RawClient, look: () => number, goal: number) {
  let least = Number.POSITIVE_INFINITY
  for (let looks = 0; looks < 50 && least > goal; looks++) {
    for (let trip = 0; trip < 3; trip++) yield* witness.request(Raw.Op.attachVM, { containerId: "nobody's" })
    least = Math.min(least, look())
  }
  return least
})

/** Descriptors of the daemon once they are at most `goal`, or else the fewest that were seen. */
export const descriptors = (daemon: DaemonProcess.Daemon, witness: RawClient, goal = 0) =>
  least(witness, () => daemon.child.descriptors, goal)

/** Where a daemon of these tests keeps what waits on disk; and where that is for us, if it has a file system of its own there. */
export const spool = (directory: string): string => Path.join(directory, "spool")
export const spoolOf = ({ child, directory }: DaemonProcess.Daemon): string =>
  `/proc/${child.pid}/root${spool(directory)}`

/** Files of the spool, but for the one that says whose it is. */
const spooled = (daemon: DaemonProcess.Daemon): ReadonlyArray<string> => {
  const path = spoolOf(daemon)
  if (!Fs.existsSync(path)) return []
  const entries = Fs.readdirSync(path, { recursive: true, withFileTypes: true })
  return entries.filter((entry) => entry.isFile() && entry.name !== "pid").map(({ name }) => name)
}

/**
 * Runs `torture` on a daemon of its own. Whatever that was, the daemon then has as many descriptors as before, no files, nothing to
 * regret in its log but what `expected` matches, and stops when it is asked to.
 */
export const restored = Effect.fnUntraced(function* <A, E, R>(
  torture: (daemon: DaemonProcess.Daemon) => Effect.Effect<A, E, R>,
  options: DaemonProcess.Options = {},
  expected = /^$/
) {
  const directory = yield* DaemonProcess.temporaryDirectory
  const args = ["-spool-dir", spool(directory), ...(options.args ?? [])]
  const env = { ...options.env, SPOOL: spool(directory) }
  const daemon = yield* DaemonProcess.start({ ...options, directory, args, env })
  const witness = yield* daemon.connect
  const before = yield* descriptors(daemon, witness)
  yield* Effect.scoped(torture(daemon))
  assert.isAtMost(yield* descriptors(daemon, witness, before), before)
  assert.strictEqual(yield* least(witness, () => spooled(daemon).length, 0), 0)
  const exit = yield* daemon.child.stop()
  assert.strictEqual(exit.code, 0)
  const errors = daemon.child.log.filter((record) => record.get("level") === "error")
  assert.deepStrictEqual(
    errors.filter((record) => !expected.test(record.get("msg") ?? "")),
    []
  )
})
