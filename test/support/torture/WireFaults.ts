/** Neighbours that write in odd pieces, read in odd pieces, and break off in the middle of something. */
import * as Effect from "effect/Effect"
import type { Daemon } from "../e2e/DaemonProcess.ts"
import * as Raw from "../e2e/RawBytes.ts"
import * as Scenario from "../e2e/Scenario.ts"
import * as Load from "./Load.ts"
import { pick, type Random } from "./Random.ts"

export interface Options {
  readonly random: Random
  /** How many neighbours break off while the others work. */
  readonly rude: number
  /** Bytes of each process's output and of its stdin, about, where pieces are of some size; a hundredth where they are single bytes. */
  readonly output: number
  readonly stdin: number
}

type Rude = (daemon: Daemon, random: Random) => Effect.Effect<void, unknown>

/** The first bytes of a frame, which then never ends. */
const halfFrame: Rude = Effect.fnUntraced(function* (daemon, random) {
  const client = yield* daemon.connect
  const whole = pick(random, [
    Raw.command(Raw.Op.attachVM, { containerId: "nobody's" }),
    Raw.command(Raw.Op.connectShim, { token: "nobody's" }),
    Raw.logEntry({ source: "shim", level: "debug", msg: "half" }),
    Raw.header({ type: Raw.Type.command, opcode: Raw.Op.hyper, length: 1_000_000 }),
    Raw.header({ type: Raw.Type.command, opcode: Raw.Op.hyper, length: 3, words: 255 })
  ])
  yield* client.trickle(whole.subarray(0, 1 + random(whole.length - 1)))
  if (random(2) === 0) return client.hangUp()
  client.end()
  yield* client.dropped()
}, Effect.scoped)

/** A close while answers lie unread, and more are on their way: the proxy's next write fails. */
const unreadAnswers: Rude = Effect.fnUntraced(function* (daemon, random) {
  const client = yield* daemon.connect
  client.pause()
  for (let n = 0; n < 1 + random(200); n++) client.post(Raw.Op.attachVM, { containerId: "nobody's" })
  if (random(2) === 0) yield* daemon.settle
  client.hangUp()
}, Effect.scoped)

/** A half-close right behind commands: nobody may stumble over the answers. */
const halfClose: Rude = Effect.fnUntraced(function* (daemon, random) {
  const client = yield* daemon.connect
  for (let n = 0; n < 1 + random(20); n++) client.post(Raw.Op.unregisterVM, { containerId: "nobody's" })
  client.end()
  yield* client.dropped()
}, Effect.scoped)

const noise: Rude = Effect.fnUntraced(function* (daemon, random) {
  const client = yield* daemon.connect
  client.send(Buffer.from(Array.from({ length: 12 + random(500) }, () => random(256))))
  yield* client.dropped()
}, Effect.scoped)

/** A shim that goes with output unread and stdin half sent, and another that gets what is left. */
const unreadOutput: Rude = Effect.fnUntraced(function* (daemon, random) {
  const { agent, shim, tokens } = yield* Scenario.running(daemon)
  shim.pause()
  const data = Scenario.pattern(400_000)
  for (let at = 0; at < data.length; at += 10_000) agent.sendIo([3, data.subarray(at, at + 10_000)])
  shim.send(Raw.stdin("whole"), Raw.stdin("cut off").subarray(0, 1 + random(18)))
  if (random(2) === 0) yield* daemon.settle
  yield* agent.stdinLength(3, 5)
  shim.hangUp()
  agent.exit(3, 5)
  const next = yield* Scenario.connectShim(daemon, tokens[0])
  yield* next.until("the exit", () => next.exits.length === 1)
  if (!next.stdout.equals(data.subarray(data.length - next.received.stdout)))
    throw new Error("not the rest of the output")
}, Effect.scoped)

/** A VM that breaks off: its shim must learn of it, and its id be free. */
const brokenVm: Rude = Effect.fnUntraced(function* (daemon, random) {
  const { agent, id, runtime, shim } = yield* Scenario.running(daemon)
  const half = (message: Buffer) => message.subarray(0, 1 + random(message.length - 1))
  const breaks = [
    () => {
      agent.sendIoBytes(half(Raw.ioMessage(3, "cut off")))
      agent.closeIo()
    },
    () => {
      agent.sendCtlBytes(half(Raw.ctlMessage(Raw.Ctl.ack, "cut off")))
      agent.closeCtl()
    },
    () => {
      agent.sendIoBytes(half(Raw.ioMessage(3, "cut off")))
      agent.powerOff()
    },
    () => agent.powerOff()
  ]
  if (random(2) === 0) agent.pauseIo()
  shim.send(Raw.stdin(Scenario.pattern(random(400_000))))
  if (random(2) === 0) runtime.post(Raw.Op.hyper, Scenario.hyper("ping"))
  if (random(2) === 0) yield* daemon.settle
  pick(random, breaks)()
  yield* shim.dropped()
  Scenario.accepted(yield* Scenario.unregister(daemon, id))
}, Effect.scoped)

const rude: ReadonlyArray<Rude> = [halfFrame, unreadAnswers, halfClose, noise, unreadOutput, brokenVm]

/** Runs it all to its end. */
export const run = Effect.fnUntraced(function* (daemon: Daemon, options: Options) {
  const { output, random, stdin } = options
  const start = (cut: number, share: number, more: Partial<Load.Options>) =>
    Load.start(daemon, {
      random,
      sessions: 2,
      cut,
      max: 1_024,
      records: Math.ceil((output * share) / 512),
      stdin: Math.ceil((stdin * share) / (Load.maxStdin / 2)),
      ...more
    })
  const vms = [
    yield* start(1, 0.01, {}),
    yield* start(1, 0.01, { next: true }),
    yield* start(100, 0.3, { buffer: 1 }), // as small as the kernel has it
    yield* start(10_000, 1, { buffer: 1 })
  ]
  yield* Effect.forEach(
    Array.from({ length: options.rude }, () => pick(random, rude)),
    (act) => act(daemon, random),
    { concurrency: 4, discard: true }
  )
  for (const vm of vms) {
    yield* Load.started(vm)
    yield* Effect.forEach(vm.sessions, Load.assertWhole)
    Scenario.accepted(yield* Scenario.unregister(daemon, vm.id))
  }
})
