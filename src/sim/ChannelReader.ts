/**
 * How an agent reads a channel: bytes in, whole messages out, until one that ends its life. Pure.
 *
 * On both channels a header's last four bytes are the message's length, header included.
 */
import * as Assembly from "../domain/Assembly.ts"

/** Most bytes that QEMU reads from a socket and hands to the guest at a time. Source: PROTOCOL.md, "Agents". */
const readSize = 4096

export interface Rules {
  readonly headerSize: number
  /** Largest message in bytes, header included. */
  readonly limit: number
  /** Whether a header that does not come in one read is the agent's end. */
  readonly wholeHeaders: boolean
}

export type Death = "torn header" | "bad length"

export interface ChannelReader {
  /** Feeds the next chunk; returns the messages it completes, and what the agent died of after these. */
  readonly push: (chunk: Uint8Array) => { readonly messages: ReadonlyArray<Uint8Array>; readonly death?: Death }
}

/** A reader with nothing half-read. It outlives connections: a message torn by one is completed by the next. */
export const make = ({ headerSize, limit, wholeHeaders }: Rules): ChannelReader => {
  const message = Assembly.make()
  return {
    push(chunk) {
      const messages: Array<Uint8Array> = []
      for (let at = 0, end = 0; at < chunk.length;) {
        if (at === end) end = Math.min(at + readSize, chunk.length)
        if (!message.active()) {
          if (wholeHeaders && end - at < headerSize) return { messages, death: "torn header" }
          message.begin(headerSize)
        }
        at += message.take(chunk, at, end)
        if (!message.complete()) continue
        const bytes = message.bytes()
        if (bytes.length === headerSize) {
          const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(headerSize - 4)
          if (length < headerSize || length > limit) return { messages, death: "bad length" }
          if (length > headerSize) {
            message.extend(length)
            continue
          }
        }
        messages.push(message.finish())
      }
      return { messages }
    }
  }
}
