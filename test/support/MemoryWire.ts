/** Two `Wire`s joined in memory: what one offers, the other pulls. A stalled end behaves like a peer that does not read. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Mailbox } from "../../src/layers/Mailbox.ts"
import { type CarriedWire, Reading, type Wire, WireClosed } from "../../src/services/Wire.ts"

export interface End extends Wire {
  /** What this end offers stays pending until `resume`: the other end's kernel buffer is full. */
  readonly stall: () => void
  readonly resume: () => void
  /** Closes the connection: both ends read what came before, then its end. */
  readonly close: (cause?: unknown) => void
}

let held: Set<Chunks> | undefined

class Chunks extends Mailbox<Uint8Array, WireClosed> {
  readonly #holdable: boolean

  constructor(holdable: boolean) {
    super()
    this.#holdable = holdable
  }

  receive(chunk: Uint8Array) {
    this.add(chunk.slice()) // whoever reads owns what it gets, as with a real socket
    if (!this.wake()) this.onWait()
  }

  protected override onWait() {
    held?.add(this)
  }

  protected override holds() {
    return this.#holdable && held !== undefined
  }
}

/** All reading at the daemon's ends. */
export const layerReading = Layer.succeed(Reading, {
  hold: () => void (held ??= new Set()),
  resume: () => {
    const waiting = held
    held = undefined
    for (const chunks of waiting ?? []) chunks.wake()
  }
})

/** One way of a connection. */
interface Way {
  /** Who writes. */
  readonly peer: string
  /** Whether the daemon reads. */
  readonly holdable: boolean
  /** Of the end that reads. */
  mailbox: Chunks
  stalled: boolean
  /** Lets go on what the end that writes has queued. */
  flush: () => void
}

const way = (peer: string, holdable: boolean): Way => ({
  peer,
  holdable,
  mailbox: new Chunks(holdable),
  stalled: false,
  flush: () => {}
})

/** The ends that have been carried, by descriptor. */
const carried = new Map<number, (as: CarriedWire) => End>()
let descriptors = 1000

/** Takes the place of an end that has been carried: what the other end offers comes here from now on. */
export const adopt = (as: CarriedWire): End => {
  const replace = carried.get(as.descriptor)
  if (replace === undefined) throw new Error(`descriptor ${as.descriptor} is not open`)
  carried.delete(as.descriptor)
  return replace(as)
}

/** A connection, with the names of who is at its ends: `a` talks to `peerOfA`, and is the daemon's. */
export const pair = (peerOfA: string, peerOfB: string): { readonly a: End; readonly b: End } => {
  const toA = way(peerOfA, true)
  const toB = way(peerOfB, false)
  let closed: { readonly cause: unknown; readonly by: Way } | undefined
  const ends: Array<() => void> = []

  const end = (from: Way, to: Way): End => {
    const descriptor = ++descriptors
    let queued: Array<Uint8Array> = []
    let offered = 0
    let refused = 0 // bytes offered after the end
    const waiters = new Set<() => void>()
    const error = () => new WireClosed({ peer: from.peer, ...(closed?.cause !== undefined && { cause: closed.cause }) })
    const wake = () => {
      for (const waiter of Array.from(waiters)) waiter()
    }
    to.flush = () => {
      for (const chunk of queued.splice(0)) to.mailbox.receive(chunk)
      wake()
    }
    const finish = () => {
      from.mailbox.fail(error())
      wake()
    }
    ends.push(finish)
    const gone = () => closed !== undefined && (closed.by === to || closed.cause !== undefined)
    if (closed !== undefined) finish()
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
        for (const chunk of chunks) {
          offered += chunk.length
          if (closed !== undefined) refused += chunk.length
          else if (to.stalled) queued.push(chunk)
          else to.mailbox.receive(chunk)
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
      descriptor: () => (gone() ? undefined : descriptor),
      carry() {
        if (gone()) return undefined
        carried.set(descriptor, ({ unread, unsent }) => {
          from.mailbox = new Chunks(from.holdable)
          for (const chunk of unread) from.mailbox.add(chunk)
          const successor = end(from, to)
          successor.offer(unsent)
          return successor
        })
        return { descriptor, unread: from.mailbox.items(), unsent: queued.slice() }
      },
      stall: () => (to.stalled = true),
      resume() {
        to.stalled = false
        to.flush()
      },
      // while the other end reads: a test of more than that has sockets
      shutDown: () => to.mailbox.fail(new WireClosed({ peer: to.peer })),
      drainAndClose() {
        this.close()
        return queued.slice()
      },
      close(cause) {
        if (closed !== undefined) return
        closed = { cause, by: to }
        for (const finish of ends) finish()
      }
    }
  }

  return { a: end(toA, toB), b: end(toB, toA) }
}
