#!/usr/bin/env bash
# Everything that is checked without running a test. Stops at the first finding.
# The release profile throughout: see the Makefile.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/hapax-target}
deny_version=0.20.2
deny=${HAPAX_CACHE:-$HOME/.cache/hapax}/cargo-deny-$deny_version/bin/cargo-deny

step() {
    echo "lint: $*" >&2
    "$@"
}

for tool in fmt clippy; do
    cargo "$tool" --version >/dev/null 2>&1 ||
        { echo "lint: cargo $tool is missing: rustup component add ${tool/fmt/rustfmt}" >&2; exit 1; }
done

step cargo fmt --check

step cargo clippy --release --locked --all-targets --features testing -- -D warnings

# Each part must stand without the others. No --all-targets here: tests and examples state the features that they need.
step cargo clippy --release --locked -- -D warnings
step cargo clippy --release --locked --no-default-features -- -D warnings
for features in rocks kafka testing; do
    step cargo clippy --release --locked --no-default-features --features "$features" -- -D warnings
done
if pkg-config --exists openssl 2>/dev/null; then
    step cargo clippy --release --locked --features tls -- -D warnings
else
    echo "lint: without OpenSSL's headers (libssl-dev) the feature tls is not checked" >&2
fi

RUSTDOCFLAGS="-D rustdoc::broken_intra_doc_links -D warnings" \
    step cargo doc --release --locked --no-deps --features testing

if [ ! -x "$deny" ]; then
    # It runs for a second and compiles for minutes: cheap code is what pays here.
    CARGO_TARGET_DIR=$CARGO_TARGET_DIR/cargo-deny \
        CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        step cargo install --quiet --locked --version "$deny_version" --root "${deny%/bin/*}" cargo-deny
    rm -rf "$CARGO_TARGET_DIR/cargo-deny"
fi
step "$deny" --locked check --hide-inclusion-graph bans licenses sources

echo "lint: nothing found" >&2
