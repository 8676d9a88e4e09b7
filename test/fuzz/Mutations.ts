/** A mutator for inputs: seeded, so that what it finds is found again. */

/** Numbers by xorshift, 32 bits of state (Marsaglia 2003). */
export class Random {
  #state: number

  constructor(seed: number) {
    this.#state = Math.imul(seed, 0x9e37_79b1) | 1 // of zero nothing else would come
  }

  /** A number from 0 to `below` - 1. */
  next(below: number): number {
    let state = this.#state
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    this.#state = state
    return (state >>> 0) % below
  }

  pick<A>(list: ReadonlyArray<A>): A {
    return list[this.next(list.length)]!
  }
}

/** Lengths at which decoders decide, and around. */
const lengths = [
  0,
  1,
  7,
  8,
  11,
  12,
  13,
  255,
  65_536,
  2 ** 20,
  2 ** 20 + 1,
  2 ** 23 + 1,
  2 ** 24 + 1,
  2 ** 31,
  2 ** 32 - 1
]

/** What JSON, logfmt and command lines are made of. */
const pieces = [
  ...'{ } [ ] : , " \\ null true 0 -0 1e400 9007199254740993 \\u0000 \\ud800 = -- -log ms'.split(" "),
  ...'"process":{ "stdio": "stderr":0, "data": "tokens":[ \u017f \ufeff \u2028 \0 \n'.split(" ")
].map((text) => Buffer.from(text))

const join = (...parts: ReadonlyArray<Uint8Array>): Uint8Array => Uint8Array.from(Buffer.concat(parts))

/** One to four changes of `input`; `other` is another one, parts of which may come in. */
export const mutate = (random: Random, input: Uint8Array, other: Uint8Array): Uint8Array => {
  let bytes: Uint8Array = input
  for (let left = 1 + random.next(4); left > 0; left--) {
    const at = random.next(bytes.length + 1)
    const end = Math.min(at + 1 + random.next(16), bytes.length)
    const from = random.next(other.length + 1)
    const head = bytes.subarray(0, at)
    const changes = [
      () => join(head, Uint8Array.of(random.next(256)), bytes.subarray(at + 1)),
      () => join(head, Uint8Array.of((bytes[at] ?? 0) ^ (1 << random.next(8))), bytes.subarray(at + 1)),
      () => join(head, bytes.subarray(end)),
      () => join(head, bytes.subarray(at, end), bytes.subarray(at)),
      () => join(head, random.pick(pieces), bytes.subarray(at)),
      () => join(head, other.subarray(from)),
      () => join(head, other.subarray(from, from + random.next(32)), bytes.subarray(at)),
      () => {
        const length = Buffer.alloc(4)
        length.writeUInt32BE(random.pick(lengths))
        return join(head, length, bytes.subarray(at + 4))
      }
    ]
    bytes = random.pick(changes)()
  }
  return bytes
}
