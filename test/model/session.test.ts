import { assert, describe, it } from "@effect/vitest"
import * as Arbitrary from "effect/Arbitrary"
import * as Effect from "effect/Effect"
import { type Life, lives } from "./Operation.ts"
import { Performer } from "./Performer.ts"
import { shrink } from "./shrink.ts"
import { World } from "./World.ts"

/** How many lives: few here, as many as one likes elsewhere. */
const runs = Number(process.env["CC_PROXY_MODEL_RUNS"] ?? 300)
const seed = process.env["CC_PROXY_MODEL_SEED"] ?? "sessions"

/** Lives that are tried to make one that fails smaller. */
const most = 2000

/** Lives a life. Tells its story and what went wrong, if anything did. */
const live = ({ operations, settings }: Life): string | undefined => {
  const world = new World(settings)
  try {
    const performer = new Performer(world)
    for (const operation of operations) performer.perform(operation)
    world.end()
    return undefined
  } catch (error) {
    const story = world.story.map((sentence, at) => `${at + 1}. ${sentence}`)
    return [...story, `=> ${error instanceof Error ? error.message : String(error)}`].join("\n")
  } finally {
    world.daemon.stop()
  }
}

describe("a daemon in memory", () => {
  it.live(
    "gives everybody what the reference says, whatever happens in whatever order, and keeps nothing",
    () =>
      Effect.gen(function* () {
        const result = yield* Arbitrary.checkEffect(
          lives,
          (life) => Effect.as(Effect.yieldNow, live(life) === undefined),
          { runs, seed, maxShrinks: 0 }
        )
        if (result._tag !== "Falsified") return
        const smallest = shrink(result.initialInput, (life) => live(life) !== undefined, most)
        assert.fail(`life ${result.runs} of seed ${seed}:\n${live(smallest)}`)
      }),
    { timeout: 60_000 + runs * 200 }
  )
})
