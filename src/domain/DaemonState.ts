/**
 * What outlives a daemon. Pure: schemas, and the container of a snapshot.
 *
 * A **record** is what a new daemon needs of one VM after any death of the last: a file of JSON for each, written before a
 * client sees an answer that depends on it. A **snapshot** is all that a daemon is in one moment: JSON with every record and
 * every connection, and the bytes that were in memory behind it.
 *
 * Source: docs/upgrade.md, "The state".
 */
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { putU32, u32 } from "./Bytes.ts"

/** The version of both that this daemon writes. It reads this one and the one before; a newer daemon may write a newer one. */
export const version = 1

/** A file of the spool that waits to be read. */
export const Segment = Schema.Struct({
  name: Schema.NonEmptyString,
  /** Bytes of it that have been read. */
  read: Schema.Int,
  /** Bytes in it; in the record of a daemon that was killed it may have more. */
  written: Schema.Int
})
export type Segment = typeof Segment.Type

const Output = Schema.Struct({
  ended: Schema.Boolean,
  status: Schema.optional(Schema.Int),
  early: Schema.optional(Schema.Int)
})

/** `waiting` is not among them: nothing has been written for it, and whoever asked for it asks again, or is gone. */
export const Phase = Schema.Literals(["idle", "written", "started"])

export const SessionRecord = Schema.Struct({
  token: Schema.NonEmptyString,
  /** Sequence number of stdin and stdout. */
  stdio: Schema.Int,
  /** Whether a shim was there when this was written. */
  claimed: Schema.Boolean,
  phase: Phase,
  process: Schema.optional(
    Schema.Struct({
      container: Schema.String,
      process: Schema.optional(Schema.String),
      terminal: Schema.Boolean,
      init: Schema.Boolean
    })
  ),
  output: Output,
  stdinEnd: Schema.Literals(["none", "waiting", "sent"]),
  /** What waits on disk, oldest first. */
  waiting: Schema.Struct({ output: Schema.Array(Segment), stdin: Schema.Array(Segment) })
})
export type SessionRecord = typeof SessionRecord.Type

export const VmRecord = Schema.Struct({
  version: Schema.Literal(version),
  /** Where the daemon listened: several may share a directory. */
  socket: Schema.String,
  id: Schema.NonEmptyString,
  ctl: Schema.String,
  io: Schema.String,
  console: Schema.optional(Schema.String),
  /** What fstat(2) says of the inodes of its connections, ctl first. */
  inodes: Schema.optional(Schema.Array(Schema.Int)),
  /** Whether clients see it: not once it is unregistered. */
  registered: Schema.Boolean,
  /** Why it was lost, if it was. */
  lost: Schema.optional(Schema.String),
  agent: Schema.Literals(["unknown", "c", "go"]),
  api: Schema.optional(Schema.Int),
  /** Whether a process was started without an id. */
  unnamed: Schema.Boolean,
  nextSequence: Schema.Int,
  /** Whether newcontainer or execcmd was written and had no reply yet. */
  starting: Schema.Boolean,
  /** Whether the daemon stopped in good order: then nothing it had read is missing. */
  clean: Schema.Boolean,
  /** Whether its agent owed no reply then. */
  inStep: Schema.optional(Schema.Boolean),
  sessions: Schema.Array(SessionRecord)
})
export type VmRecord = typeof VmRecord.Type

/** Bytes behind a snapshot's JSON: where they begin, and how many there are. */
export const Ref = Schema.Tuple([Schema.Int, Schema.Int])
export type Ref = typeof Ref.Type

const Wire = Schema.Struct({
  /** Which of the snapshot's descriptors. */
  descriptor: Schema.Int,
  unread: Ref,
  unsent: Ref
})
export type Wire = typeof Wire.Type

/** What a session had in memory. */
export const SessionMemory = Schema.Struct({
  output: Schema.Struct({ head: Ref, tail: Ref }),
  stdin: Schema.Struct({ head: Ref, tail: Ref }),
  /** Chunks of output that its shim's connection was given, and where each ends among what that connection has unsent. */
  handed: Schema.Array(Schema.Struct({ chunk: Ref, end: Schema.Int })),
  /** Bytes of stdin that may be sent before the agent has to answer; absent: no end. */
  window: Schema.optional(Schema.Int),
  fed: Schema.Int,
  flooding: Schema.Boolean,
  heard: Schema.Boolean,
  /** Millis until it is freed, if nobody comes. */
  orphan: Schema.optional(Schema.Finite)
})
export type SessionMemory = typeof SessionMemory.Type

/** A control channel that is in step, or owes replies. */
export const Channel = Schema.Struct({
  /** Replies that may still come for commands that were given up. */
  owed: Schema.Int,
  sawNext: Schema.Boolean,
  current: Schema.optional(Schema.Struct({ command: Schema.String, code: Schema.Int, millis: Schema.Finite }))
})
export type Channel = typeof Channel.Type

const Vm = Schema.Struct({
  /** The name of its record's file. */
  file: Schema.String,
  record: VmRecord,
  /** Of a VM that is there. */
  live: Schema.optional(Schema.Struct({ ctl: Wire, io: Wire, channel: Channel })),
  sessions: Schema.Array(SessionMemory),
  exits: Schema.Array(
    Schema.Struct({ container: Schema.String, process: Schema.String, event: Schema.String, status: Schema.Int })
  )
})
export type Vm = typeof Vm.Type

/** A command without an answer yet, or an answer that waits for those before it. */
export const Answer = Schema.Struct({
  opcode: Schema.Int,
  payload: Ref,
  /** Whether `payload` is the answer, as a frame. */
  done: Schema.Boolean,
  /** Whether output may follow it. */
  attaches: Schema.Boolean,
  /** Whether it is the command that its VM's agent owes the reply to. */
  written: Schema.Boolean,
  /** Millis that it has waited for what it waits for. */
  waited: Schema.Finite,
  /** Place of the VM that it was sent to. */
  vm: Schema.optional(Schema.Int)
})
export type Answer = typeof Answer.Type

export const Client = Schema.Struct({
  name: Schema.String,
  wire: Wire,
  /** Place of the VM it is attached to. */
  vm: Schema.optional(Schema.Int),
  /** The token it has claimed. */
  session: Schema.optional(Schema.String),
  attached: Schema.Boolean,
  turnedAway: Schema.Boolean,
  /** Whether it is being ended, once it has taken what is left. */
  ended: Schema.Boolean,
  answers: Schema.Array(Answer)
})
export type Client = typeof Client.Type

const Booting = Schema.Struct({ id: Schema.String, ctl: Wire, io: Wire })
export type Booting = typeof Booting.Type

const LostId = Schema.Struct({ id: Schema.String, millis: Schema.Finite, vm: Schema.optional(Schema.Int) })

const Registry = Schema.Struct({
  vms: Schema.Array(Vm),
  /** VMs whose agents have not said READY. */
  booting: Schema.Array(Booting),
  /** Ids that were lost before they were unregistered, oldest first. */
  lostIds: Schema.Array(LostId),
  ended: Schema.Int,
  unregistered: Schema.Int
})
export type Registry = typeof Registry.Type

export const Snapshot = Schema.Struct({
  version: Schema.Literal(version),
  /** Where the daemon listened. */
  socket: Schema.String,
  /** When it held reading, in millis of the host's monotonic clock. */
  held: Schema.Finite,
  /** Which of its descriptors is the listening socket. */
  listener: Schema.Int,
  /** What fstat(2) says of each descriptor's inode: by it one is found again that came by another way. */
  inodes: Schema.Array(Schema.Int),
  registry: Registry,
  clients: Schema.Array(Client),
  ending: Schema.Array(Wire),
  /** How many clients there have been. */
  count: Schema.Int
})
export type Snapshot = typeof Snapshot.Type

/** A state that this daemon cannot read: written by a newer one, or no state at all. */
export interface Unreadable {
  readonly reason: string
}

const Versioned = Schema.Struct({ version: Schema.Int })
const isVersioned = Schema.is(Versioned)
const utf8 = new TextDecoder("utf-8", { fatal: true })
const toUtf8 = new TextEncoder()

const decodeWith = <A>(schema: Schema.Codec<A, unknown>) => {
  const decode = Schema.decodeUnknownResult(schema)
  return (bytes: Uint8Array): Result.Result<A, Unreadable> => {
    let json: unknown
    try {
      json = JSON.parse(utf8.decode(bytes))
    } catch {
      return Result.fail({ reason: "it is not JSON" })
    }
    if (isVersioned(json) && json.version > version)
      return Result.fail({ reason: `its version is ${json.version}, this daemon reads up to ${version}` })
    // the error's message would quote values
    return Result.mapError(decode(json), () => ({ reason: "it does not fit its schema" }))
  }
}

export const decodeVm: (bytes: Uint8Array) => Result.Result<VmRecord, Unreadable> = decodeWith(
  VmRecord as Schema.Codec<VmRecord, unknown>
)

export const encodeVm = (record: VmRecord): Uint8Array => toUtf8.encode(JSON.stringify(record))

/** Collects the bytes behind a snapshot's JSON. */
export class Blobs {
  readonly #parts: Array<Uint8Array> = []
  #size = 0

  put(chunks: ReadonlyArray<Uint8Array>): Ref {
    const at = this.#size
    for (const chunk of chunks) {
      this.#parts.push(chunk)
      this.#size += chunk.length
    }
    return [at, this.#size - at]
  }

  /** Bytes in all. */
  get size(): number {
    return this.#size
  }

  get parts(): ReadonlyArray<Uint8Array> {
    return this.#parts
  }
}

const decodeSnapshotJson = decodeWith(Snapshot as Schema.Codec<Snapshot, unknown>)

/** Bytes before a snapshot's JSON. */
const headSize = 8

/** A snapshot: how many bytes of JSON there are, and how many behind that, as big-endian u32s; the JSON; and the bytes that it refers to. */
export const encodeSnapshot = (snapshot: Snapshot, blobs: Blobs): ReadonlyArray<Uint8Array> => {
  const json = toUtf8.encode(JSON.stringify(snapshot))
  const head = new Uint8Array(headSize)
  putU32(head, 0, json.length)
  putU32(head, 4, blobs.size)
  return [head, json, ...blobs.parts]
}

/** A snapshot, and its bytes by what refers to them: views. */
export interface Decoded {
  readonly snapshot: Snapshot
  readonly bytesOf: (ref: Ref) => Uint8Array
}

export const decodeSnapshot = (bytes: Uint8Array): Result.Result<Decoded, Unreadable> => {
  const end = bytes.length < headSize ? undefined : headSize + u32(bytes, 0)
  if (end === undefined || end + u32(bytes, 4) !== bytes.length) return Result.fail({ reason: "it is cut off" })
  return Result.map(decodeSnapshotJson(bytes.subarray(headSize, end)), (snapshot) => ({
    snapshot,
    bytesOf: ([at, size]) => bytes.subarray(end + at, end + at + size)
  }))
}
