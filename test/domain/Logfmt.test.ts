import { assert, describe, it } from "@effect/vitest"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Logfmt from "../../src/domain/Logfmt.ts"
import { parse } from "../support/e2e/Logfmt.ts"

const read = (line: string): Readonly<Record<string, string>> => Object.fromEntries(parse(line))

const record: Logfmt.Record = {
  time: 1_795_506_455_508_476_740n,
  level: "info",
  msg: "VM lost",
  pid: 77,
  source: "proxy",
  fields: []
}

/** Any UTF-16 at all, lone surrogates included. */
const Units = Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 0xffff })))
const fromUnits = (units: ReadonlyArray<number>) => String.fromCharCode(...units)

/** What forges records where it is let through. */
const Hostile = Schema.Array(
  Schema.Literals([
    '"',
    "\\",
    "\n",
    "\r",
    "\t",
    "\0",
    " ",
    "=",
    "level=fatal",
    "\x1b[31m",
    "\x7f",
    "\x85",
    "\u2028",
    "\u2029",
    "\u202e",
    "\ufeff",
    "\ud800",
    "\udfff",
    "\u{1f433}",
    "\u{e0001}",
    "é",
    "x"
  ])
)

describe("Logfmt", () => {
  it("writes a record as one line, what is the proxy's own without quotes", () => {
    assert.strictEqual(
      Logfmt.format({
        ...record,
        fields: [
          ["vm", "pod 1"],
          ["status", 0],
          ["late", true],
          ["at", 18_446_744_073_709_551_615n],
          ["none", null],
          ["absent", undefined]
        ]
      }),
      'time=2026-11-24T07:47:35.508476740Z level=info msg="VM lost" name=cc-proxy pid=77 source=proxy vm="pod 1" status=0 ' +
        "late=true at=18446744073709551615 none=null"
    )
  })

  it("counts time in nanoseconds", () => {
    assert.strictEqual(read(Logfmt.format({ ...record, time: 1n })).time, "1970-01-01T00:00:00.000000001Z")
    assert.strictEqual(read(Logfmt.format({ ...record, time: 0n })).time, "1970-01-01T00:00:00.000000000Z")
    assert.strictEqual(
      read(Logfmt.format({ ...record, time: 951_782_399_999_999_999n })).time,
      "2000-02-28T23:59:59.999999999Z"
    )
  })

  it("escapes what could end a line or a value, hide text or turn its direction, and nothing else", () => {
    const msg = 'a"b\\c\n\r\t\0\x1b\x7f\x85\u200b\u2028\u2029\u202e\ufeff\ud800!\u{1f433}\u{e0001}é ='
    assert.include(
      Logfmt.format({ ...record, msg }),
      String.raw`msg="a\"b\\c\n\r\t\u0000\u001b\u007f\u0085\u200b\u2028\u2029\u202e\ufeff\ud800!🐳\udb40\udc01é ="`
    )
  })

  it("takes a source for what it is only if it is one", () => {
    for (const source of ["proxy", "qemu", "shim", "runtime"])
      assert.include(Logfmt.format({ ...record, source }), `source=${source}`)
    assert.include(Logfmt.format({ ...record, source: "shim level=fatal" }), 'source="shim level=fatal"')
  })

  it("renames a key that is taken, and makes others fit to be keys", () => {
    const line = Logfmt.format({
      ...record,
      fields: [
        ["level", "fatal"],
        ["vm", "1"],
        ["vm", "2"],
        ["vm", "3"],
        ["", "empty"],
        ['a b="\n', "odd"],
        ["0", "digit"]
      ]
    })
    assert.deepStrictEqual([...parse(line)].slice(6), [
      ["fields.level", "fatal"],
      ["vm", "1"],
      ["fields.vm", "2"],
      ["fields.fields.vm", "3"],
      ["_", "empty"],
      ["a_b___", "odd"],
      ["_0", "digit"]
    ])
  })

  it("tells an error's name and message, not its cause, and keeps secrets", () => {
    const error = new RangeError("no such VM", { cause: new Error("secret") })
    const values = read(
      Logfmt.format({
        ...record,
        fields: [
          ["error", error],
          ["silent", new Error()],
          ["token", Redacted.make("secret")],
          ["map", { a: [1, "x"] }]
        ]
      })
    )
    assert.strictEqual(values.error, "RangeError: no such VM")
    assert.strictEqual(values.silent, "Error")
    assert.strictEqual(values.token, "<redacted>")
    assert.strictEqual(values.map, '{"a":[1,"x"]}')
  })

  it.prop("gives every value back, whatever is in it", [Units, Hostile, Hostile], ([units, hostile, source]) => {
    const values = [fromUnits(units), hostile.join(""), source.join("")] as const
    const line = Logfmt.format({ ...record, msg: values[0], source: values[2], fields: [["vm", values[1]]] })
    assert.notMatch(line, /[\p{Cc}\p{Zl}\p{Zp}\p{Cs}]/u)
    assert.deepStrictEqual(
      [...parse(line)],
      [
        ["time", "2026-11-24T07:47:35.508476740Z"],
        ["level", "info"],
        ["msg", values[0]],
        ["name", "cc-proxy"],
        ["pid", "77"],
        ["source", values[2]],
        ["vm", values[1]]
      ]
    )
  })

  it.prop("has no key twice, whatever keys it is given", [Schema.Array(Hostile)], ([names]) => {
    const fields = names.map((name, index) => [name.join(""), index] as const)
    assert.lengthOf(Object.keys(read(Logfmt.format({ ...record, fields }))), 6 + fields.length)
  })

  it("cuts values so that the line stays below the journal's 48 KiB, and still reads", () => {
    for (const character of ["x", '"', "\0", "é", "\u{1f433}", "\ud800", "漢"]) {
      const long = character.repeat(100_000)
      const line = Logfmt.format({
        ...record,
        msg: long,
        fields: [
          ["vm", long],
          ["container", long],
          ["client", "client 7"]
        ]
      })
      const values = read(line)
      assert.isBelow(Buffer.byteLength(line), 48 * 1024, character)
      assert.isAbove(line.length, Logfmt.maxLine * 0.8, character)
      for (const key of ["msg", "vm", "container"]) {
        assert.isTrue(values[key]!.endsWith("…"), character)
        assert.isTrue(long.startsWith(values[key]!.slice(0, -1)), character)
      }
      assert.strictEqual(values.client, "client 7")
    }
  })

  it("leaves a value whole that fits", () => {
    const msg = "x".repeat(Logfmt.maxLine / 2)
    assert.strictEqual(read(Logfmt.format({ ...record, msg })).msg, msg)
  })
})
