/** Every wait and limit of the daemon, with its default. Flags change them; tests provide their own. */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as CtlMessage from "../domain/CtlMessage.ts"
import * as Frame from "../domain/Frame.ts"

export type Settings = {
  /** Dialling a VM's sockets; then RegisterVM fails. */
  readonly dialTimeout: Duration.Duration
  /** The agent's READY; then RegisterVM fails. */
  readonly readyTimeout: Duration.Duration
  /** The agent's reply to a command that has been written, and the turn of one that has not; then that client gets an error. */
  readonly ctlTimeout: Duration.Duration
  /** The shim of a process that is to start; then the start fails. */
  readonly shimTimeout: Duration.Duration
  /** The process of a signal; then the signal fails. */
  readonly processTimeout: Duration.Duration
  /** The next byte of a frame that a client has begun, while the proxy reads; then the connection is closed. */
  readonly frameTimeout: Duration.Duration
  /** A clean stop; then the daemon exits all the same. */
  readonly stopTimeout: Duration.Duration
  /** What a lost VM's sessions have received is kept for shims that are away; then, or at UnregisterVM, it is dropped. */
  readonly orphanTimeout: Duration.Duration
  /** How long an id that was lost before it was unregistered may still be unregistered. */
  readonly lostIdTimeout: Duration.Duration
  readonly payloadLimits: Frame.PayloadLimits
  /** Largest message to an agent, in bytes, header included. */
  readonly maxCtlCommand: number
  /** Most tokens that one command may ask for. */
  readonly maxTokens: number
  /** Most tokens that a VM may have at once. */
  readonly maxVmTokens: number
  /** Bytes of output that wait in memory for one shim; then its VM's io pauses. */
  readonly outboxLimit: number
  /** Bytes of stdin that wait in memory for one process; then its shim's socket is left unread. */
  readonly stdinLimit: number
  /** Commands of one client that may be under way at once; then its socket is left unread. */
  readonly maxPipelined: number
  /** Whether a VM's console is read and logged, and io is dumped: at debug level. */
  readonly debug: boolean
}

/** Source of each number: PROTOCOL.md, "Limits". */
export const defaults: Settings = {
  dialTimeout: Duration.seconds(5),
  readyTimeout: Duration.seconds(30),
  ctlTimeout: Duration.seconds(60),
  shimTimeout: Duration.seconds(30),
  processTimeout: Duration.seconds(30),
  frameTimeout: Duration.seconds(30),
  stopTimeout: Duration.seconds(3),
  orphanTimeout: Duration.seconds(30),
  lostIdTimeout: Duration.minutes(10),
  payloadLimits: Frame.defaultLimits,
  maxCtlCommand: CtlMessage.defaultMaxCommand,
  maxTokens: 1024,
  maxVmTokens: 16 * 1024,
  outboxLimit: 1024 * 1024,
  stdinLimit: 1024 * 1024,
  maxPipelined: 64,
  debug: false
}

export const Settings = Context.Reference<Settings>("cc-proxy/services/Settings", { defaultValue: () => defaults })
