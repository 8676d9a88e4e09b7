import { assert, describe, it } from "@effect/vitest"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as GoArgs from "../../src/domain/GoArgs.ts"

const flags: GoArgs.Flags = {
  valued: new Set(["log", "socket-path", "uri"]),
  booleans: new Set(["pprof", "version"]),
  aliases: new Map([["v", "log"]])
}
const normalize = (...args: ReadonlyArray<string>) => GoArgs.normalize(args, flags)

const accepts = (args: ReadonlyArray<string>, expected: ReadonlyArray<string>) =>
  assert.deepStrictEqual(normalize(...args), Result.succeed(expected))

const refuses = (args: ReadonlyArray<string>, message: string) =>
  assert.strictEqual(
    Result.merge(Result.map(normalize(...args), String).pipe(Result.mapError((e) => e.message))),
    message
  )

describe("GoArgs", () => {
  it("takes one dash or two, and a value joined by = or after it", () => {
    for (const args of [["-log", "debug"], ["--log", "debug"], ["-log=debug"], ["--log=debug"]])
      accepts(args, ["--log=debug"])
  })

  it("takes the last of a repeated flag, under whichever of its names", () => {
    accepts(["-log", "debug", "-uri=a", "--log=info", "-v", "error"], ["--log=error", "--uri=a"])
    accepts(["-v=debug", "-log", "warn"], ["--log=warn"])
  })

  it("takes any value: an empty one, one with =, with line feeds, or with a dash in front", () => {
    accepts(["-log="], ["--log="])
    accepts(["-log", ""], ["--log="])
    accepts(["-uri", "unix:///a=b"], ["--uri=unix:///a=b"])
    accepts(["-uri=a\n-log=b"], ["--uri=a\n-log=b"])
    accepts(["-log", "-x"], ["--log=-x"])
    accepts(["-log", "--"], ["--log=--"])
  })

  it("takes a boolean's value only after =, in Go's spellings", () => {
    accepts(["-pprof"], ["--pprof=true"])
    for (const text of ["1", "t", "T", "true", "TRUE", "True"]) accepts([`--pprof=${text}`], ["--pprof=true"])
    for (const text of ["0", "f", "F", "false", "FALSE", "False"]) accepts([`-pprof=${text}`], [])
    accepts(["-pprof", "false"], ["--pprof=true", "false"])
    accepts(["-pprof", "-pprof=false"], [])
    accepts(["-pprof=false", "-pprof"], ["--pprof=true"])
    refuses(["-pprof=maybe"], "flag takes only true or false: -pprof")
    refuses(["-pprof="], "flag takes only true or false: -pprof")
  })

  it("stops at the first operand and leaves a subcommand's flags alone", () => {
    accepts(
      ["-log", "debug", "demo", "-it", "--", "bash", "-log"],
      ["--log=debug", "demo", "-it", "--", "bash", "-log"]
    )
    accepts(["demo", "-h"], ["demo", "-h"])
    accepts(["-", "-log"], ["-", "-log"])
    accepts(["", "-log"], ["", "-log"])
  })

  it("stops at --, and leaves it there", () => {
    accepts(["-pprof", "--", "-log"], ["--pprof=true", "--", "-log"])
  })

  it("asks for help whatever stands beside it", () => {
    for (const help of ["-h", "--h", "-help", "--help", "-help=x"])
      accepts(["-log", "debug", help, "-nonsense", "demo"], ["--help"])
  })

  it("reports a flag as it was typed, without its value", () => {
    refuses(["-x"], "flag provided but not defined: -x")
    refuses(["--x"], "flag provided but not defined: --x")
    refuses(["-logg=secret"], "flag provided but not defined: -logg")
    refuses(["-log", "debug", "-it"], "flag provided but not defined: -it")
    refuses(["-pprof", "-v"], "flag needs an argument: -v")
    refuses(["---log"], "bad flag syntax: ---log")
    refuses(["-=x"], "bad flag syntax: -=x")
    refuses(["--=x"], "bad flag syntax: --=x")
  })

  it("knows no flag by a name that every object of JavaScript has", () => {
    refuses(["-constructor"], "flag provided but not defined: -constructor")
    refuses(["-__proto__=1"], "flag provided but not defined: -__proto__")
  })

  const Setting = Schema.Struct({
    name: Schema.Literals(["log", "v", "socket-path", "uri"]),
    dashes: Schema.Literals(["-", "--"]),
    joined: Schema.Boolean,
    value: Schema.String
  })

  it.prop(
    "means the same however flags are written, and hands the rest on",
    [Schema.Array(Setting), Schema.Literals(["demo", "--", "-", ""]), Schema.Array(Schema.String)],
    ([settings, operand, rest]) => {
      const args = settings.flatMap(({ dashes, joined, name, value }) =>
        joined ? [`${dashes}${name}=${value}`] : [dashes + name, value]
      )
      const expected = new Map(settings.map(({ name, value }) => [name === "v" ? "log" : name, value]))
      const written = Array.from(expected, ([name, value]) => `--${name}=${value}`)
      accepts([...args, operand, ...rest], [...written, operand, ...rest])
      accepts([...written, operand, ...rest], [...written, operand, ...rest])
    }
  )
})
