/** What the build puts into the daemon's modules; to be imported before them. */
export const built = { CC_PROXY_SOCKET: "/var/run/proxy.sock" }
Object.assign(globalThis, built)
