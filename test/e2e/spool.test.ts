/** What waits on disk: output for shims that are slow or away, and stdin for processes that do not read. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { execFileSync } from "node:child_process"
import * as Crypto from "node:crypto"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as DaemonProcess from "../support/e2e/DaemonProcess.ts"
import type { Daemon } from "../support/e2e/DaemonProcess.ts"
import type { FakeAgent } from "../support/e2e/FakeAgent.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import type { RawClient } from "../support/e2e/RawClient.ts"
import * as Scenario from "../support/e2e/Scenario.ts"
import { until } from "../support/e2e/Wait.ts"

const { accepted, answers, connectShim, container, hyper, refused, running } = Scenario
const mebibyte = 1024 * 1024

/** A daemon's files, in the directory that is its own. */
interface Own {
  readonly path: string
  /** The files that hold what waits. */
  readonly files: () => ReadonlyArray<string>
  /** Their bytes. */
  readonly size: () => number
}

const ownOf = (spool: string, socketPath: string): Own => {
  const path = Path.join(spool, socketPath.replaceAll("%", "%25").replaceAll("/", "%2F"))
  const files = () => {
    try {
      return Fs.readdirSync(path).filter((name) => name !== "pid")
    } catch {
      return []
    }
  }
  const sizeOf = (name: string) => Fs.statSync(Path.join(path, name), { throwIfNoEntry: false })?.size ?? 0
  return { path, files, size: () => files().reduce((sum, name) => sum + sizeOf(name), 0) }
}

/** A daemon that spools to a directory beside its socket, unless `spool` names another. */
const start = Effect.fnUntraced(function* (
  args: ReadonlyArray<string> = [],
  options: DaemonProcess.Options & { readonly spool?: string } = {}
) {
  const directory = options.directory ?? (yield* DaemonProcess.temporaryDirectory)
  const spool = options.spool ?? Path.join(directory, "spool")
  const daemon = yield* DaemonProcess.start({ ...options, directory, args: ["-spool-dir", spool, ...args] })
  return { daemon, directory, spool, own: ownOf(spool, daemon.socketPath) }
})

/** Lets the daemon go on until `test` holds of what nothing tells of, such as its files. */
const eventually = (daemon: Daemon, what: string, test: () => boolean): Effect.Effect<void, Error> =>
  Effect.gen(function* () {
    for (let trip = 0; trip < 2000; trip++) {
      if (test()) return
      yield* daemon.settle
    }
    assert.fail(`${what} did not come`)
  })

/** The message of `size` bytes that is sent over and over: a size without a common divisor with any buffer's. */
const piece = Scenario.pattern(49_999)

/** Sends at least `size` bytes of output, and tells how many. */
const flood = (agent: FakeAgent, size: number, sequence = 3): number => {
  const message = Raw.ioMessage(sequence, piece)
  let sent = 0
  for (; sent < size; sent += piece.length) agent.sendIoBytes(message)
  return sent
}

const hashOf = (parts: Iterable<Uint8Array>): string => {
  const hash = Crypto.createHash("sha256")
  for (const part of parts) hash.update(part)
  return hash.digest("hex")
}

/** The hash of what `flood` sends. */
const flooded = (size: number): string => hashOf(Array.from({ length: Math.ceil(size / piece.length) }, () => piece))

const outputOf = ({ frames }: RawClient): ReadonlyArray<Buffer> =>
  frames.filter(({ type }) => type === Raw.Type.stream).map(({ payload }) => payload)

/** The shim has had `size` bytes of a flood, and then the status, once, as the last of all. */
const whole = (shim: RawClient, size: number, status: number) =>
  Effect.gen(function* () {
    yield* shim.until("the exit", () => shim.exits.length > 0)
    assert.strictEqual(shim.received.stdout, size)
    assert.strictEqual(hashOf(outputOf(shim)), flooded(size))
    assert.deepStrictEqual(shim.exits, [status])
    assert.strictEqual(shim.frames.at(-1)?.type, Raw.Type.notification)
  })

/** Closes a shim's connection without a word, and waits until the daemon has noticed. */
const vanish = (daemon: Daemon, shim: RawClient) =>
  Effect.gen(function* () {
    shim.hangUp()
    yield* daemon.settle
  })

/** Waits for the end of stdin, of the only process that gets any. */
const stdinEnd = (agent: FakeAgent) => until("the end of stdin", () => agent.io.at(-1)?.data.length === 0, 20)

const mode = (path: string): string => (Fs.statSync(path).mode & 0o7777).toString(8)

const warnings = ({ child }: Daemon) =>
  child.log.filter((record) => record.get("level") !== "info" && record.get("level") !== "debug")

describe("output on disk", () => {
  it.live("100 MiB wait for a shim that does not read, in bounded memory, while others of its VM go on", () =>
    Effect.gen(function* () {
      const { daemon, own } = yield* start()
      const vm = yield* running(daemon, { streams: 2 })
      const second = yield* Scenario.runExec(daemon, vm, vm.tokens[1])
      vm.shim.pause()
      const before = daemon.child.memory.resident
      const size = flood(vm.agent, 100 * mebibyte)
      vm.agent.exit(3, 42)
      vm.agent.sendIo([5, "beside it"])
      vm.agent.exit(5, 5)
      yield* second.until("the exit", () => second.exits.length === 1, 15)
      assert.deepStrictEqual(second.story, ["stdout beside it", "exit 5"])
      assert.isAbove(own.size(), 95 * mebibyte)
      assert.isBelow(daemon.child.memory.resident - before, 96 * mebibyte)
      second.send(Raw.command(Raw.Op.disconnectShim))
      vm.shim.resume()
      yield* whole(vm.shim, size, 42)
      yield* eventually(daemon, "the files' removal", () => own.files().length === 0)
      assert.deepStrictEqual(warnings(daemon), [])
    })
  )

  it.live("waits for a shim that is away, and goes on with a whole frame for each one that comes", () =>
    Effect.gen(function* () {
      const { daemon, own } = yield* start()
      const { agent, shim, tokens } = yield* running(daemon)
      yield* vanish(daemon, shim)
      const bytes = Scenario.pattern(24 * mebibyte)
      const print = (from: number, to: number) => {
        for (let at = from; at < to; at += 10_000) agent.sendIo([3, bytes.subarray(at, Math.min(at + 10_000, to))])
      }
      print(0, 12 * mebibyte)
      yield* eventually(daemon, "the spool", () => own.size() > 9 * mebibyte)
      let at = 0
      for (let round = 0; round < 8; round++) {
        const next = yield* connectShim(daemon, tokens[0])
        yield* next.until("some of it", () => next.received.stdout > mebibyte)
        if (round === 1) print(12 * mebibyte, bytes.length) // beside what is read back
        if (round % 2 === 0) {
          next.pause()
          yield* daemon.settle // until its socket is full
        }
        next.hangUp()
        yield* daemon.settle
        // what the last one had not read of its socket is lost with it, and nothing else;
        // what it had read does not come again
        const start = next.stdout.readUInt32BE(0)
        assert.isAtLeast(start, at)
        assert.isBelow(start - at, mebibyte)
        assert.strictEqual(start % 10_000 === 0 || start >= 12 * mebibyte, true)
        assert.isTrue(next.stdout.equals(bytes.subarray(start, start + next.received.stdout)))
        at = start + next.received.stdout
      }
      agent.exit(3, 6)
      const last = yield* connectShim(daemon, tokens[0])
      yield* last.until("the exit", () => last.exits.length > 0)
      assert.isTrue(last.stdout.equals(bytes.subarray(bytes.length - last.received.stdout)))
      assert.isBelow(bytes.length - last.received.stdout - at, mebibyte)
      assert.deepStrictEqual(last.exits, [6])
      assert.strictEqual(last.frames.at(-1)?.type, Raw.Type.notification)
    })
  )

  it.live("is delivered after the loss of its VM, the status last, to whoever comes", () =>
    Effect.gen(function* () {
      const { daemon, own } = yield* start()
      const vm = yield* running(daemon, { streams: 2 })
      const second = yield* Scenario.runExec(daemon, vm, vm.tokens[1])
      vm.shim.pause()
      yield* vanish(daemon, second)
      const size = flood(vm.agent, 8 * mebibyte)
      flood(vm.agent, 8 * mebibyte, 5)
      vm.agent.exit(3, 1)
      vm.agent.exit(5, 2)
      yield* eventually(daemon, "the spool", () => own.size() > 12 * mebibyte)
      vm.agent.powerOff()
      const again = yield* connectShim(daemon, vm.tokens[1])
      vm.shim.resume()
      yield* whole(vm.shim, size, 1)
      yield* whole(again, size, 2)
      yield* vm.shim.dropped()
      yield* again.dropped()
      yield* eventually(daemon, "the files' removal", () => own.files().length === 0)
    })
  )

  it.live("a shim that comes after the status was sent gets it again", () =>
    Effect.gen(function* () {
      const { daemon } = yield* start()
      const { agent, shim, tokens } = yield* running(daemon)
      const size = flood(agent, 2 * mebibyte)
      agent.exit(3, 9)
      yield* whole(shim, size, 9)
      for (let round = 0; round < 2; round++) {
        yield* vanish(daemon, shim)
        const next = yield* connectShim(daemon, tokens[0])
        yield* next.until("the exit", () => next.exits.length > 0)
        assert.deepStrictEqual(next.story, ["exit 9"])
        next.hangUp()
        yield* daemon.settle
      }
    })
  )
})

describe("the files", () => {
  /** A daemon with much on disk in both directions, and nobody who takes it. */
  const filled = Effect.fnUntraced(function* (...args: ReadonlyArray<string>) {
    const started = yield* start(args)
    const vm = yield* running(started.daemon)
    vm.shim.pause()
    vm.agent.pauseIo()
    flood(vm.agent, 6 * mebibyte)
    vm.shim.send(Raw.stdin(Buffer.alloc(6 * mebibyte)))
    yield* eventually(started.daemon, "the spool", () => started.own.size() > 8 * mebibyte)
    return { ...started, ...vm }
  })

  it.live("are for the daemon's user only, and gone with DisconnectShim", () =>
    Effect.gen(function* () {
      const { daemon, own, shim, spool } = yield* filled()
      assert.isAtLeast(own.files().length, 2)
      for (const name of [...own.files(), "pid"]) assert.strictEqual(mode(Path.join(own.path, name)), "600", name)
      assert.strictEqual(mode(own.path), "700")
      assert.strictEqual(mode(spool), "700")
      shim.send(Raw.command(Raw.Op.disconnectShim))
      yield* eventually(daemon, "the files' removal", () => own.files().length === 0)
    })
  )

  it.live("of stdin are gone with the process, and all of them with its VM once that is unregistered", () =>
    Effect.gen(function* () {
      const { agent, daemon, id, own, shim } = yield* filled("-log", "info")
      yield* vanish(daemon, shim)
      agent.exit(3, 1)
      yield* eventually(daemon, "the removal of stdin", () => own.size() < 6 * mebibyte)
      assert.isAbove(own.size(), 3 * mebibyte)
      agent.powerOff()
      accepted(yield* Scenario.unregister(daemon, id))
      yield* eventually(daemon, "the files' removal", () => own.files().length === 0)
      const dropped = daemon.child.log.find((record) => record.get("msg")?.includes("no shim came back"))
      assert.isAbove(Number(dropped?.get("bytes")), 5 * mebibyte)
    })
  )

  for (const signal of ["SIGTERM", "SIGINT"] as const)
    it.live(
      `are left to the next daemon; without a state that names them they go, and their directory: ${signal}`,
      () =>
        Effect.gen(function* () {
          const { daemon, directory, own, shim, spool } = yield* filled()
          shim.hangUp()
          assert.deepStrictEqual(yield* daemon.child.stop(signal), { code: 0, signal: null })
          assert.isAbove(own.size(), mebibyte)
          Fs.rmSync(`${daemon.socketPath}.state`, { recursive: true })
          const next = yield* start([], { directory })
          yield* eventually(next.daemon, "the files' removal", () => next.own.files().length === 0)
          assert.deepStrictEqual(yield* next.daemon.child.stop(signal), { code: 0, signal: null })
          assert.isFalse(Fs.existsSync(own.path))
          assert.deepStrictEqual(Fs.readdirSync(spool), [])
        })
    )

  it.live("of a daemon that was killed, and whose state is lost, are removed by the next one, and never mistaken", () =>
    Effect.gen(function* () {
      const { daemon, directory, own } = yield* filled()
      yield* daemon.child.stop("SIGKILL")
      const left = own.files()
      assert.isAbove(left.length, 0)
      Fs.rmSync(`${daemon.socketPath}.state`, { recursive: true })
      const next = yield* start([], { directory })
      yield* eventually(next.daemon, "the files' removal", () => next.own.files().length === 0)
      const { agent, shim } = yield* running(next.daemon)
      shim.pause()
      const size = flood(agent, 4 * mebibyte)
      agent.exit(3, 0)
      yield* eventually(next.daemon, "the spool", () => next.own.size() > 2 * mebibyte)
      for (const name of next.own.files()) assert.notInclude(left, name)
      shim.resume()
      yield* whole(shim, size, 0)
    })
  )

  it.live("of daemons side by side are their own: one's end, death or new start costs the others nothing", () =>
    Effect.gen(function* () {
      const spool = Path.join(yield* DaemonProcess.temporaryDirectory, "spool")
      const pods = yield* Effect.forEach([0, 1, 2], () =>
        Effect.gen(function* () {
          const started = yield* start([], { spool })
          const vm = yield* running(started.daemon)
          vm.shim.pause()
          const size = flood(vm.agent, 4 * mebibyte)
          vm.agent.exit(3, 0)
          yield* eventually(started.daemon, "the spool", () => started.own.size() > 2 * mebibyte)
          return { ...started, ...vm, size }
        })
      )
      const [first, second, third] = pods as [(typeof pods)[0], (typeof pods)[0], (typeof pods)[0]]
      assert.strictEqual(new Set(pods.map(({ own }) => own.path)).size, 3)
      // one is killed, and nobody starts it again: its socket goes with its pod's directory
      yield* second.daemon.child.stop("SIGKILL")
      Fs.unlinkSync(second.daemon.socketPath)
      third.shim.hangUp()
      yield* third.daemon.child.stop()
      Fs.rmSync(`${third.daemon.socketPath}.state`, { recursive: true })
      const again = yield* start([], { spool, directory: third.directory })
      yield* eventually(again.daemon, "the dead one's removal", () => !Fs.existsSync(second.own.path))
      yield* eventually(again.daemon, "the removal of its own", () => again.own.files().length === 0)
      assert.isAbove(first.own.size(), 2 * mebibyte)
      first.shim.resume()
      yield* whole(first.shim, first.size, 0)
    })
  )

  it.live("of a living daemon are left alone by one that finds its socket taken", () =>
    Effect.gen(function* () {
      const { agent, daemon, own, shim, spool } = yield* filled()
      const before = own.files()
      const args = ["-socket-path", daemon.socketPath, "-ksm", "initial", "-spool-dir", spool]
      const other = yield* DaemonProcess.run(args)
      assert.strictEqual((yield* other.ended()).code, 1)
      assert.include(other.stderr, "another process serves")
      assert.deepStrictEqual(own.files(), before)
      assert.strictEqual(Fs.readFileSync(Path.join(own.path, "pid"), "utf8"), String(daemon.child.pid))
      agent.exit(3, 3)
      shim.resume()
      yield* whole(shim, piece.length * Math.ceil((6 * mebibyte) / piece.length), 3)
    })
  )

  it.live("of a daemon that takes over a socket are left alone by the end of the one before it", () =>
    Effect.gen(function* () {
      const old = yield* filled("-stop-timeout", "20s")
      old.daemon.child.kill("SIGTERM")
      yield* old.runtime.dropped() // while it waits for its shim, whose connection is ended by half
      assert.isFalse(Fs.existsSync(old.daemon.socketPath))
      const next = yield* start([], { directory: old.directory })
      const vm = yield* running(next.daemon)
      vm.shim.pause()
      const size = flood(vm.agent, 4 * mebibyte)
      vm.agent.exit(3, 8)
      yield* eventually(next.daemon, "the spool", () => next.own.size() > 2 * mebibyte)
      assert.isUndefined(old.daemon.child.exit)
      old.shim.hangUp()
      assert.deepStrictEqual(yield* old.daemon.child.ended(), { code: 0, signal: null })
      assert.isAbove(next.own.size(), 2 * mebibyte)
      vm.shim.resume()
      yield* whole(vm.shim, size, 8)
    })
  )
})

describe("the spool's limit", () => {
  it.live("pauses the VM's io, is told once, and io goes on by itself without a byte missing", () =>
    Effect.gen(function* () {
      const { daemon, own } = yield* start(["-spool-limit", "2MiB", "-log", "info"])
      const vm = yield* running(daemon, { streams: 2 })
      const second = yield* Scenario.runExec(daemon, vm, vm.tokens[1])
      const other = yield* running(daemon)
      vm.shim.pause()
      const size = flood(vm.agent, 24 * mebibyte)
      vm.agent.exit(3, 1)
      vm.agent.sendIo([5, "behind it"])
      vm.agent.exit(5, 5)
      yield* daemon.child.warned
      yield* answers(vm.runtime)
      other.agent.sendIo([3, "elsewhere"])
      yield* other.shim.until("the output", () => other.shim.received.stdout === 9)
      yield* daemon.settle
      assert.strictEqual(second.received.stdout, 0)
      assert.isAtMost(own.size(), 2 * mebibyte)
      assert.isAbove(own.size(), 1.5 * mebibyte)
      vm.shim.resume()
      yield* whole(vm.shim, size, 1)
      yield* second.until("the exit", () => second.exits.length === 1)
      assert.deepStrictEqual(second.story, ["stdout behind it", "exit 5"])
      assert.deepStrictEqual(
        warnings(daemon).map((record) => [record.get("level"), record.get("vm"), record.get("container")]),
        [["warn", vm.id, "c1"]]
      )
      yield* eventually(daemon, "the files' removal", () => own.files().length === 0)
    })
  )

  it.live("of all sessions together is kept as well", () =>
    Effect.gen(function* () {
      const { daemon, own } = yield* start(["-spool-total", "3MiB"])
      const vms = [yield* running(daemon), yield* running(daemon)]
      for (const { shim } of vms) shim.pause()
      const size = flood(vms[0]!.agent, 12 * mebibyte)
      flood(vms[1]!.agent, 12 * mebibyte)
      for (const { agent } of vms) agent.exit(3, 1)
      yield* eventually(daemon, "the limit", () => own.size() > 2.5 * mebibyte)
      for (let trip = 0; trip < 20; trip++) yield* answers(vms[0]!.runtime)
      assert.isAtMost(own.size(), 3 * mebibyte)
      for (const { shim } of vms) shim.resume()
      for (const { shim } of vms) yield* whole(shim, size, 1)
      yield* eventually(daemon, "the files' removal", () => own.files().length === 0)
    })
  )

  it.live("of 0 keeps the disk out of it", () =>
    Effect.gen(function* () {
      const { daemon, own } = yield* start(["-spool-limit", "0"])
      const { agent, shim } = yield* running(daemon)
      shim.pause()
      const size = flood(agent, 8 * mebibyte)
      agent.exit(3, 1)
      yield* daemon.child.warned
      assert.deepStrictEqual(own.files(), [])
      shim.resume()
      yield* whole(shim, size, 1)
    })
  )

  it.live("leaves a shim's socket unread, and its signals wait; stdin goes on by itself", () =>
    Effect.gen(function* () {
      const { daemon, own } = yield* start(["-spool-limit", "2MiB"])
      const { agent, runtime, shim } = yield* running(daemon)
      agent.pauseIo()
      const data = Scenario.pattern(16 * mebibyte)
      for (let at = 0; at < data.length; at += 100_000) shim.send(Raw.stdin(data.subarray(at, at + 100_000)))
      shim.send(Raw.stdin(""))
      const signal = shim.post(Raw.Op.signal, { signalNumber: 2 })
      yield* eventually(daemon, "the limit", () => own.size() > 1.9 * mebibyte)
      for (let trip = 0; trip < 20; trip++) yield* answers(runtime)
      assert.isAtMost(own.size(), 2 * mebibyte)
      assert.isAbove(shim.unsent, 8 * mebibyte)
      assert.strictEqual(agent.commands(Raw.Ctl.killcontainer).length, 0)
      agent.resumeIo()
      accepted(yield* shim.response(signal))
      yield* stdinEnd(agent)
      assert.strictEqual(hashOf(agent.inputs(3).map((message) => message.data)), hashOf([data]))
      yield* eventually(daemon, "the files' removal", () => own.files().length === 0)
    })
  )
})

describe("stdin on disk", () => {
  it.live("waits for its process, a signal passes it, and its end comes once, last", () =>
    Effect.gen(function* () {
      const { daemon, own } = yield* start()
      const { agent, shim } = yield* running(daemon)
      agent.pauseIo()
      const data = Scenario.pattern(24 * mebibyte)
      for (let at = 0; at < data.length; at += 1_000_000) shim.send(Raw.stdin(data.subarray(at, at + 1_000_000)))
      shim.send(Raw.stdin(""))
      accepted(yield* shim.request(Raw.Op.signal, { signalNumber: 2 }))
      assert.strictEqual(agent.commands(Raw.Ctl.killcontainer).length, 1)
      yield* eventually(daemon, "the spool", () => own.size() > 19 * mebibyte)
      agent.resumeIo()
      yield* stdinEnd(agent)
      const inputs = agent.inputs(3).map((message) => message.data)
      assert.strictEqual(hashOf(inputs), hashOf([data]))
      assert.strictEqual(inputs.filter(({ length }) => length === 0).length, 1)
      assert.strictEqual(inputs.at(-1)?.length, 0)
      yield* eventually(daemon, "the files' removal", () => own.files().length === 0)
    })
  )

  it.live("waits for the start of its process, and reaches a Go agent in full messages", () =>
    Effect.gen(function* () {
      const { daemon, own } = yield* start()
      const { agent, runtime, tokens } = yield* Scenario.boot(daemon, { streams: 1 })
      const shim = yield* connectShim(daemon, tokens[0])
      const data = Scenario.pattern(12 * mebibyte)
      shim.send(Raw.stdin(data), Raw.stdin(""))
      yield* eventually(daemon, "the spool", () => own.size() > 8 * mebibyte)
      accepted(yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0])))
      yield* stdinEnd(agent)
      const inputs = agent.inputs(3).map((message) => message.data)
      assert.strictEqual(hashOf(inputs), hashOf([data]))
      for (const input of inputs.slice(0, -2)) assert.strictEqual(input.length, 1012)
    })
  )

  for (const turns of [1, 16])
    it.live(`a shim that blocks and a process that echoes get through 16 MiB in ${turns} turn(s)`, () =>
      Effect.gen(function* () {
        const { daemon } = yield* start()
        const { agent, shim } = yield* running(daemon)
        const size = 16 * mebibyte
        const data = Scenario.pattern(size)
        /** The process: gives out all it gets, and ends with its stdin. */
        yield* Effect.forkScoped(
          Effect.gen(function* () {
            for (let done = 0; ;) {
              yield* until("stdin", () => agent.io.length > done, 20)
              const messages = agent.io.slice(done)
              done += messages.length
              agent.sendIoBytes(
                Buffer.concat(messages.filter(({ data }) => data.length > 0).map(({ data }) => Raw.ioMessage(3, data)))
              )
              if (messages.some(({ data }) => data.length === 0)) return agent.exit(3, 0)
            }
          })
        )
        for (let turn = 0; turn < turns; turn++) {
          // writes, and reads nothing before the kernel has taken all
          shim.pause()
          const part = data.subarray((size / turns) * turn, (size / turns) * (turn + 1))
          for (let at = 0; at < part.length; at += 8192) shim.send(Raw.stdin(part.subarray(at, at + 8192)))
          yield* shim.until("room", () => shim.unsent === 0, 20)
          // then reads, and writes nothing before something has come
          shim.resume()
          const before = shim.received.stdout
          yield* shim.until("the echo", () => shim.received.stdout > before)
        }
        shim.send(Raw.stdin(""))
        yield* shim.until("the exit", () => shim.exits.length > 0, 20)
        assert.strictEqual(hashOf(outputOf(shim)), hashOf([data]))
      })
    )
})

describe("-orphan-timeout", () => {
  it.live("frees what no shim comes back for, with its token and its files, and tells how much it was", () =>
    Effect.gen(function* () {
      const { daemon, own } = yield* start(["-orphan-timeout", "300ms"])
      const { agent, id, runtime, shim, tokens } = yield* running(daemon)
      yield* vanish(daemon, shim)
      const size = flood(agent, 4 * mebibyte)
      yield* eventually(daemon, "the spool", () => own.size() > 2 * mebibyte)
      agent.exit(3, 0)
      const told = yield* until("the record", () => daemon.child.log.find((record) => record.has("bytes")))
      assert.deepStrictEqual(
        [told.get("level"), told.get("vm"), told.get("container"), told.get("bytes")],
        ["warn", id, "c1", String(size + 12 * (size / piece.length) + 13)]
      )
      yield* eventually(daemon, "the files' removal", () => own.files().length === 0)
      const late = yield* daemon.connect
      refused(yield* late.request(Raw.Op.connectShim, { token: tokens[0] }), "unknown token: ")
      yield* answers(runtime)
    })
  )
})

/** Whether this user may make file systems. */
const mountable = ((): boolean => {
  if (process.geteuid?.() !== 0) return false
  const path = Fs.mkdtempSync("/tmp/cc-proxy-e2e-")
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=64k", "tmpfs", path], { stdio: "ignore" })
    execFileSync("umount", [path], { stdio: "ignore" })
    return true
  } catch {
    return false
  } finally {
    Fs.rmdirSync(path)
  }
})()

describe.skipIf(!mountable)("a disk that is full", () => {
  it.live("pauses the VM's io, is told once, and io goes on by itself without a byte missing", () =>
    Effect.gen(function* () {
      const spool = yield* DaemonProcess.temporaryDirectory
      yield* Effect.acquireRelease(
        Effect.sync(() => execFileSync("mount", ["-t", "tmpfs", "-o", "size=3m", "tmpfs", spool])),
        () => Effect.sync(() => execFileSync("umount", ["-l", spool]))
      )
      const { daemon, own } = yield* start([], { spool })
      const [vm, other] = [yield* running(daemon), yield* running(daemon)]
      vm.shim.pause()
      const size = flood(vm.agent, 16 * mebibyte)
      vm.agent.exit(3, 2)
      yield* until("the pause", () => warnings(daemon).length >= 2)
      assert.isAbove(own.size(), 2 * mebibyte)
      other.agent.sendIo([3, "elsewhere"])
      yield* other.shim.until("the output", () => other.shim.received.stdout === 9)
      assert.deepStrictEqual(
        warnings(daemon).map((record) => [record.get("level"), record.get("vm"), record.get("container")]),
        [
          ["warn", vm.id, "c1"],
          ["warn", vm.id, "c1"]
        ]
      )
      assert.include(warnings(daemon)[0]?.get("error"), "ENOSPC")
      vm.shim.resume()
      yield* whole(vm.shim, size, 2)
      yield* eventually(daemon, "the files' removal", () => own.files().length === 0)
    })
  )
})
