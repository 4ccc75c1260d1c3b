#!/usr/bin/env bash
# Makes .venv hold exactly what requirements.lock names; returns at once where it already does.
#
# PYTHON chooses the interpreter (3.11 to 3.13); without it the newest one found is taken. The project
# itself is not installed: `python -m wn.train` runs from the repository root, so nothing is built and
# nothing comes from outside the two locks.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# Prints the interpreter behind $1 (behind an active environment too), or fails where it is of no use:
# too old, too new, without venv and pip, or a version manager's stub for a Python that is not there.
base_python() {
    "$1" -c 'import ensurepip, os, sys, venv
if not (3, 11) <= sys.version_info < (3, 14):
    sys.exit(1)
print(os.path.realpath(sys._base_executable))' 2>/dev/null
}

if [ -n "${PYTHON:-}" ]; then
    set -- "$PYTHON"
    advice="PYTHON=$PYTHON is not one: let it name one, or unset it"
else
    set -- python3.13 python3.12 python3.11 python3
    advice="none of $* is one: install one, or let PYTHON name it"
fi

# The stamp is a copy of the lock and is written last: a set-up that was killed left none and begins anew.
stamp=.venv/requirements.lock
if [ -x .venv/bin/python ] && cmp -s requirements.lock "$stamp"; then
    if [ -z "${PYTHON:-}" ] || [ "$(base_python "$PYTHON")" = "$(base_python .venv/bin/python)" ]; then
        exit 0
    fi
fi

for candidate; do
    if python=$(base_python "$candidate"); then break; fi
done
if [ -z "$python" ]; then
    echo "setup: this needs Python 3.11, 3.12 or 3.13 with venv and pip, and $advice" >&2
    exit 1
fi

echo "setup: filling .venv with $("$python" --version); the first time, with CUDA, that is 3 GB to fetch" >&2
rm -f "$stamp"
"$python" -m venv --clear .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r scripts/uv.lock
quiet=--quiet # a log has no use for progress bars
if [ -t 2 ]; then quiet=''; fi
.venv/bin/python -m uv pip sync $quiet --python .venv/bin/python --require-hashes requirements.lock
cp requirements.lock "$stamp"
