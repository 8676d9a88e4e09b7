/** Who plays in the tour: a runtime and shims. They tell what they ask and what comes back, and check it. */
import * as Effect from "effect/Effect"
import * as Pull from "effect/Pull"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as Client from "../client/index.ts"
import { redactToken } from "../domain/ClientCommand.ts"
import type { SimulatedVm } from "../sim/SimulatedVm.ts"
import * as Narration from "./Narration.ts"
import type { WriteError } from "./OwnStreams.ts"
import type { Stage } from "./Stage.ts"

/** What came is not what should have come. */
export class Unexpected extends Schema.TaggedError<Unexpected>()("Unexpected", {
  what: Schema.String,
  expected: Schema.Unknown,
  actual: Schema.Unknown
}) {
  override get message(): string {
    return `${this.what}: expected ${JSON.stringify(this.expected)}, got ${JSON.stringify(this.actual)}`
  }
}

export const check = <A>(what: string, actual: A, expected: A): Effect.Effect<void, Unexpected> =>
  actual === expected ? Effect.void : Effect.fail(new Unexpected({ what, expected, actual }))

export interface Pod {
  readonly name: string
  readonly vm: SimulatedVm
  /** The proxy's. */
  readonly socket: string
  /** Where processes start. */
  readonly workdir: string
}

/** Boots a VM, and has the runtime register it. */
export const register = Effect.fnUntraced(function* (stage: Stage, name: string, agent: "c" | "go") {
  const vm = yield* stage.boot(name, agent)
  const runtime = yield* Client.connect(stage.socket)
  yield* Narration.asks(
    ["runtime", "proxy", name],
    `RegisterVM ${name}: its ctl and io sockets`,
    Client.registerVM(runtime, { containerId: name, ctlSerial: vm.ctlPath, ioSerial: vm.ioPath }),
    () => "connected, its agent is READY"
  )
  return { name, vm, socket: stage.socket, workdir: stage.directory } satisfies Pod
})

/** A process as its shim sees it. */
export interface Shadow {
  readonly token: string
  readonly send: (text: string) => Effect.Effect<void, WriteError | Client.ConnectionError>
  readonly endInput: Effect.Effect<void, WriteError | Client.ConnectionError>
  readonly signal: (name: string, number: number) => Effect.Effect<void, WriteError | Client.CommandError>
  /** Waits for the next line of stdout; fails where it is another one. */
  readonly says: (line: string) => Effect.Effect<void, WriteError | Unexpected>
  /** Waits for the end; fails where the status, or what has been written since, is something else. */
  readonly ends: (
    status: number,
    written?: { readonly stdout?: string; readonly stderr?: string }
  ) => Effect.Effect<void, WriteError | Unexpected | Client.ConnectionError>
}

const utf8 = new TextDecoder()
const toUtf8 = new TextEncoder()

/** Has a shim claim the session of `token`. When the scope ends, its connection just closes. */
export const attach = Effect.fnUntraced(function* (pod: Pod, token: string, shimName: string, processName: string) {
  const path = [shimName, "proxy", processName]
  const connection = yield* Client.connect(pod.socket)
  const shim = yield* Narration.asks(
    path.slice(0, 2),
    `ConnectShim ${redactToken(token)}`,
    Client.connectShim(connection, token),
    () => "the session is yours"
  )
  const pull = yield* Stream.toPull(shim.output)
  const unseen = { stdout: "", stderr: "" }
  /** Waits for output; false at its end. */
  const more: Effect.Effect<boolean, WriteError> = Pull.matchEffect(pull, {
    onSuccess: (pieces) =>
      Effect.as(
        Effect.forEach(pieces, ({ data, stream }) => {
          const text = utf8.decode(data)
          unseen[stream] += text
          return Narration.gets(path, `${stream} ${JSON.stringify(text)}`)
        }),
        true
      ),
    onFailure: Effect.failCause,
    onDone: () => Effect.succeed(false)
  })

  return {
    token,
    send: (text) =>
      Effect.andThen(Narration.sends(path, `stdin  ${JSON.stringify(text)}`), shim.stdin(toUtf8.encode(text))),
    endInput: Effect.andThen(Narration.sends(path, "stdin  ends"), shim.endStdin),
    signal: (name, number) => Narration.asks(path, `Signal ${number}, ${name}`, shim.signal(number), () => "sent"),
    says: Effect.fnUntraced(function* (line) {
      while (!unseen.stdout.includes("\n") && (yield* more));
      const end = unseen.stdout.indexOf("\n") + 1 || unseen.stdout.length
      yield* check("stdout", unseen.stdout.slice(0, end), line)
      unseen.stdout = unseen.stdout.slice(end)
    }),
    ends: Effect.fnUntraced(function* (status, { stderr = "", stdout = "" } = {}) {
      while (yield* more);
      const actual = yield* shim.exitStatus
      yield* Narration.gets(path, `exit status ${actual}`)
      yield* check("stdout", unseen.stdout, stdout)
      yield* check("stderr", unseen.stderr, stderr)
      yield* check("exit status", actual, status)
      yield* shim.disconnect
    })
  } satisfies Shadow
})

export interface Launch {
  readonly args: ReadonlyArray<string>
  /** The container's name; by default the process is its first one. */
  readonly container: string
  /** Whether the container runs already, and gets one more process. */
  readonly exec?: boolean
  /** By default just that. */
  readonly shim?: string
  /** By default the program's. */
  readonly process?: string
}

/** Has the runtime ask for a token, a shim stand ready with it, and the runtime start a process. */
export const launch = Effect.fnUntraced(function* (
  pod: Pod,
  { args, container, exec = false, process = args[0]!, shim = "shim" }: Launch
) {
  const runtime = yield* Client.connect(pod.socket)
  const { tokens } = yield* Narration.asks(
    ["runtime", "proxy"],
    `AttachVM ${pod.name}, one token please`,
    Client.attachVM(runtime, { containerId: pod.name, numIOStreams: 1 }),
    ({ tokens }) => tokens.map(redactToken).join(" ")
  )
  yield* check("number of tokens", tokens.length, 1)
  const token = tokens[0]!
  const shadow = yield* attach(pod, token, shim, process)
  const spec = { args, envs: [], workdir: pod.workdir }
  yield* Narration.asks(
    ["runtime", "proxy", pod.name],
    `${exec ? "execcmd" : "newcontainer"} ${container}: ${Narration.commandLine(args)}`,
    exec
      ? Client.execCmd(runtime, { token, data: { container, process: spec } })
      : Client.newContainer(runtime, { token, data: { id: container, process: spec } }),
    () => "started"
  )
  return shadow
})
