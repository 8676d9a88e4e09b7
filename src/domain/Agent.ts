/**
 * What kind of hyperstart agent a VM runs, what that means for its stdin, and the messages whose shape depends on it.
 *
 * Source: PROTOCOL.md, "Agents".
 */
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { u32 } from "./Bytes.ts"

/** `c` once a NEXT has come; `go` once a reply came with no NEXT before it. */
export type AgentKind = "unknown" | "c" | "go"

/** How stdin is cut for one kind of agent. */
export interface StdinRule {
  /** Most data bytes in one message. */
  readonly messageData: number
  /** Most data bytes for one process before `pingsPerWindow` answered pings; infinity for no end. */
  readonly window: number
  /** Whether the rest of a large input waits for more, for `tailWait` at most, so that messages stay full. */
  readonly full: boolean
}

/**
 * How long the rest of a large input waits for more, in milliseconds: far longer than a shim takes to write its next frame,
 * also on a host that has more to do than cores. With 2, every tenth large input on such a host tore a header.
 */
export const tailWait = 20

/** The same after one daemon has taken another's place, and how long it is so, in milliseconds: what shims had sent meanwhile is yet to be read. */
export const resumedTailWait = 500
export const resumedFor = 5000

/**
 * C agent: it buffers 512 bytes per process and drops what does not fit; a message over 4,096 bytes crashes it.
 * Go agent: it dies of a header that straddles a 4,096-byte boundary of what QEMU reads, so messages are 1,024 bytes in all,
 * and a shorter one leaves only where nothing large comes before or behind it.
 * Unknown: 512 bytes in all, which every agent takes.
 */
export const stdinRules: Readonly<Record<AgentKind, StdinRule>> = {
  c: { messageData: 512, window: 512, full: false },
  go: { messageData: 1024 - 12, window: Number.POSITIVE_INFINITY, full: true },
  unknown: { messageData: 512 - 12, window: Number.POSITIVE_INFINITY, full: false }
}

/** Answered pings after which a C agent has emptied its buffer: one loses 40 % of a fast stdin, two 1 %, three nothing. */
export const pingsPerWindow = 4

/** hyperstart's API from which exits come as ctl events, and `signalprocess` exists. */
export const eventApi = 4244

/** The API version in the reply to `version`: a big-endian u32; 0 where the agent answers something else. */
export const apiVersionOf = (payload: Uint8Array): number => (payload.length === 4 ? u32(payload, 0) : 0)

const ProcessEvent = Schema.fromJsonString(
  Schema.Struct({
    container: Schema.String,
    process: Schema.String,
    event: Schema.String,
    status: Schema.Int
  })
)
/** What a ctl event 23 tells. */
export type ProcessEvent = typeof ProcessEvent.Type

const utf8 = new TextDecoder()
const toUtf8 = new TextEncoder()
const decode = Schema.decodeUnknownResult(ProcessEvent)

/** Largest event that is read, in bytes: two names and a number. A guest must not keep the daemon busy with more. */
const maxEvent = 64 * 1024

/** Reads a ctl event 23; `undefined` where it is not one. */
export const decodeProcessEvent = (payload: Uint8Array): ProcessEvent | undefined =>
  payload.length > maxEvent ? undefined : Result.getOrUndefined(decode(utf8.decode(payload)))

/** What an agent calls a process that was started without an id. */
export const unnamedProcess = "(null)"

const json = (value: unknown): Uint8Array => toUtf8.encode(JSON.stringify(value))

/** `winsize` of an agent below `eventApi`, by the session's stdio sequence. */
export const winsizeBySequence = (seq: number, row: number, column: number): Uint8Array => json({ seq, row, column })

/** `winsize` of an agent of `eventApi` or later. */
export const winsizeByProcess = (container: string, process: string, row: number, column: number): Uint8Array =>
  json({ container, process, row, column })

/** `killcontainer`: a signal for a container's init process. */
export const killContainer = (container: string, signal: number): Uint8Array =>
  json({ container, signal, allProcesses: false })

/** `pscontainer`: the processes of a container; the Go agent refuses it for one that does not run. */
export const psContainer = (container: string): Uint8Array => json({ container, format: "json", psArgs: [] })

/** Whether an agent's text says that a container does not run, or is not there. */
export const saysGone = (text: string): boolean =>
  /is not running|not found|no such container|unknown container/i.test(text)

/** `signalprocess`: a signal for an exec'ed process; agents of `eventApi` or later. */
export const signalProcess = (container: string, process: string, signal: number): Uint8Array =>
  json({ container, process, signal })
