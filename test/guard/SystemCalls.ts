/** System calls on the daemon's sockets, counted by strace between marks that the test sends through the daemon. */
import * as Effect from "effect/Effect"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as DaemonProcess from "../support/e2e/DaemonProcess.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import { works } from "./Harness.ts"
import { type Calls, socketWorkNames, type SystemCallsReport } from "./Reports.ts"
import * as SocketWork from "./SocketWork.ts"

/** Calls that do the same. */
const kinds: Readonly<Record<string, keyof Calls>> = {
  read: "read",
  readv: "read",
  recvfrom: "read",
  recvmsg: "read",
  write: "write",
  writev: "write",
  sendto: "write",
  sendmsg: "write",
  accept: "other",
  accept4: "other",
  socket: "other",
  connect: "other",
  shutdown: "other",
  close: "other"
}

/** What is needed and not there. */
export const missing = works("strace", "-o", "/dev/null", "true") ? undefined : "strace, and leave to use it"

/** Lines of one thread, each whole: a call during which another thread made one stands in two. */
const linesOf = (trace: string, pid: number): ReadonlyArray<string> => {
  const lines: Array<string> = []
  let begun = ""
  for (const line of trace.split("\n")) {
    const [, thread, text = ""] = /^(\d+) +(.*)$/.exec(line) ?? []
    if (thread !== String(pid)) continue
    if (text.endsWith(" <unfinished ...>")) begun = text.slice(0, -" <unfinished ...>".length)
    else lines.push(text.replace(/^<\.\.\. \w+ resumed>/, begun))
  }
  return lines
}

/** What happened on sockets between each mark's answer and the next mark, by the name of the first. */
export const parse = (trace: string, pid: number): ReadonlyMap<string, Calls> => {
  const found = new Map<string, { read: number; write: number; other: number }>()
  let section: { read: number; write: number; other: number } | undefined
  for (const line of linesOf(trace, pid)) {
    const kind = kinds[/^(\w+)\(/.exec(line)?.[1] ?? ""]
    if (kind === undefined || !/<(?:socket:|UNIX)/.test(line)) continue
    if (line.includes("of the guard")) {
      // a mark is read, and its answer written; a pause does not count
      const [, name] = /mark (\w+) of the guard/.exec(line) ?? []
      if (name === undefined) continue
      section = kind === "write" ? { read: 0, write: 0, other: 0 } : undefined
      if (section !== undefined) found.set(name, section)
    } else if (section !== undefined) {
      section[kind]++
    }
  }
  return found
}

/** How often each kind of work is done. */
const times = 20

/** Counts what each kind of work calls. */
export const count = Effect.scoped(
  Effect.gen(function* () {
    const directory = yield* DaemonProcess.temporaryDirectory
    const trace = Path.join(directory, "trace")
    const options = `-D -f -y -s 200 -o '${trace}' -e trace=${Object.keys(kinds).join()}`
    const daemon = yield* DaemonProcess.start({ directory, shell: `exec strace ${options} "$0" "$@"` })
    const witness = yield* daemon.connect
    const mark = (name: string) => witness.request(Raw.Op.attachVM, { containerId: `mark ${name} of the guard` })
    for (const name of socketWorkNames)
      yield* Effect.scoped(
        Effect.gen(function* () {
          const work = yield* SocketWork.works[name](daemon)
          yield* work
          yield* SocketWork.rest(witness)
          yield* mark(name)
          yield* Effect.repeat(work, { times: times - 1 })
          yield* SocketWork.rest(witness)
          yield* mark("nothing")
        })
      )
    // strace shares the daemon's stderr, which ends with the last of them
    yield* daemon.child.stop()
    const calls = parse(Fs.readFileSync(trace, "utf8"), daemon.child.pid)
    const found: Partial<Record<keyof SystemCallsReport, Calls>> = {}
    for (const name of socketWorkNames) {
      const { other, read, write } = calls.get(name)!
      found[name] = { read: read / times, write: write / times, other: other / times }
    }
    return found as SystemCallsReport
  })
)
