import { assert, describe, it } from "@effect/vitest"
import * as Plot from "../../bench/Plot.ts"

const at = (x: number, median: number, low = median, high = median) => ({ x, median, low, high })

const plot: Plot.Plot = {
  title: "Cost & <size>",
  description: "CPU time against size.",
  x: { label: "bytes", scale: "log" },
  y: { label: "CPU time, µs", scale: "log" },
  series: [
    { label: "cc-proxy", points: [at(10, 1), at(100, 10, 5, 20), at(1000, 100)] },
    { label: "relay", points: [at(10, 2), at(1000, 50)] }
  ]
}

/** Places of the dots, as pairs of numbers. */
const dots = (svg: string) =>
  [...svg.matchAll(/cx="([\d.]+)" cy="([\d.]+)"/g)].map(([, x, y]) => [Number(x), Number(y)])

describe("a plot", () => {
  it("names itself, its axes with their units, and its series, with their text escaped", () => {
    const svg = Plot.render(plot)
    for (const text of ["Cost &amp; &lt;size&gt;", "bytes", "CPU time, µs", "cc-proxy", "relay"])
      assert.include(svg, `>${text}</text>`)
    assert.include(svg, '<desc id="desc">CPU time against size.</desc>')
    assert.notInclude(svg, "<size>")
  })

  it("has colours for light and for dark ground", () => {
    assert.match(Plot.render(plot), /@media \(prefers-color-scheme: dark\)/)
  })

  it("places equal factors at equal distances on a logarithmic axis", () => {
    const [first, second, third] = dots(Plot.render(plot))
    assert.closeTo(second![0]! - first![0]!, third![0]! - second![0]!, 0.2)
    assert.closeTo(first![1]! - second![1]!, second![1]! - third![1]!, 0.2)
  })

  it("places equal differences at equal distances on a linear axis, from 0 on", () => {
    const y = { label: "µs", scale: "linear" } as const
    const svg = Plot.render({ ...plot, y, series: [{ label: "one", points: [at(1, 50), at(10, 75), at(100, 100)] }] })
    const [first, second, third] = dots(svg)
    assert.closeTo(first![1]! - second![1]!, second![1]! - third![1]!, 0.2)
    assert.deepStrictEqual(Plot.ticks("linear", 50, 100), [0, 20, 40, 60, 80, 100])
  })

  it("draws whiskers from the least to the most", () => {
    const svg = Plot.render(plot)
    const heights = [...svg.matchAll(/<line class="s\d" x1="([\d.]+)" y1="([\d.]+)" x2="\1" y2="([\d.]+)"/g)].map(
      ([, , low, high]) => Number(low) - Number(high)
    )
    assert.strictEqual(heights.length, 5)
    assert.deepStrictEqual(
      heights.map((height) => height > 0),
      [false, true, false, false, false]
    )
  })

  it("draws a line at each power of ten around the values", () => {
    assert.deepStrictEqual(Plot.ticks("log", 3, 250), [1, 10, 100, 1000])
    assert.deepStrictEqual(Plot.ticks("log", 10, 1000), [10, 100, 1000])
    assert.deepStrictEqual(Plot.ticks("log", 10, 10), [10, 100])
  })

  it("stays inside its frame", () => {
    for (const [x, y] of dots(Plot.render(plot))) {
      assert.isTrue(x! >= 80 && x! <= 700 && y! >= 80 && y! <= 340, `${x}, ${y}`)
    }
  })
})
