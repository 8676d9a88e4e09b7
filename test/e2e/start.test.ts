/** Starting processes: which numbers they get, and what they wait for. */
import { assert, it as own } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as DaemonProcess from "../support/e2e/DaemonProcess.ts"
import { SharedDaemon, withDaemon } from "../support/e2e/DaemonProcess.ts"
import type { CtlMessage } from "../support/e2e/FakeAgent.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import * as Scenario from "../support/e2e/Scenario.ts"

const { accepted, attach, boot, connectShim, container, exec, hyper, refused } = Scenario

/** The numbers that a start command brought to the agent. */
const numbersIn = ({ payload }: CtlMessage): readonly [unknown, unknown] => {
  const { process } = JSON.parse(payload.toString()) as { readonly process: Record<string, unknown> }
  return [process["stdio"], process["stderr"] ?? 0]
}

/** A token as it might be, of nobody. */
const strangeToken = `${Buffer.alloc(32, 9).toString("base64url")}=`

withDaemon()("starting a process", (it) => {
  it.effect("the first token gets the numbers 3 and 4, the next 5 and 6, whatever is started first", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, runtime, tokens } = yield* boot(daemon, { streams: 2 })
      yield* connectShim(daemon, tokens[0])
      yield* connectShim(daemon, tokens[1])
      accepted(yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[1])))
      accepted(yield* runtime.request(Raw.Op.hyper, hyper("execcmd", exec("c1"), tokens[0])))
      assert.deepStrictEqual(numbersIn(yield* agent.command(Raw.Ctl.newcontainer)), [5, 6])
      assert.deepStrictEqual(numbersIn(yield* agent.command(Raw.Ctl.execcmd)), [3, 4])
    })
  )

  it.effect("each VM counts for itself", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const first = yield* Scenario.running(daemon)
      const second = yield* Scenario.running(daemon)
      for (const { agent } of [first, second]) {
        assert.deepStrictEqual(numbersIn(yield* agent.command(Raw.Ctl.newcontainer)), [3, 4])
      }
    })
  )

  it.effect("a terminal's process has no stderr of its own", () =>
    Effect.gen(function* () {
      const { agent } = yield* Scenario.running(yield* SharedDaemon, { process: { terminal: true } })
      assert.deepStrictEqual(numbersIn(yield* agent.command(Raw.Ctl.newcontainer)), [3, 0])
    })
  )

  it.effect("without a token the null session takes it, as often as one likes, and its output is discarded", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, runtime, tokens } = yield* boot(daemon, { streams: 1 })
      accepted(yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", container("pause"))))
      accepted(yield* runtime.request(Raw.Op.hyper, hyper("execcmd", exec("pause"))))
      accepted(
        yield* runtime.request(Raw.Op.hyper, {
          hyperName: "execcmd",
          data: exec("pause", { terminal: true }),
          tokens: null
        })
      )
      assert.deepStrictEqual(numbersIn(yield* agent.command(Raw.Ctl.newcontainer)), [1, 2])
      assert.deepStrictEqual(numbersIn(yield* agent.command(Raw.Ctl.execcmd)), [1, 2])
      assert.deepStrictEqual(numbersIn(yield* agent.command(Raw.Ctl.execcmd, 2)), [1, 0])
      const shim = yield* connectShim(daemon, tokens[0])
      accepted(yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0])))
      agent.sendIo([1, "noise"], [2, "noise"], [1], [1, "\u0000"], [3, "mine"], [1, "x"])
      yield* shim.until("the output", () => shim.received.stdout === 4)
      assert.deepStrictEqual(shim.story, ["stdout mine"])
    })
  )

  it.effect("nothing but the two numbers is changed", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, runtime, tokens } = yield* boot(daemon, { streams: 2 })
      const text = (stdio: number, stderr: number) =>
        `{ "z":1, "id":"c1",\n "limit" : 9223372036854775807, "e": 1.50E+3, "stdio": 7, "unknown":{"stderr":8,"u":"\\u00fc ü"},` +
        ` "process": {"user" :{"stdio":9}, "stdio":${stdio} , "args":[ "a b",""],"stderr" : ${stderr},"terminal":false,` +
        `"rlimit":18446744073709551615}, "a":[{"process":{"stdio":6}}] }`
      yield* connectShim(daemon, tokens[0])
      yield* connectShim(daemon, tokens[1])
      for (const [name, token] of [
        ["newcontainer", tokens[0]],
        ["execcmd", tokens[1]]
      ] as const) {
        const container = name === "execcmd" ? text(0, 0).replace('"id"', '"container"') : text(0, 0)
        const payload = `{"hyperName":"${name}","tokens":["${token}"],"data":${container}}`
        accepted(yield* runtime.request(Raw.Op.hyper, payload))
      }
      assert.strictEqual((yield* agent.command(Raw.Ctl.newcontainer)).payload.toString(), text(3, 4))
      assert.strictEqual(
        (yield* agent.command(Raw.Ctl.execcmd)).payload.toString(),
        text(5, 6).replace('"id"', '"container"')
      )
    })
  )

  it.effect("numbers that are absent are added, and every other byte stays", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, runtime, tokens } = yield* boot(daemon, { streams: 2 })
      const texts = [
        '{"id":"c1","process":{"limit":9223372036854775807,"args":["sh"]},"last":1e2}',
        '{"id":"c2","process":{},"last":[]}'
      ]
      for (const [n, text] of texts.entries()) {
        yield* connectShim(daemon, tokens[n])
        accepted(
          yield* runtime.request(Raw.Op.hyper, `{"hyperName":"newcontainer","tokens":["${tokens[n]}"],"data":${text}}`)
        )
        const message = yield* agent.command(Raw.Ctl.newcontainer, n + 1)
        assert.deepStrictEqual(numbersIn(message), [3 + 2 * n, 4 + 2 * n])
        const added = /,?\s*"(?:stdio|stderr)"\s*:\s*\d+\s*,?/g
        const kept = (json: string) => json.replaceAll(added, "").replaceAll(/[{},]/g, "")
        assert.strictEqual(kept(message.payload.toString()), kept(text))
      }
    })
  )

  it.effect("numbers from the client, a missing process, and a process that is none are refused", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, runtime, tokens } = yield* boot(daemon, { streams: 1 })
      yield* connectShim(daemon, tokens[0])
      const datas = [
        container("c1", { stdio: 5 }),
        container("c1", { stderr: 6 }),
        container("c1", { stdio: 1, stderr: 2 }),
        { id: "c1" },
        { id: "c1", process: null },
        { id: "c1", process: "sh" },
        { id: "c1", process: [] },
        "text",
        []
      ]
      for (const data of datas) {
        refused(yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", data, tokens[0])), "", Raw.Op.hyper)
        refused(yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", data)), "", Raw.Op.hyper)
        refused(yield* runtime.request(Raw.Op.hyper, hyper("execcmd", data, tokens[0])), "", Raw.Op.hyper)
      }
      refused(yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", undefined, tokens[0])), "", Raw.Op.hyper)
      assert.deepStrictEqual(agent.ctl, [])
      accepted(yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0])))
    })
  )

  it.effect("a command that starts nothing takes no tokens", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* boot(yield* SharedDaemon, { streams: 2 })
      const one = yield* runtime.request(Raw.Op.hyper, hyper("ping", undefined, tokens[0]))
      refused(one, "ping doesn't need tokens but 1 token(s) were given", Raw.Op.hyper)
      const two = yield* runtime.request(Raw.Op.hyper, hyper("killcontainer", {}, ...tokens))
      refused(two, "killcontainer doesn't need tokens but 2 token(s) were given", Raw.Op.hyper)
      assert.deepStrictEqual(agent.ctl, [])
    })
  )

  it.effect("more than one token is refused", () =>
    Effect.gen(function* () {
      const { agent, runtime, tokens } = yield* boot(yield* SharedDaemon, { streams: 2 })
      const response = yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", container("c1"), ...tokens))
      refused(response, "expected 0 or 1 token, got 2", Raw.Op.hyper)
      assert.deepStrictEqual(agent.ctl, [])
    })
  )

  it.effect("an unknown token and another VM's token are refused at once, and neither is shown whole", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, runtime } = yield* boot(daemon, { streams: 1 })
      const other = yield* boot(daemon, { streams: 1 })
      yield* connectShim(daemon, other.tokens[0])
      const unknown = yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", container("c1"), strangeToken))
      assert.notInclude(refused(unknown, "unknown token: "), strangeToken.slice(0, 20))
      const foreign = yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", container("c1"), other.tokens[0]))
      assert.notInclude(refused(foreign), other.tokens[0]!.slice(0, 20))
      assert.deepStrictEqual(agent.ctl, [])
      accepted(yield* other.runtime.request(Raw.Op.hyper, hyper("newcontainer", container("c1"), other.tokens[0])))
    })
  )

  it.effect("a token whose process has started cannot start another", () =>
    Effect.gen(function* () {
      const { agent, runtime, shim, tokens } = yield* Scenario.running(yield* SharedDaemon)
      refused(yield* runtime.request(Raw.Op.hyper, hyper("execcmd", exec("c1"), tokens[0])), "", Raw.Op.hyper)
      refused(yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", container("c2"), tokens[0])))
      agent.exit(3, 0)
      yield* shim.until("the exit", () => shim.exits.length === 1)
      refused(yield* runtime.request(Raw.Op.hyper, hyper("execcmd", exec("c1"), tokens[0])))
      assert.deepStrictEqual(agent.codes, [Raw.Ctl.newcontainer])
    })
  )

  it.effect("a token that is being used for a start cannot start another meanwhile", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, id, runtime, tokens } = yield* boot(daemon, { streams: 1 })
      yield* connectShim(daemon, tokens[0])
      const other = yield* attach(daemon, id)
      agent.answer(Raw.Ctl.newcontainer, "hold")
      const number = runtime.post(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0]))
      yield* agent.command(Raw.Ctl.newcontainer)
      const second = other.post(Raw.Op.hyper, hyper("newcontainer", container("c2"), tokens[0]))
      yield* daemon.settle
      agent.ack()
      accepted(yield* runtime.response(number))
      refused(yield* other.response(second))
      assert.deepStrictEqual(agent.codes, [Raw.Ctl.newcontainer])
    })
  )

  it.effect("a command that failed leaves its token usable for another try, with the same numbers", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, runtime, tokens } = yield* boot(daemon, { streams: 1 })
      const shim = yield* connectShim(daemon, tokens[0])
      shim.send(Raw.stdin("kept"))
      agent.answer(Raw.Ctl.newcontainer, { error: "no rootfs" })
      const start = hyper("newcontainer", container("c1"), tokens[0])
      refused(yield* runtime.request(Raw.Op.hyper, start), "no rootfs")
      assert.deepStrictEqual(agent.io, [])
      agent.answer(Raw.Ctl.newcontainer, { ack: "" })
      accepted(yield* runtime.request(Raw.Op.hyper, start))
      yield* agent.stdinLength(3, 4)
      assert.deepStrictEqual(numbersIn(yield* agent.command(Raw.Ctl.newcontainer, 2)), [3, 4])
      agent.sendIo([3, "up"])
      yield* shim.until("the output", () => shim.received.stdout === 2)
    })
  )

  it.effect("a start waits for its shim, and holds no turn while it waits", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, id, runtime, tokens } = yield* boot(daemon, { streams: 1 })
      const other = yield* attach(daemon, id)
      const start = runtime.post(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0]))
      yield* daemon.settle
      for (let n = 0; n < 3; n++) yield* Scenario.answers(other)
      assert.deepStrictEqual(agent.codes, [Raw.Ctl.ping, Raw.Ctl.ping, Raw.Ctl.ping])
      yield* connectShim(daemon, tokens[0])
      accepted(yield* runtime.response(start))
      assert.deepStrictEqual(numbersIn(yield* agent.command(Raw.Ctl.newcontainer)), [3, 4])
    })
  )

  it.effect("a start whose client leaves before the shim has come is not sent, and its token stays usable", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, id, runtime, tokens } = yield* boot(daemon, { streams: 1 })
      const leaving = yield* attach(daemon, id)
      leaving.post(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0]))
      yield* daemon.settle
      leaving.hangUp()
      yield* daemon.settle
      yield* connectShim(daemon, tokens[0])
      yield* Scenario.answers(runtime)
      assert.deepStrictEqual(agent.codes, [Raw.Ctl.ping])
      accepted(yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", container("c2"), tokens[0])))
      assert.include((yield* agent.command(Raw.Ctl.newcontainer)).payload.toString(), '"id":"c2"')
    })
  )

  it.effect("a start whose client left after it was written starts its process all the same", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, id, tokens } = yield* boot(daemon, { streams: 1 })
      const leaving = yield* attach(daemon, id)
      const shim = yield* connectShim(daemon, tokens[0])
      shim.send(Raw.stdin("typed"))
      agent.answer(Raw.Ctl.newcontainer, "hold")
      leaving.post(Raw.Op.hyper, hyper("newcontainer", container("c1"), tokens[0]))
      yield* agent.command(Raw.Ctl.newcontainer)
      leaving.hangUp()
      yield* daemon.settle
      assert.deepStrictEqual(agent.io, [])
      agent.ack()
      yield* agent.stdinLength(3, 5)
      agent.sendIo([3, "up"])
      yield* shim.until("the output", () => shim.received.stdout === 2)
    })
  )

  it.effect("many processes of one VM start at the same time, each with its own numbers and output", () =>
    Effect.gen(function* () {
      const daemon = yield* SharedDaemon
      const { agent, id, tokens } = yield* boot(daemon, { streams: 40 })
      const starts = tokens.map((token, n) =>
        Effect.gen(function* () {
          const client = yield* attach(daemon, id)
          const number = client.post(Raw.Op.hyper, hyper("newcontainer", container(`c${n}`), token))
          const shim = yield* connectShim(daemon, token)
          accepted(yield* client.response(number))
          return shim
        })
      )
      const shims = yield* Effect.all(starts, { concurrency: "unbounded" })
      for (const message of agent.commands(Raw.Ctl.newcontainer)) {
        const { id } = JSON.parse(message.payload.toString()) as { readonly id: string }
        const n = Number(id.slice(1))
        assert.deepStrictEqual(numbersIn(message), [3 + 2 * n, 4 + 2 * n])
      }
      for (const n of tokens.keys()) agent.sendIo([3 + 2 * n, `out ${n}`], [4 + 2 * n, `err ${n}`])
      for (const n of tokens.keys()) agent.exit(3 + 2 * n, n)
      for (const [n, shim] of shims.entries()) {
        yield* shim.until("the exit", () => shim.exits.length === 1)
        assert.deepStrictEqual(shim.story, [`stdout out ${n}`, `stderr err ${n}`, `exit ${n}`])
      }
    })
  )
})

own.live("a start whose shim never comes fails after -shim-timeout, and its token stays usable", () =>
  Effect.gen(function* () {
    const daemon = yield* DaemonProcess.start({ args: ["-shim-timeout", "300ms"] })
    const { agent, runtime, tokens } = yield* boot(daemon, { streams: 1 })
    const start = hyper("newcontainer", container("c1"), tokens[0])
    const reason = refused(
      yield* runtime.request(Raw.Op.hyper, start),
      "timeout waiting for shim with token ",
      Raw.Op.hyper
    )
    assert.notInclude(reason, tokens[0]!.slice(0, 20))
    assert.deepStrictEqual(agent.ctl, [])
    yield* connectShim(daemon, tokens[0])
    accepted(yield* runtime.request(Raw.Op.hyper, start))
    yield* daemon.child.warned
  })
)
