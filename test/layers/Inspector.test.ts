import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Logger from "effect/Logger"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { spawn } from "node:child_process"
import * as NodeInspector from "node:inspector"
import * as Net from "node:net"
import * as Inspector from "../../src/layers/Inspector.ts"

/** What is logged, by level. */
const remembering = () => {
  const records: Array<readonly [level: string, message: unknown]> = []
  return {
    records,
    layer: Logger.layer([Logger.make(({ logLevel, message }) => void records.push([logLevel, message]))])
  }
}

const get = (url: string) => Effect.promise(() => fetch(url).then((response) => response.json() as Promise<unknown>))

describe("Inspector", () => {
  it.live("answers on its URL while its scope lasts, and not any longer", () =>
    Effect.gen(function* () {
      const { layer, records } = remembering()
      const scope = yield* Scope.make()
      yield* Layer.buildWithScope(Inspector.layer({ host: "127.0.0.1", port: 0 }), scope).pipe(Effect.provide(layer))
      const url = NodeInspector.url()!
      assert.match(url, /^ws:\/\/127\.0\.0\.1:\d+\//)
      assert.deepStrictEqual(records, [["Info", ["inspector opened", { url }]]])
      const [target] = (yield* get(`http://${new URL(url).host}/json`)) as ReadonlyArray<Record<string, string>>
      assert.strictEqual(target!["webSocketDebuggerUrl"], url)

      yield* Scope.close(scope, Exit.void)
      assert.isUndefined(NodeInspector.url())
      const refused = yield* Effect.callback<string | undefined>((resume) => {
        const socket = Net.connect(Number(new URL(url).port), "127.0.0.1")
        socket.on("connect", () => resume(Effect.succeed("connected")))
        socket.on("error", (error: NodeJS.ErrnoException) => resume(Effect.succeed(error.code)))
        return Effect.sync(() => socket.destroy())
      })
      assert.strictEqual(refused, "ECONNREFUSED")
    })
  )

  it.live("can be opened again after it was closed", () =>
    Effect.gen(function* () {
      const { layer } = remembering()
      for (let i = 0; i < 2; i++)
        yield* Effect.scoped(Inspector.open({ host: "localhost", port: 0 })).pipe(Effect.provide(layer))
    })
  )

  const child = `
    import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
    import * as Effect from "effect/Effect"
    import * as Logger from "effect/Logger"
    import * as Inspector from ${JSON.stringify(new URL("../../src/layers/Inspector.ts", import.meta.url).href)}
    Inspector.open({ host: "127.0.0.1", port: 0 }).pipe(
      Effect.tap((url) => Effect.sync(() => process.stdout.write(url))),
      Effect.andThen(Effect.never),
      Effect.scoped,
      Effect.provide(Logger.layer([])),
      NodeRuntime.runMain({ teardown: (_, onExit) => onExit(0) })
    )`

  it.live(
    "does not keep the daemon from ending while a debugger is attached",
    () =>
      Effect.callback<void>((resume) => {
        const daemon = spawn(process.execPath, ["--input-type=module", "-e", child], {
          stdio: ["ignore", "pipe", "ignore"]
        })
        daemon.stdout.once("data", (url) => {
          const debug = new WebSocket(String(url))
          debug.addEventListener("open", () => debug.send('{"id":1,"method":"Runtime.enable"}'))
          debug.addEventListener("message", () => daemon.kill("SIGTERM"), { once: true })
        })
        daemon.once("exit", (status) => resume(Effect.sync(() => assert.strictEqual(status, 0))))
        return Effect.sync(() => daemon.kill("SIGKILL"))
      }),
    20_000
  )

  it.live("says which port is in use, and leaves nothing open", () =>
    Effect.gen(function* () {
      const server = yield* Effect.acquireRelease(
        Effect.callback<Net.Server>((resume) => {
          const server = Net.createServer()
          server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
        }),
        (server) => Effect.sync(() => server.close())
      )
      const { port } = server.address() as Net.AddressInfo
      const error = yield* Effect.flip(Effect.scoped(Inspector.open({ host: "127.0.0.1", port })))
      assert.strictEqual(error._tag, "InspectorError")
      assert.strictEqual(
        error.message,
        `cannot open the inspector on 127.0.0.1, port ${port}: listen EADDRINUSE: address already in use 127.0.0.1:${port}`
      )
      assert.isUndefined(NodeInspector.url())
      yield* Effect.scoped(Inspector.open({ host: "127.0.0.1", port: 0 }))
    })
  )

  it.live("refuses a port that there cannot be", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(Effect.scoped(Inspector.open({ host: "127.0.0.1", port: 65_536 })))
      assert.include(error.message, "65536")
    })
  )

  it.live("warns of an address that others reach, and of no other", () =>
    Effect.gen(function* () {
      for (const [host, levels] of [
        ["0.0.0.0", ["Info", "Warn"]],
        ["127.0.0.2", ["Info"]],
        ["localhost", ["Info"]]
      ] as const) {
        const { layer, records } = remembering()
        yield* Effect.scoped(Inspector.open({ host, port: 0 })).pipe(Effect.provide(layer))
        assert.deepStrictEqual(
          records.map(([level]) => level),
          [...levels],
          host
        )
      }
    })
  )
})
