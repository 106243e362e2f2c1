#!/usr/bin/env bash
# The chaos campaign (docs/chaos.md). Its last line is `chaos: seed S, F faults, M messages, V violations`; it fails
# where V is not 0.
#
# Environment: CHAOS_SEED (default: a new one), CHAOS_SECONDS of faults (default 180), CHAOS_BROKERS 1 or 3 (default: 3
# where 6 GiB of memory are free).
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/hapax-target}

free_mib() { sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo 2>/dev/null | awk '{ print int($1 / 1024) }'; }
if [ -z "${CHAOS_BROKERS:-}" ]; then
    free=$(free_mib)
    if [ "${free:-0}" -ge 6144 ]; then CHAOS_BROKERS=3; else CHAOS_BROKERS=1; fi
fi
export CHAOS_BROKERS

log=$(mktemp)
trap 'rm -f "$log"' EXIT
code=0
# Without Java there is no Kafka: here that is a failure, and not a test to be skipped.
CI=true cargo test --release --locked --features testing --test it -- \
    --exact chaos::campaign --ignored --nocapture --test-threads=1 2>&1 | tee "$log" || code=$?
last=$(grep '^chaos: seed ' "$log" | tail -n 1) || { echo "chaos: it did not come to its end" >&2; exit 1; }
echo "$last"
exit "$code"
