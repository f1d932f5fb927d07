#!/bin/bash
# Every check that runs no code of ours: format, clippy, licences and sources of dependencies,
# shell scripts, systemd units, and the promises that `cargo xtask check` keeps.
# usage: lint.sh
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --all --check
cargo clippy --locked --workspace --all-targets --quiet -- -D warnings
# The drivers can be left out, each by itself.
for features in '' rbd iscsi; do
  cargo clippy --locked -p sealblk-volume --no-default-features --features "$features" --quiet -- -D warnings
done
cargo deny --log-level error check --hide-inclusion-graph licenses bans sources
shellcheck .ci/run scripts/*.sh
shellcheck --shell=bash --exclude=SC2034 devstack/plugin.sh devstack/settings
shellcheck --shell=sh dist/debian/*/p*
cargo xtask check
scripts/check-units.sh
scripts/nova.sh lint
