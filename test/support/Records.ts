/** A log that remembers. */
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as References from "effect/References"

export interface Record {
  readonly level: string
  /** What `Effect.log` was given first. */
  readonly msg: unknown
  /** What it was given besides. */
  readonly fields: Readonly<{ [key: string]: unknown }>
  readonly annotations: Readonly<{ [key: string]: unknown }>
}

/** Replaces the loggers by one that appends to `records`, whatever the level. `onRecord` runs after each. */
export const make = (
  onRecord: () => void = () => {}
): { readonly records: Array<Record>; readonly layer: Layer.Layer<never> } => {
  const records: Array<Record> = []
  const logger = Logger.make(({ fiber, logLevel, message }) => {
    const [msg, fields] = Array.isArray(message) ? (message as ReadonlyArray<unknown>) : [message]
    records.push({
      level: logLevel,
      msg,
      fields: (fields ?? {}) as Record["fields"],
      annotations: { ...fiber.getRef(References.CurrentLogAnnotations) }
    })
    onRecord()
  })
  return {
    records,
    layer: Layer.merge(Logger.layer([logger]), Layer.succeed(References.MinimumLogLevel, "All"))
  }
}
