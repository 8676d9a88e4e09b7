/**
 * One process of a simulated container: a real process of this host.
 *
 * Without a terminal it has three pipes. Node gives a child socket pairs, which behave otherwise (`/dev/stderr` cannot be
 * opened, far more than 64 KiB fit in), so these are named pipes whose names are gone before the process starts. With a
 * terminal it runs under util-linux's `script`, which makes the pseudo-terminal and copies between it and two pipes; one more
 * pipe brings the number and the terminal of the process itself.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as ChildProcess from "node:child_process"
import * as Crypto from "node:crypto"
import * as Fs from "node:fs"
import * as Net from "node:net"
import * as Os from "node:os"
import * as Path from "node:path"
import { CommandRefused, type Process } from "./GuestCommand.ts"
import type * as GuestStdin from "./GuestStdin.ts"
import * as ProcessTree from "./ProcessTree.ts"
import * as Waiters from "./Waiters.ts"

const SIGKILL = 9
const SIGCONT = 18
const SIGSTOP = 19

/** Milliseconds between two attempts to wake a `script` that may have stopped itself. */
const wakeInterval = 50

/** The environment an agent starts with; a process's own variables replace and join these. */
const baseEnvironment = { PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", HOME: "/" }

export interface Output {
  /** Waits for the next bytes; `null` at the end. Unread output fills the pipe, and then the process waits. */
  readonly pull: Effect.Effect<Uint8Array | null>
}

export interface GuestProcess {
  readonly spec: Process
  readonly stdin: GuestStdin.GuestStdin
  readonly stdout: Output
  /** Absent for a terminal. */
  readonly stderr: Output | undefined
  /** Waits until it runs, or is known never to run. */
  readonly started: Effect.Effect<void>
  /** The process; absent if it never ran. */
  readonly leader: () => ProcessTree.Leader | undefined
  /** What stands between this process and a terminal's; absent without one. */
  readonly launcher: ProcessTree.Leader | undefined
  /** Waits for the exit status: 128 + n where signal n has killed it; 127, 126 or 125 where it could not be executed. */
  readonly exited: Effect.Effect<number>
  readonly signal: (number: number) => void
  /** Sets the size of its terminal: the rows, then the columns, so the process gets two SIGWINCH. */
  readonly resize: (rows: number, columns: number) => Effect.Effect<void, CommandRefused>
  /** Closes what is open here. */
  readonly release: () => void
}

/** Runs a program of this host to its end. */
const run = (program: string, args: ReadonlyArray<string>): Effect.Effect<void, CommandRefused> =>
  Effect.callback((resume) => {
    ChildProcess.execFile(program, args, (error) =>
      resume(error === null ? Effect.void : Effect.fail(new CommandRefused({ reason: `${program} failed` })))
    )
  })

interface Pipe {
  readonly read: number
  readonly write: number
}

/** Opens three pipes. The caller owns their descriptors. */
const openPipes = Effect.fnUntraced(function* (directory: string) {
  const id = Crypto.randomUUID()
  const paths = [0, 1, 2].map((index) => Path.join(directory, `${id}.${index}`))
  yield* run("mkfifo", paths)
  return yield* Effect.try({
    try: () => {
      const opened = new Set<number>()
      const open = (path: string, flags: string) => {
        const fd = Fs.openSync(path, flags)
        opened.add(fd)
        return fd
      }
      const openPipe = (path: string): Pipe => {
        const both = open(path, "r+") // a named pipe that has a reader and a writer lets the next two in at once
        const pipe = { read: open(path, "r"), write: open(path, "w") }
        Fs.closeSync(both)
        opened.delete(both)
        return pipe
      }
      try {
        return [openPipe(paths[0]!), openPipe(paths[1]!), openPipe(paths[2]!)] as const
      } catch (error) {
        opened.forEach((fd) => Fs.closeSync(fd))
        throw error
      } finally {
        for (const path of paths) Fs.rmSync(path)
      }
    },
    catch: (cause) => new CommandRefused({ reason: `pipes: ${String((cause as NodeJS.ErrnoException).code)}` })
  })
})

const makeOutput = (socket: Net.Socket): Output => {
  const { until, wake } = Waiters.make()
  for (const event of ["readable", "end", "error", "close"]) socket.on(event, wake)
  return {
    pull: until<Uint8Array | null>(
      () => (socket.read() as Uint8Array | null) ?? (socket.readableEnded || socket.destroyed ? null : undefined)
    )
  }
}

const quote = (text: string): string => `'${text.replaceAll("'", `'\\''`)}'`

/**
 * The command line that `script` hands to the program that SHELL names: tells its own number and terminal on descriptor 3,
 * sets the variables that were meant for `script` to what they are to be, and becomes the process.
 */
const terminalCommand = (args: ReadonlyArray<string>, variables: Record<string, string | undefined>): string =>
  [
    `echo "$$ $(command -p tty)" >&3`,
    `exec 3>&-`,
    ...Object.entries(variables).map(([name, value]) =>
      value === undefined ? `unset ${name}` : `${name}=${quote(value)}`
    ),
    `exec ${args.map(quote).join(" ")}`
  ].join("; ")

export interface Options {
  readonly spec: Process
  /** Where the pipes' names are for a moment. */
  readonly directory: string
  readonly makeStdin: (pipe: Net.Socket, terminal: boolean) => GuestStdin.GuestStdin
}

/** Starts a process. It is the caller's to kill and to release. */
export const start = Effect.fnUntraced(function* ({
  directory,
  makeStdin,
  spec
}: Options): Effect.fn.Return<GuestProcess, CommandRefused> {
  const [input, output, third] = yield* openPipes(directory)
  return yield* Effect.sync((): GuestProcess => {
    const terminal = spec.terminal === true
    const sockets = {
      stdin: new Net.Socket({ fd: input.write, readable: false, writable: true }),
      stdout: new Net.Socket({ fd: output.read, readable: true, writable: false }),
      /** stderr, or what the terminal's command line tells. */
      third: new Net.Socket({ fd: third.read, readable: true, writable: false })
    }
    sockets.stdin.on("error", () => undefined) // the process has closed its side
    const exited = Deferred.makeUnsafe<number>()
    const started = Deferred.makeUnsafe<void>()
    let ended = false
    let waker: NodeJS.Timeout | undefined
    const onExit = (code: number) => {
      ended = true
      clearInterval(waker)
      sockets.stdin.destroy()
      Deferred.doneUnsafe(exited, Exit.succeed(code))
      Deferred.doneUnsafe(started, Exit.void)
    }

    const env: Record<string, string> = { ...baseEnvironment }
    for (const { env: name, value } of spec.envs ?? []) env[name] = value
    const child = spawn(
      terminal
        ? ["script", "-qfec", terminalCommand(spec.args, { SHELL: env["SHELL"], PATH: env["PATH"] }), "/dev/null"]
        : spec.args,
      {
        cwd: Path.resolve("/", spec.workdir ?? ""),
        env: terminal ? { ...env, SHELL: "/bin/sh", PATH: process.env["PATH"] ?? baseEnvironment.PATH } : env,
        stdio: terminal
          ? [input.read, output.write, output.write, third.write]
          : [input.read, output.write, third.write]
      },
      onExit
    )
    for (const fd of [input.read, output.write, third.write]) Fs.closeSync(fd)

    const top = child?.pid === undefined ? undefined : { pid: child.pid, ended: () => ended }
    const launcher = terminal ? top : undefined
    const wake = () => launcher !== undefined && ProcessTree.signal(launcher.pid, SIGCONT)
    let leader = terminal ? undefined : top
    let tty: string | undefined
    if (terminal) {
      let told = ""
      sockets.third.on("error", () => undefined)
      sockets.third.on("data", (chunk: Buffer) => {
        told += chunk.toString("latin1")
        const [, pid, name] = /^(\d+) (\S+)\n/.exec(told) ?? []
        if (pid === undefined) return
        leader = { pid: Number(pid), ended: () => ended }
        tty = name
        sockets.third.destroy()
        Deferred.doneUnsafe(started, Exit.void)
      })
    } else if (top !== undefined) {
      Deferred.doneUnsafe(started, Exit.void)
    }

    return {
      spec,
      stdin: makeStdin(sockets.stdin, terminal),
      stdout: makeOutput(sockets.stdout),
      stderr: terminal ? undefined : makeOutput(sockets.third),
      started: Deferred.await(started),
      exited: Deferred.await(exited),
      leader: () => leader,
      launcher,
      signal(number) {
        if (ended || leader === undefined) return
        ProcessTree.signal(leader.pid, number)
        // When its child is stopped `script` stops too, sooner or later; once the child is to go on, it must not stay so.
        if (launcher === undefined) return
        if (number === SIGSTOP) clearInterval(waker)
        if (number === SIGCONT || number === SIGKILL) {
          clearInterval(waker)
          waker = setInterval(wake, wakeInterval)
          wake()
        }
      },
      resize: (rows, columns) =>
        Effect.suspend(() =>
          ended || tty === undefined
            ? Effect.fail(new CommandRefused({ reason: "the process has no terminal" }))
            : run("stty", ["-F", tty, "rows", String(rows), "cols", String(columns)])
        ),
      release() {
        for (const socket of Object.values(sockets)) socket.destroy()
      }
    }
  })
})

/**
 * Runs `args` with these descriptors as the leader of a session. Calls `onExit` once: with the exit status, or with that of a
 * process that could not be executed, as hyperstart and shells have it.
 */
const spawn = (
  args: ReadonlyArray<string>,
  options: { readonly cwd: string; readonly env: Record<string, string>; readonly stdio: Array<number> },
  onExit: (status: number) => void
): ChildProcess.ChildProcess | undefined => {
  try {
    if (!Fs.statSync(options.cwd).isDirectory()) throw new Error("not a directory")
    const child = ChildProcess.spawn(args[0]!, args.slice(1), { ...options, detached: true })
    child.once("error", ({ code }: NodeJS.ErrnoException) =>
      onExit(code === "ENOENT" ? 127 : code === "EACCES" ? 126 : 125)
    )
    child.once("exit", (code, signal) => onExit(code ?? 128 + Os.constants.signals[signal!]))
    return child
  } catch {
    onExit(125)
    return undefined
  }
}
