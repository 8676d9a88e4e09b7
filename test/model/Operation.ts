/** What may happen to a daemon, as small numbers that are given their meaning by the state it is in when they are carried out. */
import * as Arbitrary from "effect/Arbitrary"
import * as Schema from "effect/Schema"

/** Kinds of operations with their weights; a counterexample shrinks towards the first. */
const weights = {
  // time
  "time passes": 6,
  // a VM's life
  "a VM is registered": 4,
  "the agent says what it says first": 2,
  "a VM is unregistered": 1,
  "a VM is lost": 1,
  "a client attaches": 3,
  // several at once, to get far
  "a process starts": 10,
  "the agent answers all": 5,
  // commands
  "a command": 4,
  "a bad command": 2,
  "a start": 6,
  "a bad start": 1,
  // shims
  "a claim": 7,
  "a bad claim": 1,
  "a shim comes back": 5,
  goodbye: 2,
  "a signal": 7,
  stdin: 10,
  "the end of stdin": 4,
  // connections
  "a client leaves": 6,
  "a client reads little": 4,
  "a client reads again": 4,
  "a log entry": 1,
  "half a frame": 1,
  nonsense: 1,
  // agents
  "an ACK": 10,
  "an ERROR": 4,
  NEXT: 1,
  stdout: 9,
  stderr: 5,
  "much output": 6,
  "the end of a stream": 4,
  "one byte": 4,
  "an exit": 4,
  "an exit event": 4,
  "stray output": 1,
  "the agent stops reading": 1,
  "the agent reads again": 2,
  // the disk
  "the disk fails": 1,
  "the disk is mended": 1
}

export type Kind = keyof typeof weights

export interface Operation {
  readonly kind: Kind
  /** Which client, VM or session; how large; and what variant. Their ranges follow from the kind. */
  readonly who: number
  readonly which: number
  readonly size: number
  readonly variant: number
  /** How the bytes are cut: 0 not at all. */
  readonly cut: number
  /** Whether they leave together with what the same peer says next. */
  readonly held: boolean
}

const kinds = Object.entries(weights).flatMap(([kind, weight]) => Array.from({ length: weight }, () => kind as Kind))

/** One of `choices`, each as likely as the others; shrinks towards the first. */
const oneOf = <A>(choices: ReadonlyArray<A>): Arbitrary.Arbitrary<A> =>
  Arbitrary.map(Arbitrary.schema(Schema.Literals(choices.map((_, at) => at))), (at) => choices[at]!)

const upTo = (most: number) => oneOf(Array.from({ length: most + 1 }, (_, n) => n))

const exactly = <A>(length: number, item: Arbitrary.Arbitrary<A>) =>
  Arbitrary.array(item, { minLength: length, maxLength: length })

const operation = (among: ReadonlyArray<Kind>): Arbitrary.Arbitrary<Operation> =>
  Arbitrary.all({
    kind: oneOf(among),
    who: upTo(7),
    which: upTo(7),
    size: upTo(15),
    variant: upTo(15),
    cut: oneOf([0, 0, 0, 0, 2, 3, 7]),
    held: oneOf([false, false, false, true])
  })

export interface Life {
  /** Which settings the daemon runs with. */
  readonly settings: number
  readonly operations: ReadonlyArray<Operation>
}

/** Lives of a daemon, of a few to some dozen operations. They begin with processes that start. */
export const lives: Arbitrary.Arbitrary<Life> = Arbitrary.flatMap(
  Arbitrary.all([oneOf([0, 1, 2, 3]), oneOf([5, 20, 40, 60])]),
  ([starts, length]) =>
    Arbitrary.map(
      Arbitrary.all([upTo(3), exactly(starts, operation(["a process starts"])), exactly(length, operation(kinds))]),
      ([settings, first, then]) => ({ settings, operations: [...first, ...then] })
    )
)
