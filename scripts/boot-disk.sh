#!/bin/bash
# Makes a disk image that a BIOS boots: an MBR, a FAT partition with syslinux, kernel and initramfs,
# and an ext4 root whose init writes a file, says BOOTED-FROM-DISK and powers off. No root needed.
# usage: boot-disk.sh IMAGE
# env:   SEALBLK_CACHE, see guest-image.sh
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin MTOOLS_SKIP_CHECK=1
image=$1
here=$(cd "$(dirname "$0")" && pwd)
cache=$("$here/guest-image.sh")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mib=$((1 << 20))
boot_mib=64 root_mib=32
rm -f "$image"
truncate -s $(((1 + boot_mib + root_mib + 1) * mib)) "$image"
sfdisk -q "$image" <<END
label: dos
start=2048, size=$((boot_mib * 2048)), type=c, bootable
start=$(((1 + boot_mib) * 2048)), size=$((root_mib * 2048)), type=83
END
dd if=/usr/lib/syslinux/mbr/mbr.bin of="$image" bs=440 count=1 conv=notrunc status=none

cat >"$work/syslinux.cfg" <<END
SERIAL 0 115200
DEFAULT linux
LABEL linux
  LINUX /vmlinuz
  INITRD /tiny.img
  APPEND console=ttyS0 quiet panic=-1 root=/dev/vda2
END
mkfs.vfat -F 32 --offset 2048 -h 2048 "$image" $((boot_mib * 1024)) >/dev/null
mcopy -i "$image@@$mib" "$cache/vmlinuz" "$cache/tiny.img" "$work/syslinux.cfg" ::/
syslinux --install --offset "$mib" "$image"

root=$work/root
mkdir -p "$root"/{bin,sbin,proc,sys,dev,mnt,tmp}
cp "$(command -v busybox)" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
cat >"$root/sbin/init" <<'END'
#!/bin/sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -o remount,rw /
date >/boots && sync && mount -o remount,ro /
echo "BOOTED-FROM-DISK root on $(grep ' / ext4' /proc/mounts | cut -d' ' -f1)"
echo GUEST-RC=0
poweroff -f
END
chmod +x "$root/sbin/init"
mkfs.ext4 -q -d "$root" -E offset=$(((1 + boot_mib) * mib)) "$image" ${root_mib}m
