/** The daemon's units, and what systemd says of them. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as ChildProcess from "node:child_process"
import * as Fs from "node:fs"

const service = "cc-proxy.service"
const socket = "cc-proxy.socket"
const dropIns = `/run/systemd/system/${service}.d`

/** Where a package has the program, and what it is of. */
const installed = "/usr/bin/cc-proxy"
const files = "/usr/lib/cc-proxy"

/** ListenStream= of the socket's unit. */
export const socketPath = "/run/cc-oci-runtime/proxy.sock"

interface Outcome {
  readonly status: number
  readonly stdout: string
  readonly stderr: string
}

/** Runs a program to its end. */
const run = (program: string, ...args: ReadonlyArray<string>): Effect.Effect<Outcome> =>
  Effect.callback((resume) => {
    ChildProcess.execFile(program, args, { maxBuffer: 2 ** 28 }, (error, stdout, stderr) => {
      const status = error === null ? 0 : typeof error.code === "number" ? error.code : -1
      resume(Effect.succeed({ status, stdout, stderr }))
    })
  })

/** Runs systemctl, which has to succeed; gives its output. */
const systemctl = Effect.fnUntraced(function* (...args: ReadonlyArray<string>) {
  const { status, stderr, stdout } = yield* run("systemctl", ...args)
  assert.strictEqual(status, 0, `systemctl ${args.join(" ")}: ${stderr}`)
  return stdout
})

export const start = systemctl("start", service)
export const stop = systemctl("stop", service)
/** Stops the socket as well: no client can start the daemon. */
export const stopAll = systemctl("stop", service, socket)
export const restart = systemctl("restart", service)
/** Removes what a service that is stopped has left. */
export const clean = (...what: ReadonlyArray<string>) =>
  systemctl("clean", ...what.map((each) => `--what=${each}`), service)
export const reload = systemctl("reload", service)

/** Whether a reload succeeds. */
export const tryReload = Effect.map(run("systemctl", "reload", service), ({ status }) => status === 0)

/** One of the service's properties, as `systemctl show` tells it. */
export const property = (name: string): Effect.Effect<string> =>
  Effect.map(systemctl("show", "-P", name, service), (text) => text.trim())

/** How the service stands. */
export const state = Effect.map(
  systemctl("show", "-p", "ActiveState,SubState,Result,NRestarts,MainPID,NFileDescriptorStore", service),
  (text) =>
    Object.fromEntries(
      text
        .trim()
        .split("\n")
        .map((line) => line.split("=", 2) as [string, string])
    )
)

/** What the service has to look like while it serves and nothing has gone wrong. */
export const healthy = Effect.gen(function* () {
  const { ActiveState, NRestarts, Result, SubState } = yield* state
  assert.deepStrictEqual([ActiveState, SubState, Result, NRestarts], ["active", "running", "success", "0"])
})

/** The daemon's process. */
export const mainPid = Effect.map(property("MainPID"), Number)

/** Asks systemd again and again until a property is as wanted: it tells no changes to those without D-Bus. */
export const become = Effect.fnUntraced(
  function* (name: string, wanted: (value: string) => boolean) {
    let value = yield* property(name)
    while (!wanted(value)) value = yield* property(name)
  },
  Effect.timeoutOrElse({ duration: "15 seconds", orElse: () => Effect.die(new Error("systemd waited in vain")) })
)

/** What the daemon has logged since this was asked last. */
export const journal = Effect.map(
  run("journalctl", "-u", service, "-o", "cat", "--no-pager", "--cursor-file=/run/cc-proxy-tests.cursor"),
  ({ stdout }) => stdout
)

/** Inodes of the connections that a listening socket's owner has accepted and not closed. Source: proc_net(5), unix. */
export const connections = (path: string): ReadonlyArray<string> =>
  Fs.readFileSync("/proc/net/unix", "latin1")
    .split("\n")
    .map((line) => line.split(/ +/))
    .filter((fields) => fields[7] === path && fields[5] === "03")
    .map((fields) => fields[6]!)
    .toSorted()

/** Installs a program, as a package does: each file in one step, and V8's compile cache warmed. */
export const install = Effect.fnUntraced(function* (text?: string) {
  Fs.mkdirSync(files, { recursive: true })
  for (const { name } of Fs.readdirSync("/built", { withFileTypes: true }).filter((entry) => entry.isFile())) {
    Fs.copyFileSync(`/built/${name}`, `${files}/.new`)
    if (name === "cc-proxy" && text !== undefined) Fs.writeFileSync(`${files}/.new`, text)
    Fs.renameSync(`${files}/.new`, `${files}/${name}`)
  }
  if (!Fs.existsSync(installed)) Fs.symlinkSync(`${files}/cc-proxy`, installed)
  yield* run(installed, "-version")
})

/** The service as it is installed, with `settings` besides, while the scope lasts: its socket listens, nothing is left of an earlier daemon. */
export const make = (...settings: ReadonlyArray<string>) =>
  Effect.acquireRelease(
    Effect.gen(function* () {
      yield* install()
      Fs.mkdirSync(dropIns, { recursive: true })
      Fs.writeFileSync(
        `${dropIns}/test.conf`,
        ["[Service]", "Environment=CC_PROXY_LOG_LEVEL=info", ...settings, ""].join("\n")
      )
      yield* systemctl("enable", service) // and its socket; reads the units again
      yield* journal
      yield* systemctl("start", socket)
    }),
    () =>
      Effect.gen(function* () {
        yield* stopAll
        yield* run("systemctl", "reset-failed", service)
        yield* clean("runtime", "state", "fdstore")
      })
  )
