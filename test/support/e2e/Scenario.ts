/** What runtimes and shims do with the daemon, in the few steps that most tests begin with. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { type Daemon, temporaryDirectory } from "./DaemonProcess.ts"
import * as FakeAgent from "./FakeAgent.ts"
import * as Raw from "./RawBytes.ts"
import type { RawClient } from "./RawClient.ts"

let counter = 0

/** A container id that no other VM of this run has. */
export const freshId = (): string => `vm-${process.pid}-${counter++}`

/** The payload of a response that has to be a success. */
export const accepted = (frame: Raw.Frame, opcode?: number): Buffer => {
  assert.strictEqual(frame.flags, 0, frame.payload.toString())
  if (opcode !== undefined) assert.strictEqual(frame.opcode, opcode)
  return frame.payload
}

/** The message of a response that has to be an error and has to say `text`. */
export const refused = (frame: Raw.Frame, text = "", opcode?: number): string => {
  assert.strictEqual(frame.flags, 0x10, `accepted: ${frame.payload.toString()}`)
  if (opcode !== undefined) assert.strictEqual(frame.opcode, opcode)
  const { msg } = JSON.parse(frame.payload.toString()) as { readonly msg: unknown }
  assert.isString(msg)
  assert.isNotEmpty(msg)
  assert.include(msg, text)
  return String(msg)
}

/** The tokens in a response to RegisterVM or AttachVM. */
export const tokensOf = (frame: Raw.Frame): ReadonlyArray<string> => {
  const { io } = JSON.parse(accepted(frame).toString()) as {
    readonly io: { readonly tokens: ReadonlyArray<string> | null }
  }
  return io.tokens ?? []
}

export interface VmOptions extends FakeAgent.Options {
  /** By default a fresh one. */
  readonly id?: string
  /** Tokens asked for by RegisterVM. */
  readonly streams?: number
}

export interface Vm {
  readonly id: string
  readonly agent: FakeAgent.FakeAgent
  readonly tokens: ReadonlyArray<string>
  /** A client attached to it. */
  readonly runtime: RawClient
}

/** Registers an agent's sockets, on a connection of its own. */
export const register = (daemon: Daemon, id: string, agent: FakeAgent.FakeAgent, extra: object = {}) =>
  Effect.scoped(
    Effect.gen(function* () {
      const client = yield* daemon.connect
      return yield* client.request(Raw.Op.registerVM, {
        containerId: id,
        ctlSerial: agent.ctlPath,
        ioSerial: agent.ioPath,
        ...extra
      })
    })
  )

/** An agent with sockets in a directory of its own. */
export const startAgent = (options: FakeAgent.Options = {}) =>
  Effect.gen(function* () {
    return yield* FakeAgent.start(yield* temporaryDirectory, options)
  })

/** A client attached to a VM. */
export const attach = (daemon: Daemon, id: string) =>
  Effect.gen(function* () {
    const client = yield* daemon.connect
    accepted(yield* client.request(Raw.Op.attachVM, { containerId: id }), Raw.Op.attachVM)
    return client
  })

/** A registered VM, with a client attached. */
export const boot = (daemon: Daemon, options: VmOptions = {}) =>
  Effect.gen(function* () {
    const id = options.id ?? freshId()
    const agent = yield* startAgent(options)
    const tokens = tokensOf(yield* register(daemon, id, agent, { numIOStreams: options.streams ?? 0 }))
    assert.strictEqual(tokens.length, options.streams ?? 0)
    return { id, agent, tokens, runtime: yield* attach(daemon, id) } satisfies Vm
  })

/** UnregisterVM on a connection of its own. */
export const unregister = (daemon: Daemon, id: string) =>
  Effect.scoped(
    Effect.gen(function* () {
      const client = yield* daemon.connect
      return yield* client.request(Raw.Op.unregisterVM, { containerId: id })
    })
  )

/** A shim that has claimed `token`. */
export const connectShim = (daemon: Daemon, token: string | undefined) =>
  Effect.gen(function* () {
    const shim = yield* daemon.connect
    accepted(yield* shim.request(Raw.Op.connectShim, { token }), Raw.Op.connectShim)
    return shim
  })

/** The payload of a Hyper command. */
export const hyper = (hyperName: string, data?: unknown, ...tokens: ReadonlyArray<string | undefined>): object => ({
  hyperName,
  ...(data !== undefined && { data }),
  ...(tokens.length > 0 && { tokens })
})

/** The data of newcontainer. */
export const container = (id: string, process: object = {}): object => ({
  id,
  image: id,
  rootfs: "rootfs",
  process: { id: `${id}-init`, terminal: false, args: ["sh"], ...process }
})

/** The data of execcmd. */
export const exec = (containerId: string, process: object = {}): object => ({
  container: containerId,
  process: { id: `${containerId}-exec`, terminal: false, args: ["ls"], ...process }
})

export interface Running extends Vm {
  readonly shim: RawClient
}

/** A VM with a container `c1` whose init process has a shim; its numbers are 3 and 4. */
export const running = (daemon: Daemon, options: VmOptions & { readonly process?: object } = {}) =>
  Effect.gen(function* () {
    const vm = yield* boot(daemon, { streams: 1, ...options })
    const shim = yield* connectShim(daemon, vm.tokens[0])
    accepted(
      yield* vm.runtime.request(Raw.Op.hyper, hyper("newcontainer", container("c1", options.process), vm.tokens[0]))
    )
    return { ...vm, shim } satisfies Running
  })

/** A second process of `c1`, started with a token of its own; returns its shim. */
export const runExec = (daemon: Daemon, vm: Vm, token: string | undefined, process: object = {}) =>
  Effect.gen(function* () {
    const shim = yield* connectShim(daemon, token)
    accepted(yield* vm.runtime.request(Raw.Op.hyper, hyper("execcmd", exec("c1", process), token)))
    return shim
  })

/** Proves that a VM answers. */
export const answers = (client: RawClient) =>
  Effect.gen(function* () {
    assert.strictEqual(accepted(yield* client.request(Raw.Op.hyper, hyper("ping")), Raw.Op.hyper).length, 0)
  })

/** Bytes that tell their own place: every 4 are a running number. */
export const pattern = (length: number, seed = 0): Buffer => {
  const bytes = Buffer.alloc(Math.ceil(length / 4) * 4)
  for (let at = 0; at < bytes.length; at += 4) bytes.writeUInt32BE((at + seed * 0x9e3779b1) >>> 0, at)
  return bytes.subarray(0, length)
}
