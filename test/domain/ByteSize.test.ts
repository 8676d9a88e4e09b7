import { assert, describe, it } from "@effect/vitest"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as ByteSize from "../../src/domain/ByteSize.ts"

describe("ByteSize", () => {
  const good: ReadonlyArray<readonly [text: string, bytes: number]> = [
    ["0", 0],
    ["1", 1],
    ["262144", 262_144],
    ["0008", 8],
    ["0GiB", 0],
    ["1K", 1024],
    ["1KB", 1024],
    ["512KiB", 512 * 1024],
    ["512kib", 512 * 1024],
    ["512KIB", 512 * 1024],
    ["3m", 3 * 1024 ** 2],
    ["256MiB", 256 * 1024 ** 2],
    ["2gb", 2 * 1024 ** 3],
    ["4GiB", 4 * 1024 ** 3],
    ["9007199254740991", Number.MAX_SAFE_INTEGER],
    ["8388607G", 8_388_607 * 1024 ** 3]
  ]
  for (const [text, bytes] of good)
    it(`reads ${text}`, () => {
      assert.deepStrictEqual(ByteSize.parse(text), Option.some(bytes))
    })

  const bad = [
    "",
    " ",
    "K",
    "KiB",
    "-1",
    "+1",
    "1.5M",
    "1,5M",
    ".5M",
    "1 M",
    " 1M",
    "1M ",
    "1M\n",
    "1B",
    "1iB",
    "1Ki",
    "1KBB",
    "1T",
    "1e3",
    "0x10",
    "1K1",
    "1K1M",
    "\u0663M", // an Arabic digit
    "1\u212A", // the sign for kelvin
    "Infinity",
    "NaN",
    "9007199254740992",
    "8388608G",
    "9".repeat(400)
  ]
  for (const text of bad)
    it(`refuses ${JSON.stringify(text.length > 20 ? `${text.slice(0, 20)}…` : text)}`, () => {
      assert.isTrue(Option.isNone(ByteSize.parse(text)))
    })

  for (const [bytes, text] of [
    [0, "0"],
    [1, "1"],
    [1023, "1023"],
    [1024, "1KiB"],
    [1025, "1025"],
    [1536, "1536"],
    [1024 ** 2, "1MiB"],
    [1025 * 1024, "1025KiB"],
    [256 * 1024 ** 2, "256MiB"],
    [4 * 1024 ** 3, "4GiB"],
    [1024 ** 4, "1024GiB"]
  ] as const)
    it(`writes ${bytes} as ${text}`, () => {
      assert.strictEqual(ByteSize.format(bytes), text)
    })

  it.prop("reads what it writes", [Schema.Int, Schema.Literals([1, 1024, 1024 ** 2, 1024 ** 3])], ([given, unit]) => {
    const size = Math.abs(given % 8_000_000) * unit
    assert.deepStrictEqual(ByteSize.parse(ByteSize.format(size)), Option.some(size))
  })
})
