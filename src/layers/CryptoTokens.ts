/** `TokenSource` over the kernel's random numbers. */
import * as Layer from "effect/Layer"
import { TokenSource } from "../services/TokenSource.ts"

/** Bytes in a token. Source: PROTOCOL.md, "Sessions". */
const tokenSize = 32

/** Bytes drawn at once: asking for one token's costs as much as asking for all of these. */
const poolSize = 64 * tokenSize

export const layer = Layer.sync(TokenSource, () => {
  const pool = Buffer.allocUnsafeSlow(poolSize)
  let at = poolSize
  return {
    next: () => {
      if (at === poolSize) {
        // loaded here, not before the daemon listens: it takes longer than all of our own code
        process.getBuiltinModule("node:crypto").randomFillSync(pool)
        at = 0
      }
      const token = pool.subarray(at, (at += tokenSize))
      return `${token.toString("base64url")}=` // 32 bytes leave one padding character
    }
  }
})
