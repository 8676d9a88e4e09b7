import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { execFileSync } from "node:child_process"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as NodeWire from "../../src/layers/NodeWire.ts"
import * as Systemd from "../../src/layers/Systemd.ts"
import { ServiceManager } from "../../src/services/ServiceManager.ts"
import * as Records from "../support/Records.ts"
import { directory, eventually, pair } from "../support/SocketPair.ts"

/**
 * Stands in for `systemd-notify`: writes down each call, as one line of its arguments, what its environment has of systemd's,
 * and what the descriptors are that it was given. Waits behind `gate`, if there is one; fails where there is `broken`.
 */
const script = (path: string, version: string) => `#!/bin/sh
if [ "$1" = --version ]; then echo 'systemd ${version} (${version}-1)'; echo +PAM; exit; fi
cd '${path}'
fds=
for arg in "$@"; do case $arg in --fd=*) fds="$fds /proc/$$/fd/\${arg#--fd=}";; esac; done
variables=$(env | grep -E '^(NOTIFY|LISTEN)' | sort | tr '\\n' ' ')
[ -z "$fds" ] || fds=$(readlink $fds | tr '\\n' ' ')
printf '%s\\t%s\\t%s\\n' "$*" "$variables" "$fds" >> calls
if [ -e gate ]; then read -r line < gate; fi
if [ -e broken ]; then echo 'no luck' >&2; exit 3; fi
echo x >> ended
`

interface Call {
  readonly args: string
  readonly variables: string
  readonly descriptors: ReadonlyArray<string>
}

/** A place with the program in it, at first on PATH. */
const make = (version = "257") =>
  Effect.map(directory, (path) => {
    const file = (name: string) => Path.join(path, name)
    const lines = (name: string) =>
      Fs.existsSync(file(name)) ? Fs.readFileSync(file(name), "utf8").split("\n").slice(0, -1) : []
    Fs.writeFileSync(file("systemd-notify"), script(path, version), { mode: 0o755 })
    const environment = {
      PATH: `${path}:${process.env["PATH"]}`,
      NOTIFY_SOCKET: "/run/notify",
      FDSTORE: "1000",
      LISTEN_PID: "1",
      LISTEN_PIDFDID: "2",
      LISTEN_FDS: "1",
      LISTEN_FDNAMES: "listen"
    }
    const calls = (): ReadonlyArray<Call> =>
      lines("calls").map((line) => {
        const [args = "", variables = "", descriptors = ""] = line.split("\t")
        return { args, variables: variables.trim(), descriptors: descriptors.split(" ").filter(Boolean) }
      })
    return {
      environment,
      calls,
      args: () => calls().map(({ args }) => args),
      /** Waits for so many calls to have ended well. */
      ended: (count: number) => eventually(() => lines("ended").length >= count),
      called: (count: number) => eventually(() => calls().length >= count),
      break: () => Fs.writeFileSync(file("broken"), ""),
      close: () => execFileSync("mkfifo", [file("gate")]),
      /** Lets the calls go on that wait at the gate, one at least, and those that come. */
      open: Effect.promise(async () => {
        const gate = await Fs.promises.open(file("gate"), "w")
        Fs.unlinkSync(file("gate"))
        await gate.close()
      })
    }
  })

/** The service manager in an environment, for as long as the scope lasts. */
const manager = (environment: Systemd.Environment, timeout?: number) =>
  Effect.map(
    Layer.build(Systemd.layer({ environment, ...(timeout === undefined ? {} : { timeout }) })),
    Context.get(ServiceManager)
  )

/** Runs a test with a log of its own. */
const logged = <A, E, R>(test: (records: ReadonlyArray<Records.Record>) => Effect.Effect<A, E, R>) => {
  const { layer, records } = Records.make()
  return Effect.provide(test(records), layer)
}

const linkOf = (fd: number): string => Fs.readlinkSync(`/proc/self/fd/${fd}`)

/** So many files that are open for as long as the scope lasts, by descriptor. */
const openFiles = (count: number) =>
  Effect.flatMap(directory, (path) =>
    Effect.acquireRelease(
      Effect.sync(() => Array.from({ length: count }, (_, n) => Fs.openSync(Path.join(path, String(n)), "w"))),
      (fds) => Effect.sync(() => fds.forEach((fd) => Fs.closeSync(fd)))
    )
  )

/** A descriptor that is none. */
const notOpen = 0x3fff_ffff

const printable = /^[\x20-\x39\x3b-\x7e]{1,255}$/

describe("a descriptor's name", () => {
  it("is the VM's, where that is an ordinary one", () => {
    assert.strictEqual(Systemd.nameOf("pod-1_a.B+2"), "cc-proxy.vm-pod-1_a.B+2")
  })

  it("has no character that systemd takes for another thing", () => {
    assert.strictEqual(Systemd.nameOf("a:b/c d%\n~é"), "cc-proxy.vm-a%3Ab%2Fc%20d%25%0A%7E%C3%A9")
    for (const name of ["", ":", "\0", "\u007f", "日本", "\ud800", "x".repeat(5000)])
      assert.match(Systemd.nameOf(name), printable)
  })

  it("is another one for another VM, also where it is too long to be whole", () => {
    const long = "x".repeat(300)
    const names = [long, `${long}x`, `${long}y`, `:${long}`, "x".repeat(243), "x".repeat(244)].map(Systemd.nameOf)
    assert.strictEqual(new Set(names).size, names.length)
    for (const name of names) assert.match(name, printable)
    assert.isTrue(names[0]!.startsWith("cc-proxy.vm-xxx"))
    assert.strictEqual(Systemd.nameOf(long), names[0])
  })
})

describe("the environment of a child", () => {
  it("leads to systemd, and says nothing of descriptors that were passed to this process", () => {
    const own = { A: "a", NOTIFY_SOCKET: "n", FDSTORE: "1", LISTEN_PID: "1", LISTEN_PIDFDID: "2", LISTEN_FDS: "1" }
    assert.deepStrictEqual(Systemd.environment({ ...own, LISTEN_FDNAMES: "x:y", LISTEN_ON: "z" }), {
      A: "a",
      NOTIFY_SOCKET: "n",
      FDSTORE: "1",
      LISTEN_ON: "z"
    })
  })
})

describe("Systemd", () => {
  it.live("is told that the daemon serves, and knows its own variables again", () =>
    Effect.gen(function* () {
      const { calls, ended, environment } = yield* make()
      const { ready } = yield* manager(environment)
      yield* ready
      yield* ended(1)
      assert.deepStrictEqual(calls(), [{ args: "--ready", variables: "NOTIFY_SOCKET=/run/notify", descriptors: [] }])
    })
  )

  it.live("does not hold up the daemon while it is told", () =>
    Effect.gen(function* () {
      const { args, called, close, ended, environment, open } = yield* make()
      const { keep, ready } = yield* manager(environment)
      const [fd] = yield* openFiles(1)
      close()
      yield* ready
      yield* keep("a", [fd!])
      yield* called(2) // and neither has an end yet
      assert.deepStrictEqual(args().toSorted(), ["--fd=3 --fdname=cc-proxy.vm-a FDPOLL=0", "--ready"])
      yield* open
      yield* ended(1)
    })
  )

  it.live("gets a VM's very sockets, whatever becomes of them in the daemon", () =>
    Effect.gen(function* () {
      const { calls, ended, environment } = yield* make()
      const { keep, keeps } = yield* manager(environment)
      assert.isTrue(keeps)
      const sockets = [(yield* pair).socket, (yield* pair).socket]
      const fds = sockets.map((socket) => NodeWire.descriptor(socket)!)
      const links = fds.map(linkOf)
      assert.isTrue(links.every((link) => link.startsWith("socket:")))
      yield* keep("pod:1", fds)
      for (const socket of sockets) socket.destroy()
      yield* ended(1)
      assert.deepStrictEqual(calls(), [
        {
          args: "--fd=3 --fd=4 --fdname=cc-proxy.vm-pod%3A1 FDPOLL=0",
          variables: "NOTIFY_SOCKET=/run/notify",
          descriptors: links
        }
      ])
    })
  )

  it.live("is told to forget a VM once it has what it was given of it", () =>
    Effect.gen(function* () {
      const { args, called, close, ended, environment, open } = yield* make()
      const { forget, keep } = yield* manager(environment)
      const [one, two] = yield* openFiles(2)
      close()
      yield* keep("a", [one!])
      yield* forget("a")
      yield* called(1)
      // another VM does not wait
      yield* keep("b", [two!])
      yield* called(2)
      assert.deepStrictEqual(args(), [
        "--fd=3 --fdname=cc-proxy.vm-a FDPOLL=0",
        "--fd=3 --fdname=cc-proxy.vm-b FDPOLL=0"
      ])
      yield* open
      yield* ended(3)
      assert.strictEqual(args()[2], "FDSTOREREMOVE=1 FDNAME=cc-proxy.vm-a")
    }).pipe(Effect.timeout("10 seconds"))
  )

  it.live("is given a VM that comes again after it has forgotten the one before, unless that is gone too", () =>
    Effect.gen(function* () {
      const { args, called, close, ended, environment, open } = yield* make()
      const { forget, keep } = yield* manager(environment)
      const [one, two] = yield* openFiles(2)
      close()
      yield* forget("a")
      yield* called(1)
      const gone = yield* Effect.forkChild(keep("a", [one!]), { startImmediately: true })
      const back = yield* Effect.forkChild(keep("a", [one!, two!]), { startImmediately: true })
      yield* Fiber.interrupt(gone)
      assert.deepStrictEqual(args(), ["FDSTOREREMOVE=1 FDNAME=cc-proxy.vm-a"])
      yield* open
      yield* Fiber.join(back)
      yield* ended(2)
      assert.deepStrictEqual(args().slice(1), ["--fd=3 --fd=4 --fdname=cc-proxy.vm-a FDPOLL=0"])
    })
  )

  it.live("gets all at the end, in as many messages as it takes, before the call returns", () =>
    Effect.gen(function* () {
      const { args, calls, environment } = yield* make()
      const { keepAll } = yield* manager(environment)
      const fds = yield* openFiles(300)
      assert.isTrue(keepAll("vm", fds.slice(0, 2)))
      assert.isTrue(keepAll("client", fds))
      assert.isTrue(keepAll("client", []))
      assert.deepStrictEqual(
        calls().map(({ descriptors }) => descriptors.length),
        [2, 253, 47]
      )
      assert.deepStrictEqual(
        calls()
          .slice(1)
          .flatMap(({ descriptors }) => descriptors),
        fds.map(linkOf)
      )
      assert.deepStrictEqual(
        args().map((line) => line.split(" ").at(-2)),
        ["--fdname=cc-proxy.vm", "--fdname=cc-proxy.client", "--fdname=cc-proxy.client"]
      )
    })
  )

  it.live("is not given more than it has room for: it would drop them and not say so", () =>
    Effect.gen(function* () {
      const { calls, environment } = yield* make()
      const { keepAll } = yield* manager({ ...environment, FDSTORE: "5" })
      const fds = yield* openFiles(6)
      assert.isFalse(keepAll("vm", fds))
      assert.isTrue(keepAll("vm", fds.slice(0, 3)))
      assert.isFalse(keepAll("client", fds.slice(3)))
      assert.isTrue(keepAll("client", fds.slice(3, 5)))
      assert.deepStrictEqual(
        calls().map(({ descriptors }) => descriptors.length),
        [3, 2]
      )
    })
  )

  it.live("is told of another main process before the call returns", () =>
    Effect.gen(function* () {
      const { args, environment } = yield* make()
      const { follow } = yield* manager(environment)
      follow(4711)
      assert.deepStrictEqual(args(), ["MAINPID=4711"])
    })
  )

  it.live("that fails is warned of once, with what it said, and the daemon goes on", () =>
    logged((records) =>
      Effect.gen(function* () {
        const at = yield* make()
        const { follow, forget, keep, keepAll, ready } = yield* manager(at.environment)
        const [fd] = yield* openFiles(1)
        at.break()
        assert.isFalse(keepAll("vm", [fd!]))
        follow(1)
        yield* ready
        yield* keep("a", [fd!])
        yield* forget("a")
        yield* eventually(() => records.length >= 5)
        assert.deepStrictEqual(
          records.map(({ level }) => level),
          ["Warn", "Debug", "Debug", "Debug", "Debug"]
        )
        for (const { fields } of records)
          assert.deepStrictEqual(fields, { error: "systemd-notify ended with 3: no luck" })
      })
    )
  )

  it.live("that does not answer is given up", () =>
    logged((records) =>
      Effect.gen(function* () {
        const at = yield* make()
        const { keepAll, ready } = yield* manager(at.environment, 100)
        const [fd] = yield* openFiles(1)
        at.close()
        assert.isFalse(keepAll("vm", [fd!]))
        yield* ready
        yield* eventually(() => records.length >= 2)
        assert.match(String(records[0]?.fields["error"]), /ETIMEDOUT/)
        assert.match(String(records[1]?.fields["error"]), /SIGKILL/)
      })
    )
  )

  it.live("without its program is warned of, and nothing else comes of it", () =>
    logged((records) =>
      Effect.gen(function* () {
        const { environment } = yield* make()
        const { follow, keep, keepAll, keeps, ready } = yield* manager({ ...environment, PATH: "/nowhere" })
        yield* ready
        yield* keep("a", [0])
        follow(1)
        assert.isFalse(keeps)
        assert.isFalse(keepAll("vm", [0]))
        yield* eventually(() => records.length >= 3)
        assert.deepStrictEqual(
          records.map(({ level }) => level),
          ["Warn", "Debug", "Debug"]
        )
        assert.match(String(records[0]?.fields["error"]), /ENOENT/)
      })
    )
  )

  it.live("that is to get what is not open gets nothing, and the daemon goes on", () =>
    logged((records) =>
      Effect.gen(function* () {
        const { environment } = yield* make()
        const { keep, keepAll } = yield* manager(environment)
        yield* keep("a", [notOpen])
        assert.isFalse(keepAll("vm", [notOpen]))
        yield* eventually(() => records.length >= 2)
        assert.match(String(records[0]?.fields["error"]), /EBADF/)
      })
    )
  )

  const nothingKept: ReadonlyArray<readonly [string, string, Record<string, string | undefined>]> = [
    ["is too old for it", "253", {}],
    ["allows the unit none", "257", { FDSTORE: undefined }],
    ["allows the unit zero", "257", { FDSTORE: "0" }],
    ["says nonsense", "257", { FDSTORE: "many" }]
  ]

  for (const [what, version, variables] of nothingKept)
    it.live(`keeps nothing where it ${what}, and is told the rest`, () =>
      Effect.gen(function* () {
        const { args, ended, environment } = yield* make(version)
        const { follow, forget, keep, keepAll, keeps, ready } = yield* manager({ ...environment, ...variables })
        const [fd] = yield* openFiles(1)
        assert.isFalse(keeps)
        assert.isFalse(keepAll("vm", [fd!]))
        yield* keep("a", [fd!])
        yield* forget("a")
        follow(1)
        yield* ready
        yield* ended(2)
        assert.deepStrictEqual(args(), ["MAINPID=1", "--ready"])
      })
    )

  for (const [what, NOTIFY_SOCKET] of [
    ["did not start the daemon", undefined],
    ["is an empty name", ""]
  ] as const)
    it.live(`is told nothing where it ${what}`, () =>
      Effect.gen(function* () {
        const { calls, environment } = yield* make()
        const { follow, forget, keep, keepAll, keeps, ready } = yield* manager({ ...environment, NOTIFY_SOCKET })
        const [fd] = yield* openFiles(1)
        assert.isFalse(keeps)
        assert.isFalse(keepAll("vm", [fd!]))
        yield* ready
        yield* keep("a", [fd!])
        yield* forget("a")
        follow(1)
        assert.deepStrictEqual(calls(), [])
      })
    )
})
