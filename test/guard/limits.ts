/**
 * What may be spent. Each row reads as a sentence: "a command allocates at most 6,908 bytes". Whoever makes something cheaper
 * sets the new value here, from the table that `make guard` prints; whoever makes something dearer says why in the same change.
 */
import type { DaemonReport, InstructionsReport, MemoryReport, Size, SystemCallsReport } from "./Reports.ts"

export interface Limit<Report> {
  /** What was counted when the limit was set. */
  readonly value: number
  readonly limit: number
  readonly unit: string
  readonly of: (report: Report) => number
  readonly why: string
}

type Rows<Report> = Readonly<Record<string, Limit<Report>>>

const garbage = "garbage is CPU time later, and a pause in the middle of somebody's echo"
const left =
  "what only a full collection frees grows the daemon between two of them: entries of long-lived sets and maps, closures " +
  "assigned to properties as they are written, generators made for each call"
const fibers = "a fiber costs a context, a scope and an end"
const steps = "each step of a fiber is CPU time that no single function's profile shows"
const rest = "a daemon with a thousand VMs is mostly at rest: its memory is made of these"
const call = "a system call costs more than what is done about the bytes it carries"
const batches = "one write for each shim and batch, however many messages the batch has"
const cpu = "CPU time without the noise of a clock; of code that is compiled, not optimised"
const load = "read at each start, before anybody is answered"

/** A count that may creep, a little: by 15 %. */
const about = <R>(value: number, unit: string, of: (report: R) => number, why: string): Limit<R> => ({
  value,
  limit: value < 10 ? value * 1.15 : Math.floor(value * 1.15),
  unit,
  of,
  why
})

/** Bytes of which none should be left: a collection does not come out quite even. */
const remnant = <R>(value: number, of: (report: R) => number, why = left): Limit<R> => ({
  value,
  limit: Math.floor(value * 1.15) + 50,
  unit: "bytes",
  of,
  why
})

/** A count that is the same in every run, or up to `most` where that is given. */
const exactly = <R>(value: number, unit: string, of: (report: R) => number, why: string, most = value): Limit<R> => ({
  value,
  limit: most,
  unit,
  of,
  why
})

/** Of work in memory. Bytes are of V8's heap; what buffers hold outside of it is not in them. */
const memory: Rows<MemoryReport> = {
  "a command allocates": about(6007, "bytes", ({ costs }) => costs.command.bytes, garbage),
  "a command leaves for a full collection": remnant(257, ({ costs }) => costs.command.kept),
  "a command starts": exactly(1, "fibers", ({ costs }) => costs.command.fibers, fibers),
  "a command takes": about(11, "steps", ({ costs }) => costs.command.steps, steps),
  "a visit allocates": about(24_590, "bytes", ({ costs }) => costs.visit.bytes, garbage),
  "a visit leaves for a full collection": remnant(480, ({ costs }) => costs.visit.kept),
  "a visit starts": exactly(3, "fibers", ({ costs }) => costs.visit.fibers, fibers),
  "a visit takes": about(57, "steps", ({ costs }) => costs.visit.steps, steps),
  "a session of a VM that stays allocates": about(77_334, "bytes", ({ costs }) => costs.session.bytes, garbage),
  "a session of a VM that stays leaves for a full collection": remnant(2517, ({ costs }) => costs.session.kept),
  "a session of a VM that stays starts": exactly(8, "fibers", ({ costs }) => costs.session.fibers, fibers),
  "a VM's life allocates": about(177_217, "bytes", ({ costs }) => costs.life.bytes, garbage),
  "a VM's life leaves for a full collection": remnant(3225, ({ costs }) => costs.life.kept),
  "a VM's life starts": exactly(14, "fibers", ({ costs }) => costs.life.fibers, fibers),
  "a VM's life takes": about(310, "steps", ({ costs }) => costs.life.steps, steps),
  "a message of stdout allocates": about(2.52, "bytes", ({ costs }) => costs.output.bytes, batches),
  "a message of stdout allocates, 16 sessions in turn,": about(
    229,
    "bytes",
    ({ costs }) => costs.outputInTurn.bytes,
    "each message is a run of its own, but a view of what was read"
  ),
  "a message of stdin allocates": about(1913, "bytes", ({ costs }) => costs.input.bytes, garbage),
  "an echo allocates": about(3569, "bytes", ({ costs }) => costs.echo.bytes, garbage),
  "an echo starts": exactly(0, "fibers", ({ costs }) => costs.echo.fibers, "what reads a socket runs already"),
  "an echo takes": about(12, "steps", ({ costs }) => costs.echo.steps, steps),
  "a VM at rest, with its shim, holds": about(21_400, "bytes", ({ idleVm }) => idleVm, rest),
  "a client at rest holds": about(4812, "bytes", ({ idleClient }) => idleClient, rest)
}

/** Of the built daemon, with real sockets, by code that is not optimised. */
const daemon: Rows<DaemonReport> = {
  "a command over sockets allocates": about(13_083, "bytes", ({ costs }) => costs.command.bytes, garbage),
  "a command over sockets leaves for a full collection": remnant(406, ({ costs }) => costs.command.kept),
  "a visit over sockets allocates": about(58_793, "bytes", ({ costs }) => costs.visit.bytes, garbage),
  "a visit over sockets leaves for a full collection": remnant(
    2591,
    ({ costs }) => costs.visit.kept,
    `${left}; 1,100 of these are Node's own, of each socket`
  ),
  "a VM's life over sockets allocates": about(338_669, "bytes", ({ costs }) => costs.life.bytes, garbage),
  "a VM's life over sockets leaves for a full collection": remnant(11_597, ({ costs }) => costs.life.kept),
  "a start, until it listens, loads": about(118, "modules of Node", ({ modules }) => modules.length, load),
  "a start, until it listens, loads of its own": exactly(
    1,
    "files",
    ({ files }) => files.length,
    "what few starts use, the demo first, is in a file of its own"
  ),
  "a start, until it listens, loads for nothing": exactly(
    0,
    "modules of Node",
    ({ unwanted }) => unwanted.length,
    "TLS, HTTP, child processes, workers, the inspector: milliseconds each"
  )
}

/** Of the build. */
const size: Rows<Size> = {
  "the program has": about(546_116, "bytes", ({ program }) => program, load),
  "its compile cache has": about(
    759_840,
    "bytes",
    ({ cache }) => cache,
    "read at each start, and at a first look at the help"
  )
}

const instructions: Rows<InstructionsReport> = {
  "a command costs": about(155_315, "instructions", ({ command }) => command, cpu),
  "a VM's life costs": about(3_403_834, "instructions", ({ life }) => life, cpu),
  "a message of stdout costs": about(5282, "instructions", ({ output }) => output, cpu),
  "a message of stdout costs, 16 sessions in turn,": about(
    14_100,
    "instructions",
    ({ outputInTurn }) => outputInTurn,
    cpu
  ),
  "an echo costs": about(139_572, "instructions", ({ echo }) => echo, cpu)
}

/** Of the built daemon, on its sockets. A batch is what a VM writes at once. */
const systemCalls: Rows<SystemCallsReport> = {
  "a command reads": exactly(2, "times", ({ command }) => command.read, "the command, the agent's reply"),
  "a command writes": exactly(2, "times", ({ command }) => command.write, "the agent's message, the response"),
  "a command calls for more": exactly(0, "times", ({ command }) => command.other, call),
  "a visit reads": exactly(4, "times", ({ visit }) => visit.read, "two commands, a reply, the client's end"),
  "a visit writes": exactly(3, "times", ({ visit }) => visit.write, "two responses, the agent's message"),
  "a visit calls for more": exactly(3, "times", ({ visit }) => visit.other, "accept, shutdown, close"),
  "a batch of stdout reads": exactly(1, "times", ({ output }) => output.read, "it comes whole"),
  "a batch of stdout writes": exactly(1, "times", ({ output }) => output.write, batches),
  "a batch of stdout reads, 16 sessions in turn,": exactly(
    1,
    "times",
    ({ outputInTurn }) => outputInTurn.read,
    "it comes whole"
  ),
  "a batch of stdout writes, 16 sessions in turn,": exactly(
    16,
    "times",
    ({ outputInTurn }) => outputInTurn.write,
    batches
  ),
  "an echo reads": exactly(2, "times", ({ echo }) => echo.read, "the shim's frame, the agent's message"),
  "an echo writes": exactly(2, "times", ({ echo }) => echo.write, "the agent's message, the shim's frame"),
  "a VM's life reads": exactly(
    12,
    "times",
    ({ life }) => life.read,
    "READY, four commands, DisconnectShim, a reply, the output with its end, and four ends of connections"
  ),
  "a VM's life writes": exactly(
    6,
    "times",
    ({ life }) => life.write,
    "four responses, newcontainer, the output with its end"
  ),
  "a VM's life calls for more": exactly(
    12,
    "times",
    ({ life }) => life.other,
    "two accepts, two sockets, two connects, two shutdowns, four closes; a shutdown more where a VM's channels end apart",
    13
  )
}

export const limits = { memory, daemon, size, instructions, systemCalls }
