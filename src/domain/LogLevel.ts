/** The log levels of the command line, and what Effect and the log call them. */
import type * as EffectLogLevel from "effect/LogLevel"
import type * as Logfmt from "./Logfmt.ts"

/** What `-log` and `CC_PROXY_LOG_LEVEL` take. Source: README.md, "Flags". */
export const names = ["debug", "info", "warn", "warning", "error", "fatal", "panic"] as const
export type Name = (typeof names)[number]

/** The severity a name stands for: the least that is logged where the name is the level, or that of a client's entry. */
export const severity: Readonly<Record<Name, EffectLogLevel.Severity>> = {
  debug: "Debug",
  info: "Info",
  warn: "Warn",
  warning: "Warn",
  error: "Error",
  fatal: "Fatal",
  panic: "Fatal"
}

/** How a record of a severity is labelled. `All` and `None` are thresholds, which no record has. */
export const label: Readonly<Record<EffectLogLevel.LogLevel, Logfmt.Level>> = {
  All: "debug",
  Trace: "debug",
  Debug: "debug",
  Info: "info",
  Warn: "warn",
  Error: "error",
  Fatal: "fatal",
  None: "fatal"
}
