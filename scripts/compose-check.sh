#!/usr/bin/env bash
# Holds compose/compose.yaml (or the files given) against the Compose schema, in an environment of its own in the cache
# folder. It needs no container engine, and proves the form of the file, not that its images start.
# Exit codes: 0 valid, 1 not valid, 3 Python 3 or its venv module is missing.
set -euo pipefail

top=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
wanted=$top/compose/requirements.txt
# Named after what is in it: a changed pin gets a new one.
pins=$(cksum <"$wanted" | cut -d ' ' -f 1)
venv=${HAPAX_CACHE:-$HOME/.cache/hapax}/compose-$pins

if [ ! -e "$venv/.complete" ]; then
    if ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
        echo "compose: python3 with venv is missing (scripts/setup.sh test)" >&2
        exit 3
    fi
    echo "compose: installing the checker into $venv" >&2
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$wanted" >&2
    touch "$venv/.complete"
fi
if [ $# -eq 0 ]; then set -- "$top/compose/compose.yaml"; fi
exec "$venv/bin/check-jsonschema" --builtin-schema vendor.compose-spec "$@"
