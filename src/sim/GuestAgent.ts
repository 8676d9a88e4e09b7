/**
 * The agent of a simulated VM: reads commands and stdin, answers commands one after another.
 *
 * Source: PROTOCOL.md, "Agent protocol".
 */
import * as Effect from "effect/Effect"
import { Code } from "../domain/CtlMessage.ts"
import * as CtlMessage from "../domain/CtlMessage.ts"
import * as IoMessage from "../domain/IoMessage.ts"
import type { AgentModel } from "./AgentModel.ts"
import * as ChannelReader from "./ChannelReader.ts"
import * as GuestCommand from "./GuestCommand.ts"
import { CommandRefused } from "./GuestCommand.ts"
import type { GuestContainers } from "./GuestContainers.ts"
import * as GuestFiles from "./GuestFiles.ts"
import type { QemuSocket } from "./QemuSocket.ts"

export interface Options {
  readonly agent: AgentModel
  readonly containers: GuestContainers
  readonly ctl: QemuSocket
  readonly io: QemuSocket
}

/** Why an agent has ended: `destroypod` was done, or a message it does not survive. */
export type End = "destroypod" | `ctl: ${ChannelReader.Death}` | `io: ${ChannelReader.Death}`

const nothing = new Uint8Array(0)

const u32 = (value: number): Uint8Array => {
  const bytes = new Uint8Array(4)
  new DataView(bytes.buffer).setUint32(0, value)
  return bytes
}

const viewOf = (message: Uint8Array): DataView => new DataView(message.buffer, message.byteOffset, message.byteLength)

/** Sends READY, then answers each command with exactly one ACK or ERROR, in order. */
export const control = Effect.fnUntraced(function* (options: Options): Effect.fn.Return<End> {
  const { agent, containers, ctl, io } = options
  const reader = ChannelReader.make({
    headerSize: CtlMessage.headerSize,
    limit: agent.maxCommand,
    wholeHeaders: agent.wholeHeaders
  })
  const run = runner(containers, agent)
  const send = (code: number, payload: Uint8Array) => ctl.send(CtlMessage.encode(code, payload))

  yield* send(Code.ready, nothing)
  for (;;) {
    const { death, messages } = reader.push(yield* ctl.pull)
    for (const message of messages) {
      const code = viewOf(message).getUint32(0)
      const payload = message.subarray(CtlMessage.headerSize)
      if (agent.sendsNext) {
        yield* send(Code.next, u32(CtlMessage.headerSize))
        if (payload.length > 0) yield* send(Code.next, u32(payload.length))
      }
      if (code === Code.destroypod) {
        // the agent writes what its buffers hold, control first, and powers off
        yield* containers.killAll
        yield* send(Code.ack, nothing)
        yield* Effect.raceFirst(containers.finished, io.left)
        yield* Effect.all([ctl.flushed, io.flushed])
        return "destroypod"
      }
      const [reply, answer] = yield* Effect.match(run(code, payload), {
        onSuccess: (answer) => [Code.ack, answer] as const,
        onFailure: ({ reason }) =>
          [Code.error, agent.explainsErrors ? new TextEncoder().encode(reason) : nothing] as const
      })
      containers.turn()
      yield* send(reply, answer)
    }
    if (death !== undefined) return `ctl: ${death}`
  }
})

/** Runs one command; succeeds with the payload of its ACK. */
const runner =
  (containers: GuestContainers, agent: AgentModel) =>
  (code: number, payload: Uint8Array): Effect.Effect<Uint8Array, CommandRefused> => {
    switch (code) {
      case Code.version:
        return Effect.succeed(u32(agent.apiVersion))
      case Code.ping:
      case Code.onlinecpumem:
      case Code.setupinterface:
      case Code.setuproute:
        return Effect.succeed(nothing)
      case Code.startpod:
        return Effect.as(GuestCommand.decodeStartPod(payload), nothing)
      case Code.newcontainer:
        return GuestCommand.decodeNewContainer(payload).pipe(
          Effect.flatMap(({ id, process }) => containers.create(id, process)),
          Effect.as(nothing)
        )
      case Code.execcmd:
        return GuestCommand.decodeExecCmd(payload).pipe(
          Effect.flatMap(({ container, process }) => containers.exec(container, process)),
          Effect.as(nothing)
        )
      case Code.removecontainer:
        return GuestCommand.decodeRemoveContainer(payload).pipe(
          Effect.flatMap(({ container }) => containers.remove(container)),
          Effect.as(nothing)
        )
      case Code.killcontainer:
        return GuestCommand.decodeKillContainer(payload).pipe(
          Effect.flatMap(({ allProcesses, container, signal }) =>
            containers.signal(container, signal, allProcesses === true)
          ),
          Effect.as(nothing)
        )
      case Code.winsize:
        return Effect.gen(function* () {
          const { column, row, seq } = yield* GuestCommand.decodeWinSize(payload)
          const guest = containers.bySequence(seq)
          if (guest !== undefined) yield* guest.resize(row, column)
          // the C agent takes a size for a process that has ended without complaint
          else if (agent.explainsErrors) return yield* new CommandRefused({ reason: `no process with sequence ${seq}` })
          return nothing
        })
      case Code.writefile:
        return Effect.gen(function* () {
          const { container, data, file } = yield* GuestCommand.decodeWriteFile(payload)
          yield* GuestFiles.write((yield* containers.get(container)).directory, file, data)
          return nothing
        })
      case Code.readfile:
        return Effect.gen(function* () {
          const { container, file } = yield* GuestCommand.decodeReadFile(payload)
          return yield* GuestFiles.read((yield* containers.get(container)).directory, file)
        })
      default:
        return Effect.fail(new CommandRefused({ reason: `unknown command ${code}` }))
    }
  }

/** Passes stdin on. */
export const stdin = Effect.fnUntraced(function* ({ agent, containers, io }: Options): Effect.fn.Return<End> {
  const reader = ChannelReader.make({
    headerSize: IoMessage.headerSize,
    limit: agent.maxStdin,
    wholeHeaders: agent.wholeHeaders
  })
  for (;;) {
    const { death, messages } = reader.push(yield* io.pull)
    for (const message of messages) {
      const sequence = Number(viewOf(message).getBigUint64(0))
      const data = message.subarray(IoMessage.headerSize)
      const guest = containers.bySequence(sequence)
      if (guest !== undefined) {
        yield* data.length === 0 ? guest.stdin.end : guest.stdin.accept(data)
      } else if (agent.endsUnknownStreams) {
        io.offer(IoMessage.encode(sequence, nothing))
      }
    }
    if (death !== undefined) return `io: ${death}`
  }
})
