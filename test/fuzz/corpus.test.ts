import { readFileSync, readdirSync } from "node:fs"
import { assert, describe, it } from "@effect/vitest"
import { Random, mutate } from "./Mutations.ts"
import * as targets from "./targets.ts"

const corpus = new URL("corpus/", import.meta.url)

/** Changed inputs for each target, so many that it takes no longer than a second. */
const rounds: Readonly<Record<string, number>> = { frames: 400, ctl: 400, io: 400, record: 400, repetition: 50 }
const usualRounds = 1500

const name = (input: Uint8Array): string =>
  input.length > 200 ? `${input.length} bytes` : JSON.stringify(Buffer.from(input).toString("latin1"))

const run = (target: (input: Uint8Array) => void, what: string, input: Uint8Array): void => {
  const copy = input.slice()
  try {
    target(input)
  } catch (error) {
    throw new Error(`${what}: ${name(copy)} (base64 ${Buffer.from(copy).toString("base64")})`, { cause: error })
  }
  assert.isTrue(Buffer.from(copy).equals(input), `${what}: the input itself was changed`)
}

describe("what comes from outside", () => {
  it("has a folder of inputs for each target", () => {
    assert.deepStrictEqual(readdirSync(corpus).toSorted(), Object.keys(targets).toSorted())
  })

  for (const [target, test] of Object.entries(targets)) {
    const folder = new URL(`${target}/`, corpus)
    const files = readdirSync(folder)
      .toSorted()
      .map((file) => ({ file, input: Uint8Array.from(readFileSync(new URL(file, folder))) }))

    it(`${target}: keeps every promise for the inputs that are known`, () => {
      assert.isAbove(files.length, 5)
      for (const { file, input } of files) run(test, file, input)
    })

    it(`${target}: keeps every promise for changed ones`, () => {
      const random = new Random(Object.keys(targets).indexOf(target) + 1)
      for (let round = 0; round < (rounds[target] ?? usualRounds); round++) {
        const { file, input } = random.pick(files)
        run(test, `round ${round}, from ${file}`, mutate(random, input, random.pick(files).input))
      }
    })
  }
})
