import { assert, describe, it } from "@effect/vitest"
import * as Statistics from "../../bench/Statistics.ts"

describe("repeated measurements", () => {
  it("come to a median with the least and the most of them, in whatever order they came", () => {
    assert.deepStrictEqual(Statistics.spread([9, 100, 11]), { median: 11, low: 9, high: 100 })
    assert.deepStrictEqual(Statistics.spread([4, 1, 3, 2]), { median: 2.5, low: 1, high: 4 })
    assert.deepStrictEqual(Statistics.spread([5]), { median: 5, low: 5, high: 5 })
  })

  it("are compared neighbour by neighbour, so that a machine that gets slower changes nothing", () => {
    assert.deepStrictEqual(Statistics.ratio([20, 40, 80], [10, 20, 40]), { median: 2, low: 2, high: 2 })
    assert.deepStrictEqual(Statistics.ratio([20, 30], [10]), { median: 2, low: 2, high: 2 })
  })

  it("are written with three significant digits", () => {
    const written = [0, 0.28391, 1, 12.345, 99.96, 999.6, 1234.5, 4_012_345].map(Statistics.figure)
    assert.deepStrictEqual(written, ["0", "0.284", "1.00", "12.3", "100", "1,000", "1,230", "4,010,000"])
  })

  it("show their range only where there is one", () => {
    assert.strictEqual(Statistics.told({ median: 2, low: 1, high: 3 }), "2.00 (1.00–3.00)")
    assert.strictEqual(Statistics.told({ median: 2, low: 2, high: 2 }), "2.00")
  })
})
