import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as JsonText from "../../src/domain/JsonText.ts"
import { concat, fromHex, toHex, toText, utf8 } from "../support/Bytes.ts"

/** What stands at the ranges of `key` in the object that starts at `at`. */
const valuesOf = (text: string, key: string, at = 0): ReadonlyArray<string> | undefined =>
  JsonText.membersAt(text, at)
    ?.get(key)
    .map(({ end, start }) => text.slice(start, end))

describe("JsonText", () => {
  it("reads every byte as one character, so that offsets agree", () => {
    const bytes = Uint8Array.from({ length: 256 }, (_, i) => i)
    const text = JsonText.toText(bytes)
    assert.strictEqual(text.length, 256)
    for (let i = 0; i < 128; i++) assert.strictEqual(text.charCodeAt(i), i)
  })

  describe("finds a member's value", () => {
    for (const value of [
      "0",
      "-0.5e+10",
      "18446744073709551615",
      "true",
      "false",
      "null",
      '""',
      '"}"',
      '"\\""',
      '"\\\\"',
      '"\\\\\\"{[,:"',
      '"\\u0022,\\u007d"',
      "[]",
      "{}",
      "[1,[2,{}],{}]",
      '{"key":{"key":[]},"]":"["}',
      "[ 1 , 2 ]",
      '"grün \u{1f433} \u0085\u00a0\u2028"'
    ]) {
      it(`${value}, wherever it stands and whatever white space is around it`, () => {
        const bytes = JsonText.toText(utf8(value))
        for (const space of ["", " ", "\t\r\n \n"]) {
          const key = `${space}"key"${space}:${space}${bytes}${space}`
          for (const text of [`{${key}}`, `{${key},"z":1}`, `{"a":[{}],${key}}`, `{"a":"{",${key},"z":{"key":0}}`])
            assert.deepStrictEqual(valuesOf(text, "key"), [bytes], text)
        }
      })
    }

    it("of a key that is there twice, both in order, and one that is written with escapes too", () => {
      assert.deepStrictEqual(valuesOf('{"k":1,"\\u006b":[2],"x":3,"k":"4"}', "k"), ["1", "[2]", '"4"'])
      assert.deepStrictEqual(valuesOf('{"a\\/\\n\\"":1}', 'a/\n"'), ["1"])
    })

    it("of a key that every object of JavaScript has", () => {
      assert.deepStrictEqual(valuesOf('{"__proto__":1,"toString":2}', "__proto__"), ["1"])
      assert.deepStrictEqual(valuesOf("{}", "toString"), [])
    })

    it("and none of a key that is absent, deeper, or a value", () => {
      assert.deepStrictEqual(valuesOf('{"a":{"k":1},"b":"k","c":["k"]}', "k"), [])
    })

    it("of an object in the middle of the text, up to that object's end", () => {
      const text = '[{"k":1}, {"k":2},{"k":3}]'
      assert.deepStrictEqual(valuesOf(text, "k", 9), ["2"])
      assert.strictEqual(JsonText.membersAt(text, 9)?.inside, 11)
    })
  })

  it("tells an empty object, and where its inside begins", () => {
    for (const [text, inside, empty] of [
      ["{}", 1, true],
      ["  { } ", 3, true],
      ['{"a":1}', 1, false]
    ] as const) {
      const members = JsonText.membersAt(text, 0)
      assert.deepStrictEqual([members?.inside, members?.empty], [inside, empty])
    }
  })

  it("has no members for what is not an object", () => {
    for (const text of ["[]", "null", "1", '"{}"', "true", " [{}]", ""])
      assert.isUndefined(JsonText.membersAt(text, 0), text)
  })

  it("reads 100,000 levels of nesting", () => {
    const depth = 100_000
    const lists = `${"[".repeat(depth)}${"]".repeat(depth)}`
    assert.deepStrictEqual(valuesOf(`{"a":${lists},"k":1}`, "k"), ["1"])
    const objects = `${'{"k":'.repeat(depth)}0${"}".repeat(depth)}`
    assert.deepStrictEqual(
      valuesOf(objects, "k")?.map((value) => value.length),
      [objects.length - 6]
    )
  })

  for (const [what, filling, times] of [
    ["spaces", " ", 4_000_000],
    ["line ends", "\r\n", 2_000_000]
  ] as const) {
    it(`holds little memory while it skips megabytes of ${what}`, () => {
      const text = `{"a":1,${filling.repeat(times)}"k":2}`
      const before = process.memoryUsage().heapUsed
      assert.deepStrictEqual(valuesOf(text, "k"), ["2"])
      assert.isAtMost(process.memoryUsage().heapUsed - before, 32 * 1024 * 1024)
    })
  }

  it.prop(
    "finds what JSON.parse finds, whatever the object and its layout",
    { object: Schema.Record(Schema.String, Schema.Json), indent: Schema.Literals([0, 1, 4]) },
    ({ indent, object }) => {
      const bytes = utf8(JSON.stringify(object, null, indent))
      const members = JsonText.membersAt(JsonText.toText(bytes), 0)
      assert.strictEqual(members?.empty, Object.keys(object).length === 0)
      for (const [key, value] of Object.entries(object)) {
        // a key is found by its bytes, escapes apart
        const name: string = JSON.parse(JsonText.toText(utf8(JSON.stringify(key))))
        const ranges = members?.get(name) ?? []
        assert.strictEqual(ranges.length, 1)
        const found: unknown = JSON.parse(toText(bytes.subarray(ranges[0]!.start, ranges[0]!.end)))
        assert.deepStrictEqual(found, JSON.parse(JSON.stringify(value)))
      }
    }
  )

  describe("applies edits", () => {
    const edit = (start: number, end: number, text: string): JsonText.Edit => ({ start, end, text })

    it("in any order, and insertions at one place in the order they are given", () => {
      const edits = [edit(6, 6, "f"), edit(3, 4, "DDD"), edit(1, 1, "x"), edit(0, 0, "<"), edit(1, 1, "y")]
      assert.strictEqual(toText(JsonText.apply(utf8("abcdef"), edits)), "<axybcDDDeff")
    })

    it("that remove, and none at all, and leaves the original as it was", () => {
      const bytes = utf8("abc")
      assert.strictEqual(toText(JsonText.apply(bytes, [edit(1, 3, "")])), "a")
      assert.strictEqual(toText(JsonText.apply(bytes, [])), "abc")
      assert.strictEqual(toText(bytes), "abc")
    })

    it("around bytes that are no text", () => {
      const bytes = concat([utf8('"'), fromHex("c3 28 ff fe 80"), utf8('":0')])
      assert.strictEqual(toHex(JsonText.apply(bytes, [edit(8, 9, "37")])), toHex(bytes).slice(0, -2) + "3337")
    })
  })
})
