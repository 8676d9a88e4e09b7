import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as JsonDepth from "../../src/domain/JsonDepth.ts"
import { concat, utf8 } from "../support/Bytes.ts"

const { isTooDeep, maxDepth } = JsonDepth

/** What nests `levels` deep, alternating, around `inside`. */
const nested = (levels: number, inside = "") =>
  Array.from({ length: levels }, (_, level) => (level % 2 === 0 ? "[" : '{"a":')).join("") +
  inside +
  Array.from({ length: levels }, (_, level) => ((levels - level) % 2 === 0 ? "}" : "]")).join("")

describe("JsonDepth", () => {
  it("takes as many levels as Go does, and not one more", () => {
    for (const inside of ["", '"a"']) {
      JSON.parse(nested(maxDepth, '"a"'))
      assert.isFalse(isTooDeep(utf8(nested(maxDepth, inside))))
      assert.isTrue(isTooDeep(utf8(nested(maxDepth + 1, inside))))
    }
  })

  it("counts levels, not brackets", () => {
    assert.isFalse(isTooDeep(utf8(`[${"[],{},".repeat(maxDepth)}[]]`)))
    assert.isFalse(isTooDeep(utf8(`[${`${nested(99, "1")},`.repeat(1000)}1]`)))
    assert.isTrue(isTooDeep(utf8(`[${"[],".repeat(maxDepth)}${nested(maxDepth, "1")}]`)))
  })

  it("counts no bracket in a string, whatever is escaped before it", () => {
    const brackets = "[{".repeat(maxDepth)
    for (const before of ["", '\\"', "\\\\", '\\\\\\"', "\\u0022", "é", "\u{1F600}"]) {
      const text = `{"a":"${before}${brackets}","b":1}`
      JSON.parse(text)
      assert.isFalse(isTooDeep(utf8(text)), before)
      const key = `{"${before}${brackets}":1}`
      JSON.parse(key)
      assert.isFalse(isTooDeep(utf8(key)), before)
    }
  })

  it("counts what follows a string", () => {
    for (const string of ['""', '"a"', '"\\""', '"\\\\"', '"\\\\\\""', '"]"', '"}\\"}"']) {
      JSON.parse(`[${string},${nested(3, "1")}]`)
      assert.isTrue(isTooDeep(utf8(`[${string},${nested(maxDepth)}]`)), string)
    }
  })

  it("counts on behind bytes that are not UTF-8", () => {
    for (const byte of [0x80, 0xc3, 0xe2, 0xf0, 0xff]) {
      const start = concat([utf8('["'), Uint8Array.of(byte), utf8('",')])
      assert.isTrue(isTooDeep(concat([start, utf8(nested(maxDepth))])), String(byte))
    }
  })

  it("sees an opening that nothing closes", () => {
    assert.isTrue(isTooDeep(utf8("[".repeat(7_000_000))))
    assert.isTrue(isTooDeep(utf8('{"a":'.repeat(maxDepth + 1))))
    assert.isFalse(isTooDeep(utf8("[".repeat(maxDepth))))
    assert.isFalse(isTooDeep(utf8("]".repeat(7_000_000))))
  })

  it.prop("finds the depth of whatever JSON there is", [Schema.Json, Schema.Int], ([value, given]) => {
    const text = JSON.stringify([value])
    const own = (of: Schema.Json): number =>
      typeof of === "object" && of !== null ? 1 + Math.max(0, ...Object.values(of).map(own)) : 0
    const levels = maxDepth - own([value]) + (Math.abs(given) % 2)
    assert.strictEqual(isTooDeep(utf8(nested(levels, text))), Math.abs(given) % 2 === 1)
  })
})
