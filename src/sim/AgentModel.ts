/** The two agents that a simulated VM can run, and what tells them apart. Source: PROTOCOL.md, "Agents". */
import * as IoMessage from "../domain/IoMessage.ts"
import * as GuestStdin from "./GuestStdin.ts"

export interface AgentModel {
  /** What `version` answers. */
  readonly apiVersion: number
  /** Largest message of output, in bytes, header included. */
  readonly maxOutput: number
  /** Largest message of stdin that it survives, in bytes, header included. */
  readonly maxStdin: number
  /** Largest command that it survives, in bytes, header included. */
  readonly maxCommand: number
  /** Whether it dies of a header that comes in two reads. */
  readonly wholeHeaders: boolean
  /** Whether it tells with NEXT how much of a command it has read. */
  readonly sendsNext: boolean
  /** Whether its ERROR has a text. */
  readonly explainsErrors: boolean
  /** Whether it answers stdin for a sequence that it does not know with the end of that stream. */
  readonly endsUnknownStreams: boolean
  readonly makeStdin: (options: GuestStdin.Options) => GuestStdin.GuestStdin
}

/** hyperhq's hyperstart 0.7. */
export const c: AgentModel = {
  apiVersion: 4242,
  maxOutput: 10_240,
  maxStdin: 4096,
  maxCommand: 16 * 1024 * 1024,
  wholeHeaders: false,
  sendsNext: true,
  explainsErrors: false,
  endsUnknownStreams: true,
  makeStdin: GuestStdin.makeBuffered
}

/** clearcontainers/agent. */
export const go: AgentModel = {
  apiVersion: 4242,
  maxOutput: 1036,
  maxStdin: IoMessage.maxMessage,
  maxCommand: 16 * 1024 * 1024,
  wholeHeaders: true,
  sendsNext: false,
  explainsErrors: true,
  endsUnknownStreams: false,
  makeStdin: GuestStdin.makeBlocking
}
