import { assert, describe, it } from "@effect/vitest"
import * as LogLevel from "../../src/domain/LogLevel.ts"

describe("LogLevel", () => {
  it("labels records of a level by the name that asks for them", () => {
    for (const name of ["debug", "info", "warn", "error", "fatal"] as const)
      assert.strictEqual(LogLevel.label[LogLevel.severity[name]], name)
  })

  it("takes the names of the original that have a shorter one, or none", () => {
    assert.strictEqual(LogLevel.severity.warning, "Warn")
    assert.strictEqual(LogLevel.severity.panic, "Fatal")
    assert.sameMembers([...LogLevel.names], Object.keys(LogLevel.severity))
  })
})
