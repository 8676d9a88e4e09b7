/** A daemon that another process takes the place of while it works: no peer sees anything. */
import { assert, describe, it, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fs from "node:fs"
import * as Net from "node:net"
import * as Path from "node:path"
import * as DaemonProcess from "../support/e2e/DaemonProcess.ts"
import * as Logfmt from "../support/e2e/Logfmt.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import * as Scenario from "../support/e2e/Scenario.ts"
import * as Survival from "../support/e2e/Survival.ts"
import { until } from "../support/e2e/Wait.ts"
import * as Baseline from "../support/torture/Baseline.ts"
import * as Load from "../support/torture/Load.ts"
import { hasCompiler, PeerProgram } from "../support/torture/Peer.ts"
import { make, seed } from "../support/torture/Random.ts"

const { accepted, answers, attach, boot, connectShim, container, exec, hyper, refused, register, running } = Scenario
const { eventually, handOver, regretted, spooled } = Survival
const mebibyte = 1024 * 1024

describe.skipIf(!hasCompiler)(`under load (seed ${seed})`, () => {
  layer(PeerProgram.layer, { excludeTestServices: true })((it) => {
    const random = make(seed)
    const load = (daemon: DaemonProcess.Daemon, next: boolean) =>
      Load.start(daemon, {
        random,
        sessions: 3,
        next,
        max: next ? 10_228 : 1_024,
        records: next ? 2_000 : 10_000,
        stdin: next ? 60 : 500
      })
    const whole = Effect.fnUntraced(function* (vm: Load.Vm) {
      yield* Load.started(vm)
      yield* Effect.forEach(vm.sessions, Load.assertWhole)
    })
    const overAll = ({ sessions }: Load.Vm) => sessions.every(({ shim }) => shim.child.exit !== undefined)

    it.effect(
      "twenty in a row tear no stream, mix none up, end no connection, and leave no descriptor",
      () =>
        Effect.gen(function* () {
          const daemon = yield* Survival.start()
          const witness = yield* daemon.connect
          const before = yield* Baseline.descriptors(daemon, witness)
          const vms = [yield* load(daemon, false), yield* load(daemon, true)]
          const pids = new Set<number>([daemon.child.pid])
          for (let nth = 0; nth < 20; nth++) {
            // there is always one whose processes write and read
            if (vms.every(overAll)) vms.push(yield* load(daemon, nth % 2 === 0))
            pids.add(yield* handOver(daemon))
          }
          assert.strictEqual(pids.size, 21)
          for (const vm of vms) {
            yield* whole(vm)
            accepted(yield* Scenario.unregister(daemon, vm.id))
            yield* vm.agent.kill
          }
          for (const { runtime } of vms) runtime.hangUp()
          // a shell that finds many descriptors in use leaves its program's file open, once
          assert.isAtMost(yield* Baseline.descriptors(daemon, witness, before + 1), before + 1)
          assert.isFalse(witness.isDropped)
          assert.deepStrictEqual(regretted(daemon), [])
          for (const token of vms.flatMap(({ tokens }) => tokens)) assert.notInclude(daemon.child.stderr, token)
        }).pipe(Effect.scoped),
      120_000
    )

    const ready = "#!/bin/sh\nprintf 'B 9.9.9\\n' >&4\n"
    const unreadable = `printf '\\000\\000\\000\\015\\000\\000\\000\\000{"version":9}' > "$0.state"`
    const failures = [
      ["ends at once", "#!/bin/sh\nexit 3\n", "it ended with 3"],
      ["is no program", "nothing that runs\n", ""],
      ["hangs before it is ready", "#!/bin/sh\nexec tail -f /dev/null\n", "it was not ready in 5000 ms"],
      ["is ready and ends", `${ready}dd bs=1 count=1 <&4 >/dev/null 2>&1\nexit 3\n`, "ended"],
      ["is ready and hangs", `${ready}exec tail -f /dev/null\n`, "5000 ms"],
      ["cannot read the state", `#!/bin/sh\n${unreadable}\nexec "$0.old" "$@" 3< "$0.state"\n`, "its version is 9"]
    ] as const

    for (const [what, script, reason] of failures)
      it.effect(
        `where the new executable ${what}, the old one goes on, and says why`,
        () =>
          Effect.gen(function* () {
            const directory = yield* DaemonProcess.temporaryDirectory
            const program = Path.join(directory, "dist", "cc-proxy")
            Fs.cpSync(Path.dirname(DaemonProcess.binary), Path.dirname(program), { recursive: true })
            const daemon = yield* Survival.start({ program })
            const { pid } = daemon.child
            const vm = yield* load(daemon, false)
            Fs.renameSync(program, `${program}.old`)
            Fs.writeFileSync(program, script, { mode: 0o755 })
            assert.isUndefined(yield* daemon.child.handOver)
            assert.strictEqual(daemon.child.pid, pid)
            const line = daemon.child.stderr.split("\n").find((line) => line.includes("hand-over failed"))!
            const told = Logfmt.parse(line)
            assert.strictEqual(told.get("level"), "error")
            assert.include(told.get("error"), reason)
            assert.isNotEmpty(told.get("error"))
            yield* whole(vm)
            yield* answers((yield* running(daemon)).runtime)
            // and the next one that is asked for, with a program that works, succeeds
            Fs.renameSync(`${program}.old`, program)
            const late = yield* running(daemon)
            yield* handOver(daemon)
            yield* answers(late.runtime)
          }).pipe(Effect.scoped),
        60_000
      )
  })
})

describe("commands under way", () => {
  it.live("each is answered once, to the client that sent it", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start()
      const { agent, id, runtime, tokens } = yield* boot(daemon, { streams: 2 })
      agent.answer(Raw.Ctl.readfile, "hold")
      const readers = yield* Effect.replicateEffect(attach(daemon, id), 3)
      const reply = Scenario.pattern(mebibyte)
      for (const [nth, reader] of readers.entries()) {
        reader.post(Raw.Op.hyper, Survival.readfile(`file ${nth}`))
        yield* daemon.settle // so that they come in this order
      }
      yield* agent.command(Raw.Ctl.readfile)
      runtime.post(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0]))
      const early = yield* daemon.connect // a claim that has not been sent whole
      const claim = Raw.command(Raw.Op.connectShim, { token: tokens[0] })
      early.send(claim.subarray(0, 20))
      const message = Raw.ctlMessage(Raw.Ctl.ack, reply)
      agent.sendCtlBytes(message.subarray(0, mebibyte / 2))
      yield* daemon.settle

      yield* handOver(daemon)
      agent.sendCtlBytes(message.subarray(mebibyte / 2))
      for (const [nth, reader] of readers.entries()) {
        if (nth > 0) agent.ack(`reply ${nth}`)
        const got = accepted(yield* reader.response(1), Raw.Op.hyper)
        if (nth === 0) assert.isTrue(got.equals(reply))
        else assert.strictEqual(got.toString(), `reply ${nth}`)
      }
      assert.deepStrictEqual(
        agent.commands(Raw.Ctl.readfile).map(({ payload }) => payload.toString()),
        [0, 1, 2].map((nth) => JSON.stringify({ container: "c1", file: `file ${nth}` }))
      )

      // the start that waits for its shim, and then the one that waits for its reply
      agent.answer(Raw.Ctl.newcontainer, "hold")
      early.send(claim.subarray(20))
      yield* agent.command(Raw.Ctl.newcontainer)
      early.send(Raw.stdin("typed before the start"), Raw.command(Raw.Op.signal, { signalNumber: 10 }))
      yield* daemon.settle
      yield* handOver(daemon)
      agent.sendIo([3, "out before the reply"])
      agent.ack("started")
      assert.strictEqual(accepted(yield* runtime.response(1), Raw.Op.hyper).toString(), "started")
      yield* agent.command(Raw.Ctl.killcontainer)
      yield* early.until("both responses", () => early.responses.length === 2)
      yield* agent.stdinLength(3, 22)
      assert.strictEqual(agent.stdin(3).toString(), "typed before the start")
      agent.exit(3, 9)
      yield* early.until("the exit", () => early.exits.length === 1)
      assert.deepStrictEqual(early.story, ["stdout out before the reply", "exit 9"])
      assert.strictEqual(agent.commands(Raw.Ctl.newcontainer).length, 1)
      for (const client of [...readers, runtime]) assert.strictEqual(client.responses.length, 2)
      assert.deepStrictEqual(agent.connections, [1, 1])
      assert.deepStrictEqual(regretted(daemon), [])
    })
  )

  it.live("answers that wait for those before them keep their order", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start()
      const { agent, runtime } = yield* boot(daemon)
      agent.answer(Raw.Ctl.readfile, "hold")
      for (const command of [Survival.readfile("first"), hyper("nonsense"), Survival.readfile("third")])
        runtime.post(Raw.Op.hyper, command)
      yield* agent.command(Raw.Ctl.readfile)
      yield* daemon.settle
      yield* handOver(daemon)
      assert.strictEqual(runtime.responses.length, 1)
      agent.ack("1")
      yield* agent.command(Raw.Ctl.readfile, 2)
      agent.ack("3")
      yield* runtime.until("all", () => runtime.responses.length === 4)
      const [, first, second, third] = runtime.responses
      assert.strictEqual(accepted(first!).toString(), "1")
      refused(second!, "unknown command 'nonsense'")
      assert.strictEqual(accepted(third!).toString(), "3")
    })
  )

  it.live("a wait goes on where it stood: what began before expires before what begins after", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start({
        args: ["-ctl-timeout", "3s", "-process-timeout", "2s", "-shim-timeout", "2s"]
      })
      const ended: Array<string> = []
      const note = (what: string, response: Effect.Effect<Raw.Frame>) =>
        Effect.forkScoped(
          Effect.map(response, (frame) => {
            ended.push(`${what}: ${refused(frame)}`)
          }),
          { startImmediately: true }
        )
      const hung = yield* boot(daemon, { streams: 1 })
      hung.agent.answer(Raw.Ctl.readfile, "hold")
      hung.runtime.post(Raw.Op.hyper, Survival.readfile("hangs"))
      yield* hung.agent.command(Raw.Ctl.readfile)
      yield* note("read", hung.runtime.response(1))
      const shim = yield* connectShim(daemon, hung.tokens[0])
      refused(yield* shim.request(Raw.Op.signal, { signalNumber: 10 }), "timeout waiting for the process to start")
      yield* handOver(daemon) // two of three seconds have passed
      const other = yield* boot(daemon, { streams: 1 })
      const start = hyper("newcontainer", container("c1"), other.tokens[0])
      yield* note("start", other.runtime.request(Raw.Op.hyper, start))
      yield* until("both", () => ended.length === 2)
      assert.match(ended[0]!, /^read: timeout: no reply from the agent: readfile, 3s$/)
      assert.match(ended[1]!, /^start: timeout waiting for shim with token/)
      yield* daemon.settle
      assert.strictEqual(hung.runtime.responses.length, 2)
      assert.strictEqual(regretted(daemon).filter((msg) => msg.startsWith("timeout: no reply")).length, 1)
      // the late reply is nobody's, under yet another process
      yield* handOver(daemon)
      hung.agent.answer(Raw.Ctl.readfile, { ack: "mine" })
      hung.agent.ack("late")
      const again = yield* attach(daemon, hung.id)
      again.post(Raw.Op.hyper, Survival.readfile("after"))
      assert.strictEqual(accepted(yield* again.response(1)).toString(), "mine")
    })
  )

  it.live("a VM that has not said READY says it to the new process", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start()
      const agent = yield* Scenario.startAgent({ ready: false })
      const id = Scenario.freshId()
      const client = yield* daemon.connect
      client.post(Raw.Op.registerVM, {
        containerId: id,
        ctlSerial: agent.ctlPath,
        ioSerial: agent.ioPath,
        numIOStreams: 1
      })
      yield* until("the connections", () => agent.connected.every(Boolean))
      agent.sendCtlBytes(Raw.ctlMessage(Raw.Ctl.ready).subarray(0, 3))
      yield* daemon.settle
      yield* handOver(daemon)
      refused(yield* register(daemon, id, agent), "container already registered")
      agent.sendCtlBytes(Raw.ctlMessage(Raw.Ctl.ready).subarray(3))
      const tokens = Scenario.tokensOf(yield* client.response(0))
      const shim = yield* connectShim(daemon, tokens[0])
      accepted(yield* client.request(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0])))
      agent.sendIo([3, "up"])
      agent.exit(3, 0)
      yield* shim.until("the exit", () => shim.exits.length === 1)
      assert.deepStrictEqual(shim.story, ["stdout up", "exit 0"])
      assert.strictEqual(client.responses.length, 2)
      assert.deepStrictEqual(agent.connections, [1, 1])
    })
  )
})

describe("what waits", () => {
  const small = ["-outbox", "64KiB", "-stdin-buffer", "64KiB"]

  it.live("in the spool, output and stdin, is handed over with the rest", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start({ args: small })
      const { agent, runtime, shim } = yield* running(daemon)
      const [output, input] = [Scenario.pattern(6 * mebibyte), Scenario.pattern(2 * mebibyte, 1)]
      shim.pause()
      for (let at = 0; at < output.length / 2; at += 10_000) {
        agent.sendIo([3, output.subarray(at, Math.min(at + 10_000, output.length / 2))])
      }
      agent.pauseIo()
      for (let at = 0; at < input.length / 2; at += 8192) shim.send(Raw.stdin(input.subarray(at, at + 8192)))
      yield* eventually(daemon, "the spool", () => spooled(daemon) > 3 * mebibyte)
      for (let nth = 0; nth < 3; nth++) {
        yield* handOver(daemon)
        yield* answers(runtime)
      }
      for (let at = output.length / 2; at < output.length; at += 10_000)
        agent.sendIo([3, output.subarray(at, Math.min(at + 10_000, output.length))])
      for (let at = input.length / 2; at < input.length; at += 8192) shim.send(Raw.stdin(input.subarray(at, at + 8192)))
      shim.send(Raw.stdin(""))
      agent.resumeIo()
      yield* agent.stdinLength(3, input.length)
      yield* agent.stdinEnd(3)
      assert.isTrue(agent.stdin(3).equals(input))
      agent.exit(3, 77)
      shim.resume()
      yield* shim.until("the exit", () => shim.exits.length === 1)
      assert.isTrue(shim.stdout.equals(output))
      assert.deepStrictEqual(shim.exits, [77])
      assert.strictEqual(shim.frames.at(-1)!.type, Raw.Type.notification)
      yield* eventually(daemon, "the files' removal", () => spooled(daemon) === 0)
      assert.deepStrictEqual(regretted(daemon), [])
    })
  )

  it.live("for a client that the proxy has ended reaches it, and then the end", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start({ args: small })
      const { agent, runtime, shim } = yield* running(daemon)
      const output = Scenario.pattern(mebibyte)
      shim.pause()
      for (let at = 0; at < output.length; at += 10_000) agent.sendIo([3, output.subarray(at, at + 10_000)])
      yield* eventually(daemon, "the spool", () => spooled(daemon) > mebibyte / 4)
      shim.send(Raw.command(Raw.Op.disconnectShim))
      yield* eventually(daemon, "the goodbye", () =>
        daemon.child.log.some((record) => record.get("msg") === "DisconnectShim")
      )
      yield* handOver(daemon)
      yield* answers(runtime)
      shim.resume()
      yield* shim.dropped()
      assert.isUndefined(shim.error)
      assert.isAbove(shim.stdout.length, 0)
      assert.isTrue(shim.stdout.equals(output.subarray(0, shim.stdout.length)))
      assert.deepStrictEqual(shim.exits, [])
      // the half-close still reads what it says, and its end
      shim.send(Raw.stdin("too late"))
      shim.end()
      yield* until("the close", () => shim.closed)
      assert.isUndefined(shim.error)
    })
  )

  it.live("for a shim that is away waits on, and its token is good", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start()
      const vm = yield* running(daemon, { streams: 2 })
      const second = yield* Scenario.runExec(daemon, vm, vm.tokens[1])
      vm.shim.hangUp()
      yield* daemon.settle
      vm.agent.sendIo([3, "away"], [4, "err"], [5, "there"])
      yield* second.until("its output", () => second.received.stdout === 5)
      yield* handOver(daemon)
      vm.agent.sendIo([3, " still"])
      vm.agent.exit(3, 3)
      vm.agent.exit(5, 5)
      const shim = yield* connectShim(daemon, vm.tokens[0])
      yield* shim.until("the exit", () => shim.exits.length === 1)
      yield* second.until("the exit", () => second.exits.length === 1)
      assert.deepStrictEqual(shim.story, ["stdout away", "stderr err", "stdout  still", "exit 3"])
      assert.deepStrictEqual(second.story, ["stdout there", "exit 5"])
      // a claimed one is claimed
      const third = yield* daemon.connect
      refused(yield* third.request(Raw.Op.connectShim, { token: vm.tokens[1] }), "token already claimed")
    })
  )

  it.live("the end of a VM during a hand-over is noticed, and what it said last delivered", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start()
      const { agent, id, runtime, shim } = yield* running(daemon)
      const pid = daemon.child.pid
      agent.sendIo([3, "last"])
      agent.exit(3, 4)
      agent.powerOff()
      assert.notStrictEqual(yield* handOver(daemon), pid)
      yield* shim.dropped()
      assert.deepStrictEqual(shim.story, ["stdout last", "exit 4"])
      accepted(yield* Scenario.unregister(daemon, id))
      refused(yield* runtime.request(Raw.Op.hyper, hyper("ping")))
    })
  )
})

describe("the socket", () => {
  const listen = (path: string) =>
    Effect.acquireRelease(
      Effect.callback<Net.Server>((resume) => {
        const server = Net.createServer()
        server.listen(path, () => resume(Effect.succeed(server)))
      }),
      (server) => Effect.sync(() => server.close())
    )

  it.live("that systemd passed is handed over, and never unlinked", () =>
    Effect.gen(function* () {
      const directory = yield* DaemonProcess.temporaryDirectory
      const socketPath = Path.join(directory, "activated.sock")
      // Node unlinks the path that it was given
      const server = yield* listen(`${socketPath}.new`)
      Fs.renameSync(`${socketPath}.new`, socketPath)
      const { fd } = (server as unknown as { readonly _handle: { readonly fd: number } })._handle
      const child = yield* DaemonProcess.run(
        ["-log", "info", "-ksm", "initial", "-spool-dir", `${directory}/spool`, "-socket-path", socketPath],
        { descriptors: [fd], shell: 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"' }
      )
      server.close()
      const daemon = yield* DaemonProcess.listening(child, directory, socketPath)
      const { agent, runtime, shim } = yield* running(daemon)
      yield* handOver(daemon)
      yield* handOver(daemon)
      yield* answers(runtime)
      agent.exit(3, 1)
      yield* shim.until("the exit", () => shim.exits.length === 1)
      agent.powerOff()
      yield* answers((yield* boot(daemon)).runtime)
      yield* daemon.child.stop()
      assert.isTrue(Fs.existsSync(socketPath))
    })
  )

  it.live("and all other files are gone after a clean stop, three processes later", () =>
    Effect.gen(function* () {
      const daemon = yield* Survival.start()
      const { agent, id, shim } = yield* running(daemon)
      for (let nth = 0; nth < 3; nth++) yield* handOver(daemon)
      agent.exit(3, 0)
      yield* shim.until("the exit", () => shim.exits.length === 1)
      shim.send(Raw.command(Raw.Op.disconnectShim))
      shim.end()
      accepted(yield* Scenario.unregister(daemon, id))
      agent.powerOff()
      yield* eventually(daemon, "the record's removal", () => Survival.recordsOf(daemon).length === 0)
      assert.strictEqual((yield* daemon.child.stop()).code, 0)
      const left = Fs.readdirSync(daemon.directory).filter((name) => name !== "spool")
      assert.deepStrictEqual(left, [])
      assert.deepStrictEqual(Fs.readdirSync(Path.join(daemon.directory, "spool")), [])
      assert.strictEqual(daemon.child.log.filter((record) => record.get("msg") === "took over").length, 3)
    })
  )

  it.live("of a pod changes hands, too, and the pod's end is the daemon's", () =>
    Effect.gen(function* () {
      const directory = yield* DaemonProcess.temporaryDirectory
      const socketPath = Path.join(directory, "proxy.sock")
      // without a `logger` in the path its log is on stderr
      const env = { PATH: Path.dirname(process.execPath) }
      const child = yield* DaemonProcess.run(["-uri", `unix://${socketPath}`, "-log", "info"], { env })
      const daemon = yield* DaemonProcess.listening(child, directory, socketPath)
      const { agent, id, runtime, shim, tokens } = yield* running(daemon, { streams: 2 })
      yield* handOver(daemon)
      yield* answers(runtime)
      const second = yield* connectShim(daemon, tokens[1])
      accepted(yield* runtime.request(Raw.Op.hyper, hyper("execcmd", exec("c1"), tokens[1])))
      yield* handOver(daemon)
      agent.sendIo([3, "one"], [5, "two"])
      agent.exit(5, 2)
      agent.exit(3, 1)
      yield* second.until("the exit", () => second.exits.length === 1)
      yield* shim.until("the exit", () => shim.exits.length === 1)
      assert.deepStrictEqual(
        [shim.story, second.story],
        [
          ["stdout one", "exit 1"],
          ["stdout two", "exit 2"]
        ]
      )
      accepted(yield* Scenario.unregister(daemon, id))
      agent.powerOff()
      yield* daemon.child.ended()
      assert.deepStrictEqual(
        Fs.readdirSync(directory).filter((name) => name !== "spool"),
        []
      )
    })
  )
})
