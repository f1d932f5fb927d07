#!/bin/bash
# What try-packages.sh runs in the clean system.
set -euo pipefail
cd /packages
step() { echo "try-packages: $*"; }
die() { echo "try-packages: $*" >&2; exit 1; }
client() { python3 /packages/try-packages-client.py "$@"; }

apt_get() {
  apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0 "$@" >/tmp/apt.log 2>&1 || {
    tail -n 30 /tmp/apt.log >&2
    die "apt-get $* failed"
  }
}

step 'installing by apt'
# debootstrap's system has no list of packages, and leaves manual pages where they are.
apt_get update
apt_get install man-db python3 bash-completion
apt_get install ./sealblk_*.deb ./sealblk-agent_*.deb ./sealblk-monitoring_*.deb
apt_get check

step 'users, directories, permissions'
getent passwd sealblk >/dev/null || die 'no user sealblk'
id -nG sealblk | grep -qw kvm || die 'sealblk is not in group kvm'
expect() { # PATH OWNER:GROUP MODE
  [ "$(stat -c '%U:%G %a' "$1")" = "$2 $3" ] || die "$1 is $(stat -c '%U:%G %a' "$1"), not $2 $3"
}
expect /run/sealblk sealblk:kvm 750
expect /var/lib/sealblk sealblk:sealblk 750
expect /run/sealblk-agent root:root 750
expect /etc/sealblk root:root 755

step 'programs, manual pages, completions'
for program in sealblk sealblkd sealblk-agent; do
  "$program" --version | grep -q "^$program " || die "$program --version"
  bash -c "set -e; . /usr/share/bash-completion/completions/$program; complete -p $program" >/dev/null
done
sealblkd --version --verbose
for page in sealblk.1 sealblk-format.1 sealblk-rotate-start.1 sealblkd.8 sealblk-agent.8 \
  sealblkd.toml.5 sealblk-agent.toml.5 sealblk-keys.toml.5; do
  man "${page##*.}" "${page%.*}" 2>/tmp/man.err | grep -q SYNOPSIS || die "no page $page: $(cat /tmp/man.err)"
done
man 1 sealblk-format | grep -q -- --sector-size || die 'sealblk-format(1) lacks options'

step 'units'
if command -v systemd-analyze >/dev/null; then
  complaints=$(systemd-analyze verify /usr/lib/systemd/system/sealblk{-agent.service,d@.service,.slice} 2>&1 |
    grep sealblk || true)
  [ -z "$complaints" ] || die "$complaints"
fi

# In sectors of 4096 bytes: on a tmpfs a file has blocks of that size.
step 'a volume by hand'
install -d -m 0750 -o sealblk -g kvm /srv/volumes
head -c 32 /dev/urandom | install -o sealblk -m 0600 /dev/stdin /etc/sealblk/disk.key
as_sealblk() { setpriv --reuid sealblk --regid kvm --clear-groups "$@"; }
as_sealblk sealblk format --volume file:/srv/volumes/one.img --size 64M --sector-size 4096 --kdf pbkdf2 --key file:/etc/sealblk/disk.key
cat >/etc/sealblk/disk.toml <<'EOF'
[daemon]
control = "/run/sealblk/control.sock"
[[volume]]
name = "one"
uri = "file:/srv/volumes/one.img"
key = "file:/etc/sealblk/disk.key"
socket = "/run/sealblk/one.sock"
socket_group = "kvm"
EOF
as_sealblk sealblkd --check --config /etc/sealblk/disk.toml
daemon=$(client start setpriv --reuid sealblk --regid kvm --clear-groups sealblkd --config /etc/sealblk/disk.toml)
sealblk status --control /run/sealblk/control.sock
expect /run/sealblk/one.sock sealblk:kvm 660
client stop "$daemon"

step 'a volume through the agent'
as_sealblk sealblk format --volume file:/srv/volumes/two.img --size 64M --sector-size 4096 --kdf pbkdf2 --key file:/etc/sealblk/disk.key
useradd --system nova
sed -e 's|^#file_prefixes.*|file_prefixes = ["/srv/volumes"]|' \
  /usr/share/doc/sealblk-agent/examples/agent.toml >/etc/sealblk/agent.toml
sealblk-agent --check --config /etc/sealblk/agent.toml
agent=$(client start sealblk-agent --config /etc/sealblk/agent.toml)
client agent /srv/volumes/two.img /etc/sealblk/disk.key
step 'the agent is killed and started again: its daemons are still there'
kill -9 "$agent"
agent=$(client start sealblk-agent --config /etc/sealblk/agent.toml)
client agent-again
client stop "$agent"

if [ "$NOVA" = yes ]; then
  step "the plugin beside Debian's Nova (this takes a while)"
  apt_get install ./python3-sealblk-nova_*.deb
  # Nova's libvirt driver can be imported without a libvirtd.
  python3 - <<'EOF'
import importlib.metadata

import nova.virt.sealblk

assert nova.virt.sealblk.SealLibvirtDriver.__module__.startswith("sealblk_openstack")
for group in "nova.api.extra_spec_validators", "oslo.config.opts":
    names = [one.name for one in importlib.metadata.entry_points(group=group)]
    assert "sealblk" in names, (group, names)
EOF
  apt_get remove python3-sealblk-nova
  [ ! -e /usr/lib/python3/dist-packages/sealblk_openstack ] || die 'the plugin left files behind'
  python3 -c 'import nova.virt.libvirt'
fi

step 'removing'
apt_get remove sealblk sealblk-agent sealblk-monitoring
for gone in /usr/bin/sealblk /usr/bin/sealblkd /usr/bin/sealblk-agent /usr/lib/systemd/system/sealblk-agent.service; do
  [ ! -e "$gone" ] || die "$gone is left"
done
[ -e /etc/logrotate.d/sealblk ] || die 'a configuration file was removed without a purge'
step 'purging: configuration goes; keys and volumes stay, and that is said'
dpkg --purge sealblk-agent sealblk >/tmp/purge.log 2>&1 || die "purge: $(cat /tmp/purge.log)"
[ ! -e /etc/logrotate.d/sealblk ] || die 'a configuration file is left'
grep -q 'sealblk: /etc/sealblk is kept' /tmp/purge.log || die "the purge doesn't say what it keeps"
[ -s /etc/sealblk/disk.key ] || die 'the purge removed a key'
[ -s /srv/volumes/two.img ] || die 'the purge removed a volume'
