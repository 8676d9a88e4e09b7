import { assert, describe, it } from "@effect/vitest"
import * as Result from "effect/Result"
import * as Markdown from "../../bench/Markdown.ts"

describe("a generated table", () => {
  it("is laid out as the formatter would, texts to the left and figures to the right", () => {
    const columns = [
      { title: "what", align: "left" },
      { title: "µs", align: "right" }
    ] as const
    assert.strictEqual(
      Markdown.table(columns, [
        ["cc-proxy", "1.25"],
        ["a relay", "12,300"]
      ]),
      [
        "| what     |     µs |", //
        "| -------- | -----: |",
        "| cc-proxy |   1.25 |",
        "| a relay  | 12,300 |"
      ].join("\n")
    )
  })
})

describe("a generated part of a document", () => {
  const document = "# Title\n\n<!-- begin a -->\nold\n<!-- end a -->\n\nText.\n\n<!-- begin ab -->\n<!-- end ab -->\n"

  it("takes the place of what stood between its markers, and of nothing else", () => {
    const filled = Result.getOrThrow(Markdown.fill(document, "a", "new"))
    assert.strictEqual(filled, document.replace("\nold\n", "\n\nnew\n\n"))
    assert.strictEqual(Result.getOrThrow(Markdown.fill(filled, "a", "new")), filled)
  })

  it("is refused where a marker is missing", () => {
    for (const name of ["b", "A"]) {
      const refused = Markdown.fill(document, name, "new")
      assert.isTrue(Result.isFailure(refused))
      if (Result.isFailure(refused)) assert.include(refused.failure.message, `begin ${name}`)
    }
    assert.isTrue(Result.isFailure(Markdown.fill("<!-- end a --> <!-- begin a -->", "a", "new")))
  })
})
