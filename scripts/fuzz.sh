#!/usr/bin/env bash
# Builds the fuzz targets of tests/fuzz with the stable compiler and runs each for a while.
# usage: scripts/fuzz.sh SECONDS [TARGET...]
# A crash leaves its input in tests/fuzz/artifacts/; run the target with that file to see it again.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?usage: fuzz.sh SECONDS [TARGET...]}
shift
all=()
for file in tests/fuzz/fuzz_targets/*.rs; do
  all+=("$(basename "$file" .rs)")
done
[ $# -gt 0 ] || set -- "${all[@]}"

# What `cargo fuzz` would pass, less the sanitizer, which needs a nightly compiler. The flags go to
# the target only (--target keeps build scripts and macros out).
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions=on"
out=${CARGO_TARGET_DIR:-target}/fuzz
cargo build --quiet --release --manifest-path tests/fuzz/Cargo.toml --target "$host" --target-dir "$out"

for target in "$@"; do
  corpus=tests/fuzz/corpus/$target log=$out/$target.log
  mkdir -p "$corpus" tests/fuzz/artifacts
  seeds=()
  [ ! -d "tests/fuzz/seeds/$target" ] || seeds=("tests/fuzz/seeds/$target")
  if ! "$out/$host/release/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=4096 \
    -max_len=65536 -artifact_prefix=tests/fuzz/artifacts/ -print_final_stats=1 \
    "$corpus" "${seeds[@]}" >"$log" 2>&1; then
    tail -n 60 "$log" >&2
    echo "fuzz: $target failed; the input is in tests/fuzz/artifacts/, the whole log in $log" >&2
    exit 1
  fi
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  echo "fuzz: $target: $runs inputs in $seconds s, no failure"
done
