#!/bin/bash
# OpenStack's key manager and volume service for tests, on 127.0.0.1: RabbitMQ, Keystone, Barbican
# (simple_crypto), Cinder (API, scheduler, volume) on a one-node Ceph, and OpenBao. Without systemd,
# each a process of ours with SQLite or files in DIR. For tests only: nothing is encrypted in transit.
# usage: openstack.sh up|down DIR; openstack.sh start|stop SERVER DIR; openstack.sh memory DIR
#          up      start what doesn't run, make accounts at the first time, print DIR/env
#          down    end all by process id, remove DIR
#          start, stop   one of rabbit keystone barbican cinder-api cinder-scheduler cinder-volume bao
#          memory  resident memory of each, in MiB
# gives: DIR/env: addresses and credentials, to be sourced (docs/testing-openstack.md)
# env:   SEALBLK_CACHE (openstack-venv.sh); WITHOUT_BAO=1: no OpenBao
# needs: setup.sh openstack; openstack-venv.sh makes the rest (a minute or two at the first time)
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin PYTHONWARNINGS=ignore
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/daemons.sh
. "$here/daemons.sh"
servers=(bao cinder-volume cinder-scheduler cinder-api barbican keystone rabbit)
rabbit_lib=/usr/lib/rabbitmq/bin

# What is chosen once: ports, passwords, the key under which Barbican keeps all others.
choose() {
  [ -e "$DIR/chosen" ] || {
    {
      free_ports 8
      od -An -N16 -tx1 /dev/urandom | tr -d ' '
      head -c32 /dev/urandom | base64
    } >"$DIR/chosen.new"
    mv "$DIR/chosen.new" "$DIR/chosen"
  }
  { read -r port; read -r password; read -r kek; } <"$DIR/chosen"
  keystone=http://127.0.0.1:$port/v3
  barbican=http://127.0.0.1:$((port + 1))
  cinder=http://127.0.0.1:$((port + 2))
  bao=http://127.0.0.1:$((port + 3)) # and 4
  rabbit=$((port + 5)) # and 6, 7
  python=$venv/bin/python
  ceph_conf=$DIR/ceph/ceph.conf
}

# The part of Keystone's clients' configuration that is the same everywhere.
keystone_client() { # USER
  cat <<CONF
[keystone_authtoken]
auth_type = password
auth_url = $keystone
www_authenticate_uri = $keystone
username = $1
password = $password
project_name = service
user_domain_id = default
project_domain_id = default
service_token_roles_required = true
CONF
}

# Once, what must be made before a server's first start.
once() { # NAME COMMAND...
  local name=$1
  shift
  [ ! -e "$DIR/$name.done" ] || return 0
  "$@" >"$DIR/$name.out" 2>&1 || { tail -n 8 "$DIR/$name.out" >&2; die "$name failed; its output is in $DIR/$name.out"; }
  touch "$DIR/$name.done"
}

# These applications read sys.argv, which is gunicorn's then: it is hidden from them.
serve() { # NAME PORT MODULE ENVIRONMENT...
  local name=$1 at=$2 module=$3
  shift 3
  start "$name" env "$@" "$venv/bin/gunicorn" --no-control-socket -w 1 --threads 4 \
    --pythonpath "$DIR" -b "127.0.0.1:$at" "$module:application"
}

start_rabbit() {
  mkdir -p "$DIR/rabbit"/{mnesia,log,home}
  echo '[].' >"$DIR/rabbit/plugins"
  # An epmd and a cookie of its own. One scheduler thread is plenty.
  local environment=(HOME="$DIR/rabbit/home" RABBITMQ_NODENAME="sealblk$rabbit@localhost"
    RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT="$rabbit" RABBITMQ_DIST_PORT=$((rabbit + 1))
    RABBITMQ_MNESIA_BASE="$DIR/rabbit/mnesia" RABBITMQ_LOG_BASE="$DIR/rabbit/log"
    RABBITMQ_PID_FILE="$DIR/rabbit/node.pid" RABBITMQ_ENABLED_PLUGINS_FILE="$DIR/rabbit/plugins"
    RABBITMQ_CONF_ENV_FILE=/dev/null ERL_EPMD_PORT=$((rabbit + 2)) ERL_EPMD_ADDRESS=127.0.0.1
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1} +S 1:1')
  start rabbit env "${environment[@]}" "$rabbit_lib/rabbitmq-server"
  # The client's Erlang would start an epmd that outlives all: the port itself tells enough.
  wait_for rabbit 90 listening "$rabbit"
}

start_keystone() {
  cat >"$DIR/keystone.conf" <<CONF
[DEFAULT]
log_file = $DIR/keystone.log
[database]
connection = sqlite:///$DIR/keystone.db
[token]
provider = fernet
[fernet_tokens]
key_repository = $DIR/fernet
[fernet_receipts]
key_repository = $DIR/fernet
[credential]
key_repository = $DIR/credential
[cache]
enabled = true
backend = oslo_cache.dict
[identity]
password_hash_rounds = 4
CONF
  # Passwords come by the environment, not by arguments.
  # shellcheck disable=SC2016  # for the inner shell
  once keystone-init env OS_BOOTSTRAP_PASSWORD="$password" bash -euc '
    manage() { "$1/bin/keystone-manage" --config-file "$2/keystone.conf" "${@:3}"; }
    who=(--keystone-user "$(id -un)" --keystone-group "$(id -gn)")
    mkdir -p -m 700 "$2/fernet" "$2/credential"
    manage "$1" "$2" db_sync
    manage "$1" "$2" fernet_setup "${who[@]}"
    manage "$1" "$2" credential_setup "${who[@]}"
    manage "$1" "$2" bootstrap --bootstrap-region-id RegionOne --bootstrap-admin-url "$3" \
      --bootstrap-internal-url "$3" --bootstrap-public-url "$3"
  ' bash "$venv" "$DIR" "$keystone"
  echo "import sys; sys.argv = ['keystone']; from keystone.wsgi.api import application" >"$DIR/serve_keystone.py"
  serve keystone "$port" serve_keystone OS_KEYSTONE_CONFIG_DIR="$DIR" OS_KEYSTONE_CONFIG_FILES=keystone.conf
  wait_http keystone "$keystone"
}

start_barbican() {
  # Barbican finds its configuration in oslo.config's usual places alone: it gets a HOME.
  mkdir -p "$DIR/barbican/.barbican"
  {
    cat <<CONF
[DEFAULT]
host_href = $barbican
log_file = $DIR/barbican.log
db_auto_create = false
[database]
connection = sqlite:///$DIR/barbican.db
[queue]
enable = false
[secretstore]
namespace = barbican.secretstore.plugin
enabled_secretstore_plugins = store_crypto
[crypto]
namespace = barbican.crypto.plugin
enabled_crypto_plugins = simple_crypto
[simple_crypto_plugin]
kek = $kek
CONF
    keystone_client barbican
  } >"$DIR/barbican/.barbican/barbican.conf"
  cp "$venv/etc/barbican/barbican-api-paste.ini" "$DIR/barbican/.barbican/"
  # --db-url, for `db upgrade` doesn't read the configuration.
  once barbican-init env HOME="$DIR/barbican" "$venv/bin/barbican-manage" db upgrade --db-url "sqlite:///$DIR/barbican.db"
  # barbican.wsgi.api has /etc/barbican built in.
  cat >"$DIR/serve_barbican.py" <<PYTHON
import sys
sys.argv = ['barbican']
from paste import deploy
application = deploy.loadapp('config:$DIR/barbican/.barbican/barbican-api-paste.ini')
PYTHON
  serve barbican $((port + 1)) serve_barbican HOME="$DIR/barbican"
  wait_http barbican "$barbican/"
}

prepare_cinder() {
  local module files
  mkdir -p "$DIR/cinder"/{state,lock,log,coordination,bindings}
  # Debian's bindings of librbd, and nothing else of Debian's Python modules.
  for module in rbd rados; do
    files=(/usr/lib/python3/dist-packages/"$module".cpython-*-x86_64-linux-gnu.so)
    [ -e "${files[0]}" ] || die "no Python module $module: run 'scripts/setup.sh openstack'"
    ln -sf "${files[0]}" "$DIR/cinder/bindings/"
  done
  {
    cat <<CONF
[DEFAULT]
transport_url = rabbit://guest:guest@127.0.0.1:$rabbit/
auth_strategy = keystone
enabled_backends = ceph
default_volume_type = plain
state_path = $DIR/cinder/state
api_paste_config = $venv/etc/cinder/api-paste.ini
rootwrap_config = $venv/etc/cinder/rootwrap.conf
resource_query_filters_file = $venv/etc/cinder/resource_filters.json
log_dir = $DIR/cinder/log
host = localhost
my_ip = 127.0.0.1
osapi_volume_workers = 1
quota_volumes = -1
quota_gigabytes = -1
[database]
connection = sqlite:///$DIR/cinder.db
[oslo_concurrency]
lock_path = $DIR/cinder/lock
[coordination]
backend_url = file://$DIR/cinder/coordination
[key_manager]
backend = barbican
[barbican]
auth_endpoint = $keystone
barbican_endpoint = $barbican
[ceph]
volume_driver = cinder.volume.drivers.rbd.RBDDriver
volume_backend_name = ceph
rbd_pool = rbd
rbd_user = sealblk
rbd_ceph_conf = $ceph_conf
rbd_exclusive_cinder_pool = true
CONF
    keystone_client cinder
  } >"$DIR/cinder.conf"
  once cinder-init "$venv/bin/cinder-manage" --config-file "$DIR/cinder.conf" db sync
}

start_cinder_api() {
  echo "import sys; sys.argv = ['cinder-api', '--config-file', '$DIR/cinder.conf']; from cinder.wsgi.api import application" >"$DIR/serve_cinder.py"
  serve cinder-api $((port + 2)) serve_cinder
  wait_http cinder-api "$cinder/"
}

start_cinder_scheduler() {
  start cinder-scheduler "$venv/bin/cinder-scheduler" --config-file "$DIR/cinder.conf"
}

start_cinder_volume() {
  # It runs qemu-img by privsep: PATH has the helper.
  start cinder-volume env PYTHONPATH="$DIR/cinder/bindings" CEPH_CONF="$ceph_conf" PATH="$venv/bin:$PATH" \
    "$venv/bin/cinder-volume" --config-file "$DIR/cinder.conf"
}

start_bao() {
  local program
  program=$("$here/openstack-venv.sh" bao)
  mkdir -p "$DIR/bao/data"
  cat >"$DIR/bao/config.hcl" <<CONF
storage "raft" {
  path    = "$DIR/bao/data"
  node_id = "n1"
  performance_multiplier = 1
}
listener "tcp" {
  address     = "127.0.0.1:$((port + 3))"
  tls_disable = true
}
disable_mlock = true
api_addr = "$bao"
cluster_addr = "https://127.0.0.1:$((port + 4))"
CONF
  start bao env -u VAULT_TOKEN -u BAO_TOKEN HOME="$DIR/bao" "$program" server -config="$DIR/bao/config.hcl"
  wait_http bao "$bao/v1/sys/seal-status"
  # Unseals it after each start; at the first time makes mounts, a policy and a role.
  "$python" "$here/openstack_accounts.py" bao "$DIR/bao/init.json" "$bao" >"$DIR/bao.env.new"
  mv "$DIR/bao.env.new" "$DIR/bao.env"
}

up() {
  command -v rabbitmqctl >/dev/null || die "no RabbitMQ here: run 'scripts/setup.sh openstack'"
  local extra pids=() pid
  # Cinder is a hypervisor's user of Ceph, not its administrator.
  extra=$(printf '[client.sealblk]\nkeyring = %s\n' "$DIR/ceph/client.sealblk.keyring")
  # What doesn't need each other starts at once. A part that fails says why and ends its subshell.
  start_rabbit & pids+=($!)
  SEALBLK_CEPH_EXTRA=$extra "$here/ceph.sh" up "$DIR/ceph" >"$DIR/ceph.out" 2>&1 9>&- & pids+=($!)
  prepare_cinder & pids+=($!)
  if [ -z "${WITHOUT_BAO:-}" ]; then start_bao & pids+=($!); fi
  (start_keystone; start_barbican) & pids+=($!)
  for pid in "${pids[@]}"; do wait "$pid" || die "not everything started: what failed is said above, or in $DIR/ceph.out"; done
  if [ ! -e "$DIR/accounts.env" ]; then
    OS_PASSWORD=$password "$python" "$here/openstack_accounts.py" identity "$keystone" "$barbican" "$cinder" >"$DIR/accounts.env.new"
    mv "$DIR/accounts.env.new" "$DIR/accounts.env"
  fi
  start_cinder_scheduler
  start_cinder_volume
  start_cinder_api
  {
    cat "$DIR/accounts.env"
    cat <<ENV
export OS_AUTH_URL=$keystone OS_USERNAME=admin OS_PASSWORD=$password OS_PROJECT_NAME=admin
export OS_USER_DOMAIN_ID=default OS_PROJECT_DOMAIN_ID=default OS_IDENTITY_API_VERSION=3 OS_REGION_NAME=RegionOne
export BARBICAN_URL=$barbican CINDER_URL=$cinder CEPH_CONF=$ceph_conf
export OPENSTACK_DIR=$DIR OPENSTACK_VENV=$venv
ENV
    [ ! -e "$DIR/bao.env" ] || cat "$DIR/bao.env"
  } >"$DIR/env"
  # shellcheck disable=SC1091  # made above
  (. "$DIR/env"; "$python" "$here/openstack_accounts.py" volumes) >"$DIR/volumes.out" 2>&1 ||
    { tail -n 5 "$DIR/volumes.out" >&2; die "Cinder isn't ready; see $DIR/cinder/log"; }
  echo "$DIR/env"
}

down() {
  stop "${servers[@]}"
  # RabbitMQ's epmd is a daemon of its own, which follows nobody.
  local pid
  for pid in $(pgrep -x epmd || true); do
    if tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -qxF "HOME=$DIR/rabbit/home"; then kill "$pid" 2>/dev/null || true; fi
  done
  "$here/ceph.sh" down "$DIR/ceph"
  remove_directory
}

memory() {
  local name pid start
  for name in "${servers[@]}"; do
    runs "$name" || continue
    read -r pid start <"$DIR/$name.pid"
    # Its session: gunicorn's workers, privsep's helper.
    ps -o rss= -s "$(ps -o sid= -p "$pid" | tr -d ' ')" | awk -v name="$name" '{all += $1} END {printf "%-18s %5d\n", name, all / 1024}'
  done
  for name in mon.a osd.0; do
    pid=$(cat "$DIR/ceph/run/$name.pid" 2>/dev/null) || continue
    ps -o rss= -p "$pid" | awk -v name="ceph $name" '{printf "%-18s %5d\n", name, $1 / 1024}'
  done
}

usage='usage: openstack.sh up|down|memory DIR; openstack.sh start|stop SERVER DIR'
umask 077
case ${1:-} in
  up | down | memory)
    [ $# = 2 ] || die "$usage"
    open_directory "$2"
    if [ "$1" = up ]; then venv=$("$here/openstack-venv.sh"); choose; fi
    "$1" ;;
  start | stop)
    [ $# = 3 ] || die "$usage"
    open_directory "$3"
    [ -e "$DIR/chosen" ] || die "nothing was started in $DIR"
    case " ${servers[*]} " in *" $2 "*) ;; *) die "$usage" ;; esac
    venv=$("$here/openstack-venv.sh")
    choose
    if [ "$1" = stop ]; then stop "$2"; else "start_${2//-/_}"; fi ;;
  *) die "$usage" ;;
esac
