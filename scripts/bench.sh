#!/bin/bash
# Measures the release build beside its peers: see docs/benchmarks.md.
# usage: bench.sh [OPTIONS of sealblk-bench, see --help]
# env:   SEALBLK_CEPH_DIR: where --class rbd makes its cluster, which goes with the run; default
#        /var/tmp/sealblk-bench-ceph-UID. SEALBLK_TEST_DIR: where --class iscsi keeps its images;
#        default /dev/shm
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/sbin:/sbin
# Not the tests' cluster, which this one's end would take away.
export SEALBLK_CEPH_DIR=${SEALBLK_CEPH_DIR:-/var/tmp/sealblk-bench-ceph-$UID}
case " $* " in
  *' --class iscsi '* | *' --class=iscsi '*) export SEALBLK_TEST_DIR=${SEALBLK_TEST_DIR:-/dev/shm} ;;
esac
echo 'Building (the first time takes some minutes) ...' >&2
cargo build --locked --quiet --release -p sealblk-backend -p sealblk-cli -p sealblk-bench \
  -p sealblk-textbook
release=$(realpath -m "${CARGO_TARGET_DIR:-target}")/release
SEALBLK_BIN_DIR=$release exec "$release/sealblk-bench" "$@"
