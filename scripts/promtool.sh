#!/bin/bash
# Tries the alert rules and what a daemon tells with Prometheus' own parser. Fetches promtool, if there
# is none, out of Debian's package, which is not installed: nothing starts.
# usage: promtool.sh [rules]        the alert rules and their unit tests
#        promtool.sh metrics FILE   an answer of a daemon to GET /metrics
# env:   SEALBLK_CACHE: where promtool is kept (90 MB), default /var/tmp/sealblk-cache
set -euo pipefail
rules=$(realpath "$(dirname "$0")/../dist/prometheus")
cache=${SEALBLK_CACHE:-/var/tmp/sealblk-cache}
kept=$cache/promtool

die() { echo "promtool: $*" >&2; exit 1; }

fetch() {
  local new=$kept.$$ log
  mkdir -p "$new"
  log=$new/log
  (cd "$new" && apt-get -q download prometheus && dpkg -x ./prometheus_*.deb root) >"$log" 2>&1 || {
    cat "$log" >&2
    rm -rf "$new"
    die "fetching Debian's package prometheus failed: run 'apt-get update' as root, or put a promtool into PATH"
  }
  # Somebody else may have been quicker: theirs is as good.
  mv -T "$new/root/usr/bin/promtool" "$kept"
  rm -rf "$new"
}

if ! tool=$(command -v promtool); then
  [ -x "$kept" ] || fetch
  tool=$kept
fi

case ${1:-rules} in
  rules)
    "$tool" check rules "$rules/sealblk-alerts.yml"
    (cd "$rules" && "$tool" test rules sealblk-alerts-test.yml)
    ;;
  metrics)
    [ $# = 2 ] || die "usage: promtool.sh metrics FILE"
    "$tool" check metrics <"$2"
    ;;
  *) die "unknown argument $1: 'rules' or 'metrics FILE'" ;;
esac
