#!/bin/bash
# A KMIP server for tests: PyKMIP (KMIP 1.0 to 2.0, TLS 1.2, client certificates) on 127.0.0.1, in a
# virtual environment of its own. Nothing in it outlives `down`, which stops by process id what `up`
# started and removes DIR.
# usage: kmip.sh up|down|stop DIR; kmip.sh venv
#          up      make certificates at the first time, start it if it doesn't run, wait until it
#                  listens, print its port (always the same for a DIR)
#          stop    end it; what it holds is there after the next `up`
#          venv    make the environment alone
# gives: DIR/ca.crt, DIR/{client,stranger}.{crt,key} of that authority, DIR/foreign.{crt,key} of another
#        one, DIR/python (which runs kmip_objects.py)
# env:   SEALBLK_CACHE: where the environment goes; default /var/tmp/sealblk-cache
# needs: openssl, python3-venv (scripts/setup.sh); no root. Reaches the package index once.
set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
cache=${SEALBLK_CACHE:-/var/tmp/sealblk-cache}
venv=$cache/venv-kmip-server
verb=${1:-}

die() { echo "kmip: $*" >&2; exit 1; }

make_venv() {
  if cmp -s "$here/kmip-requirements.txt" "$venv/.made-from"; then return; fi
  rm -rf -- "$venv"
  mkdir -p "$cache"
  python3 -m venv "$venv" >"$cache/venv-kmip-server.log" 2>&1 ||
    die "python3 can't make an environment (Debian: python3-venv); see $cache/venv-kmip-server.log"
  "$venv/bin/pip" install --require-hashes -r "$here/kmip-requirements.txt" >>"$cache/venv-kmip-server.log" 2>&1 ||
    { tail -n 5 "$cache/venv-kmip-server.log" >&2; die 'pip failed'; }
  cp "$here/kmip-requirements.txt" "$venv/.made-from"
}

locked_venv() {
  mkdir -p "$cache"
  (
    exec 9>"$venv.lock"
    flock -w 300 9 || die "another kmip.sh holds $venv.lock"
    make_venv
  )
}

start_time() { sed -n 's/^.*) //p' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; } # PID

# A pid may be another process's by now, and a zombie is no server any more.
runs() {
  local pid start
  { read -r pid start <"$DIR/pid"; } 2>/dev/null || return 1
  [ "$(start_time "$pid")" = "$start" ] && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null
}

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; } # PORT

choose_port() {
  local port try
  for ((try = 0; try < 200; try++)); do
    port=$((24000 + RANDOM % 1900))
    if ! listening "$port"; then echo "$port"; return; fi
  done
  die 'no free port'
}

# PyKMIP asks for an extended key usage, which says who the certificate's holder may be; and with an
# RSA key it has no cipher suite that a TLS library of today still knows.
issue() { # NAME CA USAGE
  local names='subjectAltName=DNS:localhost,IP:127.0.0.1'
  printf 'basicConstraints=CA:FALSE\nkeyUsage=digitalSignature,keyEncipherment\nextendedKeyUsage=%s\n%s\n' "$3" "$names" >"$1.ext"
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -out "$1.csr" -subj "/CN=$1"
  openssl x509 -req -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -out "$1.crt" -days 3650 -extfile "$1.ext"
}

make_certificates() {
  for name in ca other-ca; do
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $name.key -out $name.crt -days 3650 -subj "/CN=$name"
  done
  issue server ca serverAuth
  issue client ca clientAuth
  issue stranger ca clientAuth
  issue foreign other-ca clientAuth
}

up() {
  locked_venv
  (umask 077 && mkdir -p "$DIR/policy")
  cd "$DIR"
  if [ ! -e ready ]; then
    (umask 077 && make_certificates) >openssl.out 2>&1 || { tail -n 5 openssl.out >&2; die 'making certificates failed'; }
    choose_port >port
    # A link would be a Python without the environment's packages.
    printf '#!/bin/sh\nexec %q "$@"\n' "$venv/bin/python" >python
    chmod +x python
    touch ready
  fi
  local port i
  port=$(cat port)
  cat >server.conf <<CONF
[server]
hostname=127.0.0.1
port=$port
certificate_path=$DIR/server.crt
key_path=$DIR/server.key
ca_path=$DIR/ca.crt
auth_suite=TLS1.2
policy_path=$DIR/policy
enable_tls_client_auth=True
tls_cipher_suites=
logging_level=INFO
database_path=$DIR/kmip.db
CONF
  if ! runs; then
    setsid "$venv/bin/pykmip-server" -f "$DIR/server.conf" -l "$DIR/server.log" >>server.out 2>&1 </dev/null &
    echo "$! $(start_time $!)" >pid
  fi
  for ((i = 0; i < 600; i++)); do
    if listening "$port"; then echo "$port"; return; fi
    runs || { tail -n 5 server.out >&2; die "it doesn't start; see $DIR/server.out"; }
    sleep 0.05
  done
  die "it doesn't listen at port $port; see $DIR/server.log"
}

stop() {
  local pid start i
  if runs; then
    read -r pid start <"$DIR/pid"
    kill "$pid" 2>/dev/null || true
    for ((i = 0; i < 100; i++)); do runs || break; sleep 0.05; done
    if runs; then kill -KILL -- "-$pid" 2>/dev/null || true; fi
    for ((i = 0; i < 100; i++)); do runs || break; sleep 0.05; done
  fi
  rm -f -- "$DIR/pid"
}

case $verb in
  venv) locked_venv; exit ;;
  up | down | stop) [ $# = 2 ] || die "which directory? ($0 $verb DIR)" ;;
  *) sed -n '5,9s/^# //p' "$0" >&2; exit 2 ;;
esac
DIR=$(realpath -m -- "$2")
case $verb in
  up) up ;;
  stop) stop ;;
  down)
    stop
    # Only what is a server of ours is removed, whatever DIR says.
    if [ -e "$DIR/ready" ] && [ -e "$DIR/server.conf" ]; then rm -rf -- "$DIR"; fi ;;
esac
