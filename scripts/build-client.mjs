// Compiles src/client, and what it needs of src/domain, to dist/client: what the package exports as cc-proxy/client.
import { execFileSync } from "node:child_process"
import { rmSync, writeFileSync } from "node:fs"

rmSync("dist/client", { recursive: true, force: true })
execFileSync("tsc", ["-p", "tsconfig.client.json"], { stdio: "inherit" })
writeFileSync("dist/client/package.json", `{"type":"module"}\n`) // dist itself is CommonJS
