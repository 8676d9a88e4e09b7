/** The whole command line, by `effect/cli`: usage, errors, the demonstration, and daemons whose spans a collector gets. */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
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
import * as Flags from "./Flags.ts"
import * as Launch from "./Launch.ts"
import * as OtlpTracing from "./layers/OtlpTracing.ts"

// the build puts it in
declare const CC_PROXY_VERSION: string

const described = <A>({ alias, description, expected, metavar, name, parse, standard }: Flags.Flag<A>): Flag.Flag<A> =>
  (metavar === undefined
    ? (Flag.Boolean(name) as Flag.Flag<unknown> as Flag.Flag<A>)
    : Flag.String(name).pipe(
        Flag.withMetavar(metavar),
        Flag.filterMap(parse, () => expected)
      )
  ).pipe(
    Flag.withDescription(description),
    (flag) => (alias === undefined ? flag : Flag.withAlias(flag, alias)),
    Flag.withDefault(standard)
  )

const flags = Object.fromEntries(
  Object.entries<Flags.Flag<unknown>>(Flags.flags).map(([key, flag]) => [key, described(flag)])
) as { readonly [K in keyof Flags.Config]: Flag.Flag<Flags.Config[K]> }

const daemon = Command.make("cc-proxy", flags, (config) =>
  Launch.run(config, OtlpTracing.layer({ version: CC_PROXY_VERSION, logged: Launch.logsCommands(config) }))
).pipe(Command.withDescription("Lets OCI runtimes and shims share the hyperstart agents of many VMs."))

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

const args = Flags.normalize(process.argv.slice(2), process.env)

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

/** The status to exit with. The presenter has told what is wrong with a command line. */
const exitCode = (exit: Exit.Exit<unknown, unknown>): number => {
  const error: unknown = Option.getOrUndefined(Exit.findErrorOption(exit))
  if (error instanceof GoArgs.FlagError) return 2
  if (CliError.isCliError(error)) return error._tag === "ShowHelp" && error.errors.length === 0 ? 0 : 2
  return Launch.exitCode(exit)
}

program.pipe(
  Effect.provide([
    NodeServices.layer,
    CliConfig.layer({ builtIns: [GlobalFlag.Help, Version as unknown as GlobalFlag.BuiltIn] }),
    CliOutput.layerPresenter(presenter)
  ]),
  NodeRuntime.runMain({ disableErrorReporting: true, teardown: (exit) => process.exit(exitCode(exit)) })
)
