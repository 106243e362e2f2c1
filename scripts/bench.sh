#!/usr/bin/env bash
# Measures hapax: each step by itself, then end to end beside a bare loop and Kafka Streams, on a Kafka of its own.
#
#   bench.sh [--messages N] [--rounds N] [--only NAME]... [--reopen-tokens N] [--wide-messages N] [--slow-messages N]
#            [--held-messages N]
#
# --messages N       in the topic that the contestants read (2000000)
# --rounds N         how often each contestant runs; figures are medians (3)
# --only NAME        only that: micro, bare, bare_defaults, local, replicated, non_idempotent,
#                    replicated_non_idempotent, streams_alo, streams_eos, restore, streams_restore, reopen_10m, rss_200_partitions, latency, rolling_restart,
#                    held, duplicates, slow; may be repeated. A target is asked for only where its figures were measured
# --reopen-tokens N  tokens of the store that is reopened (10000000)
# --wide-messages N  in the topic of 200 partitions (1000000)
# --slow-messages N  in the topic for slow handlers (200000)
# --held-messages N  held beside the hot path (1000000)
#
# Ends with a line for each figure, `bench NAME VALUE UNIT`. Exit codes: 0 all targets reached, 1 one was missed or a
# contestant failed (the line says which), 2 wrong usage, 3 Java 17 or Maven is missing.
#
# It needs about 6 GB of disk and half an hour. Everything that it makes lies in one folder beside the cache, on a real
# disk, and is removed at the end; where the folder for temporary files is memory, syncs would cost nothing there.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' scripts/bench.sh >&2; exit 2; }
say() { echo "bench: $*" >&2; }

messages=2000000 rounds=3 reopen_tokens=10000000 wide_messages=1000000 slow_messages=200000 held_messages=1000000 only=()
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || usage
    case $1 in
    --messages) messages=$2 ;;
    --rounds) rounds=$2 ;;
    --reopen-tokens) reopen_tokens=$2 ;;
    --wide-messages) wide_messages=$2 ;;
    --slow-messages) slow_messages=$2 ;;
    --held-messages) held_messages=$2 ;;
    --only) only+=("$2") ;;
    *) usage ;;
    esac
    shift 2
done
for number in "$messages" "$rounds" "$reopen_tokens" "$wide_messages" "$slow_messages" "$held_messages"; do
    case $number in '' | *[!0-9]* | 0*) say "not a number of at least 1: '$number'"; exit 2 ;; esac
done

# Whether one of those names is to be measured.
wanted() {
    [ ${#only[@]} -gt 0 ] || return 0
    local name one
    for name in "$@"; do
        for one in "${only[@]}"; do [ "$one" != "$name" ] || return 0; done
    done
    return 1
}

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/hapax-target}
# `cargo build`, not `cargo bench`: the same profile and features as everything else, or RocksDB is built again. Cargo
# builds the `hapax` binary beside a bench, so the path is taken from the line of the bench itself.
program() {
    local path
    path=$(cargo build --release --locked --features testing --bench "$1" --message-format json-render-diagnostics |
        sed -n '/"kind":\["bench"\]/s|.*"executable":"\([^"]*\)".*|\1|p')
    [ -x "$path" ] || { say "cargo did not say where the bench $1 is"; exit 1; }
    echo "$path"
}

if wanted micro; then
    micro=$(program micro)
    "$micro" --bench
fi
end_to_end=()
for name in ${only[@]+"${only[@]}"}; do [ "$name" = micro ] || end_to_end+=(--only "$name"); done
if [ ${#only[@]} -gt 0 ] && [ ${#end_to_end[@]} -eq 0 ]; then exit 0; fi
e2e=$(program e2e)

cache=${HAPAX_CACHE:-$HOME/.cache/hapax}
mkdir -p "$cache"
work=$(mktemp -d "$cache/bench.XXXXXX")
finish() {
    scripts/kafka.sh stop --dir "$work/kafka" || true
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM

brokers=$(scripts/kafka.sh start --dir "$work/kafka" | sed -n 's/^brokers //p')
load() {
    say "filling $1: $2 messages, $3 partitions"
    benches/peers/streams/load.sh --brokers "$brokers" --topic "$1" --messages "$2" --partitions "$3" >&2
}
load bench "$messages" 4
if wanted rss_200_partitions; then load bench-wide "$wide_messages" 200; fi
if wanted slow; then load bench-slow "$slow_messages" 4; fi

status=0
"$e2e" run --brokers "$brokers" --topic bench --wide-topic bench-wide --messages "$messages" --rounds "$rounds" \
    --reopen-tokens "$reopen_tokens" --work "$work" --streams benches/peers/streams \
    --parallel benches/peers/parallel --slow-topic bench-slow --slow-messages "$slow_messages" --held-messages "$held_messages" \
    ${end_to_end[@]+"${end_to_end[@]}"} || status=$?
exit "$status"
