import { assert, describe, it } from "@effect/vitest"
import { Ticket } from "../../src/services/Ticket.ts"

describe("a ticket", () => {
  it("gives each wait its whole time", () => {
    const ticket = new Ticket()
    assert.strictEqual(ticket.waited(500), 0)
    assert.strictEqual(ticket.begin(1000, 500), 1000)
    assert.strictEqual(ticket.waited(700), 200)
    assert.strictEqual(ticket.begin(3000, 1000), 3000)
    assert.strictEqual(ticket.waited(1000), 0)
  })

  it("goes on with a wait under the next daemon, whose clock is another, and only with that one", () => {
    const ticket = new Ticket(400)
    assert.strictEqual(ticket.waited(9_000_000), 400)
    assert.strictEqual(ticket.begin(1000, 50), 600)
    assert.strictEqual(ticket.waited(150), 500)
    assert.strictEqual(ticket.begin(1000, 650), 1000)
  })

  it("has no time left, but no less, where the wait is over", () => {
    assert.strictEqual(new Ticket(5000).begin(1000, 0), 0)
  })
})
