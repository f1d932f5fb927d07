#!/bin/bash
# Measures the release build beside its peers: see docs/benchmarks.md.
# usage: bench.sh [OPTIONS of sealblk-bench, see --help]
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/sbin:/sbin
echo 'Building (the first time takes some minutes) ...' >&2
cargo build --locked --quiet --release -p sealblk-backend -p sealblk-cli -p sealblk-bench \
  -p sealblk-textbook
release=$(realpath -m "${CARGO_TARGET_DIR:-target}")/release
SEALBLK_BIN_DIR=$release exec "$release/sealblk-bench" "$@"
