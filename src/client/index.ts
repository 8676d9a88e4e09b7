/**
 * Client of cc-proxy: both sides that speak to it, the runtime and the shim, over its Unix socket.
 *
 * ```ts
 * import * as Client from "cc-proxy/client"
 * ```
 */
export * from "./Connection.ts"
export * from "./Log.ts"
export * from "./Runtime.ts"
export * from "./Shim.ts"
/** Frames of the client protocol, for what goes through `Connection.sendRaw`. */
export * as Frame from "../domain/Frame.ts"
