/** `TokenSource` over the kernel's random numbers. */
import * as Layer from "effect/Layer"
import { randomBytes } from "node:crypto"
import { TokenSource } from "../services/TokenSource.ts"

/** Bytes in a token. Source: PROTOCOL.md, "Sessions". */
const tokenSize = 32

export const layer = Layer.succeed(TokenSource, {
  next: () => `${randomBytes(tokenSize).toString("base64url")}=` // 32 bytes leave one padding character
})
