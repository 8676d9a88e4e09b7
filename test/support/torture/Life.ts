/** A pod's life up to a random point, ended in a random way by a random one of those who live in it. */
import * as Effect from "effect/Effect"
import type { Daemon } from "../e2e/DaemonProcess.ts"
import * as Raw from "../e2e/RawBytes.ts"
import * as Scenario from "../e2e/Scenario.ts"
import type { Random } from "./Random.ts"

export const live = Effect.fnUntraced(function* (daemon: Daemon, random: Random) {
  const { agent, id, runtime, tokens } = yield* Scenario.boot(daemon, { next: random(2) === 0, streams: 2 })
  const shim = yield* Scenario.connectShim(daemon, tokens[0])
  if (random(8) === 0) agent.answer(Raw.Ctl.newcontainer, "hold")
  runtime.post(Raw.Op.hyper, Scenario.hyper("newcontainer", Scenario.container("c1"), tokens[0]))
  if (random(4) === 0) runtime.post(Raw.Op.hyper, Scenario.hyper("execcmd", Scenario.exec("c1"), tokens[1])) // waits for its shim
  yield* agent.command(Raw.Ctl.newcontainer)
  if (random(2) === 0) shim.send(Raw.stdin(Scenario.pattern(random(20_000))))
  if (random(8) === 0) shim.pause()
  if (random(2) === 0) agent.sendIo([3, Buffer.alloc(random(400_000))], [4, "err"], [99, "lost"])
  if (random(3) === 0) agent.answer(Raw.Ctl.readfile, "hold")
  const waiting = yield* Scenario.attach(daemon, id)
  if (random(2) === 0) waiting.post(Raw.Op.hyper, Scenario.hyper("readfile"))
  if (random(3) === 0) shim.post(Raw.Op.signal, { signalNumber: 10 })
  if (random(2) === 0) agent.exit(3, random(256))
  if (random(3) === 0) yield* daemon.settle
  const ends = [
    () => shim.hangUp(),
    () => shim.send(Raw.command(Raw.Op.disconnectShim)),
    () => shim.send(Raw.header({ type: 7, opcode: 0, length: 0 })),
    () => runtime.hangUp(),
    () => waiting.end(),
    () => agent.closeIo(),
    () => agent.closeCtl(),
    () => agent.powerOff(),
    () => agent.sendCtlBytes(Buffer.alloc(8)),
    () => agent.sendIoBytes(Buffer.alloc(12))
  ]
  for (let n = random(4); n > 0; n--) ends[random(ends.length)]!()
  if (random(2) === 0) yield* Scenario.unregister(daemon, id)
}, Effect.scoped)

/** So many lives, `concurrency` at a time. */
export const many = (daemon: Daemon, random: Random, count: number, concurrency = 4) =>
  Effect.all(
    Array.from({ length: count }, () => live(daemon, random)),
    { concurrency, discard: true }
  )
