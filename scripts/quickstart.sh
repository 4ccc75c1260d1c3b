#!/usr/bin/env bash
# From nothing to a result: sets up .venv, trains the learning-rate experiment on handwritten digits, prints
# its table, names its figures and says whether they reproduce the committed rows. Arguments are Hydra
# overrides; finished runs are not repeated.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
export PYTHONDONTWRITEBYTECODE='' # importing torch and W&B without their bytecode takes three times as long
exec .venv/bin/python -m wn.train +experiment=lr_robustness_digits "$@"
