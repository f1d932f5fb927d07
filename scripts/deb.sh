#!/bin/bash
# Makes the Debian packages target/deb/*.deb from built programs, by dpkg-deb: nothing is fetched, and
# the same programs give the same packages, byte for byte.
# usage: deb.sh
# env:   SEALBLK_BIN_DIR: where sealblkd, sealblk-agent and sealblk are (default: target/release)
#        SEALBLK_MANUAL: where the generated man/ and completions/ are (default: they are made)
#        DEB_REVISION: Debian revision (default 1); DEB_MAINTAINER: NAME <ADDRESS> of who builds them;
#        SOURCE_DATE_EPOCH: date of all files (default: the last commit's)
# needs: dpkg-dev (dpkg-shlibdeps), binutils, python3
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
umask 022

die() { echo "deb: $*" >&2; exit 1; }
for tool in dpkg-deb dpkg-shlibdeps strip python3; do
  command -v "$tool" >/dev/null || die "$tool is missing: apt-get install dpkg-dev binutils python3"
done

bin=${SEALBLK_BIN_DIR:-target/release}
out=target/deb
stage=target/deb/stage
maintainer=${DEB_MAINTAINER:-sealblk developers <packages@sealblk.example.org>}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
upstream=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
[ -n "$upstream" ] || die 'Cargo.toml has no version'
version=${upstream/-/\~}-${DEB_REVISION:-1}
arch=$(dpkg --print-architecture)

for program in sealblkd sealblk-agent sealblk; do
  [ -x "$bin/$program" ] || die "$bin/$program is missing: 'make build' makes it"
done
[ -d nova-plugin/sealblk_openstack ] || die 'nova-plugin/ is missing'

rm -rf "$out"
mkdir -p "$stage"
manual=${SEALBLK_MANUAL:-$stage/manual}
if [ -z "${SEALBLK_MANUAL:-}" ]; then
  cargo xtask man "$manual/man"
  cargo xtask completions "$manual/completions"
fi

into() { # PACKAGE MODE DIRECTORY FILE...
  local at="$stage/$1/$3"
  install -d "$at"
  install -m "$2" -t "$at" "${@:4}"
}

man_pages() { # PACKAGE PAGE...
  local page section
  for page in "${@:2}"; do
    section=${page##*.}
    into "$1" 644 "usr/share/man/man$section" "$page"
    gzip -9n "$stage/$1/usr/share/man/man$section/${page##*/}"
  done
}

completions() { # PACKAGE PROGRAM
  install -D -m 644 "$manual/completions/$2.bash" "$stage/$1/usr/share/bash-completion/completions/$2"
  into "$1" 644 usr/share/zsh/vendor-completions "$manual/completions/_$2"
  into "$1" 644 usr/share/fish/vendor_completions.d "$manual/completions/$2.fish"
}

program() { # PACKAGE PROGRAM
  into "$1" 755 usr/bin "$bin/$2"
  strip --strip-all --remove-section=.comment "$stage/$1/usr/bin/$2"
}

document() { # PACKAGE FILE...: with what policy wants of every package
  into "$1" 644 "usr/share/doc/$1" dist/debian/copyright "${@:2}"
  local log="$stage/$1/usr/share/doc/$1/changelog.Debian"
  {
    echo "$1 ($version) unstable; urgency=medium"
    printf '\n  * See /usr/share/doc/sealblk/changelog.gz.\n\n'
    echo " -- $maintainer  $(date -R -u -d "@$SOURCE_DATE_EPOCH")"
  } >"$log"
  gzip -9n "$log"
}

finish() { # PACKAGE: control data, then the archive
  local package=$1 tree="$stage/$1" from="dist/debian/$1" shlibs='' program one target=$arch
  local programs=()
  install -d "$tree/DEBIAN"
  for program in "$tree"/usr/bin/*; do
    [ -e "$program" ] && programs+=("-e$root/$program")
  done
  if [ ${#programs[@]} -gt 0 ]; then
    mkdir -p "$stage/shlibs/debian"
    printf 'Source: sealblk\n\nPackage: %s\nArchitecture: any\n' "$package" >"$stage/shlibs/debian/control"
    shlibs=$(cd "$stage/shlibs" && dpkg-shlibdeps -O "${programs[@]}" 2>/dev/null | sed -n 's/^shlibs:Depends=//p')
    [ -n "$shlibs" ] || die "$package: dpkg-shlibdeps found no library at all"
  fi
  grep -q '^Architecture: all' "$from/control" && target=all
  {
    printf 'Package: %s\nSource: sealblk\nVersion: %s\nMaintainer: %s\nPriority: optional\n' \
      "$package" "$version" "$maintainer"
    grep -q '^Architecture:' "$from/control" || echo "Architecture: $arch"
    echo "Installed-Size: $(du -k -s --apparent-size "$tree" | cut -f1)"
    sed -e "s/\${shlibs:Depends}/$shlibs/" -e "s/\${binary:Version}/$version/" "$from/control"
  } >"$tree/DEBIAN/control"
  for one in conffiles preinst postinst prerm postrm; do
    if [ -e "$from/$one" ]; then
      install -m "$([ "$one" = conffiles ] && echo 644 || echo 755)" "$from/$one" "$tree/DEBIAN/$one"
    fi
  done
  (cd "$tree" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | LC_ALL=C sort -z |
    xargs -0 md5sum >DEBIAN/md5sums)
  find "$tree" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
  dpkg-deb --root-owner-group -Zxz --build "$tree" "$out/${package}_${version}_$target.deb" >/dev/null
  echo "deb: $out/${package}_${version}_$target.deb"
}

# The daemon and the command.
program sealblk sealblkd
program sealblk sealblk
man_pages sealblk "$manual"/man/sealblkd.8 "$manual"/man/sealblk*.1 dist/man/sealblkd.toml.5 dist/man/sealblk-keys.toml.5
completions sealblk sealblk
completions sealblk sealblkd
into sealblk 644 usr/lib/systemd/system dist/systemd/sealblkd@.service dist/systemd/sealblk.slice
into sealblk 644 usr/lib/tmpfiles.d dist/tmpfiles.d/sealblk.conf
into sealblk 644 usr/lib/sysusers.d dist/sysusers.d/sealblk.conf
into sealblk 644 etc/apparmor.d/abstractions/libvirt-qemu.d dist/apparmor/sealblk
into sealblk 644 etc/logrotate.d dist/logrotate/sealblk
install -d "$stage/sealblk/etc/sealblk"
docs=()
for one in docs/*.md docs/*.json; do
  case $one in docs/benchmarks* | docs/performance.md) ;; *) [ -e "$one" ] && docs+=("$one") ;; esac
done
into sealblk 644 usr/share/doc/sealblk/examples dist/systemd/network-volume.conf dist/examples/keys.toml
document sealblk README.md SECURITY.md "${docs[@]}"
gzip -9nc CHANGELOG.md >"$stage/sealblk/usr/share/doc/sealblk/changelog.gz"
finish sealblk

# The node's agent.
program sealblk-agent sealblk-agent
man_pages sealblk-agent "$manual"/man/sealblk-agent.8 dist/man/sealblk-agent.toml.5
completions sealblk-agent sealblk-agent
into sealblk-agent 644 usr/lib/systemd/system dist/systemd/sealblk-agent.service
into sealblk-agent 644 usr/lib/tmpfiles.d dist/tmpfiles.d/sealblk-agent.conf
into sealblk-agent 644 usr/share/doc/sealblk-agent/examples dist/examples/agent.toml
document sealblk-agent
finish sealblk-agent

# The plugin: nova/virt/sealblk has to lie in Nova's own directory.
packages=usr/lib/python3/dist-packages
(cd nova-plugin && find sealblk_openstack nova/virt/sealblk -name '*.py' -print0) |
  while IFS= read -r -d '' one; do
    into python3-sealblk-nova 644 "$packages/$(dirname "$one")" "nova-plugin/$one"
  done
python3 scripts/dist-info.py nova-plugin/pyproject.toml "$stage/python3-sealblk-nova/$packages"
[ ! -e nova-plugin/etc/sealblk.conf.sample ] ||
  into python3-sealblk-nova 644 usr/share/doc/python3-sealblk-nova/examples nova-plugin/etc/sealblk.conf.sample
document python3-sealblk-nova nova-plugin/README.md
finish python3-sealblk-nova

# What watches it.
if [ -d dist/prometheus ] && [ -d dist/grafana ]; then
  into sealblk-monitoring 644 usr/share/sealblk/prometheus dist/prometheus/sealblk-alerts.yml
  into sealblk-monitoring 644 usr/share/sealblk/grafana dist/grafana/sealblk.json
  document sealblk-monitoring
  finish sealblk-monitoring
else
  die 'dist/prometheus or dist/grafana is missing'
fi
rm -rf "$stage"
