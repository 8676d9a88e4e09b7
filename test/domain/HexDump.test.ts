import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as HexDump from "../../src/domain/HexDump.ts"
import { utf8 } from "../support/Bytes.ts"

describe("HexDump", () => {
  it("writes whole and partial lines as hexdump -C does", () => {
    const bytes = Uint8Array.from([...utf8("ABCDEFGHI"), 0, 0x1f, 0x7f, 0x80, 0xff, ...utf8("~ !|yz")])
    assert.deepStrictEqual(HexDump.lines(bytes), [
      "00000000  41 42 43 44 45 46 47 48  49 00 1f 7f 80 ff 7e 20  |ABCDEFGHI.....~ |",
      "00000010  21 7c 79 7a                                       |!|yz|"
    ])
  })

  it("keeps the columns of a line of one byte, of eight and of nine", () => {
    assert.deepStrictEqual(HexDump.lines(utf8("a")), [
      "00000000  61                                                |a|"
    ])
    assert.deepStrictEqual(HexDump.lines(utf8("abcdefgh")), [
      "00000000  61 62 63 64 65 66 67 68                           |abcdefgh|"
    ])
    assert.deepStrictEqual(HexDump.lines(utf8("abcdefghi")), [
      "00000000  61 62 63 64 65 66 67 68  69                       |abcdefghi|"
    ])
  })

  it("counts from the offset it is given, beyond eight digits too", () => {
    assert.deepStrictEqual(
      HexDump.lines(new Uint8Array(17), 5).map((line) => line.slice(0, 10)),
      ["00000005  ", "00000015  "]
    )
    assert.match(HexDump.lines(utf8("a"), 0x1_2345_6789)[0]!, /^123456789 {2}61 /)
  })

  it("says nothing of nothing", () => {
    assert.deepStrictEqual(HexDump.lines(new Uint8Array(0)), [])
  })

  it("writes repeated lines out", () => {
    assert.lengthOf(HexDump.lines(new Uint8Array(64)), 4)
  })

  it.prop("shows every byte, of a view too", [Schema.Uint8Array], ([bytes]) => {
    const inside = new Uint8Array(bytes.length + 2)
    inside.set(bytes, 1)
    const shown = HexDump.lines(inside.subarray(1, -1)).flatMap((line) => line.slice(10, 58).trim().split(/ +/))
    assert.deepStrictEqual(shown.join(""), Buffer.from(bytes).toString("hex"))
  })
})
