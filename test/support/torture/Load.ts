/** VMs, their processes and their shims, with all of their streams known in advance and checked at both ends. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fs from "node:fs"
import { type Daemon, temporaryDirectory } from "../e2e/DaemonProcess.ts"
import * as Path from "node:path"
import * as Raw from "../e2e/RawBytes.ts"
import type { RawClient } from "../e2e/RawClient.ts"
import * as Scenario from "../e2e/Scenario.ts"
import * as Peer from "./Peer.ts"
import type { Random } from "./Random.ts"

export interface Options {
  readonly random: Random
  readonly sessions: number
  /** Records of output of each process, and their largest size in bytes. */
  readonly records: number
  readonly max: number
  /** Records of stdin of each shim; the process waits for its end. By default there is none, nor an end. */
  readonly stdin?: number
  /** Reads and writes of pieces up to this size, and sockets' buffers of this size, in bytes. */
  readonly cut?: number
  readonly buffer?: number
  /** The C agent, instead of the Go one. */
  readonly next?: boolean
  /** How often each session's shim is going to be killed: only the last one ends its stdin. */
  readonly kills?: number
  /** Which sessions' shims stop themselves once they have claimed their token. */
  readonly hold?: (nth: number) => boolean
  /** Lets the shims miss records. */
  readonly gaps?: boolean
  /** The VM stays where its daemon goes. */
  readonly stay?: boolean
}

/** Largest record of stdin, in bytes: what a real shim reads at once. */
export const maxStdin = 8192

/** Bytes that a kernel may have taken for a shim that has not read them, at most: it takes half a buffer more while one is not full. */
const socketBuffer = 1.5 * Number(Fs.readFileSync("/proc/sys/net/core/wmem_default", "utf8"))

/** Seconds that whatever is under way may take on a busy machine. */
export const patience = 60

export class Session {
  readonly vm: Vm
  readonly nth: number
  readonly status: number
  /** Its shims, one after another. */
  readonly shims: Array<Peer.Peer> = []
  /**
   * Numbers of output records at which its shims are to be killed: in the first half, so that the kernel cannot have taken the rest.
   * Every other one by itself, so that it is known what it has not read.
   */
  readonly kills: ReadonlyArray<number>
  readonly #identity: number

  constructor(vm: Vm, nth: number) {
    const { kills = 0, random, records } = vm.options
    this.vm = vm
    this.nth = nth
    this.status = random(256)
    this.#identity = random(2 ** 32)
    this.kills = Array.from({ length: kills }, () => random(Math.ceil(records / 2))).toSorted((a, b) => a - b)
  }

  get shim(): Peer.Peer {
    return this.shims.at(-1)!
  }

  get stdio(): number {
    return 3 + 2 * this.nth
  }

  /** The number behind the last record that a shim of it has had. */
  get progress(): number {
    return Math.max(...this.shims.map((shim) => shim.slot().next))
  }

  /** Bytes of output that its shims have not had, or had and lost. */
  get ahead(): number {
    return this.shims.reduce((rest, shim) => rest - shim.slot().output, this.vm.agent.slot(this.nth).output)
  }

  /** Its shim is to be killed now, or to be let kill itself. */
  get due(): boolean {
    const next = this.kills[this.shims.length - 1]
    return next !== undefined && !this.vm.lost && this.progress >= next
  }

  /** Its shim kills itself. */
  get suicidal(): boolean {
    return this.shims.length <= this.kills.length && this.shims.length % 2 === 0
  }

  /** Its last shim has ended by itself. */
  get over(): boolean {
    return this.shim.child.exit !== undefined && (this.vm.lost || this.shims.length > this.kills.length)
  }

  /** Starts its next shim. */
  get connect() {
    const { buffer, cut, gaps = false, hold, random, stdin } = this.vm.options
    const generation = this.shims.length
    return Effect.map(
      Peer.shim(this.vm.daemon.socketPath, this.vm.tokens[this.nth]!, {
        seed: random(2 ** 32),
        buffer,
        cut,
        identity: this.#identity,
        generation,
        records: stdin ?? 0,
        max: maxStdin,
        eof: stdin !== undefined && generation === this.kills.length,
        largest: this.vm.options.max,
        die: generation % 2 === 1 ? this.kills[generation] : undefined,
        hold: generation === 0 && hold?.(this.nth) === true,
        gaps
      }),
      (shim) => void this.shims.push(shim)
    )
  }

  /** Asks for its process. Returns the response's number. */
  start(): number {
    const { max, records, stdin } = this.vm.options
    const plan = [this.#identity, records, max, this.status, stdin === undefined ? 0 : 1].join(" ")
    const token = this.vm.tokens[this.nth]
    const command =
      this.nth === 0
        ? Scenario.hyper("newcontainer", Scenario.container("c1", { plan }), token)
        : Scenario.hyper("execcmd", Scenario.exec("c1", { id: `e${this.nth}`, plan }), token)
    return this.vm.runtime.post(Raw.Op.hyper, command)
  }
}

export class Vm {
  readonly options: Options
  readonly daemon: Daemon
  readonly id: string
  readonly agent: Peer.Peer
  readonly tokens: ReadonlyArray<string>
  /** A client attached to it. */
  readonly runtime: RawClient
  readonly sessions: ReadonlyArray<Session>
  /** Its agent was killed. */
  lost = false

  constructor(parts: Pick<Vm, "options" | "daemon" | "id" | "agent" | "tokens" | "runtime">) {
    this.options = parts.options
    this.daemon = parts.daemon
    this.id = parts.id
    this.agent = parts.agent
    this.tokens = parts.tokens
    this.runtime = parts.runtime
    this.sessions = this.tokens.map((_, nth) => new Session(this, nth))
  }

  get peers(): ReadonlyArray<Peer.Peer> {
    return [this.agent, ...this.sessions.map(({ shim }) => shim)]
  }
}

/** Registers a VM and starts its shims and processes. What becomes of the starts is told by `started`. */
export const start = Effect.fnUntraced(function* (daemon: Daemon, options: Options) {
  const { buffer, cut, next = false, random, sessions, stay = false } = options
  const directory = yield* temporaryDirectory
  const id = Scenario.freshId()
  const agent = yield* Peer.agent(directory, { seed: random(2 ** 32), buffer, cut, next, stay })
  const [ctlSerial, ioSerial] = [Path.join(directory, "ctl.sock"), Path.join(directory, "io.sock")]
  const registrar = yield* daemon.connect
  const registration = { containerId: id, ctlSerial, ioSerial, numIOStreams: sessions }
  const tokens = Scenario.tokensOf(yield* registrar.request(Raw.Op.registerVM, registration, patience))
  registrar.end()
  const vm = new Vm({ options, daemon, id, agent, tokens, runtime: yield* Scenario.attach(daemon, id) })
  for (const session of vm.sessions) yield* session.connect
  for (const session of vm.sessions) session.start()
  return vm
})

/** Waits until all processes of a VM run. */
export const started = (vm: Vm) =>
  Effect.forEach(vm.sessions, (_, nth) =>
    // AttachVM was the first command of this connection
    Effect.map(vm.runtime.response(1 + nth, patience), (response) => Scenario.accepted(response, Raw.Op.hyper))
  )

/** Proves that everything came, once and in order: the agent's digests are the shim's, and the status came last. */
export const assertWhole = Effect.fnUntraced(function* (session: Session) {
  const sent = yield* session.vm.agent.processReport(session.stdio, patience)
  const got = yield* session.shim.shimReport(patience)
  assert.deepStrictEqual(
    { connections: got.connections, first: got.first, next: got.next, status: got.status },
    { connections: 1, first: 0, next: session.vm.options.records, status: session.status }
  )
  assert.deepStrictEqual({ stdout: got.stdout, stderr: got.stderr }, { stdout: sent.stdout, stderr: sent.stderr })
  assert.deepStrictEqual([got.stdin], sent.stdin)
})

/** Bytes of a frame's header. */
const headerSize = 12

/** Proves that between one shim's output and the next one's only those whole frames are missing that lay in the socket of one that was killed. */
const assertGaps = (slots: ReadonlyArray<Peer.Slot>, max: number) => {
  const largest = headerSize + max
  let [record, byte, kills, unread] = [0, 0, 0, 0]
  for (const slot of slots) {
    if (slot.next > 0) {
      const missing = slot.before - byte + headerSize * (slot.first - record)
      const told = `${missing} bytes are missing behind record ${record} after ${kills} kills, ${unread} were unread`
      // the last of what was unread may be the first part of a frame; and who was killed, about to note its last record
      const [least, most] =
        kills === 1 && unread > 0 ? [unread - largest, unread] : [-kills * largest, kills * (socketBuffer + largest)]
      assert.isTrue(missing >= least && missing <= most, told)
      record = slot.next
      byte = slot.before + slot.output
      kills = 0
    }
    kills++
    unread = slot.unread
  }
}

/**
 * Proves that nothing is missing but what the kernel had taken for shims that were killed: each has checked that its records
 * are whole, its own and without a gap, and the last has had the status behind them all.
 */
export const assertWholeButForKills = Effect.fnUntraced(function* (session: Session) {
  const { shims, vm } = session
  const { max, records } = vm.options
  const kills = shims.length - 1
  const last = yield* session.shim.shimReport(patience)
  const sent = yield* vm.agent.processReport(session.stdio, patience)
  const slots = shims.map((shim) => shim.slot())
  assert.deepStrictEqual([last.connections, last.status], [1, session.status])
  const end = {
    first: records,
    next: records,
    before: sent.stdout.bytes + sent.stderr.bytes,
    output: 0,
    input: 0,
    unread: 0
  }
  if (last.next > 0) assert.strictEqual(last.next, records)
  assertGaps(last.next > 0 ? slots : [...slots.slice(0, -1), end], max)
  // what a shim got rid of arrives, also where that was its last act
  for (const [generation, { input }] of slots.entries()) {
    const arrived = sent.stdin[generation]?.bytes ?? 0
    assert.isAtLeast(arrived, input, `stdin of shim ${generation}`)
    assert.isAtMost(arrived, generation < kills ? input + maxStdin : input, `stdin of shim ${generation}`)
  }
  if (vm.options.stdin !== undefined) assert.deepStrictEqual(sent.stdin[kills], last.stdin)
})

/** Proves that all came that a VM had sent when it was killed, and that the shim learned of the end. */
export const assertCutShort = Effect.fnUntraced(function* (session: Session) {
  const got = yield* session.shim.shimReport(patience)
  const { next } = session.vm.agent.slot(session.nth)
  if (got.status === undefined) assert.isTrue(got.refused, JSON.stringify(got))
  else assert.strictEqual(got.status, session.status)
  if (session.shims.length > 1) return
  assert.strictEqual(got.first, 0)
  assert.isAtLeast(got.next, next)
  assert.isAtMost(got.next, next + 1) // it may have been about to note it
})
