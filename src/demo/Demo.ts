/** Placeholder */
import * as Effect from "effect/Effect"
export const run = (_: { readonly interactive: boolean; readonly terminal: boolean; readonly command: ReadonlyArray<string> }): Effect.Effect<void> => Effect.void
