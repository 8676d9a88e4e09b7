/** `Wire` and `Dialer` over `node:net`. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as Net from "node:net"
import { Dialer, type Wire, WireClosed } from "../services/Wire.ts"
import * as Mailbox from "./Mailbox.ts"

/** Chunks below this average size, in bytes, are joined before they are written: a vector of small ones costs more than a copy. */
const joinBelow = 2048

/** A `Wire` over a connected socket that nobody reads yet. The caller owns the socket. */
export const make = (socket: Net.Socket, peer: string): Wire => {
  let closed: WireClosed | undefined
  let untaken = 0 // bytes that were pending when the wire closed
  const drainWaiters = new Set<() => void>()
  // reading stops when a chunk comes that nobody waits for, and starts again with the next wait
  const mailbox = Mailbox.make<Uint8Array, WireClosed>(() => {
    if (socket.isPaused() || socket.readableFlowing === null) socket.resume()
  })

  const close = (cause?: unknown) => {
    if (closed !== undefined) return
    closed = new WireClosed({ peer, ...(cause !== undefined && { cause }) })
    untaken = socket.writableLength
    mailbox.fail(closed)
    for (const wake of drainWaiters) wake()
    drainWaiters.clear()
  }
  const written = () => {
    if (drainWaiters.size === 0 || socket.writableLength > 0) return
    const wakes = [...drainWaiters]
    drainWaiters.clear()
    for (const wake of wakes) wake()
  }

  socket.on("data", (chunk: Uint8Array) => {
    if (!mailbox.offer(chunk)) socket.pause()
  })
  socket.on("end", () => close())
  socket.on("error", close)
  socket.on("close", () => close())
  if (socket.destroyed) close()

  return {
    peer,
    pull: mailbox.take,
    offer(chunks) {
      if (closed !== undefined || socket.destroyed) return
      if (chunks.length === 1) {
        socket.write(chunks[0]!, written)
        return
      }
      let size = 0
      for (const chunk of chunks) size += chunk.length
      if (size < joinBelow * chunks.length) {
        socket.write(Buffer.concat(chunks, size), written)
        return
      }
      socket.cork()
      for (const chunk of chunks) socket.write(chunk, written)
      socket.uncork()
    },
    pending: () => (closed === undefined ? socket.writableLength : untaken),
    drained: Effect.callback<void, WireClosed>((resume) => {
      if (closed !== undefined) return resume(Effect.fail(closed))
      if (socket.writableLength === 0) return resume(Effect.void)
      const wake = () => resume(closed === undefined ? Effect.void : Effect.fail(closed))
      drainWaiters.add(wake)
      return Effect.sync(() => drainWaiters.delete(wake))
    })
  }
}

/**
 * Adopts an accepted socket. At the scope's end what was written leaves, the writing side is shut down, and what the client
 * still sends is read and discarded until it closes too: a plain close would lose what it was about to read, and may kill
 * it by SIGPIPE. A client that has not closed after `linger` milliseconds is closed upon.
 */
export const accepted = (socket: Net.Socket, peer: string, linger: number): Effect.Effect<Wire, never, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(Effect.succeed(socket), () =>
      Effect.callback<void>((resume) => {
        if (socket.destroyed) return resume(Effect.void)
        const done = () => resume(Effect.void)
        const timer = setTimeout(() => socket.destroy(), linger)
        timer.unref()
        socket.once("close", () => {
          clearTimeout(timer)
          done()
        })
        socket.removeAllListeners("data")
        socket.resume() // without a listener, what comes is discarded
        socket.end(done)
      })
    ),
    () => make(socket, peer)
  )

export const layerDialer = Layer.succeed(Dialer, {
  dial: (path) =>
    Effect.map(
      Effect.acquireRelease(
        Effect.callback<Net.Socket, WireClosed>((resume) => {
          const socket = Net.connect({ path })
          const fail = (cause: unknown) => resume(Effect.fail(new WireClosed({ peer: path, cause })))
          socket.once("error", fail)
          socket.once("connect", () => {
            socket.pause()
            resume(Effect.succeed(socket))
          })
          return Effect.sync(() => socket.destroy())
        }),
        (socket) => Effect.sync(() => socket.destroy()),
        { interruptible: true }
      ),
      (socket) => make(socket, path)
    )
})
