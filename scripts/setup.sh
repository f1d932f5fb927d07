#!/bin/bash
# Installs what building, testing and the demo need and this machine lacks: Debian packages, the
# guest's kernel and initramfs, cargo-deny. A second call only looks, in well under a second.
# usage: setup.sh [build|test|openstack]
#          build      the compiler's needs alone
#          test       what `make test` needs (default)
#          openstack  the same and what `make test-openstack` needs
# env:   SEALBLK_CACHE: where the guest's kernel and image go (see guest-image.sh)
# needs: Debian 12, cargo; root or sudo when something is missing
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PATH=$PATH:/usr/sbin:/sbin:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin

die() { echo "setup: $*" >&2; exit 1; }
say() { echo "setup: $*"; }

# libclang is left out on purpose: aws-lc-sys ships its bindings for x86-64 and arm64.
packages=(gcc g++ make libc6-dev pkg-config)
# libvirt-daemon, not libvirt-daemon-system: the program alone, without units, users or /etc/libvirt/*.conf.
what=${1:-test}
case $what in
  build) ;;
  test | openstack)
    packages+=(busybox-static cpio cryptsetup-bin e2fsprogs fio kmod shellcheck xz-utils
               dosfstools fdisk mtools syslinux syslinux-common systemd
               ceph-common ceph-mon ceph-osd librbd1 libiscsi-bin libiscsi7 tgt
               openssl curl libvirt-daemon libvirt-clients python3-libvirt python3-venv)
    if [ "$what" = openstack ]; then packages+=(python3-rados python3-rbd rabbitmq-server); fi ;;
  *) die "unknown argument $1: 'build', 'test' or 'openstack'" ;;
esac

version_of() { dpkg-query -W -f='${db:Status-Status} ${Version}' "$1" 2>/dev/null | sed -n 's/^installed //p'; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else die "packages are missing (${missing[*]} ${qemu[*]}) and this user may not install any: run 'make setup' as root, or install sudo"
  fi
}

apt_get() {
  local log
  log=$(mktemp)
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@" >"$log" 2>&1 </dev/null || {
    tail -n 20 "$log" >&2
    rm -f "$log"
    die "apt-get $* failed (above are its last lines)"
  }
  rm -f "$log"
}

# qemu-utils from backports breaks the release's own qemu-system-common, so QEMU then has to come
# from backports as a whole; that suite is enabled here if it isn't, and nothing else uses it.
use_backports() {
  local codename site
  codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
  suite="$codename-backports"
  # shellcheck disable=SC2016  # apt-get replaces these, not the shell
  local release='$(RELEASE)' where='$(SITE)'
  if apt-get indextargets --format "$release" 'Created-By: Packages' | grep -qxF "$suite"; then return; fi
  site=$(apt-get indextargets --format "$where" 'Created-By: Packages' "Codename: $codename" 'Component: main' | sed -n 1p)
  [ -n "$site" ] || die "no apt source of $codename found: enable $suite by hand"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site $suite main" |
    as_root tee /etc/apt/sources.list.d/sealblk-backports.list >/dev/null
  apt_get update
}

# Tests start tgtd, Ceph and RabbitMQ by themselves; their packages must not make this machine an iSCSI
# target or a message broker, now or at its next start. Masking a unit is what survives both;
# policy-rc.d, for this one call, is for machines without systemd. What was installed or masked before
# is the owner's and stays so.
without_services() {
  local unit policy=/usr/sbin/policy-rc.d
  local units=(tgt:tgt.service ceph-base:ceph-crash.service)
  [ "$what" != openstack ] ||
    units+=(rabbitmq-server:rabbitmq-server.service erlang-base:epmd.socket erlang-base:epmd.service)
  for unit in "${units[@]}"; do
    [ -z "$(version_of "${unit%%:*}")" ] || continue
    unit=/etc/systemd/system/${unit##*:}
    [ -e "$unit" ] || [ -L "$unit" ] || {
      as_root mkdir -p "${unit%/*}"
      as_root ln -s /dev/null "$unit"
      say "${unit##*/} is masked ('systemctl unmask ${unit##*/}' if you want it to run)"
    }
  done
  if [ ! -e $policy ] && [ ! -L $policy ]; then
    # Whatever happens, it goes again.
    trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\n# sealblk, while it installs packages for tests\nexit 101\n' | as_root tee $policy >/dev/null
    as_root chmod 755 $policy
  fi
}

missing=()
for package in "${packages[@]}"; do [ -n "$(version_of "$package")" ] || missing+=("$package"); done
qemu=()
if [ "$what" != build ]; then
  # qemu-storage-daemon is in qemu-system-common (7.2) or qemu-utils (10); both come along.
  # qemu-block-extra: QEMU's own rbd and iscsi drivers, which must be of qemu-utils' version.
  for package in qemu-system-x86 qemu-utils qemu-block-extra; do [ -n "$(version_of $package)" ] || qemu+=("$package"); done
fi
if [ ${#missing[@]} -gt 0 ] || [ ${#qemu[@]} -gt 0 ]; then
  say "installing ${missing[*]} ${qemu[*]}"
  command -v apt-get >/dev/null ||
    die "no apt-get here: install ${missing[*]} ${qemu[*]} by hand (the tests were written on Debian 12)"
  apt_get update
  if [ ${#missing[@]} -gt 0 ]; then
    [ "$what" = build ] || without_services
    apt_get install -y --no-install-recommends "${missing[@]}"
  fi
  target=()
  if [ ${#qemu[@]} -gt 0 ] && [[ $(version_of qemu-utils)$(version_of qemu-system-common) == *~bpo* ]]; then
    use_backports
    target=(-t "$suite")
  fi
  if [ ${#qemu[@]} -gt 0 ]; then apt_get install -y --no-install-recommends "${target[@]}" "${qemu[@]}"; fi
fi

command -v cargo >/dev/null || die "no cargo: install Rust 1.91 or newer from https://rustup.rs"
if [ "$what" != build ]; then
  for tool in cargo-clippy:clippy cargo-fmt:rustfmt; do
    command -v "${tool%%:*}" >/dev/null || rustup component add "${tool##*:}" ||
      die "${tool%%:*} is missing: rustup component add ${tool##*:}"
  done
  if ! command -v cargo-deny >/dev/null; then
    say "installing cargo-deny (about two minutes)"
    cargo install --quiet --locked cargo-deny
  fi
  # The guest's kernel is fetched with apt, whose lists may be missing or old on a new machine.
  "$here/guest-image.sh" >/dev/null 2>&1 || { apt_get update && "$here/guest-image.sh" >/dev/null; }
fi
