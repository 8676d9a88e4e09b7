import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as Client from "../../../src/client/index.ts"

/** A whole shim: stands for a process until it has exited, through any number of restarts of the proxy. */
export const runShim = Effect.fn("runShim")(function* (
  socket: string,
  token: string,
  input: Stream.Stream<Uint8Array>,
  write: (piece: Client.Output) => Effect.Effect<void>
) {
  const pull = yield* Stream.toPull(input) // one for all connections: each goes on where the last one stopped
  return yield* Client.withShim(socket, token, (shim) =>
    Effect.gen(function* () {
      yield* Stream.fromPull(Effect.succeed(pull)).pipe(
        Stream.runForEach(shim.stdin),
        Effect.andThen(shim.endStdin),
        Effect.ignore, // a lost connection is told by the exit status below
        Effect.forkScoped
      )
      yield* Stream.runForEach(shim.output, write)
      const status = yield* shim.exitStatus
      yield* Effect.ignore(shim.disconnect) // nothing to come back for
      return status
    })
  )
}, Effect.scoped)
