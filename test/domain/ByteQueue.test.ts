import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import { concat } from "../../src/domain/Bytes.ts"
import { ByteQueue } from "../../src/domain/ByteQueue.ts"

const bytes = (size: number, from = 0): Uint8Array => Uint8Array.from({ length: size }, (_, at) => (from + at) & 0xff)

/** A view of `size` bytes into a chunk of 64 KiB, as a socket gives them out. */
const view = (size: number, from = 0): Uint8Array => {
  const chunk = new Uint8Array(64 * 1024)
  chunk.set(bytes(size, from), 100)
  return chunk.subarray(100, 100 + size)
}

const step = Schema.Struct({
  do: Schema.Literals(["push", "settle", "read"]),
  size: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 3000 }))
})

describe("ByteQueue", () => {
  it("gives out what is taken at once without a copy", () => {
    const queue = new ByteQueue()
    const first = view(100)
    const second = view(5000)
    queue.push(first)
    queue.push(second)
    assert.strictEqual(queue.size, 5100)
    const taken = queue.take(10_000)
    assert.strictEqual(taken[0], first)
    assert.strictEqual(taken[1], second)
    assert.strictEqual(queue.size, 0)
  })

  it("goes on once all that had waited has been read, and more has come meanwhile", () => {
    const queue = new ByteQueue()
    queue.push(bytes(10))
    queue.settle()
    queue.push(bytes(10, 10))
    queue.read(new Uint8Array(10), 0, 10)
    queue.settle()
    queue.push(bytes(10, 20))
    queue.settle()
    const out = new Uint8Array(20)
    queue.read(out, 0, 20)
    assert.deepStrictEqual(out, bytes(20, 10))
  })

  it("takes whole chunks up to a limit, one at least, and none where there is none", () => {
    const queue = new ByteQueue()
    for (const size of [2000, 2000, 2000]) queue.push(bytes(size))
    assert.deepStrictEqual(
      queue.take(4500).map(({ length }) => length),
      [2000, 2000]
    )
    assert.deepStrictEqual(
      queue.take(1).map(({ length }) => length),
      [2000]
    )
    assert.deepStrictEqual(queue.take(1), [])
  })

  it("puts back what was taken, in front", () => {
    const queue = new ByteQueue()
    queue.push(Uint8Array.of(1, 2))
    queue.push(Uint8Array.of(3))
    const taken = queue.take(2)
    queue.push(Uint8Array.of(4))
    queue.settle()
    queue.unshift(taken)
    assert.strictEqual(queue.size, 4)
    assert.deepStrictEqual([...concat(queue.take(100))], [1, 2, 3, 4])
  })

  it("keeps a mebibyte that came byte by byte in little more than that", () => {
    const queue = new ByteQueue()
    const size = 1024 * 1024
    const chunk = bytes(64 * 1024)
    for (let at = 0; at < size; at++) {
      queue.push(chunk.subarray(at & 0xffff, (at & 0xffff) + 1))
      queue.settle()
    }
    const chunks = queue.take(size)
    assert.isBelow(chunks.length, 40)
    const held = new Set(chunks.map(({ buffer }) => buffer))
    assert.isBelow(
      [...held].reduce((total, { byteLength }) => total + byteLength, 0),
      1.1 * size
    )
    assert.isTrue(Buffer.from(concat(chunks)).equals(bytes(size)))
  })

  it("does not keep a socket's chunk alive for a view of it that waits", () => {
    const queue = new ByteQueue()
    for (const size of [10, 2000, 40_000]) queue.push(view(size))
    queue.settle()
    assert.deepStrictEqual(
      queue.take(100_000).map(({ buffer }) => buffer.byteLength),
      [1024, 2000, 64 * 1024] // of the last, most is wanted
    )
  })

  it("is empty after it was cleared", () => {
    const queue = new ByteQueue()
    queue.push(bytes(10))
    queue.settle()
    queue.clear()
    queue.push(bytes(3))
    queue.settle()
    assert.strictEqual(queue.size, 3)
    assert.deepStrictEqual([...concat(queue.take(100))], [0, 1, 2])
  })

  it("takes back chunks that it gave out: they come first again, and more may be pushed, read and taken behind them", () => {
    const queue = new ByteQueue()
    queue.push(view(100))
    queue.push(view(2000, 100))
    queue.settle()
    const [first] = queue.take(1)
    queue.unshift([first!])
    queue.push(view(50, 2100))
    queue.settle()
    assert.strictEqual(queue.size, 2150)
    assert.deepStrictEqual([...concat(queue.take(Number.POSITIVE_INFINITY))], [...bytes(2150)])
  })

  it("shows all that it has, but what has been read, and keeps it", () => {
    const queue = new ByteQueue()
    assert.deepStrictEqual(queue.chunks(), [])
    for (let at = 0; at < 6000; at += 600) queue.push(view(600, at))
    const out = new Uint8Array(700)
    queue.read(out, 0, 700)
    queue.settle()
    for (let n = 0; n < 2; n++) assert.deepStrictEqual([...concat(queue.chunks())], [...bytes(5300, 700)])
    assert.strictEqual(queue.size, 5300)
    const rest = new Uint8Array(5300)
    queue.read(rest, 0, 5300)
    assert.deepStrictEqual([...rest], [...bytes(5300, 700)])
    assert.deepStrictEqual([...concat(queue.chunks())], [])
  })

  it.prop(
    "reads the bytes in their order, whatever waits and however they are cut",
    [Schema.Array(step)],
    ([steps]) => {
      const queue = new ByteQueue()
      let pushed = 0
      let read = 0
      for (const { do: what, size } of steps) {
        if (what === "push") {
          queue.push(view(size, pushed))
          pushed += size
        } else if (what === "settle") {
          queue.settle()
        } else {
          const length = Math.min(size, queue.size)
          const out = new Uint8Array(length + 2)
          queue.read(out, 1, length)
          assert.isTrue(Buffer.from(out.subarray(1, length + 1)).equals(bytes(length, read)))
          read += length
        }
        assert.strictEqual(queue.size, pushed - read)
        assert.isTrue(Buffer.from(concat(queue.chunks())).equals(bytes(pushed - read, read)))
      }
      const rest = new Uint8Array(queue.size)
      queue.read(rest, 0, rest.length)
      assert.isTrue(Buffer.from(rest).equals(bytes(rest.length, read)))
    }
  )
})
