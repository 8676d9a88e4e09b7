/** What is measured. */

/** What stands between the load's two ends, or is started. */
export type Program = "cc-proxy" | "baseline" | "relay" | "socat" | "nothing" | "bare server"

export type Load =
  /** One run of the generator, with these arguments and maybe more, through the program. */
  | { readonly kind: "through"; readonly args: ReadonlyArray<string> }
  /** So many VMs at rest, each with a connected shim, while the program's memory is read. */
  | { readonly kind: "at rest"; readonly vms: number }
  /** The program's start, up to its first answer. */
  | { readonly kind: "start" }
  /** The parts of that time. */
  | { readonly kind: "start's parts" }
  /** Two runs of the generator at once, through one daemon or one each. */
  | { readonly kind: "twice"; readonly daemons: 1 | 2; readonly args: ReadonlyArray<string> }

/** One line of a comparison. */
export interface Entry {
  readonly label: string
  readonly program: Program
  readonly load: Load
}

/** Things that are compared: they run in turn, over and over. */
export interface Scenario {
  readonly group: string
  readonly name: string
  readonly entries: ReadonlyArray<Entry>
}

export const labels = {
  proxy: "cc-proxy",
  relay: "node:net relay",
  socat: "socat",
  direct: "nothing between",
  goAgent: "cc-proxy, Go agent",
  idle: "cc-proxy beside 200 idle VMs",
  flood: "cc-proxy beside a flood",
  bare: "bare Node server",
  one: "one daemon",
  two: "two daemons"
} as const

/** What V8 takes to have seen enough of a mixed path, in seconds; a flood needs less. */
const warmup = ["--warmup", "1"] as const

const through = (label: string, program: Program, ...args: ReadonlyArray<string | number>): Entry => ({
  label,
  program,
  load: { kind: "through", args: args.map(String) }
})

const throughput = (
  mode: "stdout" | "stdin",
  payload: number,
  sessions: number,
  entries: (args: ReadonlyArray<string | number>) => ReadonlyArray<Entry>
): Scenario => ({
  group: mode,
  name: `${payload} × ${sessions}`,
  entries: entries([mode, "--payload", payload, "--sessions", sessions])
})

export const payloads = [64, 512, 4096, 10_228]
/** How many sessions at once the payload of 512 bytes is measured with. */
export const sessionCounts = [1, 4, 16, 64]
export const vmCounts = [1, 10, 100, 1000]
export const clientCounts = [1, 4, 16, 64]

const stdout = (payload: number, sessions: number) =>
  throughput("stdout", payload, sessions, (args) => [
    through(labels.proxy, "cc-proxy", ...args),
    through(labels.relay, "relay", ...args),
    through(labels.direct, "nothing", ...args),
    ...(sessions === 1 ? [through(labels.socat, "socat", ...args)] : [])
  ])

const stdin = (payload: number, sessions: number) =>
  throughput("stdin", payload, sessions, (args) => [
    through(labels.proxy, "cc-proxy", ...args),
    through(labels.goAgent, "cc-proxy", ...args, "--go"),
    through(labels.relay, "relay", ...args)
  ])

const ctl = (clients: number, vms: number): Scenario => ({
  group: "ctl",
  name: `${clients} × ${vms}`,
  entries: [through(labels.proxy, "cc-proxy", "ctl", "--clients", clients, "--vms", vms, ...warmup)]
})

export const all: ReadonlyArray<Scenario> = [
  ...payloads.flatMap((payload) => [stdout(payload, 1), stdout(payload, 16)]),
  ...sessionCounts.filter((count) => count !== 1 && count !== 16).map((count) => stdout(512, count)),
  {
    group: "stdout",
    name: "512 × 4, on each of 4 VMs",
    entries: [
      through(labels.proxy, "cc-proxy", "stdout", "--payload", 512, "--sessions", 4, "--vms", 4),
      through(labels.relay, "relay", "stdout", "--payload", 512, "--sessions", 16)
    ]
  },
  ...payloads.map((payload) => stdin(payload, 1)),
  stdin(4096, 16),
  {
    group: "echo",
    name: "64 bytes",
    entries: [
      through(labels.proxy, "cc-proxy", "echo", ...warmup),
      through(labels.relay, "relay", "echo", ...warmup),
      through(labels.idle, "cc-proxy", "echo", "--idle", 200, ...warmup),
      through(labels.flood, "cc-proxy", "echo", "--flood", "4096x4", ...warmup),
      through(labels.goAgent, "cc-proxy", "echo", "--go", ...warmup),
      through(labels.socat, "socat", "echo", ...warmup),
      through(labels.direct, "nothing", "echo", ...warmup)
    ]
  },
  ...vmCounts.map((vms) => ({
    group: "echo among VMs",
    name: String(vms),
    entries: [through(labels.proxy, "cc-proxy", "echo", "--idle", vms - 1, ...warmup)]
  })),
  ...clientCounts.map((clients) => ctl(clients, 1)),
  ctl(16, 4),
  ctl(64, 16),
  ...[1, 4].map((parallel) => ({
    group: "life cycles",
    name: String(parallel),
    entries: [through(labels.proxy, "cc-proxy", "churn", "--vms", parallel, ...warmup)]
  })),
  {
    group: "memory",
    name: "0",
    entries: [
      { label: labels.proxy, program: "cc-proxy", load: { kind: "at rest", vms: 0 } },
      { label: labels.bare, program: "bare server", load: { kind: "at rest", vms: 0 } }
    ]
  },
  ...vmCounts.map((vms): Scenario => ({
    group: "memory",
    name: String(vms),
    entries: [{ label: labels.proxy, program: "cc-proxy", load: { kind: "at rest", vms } }]
  })),
  {
    group: "start",
    name: "first answer",
    entries: [
      { label: labels.proxy, program: "cc-proxy", load: { kind: "start" } },
      { label: labels.bare, program: "bare server", load: { kind: "start" } }
    ]
  },
  {
    group: "start",
    name: "parts",
    entries: [
      { label: labels.proxy, program: "cc-proxy", load: { kind: "start's parts" } },
      { label: labels.bare, program: "bare server", load: { kind: "start's parts" } }
    ]
  },
  ...(
    [
      ["stdout 512 × 16, twice", ["stdout", "--payload", "512", "--sessions", "16"]],
      ["ctl, 16 clients, twice", ["ctl", "--clients", "16", ...warmup]]
    ] as const
  ).map(([name, args]): Scenario => ({
    group: "many cores",
    name,
    entries: [
      { label: labels.one, program: "cc-proxy", load: { kind: "twice", daemons: 1, args } },
      { label: labels.two, program: "cc-proxy", load: { kind: "twice", daemons: 2, args } }
    ]
  }))
]

export interface Plan {
  /** A group, or a group and the name of a scenario; all where it is absent. */
  readonly only?: string | undefined
  /** Whether another build of the daemon is measured beside each line that measures it. */
  readonly baseline: boolean
  /** Whether socat is there. */
  readonly socat: boolean
}

/** What is to be measured, in this order. */
export const plan = ({ baseline, only, socat }: Plan): ReadonlyArray<Scenario> =>
  all
    .filter(({ group, name }) => only === undefined || only === group || only === `${group} ${name}`)
    .map(({ entries, group, name }) => ({
      group,
      name,
      entries: entries
        .filter(({ program }) => program !== "socat" || socat)
        .flatMap((entry) =>
          baseline && entry.program === "cc-proxy"
            ? [entry, { label: `${entry.label} (baseline)`, program: "baseline", load: entry.load }]
            : [entry]
        )
    }))
