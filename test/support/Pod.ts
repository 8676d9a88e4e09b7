/** Pods to test with: a VM that is registered, processes that run, shims that are connected. */
import * as Effect from "effect/Effect"
import { Command } from "../../src/domain/Frame.ts"
import { type Boot, FakeHyperstart } from "./FakeHyperstart.ts"
import { TestProxy } from "./TestProxy.ts"

/** A registered VM with `count` tokens, the connection that registered it, and its agent. */
export const register = Effect.fnUntraced(function* (id: string, count = 0, options: Boot = {}) {
  const { boot } = yield* FakeHyperstart
  const { connect } = yield* TestProxy
  const agent = boot(id, options)
  const runtime = yield* connect
  const { io } = yield* runtime.ask(Command.RegisterVM, {
    containerId: id,
    ctlSerial: agent.sockets.ctl,
    ioSerial: agent.sockets.io,
    numIOStreams: count
  })
  return { id, agent, runtime, tokens: (io.tokens ?? []) as ReadonlyArray<string> }
})

/** A shim that has claimed `token`. */
export const shimFor = Effect.fnUntraced(function* (token: string | undefined) {
  const { connect } = yield* TestProxy
  const shim = yield* connect
  yield* shim.ask(Command.ConnectShim, { token })
  return shim
})

/** The Hyper payload that starts a container's init process. */
export const newContainer = (token: string | undefined, process: object = {}, id = "c1") => ({
  hyperName: "newcontainer",
  tokens: token === undefined ? [] : [token],
  data: { id, process }
})

/** The Hyper payload that starts another process in a container. */
export const execCmd = (token: string | undefined, process: object = {}, container = "c1") => ({
  hyperName: "execcmd",
  tokens: token === undefined ? [] : [token],
  data: { container, process }
})

/** A VM whose container's init process runs, with a connected shim; stdio is 3 and stderr 4. */
export const running = Effect.fnUntraced(function* (id: string, options: Boot = {}, process: object = {}) {
  const pod = yield* register(id, 2, options)
  const shim = yield* shimFor(pod.tokens[0])
  yield* pod.runtime.ask(Command.Hyper, newContainer(pod.tokens[0], process))
  return { ...pod, shim, token: pod.tokens[0]! }
})
