/**
 * Program that puts the proxy to work in memory, built as the daemon is. `memory` tells what each piece of work allocates,
 * starts and leaves behind, on a heap whose young generation is so large that nothing is collected between two looks;
 * `instructions` marks where each piece of work begins and ends, for callgrind to count between. Both print one line of JSON.
 */
import * as Effect from "effect/Effect"
import { Command, encode, FrameType, StreamKind } from "../../src/domain/Frame.ts"
import * as IoMessage from "../../src/domain/IoMessage.ts"
import * as Memory from "./MemoryDaemon.ts"
import { type Cost, type Marked, type MemoryReport, type WorkName, workNames } from "./Reports.ts"

const { agentOf, ask, command, connect, powerOff, turn, until } = Memory

interface Work {
  /** Does it once. */
  readonly run: () => Promise<void> | void
  /** How many messages, commands or lives that is. */
  readonly per: number
}

const register = (id: string, tokens: number) =>
  command(Command.RegisterVM, {
    containerId: id,
    ctlSerial: `ctl:${id}`,
    ioSerial: `io:${id}`,
    numIOStreams: tokens
  })

const start = (token: string) =>
  command(Command.Hyper, {
    hyperName: "newcontainer",
    tokens: [token],
    data: { id: "c1", process: { id: "init", args: ["sh"] } }
  })

const claim = (token: string) => command(Command.ConnectShim, { token })

/** A VM with processes that last, and their shims. */
const boot = async (id: string, processes: number) => {
  const runtime = connect()
  await ask(runtime, register(id, processes))
  const agent = agentOf(id)
  agent.ctl.lasting = true
  const shims: Array<Memory.Client> = []
  for (const token of Memory.lastTokens(processes)) {
    const shim = connect()
    await ask(shim, claim(token))
    await ask(runtime, start(token))
    shims.push(shim)
  }
  return { agent, runtime, shims }
}

const ping = command(Command.Hyper, { hyperName: "ping" })
const disconnect = command(Command.DisconnectShim, undefined)

/** Output and input come in messages of 64 bytes. */
const payload = new Uint8Array(64).fill(120)
const stdin = encode({ type: FrameType.stream, opcode: StreamKind.stdin, inError: false, payload })

/** Bytes of output read at once: what Node reads from a full socket. */
const batchSize = 64 * 1024

/** A batch of output, strictly in turns from each of so many processes. */
const output = (id: string, processes: number) => async (): Promise<Work> => {
  const { agent, shims } = await boot(id, processes)
  const count = Math.floor(batchSize / (IoMessage.headerSize + payload.length))
  const messages = Array.from({ length: count }, (_, at) => IoMessage.encode(3 + 2 * (at % processes), payload))
  const batch = Buffer.concat(messages)
  const received = () => shims.reduce((total, shim) => total + shim.received, 0)
  // made beforehand: the proxy rewrites what it is given
  const batches = Array.from({ length: maxBatches }, () => new Uint8Array(batch))
  let expected = received()
  return {
    per: count,
    run: () => {
      agent.io.give(batches.pop()!)
      expected += batch.length
      if (received() !== expected) throw new Error("output is missing")
    }
  }
}

/** One frame of stdin for an agent that keeps it, or sends it back. */
const input = (id: string, echoing: boolean) => async (): Promise<Work> => {
  const { agent, shims } = await boot(id, 1)
  agent.io.echoing = echoing
  const shim = shims[0]!
  const reader = echoing ? shim : agent.io
  return {
    per: 1,
    run: () => {
      const before = reader.received
      shim.give(stdin)
      if (reader.received - before !== stdin.length) throw new Error("input is missing")
    }
  }
}

const works: Readonly<Record<WorkName, () => Promise<Work>>> = {
  /** A Hyper command of a client that stays. */
  command: async () => {
    const { runtime } = await boot("command", 0)
    return {
      per: 1,
      run: () => {
        const before = runtime.responses
        runtime.give(ping)
        if (runtime.responses !== before + 1) throw new Error("a response is missing")
      }
    }
  },
  /** What a runtime does for each command: connects, AttachVM, Hyper, closes. */
  visit: async () => {
    await boot("visit", 0)
    const attach = command(Command.AttachVM, { containerId: "visit" })
    const run = async () => {
      const client = connect()
      await ask(client, attach)
      await ask(client, ping)
      client.hangUp()
    }
    return { per: 1, run }
  },
  /** A session of a VM that stays: AttachVM with one token, ConnectShim, newcontainer, its end, DisconnectShim. */
  session: async () => {
    const { agent, runtime } = await boot("session", 0)
    const attach = command(Command.AttachVM, { containerId: "session", numIOStreams: 1 })
    let stdio = 1
    const run = async () => {
      await ask(runtime, attach)
      stdio += 2
      const token = Memory.lastTokens(1)[0]!
      const shim = connect()
      await ask(shim, claim(token))
      await ask(runtime, start(token))
      agent.io.give(Memory.end(stdio))
      if (!shim.exited) await until(() => shim.exited)
      shim.give(disconnect)
      shim.hangUp()
    }
    return { per: 1, run }
  },
  /** RegisterVM, ConnectShim, newcontainer, output, its end, DisconnectShim, UnregisterVM; and the VM powers off. */
  life: async () => {
    let count = 0
    const run = async () => {
      const id = `life ${++count}`
      const runtime = connect()
      await ask(runtime, register(id, 1))
      const token = Memory.lastTokens(1)[0]!
      const shim = connect()
      await ask(shim, claim(token))
      await ask(runtime, start(token))
      if (!shim.exited) await until(() => shim.exited)
      shim.give(disconnect)
      await ask(runtime, command(Command.UnregisterVM, { containerId: id }))
      powerOff(id)
      shim.hangUp()
      runtime.hangUp()
    }
    return { per: 1, run }
  },
  output: output("output", 1),
  outputInTurn: output("output in turn", 16),
  input: input("input", false),
  echo: input("echo", true)
}

/**
 * How often work is done: first until the optimiser has come to rest, then while its cost is taken, which must be often enough for
 * the look at the heap itself not to count.
 */
const times: Readonly<Record<WorkName, { readonly before: number; readonly measured: number }>> = {
  command: { before: 20_000, measured: 5000 },
  visit: { before: 5000, measured: 2000 },
  session: { before: 3000, measured: 1000 },
  life: { before: 3000, measured: 500 },
  output: { before: 300, measured: 100 },
  outputInTurn: { before: 200, measured: 50 },
  input: { before: 20_000, measured: 5000 },
  echo: { before: 20_000, measured: 5000 }
}

/** Most batches of output. */
const maxBatches = 400

const repeat = async (times: number, { run }: Work): Promise<void> => {
  for (let count = 0; count < times; count++) {
    const running = run()
    if (running !== undefined) await running
  }
}

const heap = (): number => process.memoryUsage().heapUsed

/** Collections, and what only shows a turn after one. */
const collect = async (type: "minor" | "major"): Promise<void> => {
  for (let pass = 0; pass < 3; pass++) {
    globalThis.gc!({ type })
    await turn()
  }
}

/** Heap that equal things occupy, each. */
const sizeOf = async (make: (count: number) => Promise<unknown>): Promise<number> => {
  const times = 500
  const keep: Array<unknown> = Array.from({ length: 2 * times })
  for (let count = 0; count < times; count++) keep[count] = await make(count)
  await collect("major")
  const before = heap()
  for (let count = times; count < keep.length; count++) keep[count] = await make(count)
  await collect("major")
  const size = (heap() - before) / times
  if (keep.includes(undefined)) throw new Error("something was not kept")
  return size
}

const memory = async (): Promise<MemoryReport> => {
  const costs: Partial<Record<WorkName, Cost>> = {}
  for (const name of workNames) {
    const work = await works[name]()
    const { before, measured } = times[name]
    await repeat(before, work)
    await collect("major")
    const fibers = Memory.fibersStarted()
    const { steps } = Memory.scheduler
    const atFirst = heap()
    await repeat(measured, work)
    const bytes = heap() - atFirst
    const count = measured * work.per
    const cost = {
      bytes: bytes / count,
      steps: (Memory.scheduler.steps - steps) / count,
      fibers: Math.floor((Memory.fibersStarted() - fibers - 1) / count) // timers have some, now and then
    }
    await collect("minor")
    costs[name] = { ...cost, kept: (heap() - atFirst) / count }
  }
  await boot("idle", 0)
  const attach = command(Command.AttachVM, { containerId: "idle" })
  return {
    costs: costs as MemoryReport["costs"], // every name has had its turn
    idleVm: await sizeOf(async (count) => {
      const owner = connect()
      await ask(owner, register(`idle ${count}`, 1))
      owner.hangUp()
      const shim = connect()
      await ask(shim, claim(Memory.lastTokens(1)[0]!))
      return shim
    }),
    idleClient: await sizeOf(async () => {
      const client = connect()
      await ask(client, attach)
      return client
    })
  }
}

/** Callgrind begins a new count whenever the process asks for its uptime, which nothing else does. */
const mark = () => void process.uptime()

const instructions = async (): Promise<ReadonlyArray<Marked>> => {
  const marked: Array<Marked> = []
  for (const [name, times] of [
    ["command", 100],
    ["life", 20],
    ["output", 5],
    ["outputInTurn", 3],
    ["echo", 100]
  ] as const) {
    const work = await works[name]()
    await repeat(times, work)
    await turn()
    mark()
    await repeat(times, work)
    mark()
    marked.push({ name, count: times * work.per })
  }
  return marked
}

// the build runs its result once, with another argument
const measurement = { memory, instructions }[process.argv[2] ?? ""]
if (measurement !== undefined) {
  Effect.runFork(Memory.serve)
  void turn()
    .then((): Promise<unknown> => measurement())
    .then((report) => process.stdout.write(`${JSON.stringify(report)}\n`, () => process.exit(0)))
}
