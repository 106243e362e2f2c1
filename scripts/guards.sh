#!/usr/bin/env bash
# Proves that the tests which guard a promise fail without the line that keeps it (docs/guards/README.md).
#
#   guards.sh [--write] [NN...]    every guard, or those of the numbers given; --write writes docs/guards/*.txt anew
#
# Works on a copy of the tracked files and builds without RocksDB and Kafka, in a target folder of its own
# (HAPAX_GUARDS_TARGET moves it). Exit codes: 0 every guard holds, 1 one does not, 2 the copy fails before any patch.
set -euo pipefail

top=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
export CARGO_TARGET_DIR=${HAPAX_GUARDS_TARGET:-$HOME/.cache/hapax-guards-target}
export RUST_BACKTRACE=0 CARGO_TERM_COLOR=never CARGO_INCREMENTAL=1
# Only this crate is compiled again for each guard, and its tests are quick: no time goes into making them quicker.
flags=(--release --locked --no-default-features --features testing --config 'profile.release.package.hapax.opt-level=0')
# A guard whose test hangs without its line has failed it too.
limit=${HAPAX_GUARDS_LIMIT:-300}

write=0
wanted=()
for argument in "$@"; do
    case $argument in
    --write) write=1 ;;
    [0-9]*) wanted+=("$argument") ;;
    *) sed -n '2,7p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
    esac
done

copy=$(mktemp -d "${TMPDIR:-/tmp}/hapax-guards.XXXXXX")
trap 'rm -rf "$copy"' EXIT
# Without their times: older than what an earlier run compiled, a file would pass for the one that was patched then.
git -C "$top" ls-files -z | (cd "$top" && xargs -0 cp --parents -t "$copy")
cd "$copy"

# The test that a patch names, or what clippy has to say.
line_of() { sed -n "s/^$2: //p;/^$/q" "$1"; }

run_test() { timeout "$limit" cargo test "${flags[@]}" --lib -- "$1" 2>&1; }

run_clippy() { timeout "$limit" cargo clippy "${flags[@]}" --lib 2>&1; }

# What a reader needs of the output, without names of folders and threads.
relevant() {
    sed -e "s#$copy/##g" -e 's/ ([0-9]*) panicked at/ panicked at/' |
        grep -vE '^(warning| +Blocking|   Compiling|    Checking|    Finished|     Running|note: |help: |error: test failed|To learn more|Caused by)|^ *(\||=|-->|[0-9]+ [-+|])|^$|\.\.\.$' |
        grep -vE '^(running|---- |failures:|    [a-z_:]+$|test .* ok$|Some errors|For more)' | head -n 24 || true
}

selected() {
    [ ${#wanted[@]} -eq 0 ] && return 0
    local number
    for number in "${wanted[@]}"; do [[ $1 == "$number"-* ]] && return 0; done
    return 1
}

guards=()
names=()
for patch in "$top"/docs/guards/*.patch; do
    selected "$(basename "$patch")" || continue
    guards+=("$patch")
    name=$(line_of "$patch" Test)
    [ -z "$name" ] || names+=("$name")
done
[ ${#guards[@]} -gt 0 ] || { echo "guards: there is no such guard" >&2; exit 2; }

echo "guards: every named test on the tree as it is" >&2
if ! before=$(timeout $((limit * 4)) cargo test "${flags[@]}" --lib -- "${names[@]}" 2>&1); then
    printf '%s\n' "$before" | relevant >&2
    echo "guards: they have to pass before a patch can make them fail" >&2
    exit 2
fi

if grep -q '^Clippy: ' "${guards[@]}" && ! run_clippy >/dev/null; then
    echo "guards: clippy has to be content before a patch can make it complain" >&2
    exit 2
fi

failed=0
for patch in "${guards[@]}"; do
    id=$(basename "$patch" .patch)
    if ! git apply --check "$patch" 2>/dev/null; then
        echo "$id: THE PATCH NO LONGER APPLIES"
        failed=1
        continue
    fi
    git apply "$patch"
    test=$(line_of "$patch" Test)
    clippy=$(line_of "$patch" Clippy)
    code=0
    if [ -n "$test" ]; then
        # A name that matches nothing would pass, and a tree that does not compile proves nothing.
        shown="cargo test --no-default-features --features testing --lib -- $test"
        output=$(run_test "$test") || code=$?
        expected='^test result: FAILED|has overflowed its stack'
    else
        shown='cargo clippy --no-default-features --features testing --lib'
        output=$(run_clippy) || code=$?
        expected=$clippy
    fi
    if [ "$code" -eq 0 ]; then
        echo "$id: STILL PASSES without its line"
        failed=1
    elif [ "$code" -eq 124 ] || grep -qE "$expected" <<<"$output"; then
        echo "$id: fails without its line, as it has to"
        if [ "$write" = 1 ]; then
            { echo "\$ $shown"; [ "$code" -ne 124 ] || echo "(still running after $limit s)"; relevant <<<"$output"; } \
                >"$top/docs/guards/$id.txt"
        fi
    else
        echo "$id: DOES NOT SHOW what it should:"
        relevant <<<"$output"
        failed=1
    fi
    git apply -R "$patch"
done
exit "$failed"
