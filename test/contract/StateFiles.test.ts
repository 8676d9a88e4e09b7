/** The rules of `StateFiles`, for those in memory that services are tested with and for those in a directory. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as StateDirectory from "../../src/layers/StateDirectory.ts"
import { StateFiles } from "../../src/services/StateFiles.ts"
import { MemoryState } from "../support/MemoryState.ts"
import { directory } from "../support/SocketPair.ts"
import { type Opened, stateFilesContract, texts } from "./stateFilesContract.ts"

/** What a daemon over these files has found, and the files. */
const daemon = (layer: Layer.Layer<StateFiles>) =>
  Effect.gen(function* () {
    const files = Context.get(yield* Layer.build(layer), StateFiles)
    return { files, found: texts(yield* Effect.provide(files.open, Logger.layer([]))) }
  })

/** The files of one daemon, in a place that another may look at. */
const opened = (layer: Layer.Layer<StateFiles>, names: () => ReadonlyArray<string>) =>
  Effect.map(daemon(layer), ({ files }): Opened => ({
    files,
    names,
    next: Effect.map(daemon(layer), ({ found }) => found)
  }))

const inMemory = Effect.suspend(() => {
  const files = new Map<string, Uint8Array>()
  return opened(Layer.fresh(MemoryState.layerOver(files)), () => [...files.keys()])
})

const inDirectory = Effect.flatMap(directory, (parent) => {
  const path = Path.join(parent, "state")
  return opened(Layer.fresh(StateDirectory.layer({ directory: path, owned: true })), () => Fs.readdirSync(path))
})

stateFilesContract("state in memory", inMemory)
stateFilesContract("state in a directory", inDirectory)
