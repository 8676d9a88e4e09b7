/** What is counted, on its way from another process to the test. */

/** Kinds of work in memory. */
export const workNames = ["command", "visit", "session", "life", "output", "outputInTurn", "input", "echo"] as const
export type WorkName = (typeof workNames)[number]

/** Of one message, command or life. */
export interface Cost {
  /** Bytes allocated on V8's heap. */
  readonly bytes: number
  /** Bytes of it that are freed by nothing less than a full collection. */
  readonly kept: number
  readonly fibers: number
  /** Steps of fibers. */
  readonly steps: number
}

export interface MemoryReport {
  readonly costs: Readonly<Record<WorkName, Cost>>
  /** Bytes of heap that a VM occupies whose shim is connected and silent. */
  readonly idleVm: number
  /** Bytes of heap that an attached, silent client occupies. */
  readonly idleClient: number
}

/** A piece of work between two marks, and how many messages, commands or lives it was. */
export interface Marked {
  readonly name: "command" | "life" | "output" | "outputInTurn" | "echo"
  readonly count: number
}

/** Instructions for each message, command or life. */
export type InstructionsReport = Readonly<Record<Marked["name"], number>>

/** Kinds of work over sockets. */
export const socketWorkNames = ["command", "visit", "life", "output", "outputInTurn", "echo"] as const
export type SocketWorkName = (typeof socketWorkNames)[number]

/**
 * How often each kind was called on sockets, failed calls included. `other`: to open and close them; not to watch them, which
 * some kernels do without a call.
 */
export interface Calls {
  readonly read: number
  readonly write: number
  readonly other: number
}

/** System calls for each batch, command or life. */
export type SystemCallsReport = Readonly<Record<SocketWorkName, Calls>>

export interface DaemonReport {
  /** Modules of Node that are loaded before it listens, those among them that no daemon needs, and files of its own. */
  readonly modules: ReadonlyArray<string>
  readonly unwanted: ReadonlyArray<string>
  readonly files: ReadonlyArray<string>
  readonly costs: Readonly<Record<"command" | "visit" | "life", Pick<Cost, "bytes" | "kept">>>
}

/** Bytes of the program, and of what V8 has compiled of it. */
export interface Size {
  readonly program: number
  readonly cache: number
}
