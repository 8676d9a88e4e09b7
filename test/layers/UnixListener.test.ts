import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Scope from "effect/Scope"
import { spawn } from "node:child_process"
import * as Fs from "node:fs"
import * as Net from "node:net"
import * as Path from "node:path"
import * as NodeWire from "../../src/layers/NodeWire.ts"
import * as UnixListener from "../../src/layers/UnixListener.ts"
import { Listener, type Listening, maxTurnedAway } from "../../src/services/Listener.ts"
import { defaults, Settings } from "../../src/services/Settings.ts"
import { Reading } from "../../src/services/Wire.ts"
import { same } from "../contract/wireContract.ts"
import { concat, pattern, toText, utf8 } from "../support/Bytes.ts"
import * as SocketPair from "../support/SocketPair.ts"

const { eventually, openSockets, turn } = SocketPair

const quiet = Logger.layer([])

/** Listens for as long as the scope lasts. `arrive` waits for the next client, `accept` adopts it too. */
const listen = (path: string, fd?: number, settings: Partial<Settings> = {}) =>
  Effect.flatMap(Listener, ({ listen }) =>
    Effect.map(listen, ({ accept: arrive }) => ({
      arrive,
      accept: Effect.flatMap(arrive, ({ connection }) => connection!)
    }))
  ).pipe(
    Effect.provide(Layer.merge(UnixListener.layer({ path, fd }), quiet)),
    Effect.provideService(Settings, { ...defaults, ...settings })
  )

/** Why it does not listen. */
const refused = (path: string, fd?: number) =>
  Effect.map(Effect.flip(Effect.scoped(listen(path, fd))), ({ message }) => message)

/** A client of the socket at `path`. */
const connect = (path: string) =>
  Effect.acquireRelease(
    Effect.callback<Net.Socket, NodeJS.ErrnoException>((resume) => {
      const socket = Net.connect({ path, allowHalfOpen: true }, () => resume(Effect.succeed(socket)))
      socket.on("error", (error) => resume(Effect.fail(error)))
    }),
    (socket) => Effect.sync(() => socket.destroy())
  )

/** Somebody else's server at `path`. */
const server = (path: string) =>
  Effect.acquireRelease(
    Effect.callback<Net.Server>((resume) => {
      const server = Net.createServer((socket) => socket.on("error", () => {}).end("still here"))
      server.listen(path, () => resume(Effect.succeed(server)))
    }),
    (server) => Effect.sync(() => server.close())
  )

/** A socket at `path` whose process is gone. */
const staleSocket = (path: string) =>
  Effect.scoped(
    Effect.tap(server(`${path}.bound`), () => Effect.sync(() => Fs.renameSync(`${path}.bound`, path))) // closing unlinks the old path
  )

const closed = (socket: Net.Socket) =>
  Effect.callback<void>((resume) => {
    if (socket.closed) return resume(Effect.void)
    socket.once("close", () => resume(Effect.void))
    socket.resume()
  })

const place = Effect.map(SocketPair.directory, (directory) => Path.join(directory, "proxy.sock"))

const mode = (path: string): string => (Fs.statSync(path).mode & 0o7777).toString(8)

describe("the socket", () => {
  for (const umask of [0o000, 0o022, 0o077, 0o777])
    it.live(`is for its owner and group, and so is its directory, whatever the umask: ${umask.toString(8)}`, () =>
      Effect.gen(function* () {
        const directory = yield* SocketPair.directory
        const path = Path.join(directory, "run", "cc", "proxy.sock")
        yield* Effect.acquireRelease(
          Effect.sync(() => process.umask(umask)),
          (previous) => Effect.sync(() => process.umask(previous))
        )
        yield* listen(path)
        assert.strictEqual(process.umask(), umask)
        assert.strictEqual(mode(path), "660")
        assert.strictEqual(mode(Path.join(directory, "run", "cc")), "750")
        assert.strictEqual(mode(Path.join(directory, "run")), "750")
        yield* connect(path)
      })
    )

  it.live("leaves a directory as it is", () =>
    Effect.gen(function* () {
      const path = yield* place
      Fs.chmodSync(Path.dirname(path), 0o705)
      yield* listen(path)
      assert.strictEqual(mode(Path.dirname(path)), "705")
    })
  )

  it.live("replaces one whose process is gone", () =>
    Effect.gen(function* () {
      const path = yield* place
      yield* staleSocket(path)
      assert.isTrue(Fs.statSync(path).isSocket())
      const { accept } = yield* listen(path)
      yield* connect(path)
      yield* accept
      assert.strictEqual(mode(path), "660")
    })
  )

  it.live("does not take the place of one that is served, and leaves it alone", () =>
    Effect.gen(function* () {
      const path = yield* place
      yield* server(path)
      const before = openSockets()
      assert.strictEqual(yield* refused(path), `another process serves ${path}`)
      yield* eventually(() => openSockets() === before)
      const client = yield* connect(path)
      const answer = yield* Effect.callback<string>((resume) => {
        client.once("data", (data) => resume(Effect.succeed(String(data))))
      })
      assert.strictEqual(answer, "still here")
    })
  )

  const others: ReadonlyArray<readonly [what: string, make: (path: string) => void]> = [
    ["a file", (path) => Fs.writeFileSync(path, "precious")],
    ["a directory", (path) => Fs.mkdirSync(path)],
    ["a link to a file", (path) => Fs.symlinkSync("/etc/hostname", path)],
    ["a link to nothing", (path) => Fs.symlinkSync("nothing", path)]
  ]
  for (const [what, make] of others)
    it.live(`does not take the place of ${what}`, () =>
      Effect.gen(function* () {
        const path = yield* place
        make(path)
        const look = () => {
          const { ino, mode, mtimeMs, size } = Fs.lstatSync(path)
          return { ino, mode, mtimeMs, size }
        }
        const before = look()
        assert.strictEqual(yield* refused(path), `${path} exists and is not a socket`)
        assert.deepStrictEqual(look(), before)
      })
    )

  it.live("does not follow a link to a socket", () =>
    Effect.gen(function* () {
      const path = yield* place
      yield* staleSocket(`${path}.other`)
      Fs.symlinkSync(`${path}.other`, path)
      assert.match(yield* refused(path), /is not a socket$/)
      assert.isTrue(Fs.existsSync(`${path}.other`))
    })
  )

  it.live("takes a path of 107 bytes, and says so of a longer one, whatever its letters", () =>
    Effect.gen(function* () {
      const directory = yield* SocketPair.directory
      const path = (bytes: number, name = "") => {
        const left = bytes - Buffer.byteLength(Path.join(directory, name || "x")) + (name === "" ? 1 : 0)
        return Path.join(directory, name + "x".repeat(left))
      }
      yield* listen(path(107))
      yield* connect(path(107))
      for (const name of ["", "é"])
        assert.strictEqual(yield* refused(path(108, name)), "socket path too long: 108 bytes, the limit is 107")
      assert.deepStrictEqual(Fs.readdirSync(directory), [Path.basename(path(107))])
    })
  )

  it.live("needs a path", () =>
    Effect.map(refused(""), (reason) => assert.strictEqual(reason, "the socket's path is empty"))
  )

  it.live("cannot be where there is no place for it", () =>
    Effect.gen(function* () {
      const path = yield* place
      Fs.writeFileSync(path, "")
      assert.match(
        yield* refused(Path.join(path, "below", "proxy.sock")),
        /^couldn't create the socket's directory: E\w+/
      )
    })
  )

  it.live("cannot be where we may not look", () =>
    Effect.gen(function* () {
      const directory = yield* SocketPair.directory
      const locked = Path.join(directory, "locked")
      Fs.chmodSync(directory, 0o755)
      Fs.mkdirSync(locked)
      Fs.chmodSync(locked, 0)
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          const uid = process.geteuid!()
          if (uid === 0) process.seteuid!(65_534) // root may look anywhere
          return uid
        }),
        (uid) => Effect.sync(() => process.seteuid!(uid))
      )
      assert.match(yield* refused(Path.join(locked, "proxy.sock")), /^couldn't \w.*: EACCES/)
    })
  )

  it.live("cannot be made of a descriptor that is no socket", () =>
    Effect.gen(function* () {
      const path = yield* place
      const fd = Fs.openSync("/dev/null", "r")
      assert.match(yield* refused(path, fd), new RegExp(`^couldn't listen on ${path}: `))
      Fs.closeSync(fd)
    })
  )

  it.live("is gone at the end of the scope; clients that are served stay, others are sent away", () =>
    Effect.gen(function* () {
      const path = yield* place
      const before = openSockets()
      const scope = yield* Scope.make()
      const { accept } = yield* listen(path).pipe(Scope.provide(scope))
      const served = yield* connect(path)
      const wire = yield* accept
      const waiting = [yield* connect(path), yield* connect(path)]
      for (const client of waiting) client.on("end", () => client.destroy())
      yield* turn
      yield* Scope.close(scope, Exit.void)
      assert.isFalse(Fs.existsSync(path))
      assert.strictEqual((yield* Effect.flip(connect(path))).code, "ENOENT")
      for (const client of waiting) yield* closed(client)
      served.write("hello")
      assert.strictEqual(toText(yield* wire.pull), "hello")
      yield* eventually(() => openSockets() === before + 2)
    })
  )
})

describe("accept", () => {
  it.live("waits for clients, and gives them out in the order in which they came", () =>
    Effect.gen(function* () {
      const path = yield* place
      const { accept } = yield* listen(path)
      const first = yield* Effect.forkChild(accept, { startImmediately: true })
      yield* turn
      assert.isUndefined(first.pollUnsafe())
      for (const name of ["a", "b", "c"]) (yield* connect(path)).write(name)
      const wires = [yield* Fiber.join(first), yield* accept, yield* accept]
      assert.deepStrictEqual(
        wires.map(({ peer }) => peer),
        ["client 1", "client 2", "client 3"]
      )
      const names = yield* Effect.forEach(wires, ({ pull }) => Effect.map(pull, toText))
      assert.deepStrictEqual(names, ["a", "b", "c"])
    })
  )

  it.live("takes clients that wrote and left before it", () =>
    Effect.gen(function* () {
      const path = yield* place
      const { accept } = yield* listen(path)
      yield* Effect.scoped(Effect.map(connect(path), (client) => void client.write("gone already")))
      yield* turn
      const wire = yield* accept
      assert.strictEqual(toText(yield* wire.pull), "gone already")
      assert.strictEqual((yield* Effect.flip(wire.pull))._tag, "WireClosed")
    })
  )

  it.live("ends a client by a half-close", () =>
    Effect.gen(function* () {
      const path = yield* place
      const { accept } = yield* listen(path)
      const client = yield* connect(path)
      yield* Effect.scoped(
        Effect.gen(function* () {
          const wire = yield* accept
          wire.offer([Buffer.from("bye")])
        })
      )
      const read = yield* Effect.callback<string>((resume) => {
        let text = ""
        client.on("data", (data) => (text += String(data)))
        client.on("end", () => resume(Effect.succeed(text)))
      })
      assert.strictEqual(read, "bye")
      const error = yield* Effect.callback<Error | null | undefined>((resume) => {
        client.write("still writing", (error) => resume(Effect.succeed(error)))
      })
      assert.notInstanceOf(error, Error)
      client.end()
      yield* closed(client)
    })
  )

  it.live("tells which clients are above the limit, those that are ending included, until some have left", () =>
    Effect.gen(function* () {
      const path = yield* place
      const { arrive } = yield* listen(path, undefined, { maxConnections: 2 })
      const next = Effect.gen(function* () {
        const client = yield* connect(path)
        const { connection, crowded } = yield* arrive
        const scope = yield* Scope.make()
        yield* connection!.pipe(Scope.provide(scope))
        return { client, scope, crowded: crowded?.message }
      })
      const [first, second, third] = [yield* next, yield* next, yield* next]
      assert.isUndefined(first.crowded)
      assert.isUndefined(second.crowded)
      assert.strictEqual(third.crowded, "too many connections: the limit is 2")
      third.client.end()
      yield* Scope.close(third.scope, Exit.void)
      yield* closed(third.client)
      yield* Scope.close(first.scope, Exit.void) // a half-close: the client has not closed its end yet
      yield* turn
      const fourth = yield* next
      assert.strictEqual(fourth.crowded, "too many connections: the limit is 2")
      for (const { client, scope } of [first, fourth]) {
        client.end()
        yield* Scope.close(scope, Exit.void)
        yield* closed(client)
      }
      assert.isUndefined((yield* next).crowded)
    })
  )

  it.live("closes those at once that are more than may be turned away", () =>
    Effect.gen(function* () {
      const path = yield* place
      const { arrive } = yield* listen(path, undefined, { maxConnections: 1 })
      for (let open = 0; open <= maxTurnedAway; open++) {
        yield* connect(path)
        const { connection, crowded } = yield* arrive
        assert.isDefined(connection)
        assert.strictEqual(crowded !== undefined, open > 0)
      }
      for (let more = 0; more < 3; more++) {
        const client = yield* connect(path)
        const { connection, crowded } = yield* arrive
        assert.isUndefined(connection)
        assert.strictEqual(crowded?.message, "too many connections: the limit is 1")
        client.on("end", () => client.destroy())
        yield* closed(client)
      }
    })
  )

  /** The server that listens on `path`. */
  const serverAt = (path: string) => {
    const { _getActiveHandles: handles } = process as unknown as { _getActiveHandles: () => ReadonlyArray<unknown> }
    return handles().find((handle) => handle instanceof Net.Server && handle.address() === path) as Net.Server
  }

  const noRoom = (code: string) => Object.assign(new Error(`accept ${code}`), { code })

  for (const code of ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ECONNABORTED"])
    it.live(`goes on when the kernel has no room for a client: ${code}`, () =>
      Effect.gen(function* () {
        const path = yield* place
        const { accept, arrive } = yield* listen(path)
        serverAt(path).emit("error", noRoom(code)) // as Node does
        const { connection, crowded } = yield* arrive
        assert.isUndefined(connection)
        assert.match(crowded?.message ?? "", /^too many descriptors: the limit is \d+$/)
        yield* connect(path)
        yield* accept
      })
    )

  it.live("fails when the socket breaks, those that wait and those that come", () =>
    Effect.gen(function* () {
      const path = yield* place
      const { accept } = yield* listen(path)
      const waiting = yield* Effect.forkChild(Effect.flip(accept), { startImmediately: true })
      serverAt(path).emit("error", new Error("accept EINVAL")) // as Node does when accept(2) fails
      for (const error of [yield* Fiber.join(waiting), yield* Effect.flip(accept)]) {
        assert.strictEqual(error._tag, "ListenError")
        assert.strictEqual(error.message, `couldn't listen on ${path}: accept EINVAL`)
      }
    })
  )
})

describe("a listener that another one takes over from", () => {
  /** Reading held, and at rest what was under way. */
  const held = Effect.gen(function* () {
    const reading = yield* Reading
    yield* Effect.acquireRelease(Effect.sync(reading.hold), () => Effect.sync(reading.resume))
    yield* Effect.repeat(turn, { times: 3 })
    return reading
  }).pipe(Effect.provide(NodeWire.layerReading))

  /** The listener of a daemon, and what it listens with. */
  const daemon = Effect.fnUntraced(function* (path: string, settings: Partial<Settings> = {}) {
    const built = Layer.build(UnixListener.layer({ path, fd: undefined }))
    const services = yield* Effect.provideService(built, Settings, { ...defaults, ...settings })
    const listener = Context.get(services, Listener)
    return { listener, listening: yield* Effect.provide(listener.listen, quiet) }
  })

  /** A client that was accepted, its wire in a scope of its own. */
  const client = Effect.fnUntraced(function* (path: string, { accept }: Listening) {
    const peer = SocketPair.makePeer(yield* connect(path))
    const scope = yield* Scope.make()
    const wire = yield* (yield* accept).connection!.pipe(Scope.provide(scope))
    return { peer, wire, close: Scope.close(scope, Exit.void) }
  })

  it.live("carries the socket it listens on, and the connections that are ending", () =>
    Effect.gen(function* () {
      const path = yield* place
      const { listening } = yield* daemon(path)
      const open = yield* client(path, listening)
      const sent = yield* client(path, listening)
      const full = yield* client(path, listening)
      sent.wire.offer([utf8("bye")])
      yield* sent.close
      full.peer.write(utf8("never pulled"))
      full.wire.offer([pattern(3_000_000)])
      yield* Effect.forkChild(full.close, { startImmediately: true })
      yield* held
      const { descriptor, ending } = listening.carry()
      assert.isTrue(Fs.fstatSync(descriptor!).isSocket())
      assert.deepStrictEqual(
        ending.map((carried) => carried.descriptor),
        [sent.wire.descriptor()!, full.wire.descriptor()!]
      )
      assert.deepStrictEqual(
        ending.map(({ unread, unsent }) => [unread.length, concat(unsent).length]),
        [
          [0, 0],
          [0, full.wire.pending()]
        ]
      )
      assert.notStrictEqual(open.wire.descriptor(), descriptor)
    })
  )

  it.live(
    "leaves connections that are ending: what is left leaves, then the client is told, and may go on writing",
    () =>
      Effect.gen(function* () {
        const path = yield* place
        const { listener, listening } = yield* daemon(path)
        const { close, peer, wire } = yield* client(path, listening)
        const offered = pattern(3_000_000)
        wire.offer([offered])
        yield* Effect.forkChild(close, { startImmediately: true })
        const { resume } = yield* held
        const carried = yield* SocketPair.handedOver(() => listening.carry().ending[0])
        assert.deepStrictEqual(listening.carry().ending, [])
        listener.finish(carried)
        resume()
        peer.read()
        yield* peer.until(peer.ended)
        same(peer.received(), offered)
        for (let i = 0; i < 20; i++) peer.write(pattern(100_000, i))
        yield* peer.until(() => peer.taken() === 2_000_000)
        assert.strictEqual(listening.carry().ending.length, 1)
        peer.end()
        yield* eventually(peer.closed)
        assert.isUndefined(peer.error())
        yield* eventually(() => listening.carry().ending.length === 0)
      })
  )

  it.live("leaves connections that are ending to one that does not wait for them for ever", () =>
    Effect.gen(function* () {
      const path = yield* place
      const { listener, listening } = yield* daemon(path, { frameTimeout: Duration.millis(20) })
      const { peer, wire } = yield* client(path, listening)
      wire.offer([pattern(3_000_000)])
      const { resume } = yield* held
      listener.finish(yield* SocketPair.handedOver(() => wire.carry()))
      resume()
      assert.strictEqual(listening.carry().ending.length, 1)
      yield* eventually(() => listening.carry().ending.length === 0)
      peer.read() // too late for most of it
      yield* peer.until(peer.ended)
      assert.isBelow(peer.size(), 3_000_000)
    })
  )

  it.live("leaves clients that are served, counted and ended as those that arrive are", () =>
    Effect.gen(function* () {
      const path = yield* place
      const { listener, listening } = yield* daemon(path, { maxConnections: 1 })
      const { peer, wire } = yield* client(path, listening)
      peer.read()
      peer.write(utf8("hello"))
      const { resume } = yield* held
      const carried = yield* SocketPair.handedOver(() => wire.carry())
      const scope = yield* Scope.make()
      const adopted = yield* listener.adopt("client 7", carried).pipe(Scope.provide(scope))
      resume()
      assert.strictEqual(adopted.peer, "client 7")
      assert.strictEqual(toText(yield* adopted.pull), "hello")
      const arrive = Effect.gen(function* () {
        yield* connect(path)
        const { connection, crowded } = yield* listening.accept
        return { connection, crowded: crowded?.message }
      })
      for (let turnedAway = 0; turnedAway < maxTurnedAway; turnedAway++)
        assert.strictEqual((yield* arrive).crowded, "too many connections: the limit is 1")
      assert.isUndefined((yield* arrive).connection)
      adopted.offer([utf8("bye")])
      yield* Scope.close(scope, Exit.void)
      yield* peer.until(peer.ended)
      assert.strictEqual(toText(peer.received()), "bye")
      peer.end()
      yield* eventually(() => listening.carry().ending.length === 0)
      const { connection, crowded } = yield* arrive
      assert.isUndefined(crowded)
      assert.strictEqual((yield* connection!).peer, `client ${7 + maxTurnedAway + 1}`)
    })
  )
})

describe("an inherited descriptor", () => {
  const child = `
    import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
    import * as Effect from "effect/Effect"
    import * as Logger from "effect/Logger"
    import * as UnixListener from ${JSON.stringify(new URL("../../src/layers/UnixListener.ts", import.meta.url).href)}
    import { Listener } from ${JSON.stringify(new URL("../../src/services/Listener.ts", import.meta.url).href)}
    Effect.gen(function* () {
      const { listen, url } = yield* Listener
      yield* Effect.scoped(Effect.gen(function* () {
        const wire = yield* (yield* (yield* listen).accept).connection
        const asked = Buffer.from(yield* wire.pull).toString()
        wire.offer([Buffer.from(asked + ", " + wire.peer + " of " + url)])
      }))
    }).pipe(
      Effect.provide(UnixListener.layer({ path: process.argv[1], fd: 3, owned: process.argv[2] === "owned" })),
      Effect.provide(Logger.layer([])),
      NodeRuntime.runMain
    )`

  for (const owned of [false, true])
    it.live(
      `serves those who came before us, and ${owned ? "goes with a daemon that owns it" : "stays where it is"}`,
      () =>
        Effect.gen(function* () {
          const path = yield* place
          const other = yield* Effect.acquireRelease(
            Effect.callback<Net.Server>((resume) => {
              const server = Net.createServer()
              server.listen(`${path}.bound`, () => resume(Effect.succeed(server)))
            }),
            (server) => Effect.sync(() => server.close())
          )
          Fs.renameSync(`${path}.bound`, path) // closing unlinks the old path
          Fs.chmodSync(path, 0o600)
          const { _handle: handle } = other as unknown as { readonly _handle: { readonly fd: number } }
          const daemon = spawn(process.execPath, ["--input-type=module", "-e", child, path, owned ? "owned" : ""], {
            stdio: ["ignore", "ignore", "inherit", handle.fd]
          })
          yield* Effect.addFinalizer(() => Effect.sync(() => daemon.kill("SIGKILL")))
          other.close()
          const client = yield* connect(path)
          client.write("hello")
          const answer = yield* Effect.callback<string>((resume) => {
            let text = ""
            client.on("data", (data) => (text += String(data)))
            client.on("end", () => resume(Effect.succeed(text)))
          })
          assert.strictEqual(answer, `hello, client 1 of unix://${path}`)
          client.end()
          const code = yield* Effect.callback<number | null>((resume) => {
            daemon.once("exit", (code) => resume(Effect.succeed(code)))
          })
          assert.strictEqual(code, 0)
          assert.strictEqual(Fs.existsSync(path), !owned)
          if (!owned) assert.strictEqual(mode(path), "600")
        })
    )
})

describe("activation", () => {
  const pid = 4711
  const cases: ReadonlyArray<readonly [environment: Record<string, string | undefined>, fd: number | undefined]> = [
    [{}, undefined],
    [{ LISTEN_FDS: "1" }, undefined],
    [{ LISTEN_PID: "4711" }, undefined],
    [{ LISTEN_PID: "4711", LISTEN_FDS: "0" }, undefined],
    [{ LISTEN_PID: "4711", LISTEN_FDS: "1" }, 3],
    [{ LISTEN_PID: "4712", LISTEN_FDS: "1" }, undefined],
    [{ LISTEN_PID: "4712", LISTEN_FDS: "2" }, undefined],
    [{ LISTEN_PID: "", LISTEN_FDS: "1" }, undefined],
    [{ LISTEN_PID: "4711x", LISTEN_FDS: "1" }, undefined],
    [{ LISTEN_PID: "4711", LISTEN_FDS: "" }, undefined],
    [{ LISTEN_PID: "4711", LISTEN_FDS: "-1" }, undefined],
    [{ LISTEN_PID: "4711", LISTEN_FDS: "one" }, undefined]
  ]
  for (const [environment, fd] of cases)
    it.effect(`gives ${fd === undefined ? "nothing" : `descriptor ${fd}`} for ${JSON.stringify(environment)}`, () =>
      Effect.gen(function* () {
        assert.deepStrictEqual(yield* UnixListener.activated(environment, pid), { listening: fd, stored: [] })
      })
    )

  const named: ReadonlyArray<
    readonly [count: string, names: string, listening: number | undefined, stored: ReadonlyArray<number>]
  > = [
    ["1", "cc-proxy.vm", undefined, [3]],
    ["1", "proxy.socket", 3, []],
    ["1", "cc-proxy.socket", 3, []],
    ["1", "", 3, []],
    ["1", "unknown:cc-proxy.beyond", 3, []],
    ["3", "cc-proxy.vm-a:listen:cc-proxy.client", 4, [3, 5]],
    ["3", "cc-proxy.vm-a:cc-proxy.client", 5, [3, 4]],
    ["2", "cc-proxy.vm-a:cc-proxy.client", undefined, [3, 4]]
  ]
  for (const [count, names, listening, stored] of named)
    it.effect(`tells what was stored by its name: ${count} named ${JSON.stringify(names)}`, () =>
      Effect.gen(function* () {
        const environment = { LISTEN_PID: "4711", LISTEN_FDS: count, LISTEN_FDNAMES: names }
        assert.deepStrictEqual(yield* UnixListener.activated(environment, pid), { listening, stored })
      })
    )

  it.effect("by two sockets is an error, whatever was stored beside them", () =>
    Effect.gen(function* () {
      const environment = { LISTEN_PID: "4711", LISTEN_FDS: "4", LISTEN_FDNAMES: "a:cc-proxy.vm-x:b:cc-proxy.vm" }
      const error = yield* Effect.flip(UnixListener.activated(environment, pid))
      assert.strictEqual(error.message, "too many activated sockets (2)")
    })
  )

  for (const count of ["2", "3", "100"])
    it.effect(`by ${count} sockets is an error`, () =>
      Effect.gen(function* () {
        const error = yield* Effect.flip(UnixListener.activated({ LISTEN_PID: "4711", LISTEN_FDS: count }, pid))
        assert.strictEqual(error.message, `too many activated sockets (${count})`)
      })
    )
})
