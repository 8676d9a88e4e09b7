/** Every wait and limit of the daemon, with its default. Flags change them; tests provide their own. */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as CtlMessage from "../domain/CtlMessage.ts"
import * as Frame from "../domain/Frame.ts"
import * as IoMessage from "../domain/IoMessage.ts"

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
  /** A session without a shim is kept after its process has ended, or its VM; then it is freed, and what it holds dropped. */
  readonly orphanTimeout: Duration.Duration
  /** How long a pod's daemon waits for UnregisterVM once its VM has come to its end; then it exits all the same. */
  readonly podTimeout: Duration.Duration
  /** How long an id that was lost before it was unregistered may still be unregistered. */
  readonly lostIdTimeout: Duration.Duration
  /** Clients that may be connected at once, those whose connection is ending included. */
  readonly maxConnections: number
  /** VMs that may be there at once: registered, being registered, and unregistered or lost ones that still live. */
  readonly maxVms: number
  /** Most tokens that one command may ask for. */
  readonly maxTokens: number
  /** Most tokens that a VM may have at once. */
  readonly maxVmTokens: number
  /** Largest payload of a Hyper command, in bytes. */
  readonly maxHyper: number
  /** Largest payload of any other command, and of a log entry, in bytes. */
  readonly maxCommand: number
  /** Largest payload of a stdin frame, in bytes. */
  readonly maxStdin: number
  /** Largest message to an agent, in bytes, header included. */
  readonly maxCtlCommand: number
  /** Largest ctl message from an agent, in bytes, header included. */
  readonly maxCtlReply: number
  /** Largest io message from an agent, in bytes, header included. */
  readonly maxIoMessage: number
  /** Log entries that one client may send a second, after as many at once. */
  readonly logRate: number
  /** Bytes of output that wait in memory for one shim; then its VM's io pauses. */
  readonly outboxLimit: number
  /** Bytes of stdin that wait in memory for one process; then its shim's socket is left unread. */
  readonly stdinLimit: number
  /** Bytes that wait on disk for one process; 0: nothing ever does. */
  readonly spoolLimit: number
  /** Bytes that wait on disk for all processes together. */
  readonly spoolTotal: number
  /** Bytes that a client's wire may hold; then its socket is left unread. More than output alone: 192 KiB beside a message. */
  readonly maxPending: number
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
  orphanTimeout: Duration.minutes(10),
  podTimeout: Duration.seconds(30),
  lostIdTimeout: Duration.minutes(10),
  maxConnections: 4096,
  maxVms: 1024,
  maxTokens: 1024,
  maxVmTokens: 16 * 1024,
  maxHyper: Frame.defaultLimits.hyper,
  maxCommand: Frame.defaultLimits.command,
  maxStdin: Frame.defaultLimits.stdin,
  maxCtlCommand: CtlMessage.defaultMaxCommand,
  maxCtlReply: CtlMessage.defaultMaxReply,
  maxIoMessage: IoMessage.maxMessage,
  logRate: 100,
  outboxLimit: 1024 * 1024,
  stdinLimit: 1024 * 1024,
  spoolLimit: 256 * 1024 * 1024,
  spoolTotal: 4 * 1024 * 1024 * 1024,
  maxPending: 1280 * 1024,
  maxPipelined: 64,
  debug: false
}

export const Settings = Context.Reference<Settings>("cc-proxy/services/Settings", { defaultValue: () => defaults })
