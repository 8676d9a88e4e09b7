/** The VM of a session that a test has on its own. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type { Owner } from "../../src/services/Session.ts"

/** Hears everything, and does what `overrides` says. */
export const make = (overrides: Partial<Owner> = {}): Owner => ({
  id: "vm",
  stdin: () => {},
  firstOutput: () => {},
  exited: () => {},
  signal: () => Effect.void,
  rejoin: () => Effect.never,
  restored: undefined,
  orphaned: () => assert.fail("nobody is away"),
  changed: () => {},
  close: () => {},
  ...overrides
})
