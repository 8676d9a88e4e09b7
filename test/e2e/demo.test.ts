/** `cc-proxy demo` as its user meets it: pipes, exit statuses, signals, a terminal, and nothing left behind. */
import { assert, describe, it, vi } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { execFileSync, spawn } from "node:child_process"
import * as Crypto from "node:crypto"
import * as Fs from "node:fs"
import * as Path from "node:path"
import type { Readable } from "node:stream"
import * as DaemonProcess from "../support/e2e/DaemonProcess.ts"
import { until } from "../support/e2e/Wait.ts"

vi.setConfig({ testTimeout: 60_000 })

/** Longest wait for a whole demonstration, in seconds. */
const patience = 40

/** Processes that run in `directory`, or have it in their command line or environment. */
const processesOf = (directory: string): ReadonlyArray<{ readonly pid: number; readonly command: string }> =>
  Fs.readdirSync("/proc").flatMap((pid) => {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) return []
    try {
      const seen = ["cmdline", "environ"].map((file) => Fs.readFileSync(`/proc/${pid}/${file}`, "latin1"))
      return [Fs.readlinkSync(`/proc/${pid}/cwd`), ...seen].some((text) => text.includes(directory))
        ? [{ pid: Number(pid), command: seen[0]!.replaceAll("\0", " ") }]
        : []
    } catch {
      return [] // it has ended meanwhile
    }
  })

/** A directory for everything temporary. At the end of the scope it has to be empty, and nobody may live in it. */
const cleanDirectory = Effect.gen(function* () {
  const directory = yield* DaemonProcess.temporaryDirectory
  const temporary = Path.join(directory, "tmp")
  Fs.mkdirSync(temporary)
  const clean = Effect.sync(() => {
    assert.deepStrictEqual(processesOf(temporary), [])
    assert.deepStrictEqual(Fs.readdirSync(temporary), [])
  })
  return { directory, temporary, clean }
})

interface Options {
  readonly env?: Readonly<Record<string, string>>
  /** A shell command line around the program, which is `"$0" "$@"`. */
  readonly shell?: string
}

/** Starts `cc-proxy demo`, and checks at the end of `use` that nothing is left. */
const demo = <A, E, R>(
  args: ReadonlyArray<string>,
  use: (child: DaemonProcess.Child, directory: string) => Effect.Effect<A, E, R>,
  { env, shell }: Options = {}
) =>
  Effect.gen(function* () {
    const { clean, directory, temporary } = yield* cleanDirectory
    const child = yield* DaemonProcess.run(["demo", ...args], {
      env: { ...env, TMPDIR: temporary, DIR: directory },
      ...(shell !== undefined && { shell })
    })
    // one that is killed the hard way cannot clean up
    const result = yield* Effect.onError(use(child, directory), () => Effect.exit(child.stop("SIGTERM")))
    yield* clean
    return result
  }).pipe(Effect.scoped)

/** Runs `cc-proxy demo` to its end. */
const finished = (args: ReadonlyArray<string>, options?: Options) =>
  demo(
    args,
    (child) => Effect.map(child.ended(patience), ({ code }) => ({ code, stdout: child.stdout, stderr: child.stderr })),
    options
  )

const printed = (child: DaemonProcess.Child, text: string | RegExp) =>
  until(`${String(text)} on stdout`, () => {
    if (child.exit !== undefined && !child.stdout.match(text)) throw new Error(`it has ended\n${child.stderr}`)
    return child.stdout.match(text) ?? undefined
  })

describe("the tour", () => {
  const story = [
    /^\s+proxy +process \d+ listens on \S+$/,
    /runtime → proxy → pod1 +RegisterVM pod1: .* ⇒ connected, its agent is READY$/,
    /runtime → proxy +AttachVM pod1, one token please ⇒ [\w-]{6}…$/,
    /shim → proxy +ConnectShim [\w-]{6}… ⇒ the session is yours$/,
    /runtime → proxy → pod1 +newcontainer shout: tr a-z A-Z ⇒ started$/,
    /shim → proxy → tr +stdin {2}"hello, world\\n"$/,
    /shim ← proxy ← tr +stdout "HELLO, WORLD\\n"$/,
    /shim ← proxy ← tr +exit status 0$/,
    /newcontainer talk: sh -c 'echo fine; echo oops >&2; exit 7' ⇒ started$/,
    /shim ← proxy ← sh +exit status 7$/,
    /execcmd nap: echo hi ⇒ started$/,
    /shim 1 → proxy → sleep +Signal 15, SIGTERM ⇒ sent$/,
    /shim 1 ← proxy ← sleep +exit status 143$/,
    /runtime → proxy → pod2 +RegisterVM pod2/,
    /shim \d ← proxy ← pod\d's cat +stdout "round 2\\n"$/,
    /shim 1 +has died/,
    /shim 3 ← proxy ← sh +stdout "anybody there\?\\n"$/,
    /shim 3 ← proxy ← sh +exit status 3$/,
    /UnregisterVM pod1 ⇒ forgotten$/,
    /AttachVM pod2 ⇒ error: unknown containerID: pod2$/,
    /proxy +Signal 15, SIGTERM ⇒ exit status 0$/,
    /^Everything was as it should be/
  ]

  it.live("tells its story to the end, exits 0 and leaves nothing", () =>
    Effect.gen(function* () {
      const { code, stderr, stdout } = yield* finished([])
      assert.deepStrictEqual([code, stderr], [0, ""])
      const lines = stdout.split("\n")
      let at = 0
      for (const line of story) {
        const found = lines.findIndex((text, index) => index >= at && line.test(text))
        assert.isAtLeast(found, at, `no ${String(line)} after line ${at} of\n${stdout}`)
        at = found
      }
      for (const line of ['stdout "fine\\n"', 'stderr "oops\\n"']) assert.include(stdout, line)
      assert.notInclude(stdout, "\u001b")
    })
  )

  it.live("is coloured on a terminal, unless NO_COLOR is set", () =>
    Effect.gen(function* () {
      const shell = `exec script -qfec "'$0' demo" /dev/null`
      const coloured = yield* finished([], { shell, env: { TERM: "xterm" } })
      assert.include(coloured.stdout, "\u001b[")
      const plain = yield* finished([], { shell, env: { TERM: "xterm", NO_COLOR: "1" } })
      assert.notInclude(plain.stdout, "\u001b[")
      assert.deepStrictEqual([coloured.code, plain.code], [0, 0])
    })
  )

  for (const [signal, status] of [
    ["SIGINT", 130],
    ["SIGTERM", 143],
    ["SIGHUP", 129]
  ] as const) {
    it.live(`cleans up when ${signal} stops it in the middle`, () =>
      demo([], (child) =>
        Effect.gen(function* () {
          yield* printed(child, "newcontainer nap")
          const { code } = yield* child.stop(signal)
          assert.deepStrictEqual([code, child.stderr], [status, `cc-proxy: stopped by ${signal}\n`])
        })
      )
    )
  }

  it.live("fails, and says where, when the proxy dies under it", () =>
    demo([], (child) =>
      Effect.gen(function* () {
        const [, pid] = yield* printed(child, /process (\d+) listens/)
        process.kill(Number(pid), "SIGKILL")
        const { code } = yield* child.ended()
        assert.strictEqual(code, 1)
        assert.match(child.stderr, /^cc-proxy: the d(?:aemon has ended by itself: .*SIGKILL|emo failed at ".*": .*)/)
        assert.notInclude(child.stdout, "Everything")
      })
    )
  )

  it.live("fails, with the proxy's own words, when the proxy does not start", () =>
    Effect.gen(function* () {
      const shell =
        'TMPDIR="$TMPDIR/$(printf "%0100d")" && mkdir "$TMPDIR" && "$0" "$@"; status=$?; rmdir "$TMPDIR"; exit $status'
      const { code, stderr } = yield* finished([], { shell })
      assert.strictEqual(code, 1)
      const [first, second] = stderr.split("\n")
      assert.match(first!, /socket path too long/)
      assert.match(second!, /^cc-proxy: the demo failed at "The proxy starts": the daemon has ended by itself/)
    })
  )

  it.live("ends quietly when nobody reads it any more", () =>
    Effect.gen(function* () {
      const shell = '{ "$0" "$@"; echo "status $?" >&2; } | head -n 1'
      const { stderr } = yield* finished([], { shell })
      assert.strictEqual(stderr, "status 141\n")
    })
  )

  it.live("wants a command for -i and -t", () =>
    Effect.gen(function* () {
      const { code, stderr, stdout } = yield* finished(["-it"])
      assert.deepStrictEqual([code, stdout], [1, ""])
      assert.match(stderr, /^cc-proxy: -i and -t want a command/)
    })
  )
})

describe("one command", () => {
  it.live("ends with the command's status, its stdout and stderr apart", () =>
    Effect.gen(function* () {
      const { code, stderr, stdout } = yield* finished(["--", "sh", "-c", "echo out; echo err >&2; exit 7"])
      assert.deepStrictEqual([code, stdout, stderr], [7, "out\n", "err\n"])
    })
  )

  it.live("hands the command's arguments on as they are", () =>
    Effect.gen(function* () {
      const { stdout } = yield* finished(["--", "printf", "<%s>", "a b", "-t", "--", "--help", "$HOME"])
      assert.strictEqual(stdout, "<a b><-t><--><--help><$HOME>")
    })
  )

  it.live("gets stdin and its end, and gives every byte back", () =>
    Effect.gen(function* () {
      const data = Crypto.randomBytes(20_000_000)
      const input = Path.join(yield* DaemonProcess.temporaryDirectory, "input")
      Fs.writeFileSync(input, data)
      const shell = '{ "$0" "$@" <"$INPUT"; echo "status $?" >&2; } | sha256sum'
      const { stderr, stdout } = yield* finished(["--", "cat"], { shell, env: { INPUT: input } })
      assert.strictEqual(stdout.split(" ")[0], Crypto.createHash("sha256").update(data).digest("hex"))
      assert.strictEqual(stderr, "status 0\n")
    })
  )

  it.live("stands in a pipeline", () =>
    Effect.gen(function* () {
      const { stdout } = yield* finished(["--", "wc", "-c"], { shell: 'echo hello | "$0" "$@" | cat' })
      assert.strictEqual(stdout, "6\n")
    })
  )

  it.live("has no input without one", () =>
    Effect.gen(function* () {
      const { code, stdout } = yield* finished(["--", "cat"])
      assert.deepStrictEqual([code, stdout], [0, ""])
    })
  )

  it.live("ends like any program whose reader has left", () =>
    Effect.gen(function* () {
      const shell = '{ "$0" "$@"; echo "status $?" >&2; } | head -n 1'
      const { stderr, stdout } = yield* finished(["--", "yes"], { shell })
      assert.deepStrictEqual([stdout, stderr], ["y\n", "status 141\n"])
    })
  )

  it.live("fails when its output cannot be written", () =>
    Effect.gen(function* () {
      const { code, stderr } = yield* finished(["--", "yes"], { shell: 'exec "$0" "$@" >/dev/full' })
      assert.deepStrictEqual([code, stderr], [1, "cc-proxy: stdout: ENOSPC: no space left on device, write\n"])
    })
  )

  it.live("gets SIGTERM and dies of it", () =>
    demo(["--", "sh", "-c", "echo ready; exec sleep 1000"], (child) =>
      Effect.gen(function* () {
        yield* printed(child, "ready")
        const { code } = yield* child.stop("SIGTERM")
        assert.deepStrictEqual([code, child.stderr], [143, ""])
      })
    )
  )

  it.live("gets SIGINT and may do with it what it likes", () =>
    demo(["--", "sh", "-c", "trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.1; done"], (child) =>
      Effect.gen(function* () {
        yield* printed(child, "ready")
        const { code } = yield* child.stop("SIGINT")
        assert.deepStrictEqual([code, child.stdout], [5, "ready\ninterrupted\n"])
      })
    )
  )

  it.live("that does not exist is named", () =>
    Effect.gen(function* () {
      const { code, stderr } = yield* finished(["--", "no-such-program"])
      assert.strictEqual(code, 127)
      assert.match(stderr, /^cc-proxy: .*no-such-program/)
    })
  )

  it.live("does not outlive the daemon", () =>
    demo(["--", "sh", "-c", "echo ready; exec sleep 1000"], (child, directory) =>
      Effect.gen(function* () {
        yield* printed(child, "ready")
        const daemon = processesOf(directory).find(({ command }) => command.includes(" -socket-path "))
        process.kill(daemon!.pid, "SIGKILL")
        const { code } = yield* child.ended()
        assert.strictEqual(code, 1)
        assert.match(child.stderr, /^cc-proxy: .*daemon has ended by itself: .*SIGKILL/)
      })
    )
  )
})

describe("a terminal", () => {
  /** A terminal of 30 rows and 100 columns with `cc-proxy demo -it -- sh` on it, and what comes after that. */
  const onTerminal = Effect.gen(function* () {
    const { clean, temporary } = yield* cleanDirectory
    const inner = `exec '${DaemonProcess.binary}' demo -it -- sh`
    const outer = `tty; stty rows 30 cols 100; sh -c 'echo pid $$; ${inner.replaceAll("'", `'\\''`)}'; echo "status $?"; stty -a`
    const child = spawn("script", ["-qfec", outer, "/dev/null"], {
      env: { PATH: process.env["PATH"], TMPDIR: temporary, TERM: "xterm-demo", PS1: "$ " },
      stdio: ["pipe", "pipe", "pipe", "pipe"]
    })
    ;(child.stdio[3] as Readable).resume() // whoever it starts holds the other end: it counts as ended when all have
    const terminal = yield* Effect.acquireRelease(
      Effect.sync(() => new DaemonProcess.Child(child)),
      (terminal) => {
        terminal.kill("SIGKILL")
        return terminal.ended()
      }
    )
    const [, tty, pid] = yield* printed(terminal, /(\/dev\/pts\/\d+)\r\npid (\d+)\r\n[#$] $/)
    return { terminal, tty: tty!, pid: Number(pid), clean, type: (keys: string) => void child.stdin.write(keys) }
  })

  const settings = (tty: string): string => execFileSync("stty", ["-F", tty, "-a"], { encoding: "utf8" })

  it.live("is the command's own: size, echo, line editing, interruption, status", () =>
    Effect.gen(function* () {
      const { clean, terminal, tty, type } = yield* onTerminal
      assert.match(settings(tty), /-icanon[^]*-echo\b/)
      type("stty size; echo $TERM\r")
      // what is typed before its prompt, the shell throws away
      yield* printed(terminal, /\r\n30 100\r\nxterm-demo\r\n[^]*[#$] $/)
      assert.include(terminal.stdout, "stty size; echo $TERM\r\n") // echoed, once
      assert.strictEqual(terminal.stdout.split("stty size; echo").length, 2)
      type("echo wrong\u0015echo right\r")
      yield* printed(terminal, /\r\nright\r\n[^]*[#$] $/)
      assert.notInclude(terminal.stdout, "\r\nwrong\r\n")
      type("sh -c 'echo before; exec sleep 1000'\r")
      yield* printed(terminal, "\r\nbefore\r\n")
      type("\u0003")
      yield* printed(terminal, /\^C[^]*[#$] $/)
      type("echo status $?\r")
      yield* printed(terminal, /\r\nstatus 130\r\n[^]*[#$] $/)
      type("exit 9\r")
      yield* printed(terminal, "\r\nstatus 9\r\n")
      const { code } = yield* terminal.ended()
      assert.strictEqual(code, 0)
      assert.match(terminal.stdout, /[^-]icanon[^]*[^-]echo\b/)
      yield* clean
    }).pipe(Effect.scoped)
  )

  it.live("passes its new sizes on", () =>
    Effect.gen(function* () {
      const { clean, terminal, tty, type } = yield* onTerminal
      type('until [ "$(stty size)" = "40 120" ]; do :; done; echo it is $((1 + 1)) times so\r')
      yield* printed(terminal, "times so\r\n")
      execFileSync("stty", ["-F", tty, "rows", "40", "cols", "120"])
      yield* printed(terminal, "it is 2 times so\r\n")
      type("exit\r")
      yield* terminal.ended()
      yield* clean
    }).pipe(Effect.scoped)
  )

  it.live("is as it was after a signal", () =>
    Effect.gen(function* () {
      const { clean, pid, terminal, tty, type } = yield* onTerminal
      type("echo it is $((1 + 1))\r")
      yield* printed(terminal, "it is 2\r\n")
      assert.match(settings(tty), /-icanon/)
      process.kill(pid, "SIGTERM")
      yield* printed(terminal, /stopped by SIGTERM\r\nstatus 143\r\n/)
      yield* terminal.ended()
      assert.match(terminal.stdout, /[^-]icanon[^]*[^-]echo\b/)
      yield* clean
    }).pipe(Effect.scoped)
  )

  it.live("that hangs up takes everything along", () =>
    Effect.gen(function* () {
      const { clean, terminal, type } = yield* onTerminal
      type("echo it is $((1 + 1))\r")
      yield* printed(terminal, "it is 2\r\n")
      yield* terminal.stop("SIGKILL")
      yield* clean
    }).pipe(Effect.scoped)
  )

  it.live("has to be there for -t", () =>
    Effect.gen(function* () {
      const { code, stderr, stdout } = yield* finished(["-t", "--", "ls"])
      assert.deepStrictEqual([code, stdout], [1, ""])
      assert.match(stderr, /^cc-proxy: -t .*stdin is not a terminal\n$/)
    })
  )
})
