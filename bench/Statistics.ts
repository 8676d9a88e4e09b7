/** What repeated measurements come to, and how a figure is written. */

export interface Spread {
  readonly median: number
  readonly low: number
  readonly high: number
}

/** Of one value or more. The median of an even number of values is the mean of the middle two. */
export const spread = (values: ReadonlyArray<number>): Spread => {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = (sorted.length - 1) / 2
  return {
    median: (sorted[Math.floor(middle)]! + sorted[Math.ceil(middle)]!) / 2,
    low: sorted[0]!,
    high: sorted.at(-1)!
  }
}

/**
 * How many times `values` are `others`: each against the one that was measured next to it, so that a machine that gets
 * slower meanwhile slows both.
 */
export const ratio = (values: ReadonlyArray<number>, others: ReadonlyArray<number>): Spread =>
  spread(values.slice(0, others.length).map((value, n) => value / others[n]!))

/** Three significant digits, with commas between thousands: 0.284, 12.3, 4,010,000. */
export const figure = (value: number): string => {
  const rounded = Number(value.toPrecision(3))
  const digits = rounded === 0 ? 0 : Math.max(0, 2 - Math.floor(Math.log10(Math.abs(rounded))))
  return rounded.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits })
}

/** The median, and where there is more than one value, the least and the most of them. */
export const told = ({ high, low, median }: Spread): string =>
  low === high ? figure(median) : `${figure(median)} (${figure(low)}–${figure(high)})`
