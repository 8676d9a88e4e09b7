import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as DaemonState from "../../src/domain/DaemonState.ts"
import { Deadlines } from "../../src/services/Deadlines.ts"
import * as Inheritance from "../../src/services/Inheritance.ts"
import { Listener } from "../../src/services/Listener.ts"
import { Spool } from "../../src/services/Spool.ts"
import { States } from "../../src/services/States.ts"
import { Predecessor } from "../../src/services/Successor.ts"
import { Descriptors } from "../../src/services/Wire.ts"
import { concat, pattern, toText, utf8 } from "../support/Bytes.ts"
import * as Host from "../support/Host.ts"
import { MemorySpool } from "../support/MemorySpool.ts"
import { MemoryState } from "../support/MemoryState.ts"
import * as Records from "../support/Records.ts"
import { closedDoor } from "../support/TestProxy.ts"

const vm: DaemonState.VmRecord = {
  version: 1,
  socket: closedDoor.url,
  id: "a",
  ctl: "a.ctl",
  io: "a.io",
  inodes: [Host.inodeOf(11), Host.inodeOf(12)],
  registered: true,
  agent: "c",
  unnamed: false,
  nextSequence: 5,
  starting: false,
  clean: false,
  sessions: [
    {
      token: "a token that nobody may see",
      stdio: 3,
      claimed: true,
      phase: "started",
      process: { container: "c1", terminal: false, init: true },
      output: { ended: false },
      stdinEnd: "none",
      waiting: {
        output: [
          { name: "1-1", read: 100, written: 300 },
          { name: "1-2", read: 0, written: 10 },
          { name: "1-3", read: 50, written: 50 }
        ],
        stdin: []
      }
    }
  ]
}

const wire = (descriptor: number): DaemonState.Wire => ({ descriptor, unread: [0, 2], unsent: [2, 3] })

/** A snapshot of descriptors 10 to 13: a listening socket, a VM's and a client's. */
const snapshot = (changes: Partial<DaemonState.Snapshot> = {}): Uint8Array => {
  const blobs = new DaemonState.Blobs()
  blobs.put([utf8("rdwrt")])
  const live = { ctl: wire(1), io: wire(2), channel: { owed: 0, sawNext: false } }
  const client = { name: "client 4", attached: false, turnedAway: false, ended: false, answers: [] }
  const value = {
    version: 1 as const,
    socket: closedDoor.url,
    held: 0,
    listener: 0,
    inodes: [10, 11, 12, 13].map(Host.inodeOf),
    registry: {
      vms: [{ file: "a.state", record: vm, live, sessions: [], exits: [] }],
      booting: [],
      lostIds: [],
      ended: 0,
      unregistered: 0
    },
    clients: [{ ...client, wire: wire(3), vm: 0 }],
    ending: [],
    count: 4,
    ...changes
  }
  return concat(DaemonState.encodeSnapshot(value, blobs))
}

/** What a daemon takes over from what there is, and what it has told and closed. */
const take = Effect.fnUntraced(function* (options: {
  readonly handed?: Uint8Array
  readonly inherited?: ReadonlyArray<number>
  readonly states?: Readonly<Record<string, Uint8Array>>
  readonly files?: Readonly<Record<string, Uint8Array>>
}) {
  const { layer, records } = Records.make()
  const events: Array<string> = []
  const closed: Array<number> = []
  const services = Layer.mergeAll(States.layer, Spool.layer).pipe(
    Layer.provideMerge(Deadlines.layer),
    Layer.provideMerge(
      Layer.mergeAll(
        layer,
        MemorySpool.layer,
        MemoryState.layerOver(new Map(Object.entries(options.states ?? {}))),
        Layer.succeed(Listener, closedDoor),
        Layer.succeed(Descriptors, { inode: Host.inodeOf, close: (descriptor) => void closed.push(descriptor) }),
        Layer.succeed(Predecessor, {
          pid: options.handed === undefined ? undefined : 77,
          receive: () => options.handed,
          inherited: options.inherited ?? [],
          accept: () => void events.push("accepted"),
          refuse: (reason) => void events.push(`refused: ${reason}`)
        })
      )
    )
  )
  return yield* Effect.gen(function* () {
    const { files } = yield* MemorySpool
    for (const [name, bytes] of Object.entries(options.files ?? {})) files.set(name, bytes)
    const inheritance = yield* Effect.result(Effect.flatMap(Inheritance.handedOver, Inheritance.take))
    return { inheritance, records, events, closed, files: [...files.keys()] }
  }).pipe(Effect.provide(services))
})

const taken = Effect.fnUntraced(function* (options: Parameters<typeof take>[0]) {
  const { inheritance, ...rest } = yield* take(options)
  if (inheritance._tag === "Failure") return assert.fail(inheritance.failure.message)
  return { ...rest, ...inheritance.success }
})

describe("a daemon that takes another's place", () => {
  it.effect("has every connection, with what was read of it and what has not left", () =>
    Effect.gen(function* () {
      const { clients, closed, events, from, vms } = yield* taken({ handed: snapshot(), inherited: [13, 12, 11] })
      assert.strictEqual(from, "hand-over")
      assert.deepStrictEqual(events, ["accepted"])
      assert.deepStrictEqual(closed, [])
      assert.deepStrictEqual([vms.vms[0]?.wires?.ctl.descriptor, vms.vms[0]?.wires?.io.descriptor], [11, 12])
      const client = clients[0]!
      assert.strictEqual(client.wire.descriptor, 13)
      assert.strictEqual(toText(concat(client.wire.unread)), "rd")
      assert.strictEqual(toText(concat(client.wire.unsent)), "wrt")
    })
  )

  it.effect("closes what came along and is nobody's", () =>
    Effect.gen(function* () {
      const { closed } = yield* taken({ handed: snapshot(), inherited: [11, 12, 13, 14, 15] })
      assert.deepStrictEqual(closed, [14, 15])
    })
  )

  it.effect("refuses what it cannot read, or what is not all there, and touches nothing", () =>
    Effect.gen(function* () {
      const client = { name: "client 1", attached: false, turnedAway: false, ended: false, answers: [] }
      for (const [handed, inherited, reason] of [
        [utf8('\0\0\0\u000d\0\0\0\0{"version":7}'), [11, 12, 13], "its version is 7, this daemon reads up to 1"],
        [snapshot().subarray(0, 50), [11, 12, 13], "it is cut off"],
        [snapshot(), [11, 12], "it refers to a connection that did not come along"],
        [snapshot(), [12, 13], "it refers to a connection that did not come along"],
        [
          snapshot({ clients: [{ ...client, wire: wire(9) }] }),
          [11, 12, 13],
          "it refers to a connection that did not come along"
        ],
        [
          snapshot({ clients: [{ ...client, wire: wire(3), vm: 1 }] }),
          [11, 12, 13],
          "it refers to a VM that it has not"
        ]
      ] as const) {
        const { closed, events, files, inheritance } = yield* take({
          handed,
          inherited,
          files: { "1-1": pattern(10), "0-9": pattern(10) }
        })
        const told = `the state of the earlier daemon cannot be read: ${reason}`
        assert.deepStrictEqual(events, [`refused: ${told}`])
        assert.strictEqual(inheritance._tag === "Failure" && inheritance.failure.message, told)
        assert.deepStrictEqual(closed, [])
        assert.deepStrictEqual(files, ["1-1", "0-9"])
      }
    })
  )
})

describe("a daemon that comes after one that is gone", () => {
  it.effect("has nothing where nothing was left", () =>
    Effect.gen(function* () {
      const { clients, closed, events, files, from, vms } = yield* taken({ files: { "0-9": pattern(10) } })
      assert.isUndefined(from)
      assert.deepStrictEqual([clients, closed, events, files, [...vms.vms]], [[], [], [], [], []])
    })
  )

  it.effect("that was killed has its VMs, and of its files as much as is there", () =>
    Effect.gen(function* () {
      const { files, from, records, vms } = yield* taken({
        states: { "a.state": DaemonState.encodeVm(vm) },
        // the first has more than the record says, the second less, the third had been read
        files: { "1-1": pattern(900), "1-2": pattern(4), "1-3": pattern(50), "0-9": pattern(10) }
      })
      assert.strictEqual(from, "state")
      const [earlier] = vms.vms
      assert.isUndefined(earlier?.wires)
      assert.deepStrictEqual(earlier?.record.sessions[0]?.waiting.output, [
        { name: "1-1", read: 100, written: 900 },
        { name: "1-2", read: 0, written: 4 }
      ])
      assert.sameMembers(files, ["1-1", "1-2", "1-3"])
      const warned = records.filter(({ level }) => level === "Warn")
      assert.strictEqual(warned.length, 1)
      assert.match(String(warned[0]?.msg), /^gap possible/)
      assert.notInclude(JSON.stringify(records), "nobody may see")
    })
  )

  it.effect("that stopped in good order has its VMs as they were, and no gap is told", () =>
    Effect.gen(function* () {
      const { records, vms } = yield* taken({
        states: { "a.state": DaemonState.encodeVm({ ...vm, clean: true }) },
        files: { "1-1": pattern(900), "1-2": pattern(10) }
      })
      assert.deepStrictEqual(vms.vms[0]?.record, { ...vm, clean: true })
      assert.isEmpty(records.filter(({ level }) => level === "Warn"))
    })
  )

  it.effect("finds the connections that were kept by their inodes, and closes the others", () =>
    Effect.gen(function* () {
      const states = { "a.state": DaemonState.encodeVm(vm) }
      const { closed, vms } = yield* taken({ states, inherited: [20, 12, 11] })
      assert.deepStrictEqual([vms.vms[0]?.wires?.ctl.descriptor, vms.vms[0]?.wires?.io.descriptor], [11, 12])
      assert.deepStrictEqual(closed, [20])
      const half = yield* taken({ states, inherited: [12] })
      assert.isUndefined(half.vms.vms[0]?.wires)
    })
  )

  it.effect("that stopped, and had its connections kept, has everything, and its own records of other VMs", () =>
    Effect.gen(function* () {
      const other = DaemonState.encodeVm({ ...vm, id: "b", inodes: undefined, clean: true, sessions: [] })
      const { clients, events, from, vms } = yield* taken({
        states: { "a.state": DaemonState.encodeVm(vm), "b.state": other, "stop.carried": snapshot() },
        inherited: [11, 12, 13]
      })
      assert.strictEqual(from, "stop")
      assert.deepStrictEqual(events, [])
      assert.strictEqual(clients.length, 1)
      assert.deepStrictEqual(
        vms.vms.map(({ file, rest, wires }) => [file, rest !== undefined, wires !== undefined]),
        [
          ["a.state", true, true],
          ["b.state", false, false]
        ]
      )
    })
  )
})
