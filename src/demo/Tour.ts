/**
 * The guided tour: a runtime and shims talk to VMs through a daemon, and tell each thing as it happens. Where something is not
 * as it should be, the tour fails.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Fs from "node:fs"
import * as Client from "../client/index.ts"
import * as Cast from "./Cast.ts"
import * as Narration from "./Narration.ts"
import * as OwnStreams from "./OwnStreams.ts"
import * as Stage from "./Stage.ts"

export class TourFailed extends Schema.TaggedError<TourFailed>()("TourFailed", {
  step: Schema.String,
  reason: Schema.String
}) {
  override get message(): string {
    return `the demo failed at "${this.step}": ${this.reason}`
  }
}

/** Longest step. */
const patience = Duration.seconds(20)

const SIGTERM = 15

/** Numbers the steps, and tells which of them failed. */
const makeSteps = () => {
  let count = 0
  return <A, E extends { readonly message: string }, R>(title: string, body: Effect.Effect<A, E, R>) =>
    Effect.andThen(Narration.step(++count, title), body).pipe(
      Effect.mapError((error) =>
        error instanceof OwnStreams.ReaderGone ? error : new TourFailed({ step: title, reason: error.message })
      ),
      Effect.timeoutOrElse({
        duration: patience,
        orElse: () => Effect.fail(new TourFailed({ step: title, reason: `not done in ${Duration.format(patience)}` }))
      })
    )
}

type Step = ReturnType<typeof makeSteps>

/** Two processes of one container: the second lets the first write, and tells that it has. */
const writer = `mkfifo f; echo ready; read go <f
echo "anybody there?"; echo written >f; read answer; exit 3`
const waker = "echo go >f; cat f"

const containers = Effect.fnUntraced(function* (step: Step, pod: Cast.Pod) {
  yield* step(
    "A container: a shim stands ready for its process, and the runtime starts it",
    Effect.gen(function* () {
      const tr = yield* Cast.launch(pod, { container: "shout", args: ["tr", "a-z", "A-Z"] })
      yield* tr.send("hello, world\n")
      yield* tr.endInput
      yield* tr.ends(0, { stdout: "HELLO, WORLD\n" })
    })
  )
  yield* step(
    "stdout and stderr stay apart, and the exit status comes after both",
    Effect.gen(function* () {
      const sh = yield* Cast.launch(pod, { container: "talk", args: ["sh", "-c", "echo fine; echo oops >&2; exit 7"] })
      yield* sh.ends(7, { stdout: "fine\n", stderr: "oops\n" })
    })
  )
  yield* step(
    "A second process beside the first, and a signal",
    Effect.gen(function* () {
      const sleep = yield* Cast.launch(pod, { container: "nap", args: ["sleep", "1000"], shim: "shim 1" })
      const echo = yield* Cast.launch(pod, { container: "nap", exec: true, args: ["echo", "hi"], shim: "shim 2" })
      yield* echo.ends(0, { stdout: "hi\n" })
      yield* sleep.signal("SIGTERM", SIGTERM)
      yield* sleep.ends(128 + SIGTERM)
    })
  )
})

const twoAtOnce = Effect.fnUntraced(function* (pods: ReadonlyArray<Cast.Pod>) {
  const cats = yield* Effect.forEach(pods, (pod, index) =>
    Cast.launch(pod, { container: "echo", args: ["cat"], shim: `shim ${index + 1}`, process: `${pod.name}'s cat` })
  )
  for (const round of [1, 2]) {
    const line = `round ${round}\n`
    for (const cat of cats) yield* cat.send(line)
    yield* Effect.forEach(cats, (cat) => cat.says(line), { concurrency: "unbounded" })
  }
  for (const cat of cats) yield* cat.endInput
  yield* Effect.forEach(cats, (cat) => cat.ends(0), { concurrency: "unbounded" })
})

const lostShim = Effect.fnUntraced(function* (pod: Cast.Pod) {
  const token = yield* Effect.scoped(
    Effect.gen(function* () {
      const first = yield* Cast.launch(pod, { container: "patient", args: ["sh", "-c", writer], shim: "shim 1" })
      yield* first.says("ready\n")
      return first.token
    })
  )
  yield* Narration.gets(["shim 1"], "has died: its connection closes without a goodbye")
  const other = yield* Cast.launch(pod, {
    container: "patient",
    exec: true,
    args: ["sh", "-c", waker],
    shim: "shim 2"
  })
  yield* other.ends(0, { stdout: "written\n" })
  const second = yield* Cast.attach(pod, token, "shim 3", "sh")
  yield* second.says("anybody there?\n")
  yield* second.send("yes\n")
  yield* second.ends(3)
})

const end = Effect.fnUntraced(function* ({ name, socket, vm }: Cast.Pod) {
  const runtime = yield* Client.connect(socket)
  yield* Client.attachVM(runtime, { containerId: name })
  yield* Narration.asks(["runtime", "proxy", name], "destroypod", Client.destroyPod(runtime), () => "done")
  yield* Cast.check("end of the VM", yield* vm.stopped, "destroypod")
  const path = ["runtime", "proxy"]
  const forget = Client.unregisterVM(runtime, { containerId: name })
  yield* Narration.asks(path, `UnregisterVM ${name}`, forget, () => "forgotten")
  const answer = yield* Narration.asks(
    path,
    `AttachVM ${name}`,
    Effect.match(Client.attachVM(yield* Client.connect(socket), { containerId: name }), {
      onFailure: ({ message }) => `error: ${message}`,
      onSuccess: () => "attached"
    }),
    (answer) => answer
  )
  yield* Cast.check("answer", answer, `error: unknown containerID: ${name}`)
})

/** Plays the whole of it. */
export const run = Effect.gen(function* () {
  const step = makeSteps()
  yield* Narration.title(
    "How runtimes, shims and VMs talk through cc-proxy. The VMs are simulated, their processes are real."
  )
  const { directory } = yield* Effect.scoped(
    Effect.gen(function* () {
      const stage = yield* step(
        "The proxy starts",
        Effect.tap(Stage.make({ warn: (line) => OwnStreams.write("stderr", `${line}\n`) }), ({ pid, socket }) =>
          Narration.gets(["proxy"], `process ${pid} listens on ${socket}`)
        )
      )
      yield* Effect.gen(function* () {
        const pod1 = yield* step("The runtime has started a VM, and registers it", Cast.register(stage, "pod1", "c"))
        yield* containers(step, pod1)
        const pod2 = yield* step(
          "A second VM at the same time: each process's output finds its own shim",
          Effect.tap(Cast.register(stage, "pod2", "go"), (pod2) => twoAtOnce([pod1, pod2]))
        )
        yield* step("A shim dies; another one gets what the process wrote meanwhile", lostShim(pod1))
        yield* step("The end of the VMs", Effect.forEach([pod1, pod2], end))
      }).pipe(Effect.raceFirst(stage.died))
      yield* step(
        "The end of the proxy",
        Effect.gen(function* () {
          const status = yield* Narration.asks(
            ["proxy"],
            `Signal ${SIGTERM}, SIGTERM`,
            stage.stop,
            (status) => `exit status ${status}`
          )
          yield* Cast.check("exit status of the proxy", status, 0)
        })
      )
      return stage
    })
  )
  if (Fs.existsSync(directory)) return yield* new TourFailed({ step: "The end", reason: `${directory} is left` })
  yield* Narration.title("\nEverything was as it should be. No process, socket or directory is left.")
})
