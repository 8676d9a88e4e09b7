/** A VM whose processes write and read without a pause, and shims that check each line. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as ChildProcess from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import * as Client from "../../src/client/index.ts"
import * as SimulatedVm from "../../src/sim/SimulatedVm.ts"
import { happened, until } from "../support/e2e/Wait.ts"
import * as Unit from "./Unit.ts"

/** Seconds that whatever is under way may take on a busy machine. */
const patience = 30

/** Lines 1, 2, 3, …, checked as they come. */
export class Numbers {
  /** The last one. */
  last = 0
  /** Where the next one was not the next: what was there, and what came. */
  readonly gaps: Array<readonly [last: number, came: string]> = []
  #rest = ""

  push(text: string): void {
    const lines = (this.#rest + text).split("\n")
    this.#rest = lines.pop()!
    for (const line of lines) {
      if (line !== String(this.last + 1)) this.gaps.push([this.last, line])
      this.last = Number(line)
    }
  }
}

/** What a shim of one process has had. */
export class Shim {
  /** How often the token was claimed: once, unless the connection was closed. */
  claims = 0
  readonly numbers = new Numbers()
  stdout = ""
  stderr = ""
  status: number | undefined
  /** Why it has given up. */
  failure: string | undefined
  /** Lines of stdin so far. */
  sent = 0
  /** No more stdin. */
  enough = false
  /** Its connection, while it has one. */
  current: Client.Shim | undefined

  /** Sends stdin. */
  type(text: string): Effect.Effect<void, Client.ConnectionError> {
    return this.current!.stdin(Buffer.from(text))
  }

  /** Waits until it has given up, or had the status. */
  get over(): Effect.Effect<boolean> {
    return until("the end of a shim", () => this.status !== undefined || this.failure !== undefined, patience)
  }
}

/** Lines of stdin that may be on their way. */
const ahead = 2000

/** Writes lines 1, 2, 3, … as long as the process, which tells every 100th line that it reads, keeps up with them. */
const feed = Effect.fnUntraced(function* (seen: Shim, shim: Client.Shim) {
  // ends a line that the connection before may have torn
  yield* shim.stdin(Buffer.from("\n"))
  while (!seen.enough) {
    const lines = Array.from({ length: 100 }, () => ++seen.sent)
    yield* shim.stdin(Buffer.from(`${lines.join("\n")}\n`))
    yield* until("stdin to be read", () => seen.enough || seen.sent - acknowledged(seen) < ahead, patience)
  }
  yield* shim.endStdin
})

/** The last line of stdin that the process has told. */
const acknowledged = ({ stdout }: Shim): number => Number(/(\d+)\n$/.exec(stdout)?.[1] ?? 0)

type Kind = "writer" | "reader" | "other"

/** A shim for as long as the scope lasts, which connects again as real ones do. Returns once it is connected. */
export const connect = Effect.fnUntraced(function* (token: string, kind: Kind = "other") {
  const seen = new Shim()
  yield* Client.withShim(Unit.socketPath, token, (shim) =>
    Effect.gen(function* () {
      seen.claims++
      seen.current = shim
      happened()
      if (kind === "reader") yield* Effect.forkScoped(Effect.ignore(feed(seen, shim)))
      yield* Stream.runForEach(shim.output, ({ data, stream }) =>
        Effect.sync(() => {
          const text = Buffer.from(data).toString("latin1")
          if (stream === "stderr") seen.stderr += text
          else if (kind === "writer") seen.numbers.push(text)
          else seen.stdout += text
          happened()
        })
      )
      seen.status = yield* shim.exitStatus
      happened()
      yield* Effect.ignore(shim.disconnect)
    })
  ).pipe(
    Effect.catch((error) =>
      Effect.sync(() => {
        seen.failure = error.message
        happened()
      })
    ),
    Effect.forkScoped
  )
  yield* until("a shim's connection", () => seen.claims > 0 || seen.failure !== undefined)
  return seen
})

/** Writes lines 1, 2, 3, … until the file of its first argument is there; tells the last one on stderr. */
const writer = 'i=0; until [ -e "$0" ]; do seq $((i + 1)) $((i + 500)); i=$((i + 500)); done; echo $i >&2; exit 7'

/** Reads lines; tells every 100th, and at the end the last one and how many were not the next. */
const reader = `last=0 gaps=0
while read -r n; do
  [ -n "$n" ] || continue
  [ "$n" = $((last + 1)) ] || gaps=$((gaps + 1))
  last=$n
  [ $((n % 100)) -ne 0 ] || echo $n
done
echo end $last $gaps
exit 3`

let count = 0

export interface Vm {
  readonly id: string
  readonly machine: SimulatedVm.SimulatedVm
  readonly directory: string
  readonly tokens: ReadonlyArray<string>
  /** A client attached to it, connected as long as the daemon lets it. */
  readonly runtime: Client.Connection
  /** The connections that its two sockets have. */
  readonly connections: () => ReadonlyArray<ReadonlyArray<string>>
}

/** A VM that is registered, with three tokens. */
export const boot = Effect.fnUntraced(function* (agent: "c" | "go") {
  const directory = yield* Effect.acquireRelease(
    Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "vm-"))),
    (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true, force: true }))
  )
  const id = `pod-${++count}`
  const [ctlPath, ioPath] = [Path.join(directory, "ctl.sock"), Path.join(directory, "io.sock")]
  const machine = yield* SimulatedVm.make({ ctlPath, ioPath, agent })
  const runtime = yield* Client.connect(Unit.socketPath)
  const { tokens } = yield* Client.registerVM(runtime, {
    containerId: id,
    ctlSerial: ctlPath,
    ioSerial: ioPath,
    numIOStreams: 3
  })
  return {
    id,
    machine,
    directory,
    tokens,
    runtime,
    connections: () => [Unit.connections(ctlPath), Unit.connections(ioPath)]
  } satisfies Vm
})

const process = (id: string, ...args: ReadonlyArray<string>) => ({
  id,
  args: [...args],
  envs: [],
  workdir: "/",
  terminal: false
})

/** The only process of a container of its own, a script for sh, and its shim. */
export const runAlone = Effect.fnUntraced(function* (vm: Vm, script: string, ...args: ReadonlyArray<string>) {
  const token = vm.tokens[2]!
  const shim = yield* connect(token)
  yield* Client.newContainer(vm.runtime, {
    token,
    data: { id: "c2", rootfs: "rootfs", image: "c2", process: process("p3", "sh", "-c", script, ...args) }
  })
  return shim
})

/** What it writes: more than is read at once, less than a socket's buffer. */
const lateOutput = `late\n${Array.from({ length: 15_000 }, (_, n) => `${n + 1}\n`).join("")}`

/** Proves that all of it has come, and its status, over so many connections. */
export const assertLate = ({ claims, failure, status, stdout }: Shim, connections: number): void => {
  assert.deepStrictEqual([failure, status, claims], [undefined, 9, connections])
  assert.isTrue(stdout === lateOutput, `${stdout.length} of ${lateOutput.length} characters`)
}

/** Starts a process which goes on only once `endLate` lets it, and its shim. */
export const runLate = Effect.fnUntraced(function* (vm: Vm) {
  const [go, gone] = [`${vm.directory}/go`, `${vm.directory}/gone`]
  ChildProcess.execFileSync("mkfifo", [go, gone])
  return yield* runAlone(vm, 'cat "$0"; seq 15000; : > "$1"; exit 9', go, gone)
})

/** Lets that process write its line and end; returns once it has ended. */
export const endLate = Effect.fnUntraced(function* ({ directory, machine }: Vm) {
  yield* Effect.promise(async () => {
    await Fs.promises.writeFile(`${directory}/go`, "late\n")
    await Fs.promises.readFile(`${directory}/gone`)
  })
  const alive = () => machine.containers().some(({ id, running }) => id === "c2" && running)
  while (alive()) yield* Effect.yieldNow
})

export interface Load extends Vm {
  readonly writer: Shim
  readonly reader: Shim
}

/** A VM with one process that writes and one that reads, both on their way. */
export const start = Effect.fnUntraced(function* (agent: "c" | "go") {
  const vm = yield* boot(agent)
  const [first, second] = [vm.tokens[0]!, vm.tokens[1]!]
  const load = { ...vm, writer: yield* connect(first, "writer"), reader: yield* connect(second, "reader") }
  yield* Client.newContainer(vm.runtime, {
    token: first,
    data: {
      id: "c1",
      rootfs: "rootfs",
      image: "c1",
      process: process("p1", "sh", "-c", writer, `${vm.directory}/enough`)
    }
  })
  yield* Client.execCmd(vm.runtime, {
    token: second,
    data: { container: "c1", process: process("p2", "sh", "-c", reader) }
  })
  yield* goesOn(load)
  return load satisfies Load
})

/** Proves that bytes flow both ways: stdin that is sent from here on is read, and what the process says of it has come. */
export const goesOn = Effect.fnUntraced(function* ({ reader, writer }: Load) {
  const [written, read] = [writer.numbers.last + 20_000, reader.sent + 500]
  const failed = () => {
    const failure = writer.failure ?? reader.failure
    if (failure !== undefined) throw new Error(`a shim has given up: ${failure}`)
  }
  yield* until("more output", () => (failed(), writer.numbers.last > written), patience)
  yield* until("more stdin to be read", () => (failed(), acknowledged(reader) > read), patience)
})

/** Ends both processes, and waits until their shims know. */
export const finish = Effect.fnUntraced(function* ({ directory, reader, writer }: Load) {
  reader.enough = true
  happened()
  yield* reader.over
  // the container's init process is the last to go
  Fs.writeFileSync(`${directory}/enough`, "")
  yield* writer.over
  assert.deepStrictEqual([writer.failure, writer.status], [undefined, 7])
  assert.deepStrictEqual([reader.failure, reader.status], [undefined, 3])
  assert.strictEqual(writer.numbers.last, Number(writer.stderr), "the last line of the output has come")
})

/** Proves that neither direction has lost or doubled anything, and that no shim has seen a close. Ends the processes. */
export const finishWhole = Effect.fnUntraced(function* (load: Load) {
  yield* finish(load)
  const { reader, writer } = load
  assert.deepStrictEqual(writer.numbers.gaps, [])
  assert.strictEqual(/end .*\n$/.exec(reader.stdout)?.[0], `end ${reader.sent} 0\n`)
  assert.deepStrictEqual([writer.claims, reader.claims], [1, 1])
})

/** Proves that all shims have connected again, once, and that everything that came afterwards came. Ends the processes. */
export const finishReconnected = Effect.fnUntraced(function* (load: Load) {
  yield* finish(load)
  const { reader, writer } = load
  assert.isAtMost(writer.numbers.gaps.length, 2, JSON.stringify(writer.numbers.gaps)) // a torn line, and what follows it
  assert.match(reader.stdout, new RegExp(`end ${reader.sent} \\d+\n$`))
  assert.deepStrictEqual([writer.claims, reader.claims], [2, 2])
})
