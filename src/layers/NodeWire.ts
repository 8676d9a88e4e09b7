/** `Wire` and `Dialer` over `node:net`. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as Fs from "node:fs"
import * as Net from "node:net"
import { Dialer, type Wire, WireClosed } from "../services/Wire.ts"
import * as Mailbox from "./Mailbox.ts"

/** Largest chunk that is given out, in bytes: what Node reads at once. */
const maxChunk = 64 * 1024

/** Most bytes that are taken from the kernel after a write has failed: more than it holds, if its peer is gone. */
const maxSalvaged = 4 * 1024 * 1024

/** Chunks below this average size, in bytes, are joined before they are written: a vector of small ones costs more than a copy. */
const joinBelow = 2048

/** A `Wire` over a connected socket that nobody reads yet. The caller owns the socket. */
export const make = (socket: Net.Socket, peer: string): Wire => {
  let closed: WireClosed | undefined
  let offered = 0
  let taken = 0 // by the kernel
  const drainWaiters = new Set<() => void>()
  // reading stops when a chunk comes that nobody waits for, and starts again with the next wait
  const mailbox = Mailbox.make<Uint8Array, WireClosed>(() => {
    if (socket.isPaused() || socket.readableFlowing === null) socket.resume()
  })

  const close = (cause?: unknown) => {
    if (closed !== undefined) return
    closed = new WireClosed({ peer, ...(cause !== undefined && { cause }) })
    mailbox.fail(closed)
    for (const wake of drainWaiters) wake()
    drainWaiters.clear()
  }
  /** Takes what came before an error, which Node would throw away: what it has read ahead, and what the kernel holds. */
  const salvage = () => {
    while (socket.readableLength > 0) mailbox.offer(socket.read(Math.min(socket.readableLength, maxChunk)) as Uint8Array)
    const { _handle: handle } = socket as unknown as { readonly _handle: { readonly fd: number } | null }
    if (handle === null) return
    try {
      for (let left = maxSalvaged; left > 0; left -= maxChunk) {
        const chunk = new Uint8Array(maxChunk)
        const size = Fs.readSync(handle.fd, chunk)
        if (size === 0) return
        mailbox.offer(chunk.subarray(0, size))
      }
    } catch {
      // the kernel has nothing more
    }
  }
  const write = (chunk: Uint8Array) => {
    offered += chunk.length
    socket.write(chunk, (error) => {
      if (error) return salvage() // before Node closes the socket; `close` follows
      taken += chunk.length
      if (drainWaiters.size === 0 || socket.writableLength > 0) return
      const wakes = [...drainWaiters]
      drainWaiters.clear()
      for (const wake of wakes) wake()
    })
  }
  // Node's own count drops to 0 with the first write that fails, a turn before the error is told
  const pending = () => (closed === undefined && socket.errored === null ? socket.writableLength : offered - taken)

  socket.on("data", (chunk: Uint8Array) => {
    if (!mailbox.offer(chunk)) socket.pause()
  })
  socket.on("end", () => close())
  socket.on("error", (cause) => {
    salvage()
    close(cause)
  })
  socket.on("close", () => close())
  if (socket.destroyed) close()

  return {
    peer,
    pull: mailbox.take,
    offer(chunks) {
      if (closed !== undefined || socket.destroyed || socket.errored !== null) return
      if (chunks.length === 1) {
        write(chunks[0]!)
        return
      }
      let size = 0
      for (const chunk of chunks) size += chunk.length
      if (size < joinBelow * chunks.length) {
        write(Buffer.concat(chunks, size))
        return
      }
      socket.cork()
      for (const chunk of chunks) write(chunk)
      socket.uncork()
    },
    pending,
    drained: Effect.callback<void, WireClosed>((resume) => {
      if (closed !== undefined) return resume(Effect.fail(closed))
      if (pending() === 0) return resume(Effect.void)
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
