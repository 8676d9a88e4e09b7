/** What the built daemon loads before it listens, and what work over real sockets allocates in it. */
import * as Effect from "effect/Effect"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import * as DaemonProcess from "../support/e2e/DaemonProcess.ts"
import { until } from "../support/e2e/Wait.ts"
import { steadyNode, unoptimised } from "./Harness.ts"
import type { DaemonReport, Size } from "./Reports.ts"
import * as SocketWork from "./SocketWork.ts"

/** Modules of Node that cost much to load, and that no daemon needs to listen. */
const unwanted = /^(?:child_process|cluster|http|http2|https|inspector|tls|worker_threads|zlib)$/

/** What `preload.cjs` tells. */
interface Loaded {
  /** Node's own modules and bindings, in the order in which they were loaded. */
  readonly node: ReadonlyArray<string>
  /** Files. */
  readonly files: ReadonlyArray<string>
}
interface Heap {
  readonly used: number
  readonly young: number
  readonly full: number
}

const reports = (child: DaemonProcess.Child): ReadonlyArray<unknown> =>
  child.stderr
    .slice(0, child.stderr.lastIndexOf("\n") + 1)
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line): unknown => JSON.parse(line))

type Work = keyof DaemonReport["costs"]

/** How often work is done: first until its code has been compiled and has seen what it gets, then while it is measured. */
const times = { before: 200, measured: 300 }

const looked = (child: DaemonProcess.Child) =>
  Effect.suspend(() => {
    const before = reports(child).length
    child.kill("SIGWINCH")
    return Effect.map(
      until("a look at the heap", () => reports(child)[before]),
      (report) => report as Heap
    )
  })

/** Counts what a start loads and what work costs. Dies where the daemon does. */
export const count = Effect.scoped(
  Effect.gen(function* () {
    const preload = fileURLToPath(new URL("preload.cjs", import.meta.url))
    const node = [process.execPath, ...steadyNode(256), ...unoptimised, "-r", preload]
    const daemon = yield* DaemonProcess.start({ shell: `exec ${node.map((word) => `'${word}'`).join(" ")} "$0" "$@"` })
    const { child } = daemon
    const witness = yield* daemon.connect
    const loaded = reports(child)[0] as Loaded
    const modules = loaded.node
      .filter((name) => name.startsWith("NativeModule "))
      .map((name) => name.slice("NativeModule ".length))
    const costs: Partial<Record<Work, DaemonReport["costs"][Work]>> = {}
    for (const name of ["command", "visit", "life"] as const)
      yield* Effect.scoped(
        Effect.gen(function* () {
          const work = yield* SocketWork.works[name](daemon)
          yield* Effect.repeat(work, { times: times.before - 1 })
          yield* SocketWork.rest(witness)
          const { full } = yield* looked(child)
          yield* Effect.repeat(work, { times: times.measured - 1 })
          yield* SocketWork.rest(witness)
          const { used, young } = yield* looked(child)
          costs[name] = { bytes: (used - full) / times.measured, kept: (young - full) / times.measured }
        })
      )
    return {
      modules,
      unwanted: modules.filter((name) => unwanted.test(name)),
      files: loaded.files.filter((file) => file !== preload),
      costs: costs as DaemonReport["costs"]
    } satisfies DaemonReport
  })
)

/** Sizes of the build; its compile cache is that of this Node. */
export const size = Effect.sync((): Size => {
  const cache = `${DaemonProcess.binary}.cache`
  const bytes = (file: string) => Fs.statSync(file).size
  const folders = Fs.readdirSync(cache).filter((name) => name.startsWith(`${process.version}-`))
  const files = folders.flatMap((folder) =>
    Fs.readdirSync(Path.join(cache, folder)).map((file) => Path.join(cache, folder, file))
  )
  return { program: bytes(DaemonProcess.binary), cache: files.reduce((total, file) => total + bytes(file), 0) }
})
