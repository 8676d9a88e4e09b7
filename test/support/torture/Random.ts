/** Choices that a seed repeats. */

/** The seed of a run, which CC_PROXY_TORTURE_SEED repeats; every test tells its own in its name. */
export const seed = Number(process.env["CC_PROXY_TORTURE_SEED"] ?? Date.now() % 1_000_000)

/** A count that an environment variable may change. */
export const count = (name: string, standard: number): number =>
  Number(process.env[`CC_PROXY_TORTURE_${name}`] ?? standard)

/** Draws an integer from 0 to `below` - 1. */
export type Random = (below: number) => number

/** A small generator of repeatable choices (mulberry32). */
export const make = (seed: number): Random => {
  let state = seed
  return (below) => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below
  }
}

/** One of several. */
export const pick = <A>(random: Random, all: ReadonlyArray<A>): A => all[random(all.length)]!
