/**
 * The whole proxy in memory, over agents and clients that cost next to nothing and answer inside the call that asked them, so
 * that what is counted is the proxy's own, and the same in every run.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import * as Scheduler from "effect/Scheduler"
import * as CtlMessage from "../../src/domain/CtlMessage.ts"
import * as Frame from "../../src/domain/Frame.ts"
import * as IoMessage from "../../src/domain/IoMessage.ts"
import { Mailbox } from "../../src/layers/Mailbox.ts"
import { Deadlines } from "../../src/services/Deadlines.ts"
import { Hyperstart } from "../../src/services/Hyperstart.ts"
import { Listener, type ListenError } from "../../src/services/Listener.ts"
import * as Proxy from "../../src/services/Proxy.ts"
import { Sessions } from "../../src/services/Sessions.ts"
import { Spool } from "../../src/services/Spool.ts"
import { States } from "../../src/services/States.ts"
import { TokenSource } from "../../src/services/TokenSource.ts"
import { VmRegistry } from "../../src/services/VmRegistry.ts"
import { Dialer, type Wire, WireClosed } from "../../src/services/Wire.ts"
import * as Host from "../support/Host.ts"
import { MemorySpool } from "../support/MemorySpool.ts"

const empty = new Uint8Array(0)
const utf8 = new TextEncoder()

/** A turn of the event loop. */
export const turn = (): Promise<void> =>
  new Promise((resolve) => {
    setImmediate(resolve)
  })

/** Turns of the event loop until a test holds; throws after far more than anything here takes. */
export const until = async (test: () => boolean): Promise<void> => {
  for (let turns = 0; !test(); turns++) {
    if (turns === 1000) throw new Error("waited in vain for the proxy")
    await turn()
  }
}

/** The far end of one of the proxy's connections, and the proxy's wire to it. */
abstract class Peer implements Wire {
  readonly peer = "peer"
  readonly drained = Effect.void
  readonly closed = Effect.never
  readonly #toProxy = new Mailbox<Uint8Array, WireClosed>()
  /** Bytes that the proxy has written. */
  received = 0

  get pull() {
    return this.#toProxy.take
  }

  offer(chunks: ReadonlyArray<Uint8Array>) {
    for (const chunk of chunks) {
      this.received += chunk.length
      this.onWrite(chunk)
    }
  }

  offered() {
    return this.received
  }

  pending() {
    return 0
  }

  shutDown() {}

  drainAndClose() {
    return []
  }

  descriptor(): undefined {}

  carry(): undefined {}

  /** Sends bytes to the proxy, which owns them from here on. */
  give(bytes: Uint8Array) {
    this.#toProxy.offer(bytes)
  }

  hangUp() {
    this.#toProxy.fail(new WireClosed({ peer: this.peer }))
  }

  protected abstract onWrite(chunk: Uint8Array): void
}

/** Bytes of a ProcessExited. */
const exitSize = Frame.headerSize + 1

/** A runtime, or a shim. */
export class Client extends Peer {
  /** Responses so far; an error throws. */
  responses = 0
  /** Whether ProcessExited has come. */
  exited = false

  protected override onWrite(chunk: Uint8Array) {
    const type = chunk[6]
    if (type === Frame.FrameType.response) this.responses++
    else if (type !== Frame.FrameType.stream && type !== Frame.FrameType.notification)
      throw new Error(`the proxy answered ${Buffer.from(chunk).toString()}`)
    // it may come behind output, and is always last
    else if (chunk[chunk.length - exitSize + 6] === Frame.FrameType.notification) this.exited = true
  }
}

/** What a process sends at its end: the end of its output, and its status. */
export const end = (stdio: number): Uint8Array => {
  const message = new Uint8Array(2 * IoMessage.headerSize + 1)
  IoMessage.writeHeader(message, 0, stdio, 0)
  IoMessage.writeHeader(message, IoMessage.headerSize, stdio, 1)
  return message
}

/** All that the first process of a VM sends, if it is a short one. */
const shortLife = Buffer.concat([IoMessage.encode(3, utf8.encode("hello")), end(3)])

const ack = CtlMessage.encode(CtlMessage.Code.ack, empty)
const ready = CtlMessage.encode(CtlMessage.Code.ready, empty)

/** An agent's io channel. */
class Io extends Peer {
  /** Whether processes send back what they read. */
  echoing = false

  protected override onWrite(chunk: Uint8Array) {
    if (this.echoing) this.give(chunk)
  }
}

/** An agent's ctl channel: ACK for everything. */
class Ctl extends Peer {
  readonly #io: Io
  /** Whether processes last: else they end at once. */
  lasting = false

  constructor(io: Io) {
    super()
    this.#io = io
  }

  protected override onWrite(chunk: Uint8Array) {
    this.give(ack)
    if (chunk[3] === CtlMessage.Code.newcontainer && !this.lasting) this.#io.give(new Uint8Array(shortLife))
  }
}

/** A VM's agent. */
export class Agent {
  readonly io = new Io()
  readonly ctl = new Ctl(this.io)

  powerOff() {
    this.io.hangUp()
    this.ctl.hangUp()
  }
}

/** Counts the steps of all fibers: Effect asks before each whether the fiber should give way. */
class CountingScheduler extends Scheduler.MixedScheduler {
  steps = 0
  override shouldYield(fiber: Parameters<Scheduler.MixedScheduler["shouldYield"]>[0]) {
    this.steps++
    return super.shouldYield(fiber)
  }
}

export const scheduler = new CountingScheduler()

/** Fibers that were ever started in this process, the one that tells it included. */
export const fibersStarted = (): number => Effect.runFork(Effect.void).id

/** Agents by the `containerId` that is part of their sockets' paths. */
const agents = new Map<string, Agent>()

/** The agent of a VM; throws where the proxy has not dialled one. */
export const agentOf = (id: string): Agent => {
  const agent = agents.get(id)
  if (agent === undefined) throw new Error(`nobody has dialled ${id}`)
  return agent
}

/** Powers a VM off. */
export const powerOff = (id: string): void => {
  agentOf(id).powerOff()
  agents.delete(id)
}

// ctl is dialled first; READY comes a turn later, as it does over a socket
const dial = (path: string) =>
  Effect.sync(() => {
    const [channel, id = ""] = path.split(":")
    if (channel === "io") return agentOf(id).io
    const agent = new Agent()
    agents.set(id, agent)
    setImmediate(() => agent.ctl.give(ready))
    return agent.ctl
  })

const arrivals = new Mailbox<Client, ListenError>()

/** A connected client. */
export const connect = (): Client => {
  const client = new Client()
  arrivals.offer(client)
  return client
}

/** Tokens are the numbers from 1. */
let tokens = 0
const tokenOf = (count: number): string => String(count).padStart(44, "0")

/** The last tokens that were made, oldest first. */
export const lastTokens = (count: number): ReadonlyArray<string> =>
  Array.from({ length: count }, (_, at) => tokenOf(tokens - count + 1 + at))

/** The payload of a command, and its frame. */
export const command = (opcode: Frame.Command, payload: unknown): Uint8Array =>
  Frame.encode({
    type: Frame.FrameType.command,
    opcode,
    inError: false,
    payload: payload === undefined ? empty : utf8.encode(JSON.stringify(payload))
  })

/** Sends one command and waits for its response. */
export const ask = async (client: Client, frame: Uint8Array): Promise<void> => {
  const before = client.responses
  client.give(frame)
  if (client.responses === before) await until(() => client.responses > before)
}

/** Serves clients, with the daemon's own settings and log level, until the process ends. */
export const serve = Effect.scoped(Effect.flatMap(Proxy.make, (proxy) => proxy.serve)).pipe(
  Effect.provide(
    VmRegistry.layer.pipe(
      Layer.provideMerge(Hyperstart.layer),
      Layer.provideMerge(Sessions.layer),
      Layer.provideMerge(States.layer),
      Layer.provideMerge(Spool.layer),
      Layer.provideMerge(Deadlines.layer),
      Layer.provideMerge([MemorySpool.layer, Host.layer]),
      Layer.provide([
        Layer.succeed(Dialer, { dial, adopt: () => Effect.never }),
        Layer.succeed(TokenSource, { next: () => tokenOf(++tokens) })
      ]),
      Layer.provideMerge(
        Layer.succeed(Listener, {
          url: "unix:///run/proxy.sock",
          listen: Effect.succeed({
            accept: Effect.map(arrivals.take, (client) => ({ crowded: undefined, connection: Effect.succeed(client) })),
            carry: () => ({ descriptor: -1, ending: [] })
          }),
          adopt: () => Effect.never,
          finish: () => {}
        })
      )
    )
  ),
  Effect.provideService(References.MinimumLogLevel, "Warn"),
  Effect.provideService(References.TracerEnabled, false),
  Effect.provideService(Scheduler.Scheduler, scheduler)
)
