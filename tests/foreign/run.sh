#!/usr/bin/env bash
# Runs producer.py in an environment of its own, made on first use in the cache folder; all arguments go to it.
# Only the summary reaches stdout. Exit code 3: Python 3 or its venv module is missing.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
venv=$("$here/../../scripts/venv.sh" foreign "$here/requirements.txt" --no-deps --use-pep517)
exec "$venv/bin/python" "$here/producer.py" "$@"
