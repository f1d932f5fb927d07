#!/bin/bash
# Tries the packages of target/deb (`make deb`) in a clean Debian 12: installs them by apt, serves
# volumes by hand and through the agent, looks at users, manual pages and completions, removes and
# purges them. Nothing of the host is changed; a chroot has no systemd that runs, so units are verified
# and not started.
# usage: try-packages.sh [--no-nova]   --no-nova: without the plugin, whose python3-nova is large
# env:   SEALBLK_CACHE: where the clean system is kept (default /var/tmp/sealblk-cache)
# needs: root, debootstrap, an apt source of Debian 12
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${SEALBLK_CACHE:-/var/tmp/sealblk-cache}

# In the namespaces, with DIRECTORY NOVA: makes the system's copy in DIRECTORY and goes there.
inside() {
  local system=$1 nova=$2
  mount -t tmpfs -o size=4G,mode=0755 tmpfs "$system"
  tar -C "$system" --numeric-owner -xf "$cache/bookworm-minbase.tar"
  # That of mktemp's directory came along.
  chmod 0755 "$system"
  mount -t proc proc "$system/proc"
  mount --rbind /sys "$system/sys"
  mount --rbind /dev "$system/dev"
  mount -t tmpfs -o mode=0755 tmpfs "$system/run"
  cp /etc/resolv.conf "$system/etc/resolv.conf" 2>/dev/null || true
  [ ! -e /etc/apt/apt.conf.d ] || find /etc/apt/apt.conf.d -iname '*proxy*' -exec cp {} "$system/etc/apt/apt.conf.d/" \;
  printf '#!/bin/sh\nexit 101\n' >"$system/usr/sbin/policy-rc.d"
  chmod 755 "$system/usr/sbin/policy-rc.d"
  mkdir "$system/packages"
  cp target/deb/*.deb scripts/try-packages-inside.sh scripts/try-packages-client.py "$system/packages/"
  env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
    NOVA="$nova" ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
    chroot "$system" bash /packages/try-packages-inside.sh
}

nova=yes
case ${1:-} in
  --no-nova) nova=no ;;
  inside)
    inside "$2" "$3"
    exit
    ;;
  '') ;;
  *) echo "usage: try-packages.sh [--no-nova]" >&2; exit 2 ;;
esac

die() { echo "try-packages: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die 'needs root (chroot)'
command -v debootstrap >/dev/null || die 'debootstrap is missing: apt-get install debootstrap'
ls target/deb/*.deb >/dev/null 2>&1 || die "no packages: run 'make deb'"

# shellcheck disable=SC2016  # apt-get replaces it, not the shell
site=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Codename: bookworm' 'Component: main' | sed -n 1p)
site=${site:-http://deb.debian.org/debian}
clean="$cache/bookworm-minbase.tar"
if [ ! -e "$clean" ]; then
  mkdir -p "$cache"
  echo "try-packages: making a clean system from $site"
  work=$(mktemp -d "$cache/minbase.XXXXXX")
  debootstrap --variant=minbase bookworm "$work" "$site" >"$work.log" 2>&1 || {
    tail -n 20 "$work.log" >&2
    rm -rf "$work"
    die 'debootstrap failed'
  }
  tar -C "$work" --numeric-owner -cf "$clean.new" .
  mv "$clean.new" "$clean"
  rm -rf "$work" "$work.log"
fi

system=$(mktemp -d "$cache/try.XXXXXX")
# Mounts and processes are in namespaces of their own, and gone with them.
status=0
unshare --mount --propagation private --pid --fork --mount-proc \
  bash scripts/try-packages.sh inside "$system" "$nova" || status=$?
rmdir "$system"
[ "$status" = 0 ] || die 'failed'
echo 'try-packages: all is well'
