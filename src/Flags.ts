/** The daemon's flags, each once: read here, and told by `cli.ts`, which is loaded for usage and errors only. */
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import type * as Result from "effect/Result"
import * as ByteSize from "./domain/ByteSize.ts"
import * as GoArgs from "./domain/GoArgs.ts"
import * as GoDuration from "./domain/GoDuration.ts"
import * as LogLevel from "./domain/LogLevel.ts"
import { defaults } from "./services/Settings.ts"

// the build puts it in
declare const CC_PROXY_SOCKET: string

export interface Flag<A> {
  readonly name: string
  readonly alias?: string
  readonly description: string
  /** What the usage calls its value. A flag without is a switch: `true` where it is given. */
  readonly metavar?: string
  /** What its value has to be, for errors. */
  readonly expected: string
  readonly parse: (text: string) => Option.Option<A>
  /** What holds without the flag. */
  readonly standard: A
}

const filtered =
  (isValid: (text: string) => boolean) =>
  (text: string): Option.Option<string> =>
    isValid(text) ? Option.some(text) : Option.none()

/** What a value that is one of a few has to be. */
const oneOf = <const A extends string>(choices: ReadonlyArray<A>) => ({
  expected: choices.map((choice) => JSON.stringify(choice)).join(" | "),
  parse: (text: string) => Option.fromUndefinedOr(choices.find((choice) => choice === text))
})

const duration = (name: string, description: string, standard: Duration.Duration): Flag<Duration.Duration> => ({
  name,
  description: `${description} (default ${Duration.format(standard)})`,
  metavar: "DURATION",
  expected: "a duration such as 300ms, 5s or 1m30s",
  parse: GoDuration.parse,
  standard
})

/** A size of at least `least` bytes. */
const size = (name: string, description: string, standard: number, least = 1): Flag<number> => ({
  name,
  description: `${description} (default ${ByteSize.format(standard)})`,
  metavar: "SIZE",
  expected: `a size such as 262144, 512KiB or 1GiB, at least ${ByteSize.format(least)}`,
  parse: (text) => Option.filter(ByteSize.parse(text), (bytes) => bytes >= least),
  standard
})

const count = (name: string, description: string, standard: number): Flag<number> => ({
  name,
  description: `${description} (default ${standard})`,
  metavar: "N",
  expected: "a number above 0",
  parse: (text) => (/^\d{1,15}$/.test(text) && Number(text) > 0 ? Option.some(Number(text)) : Option.none()),
  standard
})

const text = <A extends string | undefined>(
  name: string,
  description: string,
  metavar: string,
  standard: A
): Flag<string | A> => ({
  name,
  description,
  metavar,
  expected: "a text that is not empty",
  parse: filtered((text) => text !== ""),
  standard
})

const log: Flag<LogLevel.Name> = {
  name: "log",
  alias: "v",
  description: `least severe level that is logged (default warn, or CC_PROXY_LOG_LEVEL) (choices: ${LogLevel.names.join(", ")})`,
  metavar: "LEVEL",
  ...oneOf(LogLevel.names),
  standard: "warn"
}

/** A pod's socket; absent in system mode. */
const uri: Flag<string | undefined> = {
  name: "uri",
  description: "serve one pod on unix://PATH, and exit when it has ended",
  metavar: "unix://PATH",
  expected: "unix:// and an absolute path",
  parse: (text) => (/^unix:\/\/\/./.test(text) ? Option.some(text.slice("unix://".length)) : Option.none()),
  standard: undefined
}

const ksmModes = ["initial", "off", "auto"] as const

const ksm: Flag<(typeof ksmModes)[number]> = {
  name: "ksm",
  description: `kernel same-page merging: leave as it is, turn off, or follow the VMs (accepted, without effect yet) (choices: ${ksmModes.join(", ")})`,
  metavar: "MODE",
  ...oneOf(ksmModes),
  standard: "auto"
}

const pprof: Flag<boolean> = {
  name: "pprof",
  description: "open V8's inspector: profiles, and a debugger",
  expected: "true or false",
  parse: (text) => Option.some(text === "true"),
  standard: false
}

const pprofPort: Flag<number> = {
  name: "pprof-port",
  description: "port of the inspector",
  metavar: "PORT",
  expected: "a port, 0 to 65535",
  parse: (text) => (/^\d{1,5}$/.test(text) && Number(text) <= 65_535 ? Option.some(Number(text)) : Option.none()),
  standard: 6060
}

/** Least bytes in memory for one direction of a process: a read's worth. */
const leastBuffer = 64 * 1024

/** In the order of the usage. */
export const flags = {
  log,
  socketPath: text("socket-path", "where clients connect", "PATH", CC_PROXY_SOCKET),
  uri,
  ksm,
  dialTimeout: duration("dial-timeout", "longest wait for a VM's sockets", defaults.dialTimeout),
  readyTimeout: duration("ready-timeout", "longest wait for an agent's READY", defaults.readyTimeout),
  ctlTimeout: duration("ctl-timeout", "longest wait for an agent's reply to a command", defaults.ctlTimeout),
  shimTimeout: duration("shim-timeout", "longest wait of a start for its shim", defaults.shimTimeout),
  processTimeout: duration("process-timeout", "longest wait of a signal for its process", defaults.processTimeout),
  frameTimeout: duration("frame-timeout", "longest silence inside a client's frame", defaults.frameTimeout),
  stopTimeout: duration("stop-timeout", "longest clean stop", defaults.stopTimeout),
  orphanTimeout: duration(
    "orphan-timeout",
    "how long a process that has ended waits for its shim",
    defaults.orphanTimeout
  ),
  maxConnections: count("max-connections", "most clients at once", defaults.maxConnections),
  maxVms: count("max-vms", "most VMs at once", defaults.maxVms),
  maxTokens: count("max-tokens", "most tokens of one command", defaults.maxTokens),
  maxVmTokens: count("max-vm-tokens", "most tokens of one VM at once", defaults.maxVmTokens),
  maxHyper: size("max-hyper", "largest payload of a Hyper command", defaults.maxHyper),
  maxCommand: size("max-command", "largest payload of another command, or of a log entry", defaults.maxCommand),
  maxStdin: size("max-stdin", "largest payload of a stdin frame", defaults.maxStdin),
  maxCtlCommand: size("max-ctl-command", "largest command to an agent", defaults.maxCtlCommand),
  maxCtlReply: size("max-ctl-reply", "largest reply of an agent", defaults.maxCtlReply),
  maxIoMessage: size("max-io-message", "largest message of an agent on io", defaults.maxIoMessage),
  logRate: count("log-rate", "log entries of one client a second, after as many at once", defaults.logRate),
  outboxLimit: size(
    "outbox",
    "output of a process that waits in memory for its shim",
    defaults.outboxLimit,
    leastBuffer
  ),
  stdinLimit: size("stdin-buffer", "stdin that waits in memory for its process", defaults.stdinLimit, leastBuffer),
  spoolLimit: size(
    "spool-limit",
    "what waits on disk of one process's output, and of its stdin; 0: nothing",
    defaults.spoolLimit,
    0
  ),
  spoolTotal: size("spool-total", "what waits on disk for all processes", defaults.spoolTotal),
  // without it, the first of two that can be used
  spoolDir: text<string | undefined>("spool-dir", "directory of what waits on disk", "PATH", undefined),
  // without it, systemd's runtime directory, or one beside the socket
  stateDir: text<string | undefined>("state-dir", "directory of what outlives the daemon", "PATH", undefined),
  pprof,
  pprofHost: text("pprof-host", "address of the inspector", "HOST", "localhost"),
  pprofPort
}

/** What the flags say, each under its key in `flags`. */
export type Config = { readonly [K in keyof typeof flags]: (typeof flags)[K]["standard"] }

const entries: ReadonlyArray<readonly [string, Flag<unknown>]> = Object.entries(flags)

const goFlags: GoArgs.Flags = {
  valued: new Set(entries.flatMap(([, { metavar, name }]) => (metavar === undefined ? [] : [name]))),
  booleans: new Set(["version", ...entries.flatMap(([, { metavar, name }]) => (metavar === undefined ? [name] : []))]),
  aliases: new Map(entries.flatMap(([, { alias, name }]) => (alias === undefined ? [] : [[alias, name]])))
}

/** A command line as `effect/cli` reads it. The last of a repeated flag wins, so what the environment says comes first. */
export const normalize = (
  args: ReadonlyArray<string>,
  environment: Readonly<Record<string, string | undefined>>
): Result.Result<ReadonlyArray<string>, GoArgs.FlagError> => {
  const level = environment["CC_PROXY_LOG_LEVEL"]
  return GoArgs.normalize([...(level ? [`-log=${level}`] : []), ...args], goFlags)
}

/** What a normalized command line says; nothing where it holds more than the daemon's flags, or a value that does not fit. */
export const read = (args: ReadonlyArray<string>): Config | undefined => {
  const config: Record<string, unknown> = {}
  for (const [key, { standard }] of entries) config[key] = standard
  for (const arg of args) {
    const entry = entries.find(([, { name }]) => arg.startsWith(`--${name}=`))
    if (entry === undefined) return undefined
    const [key, { name, parse }] = entry
    const value = parse(arg.slice(`--${name}=`.length))
    if (Option.isNone(value)) return undefined
    config[key] = value.value
  }
  return config as Config
}
