#!/bin/bash
# Runs test/systemd/ against the daemon under the units of systemd/, in a Debian 13 whose process 1 is systemd.
#
#   scripts/systemd-test.sh [NAME]
#
# NAME is a pattern for the names of tests: only those are run. CC_PROXY_BINARY may name another build than dist/cc-proxy.
#
# Writes .cache/tests/systemd.json; what systemd and the daemon said is in .cache/systemd/ afterwards. Where this machine
# cannot run it, a line that begins with SKIP says so, and the status is 0.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/node_modules/.bin:$PATH"

root=.cache/trixie
share=$PWD/.cache/systemd
report=.cache/tests/systemd.json
program=$(realpath "${CC_PROXY_BINARY:-dist/cc-proxy}")
skip() {
  echo "SKIP: no tests under systemd here: $1"
  exit 0
}

[ "$(id -u)" = 0 ] || skip "it takes root, to make a Debian 13 and run in it"
rm -rf "$share" $report
mkdir -p "$share" .cache/tests
[ $# -eq 0 ] || echo "NAMES='-t \"$1\"'" > "$share/names"
status=0
said=$(scripts/debian13.sh "$share/setup.log") || status=$?
[ $status -eq 0 ] || skip "$said"
if ! command -v systemd-nspawn > /dev/null; then
  command -v apt-get > /dev/null || skip "no apt-get"
  echo "installing systemd-nspawn"
  { apt-get update -q && apt-get install -q -y --no-install-recommends systemd-container; } > "$share/setup.log" 2>&1 ||
    skip "systemd-nspawn is missing and cannot be installed, see $share/setup.log"
fi

# Everything is read-only there, or forgotten afterwards, but /share. What happens inside is not told by the status.
machine=(
  systemd-nspawn --quiet --directory=$root --boot --register=no --keep-unit --private-network --volatile=overlay
  --bind-ro="$PWD:/src"
  --bind-ro="$(realpath "$(command -v node)"):/usr/local/bin/node"
  --bind-ro="${program%/*}:/built"
  --bind-ro="$PWD/systemd/cc-proxy.service:/usr/lib/systemd/system/cc-proxy.service"
  --bind-ro="$PWD/systemd/cc-proxy.socket:/usr/lib/systemd/system/cc-proxy.socket"
  --bind-ro="$PWD/test/systemd/test.service:/usr/lib/systemd/system/test.service"
  --bind="$share:/share"
  systemd.unit=test.service
)
timeout --foreground -k 5 330 "${machine[@]}" < /dev/null > "$share/console" 2>&1 || true
[ -e "$share/output" ] || skip "systemd does not start, see $share/console"
cat "$share/output"
mv "$share/report.json" $report
exec node scripts/test-summary.mjs $report
