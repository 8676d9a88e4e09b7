/** The standard streams of this program. */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"

/** Nobody reads the stream any more. */
export class ReaderGone extends Schema.TaggedError<ReaderGone>()("ReaderGone", {}) {}

/** The stream takes nothing: a full disk, a terminal that hung up. */
export class WriteFailed extends Schema.TaggedError<WriteFailed>()("WriteFailed", {
  stream: Schema.String,
  cause: Schema.Defect()
}) {
  override get message(): string {
    return `${this.stream}: ${this.cause instanceof Error ? this.cause.message : String(this.cause)}`
  }
}

export type WriteError = ReaderGone | WriteFailed

/** Lets `write` tell of errors, which would end the program where nobody listens. */
export const guard: Effect.Effect<void, never, Scope.Scope> = Effect.asVoid(
  Effect.acquireRelease(
    Effect.sync(() => {
      const told = () => undefined
      process.stdout.on("error", told)
      process.stderr.on("error", told)
      return told
    }),
    (told) =>
      Effect.sync(() => {
        process.stdout.off("error", told)
        process.stderr.off("error", told)
      })
  )
)

/** Writes, and returns once the kernel has taken everything: a slow reader slows its writer. */
export const write = (stream: "stdout" | "stderr", data: Uint8Array | string): Effect.Effect<void, WriteError> =>
  Effect.callback((resume) => {
    process[stream].write(data, (cause) => {
      if (cause == null) resume(Effect.void)
      else if ((cause as NodeJS.ErrnoException).code === "EPIPE") resume(Effect.fail(new ReaderGone()))
      else resume(Effect.fail(new WriteFailed({ stream, cause })))
    })
  })
