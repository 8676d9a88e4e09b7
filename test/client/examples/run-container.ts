import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as Client from "../../../src/client/index.ts"

/** Registers a VM that has been started, runs a container in it, and gives what the container wrote and its exit status. */
export const runContainer = Effect.fn("runContainer")(function* (socket: string) {
  const runtime = yield* Client.connect(socket)
  const { tokens, url } = yield* Client.registerVM(runtime, {
    containerId: "pod1",
    ctlSerial: "/run/vm/pod1/ctl.sock",
    ioSerial: "/run/vm/pod1/io.sock",
    numIOStreams: 1
  })
  const token = tokens[0]!
  yield* Client.startPod(runtime, { data: { hostname: "pod1", shareDir: "rootfs" } })

  const shim = yield* Client.connectShim(yield* Client.connect(url), token)
  yield* Client.newContainer(runtime, {
    token,
    data: { id: "c1", rootfs: "rootfs", image: "c1", process: { args: ["date"], envs: [], workdir: "/" } }
  })
  const stdout = shim.output.pipe(
    Stream.filter(({ stream }) => stream === "stdout"),
    Stream.map(({ data }) => data),
    Stream.decodeText,
    Stream.mkString
  )
  const [text, status] = yield* Effect.all([stdout, shim.exitStatus], { concurrency: "unbounded" })
  yield* shim.disconnect

  yield* Client.destroyPod(runtime)
  yield* Client.unregisterVM(runtime, { containerId: "pod1" })
  return { text, status }
}, Effect.scoped)
