/**
 * One process's I/O session: a token, two sequence numbers, the shim that has claimed the token at the moment, the output
 * that waits for it, and the stdin that waits for the process. Its VM owns it; it outlives any number of shims.
 *
 * Output and stdin pass through without an effect of their own: whoever brings a batch calls `deliver` and `flush`, or `feed`.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Agent from "../domain/Agent.ts"
import { ByteQueue } from "../domain/ByteQueue.ts"
import { redactToken } from "../domain/ClientCommand.ts"
import type { ProcessStart } from "../domain/HyperData.ts"
import * as IoMessage from "../domain/IoMessage.ts"
import * as ProcessOutput from "../domain/ProcessOutput.ts"
import * as Condition from "./Condition.ts"
import type { VmLost } from "./CtlChannel.ts"
import type { Wire } from "./Wire.ts"

/** What a token cannot be used for, and why. */
export class SessionError extends Schema.TaggedError<SessionError>()("SessionError", { reason: Schema.String }) {
  override get message(): string {
    return this.reason
  }
}

/** The shim's connection, as its session sees it. */
export interface Shim {
  readonly wire: Wire
  /** Ends the connection, by half-close. */
  readonly end: (reason: string) => void
}

/**
 * `idle`: nothing asked, or the last start failed. `waiting`: a start waits for the shim or for its turn. `written`: the
 * agent has been asked. `started`: it has said ACK. Output may come, and end, before the ACK.
 */
export type Phase = "idle" | "waiting" | "written" | "started"

export interface Session {
  readonly token: string
  /** Sequence number of stdin and stdout; stderr's is the next one. */
  readonly stdio: number
  readonly state: () => SessionState
  /** Suspends until a test of the state holds; asked again at every change. */
  readonly until: Condition.Condition["until"]

  /** Gives the session to a shim. Its output is not sent before `attach`: the response comes first. */
  readonly claim: (shim: Shim) => SessionError | undefined
  /** Sends what has waited for the shim that claimed, and from now on what comes. */
  readonly attach: (shim: Shim) => void
  /** The shim's connection is about to end: it gets no more than it has been handed. */
  readonly detach: (shim: Shim) => void
  /** The shim's connection has ended. What it did not take is kept for the next. */
  readonly release: (shim: Shim) => void
  /** Sends what waits, once the shim's wire has drained. Run it in the shim's scope, after `attach`. */
  readonly drain: (shim: Shim) => Effect.Effect<never>

  /** Reserves the session for one process. */
  readonly begin: (start: ProcessStart) => SessionError | VmLost | undefined
  readonly written: () => void
  /** What became of the start: it runs, or another may be tried. */
  readonly settled: (started: boolean) => void
  /**
   * Ends a process that nothing has been written for, with status 0. False where it is too late for that.
   */
  readonly killUnstarted: () => boolean
  /** What a start fails with that `killUnstarted` came before. */
  readonly killed: () => SessionError

  /** Takes the ownership of a run of output. Follow it with `flush`, once a batch. Returns bytes dropped after the end. */
  readonly deliver: (run: IoMessage.Run) => number
  readonly flush: () => void
  /** The exit status, told by an event. */
  readonly exit: (status: number) => void
  /** Bytes of output that wait, here or in the shim's wire. */
  readonly backlog: () => number

  /** Takes stdin, or its end where `data` is empty. Follow it with `pump`, once a batch. */
  readonly feed: (data: Uint8Array) => void
  /** Sends stdin, if the process has started. */
  readonly pump: () => void
  /** Bytes of stdin that wait. */
  readonly unfed: () => number
  /** Takes up to `size` bytes of messages for the agent, in a buffer of its own; `undefined` where none may be sent now. */
  readonly takeStdin: (rule: Agent.StdinRule, size: number) => Uint8Array | undefined
  /** Whether stdin waits for nothing but a new window. */
  readonly needsWindow: () => boolean
  readonly openWindow: () => void
  /** Whether stdin waits for more, so that its messages stay full, and how many bytes have come in all. */
  readonly waitsForMore: () => number | undefined
  /** Nothing more has come in time: what is there may go. */
  readonly sendTail: () => void

  /** The shim has said goodbye, or nobody may come back: drops what waits. */
  readonly close: (reason: string) => void
  /** The VM is gone: what was received is still delivered. */
  readonly lose: (lost: VmLost) => void
}

export interface SessionState {
  readonly phase: Phase
  readonly process: ProcessStart | undefined
  readonly shim: Shim | undefined
  /** Whether the shim has had the answer to its claim. */
  readonly attached: boolean
  readonly outputEnded: boolean
  readonly status: number | undefined
  /** Why nothing can be waited for any more. */
  readonly over: SessionError | VmLost | undefined
}

/** Most bytes handed to a shim's wire at once, one chunk at least: a read's worth, and the message that straddles into it. */
const sliceSize = 128 * 1024

/** Bytes that a shim's wire may hold and still be handed more, so that it never runs dry: the rest waits here. */
const wireSize = 64 * 1024

/** What a session tells its VM, inside the call that caused it. */
export interface Hooks {
  /** Stdin may have become sendable. */
  readonly stdin: (session: Session) => void
  readonly firstOutput: () => void
  readonly exited: (status: number) => void
}

/** A session with its token and its stdio sequence number. */
export const make = (token: string, stdio: number, hooks: Hooks): Session => {
  const changed = Condition.make()
  const output = ProcessOutput.make(stdio)
  let phase: Phase = "idle"
  let process: ProcessStart | undefined
  let shim: Shim | undefined
  let attached = false
  let over: SessionError | VmLost | undefined
  let heard = false

  // output: the range that is being extended, what waits, in whole frames, and the last that was handed over
  let open: { readonly bytes: Uint8Array; readonly start: number; end: number } | undefined
  const outbox = new ByteQueue()
  let handed: Array<Uint8Array> = []
  let handedSize = 0

  // stdin
  const inbox = new ByteQueue()
  let eof: "none" | "waiting" | "sent" = "none"
  let window = Number.POSITIVE_INFINITY
  let fed = 0
  let flooding = false // the last message was full

  const emit = (bytes: Uint8Array, start: number, end: number) => {
    if (open !== undefined && open.bytes === bytes && open.end === start) {
      open.end = end
      return
    }
    seal()
    open = { bytes, start, end }
  }

  const seal = () => {
    if (open === undefined) return
    outbox.push(
      open.start === 0 && open.end === open.bytes.length ? open.bytes : open.bytes.subarray(open.start, open.end)
    )
    open = undefined
  }

  /** Forgets what the kernel has taken of what was handed over, but for the chunk that it may have taken in part. */
  const trim = (wire: Wire) => {
    const pending = wire.pending()
    let taken = 0
    while (taken < handed.length && handedSize - handed[taken]!.length >= pending) handedSize -= handed[taken++]!.length
    if (taken > 0) handed = handed.slice(taken)
  }

  /** Hands over what waits, as long as the shim keeps up. */
  const send = (wire: Wire) => {
    while (outbox.size > 0 && wire.pending() <= wireSize) {
      const slice = outbox.take(sliceSize)
      wire.offer(slice)
      for (const chunk of slice) handedSize += chunk.length
      handed.push(...slice)
      trim(wire)
    }
  }

  const flush = () => {
    seal()
    if (attached) send(shim!.wire)
    if (outbox.size > 0) outbox.settle()
    if (outbox.size > 0 || handed.length > 0) changed.notify()
  }

  /** The process has ended: its shim may be stuck in writing stdin, and would never read the status. */
  const exited = (status: number) => {
    inbox.clear()
    changed.notify()
    hooks.exited(status)
  }

  const killed = () =>
    new SessionError({ reason: `process of token ${redactToken(token)} was killed before its start` })

  const wake = () => {
    if (phase === "started" && over === undefined && (inbox.size > 0 || eof === "waiting")) hooks.stdin(self)
  }

  const self: Session = {
    token,
    stdio,
    state: () => ({
      phase,
      process,
      shim,
      attached,
      outputEnded: output.ended(),
      status: output.status(),
      over
    }),
    until: changed.until,

    claim(candidate) {
      if (shim !== undefined) return new SessionError({ reason: `token already claimed: ${redactToken(token)}` })
      shim = candidate
      changed.notify()
      return undefined
    },
    attach(candidate) {
      if (shim !== candidate) return
      attached = true
      flush()
      changed.notify()
    },
    detach(candidate) {
      if (shim === candidate) attached = false
    },
    release(candidate) {
      if (shim !== candidate) return
      // what the kernel did not take to its end, the shim cannot have read
      trim(candidate.wire)
      outbox.unshift(handed)
      handed = []
      handedSize = 0
      shim = undefined
      attached = false
      changed.notify()
    },
    drain: (candidate) =>
      Effect.gen(function* () {
        for (;;) {
          yield* changed.until(() => attached && (outbox.size > 0 || handed.length > 0))
          yield* Effect.catch(candidate.wire.drained, () => Effect.never)
          trim(candidate.wire)
          flush()
          changed.notify()
        }
      }),

    begin(start) {
      if (over !== undefined) return over
      if (phase !== "idle")
        return new SessionError({ reason: `token already used: ${redactToken(token)} has started a process` })
      if (output.status() !== undefined) return killed()
      phase = "waiting"
      process = start
      return undefined
    },
    written() {
      phase = "written"
      changed.notify()
    },
    settled(started) {
      phase = started ? "started" : "idle"
      changed.notify()
      wake()
    },
    killed,
    killUnstarted() {
      if (phase === "written" || phase === "started") return false
      const frame = output.exit(0, "never started")
      if (frame !== undefined) {
        outbox.push(frame)
        // the response to the signal follows, so this leaves now: 13 bytes, even to a shim that is behind
        if (attached) shim!.wire.offer(outbox.take(sliceSize))
        exited(0)
      }
      return true
    },

    deliver(run) {
      if (!heard) {
        heard = true
        hooks.firstOutput()
      }
      const running = output.status() === undefined
      const dropped = output.rewrite(run, emit)
      const status = output.status()
      if (running && status !== undefined) exited(status)
      return dropped
    },
    flush,
    exit(status) {
      const frame = output.exit(status)
      if (frame === undefined) return
      emit(frame, 0, frame.length)
      flush()
      exited(status)
    },
    backlog: () => outbox.size + (shim !== undefined && handed.length > 0 ? shim.wire.pending() : 0),

    feed(data) {
      // what nobody can take any more is not kept: its shim must not stop at it
      if (eof !== "none" || over !== undefined || output.status() !== undefined) return
      if (data.length === 0) eof = "waiting"
      else inbox.push(data)
      fed += data.length
    },
    pump() {
      wake()
      inbox.settle()
    },
    unfed: () => inbox.size,
    takeStdin(rule, size) {
      if (phase !== "started" || over !== undefined) return undefined
      window = Math.min(window, rule.window)
      const { headerSize } = IoMessage
      const most = Math.min(inbox.size, window)
      const out = new Uint8Array(Math.min(size, most + (Math.ceil(most / rule.messageData) + 1) * headerSize))
      let at = 0
      for (;;) {
        const length = Math.min(rule.messageData, inbox.size, window)
        if (length === 0 || at + headerSize + length > out.length) break
        if (rule.full && flooding && length < rule.messageData && eof === "none") break
        flooding = length === rule.messageData
        IoMessage.writeHeader(out, at, stdio, length)
        inbox.read(out, at + headerSize, length)
        at += headerSize + length
        window -= length
      }
      if (inbox.size === 0 && eof === "waiting" && at + headerSize <= out.length) {
        IoMessage.writeHeader(out, at, stdio, 0)
        at += headerSize
        eof = "sent"
      }
      if (at === 0) return undefined
      changed.notify()
      return out.subarray(0, at)
    },
    needsWindow: () => inbox.size > 0 && window === 0,
    openWindow() {
      window = Number.POSITIVE_INFINITY
    },
    waitsForMore: () => (flooding && inbox.size > 0 && eof === "none" ? fed : undefined),
    sendTail() {
      flooding = false
    },

    close(reason) {
      over ??= new SessionError({ reason })
      outbox.clear()
      handed = []
      handedSize = 0
      open = undefined
      inbox.clear()
      changed.notify()
    },
    lose(lost) {
      over ??= lost
      inbox.clear()
      changed.notify()
    }
  }
  return self
}
