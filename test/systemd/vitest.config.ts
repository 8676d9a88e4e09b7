import { defineConfig } from "vitest/config"

/** What `scripts/systemd-test.sh` runs, in a machine where systemd is process 1. Nothing may be written beside the sources there. */
export default defineConfig({
  cacheDir: "/tmp/vite",
  test: {
    include: ["test/systemd/*.systemd.ts"],
    testTimeout: 50_000,
    reporters: ["verbose", ["json", { outputFile: "/share/report.json" }]]
  }
})
