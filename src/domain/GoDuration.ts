/** Durations as Go writes them on a command line: `300ms`, `5s`, `1m30s`. Pure. */
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"

const nanosPerUnit: Readonly<Record<string, number>> = {
  ns: 1,
  us: 1e3,
  µs: 1e3,
  ms: 1e6,
  s: 1e9,
  m: 60e9,
  h: 3600e9
}

const whole = /^(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+$/
const term = /(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)/g

/** Longest duration taken, in hours: what a timer can wait for at once is about 24 days. */
const maxHours = 24 * 20

/** Reads a duration; none where it is not one, is not above zero, or is longer than 20 days. */
export const parse = (text: string): Option.Option<Duration.Duration> => {
  if (!whole.test(text)) return Option.none()
  let nanos = 0
  for (const [, number, unit] of text.matchAll(term)) nanos += Number(number) * nanosPerUnit[unit!]!
  return nanos >= 1 && nanos <= maxHours * nanosPerUnit["h"]!
    ? Option.some(Duration.nanos(BigInt(Math.round(nanos))))
    : Option.none()
}
