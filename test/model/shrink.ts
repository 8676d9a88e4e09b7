/** Makes a life that fails smaller, as long as it fails: shrinking that keeps the order of what is left. */
import type { Life, Operation } from "./Operation.ts"

/** The smallest life found in which `fails` holds, as it does for `life`; it is asked at most `most` times. */
export const shrink = (life: Life, fails: (life: Life) => boolean, most: number): Life => {
  let smallest = life
  let asked = 0
  const accept = (operations: ReadonlyArray<Operation>, settings = smallest.settings): boolean => {
    if (asked++ >= most || !fails({ settings, operations })) return false
    smallest = { settings, operations }
    return true
  }
  // without some of them, many at once first
  for (let size = life.operations.length; size >= 1;) {
    let removed = false
    for (let at = 0; at < smallest.operations.length;) {
      if (accept(smallest.operations.toSpliced(at, size))) removed = true
      else at += size
    }
    if (!removed || size > smallest.operations.length) size = Math.floor(size / 2)
  }
  accept(smallest.operations, 0)
  const simpler = [{ cut: 0 }, { held: false }, { who: 0 }, { which: 0 }, { size: 0 }, { variant: 0 }] as const
  for (let at = 0; at < smallest.operations.length; at++)
    for (const change of simpler) {
      const operation = smallest.operations[at]!
      const [[key, value]] = Object.entries(change) as [[keyof Operation, unknown]]
      if (operation[key] !== value) accept(smallest.operations.with(at, { ...operation, ...change }))
    }
  return smallest
}
