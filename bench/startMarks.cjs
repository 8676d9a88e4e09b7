// Preloaded into a server that is started: tells when what happened until its first answer, as one line of JSON in the file
// that START_MARKS names. Times in nanoseconds of CLOCK_MONOTONIC; START_FORKED is that of the fork.
const fs = require("node:fs")
const Module = require("node:module")
const path = require("node:path")

const now = () => Number(process.hrtime.bigint())
const marks = {
  forked: Number(process.env.START_FORKED),
  process: now() - Math.round(process.uptime() * 1e9),
  preloaded: now()
}
let requiring = 0 // nanoseconds in modules of Node that the program loads

const compile = Module.prototype._compile
Module.prototype._compile = function (...args) {
  Module.prototype._compile = compile
  const { dirname } = path
  // asked for once the function is there, and before it is called
  path.dirname = (...args) => {
    path.dirname = dirname
    marks.compiled = now()
    return dirname(...args)
  }
  marks.read = now()
  return compile.apply(this, args)
}

const load = Module._load
Module._load = function (request, ...args) {
  const begun = now()
  const exported = load.call(this, request, ...args)
  if (marks.compiled !== undefined && marks.listen === undefined) requiring += now() - begun
  if (request === "node:net" && !watched) watch(exported)
  return exported
}

process.on("newListener", (event) => {
  if (event === "SIGTERM") marks.evaluated ??= now()
})

let watched = false
const watch = ({ Server }) => {
  watched = true
  const { listen } = Server.prototype
  Server.prototype.listen = function (...args) {
    marks.listen = now()
    this.once("connection", accepted)
    return listen.apply(this, args)
  }
}

// tells of the first write to the client, by whichever of Node's ways, just before it is done: then the process may be stopped
const accepted = ({ _handle: handle }) => {
  marks.accepted = now()
  const tell = (owner, way, isAnswer) => {
    const write = owner[way]
    owner[way] = function (...args) {
      if (marks.answered === undefined && isAnswer(args)) {
        marks.answered = now()
        fs.appendFileSync(process.env.START_MARKS, `${JSON.stringify({ ...marks, requiring })}\n`)
      }
      return write.apply(this, args)
    }
  }
  for (const way of ["writeBuffer", "writev"]) tell(handle, way, () => true)
  for (const way of ["writeSync", "writevSync"]) tell(fs, way, ([fd]) => fd === handle.fd)
}
