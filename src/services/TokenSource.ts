/** Port: where tokens come from. Implemented by `layers/CryptoTokens.ts`. */
import * as Context from "effect/Context"

export class TokenSource extends Context.Service<
  TokenSource,
  {
    /** 32 bytes that nobody can guess, in URL-safe base64 with padding: 44 characters. */
    readonly next: () => string
  }
>()("cc-proxy/services/TokenSource") {}
