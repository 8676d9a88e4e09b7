/** Sizes as they stand on a command line: `262144`, `512KiB`, `256M`. Pure. */
import * as Option from "effect/Option"

/** Bytes in each unit, the largest first. */
const units: ReadonlyArray<readonly [letter: string, bytes: number]> = [
  ["G", 2 ** 30],
  ["M", 2 ** 20],
  ["K", 2 ** 10]
]

/**
 * Reads a size in bytes; none where it is not one, or no safe integer. K, M and G are powers of 1024, whatever their case and
 * whether `B` or `iB` follows.
 */
export const parse = (text: string): Option.Option<number> => {
  const parts = /^(\d+)(?:([kmg])(?:i?b)?)?$/i.exec(text)
  if (parts === null) return Option.none()
  const letter = parts[2]?.toUpperCase()
  const size = Number(parts[1]) * (units.find(([name]) => name === letter)?.[1] ?? 1)
  return Number.isSafeInteger(size) ? Option.some(size) : Option.none()
}

/** Writes a size so that `parse` reads it: in the largest unit of which it is a multiple. */
export const format = (size: number): string => {
  const unit = size === 0 ? undefined : units.find(([, bytes]) => size % bytes === 0)
  return unit === undefined ? String(size) : `${size / unit[1]}${unit[0]}iB`
}
