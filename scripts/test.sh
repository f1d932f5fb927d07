#!/bin/bash
# Lints, unit tests, whole-system tests one after the other (each boots machines or loads both
# processors), a short fuzz run. Stops at the first failure.
# usage: test.sh [storage]   storage: only what the above leaves out, the rest of the suite of rotation
#                            on Ceph and iSCSI: tests in modules that are named rest_on_...
# (Those in modules named openstack_... need servers: `make test-openstack`.)
# env:   FUZZ_SECONDS: per fuzz target, default 10
set -euo pipefail
cd "$(dirname "$0")/.."
step() { printf '\n== %s (%d s so far)\n' "$1" "$SECONDS"; }

case ${1:-} in
  '') chosen=(--skip rest_on_ --skip openstack_) ;;
  storage) chosen=(rest_on_) ;;
  *) echo "test: unknown argument $1: 'storage' or nothing" >&2; exit 2 ;;
esac

# A Ceph for this run alone, which the first test that needs one starts; it goes however this ends.
# (A second run, or tests run alone, have another.)
SEALBLK_CEPH_DIR=$(mktemp -d "${SEALBLK_TEST_DIR:-/var/tmp}/sealblk-ceph-XXXXXX")/ceph
export SEALBLK_CEPH_DIR
# shellcheck disable=SC2317  # called by the trap
tear_down() {
  scripts/ceph.sh down || true
  rm -rf -- "${SEALBLK_CEPH_DIR%/ceph}"
}
trap tear_down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if [ "${1:-}" = '' ]; then
  step 'lints'
  scripts/lint.sh

  step 'unit tests'
  cargo test --locked --workspace --exclude sealblk-tests
fi

step 'building the programs under test'
cargo build --locked --profile test-fast -p sealblk-backend -p sealblk-cli
SEALBLK_BIN_DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}")/test-fast
export SEALBLK_BIN_DIR

if [ "${1:-}" = '' ]; then
  step "Nova's plugin"
  scripts/nova.sh test unit l1
fi

if [ "${1:-}" = '' ]; then
  step "Nova's driver with a real libvirt, QEMU, agent and daemons"
  scripts/libvirt-test.sh
fi

step 'whole-system tests'
cargo test --locked -p sealblk-tests -- --test-threads=1 --nocapture "${chosen[@]}"

if [ "${1:-}" = '' ] && [ -x scripts/fuzz.sh ]; then
  step 'fuzzing'
  scripts/fuzz.sh "${FUZZ_SECONDS:-10}"
fi
step 'all passed'
