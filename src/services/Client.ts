/**
 * One client's connection: a runtime that asks for VMs and sends commands, or a shim that carries one process's stdio. Reads
 * frames until the client leaves, and answers commands in their order.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as FiberSet from "effect/FiberSet"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Bytes from "../domain/Bytes.ts"
import * as ClientCommand from "../domain/ClientCommand.ts"
import * as Frame from "../domain/Frame.ts"
import * as Condition from "./Condition.ts"
import { Listener } from "./Listener.ts"
import { type SessionEntry, Sessions, type Told } from "./Sessions.ts"
import type { Shim } from "./Session.ts"
import { Settings } from "./Settings.ts"
import type { Vm } from "./Vm.ts"
import { type Attached, VmRegistry } from "./VmRegistry.ts"
import * as Watchdog from "./Watchdog.ts"
import { type Wire, WireClosed } from "./Wire.ts"

/** A command needs a VM, or a session, that this client does not have. */
export class WrongClient extends Schema.TaggedError<WrongClient>()("WrongClient", {
  needs: Schema.Literals(["vm", "shim"])
}) {
  override get message(): string {
    return this.needs === "vm" ? "client not attached to a vm" : "client isn't a shim"
  }
}

/** The client sent what no client may: its connection is closed. */
export class ProtocolViolation extends Schema.TaggedError<ProtocolViolation>()("ProtocolViolation", {
  reason: Schema.String
}) {
  override get message(): string {
    return this.reason
  }
}

/** A command makes no sense for this client, or never does. */
export class CommandRefused extends Schema.TaggedError<CommandRefused>()("CommandRefused", {
  reason: Schema.String
}) {
  override get message(): string {
    return this.reason
  }
}

/** A command's place in the order of answers. */
interface Answer {
  frames: ReadonlyArray<Uint8Array> | undefined
  /** What may happen only after the answer has left. */
  after: (() => void) | undefined
}

const utf8 = new TextEncoder()
const empty = new Uint8Array(0)
const json = (value: unknown): Uint8Array => utf8.encode(JSON.stringify(value))

const response = (opcode: number, payload: Uint8Array, inError: boolean): Uint8Array =>
  Frame.encode({ type: Frame.FrameType.response, opcode, inError, payload })

/** Bytes read ahead of what may be handled: more than a socket's buffer holds, so that the end behind it is seen. */
const maxAhead = 256 * 1024

/** Millis that a claim waits for the end of an earlier one. */
const claimGrace = 100

const levels = { debug: "Debug", info: "Info", warn: "Warn", error: "Error" } as const

/** Serves one client until it leaves, breaks the protocol, or is ended from within. The scope owns the connection. */
export const serve = Effect.fnUntraced(function* (
  wire: Wire
): Effect.fn.Return<void, never, Scope.Scope | Listener | Sessions | VmRegistry> {
  const settings = yield* Settings
  const clock = yield* Clock.Clock
  const { url } = yield* Listener
  const sessions = yield* Sessions
  const registry = yield* VmRegistry
  const run = yield* FiberSet.makeRuntime()
  const changed = Condition.make()
  const self = yield* Effect.withFiber((fiber) => Effect.succeed(fiber as Fiber.Fiber<void>))

  let vm: Vm | undefined
  let shim: { readonly link: Shim; readonly entry: SessionEntry<Told> } | undefined
  let turnedAway = false // the last claim was refused
  let goodbye = false
  const answers: Array<Answer> = []
  let underWay = 0 // payload bytes of commands that have no answer yet

  yield* Effect.addFinalizer(() =>
    Effect.suspend(() => {
      if (shim === undefined) return Effect.void
      const { entry, link } = shim
      entry.session.detach(link)
      const release = Effect.sync(() => entry.session.release(link))
      if (wire.pending() === 0) return release
      // what the half-close still gets to this shim must not go to the next one too
      return Effect.andThen(Effect.ignore(Effect.timeoutOption(wire.drained, settings.frameTimeout)), release)
    })
  )

  const answer = () => {
    for (let next = answers[0]; next?.frames !== undefined; next = answers[0]) {
      answers.shift()
      wire.offer(next.frames)
      next.after?.()
    }
    changed.notify()
  }

  const io = ({ tokens }: Attached, asked: number): Uint8Array =>
    json({ io: { URL: url, tokens: asked > 0 ? tokens : null } })

  const accepted = (name: string, fields: Record<string, unknown>) => Effect.logInfo(name, fields)

  const execute = (opcode: Frame.Command, payload: Uint8Array, slot: Answer): Effect.Effect<Uint8Array, Told> => {
    switch (opcode) {
      case Frame.Command.RegisterVM:
        return Effect.gen(function* () {
          const command = yield* Effect.fromResult(ClientCommand.decodeRegisterVM(payload))
          yield* Effect.annotateCurrentSpan({ vm: command.containerId })
          yield* accepted("RegisterVM", {
            vm: command.containerId,
            ctl: command.ctlSerial,
            io: command.ioSerial,
            console: command.console
          })
          const attached = yield* registry.register(command)
          vm = attached.vm
          return io(attached, command.numIOStreams ?? 0)
        })
      case Frame.Command.AttachVM:
        return Effect.gen(function* () {
          const command = yield* Effect.fromResult(ClientCommand.decodeAttachVM(payload))
          yield* Effect.annotateCurrentSpan({ vm: command.containerId })
          const attached = yield* registry.attach(command.containerId, command.numIOStreams ?? 0)
          yield* accepted("AttachVM", { vm: command.containerId })
          vm = attached.vm
          return io(attached, command.numIOStreams ?? 0)
        })
      case Frame.Command.UnregisterVM:
        return Effect.gen(function* () {
          const command = yield* Effect.fromResult(ClientCommand.decodeUnregisterVM(payload))
          yield* Effect.annotateCurrentSpan({ vm: command.containerId })
          yield* registry.unregister(command.containerId)
          yield* accepted("UnregisterVM", { vm: command.containerId })
          if (vm?.id === command.containerId) vm = undefined
          return empty
        })
      case Frame.Command.Hyper:
        return Effect.gen(function* () {
          const command = yield* Effect.fromResult(ClientCommand.decodeHyper(payload))
          if (vm === undefined) return yield* new WrongClient({ needs: "vm" })
          yield* Effect.annotateCurrentSpan({ vm: vm.id, command: command.hyperName })
          yield* accepted("Hyper", { vm: vm.id, command: command.hyperName })
          return yield* vm.hyper(command, payload)
        })
      case Frame.Command.ConnectShim:
        return Effect.gen(function* () {
          const { token } = yield* Effect.fromResult(ClientCommand.decodeConnectShim(payload))
          if (shim !== undefined) return yield* new CommandRefused({ reason: "this shim has claimed a token already" })
          const link: Shim = { wire, end: (reason) => run(end(reason)) }
          turnedAway = true
          let entry = yield* Effect.fromResult(sessions.find(token))
          const { session } = entry
          // the end of the last shim's connection may be on its way; an error would make this one give up for good
          const free = () => session.state().shim === undefined
          if (!free()) {
            session.state().shim?.wire.offer([empty]) // shows whether it has gone, where its socket is left unread
            yield* Effect.timeoutOption(session.until(free), claimGrace)
            entry = yield* Effect.fromResult(sessions.find(token)) // the earlier shim may have said goodbye
          }
          const refused = session.claim(link)
          if (refused !== undefined) return yield* refused
          shim = { link, entry }
          turnedAway = false
          yield* Effect.annotateCurrentSpan({ vm: entry.vm })
          yield* accepted("ConnectShim", { vm: entry.vm, token: ClientCommand.redactToken(token) })
          run(session.drain(link))
          slot.after = () => session.attach(link)
          return empty
        })
      case Frame.Command.DisconnectShim:
        return Effect.gen(function* () {
          if (shim === undefined) return yield* new WrongClient({ needs: "shim" })
          yield* accepted("DisconnectShim", { vm: shim.entry.vm })
          shim.entry.close()
          goodbye = true
          return empty
        })
      case Frame.Command.Signal:
        return Effect.gen(function* () {
          if (shim === undefined) return yield* new WrongClient({ needs: "shim" })
          const command = yield* Effect.fromResult(ClientCommand.decodeSignal(payload))
          const refused = ClientCommand.checkSignal(command)
          if (refused !== undefined) return yield* new CommandRefused({ reason: refused })
          yield* Effect.annotateCurrentSpan({ vm: shim.entry.vm, signal: command.signalNumber })
          yield* accepted("Signal", { vm: shim.entry.vm, signal: command.signalNumber })
          yield* shim.entry.signal(command)
          return empty
        })
    }
  }

  /** Runs a command up to its answer, whose place in the order it takes now. */
  const perform = (opcode: Frame.Command, payload: Uint8Array) => {
    const slot: Answer = { frames: undefined, after: undefined }
    answers.push(slot)
    underWay += payload.length
    return execute(opcode, payload, slot).pipe(
      Effect.tapError((error) => Effect.logInfo("command refused", { error: error.message })),
      Effect.withSpan(ClientCommand.commandNames[opcode], { root: true, kind: "server" }, { captureStackTrace: false }),
      Effect.match({
        onSuccess: (reply) => response(opcode, reply, false),
        onFailure: (error) => response(opcode, json({ msg: error.told ?? error.message }), true)
      }),
      Effect.map((frame) => {
        slot.frames = goodbye ? [] : [frame]
        underWay -= payload.length
        answer()
      })
    )
  }

  const log = (payload: Uint8Array) =>
    Effect.gen(function* () {
      const entry = yield* Effect.fromResult(ClientCommand.decodeLogEntry(payload))
      yield* Effect.logWithLevel(levels[entry.level])(entry.msg).pipe(
        Effect.annotateLogs({
          source: entry.source,
          ...(entry.containerId !== null && entry.containerId !== undefined && { container: entry.containerId })
        })
      )
    })

  const ahead: Array<Uint8Array> = []
  let aheadSize = 0
  let leaving = false
  /**
   * Reads on while nothing may be handled, only to see whether the client leaves: as far as a client that is gone can have
   * sent.
   */
  const readAhead = Effect.gen(function* () {
    while (aheadSize < maxAhead) {
      const chunk = yield* wire.pull
      ahead.push(chunk)
      aheadSize += chunk.length
    }
    yield* wire.closed
    return yield* new WireClosed({ peer: wire.peer })
  })
  const next = Effect.suspend(() => {
    const chunk = ahead.shift()
    if (chunk === undefined) return wire.pull
    aheadSize -= chunk.length
    return Effect.succeed(chunk)
  })

  const handle = (
    frame: Frame.Frame
  ): Effect.Effect<void, ClientCommand.MalformedCommand | ProtocolViolation | WireClosed> | undefined => {
    if (frame.type === Frame.FrameType.stream) {
      if (frame.opcode === Frame.StreamKind.log) return log(frame.payload)
      if (shim === undefined && turnedAway) {
        goodbye = true // a shim's first stdin comes right behind its claim, before it knows that it was refused
        return undefined
      }
      if (shim === undefined)
        return Effect.fail(new ProtocolViolation({ reason: "stdin from a client that isn't a shim" }))
      shim.entry.session.feed(frame.payload)
      return undefined
    }
    const opcode = frame.opcode as Frame.Command
    // nobody waits for the answer, but a shim's last word counts
    if (leaving && opcode !== Frame.Command.Signal && opcode !== Frame.Command.DisconnectShim) return undefined
    const performed = perform(opcode, Bytes.keep(frame.payload))
    switch (opcode) {
      // what waits for the agent, a shim or a process must not hold up what comes behind it
      case Frame.Command.Hyper:
      case Frame.Command.Signal:
        run(performed)
        return undefined
      // what comes behind it needs the VM; but a client that leaves takes it along
      case Frame.Command.RegisterVM:
        return Effect.raceFirst(performed, readAhead)
      default:
        return performed
    }
  }

  const parser = Frame.makeParser(Frame.fromClient(settings.payloadLimits))

  // a half-sent frame, while the proxy reads
  const frameMillis = Duration.toMillis(settings.frameTimeout)
  let frameDue = Number.POSITIVE_INFINITY
  const watch = Watchdog.make(
    run,
    clock,
    () => frameDue,
    Effect.suspend(() => {
      frameDue = Number.POSITIVE_INFINITY
      return end(`a frame was left half-sent for ${Duration.format(settings.frameTimeout)}`, "Warn")
    })
  )

  /** Ends the connection from outside of its fiber. */
  const end = (reason: string, level: "Info" | "Warn" = "Info") =>
    Effect.logWithLevel(level)("client's connection ended", { reason }).pipe(
      Effect.andThen(Effect.sync(() => self.interruptUnsafe()))
    )

  const room = () =>
    leaving ||
    (answers.length < settings.maxPipelined &&
      underWay <= settings.payloadLimits.hyper &&
      wire.pending() <= settings.outboxLimit &&
      (shim === undefined || shim.entry.session.unfed() <= settings.stdinLimit))

  const roomAgain = Effect.suspend(() => {
    const waits = [changed.until(room)]
    if (shim !== undefined) waits.push(shim.entry.session.until(room))
    const left = () => Effect.sync(() => (leaving = true))
    if (wire.pending() > settings.outboxLimit) waits.push(Effect.catch(wire.drained, left))
    // a shim that has died must not keep its token
    waits.push(Effect.catch(readAhead, left))
    return Effect.raceAllFirst(waits)
  })

  const loop = Effect.gen(function* () {
    for (;;) {
      const chunk = yield* next
      frameDue = Number.POSITIVE_INFINITY
      const frames: Array<Frame.Frame> = []
      const parsed = parser.push(chunk, (frame) => void frames.push(frame))
      for (const frame of frames) {
        const handled = handle(frame)
        if (handled !== undefined) yield* handled
        if (goodbye) return
        if (!room()) {
          shim?.entry.session.pump()
          while (!room()) yield* roomAgain
        }
      }
      shim?.entry.session.pump()
      if (Result.isFailure(parsed)) return yield* parsed.failure
      if (parser.midFrame()) {
        frameDue = clock.currentTimeMillisUnsafe() + frameMillis
        watch()
      }
    }
  })

  yield* loop.pipe(
    Effect.catchTags({
      WireClosed: (closed) =>
        parser.midFrame() && closed.cause === undefined
          ? Effect.logInfo("client left in the middle of a frame")
          : Effect.logDebug("client left", { reason: closed.message }),
      FrameError: (error) => Effect.logWarning("client broke the protocol", { error: error.message }),
      MalformedCommand: (error) => Effect.logWarning("client broke the protocol", { error: error.message }),
      ProtocolViolation: (error) => Effect.logWarning("client broke the protocol", { error: error.message })
    })
  )
})
