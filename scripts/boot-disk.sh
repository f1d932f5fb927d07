#!/bin/bash
# Makes a disk image that a BIOS boots by itself: a FAT file system with syslinux, kernel and
# initramfs. No root needed.
#
# There is no partition table on purpose: an MBR would load the partition's boot sector over
# itself, and QEMU without hardware virtualisation does not notice when code that it has translated
# is replaced by another process, as a vhost-user daemon is; it would run the old code again.
# usage: boot-disk.sh IMAGE
# env:   SEALBLK_CACHE, see guest-image.sh
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin MTOOLS_SKIP_CHECK=1
image=$1
cache=$("$(dirname "$0")/guest-image.sh")
config=$(mktemp)
trap 'rm -f "$config"' EXIT
cat >"$config" <<'END'
SERIAL 0 115200
DEFAULT linux
LABEL linux
  LINUX /vmlinuz
  INITRD /tiny.img
  APPEND console=ttyS0 quiet panic=-1
END
rm -f "$image"
truncate -s 48M "$image"
mkfs.vfat -F 16 "$image" >/dev/null
mcopy -i "$image" "$cache/vmlinuz" "$cache/tiny.img" ::/
mcopy -i "$image" "$config" ::/syslinux.cfg
syslinux --install "$image"
