import { assert, describe, it } from "@effect/vitest"
import * as Scenarios from "../../bench/Scenarios.ts"

const names = (plan: Scenarios.Plan) => Scenarios.plan(plan).map(({ group, name }) => `${group} ${name}`)

describe("what is measured", () => {
  it("has a name of its own for each line", () => {
    const lines = Scenarios.plan({ baseline: true, socat: true }).flatMap(({ entries, group, name }) =>
      entries.map(({ label }) => `${group}, ${name}, ${label}`)
    )
    assert.strictEqual(new Set(lines).size, lines.length)
  })

  it("is all of it, a group, or one scenario", () => {
    const all = names({ baseline: false, socat: true })
    assert.deepStrictEqual(
      names({ only: "ctl", baseline: false, socat: true }),
      all.filter((name) => name.startsWith("ctl "))
    )
    assert.deepStrictEqual(names({ only: "stdout 64 × 1", baseline: false, socat: true }), ["stdout 64 × 1"])
    assert.deepStrictEqual(names({ only: "nothing like it", baseline: false, socat: true }), [])
  })

  it("measures another build right after each line of the daemon, with the same load", () => {
    const [echo] = Scenarios.plan({ only: "echo", baseline: true, socat: false })
    const builds = echo!.entries.filter(({ program }) => program === "cc-proxy" || program === "baseline")
    assert.strictEqual(builds.length, 8)
    for (let n = 0; n < builds.length; n += 2) {
      assert.deepStrictEqual([builds[n]!.program, builds[n + 1]!.program], ["cc-proxy", "baseline"])
      assert.strictEqual(builds[n]!.load, builds[n + 1]!.load)
    }
  })

  it("leaves socat out where it is not installed", () => {
    const programs = (socat: boolean) =>
      new Set(
        Scenarios.plan({ baseline: false, socat }).flatMap(({ entries }) => entries.map(({ program }) => program))
      )
    assert.isTrue(programs(true).has("socat"))
    assert.isFalse(programs(false).has("socat"))
  })
})
