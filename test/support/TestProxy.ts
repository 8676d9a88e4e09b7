/** The whole proxy in memory: real services over agents and clients that live in the test. Time is the test's. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import * as Bytes from "effect/Bytes"
import * as Frame from "../../src/domain/Frame.ts"
import * as Client from "../../src/services/Client.ts"
import { Condition } from "../../src/services/Condition.ts"
import { Deadlines } from "../../src/services/Deadlines.ts"
import { Hyperstart } from "../../src/services/Hyperstart.ts"
import { Listener } from "../../src/services/Listener.ts"
import { Sessions } from "../../src/services/Sessions.ts"
import { defaults, Settings } from "../../src/services/Settings.ts"
import { Spool } from "../../src/services/Spool.ts"
import { States } from "../../src/services/States.ts"
import { TokenSource } from "../../src/services/TokenSource.ts"
import { VmRegistry } from "../../src/services/VmRegistry.ts"
import { FakeHyperstart } from "./FakeHyperstart.ts"
import * as Host from "./Host.ts"
import { MemorySpool } from "./MemorySpool.ts"
import * as MemoryWire from "./MemoryWire.ts"

const utf8 = new TextDecoder()
const text = new TextEncoder()

/** A frame that the proxy sent; stdout and stderr come in pieces as they arrived. */
export interface Received {
  readonly type: "response" | "stdout" | "stderr" | "exit"
  readonly opcode: number
  readonly inError: boolean
  readonly payload: Uint8Array
  readonly text: string
}

export interface TestClient {
  /** Everything received so far, oldest first. */
  readonly received: Array<Received>
  /** Bytes as they are. */
  readonly raw: (bytes: Uint8Array) => void
  readonly send: (opcode: Frame.Command, payload: unknown) => void
  /** Sends a command and waits for the response that is its own by order. */
  readonly call: (opcode: Frame.Command, payload: unknown) => Effect.Effect<Received>
  /** `call`, of which the response must be no error; its JSON, if it has any. */
  readonly ask: (opcode: Frame.Command, payload: unknown) => Effect.Effect<any>
  /** `call`, of which the response must be an error; its message. */
  readonly refused: (opcode: Frame.Command, payload: unknown) => Effect.Effect<string>
  readonly stdin: (data: Uint8Array | string) => void
  readonly until: (test: () => boolean) => Effect.Effect<void>
  /** All of stdout, or of stderr, so far, as text. */
  readonly output: (stream?: "stdout" | "stderr") => string
  readonly status: () => number | undefined
  readonly responses: () => ReadonlyArray<Received>
  /** Whether the proxy has ended the connection. */
  readonly ended: () => boolean
  readonly leave: (cause?: unknown) => void
  /** The client does not read, until `readAgain`. */
  readonly stopReading: () => void
  readonly readAgain: () => void
}

/** A listening socket at which nobody arrives. */
export const closedDoor = Listener.of({
  url: "unix:///run/test.sock",
  listen: Effect.never,
  adopt: (_name, carried) =>
    Effect.acquireRelease(
      Effect.sync(() => MemoryWire.adopt(carried)),
      (wire) => Effect.sync(() => wire.close())
    ),
  finish: () => {}
})

/** A client, `name` for its peer, and the proxy's end of its connection. */
export const makeClient = Effect.fnUntraced(function* (name: string) {
  const { a, b } = MemoryWire.pair(name, "proxy")
  const received: Array<Received> = []
  const changed = new Condition()
  let ended = false
  let asked = 0
  const parser = Frame.makeParser(Frame.fromProxy)
  yield* Effect.forkScoped(
    Effect.gen(function* () {
      for (;;) {
        const chunk = yield* b.pull
        Result.getOrThrow(
          parser.push(chunk, ({ inError, opcode, payload, type }) => {
            received.push({
              type:
                type === Frame.FrameType.response
                  ? "response"
                  : type === Frame.FrameType.notification
                    ? "exit"
                    : opcode === Frame.StreamKind.stdout
                      ? "stdout"
                      : "stderr",
              opcode,
              inError,
              payload: payload.slice(),
              text: utf8.decode(payload)
            })
          })
        )
        changed.notify()
      }
    }).pipe(
      Effect.catch(() =>
        Effect.sync(() => {
          ended = true
          changed.notify()
        })
      )
    ),
    { startImmediately: true }
  )
  const raw = (bytes: Uint8Array) => b.offer([bytes])
  const client: TestClient = {
    received,
    raw,
    send(opcode, payload) {
      asked++
      raw(
        Frame.encode({
          type: Frame.FrameType.command,
          opcode,
          inError: false,
          payload: typeof payload === "string" ? text.encode(payload) : text.encode(JSON.stringify(payload))
        })
      )
    },
    call: (opcode, payload) =>
      Effect.suspend(() => {
        client.send(opcode, payload)
        const at = asked - 1
        return Effect.map(
          client.until(() => client.responses().length > at),
          () => client.responses()[at]!
        )
      }),
    ask: (opcode, payload) =>
      Effect.map(client.call(opcode, payload), (response) => {
        if (response.inError) throw new Error(`unexpected error: ${response.text}`)
        return response.text === "" ? undefined : JSON.parse(response.text)
      }),
    refused: (opcode, payload) =>
      Effect.map(client.call(opcode, payload), (response) => {
        if (!response.inError) throw new Error(`unexpected success: ${response.text}`)
        return JSON.parse(response.text).msg
      }),
    stdin: (data) =>
      raw(
        Frame.encode({
          type: Frame.FrameType.stream,
          opcode: Frame.StreamKind.stdin,
          inError: false,
          payload: typeof data === "string" ? text.encode(data) : data
        })
      ),
    // the test goes on in a turn of its own, not inside the call that made its condition hold
    until: (test) => Effect.andThen(changed.until(test), Effect.yieldNow),
    output: (stream = "stdout") =>
      utf8.decode(Bytes.concat(received.filter(({ type }) => type === stream).map(({ payload }) => payload))),
    status: () => received.find(({ type }) => type === "exit")?.payload[0],
    responses: () => received.filter(({ type }) => type === "response"),
    ended: () => ended,
    leave: (cause) => b.close(cause),
    stopReading: () => a.stall(),
    readAgain: () => a.resume()
  }
  return { client, wire: a }
})

export class TestProxy extends Context.Service<
  TestProxy,
  { readonly connect: Effect.Effect<TestClient, never, Scope.Scope> }
>()("test/TestProxy") {
  static readonly make = Effect.gen(function* () {
    const { serve } = yield* Client.make
    let count = 0
    const connect = Effect.gen(function* () {
      const { client, wire } = yield* makeClient(`client ${++count}`)
      yield* Effect.forkScoped(
        Effect.acquireRelease(Effect.succeed(wire), () => Effect.sync(() => wire.close())).pipe(
          Effect.flatMap((owned) => serve(owned)),
          Effect.scoped
        ),
        { startImmediately: true }
      )
      return client
    })
    return TestProxy.of({ connect })
  })

  /** `overrides` replace default settings. */
  static readonly layer = (overrides: Partial<Settings> = {}) =>
    Layer.effect(TestProxy, TestProxy.make).pipe(
      Layer.provideMerge(VmRegistry.layer),
      Layer.provideMerge(Hyperstart.layer),
      Layer.provideMerge(Sessions.layer),
      Layer.provideMerge(States.layer),
      Layer.provideMerge(Spool.layer),
      Layer.provideMerge(Deadlines.layer),
      Layer.provideMerge(FakeHyperstart.layer),
      Layer.provideMerge(MemorySpool.layer),
      Layer.provide(
        Layer.sync(TokenSource, () => {
          let count = 0
          return { next: () => `token-${String(++count).padStart(36, "0")}==` }
        })
      ),
      Layer.provideMerge(Host.layer),
      Layer.provideMerge(Layer.succeed(Listener, closedDoor)),
      Layer.provideMerge(Layer.succeed(Settings, { ...defaults, ...overrides }))
    )
}
