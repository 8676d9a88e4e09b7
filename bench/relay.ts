// The least a proxy on Node does with bytes: `node relay.ts LISTEN CONNECT` copies them, both ways, between each client
// of one Unix socket and a connection of its own to another. No framing, no limits, no knowledge of what they mean.
import * as Net from "node:net"

const [listen, connect] = process.argv.slice(2)

/** Copies what comes, and reads no faster than it is taken. */
const copy = (from: Net.Socket, to: Net.Socket) => {
  from.on("data", (chunk) => {
    if (to.write(chunk)) return
    from.pause()
    to.once("drain", () => from.resume())
  })
  from.on("end", () => to.end())
  from.on("error", () => to.destroy())
}

Net.createServer({ allowHalfOpen: true }, (client) => {
  const server = Net.connect({ path: connect!, allowHalfOpen: true })
  copy(client, server)
  copy(server, client)
}).listen(listen)
