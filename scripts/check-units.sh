#!/bin/bash
# Checks the units in dist/systemd as far as that goes without a running systemd: what
# `systemd-analyze verify` complains of, and that their exposure stays as low as it is.
# usage: check-units.sh
set -euo pipefail
cd "$(dirname "$0")/.."
command -v systemd-analyze >/dev/null || { echo 'check-units: there is no systemd-analyze: apt-get install systemd' >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The programs aren't installed here; what is looked at is the rest.
for unit in dist/systemd/*.service dist/systemd/*.slice; do
  sed 's|^\(ExecStart=\)/usr/bin/[a-z-]*|\1/bin/true|' "$unit" >"$work/${unit##*/}"
done
complaints=$(systemd-analyze verify --man=no "$work"/* 2>&1 | grep -E "$work|sealblk" || true)
if [ -n "$complaints" ]; then
  echo "$complaints" >&2
  exit 1
fi
exposed() { # TENTHS UNIT
  systemd-analyze security --offline=true --no-pager --threshold="$1" "dist/systemd/$2" >"$work/security" || {
    tail -n 1 "$work/security" >&2
    echo "check-units: $2 is more exposed than $1 tenths" >&2
    exit 1
  }
}
exposed 15 sealblkd@.service
# Root, of necessity: see there.
exposed 35 sealblk-agent.service
