/** The signals that ask this program to end. */
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Os from "node:os"

const names = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"] as const
export type Signal = (typeof names)[number]

export const numberOf = (signal: Signal): number => Os.constants.signals[signal]

/** The program was asked to end. */
export class Stopped extends Schema.TaggedError<Stopped>()("Stopped", { signal: Schema.Literals(names) }) {
  override get message(): string {
    return `stopped by ${this.signal}`
  }
}

/** Takes the signals over from whoever handles them, for as long as the scope lives. */
export const take: Effect.Effect<Queue.Dequeue<Signal>, never, Scope.Scope> = Effect.gen(function* () {
  const received = yield* Queue.unbounded<Signal>()
  for (const name of names) {
    yield* Effect.acquireRelease(
      Effect.sync(() => {
        const others = process.listeners(name)
        const receive = () => Queue.offerUnsafe(received, name)
        process.removeAllListeners(name).on(name, receive)
        return { others, receive }
      }),
      ({ others, receive }) =>
        Effect.sync(() => {
          process.off(name, receive)
          for (const other of others) process.on(name, other)
        })
    )
  }
  return received
})
