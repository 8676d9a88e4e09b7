/** Operations, carried out where they make sense. */
import * as Frame from "../../src/domain/Frame.ts"
import * as CtlMessage from "../../src/domain/CtlMessage.ts"
import { type Nature, type Session, Vm } from "./Model.ts"
import type { Kind, Operation } from "./Operation.ts"
import type { AgentEnd, ClientEnd } from "./Peers.ts"
import { backlog, nameOf, type World } from "./World.ts"

const sizes = [1, 2, 3, 12, 13, 100, 499, 500, 511, 512, 513, 1011, 1012, 1013, 1500, 4000]
const times = [1, 19, 21, 41, 99, 101, 251, 997, 3001, 7019, 11_027, 17_029, 29_033, 61_043, 125_053, 200_063]
const signals = [9, 15, 10, 28, 1, 9, 15, 10, 28, 30, 31, 28, 15, 9, 2, 10]
const natures: ReadonlyArray<Nature> = ["c", "go", "event", "c"]
const channels = ["both", "ctl", "io"] as const
const faults = ["write", "read", "slow"] as const
const none = new Uint8Array(0)
const utf8 = new TextEncoder()
const logEntry = utf8.encode(`{"source":"shim","level":"debug","msg":"hello"}`)

/** Bytes that tell where they stand. */
const patterned = (from: number, length: number): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (from + i) * 167 + ((from + i) >> 8) * 13)

/** Runs one life's operations. */
export class Performer {
  readonly world: World
  /** Two runtimes, then four shims; and two VMs: the last that each was. */
  readonly #clients: Array<ClientEnd | undefined> = []
  readonly #agents: Array<AgentEnd | undefined> = []
  #count = 0 // of what is told apart by a number
  #bytes = 0 // of all streams

  constructor(world: World) {
    this.world = world
  }

  perform(operation: Operation): void {
    this.#operations[operation.kind](operation)
  }

  readonly #operations: { readonly [_ in Kind]: (operation: Operation) => void } = {
    "time passes": ({ size }) => {
      this.world.tell(`${times[size]!} ms pass`)
      this.world.passes(times[size]!)
    },
    "a VM is registered": ({ variant, which, who }) => this.#register(who, which, variant),
    "the agent says what it says first": ({ variant, which }) => {
      const agent = this.#agent(which)
      if (agent?.model.state !== "booting") return
      const ready = variant < 12
      this.world.tell(`${agent.model.name}'s agent says ${ready ? "READY" : "ACK in place of READY"}`)
      this.world.saysFirst(agent, ready)
    },
    "a VM is unregistered": ({ cut, held, which, who }) => {
      const client = this.#anyClient(who)
      const id = idOf(which)
      if (!this.world.mayAsk(client)) return
      this.world.tell(`${client.model.name} unregisters VM ${id}${this.#later(client, held)}`)
      this.world.ask(client, { kind: "UnregisterVM", id }, { containerId: id }, cut, held)
    },
    "a VM is lost": ({ variant, which }) => {
      const agent = this.#agent(which)
      if (agent === undefined) return
      // while nobody reads io, its end is seen a moment later: when is not certain
      const pauses = agent.model.sessions.some(
        (session) => backlog(session) > this.world.daemon.settings.outboxLimit / 2
      )
      const ended = pauses ? "both" : channels[variant % 3]!
      this.world.tell(`${agent.model.name} is lost (${ended})`)
      this.world.lose(agent, ended)
    },
    "a client attaches": ({ cut, held, variant, which, who }) => {
      const tokens = variant < 12 ? variant % 3 : variant === 12 ? -1 : 5
      this.#attach(this.#anyClient(who), idOf(which), tokens, cut, held)
    },
    "a process starts": (operation) => this.#startAll(operation),
    "the agent answers all": ({ which }) => {
      const agent = this.#agent(which)
      if (agent !== undefined) this.#answerAll(agent)
    },
    "a command": ({ cut, held, variant, which, who }) => {
      const client = this.#attached(who, which)
      if (!this.world.mayAsk(client)) return
      const data = variant === 0 ? "" : `{"n": ${++this.#count},  "é": 9007199254740993}`
      const payload = `{"hyperName":"readfile"${data === "" ? "" : `,"data":${data}`},"tokens":null}`
      this.world.tell(
        `${client.model.name} sends readfile${data === "" ? "" : ` ${this.#count}`}${this.#later(client, held)}`
      )
      const said = {
        kind: "Hyper",
        code: CtlMessage.Code.readfile,
        data: Buffer.from(data).toString("latin1")
      } as const
      this.world.ask(client, said, payload, cut, held)
    },
    "a bad command": (operation) => this.#badCommand(operation),
    "a start": ({ cut, held, size, variant, which, who }) => {
      const sessions = this.#agent(which)?.model.sessions ?? []
      const idle = sessions.filter(({ forgotten, phase }) => !forgotten && phase === "idle")
      const session = size < 12 && idle.length > 0 ? idle[size % idle.length] : this.#session(which, size)
      if (size === 15 || session !== undefined)
        this.#start(this.#attached(who, which), size === 15 ? undefined : session, variant, cut, held)
    },
    "a bad start": (operation) => this.#badStart(operation),
    "a claim": ({ cut, held, size, which, who }) => {
      const session = this.#session(which, size)
      if (session !== undefined) this.#claim(who < 6 ? this.#newShim(who) : this.#shim(who), session, cut, held)
    },
    "a bad claim": ({ cut, held, who }) => {
      const client = this.#shim(who)
      if (!this.world.mayAsk(client)) return
      const token = "t".repeat(44)
      this.world.tell(`${client.model.name} claims an unknown token${this.#later(client, held)}`)
      this.world.ask(client, { kind: "ConnectShim", token }, { token }, cut, held)
    },
    "a shim comes back": ({ cut, held, size, who }) => {
      const shim = this.#sessionShim(who)
      const { session } = shim.model
      if (session === undefined || shim.link.ended !== undefined) return
      this.world.tell(`${shim.model.name} leaves`)
      this.world.leave(shim)
      this.#claim(this.#newShim(size), session, cut, held)
    },
    goodbye: ({ cut, held, who }) => {
      const client = this.#sessionShim(who)
      if (!this.world.mayAsk(client)) return
      this.world.tell(`${client.model.name} says goodbye${this.#later(client, held)}`)
      this.world.ask(client, { kind: "DisconnectShim" }, "", cut, held)
    },
    "a signal": ({ cut, held, size, variant, who }) => {
      const client = this.#sessionShim(who)
      if (!this.world.mayAsk(client)) return
      const signal = signals[size]!
      const sized = (signal === 28) !== (variant === 0)
      const [rows, columns] = sized ? [24 + variant, 80] : [0, 0]
      this.world.tell(
        `${client.model.name} sends signal ${signal}${sized ? ` with ${rows} rows` : ""}${this.#later(client, held)}`
      )
      const payload = { signalNumber: signal, ...(sized && { rows, columns }) }
      this.world.ask(client, { kind: "Signal", signal, rows, columns }, payload, cut, held)
    },
    stdin: ({ cut, held, size, who }) => {
      const data = this.#pattern(sizes[size]!)
      this.#stdin(this.#sessionShim(who), data, cut, held)
    },
    "the end of stdin": ({ cut, held, who }) => this.#stdin(this.#sessionShim(who), none, cut, held),
    "a client leaves": ({ who }) => {
      const client = this.#connected(who)
      if (client === undefined) return
      this.world.tell(`${client.model.name} leaves`)
      this.world.leave(client)
    },
    "a client reads little": ({ size, variant, who }) => {
      const client = who < 2 ? this.#connected(who) : this.#sessionShim(who)
      if (client?.link.ended !== undefined || client === undefined || !client.link.reading || client.unsent() > 0)
        return
      const bytes = variant < 6 ? 0 : sizes[size]!
      this.world.tell(`${client.model.name} reads ${bytes} bytes and then no more`)
      this.world.takes(client, bytes)
    },
    "a client reads again": ({ who }) => {
      const client = this.#connected(who)
      if (client === undefined || client.link.reading) return
      this.world.tell(`${client.model.name} reads again`)
      this.world.takes(client, Number.POSITIVE_INFINITY)
    },
    "a log entry": ({ cut, held, who }) => {
      const client = this.#anyClient(who)
      if (!this.world.isServed(client)) return
      this.world.tell(`${client.model.name} sends a log entry${this.#later(client, held)}`)
      this.world.stream(client, { kind: "log" }, Frame.StreamKind.log, logEntry, cut, held)
    },
    "half a frame": ({ variant, who }) => {
      const client = this.#anyClient(who)
      if (!this.world.mayAsk(client)) return
      this.world.tell(`${client.model.name} sends a log entry but for its last ${variant + 1} bytes`)
      this.world.stream(client, { kind: "log" }, Frame.StreamKind.log, logEntry, 0, true)
      this.world.send(client, 0, variant + 1)
    },
    nonsense: ({ held, who }) => {
      const client = this.#anyClient(who)
      if (!this.world.mayAsk(client)) return
      this.world.tell(`${client.model.name} sends nonsense${this.#later(client, held)}`)
      client.say({ kind: "garbage" }, new Uint8Array(12).fill(0xff))
      if (!held || !this.world.mayHold(client)) this.world.send(client)
    },
    "an ACK": ({ variant, which }) => {
      const agent = this.#agent(which)
      if (agent === undefined || agent.model.state === "booting") return
      // to nothing, if seldom
      if (agent.answered === agent.commands.length && variant > 0) return
      this.#reply(agent, true, variant < 8 ? "" : `{"answer":${++this.#count}}`)
    },
    "an ERROR": ({ variant, which }) => {
      const agent = this.#agent(which)
      if (agent === undefined || agent.answered === agent.commands.length) return
      this.#reply(agent, false, variant < 8 ? "no such thing" : "")
    },
    NEXT: ({ which }) => {
      const agent = this.#agent(which)
      if (agent === undefined || agent.model.nature === "go" || agent.model.state === "booting") return
      this.world.tell(`${agent.model.name}'s agent says NEXT`)
      this.world.saysNext(agent)
      this.world.observe()
    },
    stdout: ({ cut, held, size, variant, which, who }) => {
      const session = this.#started(which, size)
      if (session === undefined) return
      const data = this.#pattern(sizes[variant]! * (who === 7 ? 4 : 1))
      this.#output(session, [[0, data]], `writes ${data.length} bytes to stdout`, cut, held)
    },
    stderr: ({ cut, held, size, variant, which }) => {
      const session = this.#started(which, size)
      if (session === undefined) return
      const data = this.#pattern(sizes[variant]!)
      this.#output(session, [[1, data]], `writes ${data.length} bytes to stderr`, cut, held)
    },
    "much output": ({ cut, held, size, variant, which, who }) => {
      const session = this.#started(which, size)
      if (session === undefined) return
      const length = 200 * (variant + 1)
      const messages = Array.from({ length: who + 1 }, (_, at) => [at % 2, this.#pattern(length)] as const)
      this.#output(session, messages, `writes ${who + 1} times ${length} bytes, to stdout and stderr`, cut, held)
    },
    "the end of a stream": ({ cut, held, size, variant, which }) => {
      const session = this.#started(which, size)
      if (session === undefined) return
      const stderr = variant > 12
      this.#output(session, [[stderr ? 1 : 0, none]], `ends its ${stderr ? "stderr" : "stdout"}`, cut, held)
    },
    "one byte": ({ cut, held, size, variant, which }) => {
      const session = this.#started(which, size)
      if (session === undefined) return
      this.#output(session, [[0, Uint8Array.of(variant)]], `has the byte ${variant} on stdio`, cut, held)
    },
    "an exit": ({ cut, held, size, variant, which }) => {
      const session = this.#started(which, size)
      if (session === undefined) return
      const messages = [
        [0, none],
        [0, Uint8Array.of(variant)]
      ] as const
      this.#output(session, messages, `ends with status ${variant}`, cut, held)
    },
    "an exit event": ({ size, variant, which }) => {
      const session = this.#started(which, size)
      const agent = this.#agent(which)
      if (session?.process === undefined || agent === undefined) return
      const { container, id } = session.process
      this.world.tell(
        `${agent.model.name}'s agent tells that ${id ?? "one without an id"} of ${container} ended with status ${variant}`
      )
      this.world.exitEvent(agent, container, id, variant)
    },
    "stray output": ({ cut, variant, which }) => {
      const agent = this.#agent(which)
      if (agent === undefined || agent.model.state === "booting") return
      const sequence = [1, 2, 0, 999][variant % 4]!
      this.world.tell(`${agent.model.name}'s agent sends output of sequence ${sequence}`)
      agent.hold(sequence, utf8.encode("nobody's"))
      this.world.output(agent, cut)
    },
    "the agent stops reading": ({ which }) => this.#read(this.#agent(which), false),
    "the agent reads again": ({ which }) => this.#read(this.#agent(which), true),
    "the disk fails": ({ variant }) => {
      const fault = faults[variant % 3]!
      // what the reference says of stdin is exact: none of it may be on disk then
      const spooled = (agent: AgentEnd) => agent.model.sessions.some((session) => !this.world.hasRoom(session, 0))
      const waits = (client: ClientEnd) => client.unsent() > 0 || client.model.busy !== undefined
      if (fault !== "write" && (this.world.agents.some(spooled) || this.world.clients.some(waits))) return
      this.world.tell(`the disk ${fault === "slow" ? "is slow" : `cannot ${fault}`}`)
      this.world.breaks(fault)
    },
    "the disk is mended": () => {
      this.world.tell("the disk is mended, a second passes")
      this.world.mends()
    }
  }

  // who

  /** The client of a slot; a new one where the last has gone. */
  #client(slot: number): ClientEnd {
    const known = this.#clients[slot]
    if (known?.link.ended === undefined && known?.model.ended === false) return known
    if (known !== undefined) this.world.leave(known)
    return (this.#clients[slot] = this.world.connect(slot < 2 ? "runtime" : "shim"))
  }

  #runtime(who: number): ClientEnd {
    return this.#client(who % 2)
  }

  #shim(who: number): ClientEnd {
    return this.#client(2 + (who % 4))
  }

  /** A shim that has a session, if there is one. */
  #sessionShim(who: number): ClientEnd {
    const shims = this.#clients
      .slice(2)
      .filter((one) => one?.model.session !== undefined && one.link.ended === undefined)
    return (who < 7 ? shims[who % Math.max(1, shims.length)] : undefined) ?? this.#shim(who)
  }

  /** A shim that has none, if there can be one. */
  #newShim(who: number): ClientEnd {
    const slots = [who, who + 1, who + 2, who + 3].map((slot) => 2 + (slot % 4))
    return this.#client(slots.find((slot) => this.#clients[slot]?.model.session === undefined) ?? slots[0]!)
  }

  #anyClient(who: number): ClientEnd {
    return who < 6 ? this.#runtime(who) : this.#shim(who)
  }

  /** A runtime that is attached, but for a few. */
  #attached(who: number, which: number): ClientEnd {
    const client = this.#anyClient(who)
    if (who > 0 && client.model.vm === undefined && this.#agent(which) !== undefined)
      this.#attach(client, idOf(which), 0, 0, false)
    return client
  }

  /** A client that has not left. */
  #connected(who: number): ClientEnd | undefined {
    const client = this.#clients[who % 6]
    return client?.link.ended === undefined ? client : undefined
  }

  /** The agent of a VM that has not been lost. */
  #agent(which: number): AgentEnd | undefined {
    const agent = this.#agents[slotOf(which)]
    return agent?.model.state === "booting" || agent?.model.state === "live" ? agent : undefined
  }

  /** A session of a slot's last VM, also one that has ended. */
  #session(which: number, index: number): Session | undefined {
    const sessions = this.#agents[slotOf(which)]?.model.sessions ?? []
    return sessions[index % Math.max(1, sessions.length)]
  }

  /** A session whose process the agent has heard of; often one whose shim is away, or does not read. */
  #started(which: number, index: number): Session | undefined {
    const sessions = this.#agent(which)?.model.sessions ?? []
    const started = sessions.filter(({ phase }) => phase === "written" || phase === "started")
    const behind = started.filter(({ forgotten, shim }) => !forgotten && shim?.reading !== true)
    const among = index < 8 && behind.length > 0 ? behind : started
    return among[index % Math.max(1, among.length)]
  }

  #pattern(length: number): Uint8Array {
    const data = patterned(this.#bytes, length)
    this.#bytes += length
    return data
  }

  // what

  #later(client: ClientEnd, held: boolean): string {
    return inOneGo(held && this.world.mayHold(client))
  }

  #register(who: number, which: number, variant: number) {
    const client = this.#runtime(who)
    const slot = slotOf(which)
    // a second one of the same id, if seldom
    if (!this.world.mayAsk(client) || (this.#agent(which) !== undefined && variant < 14)) return
    const id = idOf(which)
    const vm = new Vm(id, `VM ${id}${this.world.agents.length + 1}`, natures[variant % 4]!)
    const reachable = variant !== 11
    const ready = variant % 8 < 6
    const tokens = variant % 3
    const how = reachable ? (ready ? "" : ", which is not ready yet") : ", which cannot be dialled"
    this.world.tell(`${client.model.name} registers ${vm.name} (${vm.nature}) for ${tokens} tokens${how}`)
    const agent = this.world.boot(vm, reachable)
    if (ready) this.world.saysFirst(agent, true)
    const sockets = { ctlSerial: agent.ctl.peer, ioSerial: agent.io.peer }
    const payload = { containerId: id, ...sockets, numIOStreams: tokens }
    this.world.ask(client, { kind: "RegisterVM", vm, reachable, tokens }, payload)
    if (vm.state === "booting" || vm.state === "live") this.#agents[slot] = agent
  }

  #attach(client: ClientEnd, id: string, tokens: number, cut: number, held: boolean) {
    if (!this.world.mayAsk(client)) return
    this.world.tell(`${client.model.name} attaches to VM ${id} for ${tokens} tokens${this.#later(client, held)}`)
    const payload = { containerId: id, numIOStreams: tokens }
    this.world.ask(client, { kind: "AttachVM", id, tokens }, payload, cut, held)
  }

  /** All that it takes to have a process run. */
  #startAll({ size, variant, which, who }: Operation) {
    if (this.#agent(which) === undefined) this.#register(who, which, variant % 3)
    const agent = this.#agent(which)
    const runtime = this.#runtime(who)
    const shim = this.#newShim(size)
    if (agent?.model.state !== "live") return
    const free = () =>
      agent.model.sessions.find(
        ({ forgotten, phase, shim, status }) =>
          !forgotten && phase === "idle" && shim === undefined && status === undefined
      )
    if (runtime.model.vm !== agent.model || free() === undefined) this.#attach(runtime, agent.model.id, 1, 0, false)
    const session = free()
    if (session === undefined) return
    this.#claim(shim, session, 0, false)
    this.#start(runtime, session, variant, 0, false)
    // what the agent does about it, some hear later
    if (variant < 12) this.#answerAll(agent)
  }

  #answerAll(agent: AgentEnd) {
    for (let count = 0; agent.answered < agent.commands.length && count < 50; count++) this.#reply(agent, true, "")
  }

  #reply(agent: AgentEnd, ack: boolean, payload: string) {
    const command = agent.commands[agent.answered]
    const to = command === undefined ? "nothing" : `its command ${agent.answered + 1}, code ${command.code}`
    this.world.tell(`${agent.model.name}'s agent says ${ack ? "ACK" : "ERROR"} ${payload} to ${to}`)
    this.world.reply(agent, ack, payload)
  }

  #start(client: ClientEnd, session: Session | undefined, variant: number, cut: number, held: boolean) {
    if (!this.world.mayAsk(client)) return
    const init = variant % 2 === 0
    const container = variant % 4 === 3 ? "c2" : "c1"
    const terminal = variant === 5
    // few ids, so that they come again
    const id = variant % 8 < 6 ? `p${(++this.#count % 3) + 1}` : undefined
    const inner = [...(terminal ? [`"terminal":true`] : []), ...(id === undefined ? [] : [`"id":"${id}"`])].join(", ")
    const before = `{${init ? `"id":"${container}"` : `"container":"${container}"`}, "process":{`
    const after = `} ,"limit":9007199254740993}`
    const where = session === undefined ? "without a token" : `in ${nameOf(session)}`
    const name = `${id ?? "one without an id"} of ${container}${init ? " (init)" : ""}${terminal ? " (terminal)" : ""}`
    this.world.tell(`${client.model.name} starts ${name} ${where}${this.#later(client, held)}`)
    const hyperName = init ? "newcontainer" : "execcmd"
    const tokens = JSON.stringify(session === undefined ? [] : [session.token])
    const payload = `{"hyperName":"${hyperName}","tokens":${tokens},"data":${before}${inner}${after}}`
    const process = { container, id, init, terminal, before, inner, after }
    this.world.ask(client, { kind: "start", process, token: session?.token }, payload, cut, held)
  }

  /** Whether a client's next command is handled at once: why it is refused depends on what has come before. */
  #isIdle(client: ClientEnd): boolean {
    const { busy, queue } = client.model
    return this.world.mayAsk(client) && busy === undefined && queue.length === 0 && client.unsent() === 0
  }

  #badStart({ cut, size, variant, which, who }: Operation) {
    const client = this.#runtime(who)
    const { model } = client
    if (model.vm === undefined || !this.#isIdle(client)) return
    const session = this.#session(which, size)
    const token = session?.token ?? "x".repeat(44)
    const known = session !== undefined && !session.forgotten && session.vm === model.vm
    const start = (data: object, tokens: ReadonlyArray<string>) => ({ hyperName: "execcmd", tokens, data })
    const [payload, error] = (
      [
        [start({ container: "c1" }, [token]), /^malformed execcmd command/],
        [start({ container: "c1", process: { stdio: 5 } }, [token]), known ? /^malformed execcmd/ : /^unknown token/],
        [start({ container: "c1", process: {} }, [token, token]), "expected 0 or 1 token, got 2"],
        [start({ container: "c1", process: {} }, ["x".repeat(44)]), "unknown token: xxxxxx…"]
      ] as const
    )[variant % 4]!
    this.#refused(client, Frame.Command.Hyper, payload, error, cut)
  }

  #badCommand({ cut, variant, which, who }: Operation) {
    const client = this.#anyClient(who)
    const { session, vm } = client.model
    if (!this.#isIdle(client)) return
    const { Command } = Frame
    const ask = (command: Frame.Command, payload: unknown, error: string | RegExp) =>
      this.#refused(client, command, payload, error, cut)
    const hyper = (payload: unknown, error: string) =>
      ask(Command.Hyper, payload, vm === undefined ? "client not attached to a vm" : error)
    switch (variant % 6) {
      case 0:
        return hyper({ hyperName: "nosuch" }, "unknown command 'nosuch'")
      case 1:
        return hyper({ hyperName: "ready" }, "unknown command 'ready'")
      case 2:
        return hyper({ hyperName: "ping", tokens: ["a", "b"] }, "ping doesn't need tokens but 2 token(s) were given")
      case 3: {
        const commands = [Command.RegisterVM, Command.AttachVM, Command.UnregisterVM, Command.Hyper] as const
        return ask(commands[which % 4]!, which < 4 ? "{" : "{}", /^malformed \w+ command/)
      }
      case 4:
        return session === undefined
          ? ask(Command.Signal, { signalNumber: 9 }, "client isn't a shim")
          : ask(Command.Signal, { signalNumber: "9" }, /^malformed Signal command/)
      default:
        return ask(Command.ConnectShim, { token: 7 }, /^malformed ConnectShim command/)
    }
  }

  #refused(client: ClientEnd, command: Frame.Command, payload: unknown, error: string | RegExp, cut: number) {
    this.world.tell(`${client.model.name} is refused: ${String(error)}`)
    this.world.ask(client, { kind: "refused", command, error }, payload, cut)
  }

  #claim(client: ClientEnd, session: Session, cut: number, held: boolean) {
    // what follows its claim is not read before there is room for the session's stdin
    if (!this.world.mayAsk(client) || (held && !this.world.hasRoom(session, 0))) return
    const { token } = session
    this.world.tell(`${client.model.name} claims ${nameOf(session)}${this.#later(client, held)}`)
    this.world.ask(client, { kind: "ConnectShim", token }, { token }, cut, held)
  }

  #stdin(client: ClientEnd, data: Uint8Array, cut: number, held: boolean) {
    const session = client.model.session ?? client.model.claiming
    if (!this.world.isServed(client)) return
    if (this.world.unreadable && session !== undefined && !this.world.hasRoom(session, client.unsent() + data.length))
      return
    const what = data.length === 0 ? "the end of stdin" : `${data.length} bytes of stdin`
    this.world.tell(`${client.model.name} sends ${what}${this.#later(client, held)}`)
    this.world.stream(client, { kind: "stdin", data }, Frame.StreamKind.stdin, data, cut, held)
  }

  #output(
    session: Session,
    messages: ReadonlyArray<readonly [stream: number, data: Uint8Array]>,
    what: string,
    cut: number,
    held: boolean
  ) {
    const agent = this.world.agents.find(({ model }) => model === session.vm)!
    this.world.tell(`${nameOf(session)} ${what}${inOneGo(held)}`)
    for (const [stream, data] of messages) agent.hold(session.stdio + stream, data)
    if (!held) this.world.output(agent, cut)
  }

  #read(agent: AgentEnd | undefined, reads: boolean) {
    if (agent === undefined || agent.model.agentReads === reads || agent.model.state === "booting") return
    this.world.tell(`${agent.model.name}'s agent ${reads ? "reads its stdin again" : "does not read its stdin"}`)
    this.world.reads(agent, reads)
  }
}

/** Most of all happens to the first VM. */
const slotOf = (which: number): number => (which % 4 === 3 ? 1 : 0)

const idOf = (which: number): string => "ab"[slotOf(which)]!

const inOneGo = (held: boolean): string => (held ? ", in one go with what follows" : "")
