/** The files of one container that commands read and write: a directory of this host. */
import * as Effect from "effect/Effect"
import * as Fs from "node:fs/promises"
import * as Path from "node:path"
import { CommandRefused } from "./GuestCommand.ts"

/** `file` as a path inside `directory`: no `..` leads out. */
const inside = (directory: string, file: string): string => Path.join(directory, Path.join("/", file))

const attempt = <A>(operation: () => Promise<A>): Effect.Effect<A, CommandRefused> =>
  Effect.tryPromise({
    try: operation,
    catch: (cause) => new CommandRefused({ reason: String((cause as NodeJS.ErrnoException).code) })
  })

/** Makes or replaces a file. The container has no image here, so the directories above the file are made too. */
export const write = (directory: string, file: string, data: Uint8Array): Effect.Effect<void, CommandRefused> =>
  attempt(async () => {
    const path = inside(directory, file)
    await Fs.mkdir(Path.dirname(path), { recursive: true })
    await Fs.writeFile(path, data)
  })

export const read = (directory: string, file: string): Effect.Effect<Uint8Array, CommandRefused> =>
  attempt(() => Fs.readFile(inside(directory, file)))
