/**
 * The daemon and the reference side by side: whatever a client or an agent does, both are told, and what everybody got is
 * compared. When the daemon has read a VM's output tells the reference when that comes; that it does not read is a fault,
 * unless a shim is behind.
 */
import * as CtlMessage from "../../src/domain/CtlMessage.ts"
import * as Frame from "../../src/domain/Frame.ts"
import * as IoMessage from "../../src/domain/IoMessage.ts"
import type { Settings } from "../../src/services/Settings.ts"
import { Daemon, token, url } from "./Daemon.ts"
import { Model, type Response, type Rules, type Said, type Session, symbolOf, type Vm } from "./Model.ts"
import { AgentEnd, type Answer, ClientEnd, latin, type Told } from "./Peers.ts"

/** Somebody got what the reference does not say, or did not get what it says. */
export class Mismatch extends Error {}

const fail = (what: string): never => {
  throw new Mismatch(what)
}

const none = new Uint8Array(0)
const utf8 = new TextEncoder()

/** Waits that no sum of some of them, and of the times that pass, is equal to another. */
const rules: Rules = {
  readyTimeout: 5003,
  ctlTimeout: 17_011,
  shimTimeout: 7013,
  processTimeout: 11_017,
  frameTimeout: 13_019,
  orphanTimeout: 23_021,
  lostIdTimeout: 41_023,
  maxTokens: 4,
  maxVmTokens: 6,
  maxPipelined: 4
}

/**
 * What may wait for one process, in bytes: little in memory, and on disk nothing, little or much. Of stdin at least four messages
 * of the largest size stay in memory, as a Go agent must have no shorter ones between.
 */
const limits: ReadonlyArray<Partial<Settings>> = [
  { outboxLimit: 2048, stdinLimit: 4096, spoolLimit: 1024 * 1024, spoolTotal: 4 * 1024 * 1024 },
  { outboxLimit: 2048, stdinLimit: 4096, spoolLimit: 0, spoolTotal: 0 },
  { outboxLimit: 512, stdinLimit: 4096, spoolLimit: 8 * 1024, spoolTotal: 12 * 1024 },
  { outboxLimit: 4096, stdinLimit: 4096, spoolLimit: 64 * 1024, spoolTotal: 1024 * 1024 }
]

export const nameOf = (session: Session): string => `session ${session.stdio} of ${session.vm.name}`

/** Bytes of output that wait for a session's shims, in frames. */
export const backlog = ({ forgotten, starts, stream, taken }: Session): number =>
  forgotten ? 0 : stream.length - taken + Frame.headerSize * (starts.filter((start) => start >= taken).length + 1)

/** What a disk may have: operations fail, or take until it is mended. */
export type Fault = "read" | "write" | "slow"

/** What is looked at: what the daemon has read of output, also what clients have got; and whether everything is right. */
type Look = "output" | "clients" | "all"

export class World {
  readonly daemon: Daemon
  readonly model: Model
  /** What has happened, in sentences. */
  readonly story: Array<string> = []
  readonly clients: Array<ClientEnd> = []
  readonly agents: Array<AgentEnd> = []
  readonly #broken = new Set<Fault>()

  constructor(settings: number) {
    this.daemon = new Daemon(rules, limits[settings % limits.length]!)
    let count = 0
    this.model = new Model(rules, url, () => token(++count))
  }

  /** Adds a sentence to the story. Follow it with what it tells. */
  tell(sentence: string): void {
    this.story.push(sentence)
  }

  passes(millis: number, look: Look = "all"): void {
    const until = this.model.now + millis
    for (let due = 0; due < until;) {
      due = Math.min(this.model.nextDue(), until)
      this.daemon.clock.advanceTo(due)
      this.model.advanceTo(due)
      this.observe(look)
    }
  }

  // clients

  connect(kind: string): ClientEnd {
    const client = new ClientEnd(`${kind} ${this.clients.length + 1}`)
    this.clients.push(client)
    this.daemon.connect(client.link)
    this.#tellReading()
    return client
  }

  leave(client: ClientEnd): void {
    client.link.leave()
    this.daemon.settle()
    this.model.leaves(client.model)
    this.observe()
  }

  /** Whether the daemon handles what a client says, whatever that has left unread: else what happens when is not certain. */
  isServed({ link, model }: ClientEnd): boolean {
    if (link.ended !== undefined) return false
    const few = model.answers.length < 3 && model.busy === undefined
    if (this.unreadable && model.busy !== undefined) return false
    // its session's output may end it as soon as its claim is answered: before or after more is handled
    if (model.answers.length >= rules.maxPipelined && model.answers.some((slot) => slot.attaches !== undefined))
      return false
    return link.reading || (few && link.pending() <= this.daemon.settings.outboxLimit / 2)
  }

  /** Whether it handles a command: none of its stdin may have to wait for room. */
  mayAsk(client: ClientEnd): boolean {
    const session = client.model.session ?? client.model.claiming
    return this.isServed(client) && (session === undefined || this.hasRoom(session, client.unsent()))
  }

  /** Whether a session has room in memory for as many bytes of stdin. */
  hasRoom({ fed, sent, stdinOver }: Session, bytes: number): boolean {
    return stdinOver || fed.length - sent + bytes <= this.daemon.settings.stdinLimit
  }

  /** The disk has a fault. While it cannot be read, what has come to it does not leave it. */
  breaks(fault: Fault): void {
    this.#broken.add(fault)
    this.#tellReading()
    if (fault === "slow") this.daemon.spool.hold()
    else this.daemon.spool.break(fault, { passing: true })
  }

  /** The disk has no fault any more, and a second passes. */
  mends(): void {
    this.daemon.spool.release()
    this.daemon.spool.break("read", undefined)
    this.daemon.spool.break("write", undefined)
    this.passes(spoolRetry, "clients")
    this.#broken.clear()
    this.#tellReading()
    this.observe()
  }

  get unreadable(): boolean {
    return this.#broken.has("read") || this.#broken.has("slow")
  }

  /** Bytes that may wait for each process before a VM's output pauses: what the spool has room for, in any case. */
  get #roomy(): number {
    const { outboxLimit, spoolLimit, spoolTotal } = this.daemon.settings
    return this.#broken.size > 0 ? outboxLimit : Math.max(outboxLimit, Math.min(spoolLimit / 4, spoolTotal / 16))
  }

  /**
   * A client says a command, with this payload, and sends it in `cut` pieces; or holds it, to send it with what it says next.
   */
  ask(client: ClientEnd, said: Said, payload: unknown, cut = 0, held = false): void {
    const text = typeof payload === "string" ? payload : JSON.stringify(payload)
    const opcode =
      said.kind === "refused"
        ? said.command
        : said.kind === "start"
          ? Frame.Command.Hyper
          : Frame.Command[said.kind as keyof typeof Frame.Command]
    client.say(
      said,
      Frame.encode({ type: Frame.FrameType.command, opcode, inError: false, payload: utf8.encode(text) })
    )
    if (!held || !this.mayHold(client)) this.send(client, cut)
  }

  /** Whether a client may hold what it says: where its output does not reach it at once, how much of it is handled is not certain. */
  mayHold({ link }: ClientEnd): boolean {
    return link.reading && !this.unreadable
  }

  /** A client says a frame of a stream. */
  stream(client: ClientEnd, said: Said, opcode: number, payload: Uint8Array, cut = 0, held = false): void {
    client.say(said, Frame.encode({ type: Frame.FrameType.stream, opcode, inError: false, payload }))
    if (!held || !this.mayHold(client)) this.send(client, cut)
  }

  /**
   * A client sends what it has said, in `cut` pieces, but for the last `but` bytes. Frame by frame, where output waits that the
   * daemon has not read: it may read it between two.
   */
  send(client: ClientEnd, cut = 0, but = 0): void {
    const piece = Math.max(1, Math.ceil((client.unsent() - but) / Math.max(1, cut)))
    const pauses = () => this.agents.some(({ io }) => io.unread() > 0)
    for (let left = client.unsent(); left > but && client.link.ended === undefined; left = client.unsent()) {
      const size = Math.min(piece, left - but, pauses() ? client.unsentOfFirst() : left)
      const { chunk, heard, midFrame } = client.next(size)
      client.link.write(chunk)
      this.daemon.settle()
      this.model.says(client.model, heard, midFrame)
      this.observe()
    }
  }

  /** From now on a client takes `bytes` more. */
  takes(client: ClientEnd, bytes: number): void {
    client.link.takes(bytes)
    this.#tellReading()
    this.observe()
  }

  #tellReading() {
    for (const { link, model } of this.clients) model.reading = link.reading && !this.unreadable
  }

  // agents

  /** Starts a VM, that RegisterVM may dial or not. */
  boot(model: Vm, reachable: boolean): AgentEnd {
    const agent = new AgentEnd(model)
    this.agents.push(agent)
    if (reachable) {
      this.daemon.doors.set(agent.ctl.peer, agent.ctl)
      this.daemon.doors.set(agent.io.peer, agent.io)
    }
    return agent
  }

  /** An agent says READY, or ACK in its place. */
  saysFirst(agent: AgentEnd, ready: boolean): void {
    this.#say(agent, ready ? CtlMessage.Code.ready : CtlMessage.Code.ack, none)
    this.model.saysFirst(agent.model, ready)
    this.observe()
  }

  saysNext(agent: AgentEnd): void {
    this.#say(agent, CtlMessage.Code.next, Uint8Array.of(0, 0, 0, 8))
    this.model.next(agent.model)
  }

  /** An agent replies to its oldest command that it has not replied to; or to none. */
  reply(agent: AgentEnd, ack: boolean, text: string): void {
    const { model } = agent
    const command = agent.commands[agent.answered]
    const api = Uint8Array.of(0, 0, 16, model.nature === "event" ? 0x94 : 0x93)
    const payload = ack && command?.code === CtlMessage.Code.version ? api : utf8.encode(text)
    if (command !== undefined) agent.answered++
    if (model.nature !== "go") this.saysNext(agent)
    this.#say(agent, ack ? CtlMessage.Code.ack : CtlMessage.Code.error, payload)
    this.model.reply(model, ack, payload)
    this.observe()
  }

  exitEvent({ ctl, model }: AgentEnd, container: string, id: string | undefined, status: number): void {
    const event = { container, process: id ?? "(null)", event: "finished", status }
    const payload = utf8.encode(JSON.stringify(event))
    ctl.write(CtlMessage.encode(CtlMessage.Code.processEvent, payload))
    this.daemon.settle()
    this.model.exitEvent(model, container, id, status)
    this.observe()
  }

  #say(agent: AgentEnd, code: number, payload: Uint8Array): void {
    agent.ctl.write(CtlMessage.encode(code, payload))
    this.daemon.settle()
  }

  /** An agent sends what it has held on io, in `cut` pieces. */
  output(agent: AgentEnd, cut: number): void {
    const bytes = agent.release()
    const piece = Math.max(1, Math.ceil(bytes.length / Math.max(1, cut)))
    for (let at = 0; at < bytes.length; at += piece) {
      agent.io.write(bytes.slice(at, at + piece))
      this.observe()
    }
  }

  /** An agent reads its stdin, or does not. */
  reads({ io, model }: AgentEnd, reads: boolean): void {
    io.takes(reads ? Number.POSITIVE_INFINITY : 0)
    this.daemon.settle()
    this.model.agentReads(model, reads)
    this.observe()
  }

  /** A VM is lost: which of its channels end, and then as much time as it takes to notice that nothing follows. */
  lose(agent: AgentEnd, channels: "both" | "ctl" | "io"): void {
    const { ctl, io, model } = agent
    const { state } = model
    this.output(agent, 0)
    // a claim would run out while the daemon waits for what follows: who is first is not certain
    if (channels !== "both")
      while (this.clients.some((client) => client.model.busy === "claim")) this.passes(claimGrace)
    if (channels !== "io") ctl.leave()
    if (channels !== "ctl") io.leave()
    this.daemon.settle()
    this.model.losing(model, channels !== "io")
    if (state === "live") {
      this.#pull(agent)
      if (channels === "io") this.passes(lastWords, "output")
      this.model.lost(model)
      if (channels === "ctl") this.passes(2 * lastWords + 1, "output")
      this.#pull(agent)
      this.model.drained(model)
    }
    this.observe()
  }

  // comparison

  /** Lets the daemon do what it has to do, and compares what everybody has got. */
  observe(look: Look = "all"): void {
    this.daemon.settle()
    for (const agent of this.agents) this.#pull(agent)
    if (look === "output") return
    // what a shim had taken, before the next one goes on with it
    for (const client of this.clients) {
      const { link, model } = client
      if (!model.ended || model.released || link.ended !== "proxy") continue
      this.#read(client)
      this.model.closed(model)
    }
    for (const client of this.clients) this.#read(client)
    if (look === "all") this.#compare()
  }

  #pull(agent: AgentEnd) {
    for (const chunk of agent.io.pulled()) this.model.output(agent.model, chunk)
  }

  #read(client: ClientEnd) {
    const { link, model } = client
    if (!link.fresh) return
    const symbols = client.read()
    if (symbols.length === 0) return
    const { session, start } = model
    if (session === undefined || start === undefined) return fail(`${model.name} got output before it was a shim`)
    for (const symbol of symbols) {
      const at = start + client.got++
      const expected = session.stream[at]
      if (symbol !== expected)
        fail(
          `${model.name} got ${symbolName(symbol)} in place of ${symbolName(expected)}, symbol ${at} of ${nameOf(session)}`
        )
    }
    if (session.shim === model) this.model.progress(session, start + client.got)
  }

  #compare() {
    for (const client of this.clients) this.#compareClient(client)
    for (const agent of this.agents) this.#compareAgent(agent)
    for (const { model } of this.agents)
      for (const session of model.sessions)
        if (this.daemon.knows(session.token) === session.forgotten)
          fail(`${nameOf(session)} is ${session.forgotten ? "still there" : "forgotten"}`)
    if (this.daemon.leaks.length > 0) fail(`the log shows a token: ${String(this.daemon.leaks[0])}`)
  }

  #compareClient(client: ClientEnd) {
    const { answers, link, model } = client
    for (; client.checked < answers.length; client.checked++) {
      const got = answers[client.checked]!
      const expected = model.responses[client.checked]
      if (expected === undefined || !fits(got, expected))
        fail(`${model.name} got the response ${tellAnswer(got)} in place of ${tellResponse(expected)}`)
    }
    if (link.ended === "peer") return
    if (link.ended === "proxy" && !model.ended) fail(`${model.name}'s connection was ended`)
    if (!link.reading) return
    if (answers.length < model.responses.length)
      fail(`${model.name} got no response ${tellResponse(model.responses[answers.length])}`)
    if (link.ended === undefined && model.ended) fail(`${model.name}'s connection was not ended`)
    const { session, start } = model
    if (session?.shim !== model || !session.attached || start === undefined) return
    const missing = session.stream.length - start - client.got
    if (missing > 0 && !this.unreadable)
      fail(`${model.name} did not get the last ${missing} symbols of ${nameOf(session)}`)
  }

  #compareAgent(agent: AgentEnd) {
    const { commands, ctl, io, model } = agent
    for (const written of ctl.offers())
      if (written.length < CtlMessage.headerSize || Buffer.from(written).readUInt32BE(4) !== written.length)
        fail(`${model.name}: what was written to ctl at once is not one message`)
    if (ctl.fresh) agent.readCommands()
    for (; agent.checked < commands.length; agent.checked++) {
      const got = commands[agent.checked]!
      const expected = model.commands[agent.checked]
      if (got.code !== expected?.code || got.payload !== expected.payload)
        fail(`${model.name}'s agent got ${tellCommand(got)} in place of ${tellCommand(expected)}`)
    }
    if (commands.length < model.commands.length && ctl.ended === undefined)
      fail(`${model.name}'s agent did not get ${tellCommand(model.commands[commands.length])}`)
    const gone = this.model.gone(model)
    if (model.state !== "new" && (ctl.released !== gone || io.released !== gone))
      fail(`${model.name}'s connections are ${gone ? "still open" : "closed"}`)
    this.#compareStdin(agent)
    if (io.unread() > 0 && io.ended === undefined && model.sessions.every((one) => backlog(one) <= this.#roomy))
      fail(`${model.name}'s output is not read, and nobody is behind`)
  }

  #compareStdin(agent: AgentEnd) {
    const { io, model } = agent
    for (const written of io.offers())
      if (written.length > largestWrite || wholeEnd(written) !== written.length)
        fail(`${model.name}: ${written.length} bytes written to io at once are too many, or no messages`)
    const bytes = io.taken()
    const most = model.kind === "c" ? 512 : 1012
    for (let at = 0; at < bytes.length; at += IoMessage.lengthAt(bytes, at)) {
      const sequence = IoMessage.sequenceAt(bytes, at)
      const session = model.sessions.find(({ stdio }) => stdio === sequence)
      if (session?.phase !== "started")
        return fail(`${model.name}'s agent got stdin of ${sequence}, which has not started`)
      const fed = agent.fed(sequence)
      const data = bytes.subarray(at + IoMessage.headerSize, at + IoMessage.lengthAt(bytes, at))
      if (fed.ended) fail(`${nameOf(session)} got ${data.length} bytes of stdin behind its end`)
      if (data.length > most) fail(`${nameOf(session)} got ${data.length} bytes of stdin in one message`)
      for (const byte of data)
        if (byte !== session.fed[fed.bytes++]) fail(`byte ${fed.bytes} of the stdin of ${nameOf(session)} is wrong`)
      fed.last = data.length
      fed.at = this.model.now
      fed.ended = data.length === 0
      if (fed.ended && (session.eof === "none" || fed.bytes < session.fed.length))
        fail(`the stdin of ${nameOf(session)} ended after ${fed.bytes} of ${session.fed.length} bytes`)
    }
    if (!model.agentReads || io.ended !== undefined) return
    for (const session of model.sessions) this.#compareFed(agent, session)
  }

  /** Whether an agent that reads has got all stdin that it may have. */
  #compareFed(agent: AgentEnd, session: Session) {
    const { at, bytes, ended, last } = agent.fed(session.stdio)
    const { eof, fed, sent } = session
    if (agent.model.kind === "c") {
      if (bytes !== sent || ended !== (eof === "sent"))
        fail(`${nameOf(session)} got ${tellStdin(bytes, ended)}, not ${tellStdin(sent, eof === "sent")}`)
      return
    }
    session.sent = bytes
    if (session.phase !== "started" || session.stdinOver) return
    const left = fed.length - bytes
    // the rest of a large input may wait a moment for more
    const tail = last === 1012 && left < 1012 && eof === "none" && this.model.now - Math.max(at, session.fedAt) <= 40
    if (left > 0 ? !tail : (eof !== "none") !== ended)
      fail(`${nameOf(session)} got ${tellStdin(bytes, ended)}, not ${tellStdin(fed.length, eof !== "none")}`)
  }

  /** Everybody leaves, every VM is lost, and nothing is left. */
  end(): void {
    this.tell("everybody leaves, every VM is lost, and time passes")
    this.mends()
    for (const client of this.clients) this.leave(client)
    for (const agent of this.agents)
      if (agent.model.state === "live" || agent.model.state === "booting") this.lose(agent, "both")
    this.passes(longest)
    if (this.daemon.sessions() > 0) fail(`${this.daemon.sessions()} sessions are left`)
    if (this.daemon.spool.files.size > 0) fail(`${this.daemon.spool.files.size} files of the spool are left`)
    const { fibers, sleeping } = this.daemon.busy()
    if (fibers > 0) fail(`${fibers} fibers are left, ${sleeping} of them sleep`)
  }
}

/** Millis that the daemon waits for a second channel's end, and for more of a lost VM's output. */
const lastWords = 100

/** Millis after which what the spool could not do is tried again, and one more. */
const spoolRetry = 1001

/** Millis that a claim waits for the end of an earlier shim's connection, and one more. */
const claimGrace = 101

/** Millis after which no wait may be left: a cancelled deadline's fiber sleeps on until it would have come due. */
const longest = 24 * 60 * 60 * 1000

/** Most bytes written to an agent's io at once. */
const largestWrite = 32 * 1024

const wholeEnd = (messages: Uint8Array): number => {
  let end = 0
  while (end + IoMessage.headerSize <= messages.length) end += IoMessage.lengthAt(messages, end)
  return end
}

const fits = ({ command, inError, text }: Answer, { command: expected, outcome }: Response): boolean => {
  if (command !== expected || inError !== "error" in outcome) return false
  const wanted = "error" in outcome ? outcome.error : outcome.ok
  return wanted === undefined || (typeof wanted === "string" ? utf8Text(wanted, inError) === text : wanted.test(text))
}

const utf8Text = (text: string, inError: boolean): string => (inError ? text : latin(utf8.encode(text)))

const symbolName = (symbol: number | undefined): string => {
  if (symbol === undefined) return "nothing"
  if (symbol >= symbolOf.exit) return `the exit status ${symbol - symbolOf.exit}`
  return symbol >= symbolOf.stderr ? `byte ${symbol - symbolOf.stderr} of stderr` : `byte ${symbol} of stdout`
}

const commandName = (command: Frame.Command): string =>
  Object.entries(Frame.Command).find(([, opcode]) => opcode === command)![0]

const tellAnswer = ({ command, inError, text }: Answer): string =>
  `to ${commandName(command)}: ${inError ? "error " : ""}${JSON.stringify(text)}`

const tellResponse = (response: Response | undefined): string => {
  if (response === undefined) return "none"
  const { command, outcome } = response
  const text = "error" in outcome ? `error ${String(outcome.error ?? "of any text")}` : JSON.stringify(outcome.ok)
  return `to ${commandName(command)}: ${text}`
}

const tellCommand = (command: Told | undefined): string =>
  command === undefined ? "nothing" : `the command ${command.code} ${command.payload}`

const tellStdin = (bytes: number, ended: boolean): string => `${bytes} bytes of stdin${ended ? " and its end" : ""}`
