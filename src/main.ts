/** Flags and environment in, one layer launched: the only file that runs an effect. */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Cause from "effect/Cause"
import * as Console from "effect/Console"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Argument from "effect/cli/Argument"
import * as CliConfig from "effect/cli/CliConfig"
import * as CliError from "effect/cli/CliError"
import * as CliOutput from "effect/cli/CliOutput"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as GlobalFlag from "effect/cli/GlobalFlag"
import * as GoArgs from "./domain/GoArgs.ts"
import * as GoDuration from "./domain/GoDuration.ts"
import * as LogLevel from "./domain/LogLevel.ts"
import * as Daemon from "./layers/Daemon.ts"
import * as Inspector from "./layers/Inspector.ts"
import * as OtlpTracing from "./layers/OtlpTracing.ts"
import * as StderrLog from "./layers/StderrLog.ts"
import * as SystemLog from "./layers/SystemLog.ts"
import * as UnixListener from "./layers/UnixListener.ts"
import { defaults, type Settings } from "./services/Settings.ts"

// the build puts these in
declare const CC_PROXY_VERSION: string
declare const CC_PROXY_SOCKET: string

const duration = (name: string, description: string, standard: Duration.Duration) =>
  Flag.String(name).pipe(
    Flag.withDescription(`${description} (default ${Duration.format(standard)})`),
    Flag.withMetavar("DURATION"),
    Flag.filterMap(GoDuration.parse, () => "a duration such as 300ms, 5s or 1m30s"),
    Flag.withDefault(standard)
  )

const logLevel = Flag.Literals("log", LogLevel.names).pipe(
  Flag.withDescription("least severe level that is logged (default warn, or CC_PROXY_LOG_LEVEL)"),
  Flag.withAlias("v"),
  Flag.withMetavar("LEVEL"),
  Flag.withDefault("warn" as const)
)

const flags = {
  log: logLevel,
  socketPath: Flag.String("socket-path").pipe(
    Flag.withDescription("where clients connect"),
    Flag.withMetavar("PATH"),
    Flag.withDefault(CC_PROXY_SOCKET)
  ),
  uri: Flag.String("uri").pipe(
    Flag.withDescription("serve one pod on unix://PATH, and exit when it has ended"),
    Flag.withMetavar("unix://PATH"),
    Flag.filterMap(
      (text) => (/^unix:\/\/\/./.test(text) ? Option.some(text.slice("unix://".length)) : Option.none()),
      () => "unix:// and an absolute path"
    ),
    Flag.optional
  ),
  ksm: Flag.Literals("ksm", ["initial", "off", "auto"]).pipe(
    Flag.withDescription(
      "kernel same-page merging: leave as it is, turn off, or follow the VMs (accepted, without effect yet)"
    ),
    Flag.withMetavar("MODE"),
    Flag.withDefault("auto" as const)
  ),
  dialTimeout: duration("dial-timeout", "longest wait for a VM's sockets", defaults.dialTimeout),
  readyTimeout: duration("ready-timeout", "longest wait for an agent's READY", defaults.readyTimeout),
  ctlTimeout: duration("ctl-timeout", "longest wait for an agent's reply to a command", defaults.ctlTimeout),
  shimTimeout: duration("shim-timeout", "longest wait of a start for its shim", defaults.shimTimeout),
  processTimeout: duration("process-timeout", "longest wait of a signal for its process", defaults.processTimeout),
  frameTimeout: duration("frame-timeout", "longest silence inside a client's frame", defaults.frameTimeout),
  stopTimeout: duration("stop-timeout", "longest clean stop", defaults.stopTimeout),
  pprof: Flag.Boolean("pprof").pipe(
    Flag.withDescription("open V8's inspector: profiles, and a debugger"),
    Flag.withDefault(false)
  ),
  pprofHost: Flag.String("pprof-host").pipe(
    Flag.withDescription("address of the inspector"),
    Flag.withMetavar("HOST"),
    Flag.withDefault("localhost")
  ),
  pprofPort: Flag.Int("pprof-port").pipe(
    Flag.withDescription("port of the inspector"),
    Flag.withMetavar("PORT"),
    Flag.filter(
      (port) => port >= 0 && port <= 65535,
      () => "a port, 0 to 65535"
    ),
    Flag.withDefault(6060)
  )
}

const goFlags: GoArgs.Flags = {
  valued: new Set([
    "log",
    "socket-path",
    "uri",
    "ksm",
    "dial-timeout",
    "ready-timeout",
    "ctl-timeout",
    "shim-timeout",
    "process-timeout",
    "frame-timeout",
    "stop-timeout",
    "pprof-host",
    "pprof-port"
  ]),
  booleans: new Set(["pprof", "version"]),
  aliases: new Map([["v", "log"]])
}

/** Exits all the same once a clean stop has taken too long: a client that does not read must not keep the daemon alive. */
const boundStop = (settings: Settings) =>
  Effect.sync(() => {
    for (const signal of ["SIGTERM", "SIGINT"] as const)
      process.once(signal, () => {
        setTimeout(() => {
          const after = Duration.format(settings.stopTimeout)
          process.stderr.write(`${StderrLog.notice("the clean stop took too long: exiting all the same", { after })}\n`)
          process.exit(0)
        }, Duration.toMillis(settings.stopTimeout)).unref()
      })
  })

const daemon = Command.make("cc-proxy", flags, (config) => {
  const pod = Option.isSome(config.uri)
  const settings: Settings = { ...defaults, ...config, debug: config.log === "debug" }
  return Effect.gen(function* () {
    yield* boundStop(settings)
    const fd = yield* UnixListener.activated(process.env, process.pid)
    const socketPath = Option.getOrElse(config.uri, () => config.socketPath)
    yield* Daemon.run({ settings, socketPath, fd, pod })
  }).pipe(
    Effect.provide(
      (config.pprof ? Inspector.layer({ host: config.pprofHost, port: config.pprofPort }) : Layer.empty).pipe(
        Layer.provideMerge(
          OtlpTracing.layer({ version: CC_PROXY_VERSION, logged: config.log === "debug" || config.log === "info" })
        ),
        Layer.provideMerge(pod ? SystemLog.layer({ level: config.log }) : StderrLog.layer({ level: config.log }))
      )
    )
  )
}).pipe(Command.withDescription("Lets OCI runtimes and shims share the hyperstart agents of many VMs."))

const demo = Command.make(
  "demo",
  {
    interactive: Flag.Boolean("interactive").pipe(
      Flag.withAlias("i"),
      Flag.withDescription("hand stdin on, even where it is a terminal"),
      Flag.withDefault(false)
    ),
    terminal: Flag.Boolean("tty").pipe(
      Flag.withAlias("t"),
      Flag.withDescription("give the command our terminal"),
      Flag.withDefault(false)
    ),
    command: Argument.String("command").pipe(
      Argument.withDescription(
        "runs in a simulated VM, with our stdin, stdout, stderr and signals; without a command, a guided tour"
      ),
      Argument.variadic()
    )
  },
  (config) =>
    Effect.flatMap(
      Effect.promise(() => import("./demo/Demo.ts")),
      ({ run }) => run(config)
    )
).pipe(Command.withDescription("Shows the daemon at work on real processes, with a simulated VM."))

const Version = GlobalFlag.Action({
  flag: Flag.Boolean("version").pipe(Flag.withDescription("print the version")),
  run: (_, { version }) => Console.log(`cc-proxy version ${version}`)
})

const level = process.env["CC_PROXY_LOG_LEVEL"]

// the last of a repeated flag wins, so what the environment says comes first
const args = GoArgs.normalize([...(level ? [`-log=${level}`] : []), ...process.argv.slice(2)], goFlags)

/** Errors, and the usage that goes with them, belong to stderr; what was asked for, to stdout. */
const presenter: CliOutput.Presenter = {
  present: (event) =>
    Effect.gen(function* () {
      const formatter = yield* CliOutput.Formatter
      switch (event._tag) {
        case "Version":
          return
        case "Help":
          return yield* (Result.isSuccess(args) ? Console.log : Console.error)(formatter.formatHelpDoc(event.helpDoc))
        case "InvalidInvocation":
          yield* Console.error(formatter.formatErrors(event.errors))
          return yield* Console.error(formatter.formatHelpDoc(event.helpDoc))
      }
    })
}

const main = Command.runWith(daemon.pipe(Command.withSubcommands([demo])), { version: CC_PROXY_VERSION })

const program = Effect.gen(function* () {
  if (Result.isSuccess(args)) return yield* main(args.success)
  yield* Console.error(`cc-proxy: ${args.failure.message}\n`)
  yield* main(["--help"])
  return yield* args.failure
})

/** Tells why on stderr, where nobody else has. */
const exitCode = (exit: Exit.Exit<unknown, unknown>): number => {
  if (Exit.isSuccess(exit)) return Number(process.exitCode ?? 0) // the demo ends with its command's
  if (Cause.hasInterruptsOnly(exit.cause)) return 0
  const error: unknown = Option.getOrUndefined(Exit.findErrorOption(exit))
  if (error instanceof GoArgs.FlagError) return 2
  if (CliError.isCliError(error)) return error._tag === "ShowHelp" && error.errors.length === 0 ? 0 : 2
  process.stderr.write(`cc-proxy: ${error instanceof Error ? error.message : Cause.pretty(exit.cause)}\n`)
  return 1
}

program.pipe(
  Effect.provide([
    NodeServices.layer,
    CliConfig.layer({ builtIns: [GlobalFlag.Help, Version as unknown as GlobalFlag.BuiltIn] }),
    CliOutput.layerPresenter(presenter)
  ]),
  NodeRuntime.runMain({
    disableErrorReporting: true,
    // exits for itself: clients that have not closed their end yet would keep the event loop alive
    teardown: (exit) => process.exit(exitCode(exit))
  })
)
