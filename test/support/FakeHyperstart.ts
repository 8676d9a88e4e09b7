/**
 * Agents that live in the test: a `Dialer` that reaches them in memory, so that the real connection, codecs and arbitration
 * run above it.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as CtlMessage from "../../src/domain/CtlMessage.ts"
import * as IoMessage from "../../src/domain/IoMessage.ts"
import { Condition } from "../../src/services/Condition.ts"
import { Dialer, DialTimeout, WireClosed } from "../../src/services/Wire.ts"
import * as MemoryWire from "./MemoryWire.ts"

const none = new Uint8Array(0)
const utf8 = new TextDecoder()

/** A command as the agent read it. */
export interface Command {
  readonly code: number
  readonly payload: Uint8Array
  /** The payload as text. */
  readonly text: string
}

/** What the agent does about a command: its messages on ctl, or nothing for now. */
export type Respond = (command: Command) => ReadonlyArray<readonly [code: number, payload: Uint8Array]>

export const ack = (payload: Uint8Array = none): ReturnType<Respond> => [[CtlMessage.Code.ack, payload]]
export const refuse = (text = ""): ReturnType<Respond> => [[CtlMessage.Code.error, new TextEncoder().encode(text)]]
export const silence: ReturnType<Respond> = []

/** The C agent says NEXT for the header and for the rest, before its reply. */
export const likeC =
  (respond: Respond): Respond =>
  (command) => {
    const next = (size: number) => {
      const payload = new Uint8Array(4)
      new DataView(payload.buffer).setUint32(0, size)
      return [CtlMessage.Code.next, payload] as const
    }
    const read = command.payload.length > 0 ? [next(8), next(command.payload.length)] : [next(8)]
    return [...read, ...respond(command)]
  }

export interface FakeAgent {
  /** Where to dial it. */
  readonly sockets: { readonly ctl: string; readonly io: string; readonly console: string }
  /** Commands so far, oldest first. */
  readonly commands: Array<Command>
  /** Messages that came on io, oldest first. */
  readonly stdin: Array<{ readonly sequence: number; readonly data: Uint8Array }>
  /** Suspends until a test of the above holds. */
  readonly until: (test: () => boolean) => Effect.Effect<void>
  readonly ctl: (code: number, payload?: Uint8Array) => void
  readonly io: (sequence: number, data: Uint8Array | string) => void
  /** Bytes as they are, for what is no message, or only a part of one. */
  readonly raw: (channel: "ctl" | "io" | "console", bytes: Uint8Array) => void
  /** The end of a process: EOF, then its status. */
  readonly exit: (sequence: number, status: number) => void
  readonly close: (channel: "ctl" | "io" | "console") => void
  readonly powerOff: () => void
  /** The agent does not read its stdin, until `readAgain`. */
  readonly stopReading: () => void
  readonly readAgain: () => void
  /** Ends of connections that the proxy has closed. */
  readonly hungUp: () => ReadonlyArray<string>
  respond: Respond
}

export interface Boot {
  readonly respond?: Respond
  /** What ctl says first; READY unless told. */
  readonly first?: ReadonlyArray<readonly [code: number, payload: Uint8Array]>
}

const text = new TextEncoder()

export class FakeHyperstart extends Context.Service<
  FakeHyperstart,
  { readonly boot: (name: string, options?: Boot) => FakeAgent }
>()("test/FakeHyperstart") {
  /** Agents by the paths of their sockets; a path without one refuses. A path named `…/black-hole` never accepts. */
  static readonly layer = Layer.effectContext(
    Effect.sync(() => {
      const doors = new Map<string, () => MemoryWire.End>()

      const boot = (name: string, options: Boot = {}): FakeAgent => {
        const changed = new Condition()
        const hungUp: Array<string> = []
        const wires = {
          ctl: MemoryWire.pair(`${name}.ctl`, "proxy"),
          io: MemoryWire.pair(`${name}.io`, "proxy"),
          console: MemoryWire.pair(`${name}.console`, "proxy")
        }
        const sockets = { ctl: `${name}.ctl`, io: `${name}.io`, console: `${name}.console` }
        const agent: FakeAgent = {
          sockets,
          commands: [],
          stdin: [],
          until: (test) => Effect.andThen(changed.until(test), Effect.yieldNow),
          ctl: (code, payload = none) => wires.ctl.b.offer([CtlMessage.encode(code, payload)]),
          io: (sequence, data) =>
            wires.io.b.offer([IoMessage.encode(sequence, typeof data === "string" ? text.encode(data) : data)]),
          raw: (channel, bytes) => wires[channel].b.offer([bytes]),
          exit(sequence, status) {
            agent.io(sequence, none)
            agent.io(sequence, Uint8Array.of(status))
          },
          close: (channel) => wires[channel].b.close(),
          powerOff() {
            wires.io.b.close()
            wires.ctl.b.close()
          },
          stopReading: () => wires.io.a.stall(),
          readAgain: () => wires.io.a.resume(),
          hungUp: () => hungUp,
          respond: options.respond ?? (() => ack())
        }
        const serve = (channel: "ctl" | "io" | "console", onChunk: (chunk: Uint8Array) => void) => () => {
          doors.delete(sockets[channel])
          // the proxy's end of the pair; what it offers arrives inside the call
          const pump = Effect.gen(function* () {
            for (;;) {
              onChunk(yield* wires[channel].b.pull)
              changed.notify()
            }
          }).pipe(
            Effect.catch(() =>
              Effect.sync(() => {
                hungUp.push(channel)
                changed.notify()
              })
            )
          )
          Effect.runFork(pump)
          return wires[channel].a
        }
        const ctlParser = CtlMessage.makeParser()
        doors.set(sockets.ctl, () => {
          const wire = serve("ctl", (chunk) => {
            Result.getOrThrow(
              ctlParser.push(chunk, (code, payload) => {
                const command: Command = { code, payload: payload.slice(), text: utf8.decode(payload) }
                agent.commands.push(command)
                for (const [reply, bytes] of agent.respond(command)) agent.ctl(reply, bytes)
              })
            )
          })()
          for (const [code, payload] of options.first ?? [[CtlMessage.Code.ready, none] as const])
            agent.ctl(code, payload)
          return wire
        })
        const ioParser = IoMessage.makeParser()
        doors.set(
          sockets.io,
          serve("io", (chunk) => {
            const runs: Array<IoMessage.Run> = []
            Result.getOrThrow(ioParser.push(chunk, runs))
            for (const { bytes, end, sequence, start } of runs)
              for (let at = start; at < end; at += IoMessage.lengthAt(bytes, at))
                agent.stdin.push({
                  sequence,
                  data: bytes.slice(at + IoMessage.headerSize, at + IoMessage.lengthAt(bytes, at))
                })
          })
        )
        doors.set(
          sockets.console,
          serve("console", () => {})
        )
        return agent
      }

      const dialer = Dialer.of({
        dial: (path, millis) =>
          Effect.acquireRelease(
            Effect.suspend((): Effect.Effect<MemoryWire.End, DialTimeout | WireClosed> => {
              if (path.endsWith("black-hole")) return Effect.delay(new DialTimeout({ peer: path }), millis)
              const open = doors.get(path)
              return open === undefined
                ? Effect.fail(new WireClosed({ peer: path, cause: new Error(`connect ENOENT ${path}`) }))
                : Effect.succeed(open())
            }),
            (wire) => Effect.sync(() => wire.close()),
            { interruptible: true }
          ),
        adopt: (_path, carried) =>
          Effect.acquireRelease(
            Effect.sync(() => MemoryWire.adopt(carried)),
            (wire) => Effect.sync(() => wire.close())
          )
      })
      return Context.make(FakeHyperstart, { boot }).pipe(Context.add(Dialer, dialer))
    })
  )
}
