/** Line charts as SVG, readable on light and on dark ground. */
import { figure, type Spread } from "./Statistics.ts"

export interface Axis {
  /** What is shown, with its unit. */
  readonly label: string
  readonly scale: "linear" | "log"
}

export interface Series {
  readonly label: string
  /** In ascending order of `x`. */
  readonly points: ReadonlyArray<Spread & { readonly x: number }>
}

export interface Plot {
  readonly title: string
  /** One sentence for those who cannot see it. */
  readonly description: string
  readonly x: Axis
  readonly y: Axis
  readonly series: ReadonlyArray<Series>
}

// in units of the drawing, which a page scales
const width = 720
const left = 80
const right = 700
const bottom = 340
const rowHeight = 20

/** One colour for each series, on light and on dark ground; past the last they begin again, and dashes differ. */
const colours = [
  ["#0550ae", "#79c0ff"],
  ["#bc4c00", "#ffa657"],
  ["#116329", "#7ee787"],
  ["#8250df", "#d2a8ff"]
] as const
const dashes = ["none", "7 4", "2 4"]

const style = `
    text { fill: #1f2328 }
    .soft { fill: #59636e; font-size: 12px }
    .title { font-size: 16px; font-weight: 600 }
    .mid { text-anchor: middle }
    .end { text-anchor: end }
    .ground { fill: #ffffff }
    .grid { stroke: #d1d9e0 }
    .axis { stroke: #8c959f }
    .line { fill: none; stroke-width: 2 }
${colours.map(([light], n) => `    .s${n} { stroke: ${light} } .f${n} { fill: ${light} }`).join("\n")}
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc }
      .soft { fill: #a9b3bd }
      .ground { fill: #0d1117 }
      .grid { stroke: #30363d }
      .axis { stroke: #6e7681 }
${colours.map(([, dark], n) => `      .s${n} { stroke: ${dark} } .f${n} { fill: ${dark} }`).join("\n")}
    }`

const escaped = (text: string) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;")

/** 1, 2 or 5 times a power of ten, `step` or the next above. */
const rounded = (step: number) => {
  const power = 10 ** Math.floor(Math.log10(step))
  return power * [1, 2, 5, 10].find((factor) => factor * power >= step * 0.999)!
}

/** Where lines are drawn: about five of them from 0 on, or each power of ten around the values. */
export const ticks = (scale: Axis["scale"], low: number, high: number): ReadonlyArray<number> => {
  if (scale === "linear") {
    const step = rounded(high / 5)
    return Array.from({ length: Math.ceil(high / step - 0.001) + 1 }, (_, n) => n * step)
  }
  const first = Math.floor(Math.log10(low) + 0.001)
  const last = Math.ceil(Math.log10(high) - 0.001)
  return Array.from({ length: Math.max(last - first, 1) + 1 }, (_, n) => 10 ** (first + n))
}

/** Maps values to places between `start` and `end`. */
const place = ({ scale }: Axis, low: number, high: number, start: number, end: number) => {
  const of = scale === "log" ? Math.log10 : (value: number) => value
  return (value: number) => (start + ((of(value) - of(low)) / (of(high) - of(low) || 1)) * (end - start)).toFixed(1)
}

/** The picture. Values on a logarithmic axis are above 0. Whiskers show the least and the most. */
export const render = ({ description, series, title, x, y }: Plot): string => {
  const points = series.flatMap((one) => one.points)
  const xs = [...new Set(points.map((point) => point.x))].toSorted((a, b) => a - b)
  const lines = ticks(y.scale, Math.min(...points.map(({ low }) => low)), Math.max(...points.map(({ high }) => high)))
  const top = 50 + rowHeight * Math.ceil(series.length / 2) + 10
  const toX = place(x, xs[0]!, xs.at(-1)!, left + 30, right - 30)
  const toY = place(y, lines[0]!, lines.at(-1)!, bottom, top)
  const legend = series.map(({ label }, n) => {
    const [at, row] = [left + 310 * (n % 2), 50 + rowHeight * Math.floor(n / 2)]
    return (
      `  <line class="line s${n % colours.length}" stroke-dasharray="${dashes[n % dashes.length]}" x1="${at}" y1="${row}" x2="${at + 30}" y2="${row}"/>\n` +
      `  <text class="soft" x="${at + 38}" y="${row + 4}">${escaped(label)}</text>`
    )
  })
  const drawn = series.map(({ points }, n) => {
    const whiskers = points.map(
      (point) =>
        `  <line class="s${n % colours.length}" x1="${toX(point.x)}" y1="${toY(point.low)}" x2="${toX(point.x)}" y2="${toY(point.high)}"/>\n` +
        `  <circle class="f${n % colours.length}" cx="${toX(point.x)}" cy="${toY(point.median)}" r="4"/>`
    )
    const path = points.map((point) => `${toX(point.x)},${toY(point.median)}`).join(" ")
    return [
      `  <polyline class="line s${n % colours.length}" stroke-dasharray="${dashes[n % dashes.length]}" points="${path}"/>`,
      ...whiskers
    ].join("\n")
  })
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} 400" role="img" aria-labelledby="title desc" font-family="ui-sans-serif, system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif" font-size="14">`,
    `  <title id="title">${escaped(title)}</title>`,
    `  <desc id="desc">${escaped(description)}</desc>`,
    `  <style>${style}\n  </style>`,
    `  <rect class="ground" width="${width}" height="400" rx="6"/>`,
    `  <text class="title" x="${left}" y="28">${escaped(title)}</text>`,
    ...legend,
    ...lines.map(
      (tick) =>
        `  <line class="grid" x1="${left}" y1="${toY(tick)}" x2="${right}" y2="${toY(tick)}"/>\n` +
        `  <text class="soft end" x="${left - 8}" y="${Number(toY(tick)) + 4}">${figure(tick)
          .replace(/(\.\d*?)0+$/, "$1")
          .replace(/\.$/, "")}</text>`
    ),
    ...xs.map(
      (tick) => `  <text class="soft mid" x="${toX(tick)}" y="${bottom + 20}">${tick.toLocaleString("en-US")}</text>`
    ),
    `  <line class="axis" x1="${left}" y1="${bottom}" x2="${right}" y2="${bottom}"/>`,
    `  <text class="mid" x="${(left + right) / 2}" y="${bottom + 46}">${escaped(x.label)}</text>`,
    `  <text class="mid" transform="translate(20 ${(top + bottom) / 2}) rotate(-90)">${escaped(y.label)}</text>`,
    ...drawn,
    `</svg>\n`
  ].join("\n")
}
