import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as IoMessage from "../../src/domain/IoMessage.ts"
import * as IoDump from "../../src/services/IoDump.ts"
import { concat, utf8 } from "../support/Bytes.ts"
import * as Records from "../support/Records.ts"

describe("IoDump", () => {
  it.effect("is one record for each 16 bytes of each message, in the layout of hexdump -C", () =>
    Effect.gen(function* () {
      const { layer, records } = Records.make()
      const bytes = concat([
        utf8("before"),
        IoMessage.encode(3, utf8("hello\n")),
        IoMessage.encode(4, utf8("sixteen bytes ..and a bit")),
        IoMessage.encode(2 ** 40, new Uint8Array(0)),
        utf8("after")
      ])
      yield* IoDump.dump("from agent", bytes, 6, bytes.length - 5).pipe(Effect.provide(layer))
      assert.deepStrictEqual(
        records.map(({ fields, level, msg }) => [level, fields, msg]),
        [
          [
            "Debug",
            { io: "from agent", sequence: 3 },
            "00000000  68 65 6c 6c 6f 0a                                 |hello.|"
          ],
          [
            "Debug",
            { io: "from agent", sequence: 4 },
            "00000000  73 69 78 74 65 65 6e 20  62 79 74 65 73 20 2e 2e  |sixteen bytes ..|"
          ],
          [
            "Debug",
            { io: "from agent", sequence: 4 },
            "00000010  61 6e 64 20 61 20 62 69  74                       |and a bit|"
          ],
          ["Debug", { io: "from agent", sequence: 2 ** 40 }, "end of the stream"]
        ]
      )
    })
  )

  it.effect("tells the direction, and of no bytes nothing", () =>
    Effect.gen(function* () {
      const { layer, records } = Records.make()
      const bytes = IoMessage.encode(5, utf8("x"))
      yield* IoDump.dump("to agent", bytes, 0, 0).pipe(Effect.provide(layer))
      assert.deepStrictEqual(records, [])
      yield* IoDump.dump("to agent", bytes, 0, bytes.length).pipe(Effect.provide(layer))
      assert.deepStrictEqual(records[0]?.fields, { io: "to agent", sequence: 5 })
    })
  )
})
