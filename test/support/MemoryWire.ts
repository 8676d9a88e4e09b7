/** Two `Wire`s joined in memory: what one offers, the other pulls. A stalled end behaves like a peer that does not read. */
import * as Effect from "effect/Effect"
import { Mailbox } from "../../src/layers/Mailbox.ts"
import { type Wire, WireClosed } from "../../src/services/Wire.ts"

export interface End extends Wire {
  /** What this end offers stays pending until `resume`: the other end's kernel buffer is full. */
  readonly stall: () => void
  readonly resume: () => void
  /** Closes the connection: both ends read what came before, then its end. */
  readonly close: (cause?: unknown) => void
}

const half = (peer: string) => {
  const mailbox = new Mailbox<Uint8Array, WireClosed>()
  return { peer, mailbox }
}

/** A connection, with the names of who is at its ends: `a` talks to `peerOfA`. */
export const pair = (peerOfA: string, peerOfB: string): { readonly a: End; readonly b: End } => {
  const toA = half(peerOfA)
  const toB = half(peerOfB)
  let closed: { readonly cause: unknown } | undefined
  const ends: Array<() => void> = []

  const end = (from: typeof toA, to: typeof toB): End => {
    let stalled = false
    let queued: Array<Uint8Array> = []
    let offered = 0
    let refused = 0 // bytes offered after the end
    const waiters = new Set<() => void>()
    const error = () => new WireClosed({ peer: from.peer, ...(closed?.cause !== undefined && { cause: closed.cause }) })
    const wake = () => {
      for (const waiter of Array.from(waiters)) waiter()
    }
    ends.push(() => {
      from.mailbox.fail(error())
      wake()
    })
    return {
      peer: from.peer,
      closed: Effect.callback<void>((resume) => {
        const ask = () => {
          // what is read tells, or a write
          if (closed !== undefined) {
            waiters.delete(ask)
            resume(Effect.void)
          }
        }
        waiters.add(ask)
        ask()
        return Effect.sync(() => waiters.delete(ask))
      }),
      pull: from.mailbox.take,
      offer(chunks) {
        // whoever reads owns what it gets, as with a real socket
        for (const chunk of chunks) {
          offered += chunk.length
          if (closed !== undefined) refused += chunk.length
          else if (stalled) queued.push(chunk)
          else to.mailbox.offer(chunk.slice())
        }
      },
      offered: () => offered,
      pending: () => queued.reduce((total, chunk) => total + chunk.length, refused),
      drained: Effect.callback<void, WireClosed>((resume) => {
        const ask = () => {
          if (closed !== undefined) resume(Effect.fail(error()))
          else if (queued.length === 0) resume(Effect.void)
          else return
          waiters.delete(ask)
        }
        waiters.add(ask)
        ask()
        return Effect.sync(() => waiters.delete(ask))
      }),
      stall: () => (stalled = true),
      resume() {
        stalled = false
        const chunks = queued
        queued = []
        for (const chunk of chunks) to.mailbox.offer(chunk.slice())
        wake()
      },
      close(cause) {
        if (closed !== undefined) return
        closed = { cause }
        for (const finish of ends) finish()
      }
    }
  }

  return { a: end(toA, toB), b: end(toB, toA) }
}
