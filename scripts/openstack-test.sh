#!/bin/bash
# sealblk with real Keystone, Barbican, Cinder on Ceph and OpenBao: key managers as `sealblk` asks them,
# and a cloud user's encrypted volumes in a guest. Starts all by itself and ends it again.
# usage: openstack-test.sh
# env:   OPENSTACK_DIR: an openstack.sh that runs already (it stays); SEALBLK_BIN_DIR: the programs
# needs: root (libvirt-test.sh); 3 GB of memory, 2 GB of disk for the environments
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."
step() { printf '\n== %s (%d s so far)\n' "$1" "$SECONDS"; }

step 'what is missing'
"$here/setup.sh" openstack
if [ -z "${SEALBLK_BIN_DIR:-}" ]; then
  step 'building the programs under test'
  cargo build --locked --profile test-fast -p sealblk-backend -p sealblk-cli
  SEALBLK_BIN_DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}")/test-fast
fi
export SEALBLK_BIN_DIR
"$here/openstack-venv.sh" >/dev/null

step 'starting the cloud'
if [ -z "${OPENSTACK_DIR:-}" ]; then
  OPENSTACK_DIR=$(mktemp -d "${SEALBLK_TEST_DIR:-/var/tmp}/sealblk-openstack-XXXXXX")
  # shellcheck disable=SC2064  # this directory, now
  trap "'$here/openstack.sh' down '$OPENSTACK_DIR'" EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
fi
# shellcheck disable=SC1090,SC1091  # openstack.sh writes it
. "$("$here/openstack.sh" up "$OPENSTACK_DIR")"
"$here/openstack.sh" memory "$OPENSTACK_DIR"

step 'key managers'
cargo test --locked -p sealblk-tests --test key_managers -- --test-threads=1 openstack_

step 'volumes of a cloud user in a guest'
"$here/libvirt-test.sh" real.test_openstack

"$here/openstack.sh" memory "$OPENSTACK_DIR"
step 'all passed'
