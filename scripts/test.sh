#!/usr/bin/env bash
# Sets up .venv and runs every check, pytest last. Arguments go to pytest.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
export PYTHONDONTWRITEBYTECODE='' # importing torch and W&B without their bytecode takes three times as long
.venv/bin/python -m ruff check
.venv/bin/python -m ruff format --check
.venv/bin/python -m mypy
.venv/bin/python -m pytest "$@"
