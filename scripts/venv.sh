#!/usr/bin/env bash
# Makes a Python environment in the cache folder on first use, and prints where it is. Not for use by hand.
#
#   venv.sh NAME REQUIREMENTS [PIP-OPTION]...
#
# Exit code 3: Python 3 or its venv module is missing.
set -euo pipefail

name=$1 wanted=$2
shift 2
# Named after what is in it: a changed pin gets a new one.
pins=$(cksum <"$wanted" | cut -d ' ' -f 1)
venv=${HAPAX_CACHE:-$HOME/.cache/hapax}/$name-$pins

if [ ! -e "$venv/.complete" ]; then
    if ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
        echo "$name: python3 with venv is missing (scripts/setup.sh test)" >&2
        exit 3
    fi
    echo "$name: installing ${wanted##*/} into $venv" >&2
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check "$@" --requirement "$wanted" >&2
    touch "$venv/.complete"
fi
echo "$venv"
