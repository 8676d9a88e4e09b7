/** Agents and shims as processes of their own: `peer.c`, compiled for the run. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { spawn, spawnSync } from "node:child_process"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import { Child, temporaryDirectory } from "../e2e/DaemonProcess.ts"
import { until } from "../e2e/Wait.ts"

export const hasCompiler = spawnSync("gcc", ["--version"]).status === 0

/** Where the compiled program is. */
export class PeerProgram extends Context.Service<PeerProgram, string>()("cc-proxy/test/support/torture/PeerProgram") {
  static readonly layer = Layer.effect(
    PeerProgram,
    Effect.gen(function* () {
      const program = Path.join(yield* temporaryDirectory, "peer")
      const source = fileURLToPath(new URL("peer.c", import.meta.url))
      const { status, stderr } = spawnSync("gcc", ["-O2", "-Wall", "-Wextra", "-Werror", "-o", program, source])
      if (status !== 0) return yield* Effect.die(new Error(`peer.c does not compile: ${String(stderr)}`))
      return program
    })
  )
}

/** What went over the wire: counts of records and bytes. */
export interface Slot {
  /** Numbers of the first record of output, and of the one behind the last. */
  readonly first: number
  readonly next: number
  readonly output: number
  readonly input: number
  /** Bytes of the records before the first. */
  readonly before: number
  /** Bytes that it had not read when it killed itself. */
  readonly unread: number
}

export interface Digest {
  readonly bytes: number
  readonly sha256: string
}

/** What an agent tells of a process that has ended. `stdin` has one digest for each of its shims. */
export interface ProcessReport {
  readonly stdio: number
  readonly stdout: Digest
  readonly stderr: Digest
  readonly stdin: ReadonlyArray<Digest>
}

/** What a shim tells when it ends: after its process, or because nobody knew its token any more. */
export interface ShimReport {
  readonly connections: number
  /** Places where records are missing. */
  readonly gaps: number
  readonly first: number
  readonly next: number
  readonly stdout: Digest
  readonly stderr: Digest
  readonly stdin: Digest
  readonly status?: number
  readonly refused?: true
  readonly unconnected?: true
}

export interface PeerOptions {
  readonly seed: number
  /** Reads and writes pieces of random sizes up to this many bytes. */
  readonly cut?: number | undefined
  /** Size of the socket's buffers; the kernel's own by default. */
  readonly buffer?: number | undefined
  /** The C agent: two NEXT before each reply. */
  readonly next?: boolean
  readonly identity?: number
  readonly generation?: number
  /** Records of stdin, their largest size, and whether its end follows. */
  readonly records?: number
  readonly max?: number
  readonly eof?: boolean
  /** Largest record of output. */
  readonly largest?: number
  /** Number of a record of output at which it stops itself, and when it is continued, kills itself. */
  readonly die?: number | undefined
  /** Stops itself, once it has claimed its token and before it reads more. */
  readonly hold?: boolean
  /** Lets records be missing, whole ones. */
  readonly gaps?: boolean
  /** An agent's channels take one connection after another. */
  readonly stay?: boolean
}

const slotSize = 48
const slots = 64

export class Peer {
  readonly child: Child
  readonly #progress: string

  constructor(child: Child, progress: string) {
    this.child = child
    this.#progress = progress
  }

  /** What it has sent and received so far, and had when it was killed; of an agent's nth process. */
  slot(nth = 0): Slot {
    const bytes = Fs.readFileSync(this.#progress)
    const read = (field: number) => Number(bytes.readBigUInt64LE(nth * slotSize + field * 8))
    return { first: read(0), next: read(1), output: read(2), input: read(3), before: read(4), unread: read(5) }
  }

  /** Whether it has said a word. */
  said(word: string): boolean {
    return this.child.stdout.split("\n").includes(word)
  }

  /** What it has told as JSON. Throws what it found wrong. */
  get reports(): ReadonlyArray<unknown> {
    const whole = this.child.stdout.split("\n").slice(0, -1)
    return whole
      .filter((line) => line.startsWith("{"))
      .map((line) => {
        const report = JSON.parse(line) as { readonly failure?: string }
        if (report.failure !== undefined) throw new Error(report.failure)
        return report
      })
  }

  /** Waits until an agent's process has ended. */
  processReport(stdio: number, seconds?: number): Effect.Effect<ProcessReport> {
    return until(
      `the end of the process with stdio ${stdio}`,
      () => (this.reports as ReadonlyArray<ProcessReport>).find((report) => report.stdio === stdio),
      seconds
    )
  }

  /** Waits for a shim's end. */
  shimReport(seconds?: number): Effect.Effect<ShimReport> {
    return until(
      "a shim's report",
      () => {
        const report = this.reports.at(-1) as ShimReport | undefined
        if (this.child.exit !== undefined && report === undefined)
          throw new Error(`a shim ended without a report: ${JSON.stringify(this.child.exit)}`)
        return this.child.exit === undefined ? undefined : report
      },
      seconds
    )
  }

  /** Ends it as nothing else does. */
  get kill(): Effect.Effect<void> {
    return Effect.suspend(() => {
      this.child.kill("SIGKILL")
      return Effect.asVoid(this.child.ended())
    })
  }
}

const start = Effect.fnUntraced(function* (
  what: "agent" | "shim",
  where: string,
  options: PeerOptions,
  token?: string
) {
  const program = yield* PeerProgram
  const progress = Path.join(yield* temporaryDirectory, "progress")
  Fs.writeFileSync(progress, Buffer.alloc(slots * slotSize))
  const flags = Object.entries(options).flatMap(([name, value]) =>
    value === undefined || value === false ? [] : value === true ? [`--${name}`] : [`--${name}`, String(value)]
  )
  return yield* Effect.acquireRelease(
    Effect.sync(() => {
      const env = token === undefined ? {} : { TOKEN: token }
      const args = [what, where, "--progress", progress, ...flags]
      return new Peer(new Child(spawn(program, args, { env, stdio: ["ignore", "pipe", "inherit"] })), progress)
    }),
    (peer) => peer.kill
  )
})

/** An agent that listens in `directory`. */
export const agent = Effect.fnUntraced(function* (directory: string, options: PeerOptions) {
  const peer = yield* start("agent", directory, options)
  yield* until("an agent that listens", () => peer.said("listening"))
  return peer
})

/** A shim that claims `token`. */
export const shim = (socketPath: string, token: string, options: PeerOptions) =>
  start("shim", socketPath, options, token)
