/** Directories for this daemon's user alone. */
import * as Fs from "node:fs"

/** Makes a directory that only this user can enter, and those above it. Throws where there is another thing, or another's. */
export const make = (path: string): void => {
  Fs.mkdirSync(path, { recursive: true, mode: 0o700 })
  const found = Fs.lstatSync(path)
  if (!found.isDirectory()) throw new Error(`${path} is not a directory`)
  if (found.uid !== process.geteuid?.()) throw new Error(`${path} belongs to another user`)
  Fs.chmodSync(path, 0o700)
}
