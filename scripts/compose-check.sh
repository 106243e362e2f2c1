#!/usr/bin/env bash
# Holds compose/compose.yaml (or the files given) against the Compose schema, in an environment of its own in the cache
# folder. It needs no container engine, and proves the form of the file, not that its images start.
# Exit codes: 0 valid, 1 not valid, 3 Python 3 or its venv module is missing.
set -euo pipefail

top=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
venv=$("$top/scripts/venv.sh" compose "$top/compose/requirements.txt")
if [ $# -eq 0 ]; then set -- "$top/compose/compose.yaml"; fi
exec "$venv/bin/check-jsonschema" --builtin-schema vendor.compose-spec "$@"
