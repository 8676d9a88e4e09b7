import { assert, describe, it } from "@effect/vitest"
import * as StartParts from "../../bench/StartParts.ts"

const marks: StartParts.Marks = {
  forked: 1_000_000,
  process: 3_000_000,
  preloaded: 10_000_000,
  read: 11_000_000,
  compiled: 14_000_000,
  evaluated: 20_000_000,
  listen: 25_000_000,
  accepted: 26_000_000,
  answered: 28_000_000,
  requiring: 4_000_000
}

describe("a start's parts", () => {
  it("are the whole of it, once", () => {
    const parts = StartParts.medians([marks])
    assert.deepStrictEqual(Object.keys(parts), Object.keys(StartParts.parts))
    const sum = Object.values(parts).reduce((total, part) => total + part)
    assert.strictEqual(sum, (marks.answered - marks.forked) / 1000)
    assert.strictEqual(parts.evaluateMicros, 2000)
    assert.strictEqual(parts.layersMicros, 5000)
  })

  it("are told without services where a server has none", () => {
    const { evaluated: _, ...bare } = marks
    const parts = StartParts.medians([bare])
    assert.strictEqual(parts.layersMicros, 0)
    assert.strictEqual(parts.evaluateMicros, 7000)
  })

  it("are the medians of several starts", () => {
    const slower = { ...marks, answered: marks.answered + 8_000_000 }
    const slowest = { ...marks, answered: marks.answered + 90_000_000 }
    assert.strictEqual(StartParts.medians([slowest, marks, slower]).answerMicros, 10_000)
  })
})
