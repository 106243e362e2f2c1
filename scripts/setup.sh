#!/usr/bin/env bash
# Sees to it that what a build or the tests need is there; a no-op when it is.
#
#   setup.sh build    to compile: C++20 compiler, make, libclang with its headers (RocksDB's bindings), Rust
#   setup.sh test     also what only tests use: Java 17, Maven (a real Kafka), Python with venv (a foreign producer),
#                     strace (the order of system calls; Linux only)
#   setup.sh bench    also a Java compiler (the Kafka Streams peer)
#
# What is missing is installed with apt-get where that is possible (as root, or with a sudo that asks nothing). Elsewhere
# the packages are named, and it fails. Without what only tests use it goes on and says so, since those tests are then
# skipped; with CI=true that, too, is a failure.
set -euo pipefail

level=${1:-build}
case $level in build | test | bench) ;; *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0" >&2; exit 2 ;; esac

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# One place states the version: the manifest.
rust_min=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$here/../Cargo.toml")
say() { echo "setup: $*" >&2; }

# --- what is there ---------------------------------------------------------------------------------------------------

has_rust() {
    local version
    version=$(rustc --version 2>/dev/null | sed -n 's/^rustc \([0-9]*\.[0-9]*\).*/\1/p')
    [ -n "$version" ] && cargo --version >/dev/null 2>&1 || return 1
    [ "${version%.*}" -gt "${rust_min%.*}" ] ||
        { [ "${version%.*}" -eq "${rust_min%.*}" ] && [ "${version#*.}" -ge "${rust_min#*.}" ]; }
}

# <concepts> arrived with C++20, so this also sees a compiler too old, and one without its library's headers.
has_compiler() {
    local cxx=${CXX:-c++}
    command -v "${CC:-cc}" >/dev/null && command -v "$cxx" >/dev/null &&
        echo '#include <concepts>' | "$cxx" -std=c++20 -x c++ -fsyntax-only - 2>/dev/null
}

has_make() { command -v make >/dev/null; }

# The folders in which bindgen itself looks. `ldconfig -p` is no guide: distributions keep LLVM's folder out of it.
has_libclang() {
    local file
    for file in ${LIBCLANG_PATH:+"$LIBCLANG_PATH" "$LIBCLANG_PATH"/libclang*} \
        /usr/lib*/libclang{.,-}* /usr/lib*/*/libclang{.,-}* /usr/lib*/*/*/libclang{.,-}* /usr/local/lib*/libclang{.,-}* \
        /usr/local/llvm*/lib*/libclang{.,-}* {/opt/homebrew,/usr/local}/opt/llvm/lib/libclang.dylib \
        /Library/Developer/CommandLineTools/usr/lib/libclang.dylib; do
        case $file in
        *libclang-cpp*) ;; # another library, with another interface
        *libclang.so* | *libclang-*.so* | *libclang.dylib) [ -e "$file" ] && return ;;
        esac
    done
    return 1
}

# libclang reads C headers with its own stddef.h, and the library's package alone does not bring that.
has_clang_headers() {
    local file
    for file in ${LIBCLANG_PATH:+"$LIBCLANG_PATH"/clang/*/include/stddef.h} \
        /usr/lib*/clang/*/include/stddef.h /usr/lib*/llvm*/lib*/clang/*/include/stddef.h \
        /usr/local/lib*/clang/*/include/stddef.h /usr/local/llvm*/lib*/clang/*/include/stddef.h \
        {/opt/homebrew,/usr/local}/opt/llvm/lib/clang/*/include/stddef.h \
        /Library/Developer/CommandLineTools/usr/lib/clang/*/include/stddef.h; do
        [ -e "$file" ] && return
    done
    return 1
}

has_java() {
    local major
    major=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
    [ -n "$major" ] && [ "$major" -ge 17 ]
}
has_maven() { command -v mvn >/dev/null; }
# There is none outside Linux, and nothing to install.
has_strace() { command -v strace >/dev/null || [ "$(uname)" != Linux ]; }
has_venv() { python3 -c 'import venv, ensurepip' 2>/dev/null; }
has_javac() { command -v javac >/dev/null; }

# --- what is missing -------------------------------------------------------------------------------------------------

# thing | what it is for | apt | dnf | brew. An apt name with `or` in it: the first that the system knows.
table() {
    cat <<'END'
compiler|a C++20 compiler|g++|gcc-c++|gcc
make|make|make|make|make
libclang|libclang|libclang-dev|clang-devel|llvm
clang_headers|clang's own headers|libclang-dev|clang-devel|llvm
END
    [ "$level" = build ] || cat <<'END'
java|Java 17 or newer|openjdk-17-jre-headless or openjdk-21-jre-headless or default-jre-headless|java-21-openjdk-headless|openjdk@21
maven|Maven|maven|maven|maven
venv|Python 3 with venv|python3-venv|python3|python
strace|strace|strace|strace|strace
END
    [ "$level" != bench ] || cat <<'END'
javac|a Java compiler|openjdk-17-jdk-headless or openjdk-21-jdk-headless or default-jdk-headless|java-21-openjdk-devel|openjdk@21
END
}

# Prints the rows of the table whose thing is missing.
missing() {
    local thing rest
    table | while IFS='|' read -r thing rest; do
        "has_$thing" </dev/null || echo "$thing|$rest"
    done
}

# One column of those rows, each package once.
packages() { cut -d '|' -f "$1" | sort -u | paste -s -d ' ' -; }

as_root=()
can_apt() {
    command -v apt-get >/dev/null || return 1
    [ "$(id -u)" -eq 0 ] && return
    command -v sudo >/dev/null && sudo -n true 2>/dev/null && as_root=(sudo -n)
}

install() {
    local wanted=() choice alternative
    while IFS= read -r choice; do
        for alternative in ${choice// or / }; do
            if apt-cache show "$alternative" >/dev/null 2>&1; then wanted+=("$alternative"); break; fi
        done
    done < <(cut -d '|' -f 3 | sort -u)
    [ ${#wanted[@]} -gt 0 ] || return 0
    say "installing ${wanted[*]}"
    ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends "${wanted[@]}" </dev/null >&2
}

if ! has_rust; then
    say "Rust $rust_min or newer is missing (found: $(rustc --version 2>/dev/null || echo none))."
    say "With rustup:  rustup update stable    To get rustup and Rust, see rust-lang's install page, or your packages."
    exit 1
fi

lacking=$(missing)
[ -n "$lacking" ] || exit 0

say "missing: $(echo "$lacking" | cut -d '|' -f 2 | paste -s -d ',' - | sed 's/,/, /g')"
if can_apt; then
    # The lists first: without them, or with old ones, packages are not found.
    ${as_root[@]+"${as_root[@]}"} apt-get update -q </dev/null >&2 || say "apt-get update failed; going on with what it knows"
    echo "$lacking" | install || say "apt-get could not install everything"
    hash -r
    lacking=$(missing)
    [ -n "$lacking" ] || exit 0
fi

needed=$(echo "$lacking" | grep -E '^(compiler|make|libclang|clang_headers)\|' || true)
say "still missing: $(echo "$lacking" | cut -d '|' -f 2 | paste -s -d ',' - | sed 's/,/, /g'). Please install:"
say "  apt-get install $(echo "$lacking" | packages 3 | sed 's/ or [^ ]*//g')"
say "  dnf install $(echo "$lacking" | packages 4)"
say "  brew install $(echo "$lacking" | packages 5)    (the compiler: xcode-select --install)"
if [ -z "$needed" ] && [ "${CI:-}" != true ]; then
    say "only tests need these: going on, and THOSE TESTS WILL BE SKIPPED"
    exit 0
fi
exit 1
