/**
 * How an agent passes stdin to a process.
 *
 * The C agent buffers 512 bytes per process, drops what does not fit, and writes when its event loop finds the pipe ready:
 * one turn of the loop notices that there is something to write, a later one writes it. The Go agent writes at once and
 * waits for the pipe; the stdin of every other process waits with it.
 *
 * Source: PROTOCOL.md, "Agents".
 */
import * as Effect from "effect/Effect"
import type * as Net from "node:net"
import * as Waiters from "./Waiters.ts"

/** Bytes that the C agent buffers for one process. */
const bufferSize = 512

/** What ends the input of a terminal: Ctrl-D. */
const endOfTransmission = Uint8Array.of(4)

export interface GuestStdin {
  /** Takes one message's data, and copies what it keeps. */
  readonly accept: (data: Uint8Array) => Effect.Effect<void>
  /** Ends the input after what has been accepted: closes the pipe, or types Ctrl-D at a terminal. */
  readonly end: Effect.Effect<void>
  /** One turn of the agent's event loop. Returns whether another is needed. */
  readonly turn: () => boolean
}

export interface Options {
  /** The writing side of the process's stdin. A process that closes its side ends it; what comes after that is ignored. */
  readonly pipe: Net.Socket
  readonly terminal: boolean
  /** There is work for a turn of the event loop. */
  readonly onWork: () => void
  /** So many bytes were dropped. */
  readonly onDropped: (bytes: number) => void
}

/** The C agent's. */
export const makeBuffered = ({ onDropped, onWork, pipe, terminal }: Options): GuestStdin => {
  let waiting: Array<Uint8Array> = []
  let held = 0 // bytes in `waiting`, and those of a write that the pipe has not taken whole
  let noticed = false
  let ended = false

  const accept = (data: Uint8Array) =>
    Effect.sync(() => {
      if (ended || pipe.destroyed) return
      const taken = data.slice(0, bufferSize - held)
      if (taken.length < data.length) onDropped(data.length - taken.length)
      if (taken.length === 0) return
      waiting.push(taken)
      held += taken.length
      onWork()
    })

  return {
    accept,
    end: terminal
      ? accept(endOfTransmission)
      : Effect.sync(() => {
          ended = true
          onWork()
        }),
    turn() {
      if (pipe.destroyed || pipe.writableLength > 0) return false
      if (noticed && waiting.length > 0) {
        const bytes = Buffer.concat(waiting)
        waiting = []
        pipe.write(bytes, () => {
          held -= bytes.length
          if (waiting.length > 0 || ended) onWork()
        })
      } else if (noticed && ended) {
        pipe.destroy()
      }
      noticed = waiting.length > 0 || ended
      return noticed && !pipe.destroyed
    }
  }
}

/** The Go agent's. */
export const makeBlocking = ({ pipe, terminal }: Options): GuestStdin => {
  const { until, wake } = Waiters.make()
  pipe.on("close", wake)
  const accept = (data: Uint8Array) =>
    Effect.suspend(() => {
      if (pipe.destroyed) return Effect.void
      pipe.write(data, wake)
      return Effect.asVoid(until(() => pipe.writableLength === 0 || pipe.destroyed || undefined))
    })
  return {
    accept,
    end: terminal ? accept(endOfTransmission) : Effect.sync(() => pipe.destroy()),
    turn: () => false
  }
}
