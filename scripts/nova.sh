#!/bin/bash
# Nova's plugin: makes the environments that its tests need, and runs them. No root, no service.
# usage: nova.sh setup                       both environments (minutes the first time, then a second)
#        nova.sh test [unit|l1|l1-zed]...    default: all three
#        nova.sh lint                        ruff's check and format
#        nova.sh sample                      writes nova-plugin/etc/sealblk.conf.sample anew
#        nova.sh python VERSION ARG...       Python with Nova 34 or 26 and the plugin
# env:   SEALBLK_CACHE=/var/tmp/sealblk-cache: where the environments go (440 and 195 MB)
#        SEALBLK_TEST_AGENT=fake: a stand-in for the agent in l1, instead of the built one
#        SEALBLK_BIN_DIR: where sealblk-agent and sealblkd are (default: target/test-fast or target/debug)
# needs: Debian 12: python3-venv, apt's package lists. Reaches pip's index and Debian's archive.
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
plugin=$repo/nova-plugin
cache=${SEALBLK_CACHE:-/var/tmp/sealblk-cache}
venv=$cache/nova-34 zed=$cache/nova-26
site=$venv/lib/python3.11/site-packages
dist=$zed/usr/lib/python3/dist-packages
constraints=$plugin/tests/constraints.txt
python=/usr/bin/python3
# Nova with what its functional tests need. SQLAlchemy 2.1 trips over their warnings-as-errors.
pip_packages=(nova==34.0.0 openstack-placement 'sqlalchemy<2.1' 'setuptools<81' fixtures oslotest testtools
              wsgi-intercept requests-mock ddt testscenarios osprofiler gabbi ruff wheel)
deb_packages=(python3-nova python3-placement python3-fixtures python3-oslotest python3-testtools
              python3-wsgi-intercept python3-requests-mock python3-ddt python3-testscenarios
              python3-osprofiler python3-gabbi python3-castellan)
# Dependencies of packages that Nova's code never loads, and services.
deb_left_out='systemd|udev|libsystemd|libudev|open-iscsi|dbus|python3-mypy|python-babel-localedata|python3-pytest'

die() { echo "nova.sh: $*" >&2; exit 1; }
say() { echo "nova.sh: $*"; }

# Both environments are made beside their place and moved there whole; one caller at a time.
lock() { mkdir -p "$cache"; exec 9>"$cache/nova.lock"; flock 9; }

make_34() {
  local want
  want=$(printf '%s\n' "${pip_packages[@]}"; cat "$constraints")
  [ "$(cat "$venv/.made-from" 2>/dev/null)" != "$want" ] || return 0
  "$python" -c 'import ensurepip, venv' 2>/dev/null || die "python3-venv is missing: run 'make setup'"
  [ "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = 3.11 ] || die "needs Python 3.11 (Debian 12) as $python"
  say "making $venv"
  rm -rf "$venv"
  "$python" -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -c "$constraints" "${pip_packages[@]}" \
    >"$venv.log" 2>&1 || { tail -n 20 "$venv.log" >&2; die "pip failed: $venv.log"; }
  # Nova's tests look for etc/nova beside the package.
  ln -sfn "$venv/etc" "$site/etc"
  echo "$want" >"$venv/.made-from"
}

# Debian's packages are unpacked, not installed: nothing of this machine changes. What it has already
# is taken from it.
make_26() {
  local want debs part
  want=$(printf '%s\n' "${deb_packages[@]}" "$deb_left_out")
  [ "$(cat "$zed/.made-from" 2>/dev/null)" != "$want" ] || return 0
  say "making $zed"
  part=$zed.part debs=$zed.debs
  rm -rf "$part" "$zed"
  mkdir -p "$part" "$debs"
  uris() {
    apt-get install --print-uris -o Debug::NoLocking=1 -qq -y --no-install-recommends "${deb_packages[@]}" nova-common \
      >"$debs/uris" 2>"$zed.log"
  }
  # apt's lists may be missing or old on a new machine.
  uris || { [ "$(id -u)" = 0 ] && apt-get -q update >"$zed.log" 2>&1 && uris; } ||
    { cat "$zed.log" >&2; die "apt-get knows no python3-nova: run apt-get update"; }
  sed -n "s/^'\([^']*\)'.*/\1/p" "$debs/uris" | grep -vE "/($deb_left_out)" >"$debs/wanted" || true
  (
    cd "$debs"
    while read -r uri; do [ -f "${uri##*/}" ] || echo "$uri"; done <wanted >missing
    xargs -r -P 4 -n 10 curl -sSf --retry 3 --remote-name-all <missing
    while read -r uri; do dpkg -x "${uri##*/}" "$part"; done <wanted
  ) >"$zed.log" 2>&1 || { tail -n 20 "$zed.log" >&2; die "Debian's packages can't be fetched: $zed.log"; }
  mkdir -p "$part/usr/lib/python3/dist-packages/etc/nova"
  cp "$part/usr/share/nova-common/api-paste.ini" "$part/usr/lib/python3/dist-packages/etc/nova/"
  rm -rf "$part/usr/share/doc" "$part/usr/share/man" "$part/usr/share/locale" "$debs"
  echo "$want" >"$part/.made-from"
  mv "$part" "$zed"
}

# The plugin as users install it: a wheel, unpacked into Nova's own directory.
install_plugin() {
  local wheel
  wheel=$(mktemp -d)
  cp -r "$plugin"/{pyproject.toml,README.md,nova,sealblk_openstack} "$wheel"
  (cd "$wheel" && "$venv/bin/pip" wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w out .) \
    >"$wheel/log" 2>&1 || { cat "$wheel/log" >&2; die "the plugin's wheel can't be built"; }
  for dir in "$site" "$dist"; do
    [ -d "$dir/nova" ] || continue
    rm -rf "$dir"/sealblk_openstack* "$dir/nova/virt/sealblk"
    "$python" -m zipfile -e "$wheel"/out/*.whl "$dir"
  done
  rm -rf "$wheel"
}

python_34() { PYTHONPATH=$plugin/tests "$venv/bin/python" "$@"; }
python_26() {
  LD_LIBRARY_PATH=$zed/usr/lib/x86_64-linux-gnu:$zed/usr/lib/aarch64-linux-gnu PYTHONPATH=$plugin/tests:$dist "$python" "$@"
}

setup() { lock; make_34; make_26; install_plugin; }

export OS_NOVA_DISABLE_EVENTLET_PATCHING=False PYTHONWARNINGS=ignore PYTHONDONTWRITEBYTECODE=1
cd "$plugin/tests"
command=${1:-}
[ $# -eq 0 ] || shift
case $command in
  setup) setup ;;
  test)
    [ $# -gt 0 ] || set -- unit l1 l1-zed
    setup
    for suite; do
      start=$SECONDS
      case $suite in
        unit) python_34 -m unittest discover -q -t . -s unit ;;
        l1) python_34 -m unittest discover -t . -s l1 ;;
        l1-zed) python_26 -m unittest discover -t . -s l1 ;;
        34:*|26:*) "python_${suite%%:*}" -m unittest "${suite#*:}" ;;
        *) die "unknown suite $suite: unit, l1 or l1-zed" ;;
      esac
      say "$suite: $((SECONDS - start)) s"
    done ;;
  lint)
    lock; make_34
    cd "$plugin"
    "$venv/bin/ruff" check --quiet .
    "$venv/bin/ruff" format --check --quiet . ;;
  format) lock; make_34; cd "$plugin"; "$venv/bin/ruff" check --fix --quiet . ; "$venv/bin/ruff" format . ;;
  sample)
    setup
    mkdir -p "$plugin/etc"
    python_34 -m sample_config >"$plugin/etc/sealblk.conf.sample" ;;
  python) version=${1:?34 or 26}; shift; setup; "python_$version" "$@" ;;
  *) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 1 ;;
esac
