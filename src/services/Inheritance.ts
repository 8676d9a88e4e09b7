/** What an earlier daemon left, made ready to go on with: by a hand-over, in the service manager's keep, or on disk. */
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as DaemonState from "../domain/DaemonState.ts"
import type { Carried } from "./CtlChannel.ts"
import { ListenError } from "./Listener.ts"
import { Settings } from "./Settings.ts"
import { Spool } from "./Spool.ts"
import { States } from "./States.ts"
import { Predecessor } from "./Successor.ts"
import type * as Vm from "./Vm.ts"
import type { EarlierVms } from "./VmRegistry.ts"
import { type CarriedWire, Descriptors } from "./Wire.ts"

export interface Inheritance {
  readonly vms: EarlierVms
  readonly clients: ReadonlyArray<{ readonly client: DaemonState.Client; readonly wire: CarriedWire }>
  readonly ending: ReadonlyArray<CarriedWire>
  readonly bytesOf: (ref: DaemonState.Ref) => Uint8Array
  /** How many clients there have been. */
  readonly count: number
  /** When an earlier daemon stopped reading, of `elapsedMillis`. */
  readonly held: number | undefined
  /** Where it came from, for the log. */
  readonly from: "hand-over" | "stop" | "state" | undefined
}

const nothing = new Uint8Array(0)
const noBytes = () => nothing

/** A snapshot's connections, as far as their descriptors are there. */
const connections = (
  { bytesOf, snapshot }: DaemonState.Decoded,
  descriptorOf: (index: number) => number | undefined
): Pick<Inheritance, "bytesOf" | "clients" | "count" | "ending" | "held" | "vms"> => {
  const wire = ({ descriptor: index, unread, unsent }: DaemonState.Wire): CarriedWire | undefined => {
    const descriptor = descriptorOf(index)
    return descriptor === undefined
      ? undefined
      : { descriptor, unread: [bytesOf(unread).slice()], unsent: [bytesOf(unsent).slice()] }
  }
  const both = ({
    ctl,
    io
  }: {
    readonly ctl: DaemonState.Wire
    readonly io: DaemonState.Wire
  }): Carried | undefined => {
    const [ctlWire, ioWire] = [wire(ctl), wire(io)]
    return ctlWire === undefined || ioWire === undefined ? undefined : { ctl: ctlWire, io: ioWire }
  }
  const { registry } = snapshot
  return {
    bytesOf,
    vms: {
      registry,
      vms: registry.vms.map((rest) => {
        const wires = rest.live && both(rest.live)
        return { file: rest.file, record: rest.record, rest, bytesOf, wires }
      }),
      booting: new Map(
        registry.booting.flatMap((vm) => {
          const wires = both(vm)
          return wires === undefined ? [] : [[vm.id, wires]]
        })
      )
    },
    clients: snapshot.clients.flatMap((client) => {
      const found = wire(client.wire)
      return found === undefined ? [] : [{ client, wire: found }]
    }),
    ending: snapshot.ending.flatMap((each) => wire(each) ?? []),
    count: snapshot.count,
    held: snapshot.held
  }
}

/** What is not as a snapshot has to be, beyond its schema. */
const flaw = ({ snapshot }: DaemonState.Decoded, has: (inode: number | undefined) => boolean): string | undefined => {
  const { clients, ending, inodes, registry } = snapshot
  const live = registry.vms.flatMap((vm) => (vm.live === undefined ? [] : [vm.live.ctl, vm.live.io]))
  const wires = [...live, ...clients.map(({ wire }) => wire), ...ending]
  if (!wires.every(({ descriptor }) => has(inodes[descriptor])))
    return "it refers to a connection that did not come along"
  const isVm = (place: number | undefined) => place === undefined || registry.vms[place] !== undefined
  return clients.every(({ vm }) => isVm(vm)) ? undefined : "it refers to a VM that it has not"
}

/** The connections that came along, by their inodes. */
const connectionsByInode = Effect.gen(function* () {
  const { inherited } = yield* Predecessor
  const { inode } = yield* Descriptors
  return new Map<number | undefined, number>(
    inherited.flatMap((descriptor) => {
      const found = inode(descriptor)
      return found === undefined ? [] : [[found, descriptor] as const]
    })
  )
})

/** What the process hands over in whose place this one was started: ours from here on. Nothing of that one's has been touched before. */
export const handedOver: Effect.Effect<DaemonState.Decoded | undefined, ListenError, Descriptors | Predecessor> =
  Effect.gen(function* () {
    const { accept, pid, receive, refuse } = yield* Predecessor
    if (pid === undefined) return undefined
    const byInode = yield* connectionsByInode
    const has = (inode: number | undefined) => byInode.has(inode)
    const snapshot = receive()
    if (snapshot === undefined) return yield* new ListenError({ reason: "the earlier daemon has not handed over" })
    const decoded = DaemonState.decodeSnapshot(snapshot)
    const reason = Result.isFailure(decoded) ? decoded.failure.reason : flaw(decoded.success, has)
    if (Result.isFailure(decoded) || reason !== undefined) {
      const why = `the state of the earlier daemon cannot be read: ${reason}`
      refuse(why)
      return yield* new ListenError({ reason: why })
    }
    accept()
    yield* Effect.logInfo("took over", { from: pid })
    return decoded.success
  })

/** All that an earlier daemon left, whichever way; `handed` is what it handed over. */
export const take = (
  handed: DaemonState.Decoded | undefined
): Effect.Effect<Inheritance, never, Descriptors | Predecessor | Spool | States> =>
  Effect.gen(function* () {
    const { inherited } = yield* Predecessor
    const { close } = yield* Descriptors
    const { files } = yield* Spool
    const states = yield* States
    const settings = yield* Settings
    const byInode = yield* connectionsByInode
    // what a daemon hands over is all that its records say, and more
    const found = handed === undefined ? yield* states.open : { records: [], snapshot: undefined }
    const decoded = handed ?? found.snapshot
    const used = new Set<number>()
    const descriptorOf = (each: number | undefined) => {
      const descriptor = byInode.get(each)
      if (descriptor !== undefined) used.add(descriptor)
      return descriptor
    }
    const connected = decoded && connections(decoded, (index) => descriptorOf(decoded.snapshot.inodes[index]))
    const known = new Set(connected?.vms.vms.map(({ file }) => file))
    const records = found.records.filter(({ file }) => !known.has(file))
    const waiting = [...records.map(({ record }) => record), ...(connected?.vms.vms ?? []).map(({ record }) => record)]
    const sizes = yield* files.open(new Set(waiting.flatMap(({ sessions }) => sessions.flatMap(segmentsOf))))
    const vms: Array<Vm.Earlier> = []
    for (const { file, record } of records) {
      const wires = record.inodes && wiresOf(record.inodes.map(descriptorOf))
      if (!record.clean && record.lost === undefined) yield* tellGaps(record, settings)
      vms.push({ file, record: record.clean ? record : measured(record, sizes), bytesOf: noBytes, wires })
    }
    // an end that nobody here knows of: its peer is to see that
    for (const descriptor of inherited) if (!used.has(descriptor)) close(descriptor)
    yield* records.length > 0
      ? Effect.logInfo("VMs of an earlier daemon found", { vms: records.length, connections: used.size })
      : Effect.void
    return {
      clients: [],
      ending: [],
      bytesOf: noBytes,
      count: 0,
      held: undefined,
      ...connected,
      vms: {
        booting: new Map(),
        ...connected?.vms,
        vms: [...(connected?.vms.vms ?? []), ...vms]
      },
      from:
        handed !== undefined ? "hand-over" : decoded !== undefined ? "stop" : records.length > 0 ? "state" : undefined
    }
  })

const segmentsOf = ({ waiting: { output, stdin } }: DaemonState.SessionRecord): ReadonlyArray<string> =>
  [...output, ...stdin].map(({ name }) => name)

const wiresOf = ([ctl, io]: ReadonlyArray<number | undefined>): Carried | undefined =>
  ctl === undefined || io === undefined
    ? undefined
    : { ctl: { descriptor: ctl, unread: [], unsent: [] }, io: { descriptor: io, unread: [], unsent: [] } }

/** A record of a daemon that was killed: its files may have more than it says. */
const measured = (record: DaemonState.VmRecord, sizes: ReadonlyMap<string, number>): DaemonState.VmRecord => {
  const measure = (segments: ReadonlyArray<DaemonState.Segment>) =>
    segments.flatMap(({ name, read, written }) => {
      const size = sizes.get(name) ?? written
      return size > read ? [{ name, read, written: size }] : []
    })
  const sessions = record.sessions.map((session) => ({
    ...session,
    waiting: { output: measure(session.waiting.output), stdin: measure(session.waiting.stdin) }
  }))
  return { ...record, sessions }
}

/** Tells what a daemon that was killed may have had in memory. */
const tellGaps = ({ id, sessions }: DaemonState.VmRecord, { outboxLimit, stdinLimit }: Settings): Effect.Effect<void> =>
  Effect.forEach(
    sessions.filter(({ phase }) => phase !== "idle"),
    ({ process }) =>
      Effect.logWarning("gap possible: the daemon was killed, and what it had in memory is lost", {
        vm: id,
        container: process?.container,
        output: outboxLimit + outboxLimit / 2 + maxReads,
        stdin: stdinLimit + stdinLimit / 2 + maxReads
      }),
    { discard: true }
  )

/** Bytes on their way through the daemon beside what waits: a read of a socket, and what a wire may hold. */
const maxReads = 256 * 1024
