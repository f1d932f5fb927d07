#!/bin/bash
# A libvirtd for tests on a socket of its own. It sees /etc/libvirt, /var/lib/libvirt and so on as
# directories in DIR (a mount namespace), and a network of its own: a libvirt that this machine has
# otherwise is neither configured, nor met, nor its firewall rules changed. Its QEMUs run as its user.
# usage: libvirt.sh up|down DIR
#          up    start it unless it runs, wait until it answers, print its URI
#          down  end its guests, then it, by process id; remove DIR
# gives: DIR/socket/libvirt-sock, DIR/libvirtd.log
# needs: libvirt-daemon, libvirt-clients (setup.sh); root, for the namespaces
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
# shellcheck source=scripts/daemons.sh
. "$(dirname "$0")/daemons.sh"

directories=(/etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /run/libvirt)
files=(/etc/passwd /etc/group)

answers() { timeout 20 virsh -c "$uri" version; }

configure() {
  local place
  for place in "${directories[@]}"; do mkdir -p "$DIR/tree$place"; done
  # Debian's libvirtd looks this user and group up, though its configuration names others.
  for place in "${files[@]}"; do cp "$place" "$DIR/tree$place"; done
  grep -q ^libvirt-qemu: /etc/passwd ||
    echo 'libvirt-qemu:x:65534:65534::/nonexistent:/usr/sbin/nologin' >>"$DIR/tree/etc/passwd"
  grep -q ^libvirt-qemu: /etc/group || echo 'libvirt-qemu:x:65534:' >>"$DIR/tree/etc/group"
  mkdir -p "$DIR/socket"
  # Others than root must reach the guests' sockets and logs, for instance the agent's user.
  chmod 755 "$DIR"
  cat >"$DIR/libvirtd.conf" <<CONF
listen_tls = 0
listen_tcp = 0
unix_sock_dir = "$DIR/socket"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:file:$DIR/libvirtd.log"
CONF
  # No cgroups, no security driver, no virtlogd: they belong to the machine's own libvirt.
  cat >"$DIR/tree/etc/libvirt/qemu.conf" <<CONF
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
CONF
}

up() {
  command -v libvirtd >/dev/null || die "no libvirtd here: run 'make setup'"
  [ "$(id -u)" = 0 ] || die 'only root may start one'
  runs libvirtd || configure
  # Mount points; empty where there is no other libvirt.
  mkdir -p "${directories[@]}"
  # shellcheck disable=SC2016  # for the inner shell
  start libvirtd unshare --mount --net --propagation slave bash -c '
    set -e
    tree=$1 conf=$2
    shift 2
    for place; do mount --bind "$tree$place" "$place"; done
    exec libvirtd -f "$conf" -p /run/libvirt/libvirtd.pid
  ' bash "$DIR/tree" "$DIR/libvirtd.conf" "${directories[@]}" "${files[@]}"
  wait_for libvirtd 60 answers
  echo "$uri"
}

# What libvirtd left, should it have died before its guests.
kill_guests() {
  local file pid
  for file in "$DIR"/tree/run/libvirt/qemu/*.pid; do
    [ -e "$file" ] || continue
    pid=$(cat "$file")
    if tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "guest=$(basename "$file" .pid),"; then
      kill -KILL "$pid" 2>/dev/null || true
    fi
  done
}

down() {
  local name
  if runs libvirtd && answers >/dev/null 2>&1; then
    virsh -q -c "$uri" list --name | while read -r name; do
      [ -z "$name" ] || virsh -q -c "$uri" destroy "$name" >/dev/null 2>&1 || true
    done
  fi
  stop libvirtd
  kill_guests
  remove_directory
}

case ${1:-} in
  up | down)
    [ $# = 2 ] || die "usage: libvirt.sh up|down DIR"
    open_directory "$2"
    uri="qemu:///system?socket=$DIR/socket/libvirt-sock"
    "$1" ;;
  *) die 'usage: libvirt.sh up|down DIR' ;;
esac
