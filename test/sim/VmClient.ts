/** A client of a simulated VM's sockets, for its tests: what the proxy is to a real one. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import * as Fs from "node:fs"
import * as Net from "node:net"
import * as Os from "node:os"
import * as Path from "node:path"
import * as CtlMessage from "../../src/domain/CtlMessage.ts"
import * as IoMessage from "../../src/domain/IoMessage.ts"
import * as SimulatedVm from "../../src/sim/SimulatedVm.ts"
import * as Waiters from "../../src/sim/Waiters.ts"

export const nothing = new Uint8Array(0)

export const utf8 = (text: string): Uint8Array => new TextEncoder().encode(text)

export const toText = (bytes: Uint8Array): string => new TextDecoder().decode(bytes)

/** A directory that lives as long as the scope. */
export const directory = Effect.acquireRelease(
  Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "sim-"))),
  (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true }))
)

/** A VM in a directory of its own. */
export const boot = Effect.fnUntraced(function* (agent?: "c" | "go") {
  const path = yield* directory
  return yield* SimulatedVm.make({
    ctlPath: Path.join(path, "ctl.sock"),
    ioPath: Path.join(path, "io.sock"),
    consolePath: Path.join(path, "console.sock"),
    agent
  })
})

/** One connection and what has come from it, cut into messages. */
export interface Connection<Message> {
  readonly socket: Net.Socket
  /** The next message. Dies when the connection has ended. */
  readonly next: Effect.Effect<Message>
  /** Waits until at least so many messages have come, without taking any. */
  readonly arrived: (count: number) => Effect.Effect<void>
  /** Takes what has come. */
  readonly drain: () => Array<Message>
  /** Waits until the other side has closed. */
  readonly ended: Effect.Effect<void>
  /** Closes, and waits until that is done here. */
  readonly leave: Effect.Effect<void>
}

/** Connects. `paused`: reads nothing before `socket.resume()`. */
const connect = <Message>(
  path: string,
  push: (chunk: Uint8Array, take: (message: Message) => void) => void,
  paused = false
): Effect.Effect<Connection<Message>, Error, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<Connection<Message>, Error>((resume) => {
      const { until, wake } = Waiters.make()
      const messages: Array<Message> = []
      const socket = Net.connect(path)
      if (paused) socket.pause()
      socket.on("data", (chunk: Uint8Array) => {
        push(chunk, (message) => messages.push(message))
        wake()
      })
      socket.on("close", wake)
      socket.on("error", (error) => resume(Effect.fail(error)))
      socket.once("connect", () => resume(Effect.succeed(connection)))
      const ended = Effect.asVoid(until(() => socket.destroyed || undefined))
      const connection: Connection<Message> = {
        socket,
        next: Effect.flatMap(
          until(() => (messages.length > 0 ? [messages.shift()!] : socket.destroyed ? [] : undefined)),
          ([message]) => (message === undefined ? Effect.die(new Error(`${path} has ended`)) : Effect.succeed(message))
        ),
        arrived: (count) => Effect.asVoid(until(() => messages.length >= count || undefined)),
        drain: () => messages.splice(0),
        ended,
        leave: Effect.callback((done) => {
          socket.once("close", () => done(Effect.void)).destroy()
        })
      }
    }),
    ({ socket }) => Effect.sync(() => socket.destroy())
  )

export interface CtlReply {
  readonly code: number
  readonly payload: Uint8Array
}

export interface Ctl extends Connection<CtlReply> {
  readonly write: (code: number, payload?: unknown) => void
  /** Sends a command and waits for its ACK or ERROR. NEXT is passed over. */
  readonly command: (code: number, payload?: unknown) => Effect.Effect<CtlReply>
  /** A command that must be acknowledged; returns ACK's payload. */
  readonly ack: (code: number, payload?: unknown) => Effect.Effect<Uint8Array>
}

const encode = (payload: unknown): Uint8Array =>
  payload === undefined ? nothing : payload instanceof Uint8Array ? payload : utf8(JSON.stringify(payload))

export const connectCtl = Effect.fnUntraced(function* (path: string, paused?: boolean) {
  const parser = CtlMessage.makeParser()
  const connection = yield* connect<CtlReply>(
    path,
    (chunk, take) => {
      const parsed = parser.push(chunk, (code, payload) => take({ code, payload: payload.slice() }))
      assert.isTrue(Result.isSuccess(parsed))
    },
    paused
  )
  const write = (code: number, payload?: unknown) =>
    void connection.socket.write(CtlMessage.encode(code, encode(payload)))
  const command = Effect.fnUntraced(function* (code: number, payload?: unknown) {
    write(code, payload)
    let reply = yield* connection.next
    while (reply.code === CtlMessage.Code.next) reply = yield* connection.next
    return reply
  })
  const ctl: Ctl = {
    ...connection,
    write,
    command,
    ack: Effect.fnUntraced(function* (code, payload) {
      const reply = yield* command(code, payload)
      assert.strictEqual(reply.code, CtlMessage.Code.ack, toText(reply.payload))
      return reply.payload
    })
  }
  return ctl
})

/** ctl of a VM that has just started: READY is taken. */
export const connectFirst = Effect.fnUntraced(function* (vm: SimulatedVm.SimulatedVm) {
  const ctl = yield* connectCtl(vm.ctlPath)
  const ready = yield* ctl.next
  assert.strictEqual(ready.code, CtlMessage.Code.ready)
  return ctl
})

export interface Output {
  readonly sequence: number
  readonly data: Uint8Array
}

/** What one process has sent, from its first message to its status. */
export interface Told {
  readonly stdout: Uint8Array
  readonly stderr: Uint8Array
  readonly status: number
  /** Bytes of its largest message, header included. */
  readonly largest: number
}

export interface Io extends Connection<Output> {
  readonly write: (sequence: number, data: Uint8Array) => void
  /** Reads until the process of these sequences has ended. Fails the test where something comes after its end. */
  readonly told: (stdio: number, stderr?: number) => Effect.Effect<Told>
  /** Reads until `text` has come on this stream; returns all that has. */
  readonly text: (sequence: number, text: string) => Effect.Effect<string>
}

export const connectIo = Effect.fnUntraced(function* (path: string, paused?: boolean) {
  const parser = IoMessage.makeParser()
  const connection = yield* connect<Output>(
    path,
    (chunk, take) => {
      const runs: Array<IoMessage.Run> = []
      assert.isTrue(Result.isSuccess(parser.push(chunk, runs)))
      for (const { bytes, end, sequence, start } of runs) {
        for (let at = start; at < end; at += IoMessage.lengthAt(bytes, at)) {
          take({ sequence, data: bytes.slice(at + IoMessage.headerSize, at + IoMessage.lengthAt(bytes, at)) })
        }
      }
    },
    paused
  )
  const io: Io = {
    ...connection,
    write: (sequence, data) => void connection.socket.write(IoMessage.encode(sequence, data)),
    told: Effect.fnUntraced(function* (stdio, stderr) {
      const streams = new Map<number, Array<Uint8Array>>([[stdio, []]])
      if (stderr !== undefined) streams.set(stderr, [])
      let largest = 0
      for (;;) {
        const { data, sequence } = yield* connection.next
        largest = Math.max(largest, IoMessage.headerSize + data.length)
        if (data.length > 0) streams.get(sequence)?.push(data)
        else if (sequence === stdio) break
      }
      const end = yield* connection.next
      assert.strictEqual(end.sequence, stdio)
      assert.strictEqual(end.data.length, 1)
      return {
        stdout: Buffer.concat(streams.get(stdio)!),
        stderr: Buffer.concat(streams.get(stderr ?? -1) ?? []),
        status: end.data[0]!,
        largest
      }
    }),
    text: Effect.fnUntraced(function* (sequence, text) {
      let read = ""
      while (!read.includes(text)) {
        const message = yield* connection.next
        if (message.sequence === sequence) read += toText(message.data)
      }
      return read
    })
  }
  return io
})

/** Lines of the console. */
export const connectConsole = (path: string) => {
  let rest = ""
  return connect<string>(path, (chunk, take) => {
    const lines = (rest + toText(chunk)).split("\r\n")
    rest = lines.pop()!
    lines.forEach(take)
  })
}

/** A process whose stdio is `stdio` and whose stderr the number after it; on a terminal there is no such. */
export const processOf = (stdio: number, args: ReadonlyArray<string>, more: Record<string, unknown> = {}) => ({
  args,
  stdio,
  ...(more["terminal"] === true ? {} : { stderr: stdio + 1 }),
  ...more
})

/** A process that runs a shell script. */
export const shell = (stdio: number, script: string, more?: Record<string, unknown>) =>
  processOf(stdio, ["sh", "-c", script], more)

/** Whether a process of this host lives; a zombie does not. */
export const isAlive = (pid: number): boolean => {
  try {
    const stat = Fs.readFileSync(`/proc/${pid}/stat`, "latin1")
    return stat.slice(stat.lastIndexOf(")") + 2)[0] !== "Z"
  } catch {
    return false
  }
}
