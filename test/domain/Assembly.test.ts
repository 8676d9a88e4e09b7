import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as Assembly from "../../src/domain/Assembly.ts"
import { CutSizes, cut, pattern, toHex } from "../support/Bytes.ts"

const MiB = 1024 * 1024

describe("Assembly", () => {
  it.prop(
    "gives back the message however it is cut, and leaves what follows it",
    { length: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 500 })), sizes: CutSizes },
    ({ length, sizes }) => {
      const message = pattern(length)
      const assembly = Assembly.make()
      assembly.begin(length)
      let taken = 0
      for (const piece of cut(pattern(length + 70), sizes)) {
        if (assembly.complete()) break
        taken += assembly.take(piece, 0, piece.length)
        piece.fill(0xee) // what was taken is a copy
      }
      assert.isTrue(assembly.complete())
      assert.strictEqual(taken, length)
      assert.strictEqual(toHex(assembly.finish()), toHex(message))
    }
  )

  it("takes only the given range of a chunk", () => {
    const assembly = Assembly.make()
    assembly.begin(4)
    assert.strictEqual(assembly.take(Uint8Array.of(1, 2, 3, 4, 5), 1, 3), 2)
    assert.isFalse(assembly.complete())
    assert.strictEqual(assembly.take(Uint8Array.of(6, 7, 8, 9), 1, 4), 2)
    assert.isTrue(assembly.complete())
    assert.strictEqual(toHex(assembly.finish()), "02030708")
  })

  it("is active from begin to finish, and takes nothing between messages", () => {
    const assembly = Assembly.make()
    assert.isFalse(assembly.active())
    assert.strictEqual(assembly.take(Uint8Array.of(1), 0, 1), 0)
    assembly.begin(1)
    assert.isTrue(assembly.active())
    assembly.take(Uint8Array.of(1), 0, 1)
    assert.isTrue(assembly.active())
    assembly.finish()
    assert.isFalse(assembly.active())
  })

  it("goes on with the bytes it has when a header tells the real size", () => {
    const assembly = Assembly.make()
    const message = pattern(300)
    assembly.begin(8)
    assert.strictEqual(assembly.take(message, 0, 300), 8)
    assert.isTrue(assembly.complete())
    assert.strictEqual(toHex(assembly.bytes()), toHex(message.subarray(0, 8)))
    assembly.extend(300)
    assert.isFalse(assembly.complete())
    assert.strictEqual(assembly.take(message, 8, 300), 292)
    assert.isTrue(assembly.complete())
    assert.strictEqual(toHex(assembly.finish()), toHex(message))
  })

  it("gives the finished bytes away: the next message does not touch them", () => {
    const assembly = Assembly.make()
    assembly.begin(2)
    assembly.take(Uint8Array.of(1, 2), 0, 2)
    const first = assembly.finish()
    assembly.begin(2)
    assembly.take(Uint8Array.of(3, 4), 0, 2)
    assert.strictEqual(toHex(assembly.finish()), "0304")
    assert.strictEqual(toHex(first), "0102")
    assert.strictEqual(assembly.bytes().buffer.byteLength, 0)
  })

  it("holds 64 KiB for a message of 16 MiB of which one byte has come", () => {
    const assembly = Assembly.make()
    assembly.begin(16 * MiB)
    assembly.take(Uint8Array.of(1), 0, 1)
    assert.strictEqual(assembly.bytes().buffer.byteLength, 64 * 1024)
  })

  it("holds no more than a message of less than 64 KiB needs", () => {
    const assembly = Assembly.make()
    assembly.begin(100)
    assert.strictEqual(assembly.bytes().buffer.byteLength, 100)
  })

  it("never holds more than twice what has come, above the first 64 KiB, nor more than the message", () => {
    const assembly = Assembly.make()
    const chunk = new Uint8Array(1000)
    const size = MiB + 17
    assembly.begin(size)
    for (let filled = 0; filled < size;) {
      filled += assembly.take(chunk, 0, chunk.length)
      assert.isAtMost(assembly.bytes().buffer.byteLength, Math.min(size, Math.max(64 * 1024, 2 * filled)))
    }
    assert.strictEqual(assembly.finish().buffer.byteLength, size)
  })

  for (const first of [12, 64 * 1024]) {
    it(`recopies each byte less than twice on average, starting with ${first} bytes`, () => {
      const assembly = Assembly.make()
      const size = MiB
      assembly.begin(first)
      assembly.take(new Uint8Array(first), 0, first)
      assembly.extend(size)
      let buffer = assembly.bytes().buffer
      let recopied = 0
      for (let filled = first; filled < size;) {
        const before = filled
        filled += assembly.take(new Uint8Array(100), 0, 100)
        if (assembly.bytes().buffer !== buffer) recopied += before
        buffer = assembly.bytes().buffer
      }
      assert.isBelow(recopied, 2 * size)
    })
  }
})
