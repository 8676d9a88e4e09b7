import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Client from "../../src/client/index.ts"
import * as FakeProxy from "./FakeProxy.ts"
import { response, wire } from "./FakeProxy.ts"

const { Command } = Client.Frame

/** What `ask` puts on the wire, and how it ends once the proxy has answered with `answer`. */
const exchange = Effect.fnUntraced(function* <A, E>(
  ask: (connection: Client.Connection) => Effect.Effect<A, E>,
  expected: Buffer,
  answer: Uint8Array
) {
  const proxy = yield* FakeProxy.make
  const connection = yield* Client.connect(proxy.path)
  const peer = yield* proxy.accept
  const asking = yield* Effect.forkChild(Effect.result(ask(connection)))
  // the length is in the header: what is compared is exactly what was sent
  const sent = yield* peer.take(expected.length)
  assert.strictEqual(sent.toString("latin1"), expected.toString("latin1"))
  yield* connection.halfClose
  assert.strictEqual((yield* peer.rest).length, 0)
  yield* peer.send(answer)
  return yield* Fiber.join(asking)
})

const succeeds = <A, E>(
  ask: (connection: Client.Connection) => Effect.Effect<A, E>,
  expected: Buffer,
  answer: Uint8Array
) => Effect.flatMap(exchange(ask, expected, answer), Effect.fromResult)

describe("registerVM", () => {
  it.effect("tells the VM's sockets and gives the URL and the tokens", () =>
    Effect.gen(function* () {
      const io = yield* succeeds(
        (connection) =>
          Client.registerVM(connection, {
            containerId: "pod1",
            ctlSerial: "/run/vm/ctl.sock",
            ioSerial: "/run/vm/io.sock",
            console: "/run/vm/console.sock",
            numIOStreams: 2
          }),
        wire(
          "00020300 00000000 00000084",
          '{"containerId":"pod1","ctlSerial":"/run/vm/ctl.sock","ioSerial":"/run/vm/io.sock",' +
            '"console":"/run/vm/console.sock","numIOStreams":2}'
        ),
        response(Command.RegisterVM, '{"io":{"URL":"unix:///run/proxy.sock","tokens":["a","b"]},"more":1}')
      )
      assert.deepStrictEqual(io, { url: "unix:///run/proxy.sock", tokens: ["a", "b"] })
    })
  )

  it.effect("gives no tokens where none were asked for", () =>
    Effect.gen(function* () {
      const io = yield* succeeds(
        (connection) => Client.registerVM(connection, { containerId: "p", ctlSerial: "/c", ioSerial: "/i" }),
        wire("00020300 00000000 00000034", '{"containerId":"p","ctlSerial":"/c","ioSerial":"/i"}'),
        response(Command.RegisterVM, '{"io":{"URL":"unix:///run/proxy.sock","tokens":null}}')
      )
      assert.deepStrictEqual(io, { url: "unix:///run/proxy.sock", tokens: [] })
    })
  )

  it.effect.each(["", "secret", '{"io":{"URL":1,"tokens":["secret"]}}', '{"io":{"URL":"u","tokens":"secret"}}'])(
    "refuses the response %j without repeating it",
    (payload) =>
      Effect.gen(function* () {
        const result = yield* exchange(
          (connection) => Client.registerVM(connection, { containerId: "p", ctlSerial: "/c", ioSerial: "/i" }),
          wire("00020300 00000000 00000034", '{"containerId":"p","ctlSerial":"/c","ioSerial":"/i"}'),
          response(Command.RegisterVM, payload)
        )
        const error = yield* Effect.flip(Effect.fromResult(result))
        assert.deepStrictEqual(
          error,
          new Client.ProtocolViolation({ reason: "the response to RegisterVM is not {io: {URL, tokens}}" })
        )
      })
  )

  it.effect("fails with the proxy's reason", () =>
    Effect.gen(function* () {
      const result = yield* exchange(
        (connection) => Client.registerVM(connection, { containerId: "p", ctlSerial: "/c", ioSerial: "/i" }),
        wire("00020300 00000000 00000034", '{"containerId":"p","ctlSerial":"/c","ioSerial":"/i"}'),
        response(Command.RegisterVM, '{"msg":"p: container already registered"}', true)
      )
      const error = yield* Effect.flip(Effect.fromResult(result))
      assert.deepStrictEqual(
        error,
        new Client.CommandFailed({ command: "RegisterVM", message: "p: container already registered" })
      )
    })
  )
})

it.effect("attachVM gives the URL and new tokens", () =>
  Effect.gen(function* () {
    const io = yield* succeeds(
      (connection) => Client.attachVM(connection, { containerId: "p", numIOStreams: 1 }),
      wire("00020300 00000002 00000024", '{"containerId":"p","numIOStreams":1}'),
      response(Command.AttachVM, '{"io":{"URL":"unix:///run/proxy.sock","tokens":["t"]}}')
    )
    assert.deepStrictEqual(io, { url: "unix:///run/proxy.sock", tokens: ["t"] })
  })
)

it.effect("unregisterVM names the VM and gives nothing", () =>
  Effect.gen(function* () {
    const nothing = yield* succeeds(
      (connection) => Client.unregisterVM(connection, { containerId: "p" }),
      wire("00020300 00000001 00000013", '{"containerId":"p"}'),
      response(Command.UnregisterVM)
    )
    assert.isUndefined(nothing)
  })
)

describe("hyper", () => {
  it.effect("gives the agent's reply byte for byte", () =>
    Effect.gen(function* () {
      const reply = yield* succeeds(
        (connection) => Client.hyper(connection, { hyperName: "version" }),
        wire("00020300 00000003 00000017", '{"hyperName":"version"}'),
        wire("00020300 00000103 00000004 00001094")
      )
      assert.deepStrictEqual([...reply], [0, 0, 0x10, 0x94])
    })
  )

  it.effect.each([
    [
      "a JSON value",
      { data: { seq: 3, text: 'ü"', list: [null, true] } },
      '{"seq":3,"text":"ü\\"","list":[null,true]}'
    ],
    ["a JSON text that happens to be a string", { data: "seq" }, '"seq"'],
    ["raw text", { rawData: ' { "limit" : 9223372036854775807 } ' }, ' { "limit" : 9223372036854775807 } '],
    ["raw bytes", { rawData: Buffer.from('{"n":1.0e2}') }, '{"n":1.0e2}']
  ] as const)("sends %s", ([, data, text]) => {
    const payload = Buffer.from(`{"hyperName":"winsize","tokens":["t"],"data":${text}}`)
    const header = Buffer.alloc(12, Buffer.from("000203000000000300000000", "hex"))
    header.writeUInt32BE(payload.length, 8)
    return succeeds(
      (connection) => Client.hyper(connection, { hyperName: "winsize", tokens: ["t"], ...data }),
      Buffer.concat([header, payload]),
      response(Command.Hyper)
    )
  })
})

const helpers: ReadonlyArray<
  readonly [
    name: string,
    ask: (connection: Client.Connection) => Effect.Effect<void, Client.CommandError>,
    header: string,
    payload: string
  ]
> = [
  ["ping", Client.ping, "00020300 00000003 00000014", '{"hyperName":"ping"}'],
  ["destroyPod", Client.destroyPod, "00020300 00000003 0000001a", '{"hyperName":"destroypod"}'],
  [
    "startPod",
    (connection) => Client.startPod(connection, { data: { hostname: "h" } }),
    "00020300 00000003 00000030",
    '{"hyperName":"startpod","data":{"hostname":"h"}}'
  ],
  [
    "newContainer with a token",
    (connection) => Client.newContainer(connection, { token: "t", data: { id: "c", process: { args: ["ls"] } } }),
    "00020300 00000003 00000057",
    '{"hyperName":"newcontainer","tokens":["t"],"data":{"id":"c","process":{"args":["ls"]}}}'
  ],
  [
    "newContainer without a token, from raw JSON",
    (connection) => Client.newContainer(connection, { rawData: '{"id":"c","process":{}}' }),
    "00020300 00000003 0000003b",
    '{"hyperName":"newcontainer","data":{"id":"c","process":{}}}'
  ],
  [
    "execCmd",
    (connection) => Client.execCmd(connection, { token: "t", data: { container: "c", process: {} } }),
    "00020300 00000003 0000004c",
    '{"hyperName":"execcmd","tokens":["t"],"data":{"container":"c","process":{}}}'
  ],
  [
    "killContainer",
    (connection) => Client.killContainer(connection, { container: "c", signal: 9 }),
    "00020300 00000003 00000056",
    '{"hyperName":"killcontainer","data":{"container":"c","signal":9,"allProcesses":false}}'
  ],
  [
    "killContainer for all processes",
    (connection) => Client.killContainer(connection, { container: "c", signal: 9, allProcesses: true }),
    "00020300 00000003 00000055",
    '{"hyperName":"killcontainer","data":{"container":"c","signal":9,"allProcesses":true}}'
  ]
]

it.effect.each(helpers)("%s sends its Hyper command and gives nothing", ([, ask, header, payload]) =>
  Effect.gen(function* () {
    assert.isUndefined(yield* succeeds(ask, wire(header, payload), response(Command.Hyper, "ignored")))
  })
)

it.effect("log writes one entry and waits for nothing but the kernel", () =>
  Effect.gen(function* () {
    const proxy = yield* FakeProxy.make
    const connection = yield* Client.connect(proxy.path)
    const peer = yield* proxy.accept
    yield* Client.log(connection, { source: "runtime", level: "warn", containerId: "p", msg: "slow" })
    yield* connection.halfClose
    assert.deepStrictEqual(
      yield* peer.rest,
      wire("00020300 00000203 00000042", '{"source":"runtime","level":"warn","containerId":"p","msg":"slow"}')
    )
  })
)
