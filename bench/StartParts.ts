/** The parts of a start, from what `startMarks.cjs` tells of one. */
import * as Schema from "effect/Schema"
import { spread } from "./Statistics.ts"

/** Times in nanoseconds of one clock. `requiring` is a duration: what Node's own modules took that the program loads. */
const Marks = Schema.Struct({
  forked: Schema.Finite,
  process: Schema.Finite,
  preloaded: Schema.Finite,
  read: Schema.Finite,
  compiled: Schema.Finite,
  /** The daemon is defined, and begins to run; a server without that stage has none. */
  evaluated: Schema.optionalKey(Schema.Finite),
  listen: Schema.Finite,
  accepted: Schema.Finite,
  answered: Schema.Finite,
  requiring: Schema.Finite
})
export type Marks = typeof Marks.Type

export const decode = Schema.decodeEffect(Schema.fromJsonString(Marks))

/** In their order: what a part is called in the results, and in the document. */
export const parts = {
  execMicros: "fork, exec, the launcher's shell",
  nodeMicros: "Node's own start",
  readMicros: "finding and reading the program",
  compileMicros: "compiling it, from the cache",
  modulesMicros: "modules of Node that it loads",
  evaluateMicros: "defining what it is made of",
  layersMicros: "the services, up to listen",
  acceptMicros: "listening, up to the first client",
  answerMicros: "its answer"
} as const

type Parts = Readonly<Record<keyof typeof parts, number>>

const partsOf = (marks: Marks): Parts => {
  const evaluated = marks.evaluated ?? marks.listen
  return {
    execMicros: (marks.process - marks.forked) / 1000,
    nodeMicros: (marks.preloaded - marks.process) / 1000,
    readMicros: (marks.read - marks.preloaded) / 1000,
    compileMicros: (marks.compiled - marks.read) / 1000,
    modulesMicros: marks.requiring / 1000,
    evaluateMicros: (evaluated - marks.compiled - marks.requiring) / 1000,
    layersMicros: (marks.listen - evaluated) / 1000,
    acceptMicros: (marks.accepted - marks.listen) / 1000,
    answerMicros: (marks.answered - marks.accepted) / 1000
  }
}

/** Each part's median over some starts, at least one. */
export const medians = (starts: ReadonlyArray<Marks>): Parts => {
  const all = starts.map(partsOf)
  const median = (key: keyof Parts) => spread(all.map((one) => one[key])).median
  const keys = Object.keys(parts) as ReadonlyArray<keyof Parts>
  return Object.fromEntries(keys.map((key) => [key, median(key)])) as Parts
}
