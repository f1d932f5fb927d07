#!/bin/bash
# Shows sealblk to a person, in two or three minutes: see tests/src/bin/demo.
# usage: demo.sh
set -euo pipefail
cd "$(dirname "$0")/.."
echo 'Building (the first time takes some minutes) ...'
cargo build --locked --quiet --profile test-fast -p sealblk-backend -p sealblk-cli
cargo build --locked --quiet -p sealblk-tests --bin demo
# A cluster of its own, gone at the end whatever happens.
SEALBLK_CEPH_DIR=$(mktemp -d /var/tmp/sealblk-demo-XXXXXX)/ceph
export SEALBLK_CEPH_DIR
trap 'scripts/ceph.sh down >/dev/null; rm -rf -- "${SEALBLK_CEPH_DIR%/ceph}"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
SEALBLK_BIN_DIR=$target/test-fast "$target/debug/demo"
