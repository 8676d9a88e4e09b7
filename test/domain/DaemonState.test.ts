import { assert, describe, it } from "@effect/vitest"
import * as Result from "effect/Result"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as DaemonState from "../../src/domain/DaemonState.ts"
import { concat, toText, utf8 } from "../support/Bytes.ts"

const token = "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3I="

/** One session that has everything, one that has nothing. */
const sessions: ReadonlyArray<DaemonState.SessionRecord> = [
  {
    token,
    stdio: 3,
    claimed: true,
    phase: "started",
    process: { container: "c1", process: "p1", terminal: false, init: true },
    output: { ended: true, status: 7, early: 7 },
    stdinEnd: "sent",
    waiting: {
      output: [
        { name: "17-1", read: 512, written: 65_536 },
        { name: "17-3", read: 0, written: 9 }
      ],
      stdin: [{ name: "17-2", read: 0, written: 4096 }]
    }
  },
  {
    token: "aWRsZSBpZGxlIGlkbGUgaWRsZSBpZGxlIGlkbGUgaWQ=",
    stdio: 5,
    claimed: false,
    phase: "idle",
    output: { ended: false },
    stdinEnd: "none",
    waiting: { output: [], stdin: [] }
  }
]

const record: DaemonState.VmRecord = {
  version: 1,
  socket: "unix:///run/proxy.sock",
  id: "pod-1",
  ctl: "/run/pod-1/ctl.sock",
  io: "/run/pod-1/io.sock",
  console: "/run/pod-1/console.sock",
  inodes: [1001, 1002],
  registered: false,
  lost: "io: closed",
  agent: "c",
  api: 4244,
  unnamed: true,
  nextSequence: 7,
  starting: true,
  clean: true,
  sessions
}

/** A VM of which nothing is known that need not be. */
const bare: DaemonState.VmRecord = {
  version: 1,
  socket: "unix:///run/proxy.sock",
  id: "pod-2",
  ctl: "/run/pod-2/ctl.sock",
  io: "/run/pod-2/io.sock",
  registered: true,
  agent: "unknown",
  unnamed: false,
  nextSequence: 3,
  starting: false,
  clean: false,
  sessions: []
}

const wire = (descriptor: number, at = 0): DaemonState.Wire => ({ descriptor, unread: [at, 3], unsent: [at + 3, 2] })

const snapshot: DaemonState.Snapshot = {
  version: 1,
  socket: "unix:///run/proxy.sock",
  held: 81_234,
  listener: 0,
  inodes: [1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007],
  registry: {
    vms: [
      {
        file: "vm-a-1.state",
        record,
        live: {
          ctl: wire(1),
          io: wire(2, 5),
          channel: { owed: 2, sawNext: true, current: { command: "newcontainer", code: 17, millis: 1500 } }
        },
        sessions: [
          {
            output: { head: [10, 4], tail: [14, 2] },
            stdin: { head: [16, 0], tail: [16, 3] },
            handed: [{ chunk: [19, 5], end: 24 }],
            window: 512,
            fed: 8192,
            flooding: true,
            heard: true,
            orphan: 299_000
          },
          {
            output: { head: [24, 0], tail: [24, 0] },
            stdin: { head: [24, 0], tail: [24, 0] },
            handed: [],
            fed: 0,
            flooding: false,
            heard: false
          }
        ],
        exits: [{ container: "c1", process: "(null)", event: "finished", status: 9 }]
      },
      { file: "vm-a-2.state", record: bare, sessions: [], exits: [] }
    ],
    booting: [{ id: "pod-3", ctl: wire(3), io: wire(4) }],
    lostIds: [
      { id: "pod-0", millis: 60_000 },
      { id: "pod-1", millis: 600_000, vm: 0 }
    ],
    ended: 4,
    unregistered: 3
  },
  clients: [
    {
      name: "client 12",
      wire: wire(5),
      vm: 0,
      session: token,
      attached: true,
      turnedAway: false,
      ended: false,
      answers: [
        { opcode: 3, payload: [24, 6], done: false, attaches: false, written: true, waited: 0, vm: 0 },
        { opcode: 4, payload: [30, 2], done: true, attaches: true, written: false, waited: 100 }
      ]
    },
    { name: "client 13", wire: wire(6), attached: false, turnedAway: true, ended: true, answers: [] }
  ],
  ending: [wire(7)],
  count: 13
}

const blobText = "0123456789abcdefghijklmnopqrstuv"

/** A snapshot's bytes, over these behind it. */
const encoded = (value: DaemonState.Snapshot = snapshot): Uint8Array => {
  const blobs = new DaemonState.Blobs()
  blobs.put([utf8(blobText)])
  return concat(DaemonState.encodeSnapshot(value, blobs))
}

const sample = (name: string): Uint8Array => Fs.readFileSync(Path.join(import.meta.dirname, "state", name))

const reasonOf = <A>(result: Result.Result<A, DaemonState.Unreadable>): string =>
  Result.isFailure(result) ? result.failure.reason : assert.fail("it was read")

/** A record, or a snapshot's JSON, with something else in some places. */
const changed = (value: object, changes: object): Uint8Array => utf8(JSON.stringify({ ...value, ...changes }))

describe("a VM's record", () => {
  for (const [name, value] of [
    ["everything", record],
    ["nothing that need not be", bare]
  ] as const)
    it(`that has ${name} is read as it was written`, () => {
      assert.deepStrictEqual(Result.getOrThrow(DaemonState.decodeVm(DaemonState.encodeVm(value))), value)
    })

  it("of version 1 is read, by whatever version", () => {
    assert.deepStrictEqual(Result.getOrThrow(DaemonState.decodeVm(sample("v1.state"))), record)
  })

  it("may have more than this daemon knows", () => {
    const more = changed(record, { colour: "blue", sessions: sessions.map((each) => ({ ...each, more: [1] })) })
    assert.deepStrictEqual(Result.getOrThrow(DaemonState.decodeVm(more)), record)
  })

  it("of a newer version is told by it, whatever else there is", () => {
    for (const value of [changed(record, { version: 2 }), utf8('{"version":2}')])
      assert.strictEqual(reasonOf(DaemonState.decodeVm(value)), "its version is 2, this daemon reads up to 1")
  })

  it("that is no JSON, or no UTF-8, is told so, at whatever byte it is cut off", () => {
    const whole = DaemonState.encodeVm(record)
    for (let size = 0; size < whole.length; size++)
      assert.strictEqual(reasonOf(DaemonState.decodeVm(whole.subarray(0, size))), "it is not JSON")
    assert.strictEqual(reasonOf(DaemonState.decodeVm(Uint8Array.of(0x22, 0xff, 0x22))), "it is not JSON")
  })

  it("that does not fit is told so, and nothing of it is told", () => {
    for (const [name, changes] of Object.entries({
      version: { version: 0 },
      "no version": { version: undefined },
      id: { id: "" },
      agent: { agent: token },
      sessions: { sessions: [{ ...sessions[0], phase: token }] },
      token: { sessions: [{ ...sessions[0], token: 7, stdinEnd: token }] },
      inodes: { inodes: [token] },
      nextSequence: { nextSequence: 1.5 }
    }))
      assert.strictEqual(
        reasonOf(DaemonState.decodeVm(changed(record, changes))),
        "it does not fit its schema",
        `${name} is told, or passed over`
      )
    for (const json of ["null", "[]", "7", `"${token}"`])
      assert.strictEqual(reasonOf(DaemonState.decodeVm(utf8(json))), "it does not fit its schema")
  })
})

describe("a snapshot", () => {
  it("is read as it was written, with the bytes that it refers to", () => {
    const { bytesOf, snapshot: read } = Result.getOrThrow(DaemonState.decodeSnapshot(encoded()))
    assert.deepStrictEqual(read, snapshot)
    assert.strictEqual(toText(bytesOf([0, 3])), "012")
    assert.strictEqual(toText(bytesOf([30, 2])), "uv")
    assert.strictEqual(bytesOf([24, 0]).length, 0)
  })

  it("of version 1 is read, by whatever version", () => {
    const { bytesOf, snapshot: read } = Result.getOrThrow(DaemonState.decodeSnapshot(sample("v1.carried")))
    assert.deepStrictEqual(read, snapshot)
    const [vm] = read.registry.vms
    assert.strictEqual(toText(bytesOf(vm!.live!.io.unread)), "567")
    assert.strictEqual(toText(bytesOf(vm!.sessions[0]!.output.head)), "abcd")
    assert.strictEqual(toText(bytesOf(read.clients[0]!.answers[1]!.payload)), "uv")
  })

  it("refers to bytes in the order in which they were put", () => {
    const blobs = new DaemonState.Blobs()
    assert.deepStrictEqual(blobs.put([utf8("ab"), utf8("c")]), [0, 3])
    assert.deepStrictEqual(blobs.put([]), [3, 0])
    assert.deepStrictEqual(blobs.put([utf8("defg")]), [3, 4])
    const { bytesOf } = Result.getOrThrow(
      DaemonState.decodeSnapshot(concat(DaemonState.encodeSnapshot(snapshot, blobs)))
    )
    assert.strictEqual(toText(bytesOf([0, 3])) + toText(bytesOf([3, 0])) + toText(bytesOf([3, 4])), "abcdefg")
  })

  it("that is cut off in its JSON is told so, at whatever byte", () => {
    const whole = encoded()
    for (let size = 0; size < whole.length - blobText.length; size += size < 12 ? 1 : 97)
      assert.strictEqual(reasonOf(DaemonState.decodeSnapshot(whole.subarray(0, size))), "it is cut off")
  })

  it("that is cut off in the bytes behind its JSON is told so", () => {
    const whole = encoded()
    for (const missing of [1, blobText.length - 1, blobText.length])
      assert.strictEqual(
        reasonOf(DaemonState.decodeSnapshot(whole.subarray(0, whole.length - missing))),
        "it is cut off"
      )
  })

  it("of a newer version, and one that does not fit, are told so, and nothing of them", () => {
    const behind = (json: Uint8Array) => {
      const head = new Uint8Array(8)
      new DataView(head.buffer).setUint32(0, json.length)
      return concat([head, json])
    }
    const reasons = [
      changed(snapshot, { version: 2 }),
      utf8("not JSON"),
      changed(snapshot, { clients: [{ ...snapshot.clients[0], session: 7, name: token, wire: token }] }),
      changed(snapshot, { registry: { ...snapshot.registry, vms: [{ record: token }] } }),
      changed(snapshot, { ending: [{ descriptor: 1, unread: [0], unsent: [0, 1] }] })
    ].map((json) => reasonOf(DaemonState.decodeSnapshot(behind(json))))
    assert.deepStrictEqual(reasons, [
      "its version is 2, this daemon reads up to 1",
      "it is not JSON",
      "it does not fit its schema",
      "it does not fit its schema",
      "it does not fit its schema"
    ])
  })
})
