/** Work for the built daemon over real sockets: one thing after another, so that the same is read and written in every run. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Daemon } from "../support/e2e/DaemonProcess.ts"
import * as Raw from "../support/e2e/RawBytes.ts"
import type { RawClient } from "../support/e2e/RawClient.ts"
import * as Scenario from "../support/e2e/Scenario.ts"
import { until } from "../support/e2e/Wait.ts"
import type { SocketWorkName } from "./Reports.ts"

const { accepted, attach, boot, connectShim, container, exec, hyper } = Scenario

/** Bytes of each message of output and input. */
const payload = Buffer.alloc(64, "x")

/** Messages in a batch of output: fewer than 32 KiB, which a Unix socket takes as a whole. */
const batch = 400

/** Processes that write in turn. */
const processes = 16

/** Lets the daemon come to rest: what it does about what has gone before is done. */
export const rest = (witness: RawClient) =>
  Effect.repeat(witness.request(Raw.Op.attachVM, { containerId: "pause of the guard" }), { times: 4 })

/** Closes a client, and waits until the daemon has seen it. */
const leave = (client: RawClient) =>
  Effect.suspend(() => {
    client.end()
    return client.dropped()
  })

/** A VM with so many processes, and their shims. */
const crowd = (daemon: Daemon, count: number) =>
  Effect.gen(function* () {
    const { agent, runtime, tokens } = yield* boot(daemon, { streams: count })
    const shims: Array<RawClient> = []
    for (const token of tokens) {
      shims.push(yield* connectShim(daemon, token))
      const start =
        shims.length === 1 ? hyper("newcontainer", container("c1"), token) : hyper("execcmd", exec("c1"), token)
      accepted(yield* runtime.request(Raw.Op.hyper, start))
    }
    return { agent, shims }
  })

/** A batch of messages, in turn from each of so many processes. */
const output = (daemon: Daemon, count: number) =>
  Effect.map(crowd(daemon, count), ({ agent, shims }) => {
    const messages = Array.from({ length: batch }, (_, at) => [3 + 2 * (at % count), payload] as const)
    const share = (batch / count) * payload.length
    return Effect.suspend(() => {
      const goals = shims.map((shim) => ({ shim, bytes: shim.received.stdout + share }))
      agent.sendIo(...messages)
      const arrived = ({ bytes, shim }: (typeof goals)[number]) =>
        shim.until("the batch", () => shim.received.stdout >= bytes)
      return Effect.forEach(goals, arrived, { discard: true })
    })
  })

/** Each kind of work, which does it once. Clients, VMs and shims that it needs stay for as long as the scope lasts. */
export const works: Readonly<
  Record<SocketWorkName, (daemon: Daemon) => Effect.Effect<Effect.Effect<void, Error>, Error, Scope.Scope>>
> = {
  command: (daemon) =>
    Effect.map(boot(daemon), ({ runtime }) =>
      Effect.map(runtime.request(Raw.Op.hyper, hyper("ping")), (response) => void accepted(response))
    ),
  visit: (daemon) =>
    Effect.map(boot(daemon), ({ id }) =>
      Effect.scoped(
        Effect.gen(function* () {
          const client = yield* attach(daemon, id)
          accepted(yield* client.request(Raw.Op.hyper, hyper("ping")))
          yield* leave(client)
        })
      )
    ),
  life: (daemon) =>
    Effect.succeed(
      Effect.scoped(
        Effect.gen(function* () {
          const agent = yield* Scenario.startAgent()
          const runtime = yield* daemon.connect
          const containerId = Scenario.freshId()
          const sockets = { ctlSerial: agent.ctlPath, ioSerial: agent.ioPath }
          const asked = { containerId, ...sockets, numIOStreams: 1 }
          const [token] = Scenario.tokensOf(yield* runtime.request(Raw.Op.registerVM, asked))
          const shim = yield* connectShim(daemon, token)
          accepted(yield* runtime.request(Raw.Op.hyper, hyper("newcontainer", container("c1"), token)))
          agent.sendIo([3, payload], [3], [3, Uint8Array.of(0)])
          yield* shim.until("the end", () => shim.exits.length > 0)
          shim.send(Raw.command(Raw.Op.disconnectShim))
          yield* shim.dropped()
          yield* leave(shim)
          accepted(yield* runtime.request(Raw.Op.unregisterVM, { containerId }))
          yield* leave(runtime)
          agent.powerOff()
          yield* until("the end of the VM", () => !agent.connected.includes(true))
        })
      )
    ),
  output: (daemon) => output(daemon, 1),
  outputInTurn: (daemon) => output(daemon, processes),
  echo: (daemon) =>
    Effect.map(Scenario.running(daemon), ({ agent, shim }) =>
      Effect.suspend(() => {
        const [sent, received] = [agent.inputs(3).length + 1, shim.received.stdout + payload.length]
        shim.send(Raw.stdin(payload))
        return agent
          .stdinLength(3, sent * payload.length)
          .pipe(
            Effect.andThen(Effect.sync(() => agent.sendIo([3, payload]))),
            Effect.andThen(shim.until("the echo", () => shim.received.stdout >= received)),
            Effect.asVoid
          )
      })
    )
}
