/** What the daemon refuses and what it drops, counted in Effect's registry of metrics, which whoever reports them reads. */
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"

/** What has a limit that somebody was above, or would have been. */
export type Limit =
  | "connections"
  | "descriptors"
  | "vms"
  | "tokens"
  | "vm tokens"
  | "frame"
  | "frame time"
  | "ctl command"
  | "ctl reply"
  | "io message"
  | "log rate"
  | "unread"
  | "depth"
  | "spool"

/** Why bytes are lost: no shim came back for them, no session had their sequence, or the disk did not keep them. */
export type Loss = "orphan" | "stray" | "spool lost"

// a metric of the same name and attributes is the same one to the registry, however often it is made

const limits = (limit: Limit) =>
  Metric.counter("cc_proxy_limited_total", {
    description: "What was refused, ended or dropped because of a limit",
    attributes: { limit },
    incremental: true
  })

const losses = (reason: Loss) =>
  Metric.counter("cc_proxy_dropped_bytes_total", {
    description: "Bytes of processes that nobody can get any more",
    attributes: { reason },
    incremental: true
  })

/** Counts that a limit was hit, `amount` times. */
export const limited = (limit: Limit, amount = 1): Effect.Effect<void> => Metric.update(limits(limit), amount)

/** How often a limit was hit so far. */
export const limitedSoFar = (limit: Limit): Effect.Effect<number> =>
  Effect.map(Metric.value(limits(limit)), ({ count }) => count)

/** Counts `bytes` that are lost. */
export const dropped = (reason: Loss, bytes: number): Effect.Effect<void> => Metric.update(losses(reason), bytes)

/** How many bytes are lost so far. */
export const droppedSoFar = (reason: Loss): Effect.Effect<number> =>
  Effect.map(Metric.value(losses(reason)), ({ count }) => count)
