import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as Bytes from "../../src/domain/Bytes.ts"

describe("Bytes", () => {
  it.prop(
    "concat joins parts, in order, in a buffer that holds nothing else",
    [Schema.Array(Schema.Uint8Array)],
    ([parts]) => {
      const joined = Bytes.concat(parts)
      assert.deepStrictEqual(
        Array.from(joined),
        parts.flatMap((part) => Array.from(part))
      )
      assert.strictEqual(joined.buffer.byteLength, joined.length)
      if (parts.length === 1) assert.notStrictEqual(joined.buffer, parts[0]!.buffer)
    }
  )

  describe("keep", () => {
    it("copies a view that is a small part of what it keeps alive", () => {
      const chunk = new Uint8Array(100).fill(7)
      const view = chunk.subarray(10, 59)
      const kept = Bytes.keep(view)
      chunk.fill(0)
      assert.deepStrictEqual(kept, new Uint8Array(49).fill(7))
      assert.strictEqual(kept.buffer.byteLength, 49)
    })

    it("leaves a view of half of it, or more, as it is", () => {
      const chunk = new Uint8Array(100)
      for (const view of [chunk, chunk.subarray(50)]) assert.strictEqual(Bytes.keep(view), view)
    })

    it("lets go of a chunk for no bytes", () => {
      assert.strictEqual(Bytes.keep(new Uint8Array(100).subarray(50, 50)).buffer.byteLength, 0)
    })
  })
})
