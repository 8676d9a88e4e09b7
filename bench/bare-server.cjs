// The least that answers: a node:net server on descriptor 3, or on the path of its argument, which replies with one empty
// frame to whatever comes. What any daemon on Node costs before it does something, in time to start and in memory.
const { createServer } = require("node:net")

const response = Buffer.from([0, 2, 3, 0, 0, 0, 1, 1, 0, 0, 0, 0])
createServer((client) => {
  client.on("error", () => client.destroy())
  client.on("data", () => client.write(response))
}).listen(process.argv[2] ?? { fd: 3 })
