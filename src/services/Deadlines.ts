/**
 * Deadlines that are set with every command and expire hardly ever. Setting one costs no fiber and no timer of its own: one
 * fiber sleeps for all that are equally long, which come due in the order in which they were set.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as Layer from "effect/Layer"
import * as Condition from "./Condition.ts"

/** Milliseconds of a clock that nobody sets: since some moment, of which only differences tell anything. */
export const elapsedMillis = (clock: Clock.Clock): number => Number(clock.monotonicTimeNanosUnsafe() / 1_000_000n)

/** A deadline that has been set, in the line of those that are equally long. */
export class Deadline {
  /** Of `elapsedMillis`. */
  readonly due: number
  readonly expire: () => void
  #line: Line | undefined
  #before: Deadline | undefined
  #behind: Deadline | undefined

  constructor(line: Line, due: number, expire: () => void) {
    this.due = due
    this.expire = expire
    this.#line = line
    this.#before = line.last
    if (line.last === undefined) line.first = this
    else line.last.#behind = this
    line.last = this
  }

  /** Whatever it was set for has come. Does nothing once it has expired. */
  cancel(): void {
    const line = this.#line
    if (line === undefined) return
    if (this.#before === undefined) line.first = this.#behind
    else this.#before.#behind = this.#behind
    if (this.#behind === undefined) line.last = this.#before
    else this.#behind.#before = this.#before
    this.#line = this.#before = this.#behind = undefined
  }
}

/** A list of its own: what is added to a `Set` and deleted again leaves garbage that only a full collection frees. */
interface Line {
  first: Deadline | undefined
  last: Deadline | undefined
}

export class Deadlines extends Context.Service<
  Deadlines,
  {
    /** Calls `expire` in `millis` milliseconds, unless it is cancelled before. */
    readonly set: (millis: number, expire: () => void) => Deadline
    /** `Condition.until`, for `millis` milliseconds at most. Whether the test holds. */
    readonly within: (
      millis: number,
      test: () => boolean,
      ...conditions: ReadonlyArray<Condition.Condition>
    ) => Effect.Effect<boolean>
  }
>()("cc-proxy/services/Deadlines") {
  static readonly make = Effect.gen(function* () {
    const clock = yield* Clock.Clock
    const run = yield* FiberSet.makeRuntime()
    const lines = new Map<number, Line>() // by how long they are

    const serve = Effect.fnUntraced(function* (millis: number, line: Line) {
      for (;;) {
        const next = line.first
        if (next === undefined) break
        const wait = next.due - elapsedMillis(clock)
        if (wait > 0) {
          yield* Effect.sleep(wait)
        } else {
          next.cancel()
          next.expire()
        }
      }
      lines.delete(millis)
    })

    const set = (millis: number, expire: () => void) => {
      const known = lines.get(millis)
      const line: Line = known ?? { first: undefined, last: undefined }
      const deadline = new Deadline(line, elapsedMillis(clock) + millis, expire)
      if (known === undefined) {
        lines.set(millis, line)
        run(serve(millis, line))
      }
      return deadline
    }

    const within = (millis: number, test: () => boolean, ...conditions: ReadonlyArray<Condition.Condition>) =>
      Effect.callback<boolean>((resume) => {
        if (test()) return resume(Effect.succeed(true))
        const forget = Condition.once(test, conditions, () => {
          deadline.cancel()
          resume(Effect.succeed(true))
        })
        const deadline = set(millis, () => {
          forget()
          resume(Effect.succeed(false))
        })
        return Effect.sync(() => {
          forget()
          deadline.cancel()
        })
      })

    return Deadlines.of({ set, within })
  })

  static readonly layer = Layer.effect(Deadlines, Deadlines.make)
}
