import { assert, describe, it } from "@effect/vitest"
import * as Agent from "../../src/domain/Agent.ts"
import * as IoMessage from "../../src/domain/IoMessage.ts"
import { fromHex, toText, utf8 } from "../support/Bytes.ts"

describe("Agent", () => {
  describe("cuts stdin", () => {
    it("for a C agent into 512 bytes, with four answered pings after each", () => {
      assert.deepStrictEqual(Agent.stdinRules.c, { messageData: 512, window: 512, full: false })
      assert.strictEqual(Agent.pingsPerWindow, 4)
    })

    it("for a Go agent into messages of 1,024 bytes in all, which never straddle a boundary of 4,096, without a pause", () => {
      const { full, messageData, window } = Agent.stdinRules.go
      assert.isTrue(full)
      assert.strictEqual(messageData + IoMessage.headerSize, 1024)
      assert.strictEqual(4096 % (messageData + IoMessage.headerSize), 0)
      assert.strictEqual(window, Number.POSITIVE_INFINITY)
    })

    it("for an unknown agent into messages of 512 bytes in all, without a pause", () => {
      const { messageData, window } = Agent.stdinRules.unknown
      assert.strictEqual(messageData + IoMessage.headerSize, 512)
      assert.strictEqual(window, Number.POSITIVE_INFINITY)
    })
  })

  describe("apiVersionOf", () => {
    it("reads a big-endian u32", () => {
      assert.strictEqual(Agent.apiVersionOf(fromHex("00001094")), 4244)
      assert.strictEqual(Agent.apiVersionOf(fromHex("00001093")), Agent.eventApi - 1)
      assert.strictEqual(Agent.apiVersionOf(fromHex("01020304")), 0x01020304)
      assert.strictEqual(Agent.apiVersionOf(fromHex("ffffffff")), 0xffff_ffff)
    })

    it("is 0 for any other answer", () => {
      for (const payload of ["", "001094", "0000109400", "7b7d"])
        assert.strictEqual(Agent.apiVersionOf(fromHex(payload)), 0)
    })
  })

  describe("decodeProcessEvent", () => {
    const decode = (payload: string) => Agent.decodeProcessEvent(utf8(payload))

    it("reads the end of a process", () => {
      assert.deepStrictEqual(decode('{"container":"c1","process":"e1","event":"finished","status":9}'), {
        container: "c1",
        process: "e1",
        event: "finished",
        status: 9
      })
    })

    it("reads one of a process without an id, another event, and keys it does not know", () => {
      assert.deepStrictEqual(decode(' {"x":{},"status":0,"event":"started","process":"(null)","container":"c1"}\n'), {
        container: "c1",
        process: Agent.unnamedProcess,
        event: "started",
        status: 0
      })
    })

    it("is undefined for everything else", () => {
      for (const payload of [
        "",
        "{",
        "null",
        "[]",
        "{}",
        '{"container":"c1","process":"e1","event":"finished"}',
        '{"container":"c1","process":"e1","event":"finished","status":"9"}',
        '{"container":"c1","process":"e1","event":"finished","status":0.5}',
        '{"container":"c1","process":null,"event":"finished","status":9}',
        '{"container":1,"process":"e1","event":"finished","status":9}',
        '{"container":"c1","process":"e1","event":true,"status":9}'
      ])
        assert.isUndefined(decode(payload), payload)
      assert.isUndefined(Agent.decodeProcessEvent(fromHex("ff fe 00")))
    })

    it("is undefined for more than 64 KiB, whatever it says, and reads as much", () => {
      const event = '{"container":"c1","process":"e1","event":"finished","status":9}'
      assert.strictEqual(decode(event.padEnd(64 * 1024))?.status, 9)
      assert.isUndefined(decode(event.padEnd(64 * 1024 + 1)))
    })
  })

  describe("writes", () => {
    for (const [what, payload, expected] of [
      ["winsize by sequence", Agent.winsizeBySequence(3, 24, 80), '{"seq":3,"row":24,"column":80}'],
      [
        "winsize by process",
        Agent.winsizeByProcess("c1", "e1", 24, 80),
        '{"container":"c1","process":"e1","row":24,"column":80}'
      ],
      ["killcontainer", Agent.killContainer("c1", 15), '{"container":"c1","signal":15,"allProcesses":false}'],
      ["signalprocess", Agent.signalProcess("c1", "e1", 9), '{"container":"c1","process":"e1","signal":9}'],
      [
        "names with quotes and other letters",
        Agent.signalProcess('c"1', "é", 9),
        '{"container":"c\\"1","process":"é","signal":9}'
      ]
    ] as const) {
      it(what, () => {
        assert.strictEqual(toText(payload), expected)
      })
    }
  })
})
