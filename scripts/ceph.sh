#!/bin/bash
# A Ceph of one node for tests, on 127.0.0.1: mon.a, osd.0 (BlueStore on a sparse file), a pool
# `rbd`, cephx. No mgr: block images need none, and it would take 300 MB. Nothing in it outlives
# `down`, which stops by process id what `up` started and removes DIR.
# usage: ceph.sh up|down|status [DIR]; ceph.sh start mon|osd [DIR]
#          up      start what does not run (a second call only looks), wait until it serves, print
#                  DIR/ceph.conf; also restarts a mon or an osd that was killed, data intact
#          start   only that daemon, which was killed
#          down    kill both, remove DIR
#          status  one line a daemon; fails unless both run
# env:   SEALBLK_CEPH_DIR: DIR; default /var/tmp/sealblk-ceph-UID
#        SEALBLK_CEPH_EXTRA: lines for the end of ceph.conf; what stands there wins
# gives: DIR/ceph.conf, DIR/keyring (client.admin), DIR/client.sealblk.keyring (a user that may do
#        to images of that pool what a hypervisor's may), DIR/run/{mon.a,osd.0}.{pid,asok}
# needs: ceph-mon, ceph-osd, ceph-common (scripts/setup.sh); no root
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C
verb=${1:-} daemon=
if [ "$verb" = start ]; then daemon=${2:-}; shift; fi
DIR=$(realpath -m -- "${2:-${SEALBLK_CEPH_DIR:-/var/tmp/sealblk-ceph-$UID}}")
CONF=$DIR/ceph.conf
STORE_SIZE=6G
# Ours, below the ephemeral ports: mon, and the range an osd chooses from.
MON_PORTS=(23310 25990) OSD_PORTS=(26000 26499)
unset CEPH_CONF CEPH_ARGS

die() { echo "ceph: $*" >&2; exit 1; }

# Whether NAME is the daemon we started. A pid may be another process's by now, and a zombie, which
# some PID 1 are slow to bury, is no daemon any more.
runs() {
  local pid
  pid=$(cat "$DIR/run/$1.pid" 2>/dev/null) || return 1
  [ -n "$pid" ] && is_alive "$pid" || return 1
  tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "$CONF "
}

is_alive() { [ -e "/proc/$1/status" ] && ! grep -q '^State:.Z' "/proc/$1/status" 2>/dev/null; }

kill_daemon() {
  local pid
  if runs "$1"; then
    pid=$(cat "$DIR/run/$1.pid")
    # One that was stopped by SIGSTOP dies of this as well.
    kill -KILL "$pid" 2>/dev/null || true
    for ((i = 0; i < 500; i++)); do runs "$1" || break; sleep 0.02; done
    ! runs "$1" || die "$1 (process $pid) doesn't die"
  fi
  rm -f "$DIR/run/$1.pid"
}

# A session of its own: the terminal's Ctrl-C reaches who tears it down, not the daemon. Its output
# goes to a file and the lock's descriptor stays here, so nobody waits for it to close them.
start_daemon() { # NAME PROGRAM ARGS...
  local name=$1 program=$2
  shift 2
  setsid "$program" -c "$CONF" -f "$@" >>"$DIR/log/$name.out" 2>&1 </dev/null 9>&- &
  echo $! >"$DIR/run/$name.pid"
}

wait_for() { # NAME WHAT COMMAND...
  local name=$1 what=$2
  shift 2
  for ((i = 0; i < 600; i++)); do
    if "$@"; then return; fi
    is_alive "$(cat "$DIR/run/$name.pid")" || { tail -n 5 "$DIR/log/$name.out" >&2; return 1; }
    sleep 0.05
  done
  tail -n 5 "$DIR/log/$name.out" >&2
  die "waited in vain for $what"
}

ask() { ceph -c "$CONF" --connect-timeout 20 "$@" 2>>"$DIR/log/ask.out"; }
mon_serves() { ceph --admin-daemon "$DIR/run/mon.a.asok" mon_status 2>/dev/null | grep -q '"state": "leader"'; }
osd_serves() { ceph --admin-daemon "$DIR/run/osd.0.asok" status 2>/dev/null | grep -q '"state": "active"'; }

port_is_free() { ! grep -qiE ":$(printf '%04X' "$1") [0-9A-F]+:[0-9A-F]{4} 0A" /proc/net/tcp /proc/net/tcp6; }

# Two neighbours: messenger v2 and v1.
choose_port() {
  local port
  for ((i = 0; i < 200; i++)); do
    port=$((MON_PORTS[0] + 2 * (RANDOM % ((MON_PORTS[1] - MON_PORTS[0]) / 2))))
    if port_is_free "$port" && port_is_free $((port + 1)); then echo "$port"; return; fi
  done
  die "no free port between ${MON_PORTS[0]} and ${MON_PORTS[1]}"
}

write_conf() { # FSID ADDRESSES
  cat >"$CONF" <<CONF
[global]
fsid = $1
mon_host = $2
public_network = 127.0.0.0/8
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
keyring = $DIR/keyring
run_dir = $DIR/run
pid_file =
crash_dir = $DIR/log
log_file = $DIR/log/\$name.log
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
# A full disk of the machine is not what these tests are about.
mon_data_avail_warn = 1
mon_data_avail_crit = 1

[mon]
mon_data = $DIR/mon
admin_socket = $DIR/run/\$name.asok
mon_cluster_log_file = $DIR/log/cluster.log
# One monitor agrees with itself: no need to gather proposals for a second.
paxos_propose_interval = 0.05
paxos_min_wait = 0.02

[osd]
osd_data = $DIR/osd
admin_socket = $DIR/run/\$name.asok
ms_bind_port_min = ${OSD_PORTS[0]}
ms_bind_port_max = ${OSD_PORTS[1]}
osd_objectstore = bluestore
bluestore_block_create = true
bluestore_block_size = $(numfmt --from=iec $STORE_SIZE)
bluestore_fsck_on_mount = false
# Little memory: a cache of fixed size instead of one that grows to a target of 4 GiB.
bluestore_cache_autotune = false
bluestore_cache_size = 67108864
osd_map_cache_size = 20

[client]
admin_socket =
log_file =
# layering, exclusive-lock, object-map, fast-diff, deep-flatten: what OpenStack's clusters give.
rbd_default_features = 61

${SEALBLK_CEPH_EXTRA:-}
CONF
}

# The monitor's store, the keys, the pool, the osd's store.
create() {
  local fsid uuid port addresses
  rm -rf -- "$DIR"
  mkdir -p "$DIR"/{run,log,mon,osd}
  fsid=$(cat /proc/sys/kernel/random/uuid) uuid=$(cat /proc/sys/kernel/random/uuid)
  port=$(choose_port)
  addresses="[v2:127.0.0.1:$port,v1:127.0.0.1:$((port + 1))]"
  write_conf "$fsid" "$addresses"
  {
    ceph-authtool --create-keyring "$DIR/keyring" --gen-key -n client.admin \
      --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
    ceph-authtool --create-keyring "$DIR/client.sealblk.keyring" --gen-key -n client.sealblk \
      --cap mon 'profile rbd' --cap osd 'profile rbd pool=rbd'
    ceph-authtool --create-keyring "$DIR/osd/keyring" --gen-key -n osd.0 \
      --cap mon 'allow profile osd' --cap mgr 'allow profile osd' --cap osd 'allow *'
    ceph-authtool --create-keyring "$DIR/mon.keyring" --gen-key -n mon. --cap mon 'allow *'
    for keyring in keyring client.sealblk.keyring osd/keyring; do
      ceph-authtool "$DIR/mon.keyring" --import-keyring "$DIR/$keyring"
    done
    monmaptool --create --fsid "$fsid" --addv a "$addresses" "$DIR/monmap"
    ceph-mon -c "$CONF" --mkfs -i a --monmap "$DIR/monmap" --keyring "$DIR/mon.keyring"
    # The osd's store does not need the monitor, so both are made at once.
    ceph-osd -c "$CONF" -i 0 --mkfs --no-mon-config --osd-uuid "$uuid" --keyring "$DIR/osd/keyring"
  } >"$DIR/log/create.out" 2>&1 || { tail -n 20 "$DIR/log/create.out" >&2; die "making the cluster failed"; }
  echo "$uuid" >"$DIR/osd.uuid"
}

start_mon() {
  start_daemon mon.a ceph-mon -i a
  wait_for mon.a 'the monitor' mon_serves
}

# An osd whose monitor is away serves as soon as that is back.
start_osd() {
  start_daemon osd.0 ceph-osd -i 0 --keyring "$DIR/osd/keyring"
  ! runs mon.a || wait_for osd.0 'the osd' osd_serves
}

# What a test that died left killed or stopped runs again.
start_all() {
  for name in mon.a osd.0; do
    if runs $name; then kill -CONT "$(cat "$DIR/run/$name.pid")" 2>/dev/null || true; fi
  done
  runs mon.a || start_mon || die "the monitor doesn't start again"
  runs osd.0 || start_osd || die "the osd doesn't start again"
}

answers() { timeout "$1" rbd -c "$CONF" ls >/dev/null 2>>"$DIR/log/ask.out"; }

up() {
  for program in ceph ceph-authtool ceph-mon ceph-osd monmaptool rbd; do
    command -v $program >/dev/null || die "no $program here: run 'make setup'"
  done
  if [ ! -e "$DIR/ready" ]; then
    kill_daemon osd.0
    kill_daemon mon.a
    # A port that was free may be taken when the monitor binds it: then with another.
    for attempt in 1 2 3; do
      create
      if start_mon; then break; fi
      [ "$attempt" -lt 3 ] || die "the monitor doesn't start"
    done
    ask osd new "$(cat "$DIR/osd.uuid")" 0 >/dev/null || die "$(tail -n 1 "$DIR/log/ask.out")"
    start_osd || die "the osd doesn't start"
    ask osd pool create rbd 8 8 replicated >/dev/null || die "$(tail -n 1 "$DIR/log/ask.out")"
    timeout 60 rbd -c "$CONF" pool init rbd || die 'the pool is not served'
    touch "$DIR/ready"
  else
    start_all
    answers 30 || { kill_daemon osd.0; kill_daemon mon.a; start_all; }
  fi
  answers 60 || die "the cluster in $DIR doesn't answer: '$0 down' removes it"
  echo "$CONF"
}

start() {
  case $daemon in
    mon) runs mon.a || start_mon ;;
    osd) runs osd.0 || start_osd ;;
    *) die "start what? mon or osd" ;;
  esac || die "$daemon doesn't start again"
}

down() {
  kill_daemon osd.0
  kill_daemon mon.a
  # Only what is a cluster of ours is removed, whatever DIR says.
  if [ -e "$DIR/run" ] && [ -e "$CONF" ]; then rm -rf -- "$DIR"; fi
}

# One at a time: of tests that start at once, the first makes the cluster and the others find it.
locked() {
  [ ! -e "$DIR" ] || [ -O "$DIR" ] || die "$DIR is not ours"
  mkdir -p "$(dirname "$DIR")"
  exec 9>"$DIR.lock"
  flock -w 120 9 || die "another ceph.sh holds $DIR.lock"
  "$@"
}

case $verb in
  up | start | down) locked "$verb" ;;
  status)
    all=0
    for name in mon.a osd.0; do
      if runs $name; then echo "$name runs: process $(cat "$DIR/run/$name.pid")"
      else echo "$name does not run"; all=1; fi
    done
    exit $all ;;
  *) sed -n '5,10s/^# //p' "$0" >&2; exit 2 ;;
esac
