import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import * as GoDuration from "../../src/domain/GoDuration.ts"

describe("GoDuration", () => {
  const good: ReadonlyArray<readonly [text: string, duration: Duration.Input]> = [
    ["1ns", "1 nanos"],
    ["250us", "250 micros"],
    ["250µs", "250 micros"],
    ["300ms", "300 millis"],
    ["5s", "5 seconds"],
    ["0005s", "5 seconds"],
    ["1m30s", "90 seconds"],
    ["1.5h", "90 minutes"],
    ["0.1s", "100 millis"],
    ["1h0m0.5s", 3_600_500],
    ["1s1m", "61 seconds"],
    ["0s1ms", "1 millis"],
    ["480h", "20 days"]
  ]
  for (const [text, duration] of good)
    it(`reads ${text}`, () => {
      const read = Option.getOrThrow(GoDuration.parse(text))
      assert.isTrue(Duration.equals(read, Duration.fromInputUnsafe(duration)), Duration.format(read))
    })

  const bad = [
    "",
    " ",
    "5",
    "0",
    "s",
    "ms",
    ".5s",
    "5.s",
    "-5s",
    "+5s",
    "5 s",
    " 5s",
    "5s ",
    "5S",
    "5sec",
    "5d",
    "1e3s",
    "0x5s",
    "5s5",
    "5,5s",
    "Infinity",
    "NaN",
    "0s",
    "0h0m0s",
    "0.1ns",
    "480h1ns",
    "99999999999h",
    `${"9".repeat(400)}h`
  ]
  for (const text of bad)
    it(`refuses ${JSON.stringify(text.length > 20 ? `${text.slice(0, 20)}…` : text)}`, () => {
      assert.isTrue(Option.isNone(GoDuration.parse(text)))
    })

  it("takes no longer for a hostile text", () => {
    const start = performance.now()
    assert.isTrue(Option.isNone(GoDuration.parse("1.1".repeat(100_000))))
    assert.isTrue(Option.isNone(GoDuration.parse(`${"1s".repeat(100_000)}!`)))
    assert.isBelow(performance.now() - start, 1000)
  })
})
