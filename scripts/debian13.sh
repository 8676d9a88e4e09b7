#!/bin/bash
# Makes a small Debian 13 with systemd in .cache/trixie, once, for what needs a newer C library or another systemd than this
# host's. That takes root, apt and a minute.
#
#   scripts/debian13.sh LOG
#
# LOG gets what the tools say. Where it cannot be made here, the output says why, and the status is 77.
set -euo pipefail
cd "$(dirname "$0")/.."
log=$1
root=.cache/trixie
cannot() {
  echo "$1"
  exit 77
}

[ ! -x $root/usr/lib/systemd/systemd ] || [ ! -x $root/usr/bin/dbus-daemon ] || exit 0
[ "$(id -u)" = 0 ] || cannot "it takes root, to make a Debian 13 and run in it"
command -v apt-get > /dev/null || cannot "no apt-get"
if ! command -v debootstrap > /dev/null; then
  echo "installing debootstrap" >&2
  { apt-get update -q && apt-get install -q -y --no-install-recommends debootstrap; } > "$log" 2>&1 ||
    cannot "debootstrap is missing and cannot be installed, see $log"
fi
# where this host's own packages come from, updates aside
mirrors=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
  grep -v '^[^ ]*-' | cut -d' ' -f2 | sort -u) || true
part=$root.part
for mirror in $mirrors; do
  echo "making a Debian 13 in $root" >&2
  rm -rf --one-file-system $part
  if debootstrap --variant=minbase --include=systemd,dbus trixie $part "$mirror" > "$log" 2>&1; then
    rm -rf $part/var/cache/apt/archives/*.deb $part/var/lib/apt/lists/*
    rm -rf --one-file-system $root
    mv $part $root
    exit 0
  fi
done
cannot "debootstrap cannot make a Debian 13, see $log"
