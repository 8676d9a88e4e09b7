/**
 * `ServiceManager` by systemd's program `systemd-notify`: Node has no datagram sockets, which is what `$NOTIFY_SOCKET` is.
 * The program returns once systemd has taken the message. Sources: sd_notify(3), systemd-notify(1), and "Environment
 * Variables Set or Propagated by the Service Manager" of systemd.exec(5) for `$FDSTORE`.
 *
 * A descriptor that systemd has already stays under the name that it was given first.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as Layer from "effect/Layer"
import { none, ServiceManager } from "../services/ServiceManager.ts"

export type Environment = Readonly<Record<string, string | undefined>>

export interface Options {
  /** `process.env`. */
  readonly environment: Environment
  /** How long systemd may take for one message, in milliseconds. */
  readonly timeout?: number
}

const program = "systemd-notify"

/** The first version whose `systemd-notify` passes descriptors. */
const minVersion = 254

/** Most descriptors of one message: the kernel's `SCM_MAX_FD`. Source: unix(7). */
const maxPerMessage = 253

/** Most characters of a descriptor's name. Source: sd_pid_notify_with_fds(3), `FDNAME=`. */
const maxName = 255

/** Where a child finds the first descriptor that it is given. */
const firstDescriptor = 3

/** What systemd says of descriptors that it passed to one process alone. Source: sd_listen_fds(3). */
const listening = new Set(["LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"])

/** What a child of this process may inherit of its environment: it can speak to systemd, and takes nothing for passed to it. */
export const environment = (own: Environment): Environment =>
  Object.fromEntries(Object.entries(own).filter(([name]) => !listening.has(name)))

const inHex = (character: string): string => `%${character.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0")}`

/**
 * The name of a VM's descriptors. Printable ASCII without colons may be in one; what else there is in `name`, and `%`, is
 * written `%XX` for each byte, and what is too long ends with its hash.
 */
export const nameOf = (name: string): string => {
  const full = `cc-proxy.vm-${Buffer.from(name)
    .toString("latin1")
    .replaceAll(/[^\w.+-]/g, inHex)}`
  if (full.length <= maxName) return full
  // not loaded before the daemon listens: it takes long
  const hash = process.getBuiltinModule("node:crypto").createHash("sha256").update(name).digest("hex")
  return `${full.slice(0, maxName - 1 - hash.length)}~${hash}`
}

/**
 * Arguments that give systemd so many descriptors under a name, which say `FDSTORE=1` by themselves. It is not to close them
 * when their peers do: what a VM said last is still in there.
 */
const storing = (name: string, count: number): ReadonlyArray<string> => [
  ...Array.from({ length: count }, (_, n) => `--fd=${firstDescriptor + n}`),
  `--fdname=${name}`,
  "FDPOLL=0"
]

/** What became of a child, where it did not do what it was for. */
const failure = (status: number | null, signal: NodeJS.Signals | null, said: string): string =>
  `${program} ended with ${signal ?? status}${said.trim() === "" ? "" : `: ${said.trim()}`}`

const reasonOf = (cause: unknown): string => (cause instanceof Error ? cause.message : String(cause))

export const layer = ({ environment: own, timeout = 2000 }: Options): Layer.Layer<ServiceManager> =>
  Layer.effect(
    ServiceManager,
    Effect.gen(function* () {
      if (own["NOTIFY_SOCKET"] === undefined || own["NOTIFY_SOCKET"] === "") return none
      const { spawn, spawnSync } = yield* Effect.promise(() => import("node:child_process"))
      const run = yield* FiberSet.makeRuntime()
      const options = { env: environment(own), timeout, killSignal: "SIGKILL" } as const
      let warned = false

      const failed = (error: string) => {
        const log = warned ? Effect.logDebug : Effect.logWarning
        warned = true
        return log("systemd could not be told", { error })
      }

      /**
       * Starts the program, which has its descriptors from then on, and waits for its end. It goes on where nobody waits any
       * more: the daemon's last messages arrive.
       */
      const send = (args: ReadonlyArray<string>, descriptors: ReadonlyArray<number> = []): Effect.Effect<void> =>
        Effect.callback<void, string>((resume) => {
          try {
            const child = spawn(program, args, { ...options, stdio: ["ignore", "ignore", "pipe", ...descriptors] })
            let said = ""
            child.stderr?.on("data", (text: Buffer) => (said += text.toString()))
            child.once("error", (error) => resume(Effect.fail(error.message)))
            child.once("close", (status, signal) =>
              resume(status === 0 ? Effect.void : Effect.fail(failure(status, signal, said)))
            )
          } catch (cause) {
            resume(Effect.fail(reasonOf(cause)))
          }
        }).pipe(Effect.catch(failed))

      /** Runs the program, to its end. What it said, or that it failed, which is logged. */
      const call = (args: ReadonlyArray<string>, descriptors: ReadonlyArray<number> = []): string | undefined => {
        const { error, signal, status, stderr, stdout } = spawnSync(program, args, {
          ...options,
          encoding: "utf8",
          stdio: ["ignore", "pipe", "pipe", ...descriptors]
        })
        if (error === undefined && status === 0) return stdout
        run(failed(error?.message ?? failure(status, signal, stderr)))
        return undefined
      }

      /** Whether descriptors can be given to systemd, and how many it takes; 0: none. */
      const room = Number(own["FDSTORE"] ?? 0)
      const version = room > 0 ? Number(/^systemd (\d+)/.exec(call(["--version"]) ?? "")?.[1] ?? 0) : 0
      const keeps = version >= minVersion
      let given = 0

      /** The last message about a name that is under way. */
      const last = new Map<string, Deferred.Deferred<void>>()

      /**
       * Starts to send, once what was sent about `name` before has arrived: at once, but for a VM that has just gone and come
       * again. Who is interrupted before that sends nothing.
       */
      const inTurn = Effect.fnUntraced(function* (
        name: string,
        args: ReadonlyArray<string>,
        descriptors?: ReadonlyArray<number>
      ) {
        const before = last.get(name)
        const arrived = Deferred.makeUnsafe<void>()
        const arrive = Effect.sync(() => {
          if (last.get(name) === arrived) last.delete(name)
          Deferred.doneUnsafe(arrived, Effect.void)
        })
        last.set(name, arrived)
        if (before !== undefined) {
          const turn = Deferred.await(before)
          yield* Effect.onInterrupt(turn, () => Effect.sync(() => run(Effect.andThen(turn, arrive))))
        }
        run(Effect.ensuring(send(args, descriptors), arrive))
      })

      return ServiceManager.of({
        keeps,
        ready: Effect.sync(() => run(send(["--ready"]))),
        keep: (name, descriptors) =>
          keeps && descriptors.length > 0
            ? inTurn(nameOf(name), storing(nameOf(name), descriptors.length), descriptors)
            : Effect.void,
        forget: (name) =>
          keeps
            ? Effect.sync(() => run(inTurn(nameOf(name), ["FDSTOREREMOVE=1", `FDNAME=${nameOf(name)}`])))
            : Effect.void,
        keepAll: (kind, descriptors) => {
          // systemd drops what it has no room for, and does not say so
          if (!keeps || given + descriptors.length > room) return false
          for (let at = 0; at < descriptors.length; at += maxPerMessage) {
            const batch = descriptors.slice(at, at + maxPerMessage)
            if (call(storing(`cc-proxy.${kind}`, batch.length), batch) === undefined) return false
            given += batch.length
          }
          return true
        },
        release: Effect.sync(() => run(send(["FDSTOREREMOVE=1", "FDNAME=cc-proxy.client"]))),
        follow: (pid) => void call([`MAINPID=${pid}`])
      })
    })
  )
