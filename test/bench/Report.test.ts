import { assert, describe, it } from "@effect/vitest"
import { readFileSync } from "node:fs"
import * as Report from "../../bench/Report.ts"
import { labels, plan } from "../../bench/Scenarios.ts"
import { parts } from "../../bench/StartParts.ts"

const results = (...results: ReadonlyArray<Report.Result>): Report.Results => ({
  date: "2026-01-31",
  repeats: 3,
  machine: [["processor", "a fast one"]],
  results
})

const echo = (label: string, p50: ReadonlyArray<number>): Report.Result => ({
  group: "echo",
  scenario: "64 bytes",
  label,
  figures: { p50Micros: p50, p99Micros: p50.map((value) => value * 3), maxMicros: p50, cpuMicros: p50 }
})

const memory = (vms: number, residentMB: number): Report.Result => ({
  group: "memory",
  scenario: String(vms),
  label: labels.proxy,
  figures: { residentMB: [residentMB], anonymousMB: [residentMB / 2], cores: [0.01] }
})

describe("the document", () => {
  it("compares with the relay that ran next to it, and tells medians and ranges", () => {
    const sections = Report.sections(results(echo(labels.proxy, [12, 24, 48]), echo(labels.relay, [10, 20, 40])))
    const line = sections
      .get("echo")!
      .split("\n")
      .find((line) => line.startsWith("| cc-proxy"))
    assert.match(line!, /\| +24\.0 \(12\.0–48\.0\) +\|/)
    assert.match(line!, /\| +1\.20 +\|/)
    assert.include(sections.get("echo")!, "Medians of 3 runs, and the least and the most of them; 2026-01-31.")
    assert.isFalse(sections.has("summary"), "it needs all of its figures")
  })

  it("has no section, no column and no line of what was not measured", () => {
    const sections = Report.sections(results(echo(labels.proxy, [12])))
    assert.deepStrictEqual([...sections.keys()].toSorted(), ["echo", "machine"])
    assert.notInclude(sections.get("echo")!, "relay")
    assert.strictEqual(Report.plots(results(echo(labels.proxy, [12]))).size, 0)
  })

  it("says what a VM at rest costs beyond a daemon without one", () => {
    const table = Report.sections(results(memory(0, 60), memory(1000, 120))).get("memory")!
    assert.match(table, /^\| 1000 +\| +120 \| +60\.0 \| +60\.0 \| +1\.00 \|$/m)
  })

  it("describes the machine", () => {
    assert.strictEqual(Report.sections(results()).get("machine"), "- processor: a fast one")
  })

  it("plots what has two points or more", () => {
    const plots = Report.plots(results(memory(1, 60), memory(1000, 120)))
    assert.deepStrictEqual([...plots.keys()], ["vms-memory.svg"])
    assert.strictEqual(plots.get("vms-memory.svg")!.match(/<circle/g)?.length, 4)
  })

  it("has a place for every table and every plot of a whole run, and no place without one", () => {
    const document = readFileSync(new URL("../../docs/performance.md", import.meta.url), "utf8")
    const names = [
      "perSecond",
      "mbPerSecond",
      "cpuMicros",
      "p50Micros",
      "p99Micros",
      "maxMicros",
      "residentMB",
      "cores"
    ]
    const figures = Object.fromEntries(
      [...names, "anonymousMB", ...Object.keys(parts)].map((name) => [name, [1, 2, 3]])
    )
    const whole = results(
      ...plan({ baseline: false, socat: true }).flatMap(({ entries, group, name }) =>
        entries.map(({ label }) => ({ group, scenario: name, label, figures }))
      )
    )
    const found = (pattern: RegExp) => [...document.matchAll(pattern)].map(([, name]) => name!).toSorted()
    assert.deepStrictEqual([...Report.sections(whole).keys()].toSorted(), found(/<!-- begin (.+) -->/g))
    assert.deepStrictEqual([...Report.plots(whole).keys()].toSorted(), found(/\(performance\/(.+\.svg)\)/g))
  })
})
