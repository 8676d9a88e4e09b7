import * as Effect from "effect/Effect"
import * as Client from "../../../src/client/index.ts"

const { Command, FrameType } = Client.Frame

/** Asks with a frame that arrives in two pieces, and gives the proxy's answer. */
export const inTwoPieces = Effect.fn("inTwoPieces")(function* (socket: string) {
  const connection = yield* Client.connect(socket)
  const payload = new TextEncoder().encode('{"containerId":"pod1"}')
  const frame = Client.Frame.encode({ type: FrameType.command, opcode: Command.AttachVM, inError: false, payload })

  const response = yield* connection.expect(Command.AttachVM)
  yield* connection.sendRaw(frame.subarray(0, 5))
  yield* connection.sendRaw(frame.subarray(5))
  return new TextDecoder().decode(yield* response)
}, Effect.scoped)

/** Sends what is no frame, and gives the proxy's reaction. */
export const rubbish = Effect.fn("rubbish")(function* (socket: string) {
  const connection = yield* Client.connect(socket)
  yield* connection.sendRaw(new TextEncoder().encode("GET / HTTP/1.1\r\n\r\n"))
  return (yield* connection.closed)._tag
}, Effect.scoped)
