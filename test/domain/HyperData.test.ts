import { assert, describe, it } from "@effect/vitest"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as ClientCommand from "../../src/domain/ClientCommand.ts"
import * as HyperData from "../../src/domain/HyperData.ts"
import * as JsonDepth from "../../src/domain/JsonDepth.ts"
import { concat, fromHex, toHex, toText, utf8 } from "../support/Bytes.ts"

const failureOf = <A>(result: Result.Result<A, ClientCommand.MalformedCommand>): string | undefined =>
  Result.isFailure(result) ? result.failure.message : undefined

const set = (data: string, stdio: number, stderr?: number): string =>
  toText(Result.getOrThrow(HyperData.setSequences("newcontainer", utf8(data), stdio, stderr)))

describe("HyperData", () => {
  describe("the data of a Hyper command", () => {
    const dataOf = (payload: string): string => toText(HyperData.dataOf(utf8(payload)))

    it("is forwarded byte for byte: white space inside, order of keys, big integers, escapes", () => {
      for (const data of [
        '{"b":1,"a":2,"b":3}',
        '{ "limit" : 18446744073709551615 ,\n\t"x":1.0e+2,"y":-0}',
        '"\\u0041\\/}"',
        "[ ]",
        "null",
        "0",
        "false",
        '""'
      ]) {
        assert.strictEqual(dataOf(`{"hyperName":"readfile","data":${data}}`), data)
        assert.strictEqual(dataOf(` { "data" : ${data} , "hyperName":"}" }\n`), data)
      }
    })

    it("is nothing where the key is absent, and is not looked for deeper", () => {
      assert.strictEqual(dataOf('{"hyperName":"ping"}'), "")
      assert.strictEqual(
        dataOf('{"hyperName":"ping","tokens":{"data":1},"x":["data",{"data":2}],"y":"\\"data\\":3"}'),
        ""
      )
    })

    it("is the last of duplicates, as it is for JSON.parse", () => {
      const payload = '{"data":{"n":1},"data":{"n":2},"d\\u0061ta":{"n":3}}'
      assert.strictEqual(dataOf(payload), '{"n":3}')
      assert.deepStrictEqual((JSON.parse(payload) as { data: unknown }).data, { n: 3 })
    })

    it("keeps bytes that are not UTF-8, which are still a string to the agent", () => {
      const data = concat([utf8('{"path":"'), fromHex("ff c3 28 80 e2 82"), utf8('"}')])
      const payload = concat([utf8('{"hyperName":"writefile","data":'), data, utf8("}")])
      assert.isTrue(Result.isSuccess(ClientCommand.decodeHyper(payload)))
      assert.strictEqual(toHex(HyperData.dataOf(payload)), toHex(data))
    })

    it("is a view of the payload", () => {
      const payload = utf8('{"data":{}}')
      assert.strictEqual(HyperData.dataOf(payload).buffer, payload.buffer)
    })
  })

  it("knows two commands that start a process, and where each names its container", () => {
    assert.deepStrictEqual(
      [...HyperData.starters],
      [
        ["newcontainer", "id"],
        ["execcmd", "container"]
      ]
    )
  })

  describe("decodeStart", () => {
    it("reads a container's init process from newcontainer", () => {
      assert.deepStrictEqual(
        Result.getOrThrow(
          HyperData.decodeStart("newcontainer", {
            id: "c1",
            container: "no",
            process: { id: "p1", terminal: true, x: 1 }
          })
        ),
        { container: "c1", process: "p1", terminal: true, init: true }
      )
    })

    it("reads another process from execcmd", () => {
      assert.deepStrictEqual(
        Result.getOrThrow(HyperData.decodeStart("execcmd", { container: "c1", id: "no", process: { args: ["ls"] } })),
        { container: "c1", process: undefined, terminal: false, init: false }
      )
    })

    it("takes null for absent", () => {
      assert.deepStrictEqual(
        Result.getOrThrow(HyperData.decodeStart("execcmd", { container: "c1", process: { id: null, terminal: null } })),
        { container: "c1", process: undefined, terminal: false, init: false }
      )
    })

    for (const [what, hyperName, data, reason] of [
      ["no data", "newcontainer", undefined, "Expected object"],
      ["null", "execcmd", null, "Expected object"],
      ["no container", "newcontainer", { process: {} }, 'Missing key at ["id"]'],
      ["no container", "execcmd", { id: "c1", process: {} }, 'Missing key at ["container"]'],
      ["an empty container", "execcmd", { container: "", process: {} }, 'at ["container"]'],
      ["no process", "execcmd", { container: "c1" }, 'Missing key at ["process"]'],
      ["a process that is null", "newcontainer", { id: "c1", process: null }, 'Expected object at ["process"]'],
      ["a process that is a list", "newcontainer", { id: "c1", process: [] }, 'Expected object at ["process"]'],
      [
        "a terminal that is no boolean",
        "newcontainer",
        { id: "c1", process: { terminal: 1 } },
        '["process"]["terminal"]'
      ],
      ["a process id that is a number", "execcmd", { container: "c1", process: { id: 7 } }, '["process"]["id"]']
    ] as const) {
      it(`refuses ${hyperName} with ${what}`, () => {
        const message = failureOf(HyperData.decodeStart(hyperName, data))
        assert.isTrue(message?.startsWith(`malformed ${hyperName} command: `), message)
        assert.include(message, reason)
        assert.notInclude(message, "\n")
      })
    }
  })

  describe("setSequences", () => {
    it("gives a process its two numbers, first among its keys", () => {
      assert.strictEqual(
        set('{"container":"c1","process":{"id":"e1","args":["ls"]}}', 3, 4),
        '{"container":"c1","process":{"stdio":3,"stderr":4,"id":"e1","args":["ls"]}}'
      )
    })

    it("gives a process on a terminal one number", () => {
      assert.strictEqual(set('{"process":{"terminal":true}}', 5), '{"process":{"stdio":5,"terminal":true}}')
      assert.strictEqual(
        set('{"process":{"terminal":true,"stdio":0,"stderr":0}}', 5),
        '{"process":{"terminal":true,"stdio":5,"stderr":0}}'
      )
    })

    it("fills an empty process", () => {
      assert.strictEqual(set('{"process":{}}', 3, 4), '{"process":{"stdio":3,"stderr":4}}')
      assert.strictEqual(set('{"process":{}}', 3), '{"process":{"stdio":3}}')
      assert.strictEqual(set('{"process": { } }', 3, 4), '{"process": {"stdio":3,"stderr":4 } }')
    })

    it("replaces a number where it stands, and adds what is missing", () => {
      assert.strictEqual(
        set('{"process":{"a":1, "stdio" : 0 ,"b":2}}', 3, 4),
        '{"process":{"stderr":4,"a":1, "stdio" : 3 ,"b":2}}'
      )
      assert.strictEqual(set('{"process":{"stderr":0}}', 3, 4), '{"process":{"stdio":3,"stderr":4}}')
      assert.strictEqual(set('{"process":{"stdio":0}}', 3, 4), '{"process":{"stderr":4,"stdio":3}}')
    })

    for (const zero of ["0", "0.0", "-0", "0e7", "0E-3", "-0.00e+1", "null"]) {
      it(`takes ${zero} for a number that the client has not set`, () => {
        assert.strictEqual(
          set(`{"process":{"stdio":${zero},"stderr": ${zero} }}`, 3, 4),
          '{"process":{"stdio":3,"stderr": 4 }}'
        )
      })
    }

    for (const key of ["stdio", "stderr"]) {
      for (const value of [
        "1",
        "-1",
        "0.5",
        "1e-9",
        "3",
        "18446744073709551615",
        '"0"',
        '""',
        "true",
        "false",
        "[]",
        "[0]",
        "{}"
      ]) {
        it(`refuses ${value} as ${key}, on a terminal too`, () => {
          for (const stderr of [4, undefined]) {
            const data = utf8(`{"process":{"x":{"${key}":0},"${key}":${value}}}`)
            assert.strictEqual(
              failureOf(HyperData.setSequences("execcmd", data, 3, stderr)),
              `malformed execcmd command: process.${key} must be 0 or absent: the proxy sets it`
            )
          }
        })
      }
    }

    it("sets each of a key's duplicates, whichever the agent reads", () => {
      assert.strictEqual(
        set('{"process":{"stdio":0,"\\u0073tdio":0,"stderr":null}}', 3, 4),
        '{"process":{"stdio":3,"\\u0073tdio":3,"stderr":4}}'
      )
      assert.isDefined(
        failureOf(HyperData.setSequences("execcmd", utf8('{"process":{"std\\u0069o":7,"stdio":0}}'), 3, 4))
      )
    })

    it("sets them in each of two processes, and passes by one that is no object", () => {
      assert.strictEqual(
        set('{"process":{"a":1},"process":null,"process":{"stdio":0}}', 3, 4),
        '{"process":{"stdio":3,"stderr":4,"a":1},"process":null,"process":{"stderr":4,"stdio":3}}'
      )
    })

    it("looks at no process or number that is deeper, or in a string", () => {
      assert.strictEqual(
        set('{"x":{"process":{"stdio":9}},"process":{"y":{"stdio":8},"z":"\\"stdio\\":7,{"},"stdio":6}', 3),
        '{"x":{"process":{"stdio":9}},"process":{"stdio":3,"y":{"stdio":8},"z":"\\"stdio\\":7,{"},"stdio":6}'
      )
    })

    it("keeps every other byte: white space, big integers, bytes that are not UTF-8", () => {
      const head = utf8('{ "id":"c1",\r\n "limit":18446744073709551615, "process" : {')
      const tail = concat([utf8('\t"env":["A=}{'), fromHex("ff c3 28 e2 82"), utf8('"], "n":1.50 } }\n')])
      const result = Result.getOrThrow(HyperData.setSequences("newcontainer", concat([head, tail]), 3, 4))
      assert.strictEqual(toHex(result), toHex(concat([head, utf8('"stdio":3,"stderr":4,'), tail])))
    })

    it("leaves data without a process, or without an object, as it is", () => {
      for (const data of ['{"id":"c1"}', "[]", "null", ""]) assert.strictEqual(set(data, 3, 4), data)
    })

    it("writes numbers beyond 2^32", () => {
      assert.strictEqual(
        set('{"process":{}}', 2 ** 53 - 2, 2 ** 53 - 1),
        '{"process":{"stdio":9007199254740990,"stderr":9007199254740991}}'
      )
    })

    it("works through as many levels of nesting as there may be", () => {
      const half = JsonDepth.maxDepth / 2 - 1 // some are around it
      const deep = `${'{"a":['.repeat(half)}1${"]}".repeat(half)}`
      assert.strictEqual(
        set(`{"x":${deep},"process":{"deep":${deep},"stdio":0}}`, 3),
        `{"x":${deep},"process":{"deep":${deep},"stdio":3}}`
      )
      assert.strictEqual(toText(HyperData.dataOf(utf8(`{"data":${deep}}`))), deep)
      assert.isTrue(Result.isSuccess(ClientCommand.decodeHyper(utf8(`{"hyperName":"x","data":${deep}}`))))
    })

    const Unset = Schema.Literals(["absent", "0", "null", "-0.0"])
    it.prop(
      "changes nothing but the two numbers, whatever else the data has",
      {
        before: Schema.Record(Schema.String, Schema.Json),
        process: Schema.Record(Schema.String, Schema.Json),
        stdio: Unset,
        stderr: Unset,
        terminal: Schema.Boolean,
        indent: Schema.Literals([0, 2])
      },
      ({ before, indent, process, stderr, stdio, terminal }) => {
        const given = {
          ...process,
          ...(stdio !== "absent" && { stdio }),
          ...(stderr !== "absent" && { stderr })
        }
        // JSON.stringify writes the two as strings: take their quotes away again
        const text = JSON.stringify({ ...before, process: given }, null, indent).replaceAll(
          /("std(?:io|err)": ?)"(0|null|-0\.0)"/g,
          "$1$2"
        )
        const result: unknown = JSON.parse(set(text, 3, terminal ? undefined : 4))
        const expected = JSON.parse(text) as { process: Record<string, unknown> }
        expected.process["stdio"] = 3
        if (!terminal) expected.process["stderr"] = 4
        assert.deepStrictEqual(result, expected)
      }
    )
  })
})

describe("keys that differ in case only", () => {
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes)
  const set = (data: string) => HyperData.setSequences("newcontainer", new TextEncoder().encode(data), 3, 4)

  it("cannot name another process's streams to an agent that ignores case", () => {
    for (const data of ['{"process":{"Stdio":5}}', '{"process":{},"Process":{"STDERR":5}}'])
      assert.match(Result.getOrThrow(Result.flip(set(data))).message, /must be 0 or absent/)
  })

  it("are set too, and beside them the keys that every agent knows", () => {
    assert.strictEqual(
      text(Result.getOrThrow(set('{"process":{"Stdio":0,"stderr":0}}'))),
      '{"process":{"stdio":3,"Stdio":3,"stderr":4}}'
    )
  })
})
