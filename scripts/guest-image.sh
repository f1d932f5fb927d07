#!/bin/bash
# Makes what a test guest boots: Debian's cloud kernel (fetched, not installed) and an initramfs
# with busybox, the virtio drivers, blkid, ext4 tools and fio, which runs the script it is given.
# Builds only what is missing or older than this script. Prints the directory.
# usage: guest-image.sh
# env:   SEALBLK_CACHE: the directory, default ~/.cache/sealblk (135 MB)
# gives: vmlinuz; guest.img (everything), tiny.img (no fio: boots in half the time)
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
dir=${SEALBLK_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/sealblk}
self=$(realpath "$0")
init=$(dirname "$self")/guest-init.sh
kernel=$dir/kernel

die() { echo "guest-image: $*" >&2; exit 1; }

fetch_kernel() {
  local package
  package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends:/ {print $2; exit}')
  [ -n "$package" ] || die "apt knows no linux-image-cloud-amd64: run 'apt-get update' as root"
  echo "guest-image: fetching $package" >&2
  rm -rf "$kernel.new"
  mkdir -p "$kernel.new"
  (cd "$kernel.new" && apt-get -q download "$package" && dpkg -x ./*.deb root) >"$dir/kernel.log" 2>&1 ||
    { cat "$dir/kernel.log" >&2; die "fetching $package failed"; }
  rm -f "$kernel.new"/*.deb
  depmod -b "$kernel.new/root" "$(ls "$kernel.new/root/lib/modules")"
  rm -rf "$kernel"
  mv "$kernel.new" "$kernel"
  cp "$kernel"/root/boot/vmlinuz-* "$dir/vmlinuz.new"
  mv "$dir/vmlinuz.new" "$dir/vmlinuz"
}

copy_with_libraries() { # PROGRAM...
  local program library
  for program in "$@"; do
    program=$(command -v "$program") || die "$program is not installed: run scripts/setup.sh"
    { echo "$program"; ldd "$program" | grep -oE '/[^ ]+'; } | while read -r library; do
      [ -e "$root$library" ] || install -D "$(readlink -f "$library")" "$root$library"
    done
  done
}

build() { # IMAGE PROGRAM...
  local image=$1 version modules busybox module
  shift
  if [ "$image" -nt "$self" ] && [ "$image" -nt "$init" ] && [ "$image" -nt "$dir/vmlinuz" ]; then return; fi
  echo "guest-image: building ${image##*/}" >&2
  root=$(mktemp -d)
  # shellcheck disable=SC2064  # this root, now
  trap "rm -rf '$root'" EXIT
  version=$(ls "$kernel/root/lib/modules")
  modules=/lib/modules/$version
  mkdir -p "$root"/{bin,sbin,proc,sys,dev,tmp,etc,mnt,run} "$root$modules"
  busybox=$(command -v busybox) || die "busybox-static is not installed: run scripts/setup.sh"
  cp "$busybox" "$root/bin/busybox"
  ln -s busybox "$root/bin/sh"
  for module in virtio_pci virtio_blk qemu_fw_cfg; do
    modprobe -d "$kernel/root" -S "$version" --show-depends "$module"
  done | awk '$1 == "insmod" && !seen[$2]++ {print $2}' | while read -r module; do
    cp "$module" "$root$modules/"
    echo "$modules/${module##*/}" >>"$root/etc/modules"
  done
  copy_with_libraries "$@"
  install -m755 "$init" "$root/init"
  (cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$image.new"
  mv "$image.new" "$image"
  rm -rf "$root"
  trap - EXIT
}

mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
if [ ! -e "$dir/vmlinuz" ] || [ ! -d "$kernel" ]; then fetch_kernel; fi
build "$dir/tiny.img" blkid e2fsck mkfs.ext4
build "$dir/guest.img" blkid e2fsck fio mkfs.ext4
echo "$dir"
