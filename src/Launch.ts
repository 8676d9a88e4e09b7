/** The daemon as its flags want it, and what its end means. */
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Path from "node:path"
import type { Config } from "./Flags.ts"
import * as Daemon from "./layers/Daemon.ts"
import * as Inspector from "./layers/Inspector.ts"
import * as StderrLog from "./layers/StderrLog.ts"
import * as Succession from "./layers/Succession.ts"
import * as SystemLog from "./layers/SystemLog.ts"
import * as UnixListener from "./layers/UnixListener.ts"
import type { ListenError } from "./services/Listener.ts"
import { defaults, type Settings } from "./services/Settings.ts"

// the build puts it in
declare const CC_PROXY_STATE: string

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

/** Whether the log shows the records of commands. */
export const logsCommands = ({ log }: Config): boolean => log === "debug" || log === "info"

/** Where the state is: as told, in the directory that systemd has made for it, or beside the socket. */
const stateDirectory = (told: string | undefined, socketPath: string, pod: boolean) => {
  // a pod's daemon has its environment from whatever has started its runtime
  const runtime = pod ? undefined : process.env["RUNTIME_DIRECTORY"]?.split(":")[0]
  const given = told ?? (runtime === "" ? undefined : runtime)
  return { directory: given ?? `${socketPath}.state`, owned: given === undefined }
}

/** Runs the daemon until it is interrupted or its pod has ended. `tracing` may log. */
export const run = (
  config: Config,
  tracing: Layer.Layer<never>
): Effect.Effect<void, ListenError | Inspector.InspectorError> => {
  const pod = config.uri !== undefined
  const settings: Settings = { ...defaults, ...config, debug: config.log === "debug" }
  const predecessor = Succession.place(process.env)
  const inspector = { host: config.pprofHost, port: config.pprofPort }
  const inspecting = !config.pprof
    ? Layer.empty
    : predecessor === undefined
      ? Inspector.layer(inspector)
      : Inspector.layerLater(inspector)
  return Effect.gen(function* () {
    yield* boundStop(settings)
    const { listening, stored } = yield* UnixListener.activated(process.env, process.pid)
    const socketPath = config.uri ?? config.socketPath
    const spoolParents =
      config.spoolDir === undefined
        ? [CC_PROXY_STATE, Path.dirname(socketPath)].map((parent) => Path.join(parent, "spool"))
        : [config.spoolDir]
    yield* Daemon.run({
      settings,
      socketPath,
      listening: {
        fd: predecessor?.listening ?? listening,
        owned: predecessor?.owned ?? listening === undefined
      },
      pod,
      spoolParents,
      state: stateDirectory(config.stateDir, socketPath, pod),
      program: {
        program: Path.resolve(process.env["CC_PROXY_PROGRAM"] ?? process.argv[1]!),
        args: process.argv.slice(2),
        environment: process.env
      },
      managed: !pod,
      predecessor,
      stored,
      onSuccession: StderrLog.unblockAgain
    })
  }).pipe(
    Effect.provide(
      inspecting.pipe(
        Layer.provideMerge(tracing),
        Layer.provideMerge(pod ? SystemLog.layer({ level: config.log }) : StderrLog.layer({ level: config.log }))
      )
    )
  )
}

/** The status to exit with. Tells a failure on stderr. */
export const exitCode = (exit: Exit.Exit<unknown, unknown>): number => {
  if (Exit.isSuccess(exit)) return Number(process.exitCode ?? 0) // the demo ends with its command's
  if (Cause.hasInterruptsOnly(exit.cause)) return 0
  const error: unknown = Option.getOrUndefined(Exit.findErrorOption(exit))
  process.stderr.write(`cc-proxy: ${error instanceof Error ? error.message : Cause.pretty(exit.cause)}\n`)
  return 1
}
