/**
 * Loaded before the daemon, with `-r`. Tells which modules it has loaded as it begins to listen; and at each SIGWINCH the bytes of
 * heap in use: as they are, after collections of the young generation, and after full ones. Each is a line of JSON on stderr.
 */
const { subscribe } = require("node:diagnostics_channel")
const { writeSync } = require("node:fs")

const tell = (report) => writeSync(2, `${JSON.stringify(report)}\n`)
const heap = () => process.memoryUsage().heapUsed

/** Collections, and what only shows a turn after one. */
const collect = async (type) => {
  for (let pass = 0; pass < 3; pass++) {
    globalThis.gc({ type })
    await new Promise(setImmediate)
  }
}

const look = async () => {
  const used = heap()
  await collect("minor")
  const young = heap()
  await collect("major")
  tell({ used, young, full: heap() })
}

subscribe("tracing:net.server.listen:asyncStart", () => {
  tell({ node: process.moduleLoadList, files: Object.keys(require.cache) })
  process.on("SIGWINCH", () => void look())
})
