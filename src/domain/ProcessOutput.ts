/**
 * One process's output on its way to its shim: io messages become client frames in place, and the end of the process is
 * told apart from its output. Pure state; no socket.
 *
 * At a process's end the agent sends an empty message on the stdio sequence, then one byte of status on the same sequence,
 * after all output of both streams. One byte before the empty message is output, and so are two or more after it.
 *
 * Source: PROTOCOL.md, "The end of a process".
 */
import * as Frame from "./Frame.ts"
import * as IoMessage from "./IoMessage.ts"

/** Where frames go: an object, as a closure for each session would cost memory. */
export interface Emit {
  emit(bytes: Uint8Array, start: number, end: number): void
}

export interface ProcessOutput {
  /** Whether the agent has said that the process's output has ended. */
  readonly ended: () => boolean
  /** The exit status, once it has come. Nothing comes after it. */
  readonly status: () => number | undefined
  /**
   * Rewrites `run` (of this process's stdio or stderr sequence) in place and tells `to` the ranges of its bytes that now
   * hold frames, in order. Returns how many bytes of data came after the status and were left out.
   */
  readonly rewrite: (run: IoMessage.Run, to: Emit) => number
  /**
   * The exit status came by another way than the io channel: an event, or a process that never started. Returns the
   * frame to deliver, which is not due before the output has ended (`unlessEnded` says that there is none to wait for).
   */
  readonly exit: (status: number, unlessEnded?: "never started") => Uint8Array | undefined
  /** The process was not started after all: an end without a status was no end, and a status without an end none. */
  readonly reset: () => void
  readonly carry: () => Carried
}

/** Where the output of a process stands. */
export interface Carried {
  readonly ended: boolean
  readonly status: number | undefined
  /** A status that came before the end of the output. */
  readonly early: number | undefined
}

/** Of a process that has not been started. */
const fresh: Carried = { ended: false, status: undefined, early: undefined }

/** ProcessExited with `status`: a frame of 13 bytes. */
export const exitFrame = (status: number): Uint8Array =>
  Frame.encode({
    type: Frame.FrameType.notification,
    opcode: Frame.Notification.ProcessExited,
    inError: false,
    payload: Uint8Array.of(status)
  })

/** A class, as every process has one: methods cost nothing an instance. */
class Output implements ProcessOutput {
  readonly #stdio: number
  #ended: boolean
  #status: number | undefined
  #early: number | undefined // a status that came before the end of the output

  constructor(stdio: number, { early, ended, status }: Carried) {
    this.#stdio = stdio
    this.#ended = ended
    this.#status = status
    this.#early = early
  }

  carry() {
    return { ended: this.#ended, status: this.#status, early: this.#early }
  }

  ended() {
    return this.#ended
  }
  status() {
    return this.#status
  }

  rewrite({ bytes, end, sequence, start }: IoMessage.Run, to: Emit) {
    const opcode = sequence === this.#stdio ? Frame.StreamKind.stdout : Frame.StreamKind.stderr
    let from = start
    let dropped = 0
    for (let at = start; at < end;) {
      const next = at + IoMessage.lengthAt(bytes, at)
      const length = next - at - IoMessage.headerSize
      if (this.#status !== undefined || length === 0) {
        // not a frame: cut it out
        if (at > from) to.emit(bytes, from, at)
        from = next
        if (length > 0) dropped += length
        else if (opcode === Frame.StreamKind.stdout && !this.#ended) {
          this.#ended = true
          if (this.#early !== undefined) {
            this.#status = this.#early
            const frame = exitFrame(this.#early)
            to.emit(frame, 0, frame.length)
          }
        }
      } else if (this.#ended && length === 1 && opcode === Frame.StreamKind.stdout) {
        this.#status = bytes[at + IoMessage.headerSize]!
        Frame.writeHeader(bytes, at, Frame.FrameType.notification, Frame.Notification.ProcessExited, 1)
      } else {
        Frame.writeHeader(bytes, at, Frame.FrameType.stream, opcode, length)
      }
      at = next
    }
    if (end > from) to.emit(bytes, from, end)
    return dropped
  }

  exit(given: number, unlessEnded?: "never started") {
    if (this.#status !== undefined || this.#early !== undefined) return undefined
    if (!this.#ended && unlessEnded === undefined) {
      this.#early = given
      return undefined
    }
    this.#ended = true
    this.#status = given
    return exitFrame(given)
  }

  reset() {
    if (this.#status !== undefined) return
    this.#ended = false
    this.#early = undefined
  }
}

/** The output of the process whose stdio sequence is `stdio`, from where it stands. */
export const make = (stdio: number, carried: Carried = fresh): ProcessOutput => new Output(stdio, carried)
