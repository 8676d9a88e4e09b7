/** The rules of `SpoolFiles`, for those in memory that services are tested with and for those in a directory. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as SpoolDirectory from "../../src/layers/SpoolDirectory.ts"
import { SpoolFiles } from "../../src/services/Spool.ts"
import { MemorySpool } from "../support/MemorySpool.ts"
import { directory } from "../support/SocketPair.ts"
import { type Opened, spoolFilesContract } from "./spoolFilesContract.ts"

const inMemory = Effect.gen(function* () {
  const { files } = yield* MemorySpool
  return { files: yield* SpoolFiles, names: () => [...files.keys()] } satisfies Opened
}).pipe(Effect.provide(MemorySpool.layer))

const inDirectory = Effect.gen(function* () {
  const parent = yield* directory
  const socketPath = Path.join(parent, "proxy.sock")
  const services = yield* Layer.build(SpoolDirectory.layer({ parents: [parent], socketPath }))
  return yield* Effect.gen(function* () {
    const files = yield* SpoolFiles
    yield* Effect.provide(files.open(new Set()), Logger.layer([]))
    const own = Path.join(parent, SpoolDirectory.nameOf(socketPath))
    return { files, names: () => Fs.readdirSync(own).filter((name) => name !== "pid") } satisfies Opened
  }).pipe(Effect.provideContext(services))
})

spoolFilesContract("files in memory", inMemory)
spoolFilesContract("files in a directory", inDirectory)
