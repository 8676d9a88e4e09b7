import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as Crypto from "node:crypto"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { Code } from "../../src/domain/CtlMessage.ts"
import * as CtlMessage from "../../src/domain/CtlMessage.ts"
import * as IoMessage from "../../src/domain/IoMessage.ts"
import * as SimulatedVm from "../../src/sim/SimulatedVm.ts"
import * as VmClient from "./VmClient.ts"
import { nothing, processOf, shell, toText, utf8 } from "./VmClient.ts"

const sha256 = (bytes: Uint8Array): string => Crypto.createHash("sha256").update(bytes).digest("hex")

const u32 = (value: number): Uint8Array => Uint8Array.of(0, 0, value >>> 8, value)

/** A VM with both its sockets connected and a pod started. */
const connected = Effect.fnUntraced(function* (agent?: "c" | "go") {
  const vm = yield* VmClient.boot(agent)
  const ctl = yield* VmClient.connectFirst(vm)
  const io = yield* VmClient.connectIo(vm.ioPath)
  yield* ctl.ack(Code.startpod, { hostname: "pod" })
  return { vm, ctl, io }
})

describe("SimulatedVm, control channel", { timeout: 30_000 }, () => {
  it.live("sends READY to the first client and to no other", () =>
    Effect.gen(function* () {
      const vm = yield* VmClient.boot()
      const first = yield* VmClient.connectFirst(vm)
      yield* first.leave
      const second = yield* VmClient.connectCtl(vm.ctlPath)
      second.write(Code.ping)
      yield* second.arrived(2)
      assert.deepStrictEqual(
        second.drain().map(({ code }) => code),
        [Code.next, Code.ack]
      )
    })
  )

  it.live("tells what it has read before each reply, and answers commands in their order", () =>
    Effect.gen(function* () {
      const vm = yield* VmClient.boot()
      const ctl = yield* VmClient.connectFirst(vm)
      ctl.socket.write(
        Buffer.concat([
          CtlMessage.encode(Code.version, nothing),
          CtlMessage.encode(Code.startpod, utf8("{}")),
          CtlMessage.encode(77, nothing),
          CtlMessage.encode(Code.ping, nothing)
        ])
      )
      yield* ctl.arrived(9)
      const next = (bytes: number) => ({ code: Code.next, payload: u32(bytes) })
      assert.deepStrictEqual(ctl.drain(), [
        next(8),
        { code: Code.ack, payload: u32(4242) },
        next(8),
        next(2),
        { code: Code.ack, payload: nothing },
        next(8),
        { code: Code.error, payload: nothing },
        next(8),
        { code: Code.ack, payload: nothing }
      ])
    })
  )

  it.live("as a Go agent sends no NEXT, and its errors have a text", () =>
    Effect.gen(function* () {
      const { ctl } = yield* connected("go")
      ctl.write(77)
      ctl.write(Code.ping)
      yield* ctl.arrived(2)
      assert.deepStrictEqual(ctl.drain(), [
        { code: Code.error, payload: utf8("unknown command 77") },
        { code: Code.ack, payload: nothing }
      ])
    })
  )

  it.live("refuses commands that make no sense, and goes on", () =>
    Effect.gen(function* () {
      const { ctl, io } = yield* connected("go")
      const refused = Effect.fnUntraced(function* (code: number, payload: unknown, reason: string) {
        const reply = yield* ctl.command(code, payload)
        assert.deepStrictEqual([reply.code, toText(reply.payload)], [Code.error, reason])
      })
      yield* ctl.ack(Code.newcontainer, { id: "c1", process: processOf(3, ["sleep", "1000"]) })
      yield* refused(Code.newcontainer, utf8("{{{"), "malformed newcontainer command")
      yield* refused(
        Code.newcontainer,
        { id: "c2", process: { stdio: 5, stderr: 6 } },
        "malformed newcontainer command"
      )
      yield* refused(Code.newcontainer, { id: "c2", process: processOf(5, []) }, "malformed newcontainer command")
      const noStderr = "a process without a terminal needs a sequence for stderr"
      yield* refused(Code.newcontainer, { id: "c2", process: { args: ["true"], stdio: 5 } }, noStderr)
      yield* refused(Code.newcontainer, { id: "c1", process: processOf(5, ["true"]) }, "container c1 exists")
      yield* refused(Code.execcmd, { container: "c9", process: processOf(5, ["true"]) }, "no container c9")
      yield* refused(Code.killcontainer, { container: "c9", signal: 9 }, "no container c9")
      yield* refused(Code.removecontainer, { container: "c1" }, "container c1 is running")
      yield* refused(Code.winsize, { seq: 3, row: 1, column: 1 }, "the process has no terminal")
      yield* ctl.ack(Code.killcontainer, { container: "c1", signal: 9 })
      assert.strictEqual((yield* io.told(3, 4)).status, 137)
      yield* refused(Code.execcmd, { container: "c1", process: processOf(5, ["true"]) }, "container c1 has ended")
      yield* ctl.ack(Code.removecontainer, { container: "c1" })
      yield* refused(Code.removecontainer, { container: "c1" }, "no container c1")
    })
  )

  it.live("gives the reply to a command whose client has gone to the next client, first of all", () =>
    Effect.gen(function* () {
      const { ctl, io, vm } = yield* connected()
      ctl.write(Code.newcontainer, { id: "c1", process: processOf(3, ["true"]) })
      yield* ctl.leave
      assert.strictEqual((yield* io.told(3, 4)).status, 0)
      const next = yield* VmClient.connectCtl(vm.ctlPath)
      yield* next.arrived(3)
      assert.deepStrictEqual(
        next.drain().map(({ code }) => code),
        [Code.next, Code.next, Code.ack]
      )
    })
  )

  it.live("carries out the last command of a client that leaves without having read, and replies to the next", () =>
    Effect.gen(function* () {
      for (let round = 0; round < 20; round++) {
        const vm = yield* VmClient.boot("go")
        const first = yield* VmClient.connectCtl(vm.ctlPath, true)
        first.socket.write(CtlMessage.encode(Code.version, nothing))
        yield* first.leave
        const second = yield* VmClient.connectCtl(vm.ctlPath)
        let reply = yield* second.next
        if (reply.code === Code.ready) reply = yield* second.next // it may not have been written before the first left
        assert.deepStrictEqual(reply, { code: Code.ack, payload: u32(4242) })
      }
    })
  )

  it.live("leaves a command torn that its client has not sent whole: what the next client sends completes it", () =>
    Effect.gen(function* () {
      const { ctl, vm } = yield* connected()
      const startpod = CtlMessage.encode(Code.startpod, utf8("{}"))
      ctl.socket.write(startpod.subarray(0, 9))
      yield* ctl.leave
      const next = yield* VmClient.connectCtl(vm.ctlPath)
      next.socket.write(startpod.subarray(9))
      yield* next.arrived(3)
      assert.deepStrictEqual(
        next.drain().map(({ code }) => code),
        [Code.next, Code.next, Code.ack]
      )
    })
  )

  it.live("takes signal 0 for a container that it knows, whether that lives or not, and sends nothing", () =>
    Effect.gen(function* () {
      const { ctl, io } = yield* connected("go")
      const ask = (container: string) => ctl.command(Code.killcontainer, { container, signal: 0 })
      yield* ctl.ack(Code.newcontainer, { id: "c1", process: processOf(3, ["cat"]) })
      assert.strictEqual((yield* ask("c1")).code, Code.ack)
      io.write(3, nothing)
      assert.strictEqual((yield* io.told(3, 4)).status, 0)
      assert.strictEqual((yield* ask("c1")).code, Code.ack)
      assert.strictEqual((yield* ask("c2")).code, Code.error)
    })
  )

  it.live("serves one client at a time; the next one waits until the first has left", () =>
    Effect.gen(function* () {
      const { ctl, vm } = yield* connected()
      const second = yield* VmClient.connectCtl(vm.ctlPath)
      second.write(Code.ping)
      for (let i = 0; i < 10; i++) yield* ctl.ack(Code.ping)
      assert.deepStrictEqual(second.drain(), [])
      yield* ctl.leave
      yield* second.arrived(2)
    })
  )

  it.live("writes files of a container and reads them back", () =>
    Effect.gen(function* () {
      const { ctl } = yield* connected()
      yield* ctl.ack(Code.newcontainer, { id: "c1", process: processOf(3, ["sleep", "1000"]) })
      const data = Crypto.randomBytes(50_000)
      const write = (container: string, file: string) =>
        Buffer.concat([utf8(JSON.stringify({ container, file })), data])
      yield* ctl.ack(Code.writefile, write("c1", "/etc/deep/file"))
      const read = yield* ctl.ack(Code.readfile, { container: "c1", file: "../../etc/deep/file" })
      assert.strictEqual(sha256(read), sha256(data))
      const codes = [
        yield* ctl.command(Code.readfile, { container: "c1", file: "/etc/passwd" }),
        yield* ctl.command(Code.writefile, write("c9", "/f")),
        yield* ctl.command(Code.writefile, utf8("no JSON"))
      ]
      assert.deepStrictEqual(
        codes.map(({ code }) => code),
        [Code.error, Code.error, Code.error]
      )
    })
  )
})

describe("SimulatedVm, output", { timeout: 30_000 }, () => {
  it.live("tells a process's output, then its end, then its status", () =>
    Effect.gen(function* () {
      const { ctl, io } = yield* connected()
      const script = 'echo "out $greeting"; echo err > /dev/stderr; pwd; exit 7'
      const envs = [{ env: "greeting", value: "hello" }]
      yield* ctl.ack(Code.newcontainer, { id: "c1", process: shell(3, script, { envs, workdir: "/usr" }) })
      const { status, stderr, stdout } = yield* io.told(3, 4)
      assert.deepStrictEqual([toText(stdout), toText(stderr), status], ["out hello\n/usr\n", "err\n", 7])
    })
  )

  for (const [agent, largest] of [
    ["c", 10_240],
    ["go", 1036]
  ] as const) {
    it.live(`delivers a MiB whole, in messages of up to ${largest} bytes (${agent} agent)`, () =>
      Effect.gen(function* () {
        const { ctl, io } = yield* connected(agent)
        const data = Crypto.randomBytes(1024 * 1024)
        const path = Path.join(yield* VmClient.directory, "data")
        Fs.writeFileSync(path, data)
        yield* ctl.ack(Code.newcontainer, { id: "c1", process: shell(3, `cat ${path}; cat ${path} >&2`) })
        const told = yield* io.told(3, 4)
        assert.strictEqual(sha256(told.stdout), sha256(data))
        assert.strictEqual(sha256(told.stderr), sha256(data))
        assert.deepStrictEqual([told.status, told.largest], [0, largest])
      })
    )
  }

  it.live("starts what cannot be executed, and then tells the status a shell would", () =>
    Effect.gen(function* () {
      const { ctl, io } = yield* connected()
      const told = Effect.fnUntraced(function* (stdio: number, args: ReadonlyArray<string>, more?: object) {
        yield* ctl.ack(Code.newcontainer, { id: `c${stdio}`, process: processOf(stdio, args, { ...more }) })
        return (yield* io.told(stdio, stdio + 1)).status
      })
      assert.strictEqual(yield* told(3, ["no-such-program"]), 127)
      assert.strictEqual(yield* told(5, ["/etc/passwd"]), 126)
      assert.strictEqual(yield* told(7, ["true"], { workdir: "/no/such/directory" }), 125)
      assert.strictEqual(yield* told(9, ["no-such-program"], { terminal: true }), 127)
    })
  )

  it.live("keeps everything for the next client while nobody is connected", () =>
    Effect.gen(function* () {
      const { ctl, io, vm } = yield* connected()
      const script = "echo before; read go; seq 1 20000"
      yield* ctl.ack(Code.newcontainer, { id: "c1", process: shell(3, script) })
      assert.strictEqual(yield* io.text(3, "\n"), "before\n")
      io.write(3, utf8("go\n"))
      yield* io.leave
      const second = yield* VmClient.connectIo(vm.ioPath)
      const { status, stdout } = yield* second.told(3, 4)
      const expected = Array.from({ length: 20_000 }, (_, i) => `${i + 1}\n`).join("")
      assert.strictEqual(toText(stdout), expected)
      assert.strictEqual(status, 0)
    })
  )

  it.live("makes a process wait whose output nobody reads", () =>
    Effect.gen(function* () {
      const { ctl, io, vm } = yield* connected()
      yield* io.leave
      const directory = yield* VmClient.directory
      const script = `head -c 3000000 /dev/zero; touch ${directory}/written`
      yield* ctl.ack(Code.newcontainer, { id: "c1", process: shell(3, script) })
      for (let i = 0; i < 100; i++) yield* ctl.ack(Code.ping)
      assert.isFalse(Fs.existsSync(`${directory}/written`))
      assert.isTrue(vm.containers()[0]!.running)
      const second = yield* VmClient.connectIo(vm.ioPath)
      assert.strictEqual((yield* second.told(3, 4)).stdout.length, 3_000_000)
      assert.isTrue(Fs.existsSync(`${directory}/written`))
    })
  )

  it.live("loses what the device held when a client that had stalled leaves", () =>
    Effect.gen(function* () {
      const { ctl, io, vm } = yield* connected()
      yield* io.leave
      const stalled = yield* VmClient.connectIo(vm.ioPath, true)
      yield* ctl.ack(Code.newcontainer, { id: "c1", process: processOf(3, ["sleep", "1000"]) })
      yield* ctl.ack(Code.execcmd, { container: "c1", process: shell(5, "head -c 400000 /dev/zero") })
      // the socket has no room for all of it, the device has; so the process can end without a reader
      while (vm.containers()[0]!.pids.length > 1) yield* ctl.ack(Code.ping)
      yield* stalled.leave
      const next = yield* VmClient.connectIo(vm.ioPath)
      yield* ctl.ack(Code.execcmd, { container: "c1", process: shell(7, "echo later") })
      assert.deepStrictEqual(yield* next.next, { sequence: 7, data: utf8("later\n") })
    })
  )

  it.live("goes on with a whole message after a client that had stalled", () =>
    Effect.gen(function* () {
      const { ctl, io, vm } = yield* connected()
      yield* io.leave
      const stalled = yield* VmClient.connectIo(vm.ioPath, true)
      const total = 10_000_000
      yield* ctl.ack(Code.newcontainer, { id: "c1", process: shell(3, `head -c ${total} /dev/zero; echo end`) })
      for (let i = 0; i < 200; i++) yield* ctl.ack(Code.ping)
      yield* stalled.leave
      const next = yield* VmClient.connectIo(vm.ioPath)
      const { status, stdout } = yield* next.told(3, 4)
      assert.deepStrictEqual([toText(stdout.subarray(-4)), status], ["end\n", 0])
      // at most the device's 128 messages, the one under way among them, and what the socket had room for
      assert.isBelow(total - stdout.length, 128 * 10_228 + 512 * 1024)
    })
  )
})

describe("SimulatedVm, stdin", { timeout: 30_000 }, () => {
  const echoed = Effect.fnUntraced(function* (agent: "c" | "go") {
    const { ctl, io, vm } = yield* connected(agent)
    yield* ctl.ack(Code.newcontainer, { id: "c1", process: processOf(3, ["cat"]) })
    return { ctl, io, vm }
  })

  it.live("passes a MiB through a Go agent and cat, and its end", () =>
    Effect.gen(function* () {
      const { io } = yield* echoed("go")
      const data = Crypto.randomBytes(1024 * 1024)
      for (let at = 0; at < data.length; at += 1012) io.write(3, data.subarray(at, at + 1012))
      io.write(3, nothing)
      const { status, stdout } = yield* io.told(3, 4)
      assert.strictEqual(sha256(stdout), sha256(data))
      assert.strictEqual(status, 0)
    })
  )

  /** Sends 40,000 bytes to `cat` in windows of 512 with so many pings after each; returns what came back. */
  const paced = Effect.fnUntraced(function* (pings: number) {
    const { ctl, io, vm } = yield* echoed("c")
    const data = Crypto.randomBytes(40_000)
    for (let at = 0; at < data.length; at += 512) {
      io.write(3, data.subarray(at, at + 512))
      for (let i = 0; i < pings; i++) yield* ctl.ack(Code.ping)
    }
    io.write(3, nothing)
    const { stdout } = yield* io.told(3, 4)
    return { data, stdout, dropped: vm.droppedStdin() }
  })

  it.live("loses nothing in a C agent that gets four pings after each 512 bytes", () =>
    Effect.gen(function* () {
      const { data, dropped, stdout } = yield* paced(4)
      assert.strictEqual(dropped, 0)
      assert.strictEqual(sha256(stdout), sha256(data))
    })
  )

  it.live("loses bytes in a C agent that gets one ping, and counts them", () =>
    Effect.gen(function* () {
      const { data, dropped, stdout } = yield* paced(1)
      assert.isAbove(dropped, 0)
      assert.strictEqual(stdout.length + dropped, data.length)
    })
  )

  it.live("keeps 512 bytes of a larger message in a C agent", () =>
    Effect.gen(function* () {
      const { io, vm } = yield* echoed("c")
      io.write(3, Buffer.alloc(4096 - 12, "x"))
      const { data } = yield* io.next
      assert.strictEqual(data.length, 512)
      assert.strictEqual(vm.droppedStdin(), 4096 - 12 - 512)
    })
  )

  it.live("needs no pings for what is typed", () =>
    Effect.gen(function* () {
      const { io } = yield* echoed("c")
      for (const line of ["a\n", "b\n", "c\n"]) {
        io.write(3, utf8(line))
        assert.strictEqual(yield* io.text(3, "\n"), line)
      }
    })
  )

  it.live("ends the stream of a sequence that a C agent does not know", () =>
    Effect.gen(function* () {
      const { io } = yield* connected("c")
      io.write(99, utf8("lost"))
      assert.deepStrictEqual(yield* io.next, { sequence: 99, data: nothing })
    })
  )

  it.live("does not survive a message of more than 4,096 bytes as a C agent", () =>
    Effect.gen(function* () {
      const { io, vm } = yield* echoed("c")
      io.write(3, Buffer.alloc(4096 - 12 + 1))
      assert.strictEqual(yield* vm.stopped, "io: bad length")
      yield* io.ended
    })
  )

  it.live("does not survive a header across 4,096 bytes of one read as a Go agent", () =>
    Effect.gen(function* () {
      const { io, vm } = yield* echoed("go")
      io.socket.write(
        Buffer.concat([IoMessage.encode(3, Buffer.alloc(4096 - 12 - 5)), IoMessage.encode(3, utf8("torn"))])
      )
      assert.strictEqual(yield* vm.stopped, "io: torn header")
    })
  )

  it.live("survives no nonsense, and no nonsense harms the host", () =>
    Effect.gen(function* () {
      const first = yield* connected("c")
      first.ctl.socket.write(Uint8Array.of(0, 0, 0, 12, 0, 0, 0, 3))
      assert.strictEqual(yield* first.vm.stopped, "ctl: bad length")
      const second = yield* connected("go")
      second.io.socket.write(Buffer.alloc(12, 0xff))
      assert.strictEqual(yield* second.vm.stopped, "io: bad length")
    })
  )
})

describe("SimulatedVm, signals and terminals", { timeout: 30_000 }, () => {
  it.live("kills a container's init process, and with it everything in the container", () =>
    Effect.gen(function* () {
      const { ctl, io, vm } = yield* connected()
      yield* ctl.ack(Code.newcontainer, { id: "c1", process: processOf(3, ["sleep", "1000"]) })
      yield* ctl.ack(Code.execcmd, { container: "c1", process: shell(5, "echo $$; sleep 1000 & wait") })
      const child = Number(yield* io.text(5, "\n"))
      assert.isTrue(VmClient.isAlive(child))
      yield* ctl.ack(Code.killcontainer, { container: "c1", signal: 9, allProcesses: false })
      const ends = new Map<number, number>()
      while (ends.size < 2) {
        const { data, sequence } = yield* io.next
        if (data.length === 1) ends.set(sequence, data[0]!)
      }
      assert.deepStrictEqual([ends.get(3), ends.get(5)], [137, 137])
      assert.deepStrictEqual(vm.containers(), [{ id: "c1", running: false, pids: [] }])
      assert.isFalse(VmClient.isAlive(child))
    })
  )

  it.live("sends a signal to the init process only, or to everything in the container", () =>
    Effect.gen(function* () {
      const { ctl, io } = yield* connected()
      const script = (name: string) => `trap 'echo ${name} got it' TERM; echo ready; while :; do sleep 0.02; done`
      yield* ctl.ack(Code.newcontainer, { id: "c1", process: shell(3, script("init")) })
      yield* io.text(3, "ready\n")
      yield* ctl.ack(Code.execcmd, { container: "c1", process: shell(5, "echo ready; exec sleep 1000") })
      yield* io.text(5, "ready\n")
      yield* ctl.ack(Code.killcontainer, { container: "c1", signal: 15, allProcesses: false })
      assert.deepStrictEqual(yield* io.next, { sequence: 3, data: utf8("init got it\n") })
      yield* ctl.ack(Code.killcontainer, { container: "c1", signal: 15, allProcesses: true })
      assert.strictEqual((yield* io.told(5, 6)).status, 128 + 15)
    })
  )

  it.live("gives a process a terminal of its own, without a size until it gets one", () =>
    Effect.gen(function* () {
      const { ctl, io } = yield* connected()
      const script =
        "trap 'stty size' WINCH; tty; stty size; until read line; do :; done; " +
        'echo "<$line> $SHELL"; cat; echo bye; exit 3'
      const envs = [{ env: "SHELL", value: "/it's mine" }]
      yield* ctl.ack(Code.newcontainer, { id: "c1", process: shell(3, script, { terminal: true, envs }) })
      assert.match(yield* io.text(3, "0 0\r\n"), /^\/dev\/pts\/\d+\r\n0 0\r\n$/)
      yield* ctl.ack(Code.winsize, { seq: 3, row: 24, column: 80 })
      yield* io.text(3, "24 80\r\n")
      io.write(3, utf8("hello\n"))
      // what is typed comes back, as from any terminal
      const typed = yield* io.text(3, "<hello> /it's mine\r\n")
      assert.strictEqual(typed.replaceAll("24 80\r\n", ""), "hello\r\n<hello> /it's mine\r\n")
      io.write(3, nothing) // Ctrl-D
      const { status, stdout } = yield* io.told(3)
      assert.deepStrictEqual([toText(stdout), status], ["bye\r\n", 3])
    })
  )

  it.live("signals the process on a terminal itself, stopped or not", () =>
    Effect.gen(function* () {
      const { ctl, io, vm } = yield* connected()
      const kill = (signal: number) => ctl.ack(Code.killcontainer, { container: "c1", signal })
      // a signal that comes just before the shell's `read` would be told only after it
      const script = "trap 'echo interrupted' INT; echo $$; while :; do sleep 0.02; done"
      yield* ctl.ack(Code.newcontainer, { id: "c1", process: shell(3, script, { terminal: true }) })
      const pid = Number(yield* io.text(3, "\n"))
      assert.deepStrictEqual(vm.containers()[0]!.pids, [pid])
      yield* kill(2)
      yield* io.text(3, "interrupted\r\n")
      yield* kill(19)
      yield* kill(18)
      yield* kill(2)
      yield* io.text(3, "interrupted\r\n")
      yield* kill(19)
      yield* kill(9)
      assert.strictEqual((yield* io.told(3)).status, 137)
    })
  )

  it.live("takes a size for a process that has ended", () =>
    Effect.gen(function* () {
      const { ctl } = yield* connected()
      yield* ctl.ack(Code.winsize, { seq: 99, row: 24, column: 80 })
    })
  )
})

describe("SimulatedVm, its end", { timeout: 30_000 }, () => {
  /** Four ways to be hard to find: a child of its own, a background job, a terminal, a session of its own. */
  const hardToKill = Effect.fnUntraced(function* ({ ctl, io }: Effect.Success<ReturnType<typeof connected>>) {
    const script = "sleep 1000 & setsid sleep 1000 & echo $$ $!; wait"
    yield* ctl.ack(Code.newcontainer, { id: "c1", process: shell(3, script) })
    const first = yield* io.text(3, "\n")
    yield* ctl.ack(Code.newcontainer, { id: "c2", process: shell(5, script, { terminal: true }) })
    const second = yield* io.text(5, "\n")
    return `${first} ${second}`.trim().split(/\s+/).map(Number)
  })

  it.live("acknowledges destroypod, kills everything and powers off", () =>
    Effect.gen(function* () {
      const machine = yield* connected()
      const pids = yield* hardToKill(machine)
      const { ctl, io, vm } = machine
      assert.strictEqual((yield* ctl.command(Code.destroypod)).code, Code.ack)
      assert.strictEqual(yield* vm.stopped, "destroypod")
      yield* ctl.ended
      yield* io.ended
      // their ends have been told before
      assert.isAtLeast(io.drain().filter(({ data }) => data.length === 1 && data[0] === 137).length, 2)
      assert.deepStrictEqual(pids.filter(VmClient.isAlive), [])
    })
  )

  it.live("leaves no process, socket or file behind when its scope closes", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.fork(yield* Effect.scope)
      const machine = yield* connected().pipe(Scope.provide(scope))
      const pids = yield* hardToKill(machine)
      assert.lengthOf(pids, 4)
      assert.isTrue(pids.every(VmClient.isAlive))
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(pids.filter(VmClient.isAlive), [])
      assert.strictEqual(yield* machine.vm.stopped, "powerOff")
      assert.isFalse(Fs.existsSync(machine.vm.ctlPath))
    })
  )

  it.live("closes both sockets at once when it is powered off, and accepts nobody after that", () =>
    Effect.gen(function* () {
      const { ctl, io, vm } = yield* connected()
      const waiting = yield* VmClient.connectIo(vm.ioPath)
      yield* ctl.ack(Code.newcontainer, { id: "c1", process: processOf(3, ["sleep", "1000"]) })
      yield* vm.powerOff
      yield* Effect.all([ctl.ended, io.ended, waiting.ended])
      assert.deepStrictEqual(io.drain(), []) // no process's end is told
      assert.isTrue(Exit.isFailure(yield* Effect.exit(VmClient.connectCtl(vm.ctlPath))))
      yield* vm.powerOff // again
    })
  )

  it.live("does not start where a path is taken", () =>
    Effect.gen(function* () {
      const vm = yield* VmClient.boot()
      const error = yield* Effect.flip(SimulatedVm.make({ ctlPath: vm.ctlPath, ioPath: `${vm.ioPath}2` }))
      assert.match(error.message, /ctl\.sock: .*EADDRINUSE/)
    })
  )

  it.live("says on its console what starts and what ends", () =>
    Effect.gen(function* () {
      const { ctl, io, vm } = yield* connected()
      yield* ctl.ack(Code.newcontainer, { id: "c1", process: processOf(3, ["false"]) })
      yield* io.told(3, 4)
      const console = yield* VmClient.connectConsole(vm.consolePath!)
      yield* console.arrived(5)
      const lines = console.drain().slice(-2)
      assert.match(lines[0]!, /^\[ +\d+\.\d{6}\] container c1: process \d+ started$/)
      assert.match(lines[1]!, /^\[ +\d+\.\d{6}\] container c1: process \d+ ended, status 1$/)
    })
  )
})
