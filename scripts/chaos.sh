#!/usr/bin/env bash
# The chaos campaign (docs/chaos.md): chaos.sh [breaks]. Its last line is
# `chaos: seed S, F faults, M messages, V violations`; it fails where V is not 0.
#
# With `breaks` each rule of the runtime that can be switched off is, in a campaign of its own, and the judge has to find
# violations: about eight minutes.
#
# Environment: CHAOS_SEED (default: a new one), CHAOS_SECONDS of faults (default 180), CHAOS_BROKERS 1 or 3 (default: 3
# where 6 GiB of memory are free).
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/hapax-target}

# Without Java there is no Kafka: here that is a failure, and not a test to be skipped.
campaign() {
    CI=true cargo test --release --locked --features testing --test it -- \
        --exact "chaos::$1" --ignored --nocapture --test-threads=1
}
case ${1:-} in
breaks) campaign breaks::without_a_protecting_rule_violations_are_found; exit ;;
'') ;;
*) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

free_mib() { sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo 2>/dev/null | awk '{ print int($1 / 1024) }'; }
if [ -z "${CHAOS_BROKERS:-}" ]; then
    free=$(free_mib)
    if [ "${free:-0}" -ge 6144 ]; then CHAOS_BROKERS=3; else CHAOS_BROKERS=1; fi
fi
export CHAOS_BROKERS

log=$(mktemp)
trap 'rm -f "$log"' EXIT
code=0
campaign campaign 2>&1 | tee "$log" || code=$?
last=$(grep '^chaos: seed ' "$log" | tail -n 1) || { echo "chaos: it did not come to its end" >&2; exit 1; }
echo "$last"
exit "$code"
