/**
 * What has become of started processes: their descendants on this host, found through `/proc`. Only a daemon that has both left
 * their sessions and lost its parent is out of reach.
 */
import * as Effect from "effect/Effect"
import * as Fs from "node:fs"

/** A process that was started as the leader of a session of its own. */
export interface Leader {
  readonly pid: number
  /** Whether it is known to have ended: then a process with its number is somebody else's. */
  readonly ended: () => boolean
}

interface Entry {
  readonly pid: number
  readonly parent: number
  readonly session: number
}

/** Every process of this host that is not a zombie. */
const snapshot = (): ReadonlyArray<Entry> =>
  Fs.readdirSync("/proc").flatMap((name) => {
    if (!/^\d+$/.test(name)) return []
    try {
      const stat = Fs.readFileSync(`/proc/${name}/stat`, "latin1")
      // the name in parentheses may hold anything, blanks and parentheses included
      const [state, parent, , session] = stat.slice(stat.lastIndexOf(")") + 2).split(" ")
      return state === "Z" ? [] : [{ pid: Number(name), parent: Number(parent), session: Number(session) }]
    } catch {
      return [] // it has ended meanwhile
    }
  })

/** The leaders that live, whoever is in their sessions, and the descendants of all these. */
export const membersOf = (leaders: Iterable<Leader>): ReadonlySet<number> => {
  const entries = snapshot()
  const alive = new Set(entries.map(({ pid }) => pid))
  const sessions = new Set<number>()
  for (const { ended, pid } of leaders) if (!(ended() && alive.has(pid))) sessions.add(pid)
  const members = new Set<number>()
  let before: number
  do {
    before = members.size
    for (const { parent, pid, session } of entries) if (sessions.has(session) || members.has(parent)) members.add(pid)
  } while (members.size > before)
  return members
}

/** Sends a signal; a process that is gone, or a number that is no signal, is no error. */
export const signal = (pid: number, number: number): void => {
  try {
    process.kill(pid, number)
  } catch {
    // ESRCH, EINVAL
  }
}

/** In real time, whatever clock the caller's fiber has. */
const moment = Effect.callback<void>((resume) => {
  const timer = setTimeout(() => resume(Effect.void), 2)
  return Effect.sync(() => clearTimeout(timer))
})

/** Attempts of `killAll`: two seconds or so. What outlives that many SIGKILLs is stuck in the kernel. */
const attempts = 1000

/** Kills them until none is left. */
export const killAll = Effect.fnUntraced(function* (leaders: () => Iterable<Leader>): Effect.fn.Return<void> {
  for (let left = attempts; left > 0; left--) {
    const members = membersOf(leaders())
    if (members.size === 0) return
    for (const pid of members) signal(pid, 9)
    yield* moment
  }
})
