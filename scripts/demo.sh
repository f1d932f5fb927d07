#!/bin/bash
# Shows sealblk to a person, in two or three minutes: see tests/src/bin/demo.
# usage: demo.sh
set -euo pipefail
cd "$(dirname "$0")/.."
echo 'Building (the first time takes some minutes) ...'
cargo build --locked --quiet --profile test-fast -p sealblk-backend -p sealblk-cli
cargo build --locked --quiet -p sealblk-tests --bin demo
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
SEALBLK_BIN_DIR=$target/test-fast exec "$target/debug/demo"
