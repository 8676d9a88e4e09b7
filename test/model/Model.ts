/**
 * The reference: what clients and agents may see of the daemon, as plain data that is changed at once by whatever anybody says.
 * It knows no fibers, no sockets and no bytes of frames. Source: PROTOCOL.md.
 */
import { Code } from "../../src/domain/CtlMessage.ts"
import { Command } from "../../src/domain/Frame.ts"

/** Waits and limits, in milliseconds and numbers. */
export interface Rules {
  readonly readyTimeout: number
  readonly ctlTimeout: number
  readonly shimTimeout: number
  readonly processTimeout: number
  readonly frameTimeout: number
  readonly orphanTimeout: number
  readonly lostIdTimeout: number
  readonly maxTokens: number
  readonly maxVmTokens: number
  readonly maxPipelined: number
}

/** How an agent behaves: says NEXT or not, and, of API 4244 or later, tells exits by events. */
export type Nature = "go" | "c" | "event"

/** A response: its payload, or an error's text; `undefined` stands for any. */
export type Outcome = { readonly ok: string | RegExp } | { readonly error: string | RegExp | undefined }

export interface Response {
  readonly command: Command
  readonly outcome: Outcome
}

/** What a process's `data` looks like: the numbers of its streams stand between `before` and `inner`. */
export interface ProcessData {
  readonly container: string
  readonly id: string | undefined
  readonly init: boolean
  readonly terminal: boolean
  readonly before: string
  readonly inner: string
  readonly after: string
}

/** What a client says. */
export type Said =
  | { readonly kind: "RegisterVM"; readonly vm: Vm; readonly reachable: boolean; readonly tokens: number }
  | { readonly kind: "AttachVM"; readonly id: string; readonly tokens: number }
  | { readonly kind: "UnregisterVM"; readonly id: string }
  | { readonly kind: "Hyper"; readonly code: number; readonly data: string }
  | { readonly kind: "start"; readonly process: ProcessData; readonly token: string | undefined }
  | { readonly kind: "refused"; readonly command: Command; readonly error: string | RegExp | undefined }
  | { readonly kind: "ConnectShim"; readonly token: string }
  | { readonly kind: "DisconnectShim" }
  | { readonly kind: "Signal"; readonly signal: number; readonly rows: number; readonly columns: number }
  | { readonly kind: "stdin"; readonly data: Uint8Array }
  | { readonly kind: "log" }
  | { readonly kind: "garbage" }

/** A byte of stdout, of stderr (plus 256), or an exit status (plus 512), in a process's output. */
export const symbolOf = { stdout: 0, stderr: 256, exit: 512 } as const

/** A wait for something to hold, at a session. */
interface Waiter {
  /** Whether the session was to end once delivered before it came. */
  readonly late: boolean
  readonly test: () => boolean
  readonly go: (inTime: boolean) => void
}

/** A command's place in the order of a client's responses. */
interface Slot {
  readonly client: Client
  readonly command: Command
  outcome: Outcome | "none" | undefined
  attaches: Session | undefined
}

type Reply = { readonly reply: "ack" | "error"; readonly payload: Uint8Array } | { readonly reply: "timeout" | "lost" }

/** A command on its way to an agent. */
interface Turn {
  readonly code: number
  readonly payload: string
  readonly onWritten?: () => void
  readonly onReply?: (reply: "ack" | "error" | "lost") => void
  /** Absent once nobody waits any more. */
  done: ((reply: Reply) => void) | undefined
  stop: () => void
}

export class Client {
  readonly name: string
  /** The responses it is to get, in order. */
  readonly responses: Array<Response> = []
  vm: Vm | undefined
  session: Session | undefined
  /** The session that it will claim as soon as that has no shim. */
  claiming: Session | undefined
  readonly queue: Array<Said> = []
  readonly answers: Array<Slot> = []
  readonly cancels = new Set<() => void>()
  busy: "register" | "claim" | undefined
  /** Whether it takes at once whatever there is for it. */
  reading = true
  turnedAway = false
  handling = false
  leaving = false
  goodbye = false
  /** The proxy reads no more of it. */
  ended = false
  /** Where its session's output began for it. */
  start: number | undefined
  /** Its connection is gone. */
  released = false
  stopFrame: () => void = () => {}

  constructor(name: string) {
    this.name = name
  }
}

export class Session {
  readonly vm: Vm
  readonly token: string
  readonly stdio: number
  readonly waiters = new Set<Waiter>()
  phase: "idle" | "waiting" | "written" | "started" = "idle"
  process: ProcessData | undefined
  shim: Client | undefined
  attached = false
  over: "closed" | "lost" | undefined
  /** Its VM is lost: it ends as soon as it is delivered. */
  delivering = false
  forgotten = false
  stopOrphan: (() => void) | undefined

  // output
  ended = false
  early: number | undefined
  status: number | undefined
  /** All that its shims are to get. */
  readonly stream: Array<number> = []
  /** Where frames begin in it. */
  readonly starts: Array<number> = []
  /** Where the next shim begins, and how far its shims have come. */
  from = 0
  taken = 0

  // stdin
  readonly fed: Array<number> = []
  /** When the last of it came. */
  fedAt = 0
  eof: "none" | "waiting" | "sent" = "none"
  /** Whether what waits is not wanted any more. */
  stdinOver = false
  sent = 0
  window = Number.POSITIVE_INFINITY
  pinging = false

  constructor(vm: Vm, token: string, stdio: number) {
    this.vm = vm
    this.token = token
    this.stdio = stdio
  }
}

/** How a channel is brought in step again. Source: PROTOCOL.md, "Late replies". */
interface Resync {
  owed: number
  replies: number
  lastBare: boolean
  first: { readonly ack: boolean; readonly bare: boolean } | undefined
  /** Until the next ping, where none of them is answered. */
  pause: number
  alone: number
  /** When the reply before came, or the first ping left. */
  since: number
  stop: () => void
}

export class Vm {
  readonly id: string
  readonly name: string
  readonly nature: Nature
  readonly sessions: Array<Session> = []
  /** Commands that the agent is to get, in order. */
  readonly commands: Array<{ readonly code: number; readonly payload: string }> = []
  state: "new" | "booting" | "live" | "losing" | "lost" | "gone" = "new"
  saidReady = false
  ready: (failure?: "failed") => void = () => {}
  unregistered = false
  ctlLost = false
  drained = false
  kind: "unknown" | "c" | "go" = "unknown"
  sawNext = false
  unnamed = false
  /** Exits of processes without an id that came before the end of their output. */
  exits: Array<{ readonly container: string; readonly status: number }> = []
  api: number | undefined
  asking: Array<(api: number | undefined) => void> | undefined

  current: Turn | undefined
  readonly waiting: Array<Turn> = []
  resync: Resync | undefined

  /** Bytes of io of which the rest has not been read. */
  partial: Uint8Array = new Uint8Array(0)
  /** Whether the agent reads its stdin, and whether something waits in the channel. */
  agentReads = true
  inWire = false
  readonly fedSessions = new Set<Session>()
  writing = false

  constructor(id: string, name: string, nature: Nature) {
    this.id = id
    this.name = name
    this.nature = nature
  }
}

interface Timer {
  readonly due: number
  readonly fire: () => void
}

/** How many characters of a token an error may show. */
const shown = (token: string): string => `${token.slice(0, 6)}…`

const none = new Uint8Array(0)
const anyError: Outcome = { error: undefined }
const success: Outcome = { ok: "" }
const latin = (bytes: Uint8Array): string => Buffer.from(bytes).toString("latin1")

export class Model {
  readonly rules: Rules
  readonly url: string
  now = 0
  readonly sessions = new Map<string, Session>()
  readonly #timers = new Set<Timer>()
  readonly #ids = new Map<string, Vm>()
  readonly #lostIds = new Map<string, { readonly vm: Vm; readonly until: number }>()
  readonly #nextToken: () => string

  constructor(rules: Rules, url: string, nextToken: () => string) {
    this.rules = rules
    this.url = url
    this.#nextToken = nextToken
  }

  // time

  /** When the next wait expires. */
  nextDue(): number {
    return Math.min(...Array.from(this.#timers, ({ due }) => due))
  }

  advanceTo(millis: number): void {
    for (;;) {
      let next: Timer | undefined
      for (const timer of this.#timers) if (next === undefined || timer.due < next.due) next = timer
      if (next === undefined || next.due > millis) break
      this.#timers.delete(next)
      this.now = next.due
      next.fire()
    }
    this.now = millis
  }

  #after(millis: number, fire: () => void): () => void {
    const timer: Timer = { due: this.now + millis, fire }
    this.#timers.add(timer)
    return () => void this.#timers.delete(timer)
  }

  /** Calls `go` once `test` holds at a change of the session, or when time is up. */
  #await(session: Session, millis: number, test: () => boolean, go: (inTime: boolean) => void): () => void {
    if (test()) {
      go(true)
      return () => {}
    }
    const forget = () => {
      session.waiters.delete(waiter)
      stop()
    }
    const waiter: Waiter = {
      late: session.delivering,
      test,
      go: (inTime) => {
        forget()
        go(inTime)
      }
    }
    session.waiters.add(waiter)
    const stop = Number.isFinite(millis) ? this.#after(millis, () => waiter.go(false)) : () => {}
    return forget
  }

  #changed(session: Session): void {
    this.#wakeWaiters(session, false)
    this.#finish(session)
    this.#wakeWaiters(session, true)
  }

  #wakeWaiters(session: Session, late: boolean): void {
    for (const waiter of Array.from(session.waiters))
      if (waiter.late === late && session.waiters.has(waiter) && waiter.test()) waiter.go(true)
  }

  // clients

  /** A client says all of this at once. */
  says(client: Client, said: ReadonlyArray<Said>, midFrame: boolean): void {
    if (client.ended || client.leaving) return
    client.stopFrame()
    client.queue.push(...said)
    this.#handle(client)
    if (midFrame && !client.ended) client.stopFrame = this.#after(this.rules.frameTimeout, () => this.#end(client))
  }

  /** A client's connection has ended, by its own will. */
  leaves(client: Client): void {
    if (client.released) return
    client.leaving = true
    this.#handle(client)
    if (client.busy !== "claim") this.#left(client)
  }

  #left(client: Client): void {
    this.#end(client)
    this.closed(client)
  }

  /** A client's connection has been closed: its session is free for the next. */
  closed(client: Client): void {
    if (client.released) return
    client.released = true
    const { session } = client
    if (session?.shim !== client) return
    session.shim = undefined
    session.attached = false
    this.#orphan(session)
    this.#changed(session)
  }

  #handle(client: Client): void {
    if (client.handling) return
    client.handling = true
    const { queue } = client
    while (queue.length > 0 && !client.ended && client.busy === undefined) {
      if (!client.leaving && client.answers.length >= this.rules.maxPipelined && queue[0]!.kind !== "garbage") break
      this.#take(client, queue.shift()!)
      if (client.goodbye) this.#end(client)
    }
    if (client.session !== undefined) this.#wake(client.session)
    client.handling = false
  }

  #take(client: Client, said: Said): void {
    switch (said.kind) {
      case "log":
        return
      case "garbage":
        return this.#end(client)
      case "stdin":
        if (client.session !== undefined) return this.#feed(client.session, said.data)
        if (client.turnedAway) client.goodbye = true
        else this.#end(client)
        return
      default:
        return this.#command(client, said)
    }
  }

  #command(client: Client, said: Exclude<Said, { readonly kind: "log" | "garbage" | "stdin" }>): void {
    const command = said.kind === "start" ? Command.Hyper : said.kind === "refused" ? said.command : Command[said.kind]
    if (client.leaving && command !== Command.Signal && command !== Command.DisconnectShim) return
    const slot: Slot = { client, command, outcome: undefined, attaches: undefined }
    client.answers.push(slot)
    switch (said.kind) {
      case "RegisterVM":
        return this.#register(slot, said.vm, said.reachable, said.tokens)
      case "AttachVM":
        return this.#attach(slot, said.id, said.tokens)
      case "UnregisterVM":
        return this.#unregister(slot, said.id)
      case "refused":
        return this.#done(slot, { error: said.error })
      case "Hyper":
        return this.#hyper(slot, said.code, said.data)
      case "start":
        return this.#start(slot, said.process, said.token)
      case "ConnectShim":
        return this.#connectShim(slot, said.token)
      case "DisconnectShim":
        return this.#disconnectShim(slot)
      case "Signal":
        return this.#signal(slot, said.signal, said.rows, said.columns)
    }
  }

  /** A command has its outcome: those that are next in order leave. */
  #done(slot: Slot, outcome: Outcome | "none"): void {
    const { client } = slot
    if (client.ended || slot.outcome !== undefined) return
    slot.outcome = client.goodbye ? "none" : outcome
    for (let next = client.answers[0]; next?.outcome !== undefined; next = client.answers[0]) {
      client.answers.shift()
      if (next.outcome !== "none") client.responses.push({ command: next.command, outcome: next.outcome })
      const session = next.attaches
      if (session?.shim === client) {
        session.attached = true
        // an earlier shim may not have lived to read it
        if (session.status !== undefined) session.from = Math.min(session.from, session.stream.length - 1)
        session.taken = client.reading && !client.leaving ? session.stream.length : session.from
        client.start = session.from
        this.#changed(session)
      }
    }
    this.#handle(client)
  }

  /** The proxy reads no more of a client, and gives up what is under way for it. */
  #end(client: Client): void {
    if (client.ended) return
    client.ended = true
    client.stopFrame()
    // for the test to look when what is left for it has not been taken in time
    this.#after(this.rules.frameTimeout, () => {})
    for (const cancel of Array.from(client.cancels)) cancel()
    if (client.session?.shim === client) client.session.attached = false
  }

  // VMs

  #tokens(vm: Vm, count: number): Outcome {
    const tokens: Array<string> = []
    for (let i = 0; i < count; i++) {
      const session = new Session(vm, this.#nextToken(), 3 + 2 * vm.sessions.length)
      vm.sessions.push(session)
      this.sessions.set(session.token, session)
      tokens.push(session.token)
    }
    return { ok: JSON.stringify({ io: { URL: this.url, tokens: count > 0 ? tokens : null } }) }
  }

  #refusedCount(vm: Vm | undefined, count: number): boolean {
    const { maxTokens, maxVmTokens } = this.rules
    const alive = vm === undefined ? 0 : vm.sessions.filter(({ forgotten }) => !forgotten).length
    return count < 0 || count > maxTokens || alive + count > maxVmTokens
  }

  #register(slot: Slot, vm: Vm, reachable: boolean, tokens: number): void {
    const { client } = slot
    if (this.#refusedCount(undefined, tokens)) return this.#done(slot, anyError)
    if (this.#ids.has(vm.id)) return this.#done(slot, { error: `${vm.id}: container already registered` })
    if (!reachable) return this.#done(slot, anyError)
    this.#ids.set(vm.id, vm)
    vm.state = "booting"
    client.busy = "register"
    const settle = (failed: boolean) => {
      stop()
      client.cancels.delete(cancel)
      vm.ready = () => {}
      if (!failed) return
      this.#ids.delete(vm.id)
      vm.state = "gone"
    }
    const cancel = () => settle(true)
    client.cancels.add(cancel)
    vm.ready = (failure) => {
      settle(failure !== undefined)
      if (failure === undefined) {
        vm.state = "live"
        this.#lostIds.delete(vm.id)
        client.vm = vm
      }
      client.busy = undefined
      this.#done(slot, failure === undefined ? this.#tokens(vm, tokens) : anyError)
    }
    const stop = this.#after(this.rules.readyTimeout, () => vm.ready("failed"))
    if (vm.saidReady) vm.ready()
  }

  #attach(slot: Slot, id: string, tokens: number): void {
    const { maxTokens } = this.rules
    if (tokens < 0 || tokens > maxTokens) return this.#done(slot, anyError)
    const vm = this.#ids.get(id)
    if (vm?.state !== "live" && vm?.state !== "losing") return this.#done(slot, { error: `unknown containerID: ${id}` })
    if (this.#refusedCount(vm, tokens)) return this.#done(slot, anyError)
    slot.client.vm = vm
    this.#done(slot, this.#tokens(vm, tokens))
  }

  #unregister(slot: Slot, id: string): void {
    const vm = this.#ids.get(id)
    const lost = this.#lostIds.get(id)
    const remembered = lost !== undefined && lost.until > this.now ? lost.vm : undefined
    if (vm?.state === "booting" || (vm ?? remembered) === undefined)
      return this.#done(slot, { error: `unknown containerID: ${id}` })
    this.#ids.delete(id)
    this.#lostIds.delete(id)
    const gone = (vm ?? remembered)!
    gone.unregistered = true
    for (const session of gone.sessions) this.#finish(session)
    if (slot.client.vm?.id === id) slot.client.vm = undefined
    this.#done(slot, success)
  }

  /** The agent says something in place of READY, or it. */
  saysFirst(vm: Vm, ready: boolean): void {
    if (vm.state === "booting") vm.ready(ready ? undefined : "failed")
    else vm.saidReady = ready
  }

  /** A channel has ended: nobody finds the VM any more. Where it is ctl, what is under way fails. */
  losing(vm: Vm, ctl: boolean): void {
    if (vm.state === "booting") return vm.ready("failed")
    if (vm.state !== "live") return
    if (ctl) this.#loseCtl(vm)
    vm.state = "losing"
    if (this.#ids.get(vm.id) !== vm) return
    this.#ids.delete(vm.id)
    this.#lostIds.set(vm.id, { vm, until: this.now + this.rules.lostIdTimeout })
  }

  #loseCtl(vm: Vm): void {
    if (vm.ctlLost) return
    vm.ctlLost = true
    vm.resync?.stop()
    vm.resync = undefined
    const turns = vm.current === undefined ? vm.waiting.splice(0) : [vm.current, ...vm.waiting.splice(0)]
    vm.current = undefined
    for (const turn of turns) {
      turn.stop()
      turn.done?.({ reply: "lost" })
    }
  }

  /** Nothing more can be done for the VM but to deliver what it had sent. */
  lost(vm: Vm): void {
    if (vm.state !== "losing") return
    this.#loseCtl(vm)
    vm.state = "lost"
    for (const session of vm.sessions) {
      if (session.forgotten) continue
      session.over ??= "lost"
      session.stdinOver = true
      this.#orphan(session)
      this.#changed(session)
    }
    for (const session of vm.sessions) {
      session.delivering = true
      this.#finish(session)
    }
  }

  /** Everything that a lost VM had sent has been read. */
  drained(vm: Vm): void {
    vm.drained = true
    for (const session of vm.sessions) this.#finish(session)
  }

  /** Whether the VM is gone, and its sockets with it. */
  gone(vm: Vm): boolean {
    if (vm.state === "lost" && vm.drained && vm.sessions.every(({ forgotten }) => forgotten)) vm.state = "gone"
    return vm.state === "gone"
  }

  /** A shim has taken its session's output up to `taken`; the next one would begin with a whole frame. */
  progress(session: Session, taken: number): void {
    session.taken = taken
    session.from = taken === session.stream.length ? taken : session.starts.findLast((start) => start <= taken)!
    this.#finish(session)
  }

  #finish(session: Session): void {
    const { vm } = session
    if (!session.delivering || session.forgotten) return
    const delivered = (vm.drained || session.phase === "idle") && session.taken === session.stream.length
    if (!delivered && (!vm.unregistered || session.shim !== undefined)) return
    const { shim } = session
    this.#free(session, "lost")
    if (shim !== undefined) this.#end(shim)
  }

  /** A session whose process, or VM, has ended is kept for a shim, but not for ever. */
  #orphan(session: Session): void {
    if (session.shim !== undefined || session.forgotten || (session.over ?? session.status) === undefined) return
    session.stopOrphan ??= this.#after(this.rules.orphanTimeout, () => this.#free(session, "closed"))
  }

  #free(session: Session, reason: "closed" | "lost"): void {
    if (session.forgotten) return
    session.stopOrphan?.()
    session.forgotten = true
    this.sessions.delete(session.token)
    session.over ??= reason
    session.shim = undefined
    session.attached = false
    session.stdinOver = true
    this.#changed(session)
  }

  // ctl

  #hyper(slot: Slot, code: number, data: string): void {
    const { client } = slot
    if (client.vm === undefined) return this.#done(slot, { error: "client not attached to a vm" })
    this.#requestFor(slot, client.vm, { code, payload: data })
  }

  /** Sends a command for a client: who leaves withdraws it. */
  #requestFor(
    slot: Slot,
    vm: Vm,
    turn: Pick<Turn, "code" | "payload" | "onWritten" | "onReply">,
    onDone: () => void = () => {}
  ): () => void {
    const { client } = slot
    const cancel = () => {
      client.cancels.delete(cancel)
      withdraw()
    }
    client.cancels.add(cancel)
    const withdraw = this.#request(vm, turn, (reply) => {
      client.cancels.delete(cancel)
      onDone()
      if (reply.reply === "ack") this.#done(slot, { ok: latin(reply.payload) })
      else if (reply.reply === "error") this.#done(slot, { error: refusal(reply.payload) })
      else this.#done(slot, reply.reply === "timeout" ? { error: /^timeout/ } : anyError)
    })
    return cancel
  }

  #request(
    vm: Vm,
    given: Pick<Turn, "code" | "payload" | "onWritten" | "onReply">,
    done: (reply: Reply) => void
  ): () => void {
    const turn: Turn = { ...given, done, stop: () => {} }
    if (vm.ctlLost) {
      done({ reply: "lost" })
      return () => {}
    }
    if (vm.current === undefined) {
      this.#write(vm, turn)
    } else {
      vm.waiting.push(turn)
      turn.stop = this.#after(this.rules.ctlTimeout, () => this.#expire(vm, turn))
    }
    return () => {
      turn.done = undefined
      if (vm.current !== turn) this.#withdraw(vm, turn)
    }
  }

  #withdraw(vm: Vm, turn: Turn): void {
    turn.stop()
    const at = vm.waiting.indexOf(turn)
    if (at >= 0) vm.waiting.splice(at, 1)
  }

  #write(vm: Vm, turn: Turn): void {
    vm.current = turn
    turn.stop()
    turn.stop = this.#after(this.rules.ctlTimeout, () => this.#expire(vm, turn))
    vm.sawNext = false
    turn.onWritten?.()
    vm.commands.push({ code: turn.code, payload: turn.payload })
  }

  #advance(vm: Vm): void {
    if (vm.current !== undefined) return
    const next = vm.waiting.shift()
    if (next !== undefined) this.#write(vm, next)
  }

  #expire(vm: Vm, turn: Turn): void {
    const { done } = turn
    turn.done = undefined
    if (turn === vm.current) {
      const resync: Resync = {
        owed: 1,
        replies: 0,
        lastBare: false,
        first: undefined,
        pause: 1000,
        alone: 0,
        since: this.now,
        stop: () => {}
      }
      vm.resync = resync
      done?.({ reply: "timeout" })
      this.#ping(vm, resync)
    } else {
      this.#withdraw(vm, turn)
      done?.({ reply: "timeout" })
    }
  }

  #ping(vm: Vm, resync: Resync): void {
    resync.replies = 0
    resync.owed++
    vm.commands.push({ code: Code.ping, payload: "" })
    resync.stop = this.#after(resync.pause, () => {
      resync.pause = Math.min(resync.pause * 2, 60_000)
      this.#ping(vm, resync)
    })
  }

  #lateReply(vm: Vm, resync: Resync, ack: boolean, bare: boolean): void {
    resync.owed--
    resync.replies++
    resync.lastBare = bare
    resync.first ??= { ack, bare }
    resync.stop()
    const quiet = Math.max(100, 4 * (this.now - resync.since))
    resync.since = this.now
    if (resync.owed === 0) return this.#judge(vm, resync)
    resync.stop = this.#after(quiet, () => this.#judge(vm, resync))
  }

  #judge(vm: Vm, resync: Resync): void {
    const { first, owed } = resync
    resync.alone = resync.replies === 1 && resync.lastBare ? resync.alone + 1 : 0
    if (owed > 0 && resync.alone < 2) return this.#ping(vm, resync)
    const answered = first !== undefined && (owed === 0 || !first.bare)
    vm.current?.onReply?.(!answered ? "lost" : first.ack ? "ack" : "error")
    vm.resync = undefined
    vm.current = undefined
    this.#advance(vm)
  }

  /** The agent has read a command: only C agents say so. */
  next(vm: Vm): void {
    vm.sawNext = true
    vm.kind = "c"
  }

  /** The agent replies, to whatever is its turn. */
  reply(vm: Vm, ack: boolean, payload: Uint8Array): void {
    if (vm.ctlLost) return
    if (vm.kind === "unknown") vm.kind = vm.sawNext ? "c" : "go"
    vm.sawNext = false
    if (vm.resync !== undefined) return this.#lateReply(vm, vm.resync, ack, ack && payload.length === 0)
    const turn = vm.current
    if (turn === undefined) return
    vm.current = undefined
    turn.stop()
    turn.onReply?.(ack ? "ack" : "error")
    const { done } = turn
    turn.done = undefined
    this.#advance(vm)
    done?.({ reply: ack ? "ack" : "error", payload })
  }

  // starts

  #start(slot: Slot, process: ProcessData, token: string | undefined): void {
    const { client } = slot
    const { vm } = client
    if (vm === undefined) return this.#done(slot, { error: "client not attached to a vm" })
    const session = token === undefined ? undefined : this.sessions.get(token)
    if (token !== undefined && session?.vm !== vm) return this.#done(slot, { error: `unknown token: ${shown(token)}` })
    const stdio = session?.stdio ?? 1
    const numbers = process.terminal ? `"stdio":${stdio}` : `"stdio":${stdio},"stderr":${stdio + 1}`
    const payload = `${process.before}${numbers}${process.inner === "" ? "" : `,${process.inner}`}${process.after}`
    const code = process.init ? Code.newcontainer : Code.execcmd
    const onWritten = () => {
      vm.unnamed ||= process.id === undefined
    }
    if (session === undefined) return void this.#requestFor(slot, vm, { code, payload, onWritten })
    if (session.over !== undefined || session.phase !== "idle" || session.status !== undefined)
      return this.#done(slot, anyError)
    session.phase = "waiting"
    session.process = process
    const withdrawn = () => session.phase === "waiting" && (session.status ?? session.over) !== undefined
    // while it waits for the shim, then for its turn
    let stop: () => void = () => {}
    const notStarted = () => {
      stop()
      client.cancels.delete(notStarted)
      if (session.phase === "waiting") this.#settled(session, false)
    }
    const fail = (outcome: Outcome) => {
      notStarted()
      this.#done(slot, outcome)
    }
    client.cancels.add(notStarted)
    const attend = (inTime: boolean) => {
      stop = () => {}
      if (!inTime) return fail({ error: new RegExp(`^timeout waiting for shim with token ${shown(session.token)}`) })
      if (withdrawn()) return fail(anyError)
      const onWrite = () => {
        onWritten()
        stop()
        client.cancels.delete(notStarted)
        session.phase = "written"
        this.#changed(session)
      }
      const onReply = (reply: string) => this.#settled(session, reply === "ack")
      const withdraw = this.#requestFor(slot, vm, { code, payload, onWritten: onWrite, onReply }, notStarted)
      if (session.phase !== "waiting" || slot.outcome !== undefined) return
      const forget = this.#await(session, Number.POSITIVE_INFINITY, withdrawn, () => {
        withdraw()
        fail(anyError)
      })
      stop = forget
    }
    let attended = false
    const forget = this.#await(
      session,
      this.rules.shimTimeout,
      () => session.attached || withdrawn(),
      (inTime) => {
        attended = true
        attend(inTime)
      }
    )
    if (!attended) stop = forget
  }

  /** What became of the start of a session's process. */
  #settled(session: Session, started: boolean): void {
    session.phase = started ? "started" : "idle"
    if (!started && session.status === undefined) {
      session.ended = false
      session.early = undefined
    }
    this.#changed(session)
    this.#wake(session)
  }

  // shims

  #connectShim(slot: Slot, token: string): void {
    const { client } = slot
    if (client.session !== undefined) return this.#done(slot, anyError)
    client.turnedAway = true
    const claim = () => {
      const session = this.sessions.get(token)
      if (session === undefined) return this.#done(slot, { error: `unknown token: ${shown(token)}` })
      if (session.shim !== undefined) return this.#done(slot, { error: `token already claimed: ${shown(token)}` })
      session.shim = client
      session.stopOrphan?.()
      session.stopOrphan = undefined
      client.session = session
      client.turnedAway = false
      slot.attaches = session
      this.#wakeWaiters(session, false)
      this.#wakeWaiters(session, true)
      this.#done(slot, success)
    }
    const session = this.sessions.get(token)
    if (session?.shim === undefined) return claim()
    // the end of the last shim's connection may be on its way
    client.busy = "claim"
    client.claiming = session
    const cancel = () => {
      client.cancels.delete(cancel)
      forget()
    }
    client.cancels.add(cancel)
    const forget = this.#await(
      session,
      100,
      () => session.shim === undefined,
      () => {
        client.cancels.delete(cancel)
        client.busy = undefined
        client.claiming = undefined
        claim()
        this.#handle(client)
        if (client.leaving) this.#left(client)
      }
    )
  }

  #disconnectShim(slot: Slot): void {
    const { client } = slot
    const { session } = client
    if (session === undefined) return this.#done(slot, { error: "client isn't a shim" })
    this.#free(session, "closed")
    client.goodbye = true
    this.#done(slot, "none")
  }

  #signal(slot: Slot, signal: number, rows: number, columns: number): void {
    const { session } = slot.client
    if (session === undefined) return this.#done(slot, { error: "client isn't a shim" })
    if (signal < 0 || signal > 30) return this.#done(slot, { error: `invalid signal number ${signal}` })
    const winch = signal === 28
    if (winch !== (rows > 0 && columns > 0) || (!winch && rows + columns > 0)) return this.#done(slot, anyError)
    const killing = signal === 9 || signal === 15
    const settled = () =>
      (session.over ?? session.status) !== undefined ||
      session.phase === "started" ||
      (killing && session.phase !== "written")
    this.#await(session, this.rules.processTimeout, settled, (inTime) => {
      if (!inTime || (session.over ?? session.status) !== undefined) return this.#done(slot, anyError)
      if (session.phase !== "started") {
        this.#exit(session, 0)
        return this.#done(slot, success)
      }
      this.#send(slot, session, signal, rows, columns)
    })
  }

  /** Sends a signal, or a size, to a process that has started. */
  #send(slot: Slot, session: Session, signal: number, row: number, column: number): void {
    const { process, vm } = session
    const { container, id, init } = process!
    const winch = signal === 28
    const request = (code: number, payload: object) =>
      this.#request(vm, { code, payload: JSON.stringify(payload) }, (reply) =>
        this.#done(
          slot,
          reply.reply === "ack" ? success : { error: reply.reply === "error" ? refusal(reply.payload) : undefined }
        )
      )
    if (init && !winch) return void request(Code.killcontainer, { container, signal, allProcesses: false })
    this.#askApi(vm, (api) => {
      if (api === undefined) return this.#done(slot, anyError)
      const byProcess = api >= 4244
      if (winch && !byProcess) return void request(Code.winsize, { seq: session.stdio, row, column })
      if (!byProcess || vm.unnamed || id === undefined) return this.#done(slot, anyError)
      if (winch) return void request(Code.winsize, { container, process: id, row, column })
      request(Code.signalprocess, { container, process: id, signal })
    })
  }

  /** The agent's API; asked for once, where nobody else is asking. `undefined` where it does not tell. */
  #askApi(vm: Vm, then: (api: number | undefined) => void): void {
    if (vm.api !== undefined || vm.kind === "go") return then(vm.api ?? 0)
    if (vm.asking !== undefined) return void vm.asking.push(then)
    vm.asking = [then]
    this.#request(vm, { code: Code.version, payload: "" }, (reply) => {
      const bytes = reply.reply === "ack" ? reply.payload : none
      if (reply.reply === "ack" || reply.reply === "error")
        vm.api = bytes.length === 4 ? Buffer.from(bytes).readUInt32BE() : 0
      const asking = vm.asking ?? []
      vm.asking = undefined
      for (const then of asking) then(vm.api)
    })
  }

  // output

  /** The proxy has read bytes of io. */
  output(vm: Vm, bytes: Uint8Array): void {
    let rest: Uint8Array = Uint8Array.from(Buffer.concat([vm.partial, bytes]))
    let straddling = vm.partial.length > 0 // what came in pieces is a run of its own
    let before: number | undefined
    while (rest.length >= 12) {
      const view = new DataView(rest.buffer, rest.byteOffset)
      const sequence = Number(view.getBigUint64(0))
      const length = view.getUint32(8)
      if (rest.length < length) break
      if (sequence !== before) this.#exitAtEnd(vm, before)
      before = sequence
      const session = this.#sessionOf(vm, sequence)
      if (session !== undefined) this.#message(session, sequence === session.stdio, rest.subarray(12, length))
      rest = rest.subarray(length)
      if (straddling) this.#exitAtEnd(vm, sequence)
      straddling = false
    }
    this.#exitAtEnd(vm, before)
    vm.partial = rest
  }

  #sessionOf(vm: Vm, sequence: number): Session | undefined {
    const session = vm.sessions[Math.floor((sequence - 3) / 2)]
    return session?.forgotten === false ? session : undefined
  }

  /** An exit that was told early, without an id, may be that of the process whose output has just ended. */
  #exitAtEnd(vm: Vm, sequence: number | undefined): void {
    const session = sequence === undefined ? undefined : this.#sessionOf(vm, sequence)
    if (session?.ended !== true || session.status !== undefined || session.process?.id !== undefined) return
    const at = vm.exits.findIndex(({ container }) => container === session.process?.container)
    if (at >= 0) this.#exit(session, vm.exits.splice(at, 1)[0]!.status)
  }

  #message(session: Session, stdout: boolean, data: Uint8Array): void {
    if (session.status !== undefined) return
    if (data.length === 0) {
      if (!stdout || session.ended) return
      session.ended = true
      if (session.early !== undefined) this.#exit(session, session.early)
      else this.#changed(session)
      return
    }
    if (session.ended && stdout && data.length === 1) return this.#exit(session, data[0]!)
    session.starts.push(session.stream.length)
    const offset = stdout ? symbolOf.stdout : symbolOf.stderr
    for (const byte of data) session.stream.push(byte + offset)
  }

  #exit(session: Session, status: number): void {
    if (session.status !== undefined) return
    session.ended = true
    session.status = status
    session.starts.push(session.stream.length)
    session.stream.push(status + symbolOf.exit)
    session.stdinOver = true
    this.#orphan(session)
    this.#changed(session)
  }

  /** The agent tells an exit by an event; `undefined` for a process without an id. */
  exitEvent(vm: Vm, container: string, id: string | undefined, status: number): void {
    if (vm.ctlLost) return
    const running = this.#running(vm, container, id)
    const [session] = id === undefined && running.length > 1 ? running.filter(({ ended }) => ended) : running
    if (session !== undefined) {
      if (session.early !== undefined) return
      if (session.ended) this.#exit(session, status)
      else session.early = status
      return
    }
    // it is that of the next of them whose output ends
    vm.exits = vm.exits.filter((exit) => this.#running(vm, exit.container, undefined).length > 0)
    if (vm.exits.filter((exit) => exit.container === container).length < running.length)
      vm.exits.push({ container, status })
  }

  #running(vm: Vm, container: string, id: string | undefined): ReadonlyArray<Session> {
    return vm.sessions.filter(
      ({ forgotten, phase, process, status }) =>
        !forgotten &&
        (phase === "written" || phase === "started") &&
        status === undefined &&
        process!.container === container &&
        process!.id === id
    )
  }

  // stdin

  #feed(session: Session, data: Uint8Array): void {
    if (session.eof !== "none" || session.stdinOver) return
    if (data.length === 0) session.eof = "waiting"
    else for (const byte of data) session.fed.push(byte)
    session.fedAt = this.now
  }

  /** A session may have stdin to send. */
  #wake(session: Session): void {
    if (session.phase !== "started" || session.stdinOver) return
    if (session.sent === session.fed.length && session.eof !== "waiting") return
    session.vm.fedSessions.add(session)
    this.#writeStdin(session.vm)
  }

  /** The agent reads its stdin, or not. */
  agentReads(vm: Vm, reads: boolean): void {
    vm.agentReads = reads
    if (!reads) return
    vm.inWire = false
    this.#writeStdin(vm)
  }

  /**
   * What a C agent may be sent: 512 bytes to a process, and more once four pings, one after another, have been answered. How a
   * Go agent's stdin is cut is told by rules for what it gets; it costs no commands.
   */
  #writeStdin(vm: Vm): void {
    if (vm.writing || vm.kind !== "c") return
    vm.writing = true
    for (const session of vm.fedSessions) {
      if (vm.inWire) break
      vm.fedSessions.delete(session)
      if (this.#takeStdin(session)) {
        vm.inWire = !vm.agentReads
        vm.fedSessions.add(session)
      } else if (!session.stdinOver && session.sent < session.fed.length && session.window === 0) {
        this.#openWindow(session)
      }
    }
    vm.writing = false
  }

  #takeStdin(session: Session): boolean {
    if (session.stdinOver) return false
    session.window = Math.min(session.window, 512)
    const size = Math.min(session.fed.length - session.sent, session.window)
    session.sent += size
    session.window -= size
    const ends = session.eof === "waiting" && session.sent === session.fed.length
    if (ends) session.eof = "sent"
    return size > 0 || ends
  }

  #openWindow(session: Session): void {
    if (session.pinging) return
    session.pinging = true
    let answered = 0
    const ask = () =>
      this.#request(session.vm, { code: Code.ping, payload: "" }, ({ reply }) => {
        if (reply === "lost") return
        if (reply !== "timeout") answered++
        if (answered < 4) return void ask()
        session.pinging = false
        session.window = Number.POSITIVE_INFINITY
        session.vm.fedSessions.add(session)
        this.#writeStdin(session.vm)
      })
    ask()
  }
}

/** How an agent's refusal reaches the client: with its own text, if it gave one. */
const refusal = (text: Uint8Array): RegExp => new RegExp(latin(text).replaceAll(/[.*+?^${}()|[\]\\]/g, String.raw`\$&`))
