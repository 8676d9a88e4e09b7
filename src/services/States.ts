/** The records of VMs: what a new daemon needs of them after any death of this one. */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Bytes from "../domain/Bytes.ts"
import * as DaemonState from "../domain/DaemonState.ts"
import { Deadlines } from "./Deadlines.ts"
import { Listener } from "./Listener.ts"
import { StateFiles } from "./StateFiles.ts"

/** What has a record. */
export interface Recorded {
  /** The name of its file. */
  readonly file: string
  readonly record: () => Omit<DaemonState.VmRecord, "version" | "socket">
}

/** A record that an earlier daemon left. */
export interface Found {
  readonly file: string
  readonly record: DaemonState.VmRecord
}

export interface Opened {
  readonly records: ReadonlyArray<Found>
  /** Of a daemon that stopped, and left its connections in the service manager's keep. */
  readonly snapshot: DaemonState.Decoded | undefined
}

/** The file of a daemon that stopped. */
const stopFile = "stop.carried"

/** Millis until a change is written that nobody's answer depends on: several come together, as a rule. */
const laterMillis = 20

export class States extends Context.Service<
  States,
  {
    /** A name that no file has had. */
    readonly name: () => string
    /** A VM's record, as it is written. */
    readonly recordOf: (vm: Recorded) => DaemonState.VmRecord
    /** Writes a record before it returns. What cannot be written is logged, and costs no more than the next daemon's knowledge. */
    readonly save: (vm: Recorded) => void
    /** Writes a record soon. */
    readonly later: (vm: Recorded) => void
    /** Removes a record. */
    readonly forget: (vm: Recorded) => void
    /** Writes what a daemon was when it stopped, for the next. False where it cannot be written. */
    readonly stop: (snapshot: ReadonlyArray<Uint8Array>) => boolean
    /** Takes that back. */
    readonly discard: () => void
    /** Reads what an earlier daemon of this socket left. What cannot be read is set aside, and stops nothing. */
    readonly open: Effect.Effect<Opened>
  }
>()("cc-proxy/services/States") {
  static readonly make = Effect.gen(function* () {
    const files = yield* StateFiles
    const deadlines = yield* Deadlines
    const { url: socket } = yield* Listener
    const run = yield* FiberSet.makeRuntime()
    const started = (yield* Clock.currentTimeMillis).toString(36)
    const waiting = new Set<Recorded>()
    let count = 0
    let failing = false

    const recordOf = (vm: Recorded): DaemonState.VmRecord => ({
      version: DaemonState.version,
      socket,
      ...vm.record()
    })

    const write = (vm: Recorded) => {
      waiting.delete(vm)
      const error = files.write(vm.file, DaemonState.encodeVm(recordOf(vm)))
      if (error !== undefined && !failing)
        run(
          Effect.logWarning("the state cannot be written: a restart would not find its VMs", { error: error.message })
        )
      failing = error !== undefined
    }

    const later = (vm: Recorded) => {
      waiting.add(vm)
      if (waiting.size === 1) deadlines.set(laterMillis, () => waiting.forEach(write))
    }

    const setAside = Effect.fnUntraced(function* (name: string, reason: string) {
      const aside = yield* Effect.result(files.setAside(name))
      const fields = Result.isSuccess(aside) ? { reason, now: aside.success } : { reason, error: aside.failure.message }
      yield* Effect.logError("state cannot be read: it is set aside", { file: name, ...fields })
    })

    const open = Effect.gen(function* () {
      const records: Array<Found> = []
      let snapshot: DaemonState.Decoded | undefined
      for (const { bytes, name } of yield* files.open) {
        if (name === stopFile) {
          const decoded = DaemonState.decodeSnapshot(bytes)
          if (Result.isFailure(decoded)) yield* setAside(name, decoded.failure.reason)
          else if (decoded.success.snapshot.socket === socket) {
            snapshot = decoded.success
            files.remove(name) // it is true once
          }
        } else if (name.endsWith(".state")) {
          const decoded = DaemonState.decodeVm(bytes)
          if (Result.isFailure(decoded)) yield* setAside(name, decoded.failure.reason)
          else if (decoded.success.socket === socket) records.push({ file: name, record: decoded.success })
        }
      }
      return { records, snapshot }
    })

    return States.of({
      recordOf,
      name: () => `vm-${started}-${++count}.state`,
      save: write,
      later,
      forget: (vm) => {
        waiting.delete(vm)
        const error = files.remove(vm.file)
        if (error !== undefined) run(Effect.logWarning("a VM's state cannot be removed", { error: error.message }))
      },
      stop: (snapshot) => files.write(stopFile, Bytes.concat(snapshot)) === undefined,
      discard: () => void files.remove(stopFile),
      open
    })
  })

  static readonly layer = Layer.effect(States, States.make)
}
