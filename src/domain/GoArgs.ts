/**
 * Go's command line style, rewritten for `effect/cli`, which reads `-log` as `-l -o -g`, refuses a repeated flag and wants
 * values joined by `=` to be sure of them. Pure.
 *
 * Go's rules: one dash or two; `-flag value` or `-flag=value`, where a value may begin with a dash; a boolean's value only
 * after `=`; the last of a repeated flag wins; flags end at `--` or at the first operand.
 */
import * as Data from "effect/Data"
import * as Result from "effect/Result"

/** The flags there are, by name without dashes. `h` and `help` are understood anyway. */
export interface Flags {
  readonly valued: ReadonlySet<string>
  readonly booleans: ReadonlySet<string>
  /** Other names of flags. */
  readonly aliases: ReadonlyMap<string, string>
}

/** The command line cannot be read. */
export class FlagError extends Data.TaggedError("FlagError")<{
  readonly reason:
    | "flag provided but not defined"
    | "flag needs an argument"
    | "flag takes only true or false"
    | "bad flag syntax"
  /** The flag as it was typed, without its value. */
  readonly flag: string
}> {
  override get message(): string {
    return `${this.reason}: ${this.flag}`
  }
}

/** The spellings of a boolean that Go's flag package accepts. */
const booleans: ReadonlyMap<string, boolean> = new Map([
  ...["1", "t", "T", "true", "TRUE", "True"].map((text) => [text, true] as const),
  ...["0", "f", "F", "false", "FALSE", "False"].map((text) => [text, false] as const)
])

/**
 * Rewrites every flag as `--name=value`, each once, under its own name; a boolean is `--name=true` or left out. What follows
 * the flags stays as it is, a leading `--` included: it may be a subcommand's. Where help is asked for, nothing else
 * counts: `--help`.
 */
export const normalize = (
  args: ReadonlyArray<string>,
  flags: Flags
): Result.Result<ReadonlyArray<string>, FlagError> => {
  const given = new Map<string, string>()
  let at = 0
  for (; at < args.length; at++) {
    const arg = args[at]!
    if (!arg.startsWith("-") || arg === "-" || arg === "--") break
    const parts = /^(--?([^-=][^=]*))(?:=(.*))?$/s.exec(arg)
    if (parts === null) return Result.fail(new FlagError({ reason: "bad flag syntax", flag: arg }))
    const flag = parts[1]!
    const name = flags.aliases.get(parts[2]!) ?? parts[2]!
    let value = parts[3]
    if (flags.booleans.has(name)) {
      const parsed = booleans.get(value ?? "true")
      if (parsed === undefined) return Result.fail(new FlagError({ reason: "flag takes only true or false", flag }))
      if (!parsed) {
        given.delete(name) // effect/cli prints the version for `--version=false` too
        continue
      }
      value = "true"
    } else if (flags.valued.has(name)) {
      value ??= args[++at]
      if (value === undefined) return Result.fail(new FlagError({ reason: "flag needs an argument", flag }))
    } else if (name === "h" || name === "help") {
      return Result.succeed(["--help"])
    } else {
      return Result.fail(new FlagError({ reason: "flag provided but not defined", flag }))
    }
    given.set(name, value)
  }
  return Result.succeed([...Array.from(given, ([name, value]) => `--${name}=${value}`), ...args.slice(at)])
}
