/**
 * Turns and time in the test's hand: fibers run only while the test says so, in the order in which they were scheduled, and
 * sleepers wake when the test lets time pass. A run of the model is so one synchronous call, which repeats exactly, and of which thousands
 * take seconds.
 */
import type * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type * as Scheduler from "effect/Scheduler"

interface Task {
  readonly priority: number
  readonly run: () => void
}

/** Fibers give way after as many steps, as under Effect's own scheduler. */
const stepsBeforeYield = 2048

export class StepScheduler implements Scheduler.Scheduler {
  readonly executionMode = "async"
  #tasks: Array<Task> = []

  shouldYield(fiber: Fiber.Fiber<unknown, unknown> & { readonly currentOpCount?: number }): boolean {
    return (fiber.currentOpCount ?? 0) >= stepsBeforeYield
  }

  makeDispatcher(): Scheduler.SchedulerDispatcher {
    return {
      scheduleTask: (run, priority) => void this.#tasks.push({ priority, run }),
      flush: () => this.settle()
    }
  }

  /** Runs fibers until all of them wait for something. */
  settle(): void {
    while (this.#tasks.length > 0) {
      const round = this.#tasks.toSorted((a, b) => a.priority - b.priority)
      this.#tasks = []
      for (const { run } of round) run()
    }
  }
}

interface Sleeper {
  readonly due: number
  readonly wake: () => void
}

export class StepClock implements Clock.Clock {
  #now = 0
  readonly #scheduler: StepScheduler
  readonly #sleepers: Array<Sleeper> = [] // by the time they are due at

  constructor(scheduler: StepScheduler) {
    this.#scheduler = scheduler
  }

  currentTimeMillisUnsafe(): number {
    return this.#now
  }
  currentTimeNanosUnsafe(): bigint {
    return BigInt(this.#now) * 1_000_000n
  }
  monotonicTimeNanosUnsafe(): bigint {
    return this.currentTimeNanosUnsafe()
  }
  readonly currentTimeMillis = Effect.sync(() => this.currentTimeMillisUnsafe())
  readonly currentTimeNanos = Effect.sync(() => this.currentTimeNanosUnsafe())
  readonly monotonicTimeNanos = Effect.sync(() => this.monotonicTimeNanosUnsafe())

  sleep(duration: Duration.Duration): Effect.Effect<void> {
    return Effect.callback<void>((resume) => {
      const sleeper: Sleeper = {
        due: this.#now + Math.ceil(Duration.toMillis(duration)),
        wake: () => resume(Effect.void)
      }
      const at = this.#sleepers.findIndex(({ due }) => due > sleeper.due)
      this.#sleepers.splice(at < 0 ? this.#sleepers.length : at, 0, sleeper)
      return Effect.sync(() => {
        const at = this.#sleepers.indexOf(sleeper)
        if (at >= 0) this.#sleepers.splice(at, 1)
      })
    })
  }

  /** Lets time pass until `millis`; who wakes meanwhile runs until it waits again. */
  advanceTo(millis: number): void {
    for (;;) {
      const next = this.#sleepers[0]
      if (next === undefined || next.due > millis) break
      this.#sleepers.shift()
      this.#now = next.due
      next.wake()
      this.#scheduler.settle()
    }
    this.#now = millis
  }

  /** How many fibers sleep. */
  sleeping(): number {
    return this.#sleepers.length
  }
}
