import { assert, describe, it } from "@effect/vitest"
import type * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as ClientCommand from "../../src/domain/ClientCommand.ts"
import * as HyperData from "../../src/domain/HyperData.ts"
import * as JsonDepth from "../../src/domain/JsonDepth.ts"
import { concat, fromHex, utf8 } from "../support/Bytes.ts"

type Decoded = Result.Result<unknown, ClientCommand.MalformedCommand>

const decoders: ReadonlyMap<string, (payload: Uint8Array) => Decoded> = new Map<
  string,
  (payload: Uint8Array) => Decoded
>([
  ["RegisterVM", ClientCommand.decodeRegisterVM],
  ["UnregisterVM", ClientCommand.decodeUnregisterVM],
  ["AttachVM", ClientCommand.decodeAttachVM],
  ["Hyper", ClientCommand.decodeHyper],
  ["ConnectShim", ClientCommand.decodeConnectShim],
  ["Signal", ClientCommand.decodeSignal],
  ["log", ClientCommand.decodeLogEntry]
])

const decode = (command: string, payload: string | Uint8Array): Decoded =>
  decoders.get(command)!(typeof payload === "string" ? utf8(payload) : payload)

const assertDecodes = (command: string, payload: string, expected: unknown) => {
  const decoded = decode(command, payload)
  assert.deepStrictEqual(decoded._tag === "Success" ? decoded.success : decoded.failure.message, expected)
}

const messageOf = (decoded: Decoded): string | undefined =>
  decoded._tag === "Failure" ? decoded.failure.message : undefined

/** For each command: what it must have, what it may have, and values that fit none of its keys. */
const commands: ReadonlyArray<{
  readonly command: string
  readonly required: Readonly<Record<string, unknown>>
  readonly optional: Readonly<Record<string, unknown>>
  readonly misfits: Readonly<Record<string, ReadonlyArray<unknown>>>
}> = [
  {
    command: "RegisterVM",
    required: { containerId: "pod-1", ctlSerial: "/run/ctl.sock", ioSerial: "/run/io.sock" },
    optional: { console: "/run/console.sock", numIOStreams: 2 },
    misfits: {
      containerId: ["", 1, null],
      ctlSerial: ["", [], null],
      ioSerial: ["", {}, null],
      console: [1, ["/run"]],
      numIOStreams: ["2", 1.5, true, 2 ** 53]
    }
  },
  {
    command: "AttachVM",
    required: { containerId: "pod-1" },
    optional: { numIOStreams: 0 },
    misfits: { containerId: ["", 1, null], numIOStreams: ["2", 1.5, [2]] }
  },
  {
    command: "UnregisterVM",
    required: { containerId: "pod-1" },
    optional: {},
    misfits: { containerId: ["", 1, null] }
  },
  {
    command: "Hyper",
    required: { hyperName: "ping" },
    optional: { tokens: ["a", "b"] },
    misfits: { hyperName: [1, null], tokens: ["a", [1], [null], { 0: "a" }] }
  },
  { command: "ConnectShim", required: { token: "a" }, optional: {}, misfits: { token: [1, null, ["a"]] } },
  {
    command: "Signal",
    required: { signalNumber: 15 },
    optional: { columns: 80, rows: 24 },
    misfits: { signalNumber: ["15", 1.5, null, true], columns: ["80", 0.5], rows: ["24", []] }
  },
  {
    command: "log",
    required: { source: "shim", level: "debug", msg: "hello" },
    optional: { containerId: "c1" },
    misfits: { source: ["proxy", 1, null], level: ["fatal", "", null], msg: ["", 1, null], containerId: [1, {}] }
  }
]

describe("ClientCommand", () => {
  it("names each command as PROTOCOL.md does, by its opcode", () => {
    assert.deepStrictEqual(
      Array.from({ length: 7 }, (_, opcode) => ClientCommand.commandNames[opcode as 0]),
      ["RegisterVM", "UnregisterVM", "AttachVM", "Hyper", "ConnectShim", "DisconnectShim", "Signal"]
    )
  })

  for (const { command, misfits, optional, required } of commands) {
    describe(command, () => {
      const whole = { ...required, ...optional }

      it("decodes with all its keys, and without the optional ones", () => {
        assertDecodes(command, JSON.stringify(whole), whole)
        assertDecodes(command, JSON.stringify(required), required)
      })

      it("ignores keys it does not know", () => {
        assertDecodes(command, JSON.stringify({ x: { containerId: 1 }, ...whole, CONTAINERID: 2 }), whole)
      })

      it("takes null for an optional key that is absent", () => {
        const nulls = Object.fromEntries(Object.keys(optional).map((key) => [key, null]))
        assertDecodes(command, JSON.stringify({ ...required, ...nulls }), { ...required, ...nulls })
      })

      for (const key of Object.keys(required)) {
        it(`needs ${key}`, () => {
          const rest = Object.fromEntries(Object.entries(whole).filter(([name]) => name !== key))
          assert.strictEqual(
            messageOf(decode(command, JSON.stringify(rest))),
            `malformed ${command} command: Missing key at ["${key}"]`
          )
        })
      }

      for (const [key, values] of Object.entries(misfits)) {
        it(`refuses what does not fit ${key}, and says which key it is`, () => {
          for (const value of values) {
            const message = messageOf(decode(command, JSON.stringify({ ...whole, [key]: value })))
            assert.match(message ?? "", new RegExp(`^malformed ${command} command: Expected .+ at \\["${key}"\\]`))
          }
        })
      }

      it("refuses what does not fit, however deep it nests, and in few words", () => {
        const levels = JsonDepth.maxDepth - 1
        const deep = "[".repeat(levels) + "]".repeat(levels)
        for (const key of Object.keys(misfits)) {
          const message = messageOf(
            decode(command, JSON.stringify({ ...whole, [key]: "deep" }).replace('"deep"', deep))
          )
          assert.match(message ?? "", new RegExp(`^malformed ${command} command: Expected .+ at \\["${key}"`))
          assert.isBelow(message!.length, 200)
        }
        const deeper = `{"a":${"[".repeat(levels + 1)}`
        assert.strictEqual(
          messageOf(decode(command, deeper)),
          `malformed ${command} command: the payload nests deeper than 10000 levels`
        )
      })

      it("refuses JSON that is no object", () => {
        for (const payload of ["null", "1", '"x"', "true", "[]"])
          assert.strictEqual(messageOf(decode(command, payload)), `malformed ${command} command: Expected object`)
      })

      it("refuses what is not JSON", () => {
        const text = JSON.stringify(whole)
        for (const payload of [
          "",
          " ",
          "{",
          text.slice(0, -1),
          `${text}x`,
          `${text}{}`,
          `\ufeff${text}`,
          "{'a':1}",
          "\0"
        ])
          assert.strictEqual(
            messageOf(decode(command, payload)),
            `malformed ${command} command: the payload is not JSON`,
            payload
          )
        assert.isDefined(messageOf(decode(command, fromHex("ff fe"))))
      })
    })
  }

  it("decodes every source and level of a log entry", () => {
    for (const source of ["shim", "runtime"])
      for (const level of ["debug", "info", "warn", "error"])
        assertDecodes("log", JSON.stringify({ source, level, msg: "x" }), { source, level, msg: "x" })
  })

  it("takes any JSON as the data of a Hyper command", () => {
    for (const data of ["null", "0", '"x"', "[1]", '{"a":{}}'])
      assertDecodes("Hyper", `{"hyperName":"x","data":${data}}`, { hyperName: "x", data: JSON.parse(data) as unknown })
  })

  it("takes the last of a key's duplicates", () => {
    assertDecodes("ConnectShim", '{"token":"a","token":"b"}', { token: "b" })
  })

  it("decodes a string with bytes that are not UTF-8", () => {
    const payload = concat([utf8('{"source":"shim","level":"info","msg":"a'), fromHex("ff"), utf8('b"}')])
    const decoded = decode("log", payload)
    assert.deepStrictEqual(decoded._tag === "Success" && decoded.success, {
      source: "shim",
      level: "info",
      msg: "a\ufffdb"
    })
  })

  const Secret = Schema.String.check(Schema.isPattern(/^S3cret[a-z0-9]{8,20}$/))
  it.prop(
    "repeats no payload in an error, wherever a secret stands in it",
    [Secret],
    ([secret]) => {
      const values: ReadonlyArray<unknown> = [
        secret,
        [secret],
        { [secret]: secret },
        [[secret]],
        { token: secret },
        0.5
      ]
      const assertSilent = (message: string | undefined) => assert.notInclude(message ?? "", secret)
      let refused = 0
      for (const { command, optional, required } of commands) {
        const whole = { ...required, ...optional }
        const payloads = [
          secret,
          `"${secret}"`,
          `["${secret}"]`,
          `{"${secret}":"${secret}"}`,
          `{"token":"${secret}"`,
          `{"token":${secret}}`,
          ...Object.keys(whole).flatMap((key) =>
            values.map((value) => JSON.stringify({ [secret]: secret, ...whole, [key]: value }))
          )
        ]
        for (const payload of payloads) {
          const message = messageOf(decode(command, payload))
          if (message !== undefined) refused++
          assertSilent(message)
        }
      }
      assert.isAbove(refused, 100)
      for (const value of values) {
        const process = { env: [secret], [secret]: secret }
        for (const data of [
          value,
          { container: value, id: value, process },
          { container: "c1", id: "c1", process: value },
          { container: "c1", id: "c1", process: { ...process, terminal: value } },
          { container: "c1", id: "c1", process: { ...process, id: value } }
        ])
          for (const hyperName of ["newcontainer", "execcmd"])
            assertSilent(messageOf(HyperData.decodeStart(hyperName, data)))
        for (const key of ["stdio", "stderr"]) {
          const data = utf8(JSON.stringify({ process: { ...process, [key]: value } }))
          const set = HyperData.setSequences("execcmd", data, 3, 4)
          assert.isDefined(messageOf(set))
          assertSilent(messageOf(set))
        }
      }
    },
    { arbitrary: { runs: 10 } } /* each run tries every place */
  )

  describe("checkSignal", () => {
    for (const [signal, why] of [
      [{ signalNumber: -1 }, "invalid signal number -1"],
      [{ signalNumber: 0 }, undefined],
      [{ signalNumber: 9 }, undefined],
      [{ signalNumber: 15, columns: 0, rows: 0 }, undefined],
      [{ signalNumber: 15, columns: null, rows: null }, undefined],
      [{ signalNumber: 30 }, undefined],
      [{ signalNumber: 31 }, "invalid signal number 31"],
      [{ signalNumber: 31, columns: 80, rows: 24 }, "invalid signal number 31"],
      [{ signalNumber: 64 }, "invalid signal number 64"],
      [{ signalNumber: 28, columns: 80, rows: 24 }, undefined],
      [{ signalNumber: 28, columns: 1, rows: 1 }, undefined],
      [{ signalNumber: 28 }, "received SIGWINCH but terminal size is invalid (0,0)"],
      [{ signalNumber: 28, columns: 80 }, "received SIGWINCH but terminal size is invalid (80,0)"],
      [{ signalNumber: 28, rows: 24 }, "received SIGWINCH but terminal size is invalid (0,24)"],
      [{ signalNumber: 28, columns: -1, rows: 24 }, "received SIGWINCH but terminal size is invalid (-1,24)"],
      [{ signalNumber: 28, columns: 80, rows: -1 }, "received SIGWINCH but terminal size is invalid (80,-1)"],
      [{ signalNumber: 2, columns: 80, rows: 24 }, "received a terminal size (80,24) for signal 2"],
      [{ signalNumber: 2, columns: 80 }, "received a terminal size (80,0) for signal 2"],
      [{ signalNumber: 2, rows: -1 }, "received a terminal size (0,-1) for signal 2"],
      [{ signalNumber: 27, columns: 80, rows: 24 }, "received a terminal size (80,24) for signal 27"],
      [{ signalNumber: 29, columns: 80, rows: 24 }, "received a terminal size (80,24) for signal 29"]
    ] as const) {
      it(`${why === undefined ? "accepts" : "refuses"} ${JSON.stringify(signal)}`, () => {
        assert.strictEqual(ClientCommand.checkSignal(signal), why)
      })
    }
  })

  describe("redactToken", () => {
    it("shows the first six characters of a token", () => {
      const token = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQ="
      assert.strictEqual(token.length, 44)
      assert.strictEqual(ClientCommand.redactToken(token), "abcdef…")
    })

    it("shows nothing of what is too short to hide the rest of", () => {
      for (const token of ["", "a", "abcdef", "a".repeat(24)]) assert.strictEqual(ClientCommand.redactToken(token), "…")
      assert.strictEqual(ClientCommand.redactToken("a".repeat(25)), "aaaaaa…")
    })
  })
})
