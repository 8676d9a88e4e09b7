/** What the document says about results: generated tables and plots. */
import * as Markdown from "./Markdown.ts"
import * as Plot from "./Plot.ts"
import { clientCounts, labels, payloads, sessionCounts, vmCounts } from "./Scenarios.ts"
import { parts } from "./StartParts.ts"
import { figure, ratio, spread, told } from "./Statistics.ts"

/** All that was measured for one line of a comparison; `figures` are told in Measure.ts, one value for each run. */
export interface Result {
  readonly group: string
  readonly scenario: string
  readonly label: string
  readonly figures: Readonly<Record<string, ReadonlyArray<number>>>
}

/** What was measured, where and when. */
export interface Results {
  readonly date: string
  readonly repeats: number
  /** What it ran on, in pairs of a name and a text. */
  readonly machine: ReadonlyArray<readonly [string, string]>
  readonly results: ReadonlyArray<Result>
}

type Values = ReadonlyArray<number> | undefined

const unique = (texts: ReadonlyArray<string>) => [...new Set(texts)]

/** Questions to the results. */
const ask = ({ results }: Results) => {
  const values = (group: string, scenario: string, label: string, name: string): Values =>
    results.find((one) => one.group === group && one.scenario === scenario && one.label === label)?.figures[name]
  return {
    values,
    scenarios: (group: string) => unique(results.filter((one) => one.group === group).map(({ scenario }) => scenario)),
    labels: (group: string) => unique(results.filter((one) => one.group === group).map(({ label }) => label))
  }
}

const cell = (values: Values, scale = 1) =>
  values === undefined ? "" : told(spread(values.map((value) => value * scale)))

const times = (values: Values, others: Values) =>
  values === undefined || others === undefined ? "" : told(ratio(values, others))

interface Column {
  readonly title: string
  readonly of: (row: string) => string
}

/** A table with a line for each of `rows`, without the columns in which nothing was measured. */
const tableOf = (first: string, rows: ReadonlyArray<string>, columns: ReadonlyArray<Column>) => {
  const filled = columns.filter(({ of }) => rows.some((row) => of(row) !== ""))
  return filled.length === 0
    ? undefined
    : Markdown.table(
        [{ title: first, align: "left" }, ...filled.map(({ title }) => ({ title, align: "right" as const }))],
        rows.map((row) => [row, ...filled.map(({ of }) => of(row) || "-")])
      )
}

const baseline = (label: string) => `${label} (baseline)`

const throughput = (results: Results, mode: "stdout" | "stdin") => {
  const { scenarios, values } = ask(results)
  const column = (title: string, label: string, name: string): Column => ({
    title,
    of: (row) => cell(values(mode, row, label, name))
  })
  const against = (title: string, label: string, other: string): Column => ({
    title,
    of: (row) => times(values(mode, row, label, "mbPerSecond"), values(mode, row, other, "mbPerSecond"))
  })
  return tableOf("bytes × sessions", scenarios(mode), [
    column(mode === "stdin" ? "C agent MB/s" : "cc-proxy MB/s", labels.proxy, "mbPerSecond"),
    column("Go agent MB/s", labels.goAgent, "mbPerSecond"),
    column("relay MB/s", labels.relay, "mbPerSecond"),
    mode === "stdin"
      ? against("Go agent / relay", labels.goAgent, labels.relay)
      : against("cc-proxy / relay", labels.proxy, labels.relay),
    column("baseline MB/s", baseline(labels.proxy), "mbPerSecond"),
    against("cc-proxy / baseline", labels.proxy, baseline(labels.proxy)),
    column("Go agent, baseline MB/s", baseline(labels.goAgent), "mbPerSecond"),
    column("socat MB/s", labels.socat, "mbPerSecond"),
    column("nothing MB/s", labels.direct, "mbPerSecond"),
    column(mode === "stdin" ? "C agent µs" : "cc-proxy µs", labels.proxy, "cpuMicros"),
    column("Go agent µs", labels.goAgent, "cpuMicros"),
    column("baseline µs", baseline(labels.proxy), "cpuMicros"),
    column("relay µs", labels.relay, "cpuMicros")
  ])
}

const latency = (of: (row: string, name: string) => Values, ...more: ReadonlyArray<Column>): ReadonlyArray<Column> => [
  { title: "p50 µs", of: (row) => cell(of(row, "p50Micros")) },
  { title: "p99 µs", of: (row) => cell(of(row, "p99Micros")) },
  { title: "slowest µs", of: (row) => cell(of(row, "maxMicros")) },
  ...more
]

const echo = (results: Results) => {
  const { labels: lines, values } = ask(results)
  const of = (row: string, name: string) => values("echo", "64 bytes", row, name)
  return tableOf(
    "64 bytes there and back",
    lines("echo"),
    latency(
      of,
      { title: "p50 / relay", of: (row) => times(of(row, "p50Micros"), of(labels.relay, "p50Micros")) },
      { title: "p99 / relay", of: (row) => times(of(row, "p99Micros"), of(labels.relay, "p99Micros")) },
      { title: "CPU µs", of: (row) => (row.startsWith(labels.flood) ? "" : cell(of(row, "cpuMicros"))) }
    )
  )
}

/** A group with one line for each pair of a scenario and a build of the daemon. */
const perScenario = (
  results: Results,
  group: string,
  first: string,
  columns: (of: (row: string, name: string) => Values) => ReadonlyArray<Column>
) => {
  const { labels: lines, scenarios, values } = ask(results)
  const rows = new Map<string, readonly [string, string]>()
  for (const scenario of scenarios(group))
    for (const label of lines(group)) {
      if (results.results.some((one) => one.group === group && one.scenario === scenario && one.label === label))
        rows.set(label === labels.proxy ? scenario : `${scenario}, ${label}`, [scenario, label])
    }
  return tableOf(
    first,
    [...rows.keys()],
    columns((row, name) => values(group, ...rows.get(row)!, name))
  )
}

const perSecond = (of: (row: string, name: string) => Values): Column => ({
  title: "per second",
  of: (row) => cell(of(row, "perSecond"))
})
const cpu = (of: (row: string, name: string) => Values): Column => ({
  title: "CPU µs each",
  of: (row) => cell(of(row, "cpuMicros"))
})

const memory = (results: Results) =>
  perScenario(results, "memory", "VMs at rest", (of) => {
    const { values } = ask(results)
    return [
      { title: "resident MB", of: (row) => cell(of(row, "residentMB")) },
      { title: "anonymous MB", of: (row) => cell(of(row, "anonymousMB")) },
      {
        title: "kB for each VM",
        of: (row) => {
          const [vms, label = labels.proxy] = row.split(", ")
          const none = values("memory", "0", label, "residentMB")
          const some = of(row, "residentMB")
          return Number(vms) < 100 || none === undefined || some === undefined
            ? ""
            : figure(((spread(some).median - spread(none).median) / Number(vms)) * 1000)
        }
      },
      { title: "CPU, % of a core", of: (row) => cell(of(row, "cores"), 100) }
    ]
  })

const start = (results: Results) => {
  const { labels: lines, values } = ask(results)
  const of = (row: string, name: string) => values("start", "first answer", row, name)
  return tableOf("from fork to the first answer", lines("start"), [
    { title: "median ms", of: (row) => cell(of(row, "p50Micros"), 1e-3) },
    { title: "slowest ms", of: (row) => cell(of(row, "maxMicros"), 1e-3) },
    {
      title: "/ bare Node server",
      of: (row) => (row === labels.bare ? "" : times(of(row, "p50Micros"), of(labels.bare, "p50Micros")))
    }
  ])
}

const startParts = (results: Results) => {
  const { values } = ask(results)
  const keys: ReadonlyMap<string, string> = new Map(Object.entries(parts).map(([key, title]) => [title, key]))
  const column = (label: string): Column => ({
    title: `${label} ms`,
    of: (row) => cell(values("start", "parts", label, keys.get(row)!), 1e-3)
  })
  return tableOf("part", [...keys.keys()], [column(labels.proxy), column(labels.bare)])
}

const manyCores = (results: Results) => {
  const { scenarios, values } = ask(results)
  const column = (label: string, name: string, title: string): Column => ({
    title,
    of: (row) => cell(values("many cores", row, label, name))
  })
  return tableOf("load", scenarios("many cores"), [
    column(labels.one, "mbPerSecond", "one daemon MB/s"),
    column(labels.two, "mbPerSecond", "two daemons MB/s"),
    column(labels.one, "perSecond", "one daemon, per second"),
    column(labels.two, "perSecond", "two daemons, per second"),
    {
      title: "two / one",
      of: (row) =>
        times(values("many cores", row, labels.two, "perSecond"), values("many cores", row, labels.one, "perSecond"))
    }
  ])
}

/** The few figures that matter most, and what they should be; where one of them is missing, none. */
const summary = (results: Results) => {
  const { values } = ask(results)
  const echoed = (label: string, name: string) => values("echo", "64 bytes", label, name)
  const quiet = labels.proxy
  const began = (label: string) => values("start", "first answer", label, "p50Micros")
  const resident = (vms: string) => values("memory", vms, labels.proxy, "residentMB")
  const mb = (mode: string, label: string) => values(mode, "4096 × 1", label, "mbPerSecond")
  const lines: ReadonlyArray<readonly [string, string, string]> = [
    ["stdout, 4,096 bytes, MB/s", cell(mb("stdout", labels.proxy)), ""],
    ["… as a multiple of a relay's", times(mb("stdout", labels.proxy), mb("stdout", labels.relay)), ""],
    ["stdin, 4,096 bytes, Go agent, MB/s", cell(mb("stdin", labels.goAgent)), ""],
    [
      "echo p50, as a multiple of a relay's",
      times(echoed(quiet, "p50Micros"), echoed(labels.relay, "p50Micros")),
      "≤ 1.3"
    ],
    [
      "echo p99, as a multiple of a relay's",
      times(echoed(quiet, "p99Micros"), echoed(labels.relay, "p99Micros")),
      "≤ 1.3"
    ],
    [
      "echo p50 beside 200 idle VMs / without",
      times(echoed(labels.idle, "p50Micros"), echoed(quiet, "p50Micros")),
      "1"
    ],
    ["echo p99 beside a flood / without", times(echoed(labels.flood, "p99Micros"), echoed(quiet, "p99Micros")), "≤ 3"],
    ["commands per second, 16 clients", cell(values("ctl", "16 × 1", quiet, "perSecond")), ""],
    ["life cycles of a VM per second, 1 at a time", cell(values("life cycles", "1", quiet, "perSecond")), ""],
    ["start, ms", cell(began(quiet), 1e-3), ""],
    ["start, as a multiple of a bare Node server's", times(began(quiet), began(labels.bare)), "≤ 2.5"],
    ["memory without VMs, MB", cell(resident("0")), ""],
    ["memory with 1,000 VMs at rest, MB", cell(resident("1000")), ""]
  ]
  return lines.some(([, value]) => value === "")
    ? undefined
    : Markdown.table(
        [
          { title: "what", align: "left" },
          { title: "measured", align: "right" },
          { title: "aim", align: "right" }
        ],
        lines.map(([what, value, aim]) => [what, value, aim || "-"])
      )
}

/** The generated parts of docs/performance.md, by the name of their markers; those of which nothing was measured are absent. */
export const sections = (results: Results): ReadonlyMap<string, string> => {
  const tables: Readonly<Record<string, string | undefined>> = {
    summary: summary(results),
    stdout: throughput(results, "stdout"),
    stdin: throughput(results, "stdin"),
    echo: echo(results),
    "echo among VMs": perScenario(results, "echo among VMs", "VMs", (of) => latency(of, cpu(of))),
    ctl: perScenario(results, "ctl", "clients × VMs", (of) => [perSecond(of), ...latency(of), cpu(of)]),
    "life cycles": perScenario(results, "life cycles", "at a time", (of) => [perSecond(of), ...latency(of), cpu(of)]),
    memory: memory(results),
    start: start(results),
    "start's parts": startParts(results),
    "many cores": manyCores(results)
  }
  const note =
    results.repeats === 1
      ? `One run, on ${results.date}.`
      : `Medians of ${results.repeats} runs, and the least and the most of them; ${results.date}.`
  const sections = new Map([["machine", results.machine.map(([name, text]) => `- ${name}: ${text}`).join("\n")]])
  for (const [name, table] of Object.entries(tables)) if (table !== undefined) sections.set(name, `${table}\n\n${note}`)
  return sections
}

interface PlotPlan extends Omit<Plot.Plot, "series"> {
  readonly file: string
  readonly xs: ReadonlyArray<number>
  readonly series: ReadonlyArray<{
    readonly label: string
    readonly of: (x: number) => Values
  }>
}

/** The plots, by file name; those of which fewer than two points were measured are absent. */
export const plots = (results: Results): ReadonlyMap<string, string> => {
  const { values } = ask(results)
  const logarithmic = (label: string): Plot.Axis => ({ label, scale: "log" })
  const linear = (label: string): Plot.Axis => ({ label, scale: "linear" })
  const stdout = (label: string, sessions: number, name: string) => (payload: number) =>
    values("stdout", `${payload} × ${sessions}`, label, name)
  const among = (name: string) => (vms: number) => values("echo among VMs", String(vms), labels.proxy, name)
  const called = (name: string) => (clients: number) => values("ctl", `${clients} × 1`, labels.proxy, name)
  const plans: ReadonlyArray<PlotPlan> = [
    {
      file: "payload-cpu.svg",
      title: "What a message of output costs",
      description: "CPU time per message of output, against the size of the message.",
      x: logarithmic("bytes in a message"),
      y: logarithmic("CPU time, µs per message"),
      xs: payloads,
      series: [
        { label: "cc-proxy, 1 session", of: stdout(labels.proxy, 1, "cpuMicros") },
        { label: "relay, 1 connection", of: stdout(labels.relay, 1, "cpuMicros") },
        { label: "cc-proxy, 16 sessions", of: stdout(labels.proxy, 16, "cpuMicros") },
        { label: "relay, 16 connections", of: stdout(labels.relay, 16, "cpuMicros") }
      ]
    },
    {
      file: "payload-throughput.svg",
      title: "Output carried in a second",
      description: "Throughput of output, against the size of a message.",
      x: logarithmic("bytes in a message"),
      y: logarithmic("MB/s"),
      xs: payloads,
      series: [
        { label: "cc-proxy, 1 session", of: stdout(labels.proxy, 1, "mbPerSecond") },
        { label: "relay, 1 connection", of: stdout(labels.relay, 1, "mbPerSecond") },
        { label: "cc-proxy, 16 sessions", of: stdout(labels.proxy, 16, "mbPerSecond") },
        { label: "nothing between, 1 connection", of: stdout(labels.direct, 1, "mbPerSecond") }
      ]
    },
    {
      file: "sessions.svg",
      title: "Sessions of one VM that flood at once",
      description: "CPU time per message of 512 bytes, against the number of sessions that send at once.",
      x: logarithmic("sessions"),
      y: linear("CPU time, µs per message"),
      xs: sessionCounts,
      series: [
        { label: "cc-proxy", of: (count) => values("stdout", `512 × ${count}`, labels.proxy, "cpuMicros") },
        {
          label: "relay, as many connections",
          of: (count) => values("stdout", `512 × ${count}`, labels.relay, "cpuMicros")
        }
      ]
    },
    {
      file: "vms-echo.svg",
      title: "An echo among other VMs",
      description: "Time of a round trip of 64 bytes, against the number of VMs, of which all others are at rest.",
      x: logarithmic("VMs"),
      y: linear("round trip, µs"),
      xs: vmCounts,
      series: [
        { label: "median", of: among("p50Micros") },
        { label: "99th percentile", of: among("p99Micros") }
      ]
    },
    {
      file: "vms-memory.svg",
      title: "Memory for VMs at rest",
      description: "Resident memory of the daemon, against the number of VMs, each with a connected shim.",
      x: logarithmic("VMs"),
      y: linear("resident memory, MB"),
      xs: vmCounts,
      series: [
        { label: "all", of: (vms) => values("memory", String(vms), labels.proxy, "residentMB") },
        { label: "anonymous", of: (vms) => values("memory", String(vms), labels.proxy, "anonymousMB") }
      ]
    },
    {
      file: "clients.svg",
      title: "Commands carried in a second",
      description: "Hyper commands per second to one VM, against the number of clients that send at once.",
      x: logarithmic("clients of one VM"),
      y: linear("commands per second"),
      xs: clientCounts,
      series: [{ label: "cc-proxy", of: called("perSecond") }]
    },
    {
      file: "clients-latency.svg",
      title: "How long a command takes",
      description: "Time of a Hyper command to one VM, against the number of clients that send at once.",
      x: logarithmic("clients of one VM"),
      y: logarithmic("µs"),
      xs: clientCounts,
      series: [
        { label: "median", of: called("p50Micros") },
        { label: "99th percentile", of: called("p99Micros") }
      ]
    }
  ]
  const files = new Map<string, string>()
  for (const { file, series, xs, ...plan } of plans) {
    const drawn = series.map(({ label, of }) => ({
      label,
      points: xs.flatMap((x) => {
        const measured = of(x)
        return measured === undefined ? [] : [{ x, ...spread(measured) }]
      })
    }))
    if (drawn.every(({ points }) => points.length > 1)) files.set(file, Plot.render({ ...plan, series: drawn }))
  }
  return files
}
