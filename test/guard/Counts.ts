/** Everything that is counted, all of it at once: nothing here is about time. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as DaemonCounts from "./DaemonCounts.ts"
import * as Harness from "./Harness.ts"
import * as Instructions from "./Instructions.ts"
import type { DaemonReport, InstructionsReport, MemoryReport, Size, SystemCallsReport } from "./Reports.ts"
import * as SystemCalls from "./SystemCalls.ts"

/** What cannot be counted here is absent. */
export class Counts extends Context.Service<
  Counts,
  {
    readonly memory: MemoryReport | undefined
    readonly daemon: DaemonReport | undefined
    readonly size: Size | undefined
    readonly instructions: InstructionsReport | undefined
    readonly systemCalls: SystemCallsReport | undefined
  }
>()("cc-proxy/test/guard/Counts") {
  /** What keeps a kind of count from being taken here, if anything does. */
  static readonly missing = {
    memory: Harness.pinnedNode ? undefined : "the pinned Node",
    daemon: Harness.pinnedNode ? undefined : "the pinned Node",
    size: Harness.pinnedNode ? undefined : "the pinned Node",
    instructions: Harness.pinnedNode ? Instructions.missing : "the pinned Node",
    systemCalls: SystemCalls.missing
  }

  static readonly make = Effect.gen(function* () {
    const { missing } = Counts
    const unless = <A, E, R>(reason: string | undefined, counted: Effect.Effect<A, E, R>) =>
      reason === undefined ? counted : Effect.undefined
    const built = yield* Harness.built
    const inMemory = Effect.map(
      Harness.run(process.execPath, [...Harness.steadyNode(512), built.program, "memory"]),
      (line) => JSON.parse(line) as MemoryReport
    )
    return yield* Effect.all(
      {
        memory: unless(missing.memory, inMemory),
        daemon: unless(missing.daemon, DaemonCounts.count),
        size: unless(missing.size, DaemonCounts.size),
        instructions: unless(missing.instructions, Instructions.count(built)),
        systemCalls: unless(missing.systemCalls, SystemCalls.count)
      },
      { concurrency: "unbounded" }
    )
  })

  static readonly layer = Layer.effect(Counts, Counts.make)
}
