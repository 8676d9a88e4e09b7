/** The built daemon as a child process. */
import { layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { type ChildProcess, spawn } from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import * as Logfmt from "./Logfmt.ts"
import * as Raw from "./RawBytes.ts"
import * as RawClient from "./RawClient.ts"
import { happened, until } from "./Wait.ts"

/** What `node scripts/build.mjs` makes, or another build that CC_PROXY_BINARY names. */
export const binary =
  process.env["CC_PROXY_BINARY"] ?? fileURLToPath(new URL("../../../dist/cc-proxy", import.meta.url))

export interface Exit {
  readonly code: number | null
  readonly signal: string | null
}

export interface Options {
  /** Added to the command line, behind the socket path. */
  readonly args?: ReadonlyArray<string>
  /** Added to an environment that holds little more than PATH. */
  readonly env?: Readonly<Record<string, string>>
  /** The directory for the socket and all else; a fresh one by default. */
  readonly directory?: string
  /** Descriptors that the child gets as 3, 4, … */
  readonly descriptors?: ReadonlyArray<number>
  /** A shell command line that ends by becoming the daemon: `exec "$0" "$@"`. */
  readonly shell?: string
  /** The program, instead of `binary`. */
  readonly program?: string
}

/** A directory of its own, gone at the end of the scope. */
export const temporaryDirectory = Effect.acquireRelease(
  Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "cc-proxy-e2e-"))),
  (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true, force: true }))
)

/**
 * A child process and what it says. A daemon may hand over to another process, which says on in the same pipes, is no child of
 * ours, and is then meant by `pid`, `kill` and the rest.
 */
export class Child {
  stdout = ""
  stderr = ""
  /** How it ended; set once its output is complete: its successors' too. */
  exit: Exit | undefined
  /** Whether the test means it to end. */
  mayEnd = false
  /** The processes that took over, one after another. They tell it in the log, at `info`. */
  readonly successors: Array<number> = []
  readonly #process: ChildProcess
  #scanned = 0 // how much of stderr has been looked through for them
  #doomed = false

  constructor(process: ChildProcess) {
    this.#process = process
    process.stdout?.setEncoding("utf8").on("data", (text: string) => {
      this.stdout += text
      happened()
    })
    process.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.stderr += text
      this.#lookForSuccessors()
      happened()
    })
    process.on("error", (error) => {
      this.stderr += error.message
      happened()
    })
    process.on("close", (code, signal) => {
      this.exit = { code, signal }
      happened()
    })
  }

  #lookForSuccessors(): void {
    const whole = this.stderr.slice(this.#scanned, this.stderr.lastIndexOf("\n") + 1)
    this.#scanned += whole.length
    for (const line of whole.split("\n").filter((line) => line.includes(' msg="took over" '))) {
      const record = Logfmt.parse(line)
      if (record.get("from") !== String(this.pid)) continue
      this.successors.push(Number(record.get("pid")))
      if (this.#doomed) this.kill("SIGKILL")
    }
  }

  /** The process that serves. */
  get pid(): number {
    return this.successors.at(-1) ?? this.#process.pid ?? 0
  }

  kill(signal: NodeJS.Signals): void {
    if (this.successors.length === 0) return void this.#process.kill(signal)
    if (this.exit !== undefined) return
    try {
      process.kill(this.pid, signal)
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== "ESRCH") throw cause // it has just ended
    }
  }

  /** Kills it, and whatever takes over from it meanwhile. Waits for its end. */
  get destroyed(): Effect.Effect<Exit> {
    return Effect.suspend(() => {
      this.#doomed = true
      return this.stop("SIGKILL")
    })
  }

  /** Asks for a hand-over, and waits for what becomes of it: the pid of the process that took over, if one did. */
  get handOver(): Effect.Effect<number | undefined> {
    return Effect.suspend(() => {
      const before = this.successors.length
      const failed = () => this.stderr.split('msg="hand-over failed').length
      const failures = failed()
      this.kill("SIGUSR2")
      return Effect.map(
        until(
          "the end of the hand-over",
          () => {
            if (this.exit !== undefined)
              throw new Error(`the daemon has ended: ${JSON.stringify(this.exit)}\n${this.stderr}`)
            return this.successors.length > before || failed() > failures
          },
          20
        ),
        () => this.successors[before]
      )
    })
  }

  /** Waits for its end. */
  ended(seconds?: number): Effect.Effect<Exit> {
    this.mayEnd = true
    return until("the end of the daemon", () => this.exit, seconds)
  }

  /** Asks it to stop and waits for its end. */
  stop(signal: NodeJS.Signals = "SIGTERM", seconds?: number): Effect.Effect<Exit> {
    this.kill(signal)
    return this.ended(seconds)
  }

  /** The records of its log. */
  get log(): ReadonlyArray<Logfmt.LogRecord> {
    const whole = this.stderr.slice(0, this.stderr.lastIndexOf("\n") + 1)
    return whole.split("\n").filter(Boolean).map(Logfmt.parse)
  }

  /** Waits for a warning or worse in the log. */
  get warned(): Effect.Effect<boolean> {
    return until("a warning in the log", () =>
      this.log.some((record) => /^(?:warn|error)/.test(record.get("level") ?? ""))
    )
  }

  /** Open file descriptors. */
  get descriptors(): number {
    return Fs.readdirSync(`/proc/${this.pid}/fd`).length
  }

  /** Resident memory in bytes; `peak` is the most there ever was. */
  get memory(): { readonly resident: number; readonly peak: number } {
    const status = Fs.readFileSync(`/proc/${this.pid}/status`, "utf8")
    const read = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, "m").exec(status)?.[1]) * 1024
    return { resident: read("VmRSS"), peak: read("VmHWM") }
  }
}

/** Runs the daemon's program with exactly these arguments. */
export const run = (args: ReadonlyArray<string>, options: Options = {}) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const { program = binary } = options
      const [file, rest] =
        options.shell === undefined ? [program, args] : ["/bin/sh", ["-c", options.shell, program, ...args]]
      return new Child(
        spawn(file, rest, {
          env: { PATH: process.env["PATH"], ...options.env },
          stdio: ["ignore", "pipe", "pipe", ...(options.descriptors ?? [])]
        })
      )
    }),
    (child) =>
      Effect.gen(function* () {
        const died = child.exit !== undefined && !child.mayEnd
        yield* child.destroyed
        yield* died
          ? Effect.die(new Error(`the daemon ended by itself: ${JSON.stringify(child.exit)}\n${child.stderr}`))
          : Effect.void
      })
  )

export interface Daemon {
  readonly child: Child
  readonly directory: string
  readonly socketPath: string
  readonly connect: ReturnType<typeof RawClient.connect>
  /** A few round trips: whatever lay in the daemon's sockets before has been read after it, and what it wrote, by the test. */
  readonly settle: Effect.Effect<void, Error>
}

/** Waits until the daemon listens on `socketPath`. */
export const listening = (child: Child, directory: string, socketPath: string) =>
  Effect.gen(function* () {
    const connect = RawClient.connect(socketPath)
    yield* Effect.scoped(connect).pipe(
      Effect.retry({ while: () => child.exit === undefined, schedule: Schedule.spaced("5 millis") }),
      Effect.timeout("10 seconds"),
      Effect.catch((error) =>
        Effect.die(
          new Error(`the daemon does not listen: ${error.message} ${JSON.stringify(child.exit)}\n${child.stderr}`)
        )
      )
    )
    const settle = Effect.scoped(
      Effect.gen(function* () {
        const witness = yield* connect
        for (let trip = 0; trip < 3; trip++) yield* witness.request(Raw.Op.attachVM, { containerId: "nobody's" })
      })
    )
    return { child, directory, socketPath, connect, settle } satisfies Daemon
  })

/** A daemon that listens on a socket of its own and leaves the machine's KSM alone. */
export const start = (options: Options = {}) =>
  Effect.gen(function* () {
    const directory = options.directory ?? (yield* temporaryDirectory)
    const socketPath = Path.join(directory, "proxy.sock")
    const child = yield* run(
      [
        "-socket-path",
        socketPath,
        "-ksm",
        "initial",
        "-spool-dir",
        Path.join(directory, "spool"),
        ...(options.args ?? [])
      ],
      options
    )
    return yield* listening(child, directory, socketPath)
  })

/** One daemon for all tests of a file. It has to outlive them and to stop cleanly. */
export class SharedDaemon extends Context.Service<SharedDaemon, Daemon>()("cc-proxy/test/e2e/SharedDaemon") {
  static readonly layer = (...args: ReadonlyArray<string>) =>
    Layer.effect(
      SharedDaemon,
      Effect.acquireRelease(start({ args }), ({ child }) =>
        Effect.gen(function* () {
          const exit = yield* child.stop()
          yield* exit.code === 0 ? Effect.void : Effect.die(new Error(`exit ${JSON.stringify(exit)}\n${child.stderr}`))
        })
      )
    )
}

/** Tests that share one daemon, started with `args`. */
export const withDaemon = (...args: ReadonlyArray<string>) =>
  layer(SharedDaemon.layer("-log", "info", ...args), { excludeTestServices: true })
