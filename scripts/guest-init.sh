#!/bin/sh
# /init of the test guest: loads the drivers, runs the shell script that QEMU passes as fw_cfg entry
# opt/guestcmd, prints GUEST-RC=<its exit status>, powers off. Without such an entry (Nova has no way
# to pass one) it runs the lines that are typed at the console, each in a shell of its own, and prints
# that after each. With root=DEVICE on the kernel's command line it hands over to /sbin/init on that
# disk instead.
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /tmp
while read -r module; do insmod "$module" || echo "insmod $module failed"; done </etc/modules
root=$(sed -n 's/.*\broot=\([^ ]*\).*/\1/p' /proc/cmdline)
if [ -n "$root" ]; then
  mount "$root" /mnt && exec switch_root /mnt /sbin/init
  echo "GUEST-RC=125 (no root on $root)"
  poweroff -f
fi
echo GUEST-UP
script=/sys/firmware/qemu_fw_cfg/by_name/opt/guestcmd/raw
if [ ! -e $script ]; then
  stty -echo
  echo GUEST-READY
  while read -r line; do
    (eval "$line") </dev/null
    echo "GUEST-RC=$?"
  done
  poweroff -f
fi
cat $script >/tmp/script
sh /tmp/script
echo "GUEST-RC=$?"
sync
poweroff -f
