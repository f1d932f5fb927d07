#!/bin/bash
# Nova's libvirt driver with the plugin on a node's real parts: libvirtd, QEMU (without hardware
# virtualisation), sealblk-agent, sealblkd; volumes on loop devices. No OpenStack service.
# usage: libvirt-test.sh [TEST...]      names as unittest has them; default: all (real.test_local)
# env:   SEALBLK_CACHE: nova.sh's environment, default /var/tmp/sealblk-cache
#        SEALBLK_BIN_DIR: the programs under test; default: built into target/test-fast
# needs: setup.sh; root, for loop devices and libvirtd
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repo=${here%/*}
venv=${SEALBLK_CACHE:-/var/tmp/sealblk-cache}/nova-34

die() { echo "libvirt-test: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die 'only root has loop devices'
if [ -z "${SEALBLK_BIN_DIR:-}" ]; then
  (cd "$repo" && cargo build --locked --profile test-fast -p sealblk-backend -p sealblk-cli)
  SEALBLK_BIN_DIR=$(cd "$repo" && realpath -m "${CARGO_TARGET_DIR:-target}")/test-fast
fi
export SEALBLK_BIN_DIR PYTHONWARNINGS=ignore PYTHONDONTWRITEBYTECODE=1
[ -x "$SEALBLK_BIN_DIR/sealblk-agent" ] || die "no sealblk-agent in $SEALBLK_BIN_DIR"
"$here/nova.sh" setup

# Debian's binding of libvirt, and nothing else of Debian's Python modules.
bindings=$(mktemp -d)
trap 'rm -rf "$bindings"' EXIT
for module in /usr/lib/python3/dist-packages/libvirt*; do
  case ${module##*/} in libvirt.py | libvirt_qemu.py | libvirtmod.*.so | libvirtmod_qemu.*.so) ln -s "$module" "$bindings/" ;; esac
done
[ -e "$bindings/libvirt.py" ] || die "no python3-libvirt: run 'make setup'"
cd "$repo/nova-plugin/tests"
[ $# -gt 0 ] || set -- real.test_local
PYTHONPATH=$PWD:$bindings "$venv/bin/python" -m real "$@"
