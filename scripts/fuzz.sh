#!/bin/bash
# Searches for inputs that break a promise of test/fuzz/targets.ts, guided by the coverage of the code they reach.
#
#   scripts/fuzz.sh [--skip-ok] [SECONDS [TARGET...]]
#
# SECONDS (default 600) are shared by the targets named, or by all. Ends with 0 where every promise was kept, with 1 where one
# was broken, an input took more than 5 s or memory went above 1 GiB: that input is then in .cache/fuzz/. Where this machine
# cannot run it, it says so in a line that begins with SKIP and ends with 77, or with 0 for --skip-ok.
#
# The fuzzer's binary needs a newer C library than many a host has, so it runs in a Debian 13 of its own, which
# scripts/debian13.sh makes once, in .cache/trixie.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/node_modules/.bin:$PATH"

skip_status=77
if [ "${1:-}" = --skip-ok ]; then
  skip_status=0
  shift
fi
seconds=${1:-600}
shift || true
if ! [[ $seconds =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: scripts/fuzz.sh [--skip-ok] [SECONDS [TARGET...]]" >&2
  exit 2
fi
skip() {
  echo "SKIP: no fuzzing here: $1"
  exit $skip_status
}

longest=5   # seconds for one input
memory=1024 # MiB
cache=.cache/fuzz
root=.cache/trixie
work=$root/fuzz # /fuzz inside
log=$cache/setup.log

[ "$(id -u)" = 0 ] || skip "it takes root, to make a Debian 13 and run in it"
command -v esbuild > /dev/null || skip "node_modules is missing: run make first"
mkdir -p $cache/corpus

status=0
said=$(scripts/debian13.sh $log) || status=$?
[ $status -eq 0 ] || skip "$said"

# its lock is made as cc-proxy's own is: npm install --package-lock-only, then scripts/complete-lock.mjs
mkdir -p $work
if ! cmp -s test/fuzz/jazzer/package-lock.json $work/package-lock.json || [ ! -d $work/node_modules ]; then
  echo "installing the fuzzer"
  rm -rf $work/node_modules
  cp test/fuzz/jazzer/package.json .npmrc $work/
  (cd $work && cp ../../../test/fuzz/jazzer/package-lock.json . && npm ci --ignore-scripts --loglevel=error) > $log 2>&1 || {
    rm -f $work/package-lock.json
    skip "the fuzzer cannot be installed, see $log"
  }
fi
cp -L "$(command -v node)" $work/node
jazzer=(
  chroot $root /usr/bin/env -i PATH=/usr/bin:/bin HOME=/
  /fuzz/node --max-old-space-size=$((2 * memory)) /fuzz/node_modules/@jazzer.js/core/dist/cli.js
)
"${jazzer[@]}" --help < /dev/null > $log 2>&1 || skip "the fuzzer does not start, see $log"

# one file, all of which the fuzzer sees
esbuild test/fuzz/targets.ts --bundle --platform=node --format=cjs --target=node22.19 --main-fields=module,main \
  --legal-comments=none --log-level=warning --outfile=$work/targets.js
if [ $# -gt 0 ]; then targets=("$@"); else mapfile -t targets < <(ls test/fuzz/corpus); fi
rm -rf $work/corpus $work/known $work/found
mkdir $work/found
cp -r test/fuzz/corpus $work/known
cp -r $cache/corpus $work/corpus
cp test/fuzz/dictionary $work/

share=$((seconds / ${#targets[@]}))
[ $share -gt 0 ] || share=1
inputs=0
broken=0
for target in "${targets[@]}"; do
  mkdir -p $work/corpus/$target
  out=$cache/$target.log
  status=0
  # one that does not come to its end is ended
  timeout --foreground -k 5 $((share + 120)) "${jazzer[@]}" /fuzz/targets.js -f $target --sync \
    /fuzz/corpus/$target /fuzz/known/$target -- -max_total_time=$share -timeout=$longest -rss_limit_mb=$memory \
    -max_len=8192 -dict=/fuzz/dictionary -artifact_prefix=/fuzz/found/$target- -print_final_stats=1 < /dev/null > $out 2>&1 || status=$?
  runs=$(grep -oP 'number_of_executed_units: \K\d+' $out | tail -1) || runs=0
  rate=$(grep -oP 'average_exec_per_sec: +\K\d+' $out | tail -1) || rate=0
  first=$(grep -oP 'INITED +cov: \K\d+' $out | head -1) || first=0
  last=$(grep -oP ' cov: \K\d+' $out | tail -1) || last=0
  inputs=$((inputs + runs))
  printf '%-12s %4d s %9d inputs %6d/s   coverage %4d, at first %4d   %4d known, %4d found\n' \
    $target $share $runs $rate $last $first "$(ls test/fuzz/corpus/$target | wc -l)" "$(ls $work/corpus/$target | wc -l)"
  if [ $status -ne 0 ]; then
    broken=$((broken + 1))
    grep -E 'Uncaught Exception|SUMMARY|ERROR' $out | head -5 || tail -5 $out
    for input in $work/found/$target-*; do
      [ -e "$input" ] || continue
      cp "$input" $cache/
      cp "$input" $work/corpus/$target/ # the next run begins with it
      echo "$cache/$(basename "$input"): $(head -c 300 "$input" | base64 -w 0)"
    done
  elif [ $last -lt 20 ]; then
    broken=$((broken + 1))
    echo "$target: the fuzzer does not see the code it runs, see $out"
  fi
done
rm -rf $cache/corpus
mv $work/corpus $cache/corpus
if [ $broken -eq 0 ]; then
  echo "fuzzing: ${#targets[@]} targets, $inputs inputs, every promise kept"
else
  echo "fuzzing: ${#targets[@]} targets, $inputs inputs, $broken targets broken; see $cache"
  exit 1
fi
