/** `Wire` and the ports beside it over `node:net`. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as Fs from "node:fs"
import * as Net from "node:net"
import { behind } from "../domain/Bytes.ts"
import { Condition, once } from "../services/Condition.ts"
import { type CarriedWire, Descriptors, Dialer, DialTimeout, Reading, type Wire, WireClosed } from "../services/Wire.ts"
import { Mailbox } from "./Mailbox.ts"

/** Largest chunk that is given out, in bytes: what Node reads at once. Full, where there may be more. */
const maxChunk = 64 * 1024

/** Most bytes that are taken from the kernel after a write has failed: more than it holds, if its peer is gone. */
const maxSalvaged = 4 * 1024 * 1024

/** Chunks below this average size, in bytes, are joined before they are written: a vector of small ones costs more than a copy. */
const joinBelow = 2048

/** Milliseconds until a peer that accepts nobody for now is dialled again. */
const redialAfter = 20

/**
 * The sockets for which something came while all reading is held: where it goes on they have to be told. A wire that breaks
 * meanwhile is not held any more, as no other process could go on with it: what came before is given out.
 */
let held: Set<Chunks> | undefined

/** A socket needs somebody to hear of its error, also before its wire does: an error that nobody hears ends the process. */
export const heard = (): void => {}

/**
 * What a socket has given out. Reading stops when a chunk comes that nobody waits for, and starts again with the next wait.
 *
 * It rests for a turn of the event loop after each full chunk: libuv would read 32 of them in one turn while there are more,
 * and all the other sockets would wait until those 2 MiB of one flood are handed on. A chunk that is not full ends its turn.
 */
class Chunks extends Mailbox<Uint8Array, WireClosed> {
  readonly #socket: Net.Socket
  #resting = false

  constructor(socket: Net.Socket) {
    super()
    this.#socket = socket
  }

  receive(chunk: Uint8Array) {
    if (held !== undefined) {
      this.add(chunk)
      this.#socket.pause()
      held.add(this)
      return
    }
    if (chunk.length === maxChunk) {
      this.#resting = true
      this.#socket.pause()
      setImmediate(rested, this)
    }
    if (!this.offer(chunk)) this.#socket.pause()
  }

  rested() {
    this.#resting = false
    if (this.awaited()) this.onWait()
  }

  protected override onWait() {
    if (held !== undefined) held.add(this)
    else if (!this.#resting && (this.#socket.isPaused() || this.#socket.readableFlowing === null)) this.#socket.resume()
  }

  protected override holds() {
    return held !== undefined && !this.#socket.destroyed
  }

  /** Reading is held no more. */
  goOn() {
    if (this.#socket.readableEnded) (this.#socket as Wired)[wire].close()
    if (!this.wake() && this.awaited()) this.onWait()
  }
}

const rested = (chunks: Chunks) => chunks.rested()

/**
 * Writes at once, past Node's streams, whose bookkeeping costs as much as the system call. Returns how many bytes the kernel
 * took; 0 also where it failed, which a write by the stream will tell.
 */
const writeNow = (socket: Net.Socket, chunks: ReadonlyArray<Uint8Array>): number => {
  const fd = descriptor(socket)
  if (fd === undefined || chunks.length === 0) return 0
  try {
    return chunks.length === 1 ? Fs.writeSync(fd, chunks[0]!) : Fs.writevSync(fd, chunks)
  } catch {
    return 0
  }
}

/** One chunk of many that are small. */
const join = (chunks: ReadonlyArray<Uint8Array>): ReadonlyArray<Uint8Array> => {
  if (chunks.length < 2) return chunks
  let size = 0
  for (const chunk of chunks) size += chunk.length
  return size < joinBelow * chunks.length ? [Buffer.concat(chunks, size)] : chunks
}

/** A socket's file descriptor; `undefined` once it is closed. */
export const descriptor = (socket: Net.Socket): number | undefined =>
  (socket as unknown as { readonly _handle: { readonly fd: number } | null })._handle?.fd

/**
 * Largest write, in bytes, of which a Unix socket takes all or nothing: of a larger one that fails nobody tells how much had
 * been taken. Measured: 64 KiB may be taken in part.
 */
const wholeWrite = 32 * 1024

class NodeWire implements Wire {
  readonly peer: string
  readonly #socket: Net.Socket
  readonly #mailbox: Chunks
  #closed: WireClosed | undefined
  #offered = 0
  #taken = 0 // by the kernel
  #queue: Array<Uint8Array> = [] // what it has not taken
  #writing = 0 // bytes of it that Node is writing
  readonly #changed = new Condition() // closed, or nothing pending

  constructor(socket: Net.Socket, peer: string) {
    this.peer = peer
    this.#socket = socket
    this.#mailbox = new Chunks(socket)
    ;(socket as Wired)[wire] = this
    socket.on("data", onData)
    socket.on("end", onEnd)
    socket.on("close", onClose)
    socket.on("error", onError)
    if (socket.destroyed) this.close()
  }

  get pull() {
    return this.#mailbox.take
  }

  offer(chunks: ReadonlyArray<Uint8Array>) {
    let size = 0
    for (const chunk of chunks) size += chunk.length
    this.#offered += size
    const socket = this.#socket
    if (this.#closed !== undefined || socket.destroyed || socket.errored !== null) return
    if (this.#queue.length > 0) {
      this.#queue.push(...chunks)
    } else if (size === 0) {
      socket.write(nothing, (error) => error && this.#salvage())
    } else {
      this.#write(chunks)
    }
  }

  offered() {
    return this.#offered
  }

  pending() {
    return this.#offered - this.#taken
  }

  descriptor() {
    return this.#socket.errored === null ? descriptor(this.#socket) : undefined
  }

  carry(): CarriedWire | undefined {
    const socket = this.#socket
    const fd = this.descriptor()
    if (fd === undefined) return undefined
    // it emits what it returns, which is kept as whatever comes while reading is held
    for (let left = socket.readableLength; left > 0; left = socket.readableLength) socket.read(Math.min(left, maxChunk))
    return { descriptor: fd, unread: this.#mailbox.items(), unsent: this.#unsent() }
  }

  #unsent(): ReadonlyArray<Uint8Array> {
    // Node tells of a write that was done at once only behind this turn
    const taken = this.#socket.writableLength === 0 ? this.#writing : 0
    return behind(this.#queue, taken)
  }

  /** Begins where another daemon's wire over this socket was. */
  adopt({ unread, unsent }: CarriedWire) {
    for (const chunk of unread) this.#mailbox.add(chunk)
    this.offer(unsent)
  }

  /**
   * Lets what is queued leave, then shuts down the writing side and calls `then`, as it does where the connection is closed
   * before. What comes is discarded until the peer closes too, for `linger` milliseconds at most.
   */
  end(linger: number, ending: Set<Wire>, then: () => void) {
    const socket = this.#socket
    if (socket.destroyed) return then()
    ending.add(this)
    const timer = setTimeout(() => socket.destroy(), linger)
    timer.unref()
    socket.once("close", () => {
      clearTimeout(timer)
      ending.delete(this)
      then()
    })
    socket.removeAllListeners("data")
    socket.resume() // without a listener, what comes is discarded
    this.#mailbox.clear()
    const shutDown = () => void socket.end(then)
    if (this.#queue.length === 0) shutDown()
    else once(() => this.#queue.length === 0, [this.#changed], shutDown)
  }

  shutDown() {
    const shut = () => void this.#socket.end()
    if (this.#queue.length === 0) shut()
    else once(() => this.#queue.length === 0, [this.#changed], shut)
  }

  drainAndClose() {
    if (this.#closed !== undefined) {
      this.#socket.destroy() // whose peer has only shut down its writing side
      return []
    }
    const unsent = this.#unsent()
    this.#salvage()
    this.#socket.destroy()
    this.close()
    return unsent
  }

  /** Writes what the kernel takes, and the rest once it takes more. */
  #write(chunks: ReadonlyArray<Uint8Array>) {
    const joined = join(chunks)
    const taken = writeNow(this.#socket, joined)
    this.#taken += taken
    this.#queue = behind(joined, taken)
    const [first] = this.#queue
    if (first === undefined) return
    // the kernel is full, or has an error to tell: Node waits for either, for whoever writes
    const piece = first.subarray(0, wholeWrite)
    this.#writing = piece.length
    this.#socket.write(piece, (error) => {
      if (error) return this.#salvage() // before Node closes the socket; `close` follows
      this.#taken += piece.length
      this.#writing = 0
      if (this.#queue.length > 0) this.#write(behind(this.#queue, piece.length))
      if (this.#queue.length === 0) this.#changed.notify()
    })
  }

  get drained() {
    return Effect.flatMap(
      this.#changed.until(() => this.#closed !== undefined || this.pending() === 0),
      () => (this.#closed === undefined ? Effect.void : Effect.fail(this.#closed))
    )
  }

  get closed() {
    return this.#changed.until(() => this.#closed !== undefined)
  }

  /** Takes what came before an error, which Node would throw away: what it has read ahead, and what the kernel holds. */
  #salvage() {
    const socket = this.#socket
    socket.removeListener("data", onData) // what `read` returns, it emits as well
    for (let left = socket.readableLength; left > 0; left = socket.readableLength)
      this.#mailbox.add(socket.read(Math.min(left, maxChunk)) as Uint8Array)
    const fd = descriptor(socket)
    if (fd === undefined) return
    try {
      for (let left = maxSalvaged; left > 0; left -= maxChunk) {
        const chunk = new Uint8Array(maxChunk)
        const size = Fs.readSync(fd, chunk)
        if (size === 0) return
        this.#mailbox.add(chunk.subarray(0, size))
      }
    } catch {
      // the kernel has nothing more
    }
  }

  receive(chunk: Uint8Array) {
    this.#mailbox.receive(chunk)
  }

  /** The peer has shut down its writing side. Who reads the socket next sees that again. */
  ended() {
    if (held === undefined) this.close()
    else held.add(this.#mailbox)
  }

  fail(cause: unknown) {
    this.#salvage()
    this.close(cause)
  }

  close(cause?: unknown) {
    if (this.#closed !== undefined) return
    this.#closed = new WireClosed({ peer: this.peer, cause })
    this.#mailbox.fail(this.#closed)
    this.#changed.notify()
  }
}

const nothing = new Uint8Array(0)

// listeners for all sockets: closures for each would be a good part of what a connection at rest costs
const wire = Symbol("wire")
type Wired = Net.Socket & { [wire]: NodeWire }

function onData(this: Net.Socket, chunk: Uint8Array) {
  ;(this as Wired)[wire].receive(chunk)
}

function onEnd(this: Net.Socket) {
  ;(this as Wired)[wire].ended()
}

function onClose(this: Net.Socket) {
  ;(this as Wired)[wire].close()
}

function onError(this: Net.Socket, cause: Error) {
  ;(this as Wired)[wire].fail(cause)
}

/** A `Wire` over a connected socket that nobody reads yet. The caller owns the socket. */
export const make = (socket: Net.Socket, peer: string): Wire => new NodeWire(socket, peer)

/**
 * A socket over a descriptor that another process had, or has. Reads nothing by itself, as one that a server with
 * `pauseOnConnect` accepts: Node's documentation has no option for it, but its server makes its sockets with this one.
 */
export const open = ({ descriptor }: CarriedWire): Net.Socket =>
  new Net.Socket({
    fd: descriptor,
    readable: true,
    writable: true,
    allowHalfOpen: true,
    pauseOnCreate: true
  } as Net.SocketConstructorOpts)

/** Where that process was, over what `open` has made of its descriptor. The caller owns the socket. */
const goOn = (socket: Net.Socket, peer: string, carried: CarriedWire): NodeWire => {
  const wire = new NodeWire(socket, peer)
  wire.adopt(carried)
  return wire
}

/** A socket that the scope ends as `accepted` tells. */
const halfClosing = (socket: Net.Socket, linger: number, ending: Set<Wire>) =>
  Effect.acquireRelease(Effect.succeed(socket), () =>
    Effect.callback<void>((resume) => (socket as Wired)[wire].end(linger, ending, () => resume(Effect.void)))
  )

/**
 * Takes an accepted socket. At the scope's end what was written leaves, the writing side is shut down, and what the client
 * still sends is read and discarded until it closes too: a plain close would lose what it was about to read, and may kill
 * it by SIGPIPE. A client that has not closed after `linger` milliseconds is closed upon. All that time it is in `ending`.
 */
export const accepted = (
  socket: Net.Socket,
  peer: string,
  linger: number,
  ending: Set<Wire>
): Effect.Effect<Wire, never, Scope.Scope> => Effect.map(halfClosing(socket, linger, ending), () => make(socket, peer))

/** As `accepted`, of what `open` has made. */
export const adopted = (
  socket: Net.Socket,
  peer: string,
  linger: number,
  ending: Set<Wire>,
  carried: CarriedWire
): Effect.Effect<Wire, never, Scope.Scope> =>
  Effect.map(halfClosing(socket, linger, ending), () => goOn(socket, peer, carried))

/** Brings what `open` has made to the end that `accepted` tells of. */
export const finish = (
  socket: Net.Socket,
  peer: string,
  linger: number,
  ending: Set<Wire>,
  carried: CarriedWire
): void => goOn(socket, peer, carried).end(linger, ending, () => {})

export const layerReading = Layer.succeed(Reading, {
  hold: () => void (held ??= new Set()),
  resume: () => {
    const waiting = held
    held = undefined
    for (const chunks of waiting ?? []) chunks.goOn()
  }
})

export const layerDescriptors = Layer.succeed(Descriptors, {
  inode: (descriptor) => {
    try {
      const stats = Fs.fstatSync(descriptor)
      return stats.isSocket() ? stats.ino : undefined
    } catch {
      return undefined
    }
  },
  close: (descriptor) => Fs.closeSync(descriptor)
})

const close = (socket: Net.Socket) => Effect.sync(() => socket.destroy())

export const layerDialer = Layer.succeed(Dialer, {
  dial: (path, millis) =>
    Effect.map(
      Effect.acquireRelease(
        Effect.callback<Net.Socket, DialTimeout | WireClosed>((resume) => {
          let socket: Net.Socket
          let again: NodeJS.Timeout | undefined
          const stop = () => {
            clearTimeout(timer)
            clearTimeout(again)
          }
          const timer = setTimeout(() => {
            stop()
            socket.destroy()
            resume(Effect.fail(new DialTimeout({ peer: path })))
          }, millis)
          const failed = (cause: NodeJS.ErrnoException) => {
            // as many wait to be accepted as may: a socket that does not block is not put in line
            if (cause.code === "EAGAIN") return void (again = setTimeout(connect, redialAfter))
            stop()
            resume(Effect.fail(new WireClosed({ peer: path, cause })))
          }
          const connect = () => {
            socket = Net.connect({ path, allowHalfOpen: true }) // its end, too, can be carried
            socket.once("error", failed)
            socket.once("connect", () => {
              stop()
              socket.on("error", heard)
              socket.removeListener("error", failed)
              socket.pause()
              resume(Effect.succeed(socket))
            })
          }
          connect()
          return Effect.sync(() => {
            stop()
            socket.destroy()
          })
        }),
        close,
        { interruptible: true }
      ),
      (socket) => make(socket, path)
    ),
  adopt: (path, carried) =>
    Effect.map(
      Effect.acquireRelease(
        Effect.sync(() => open(carried)),
        close
      ),
      (socket) => goOn(socket, path, carried)
    )
})
