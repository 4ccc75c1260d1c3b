#!/usr/bin/env bash
# Sets up .venv and runs every check, the tests on all cores. Arguments go to pytest, which then runs in one
# process unless -n says more: scripts/test.sh -x tests/test_norm.py
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
export PYTHONDONTWRITEBYTECODE='' # importing torch and W&B without their bytecode takes three times as long
.venv/bin/python -m ruff check
.venv/bin/python -m ruff format --check

# mypy runs beside the tests, which leave a core idle at times; its findings are printed after theirs.
types=$(mktemp)
.venv/bin/python -m mypy >"$types" 2>&1 &
mypy=$!
trap 'kill "$mypy" 2>/dev/null || true; rm -f "$types"' EXIT
if [ $# -eq 0 ]; then
    set -- --numprocesses=auto --maxprocesses=8 --dist=worksteal # an idle worker takes tests from a busy one
fi
status=0
.venv/bin/python -m pytest "$@" || status=$?
[ "$status" -ne 2 ] || exit 2 # Ctrl-C
if ! wait "$mypy"; then
    cat "$types" >&2
    exit 1
fi
exit "$status"
