"""``python -m wn.report [experiment ...]``: make the tables and figures again from what is there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from wn import experiments
from wn.config import UserError
from wn.report import build


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 2 after an error that the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m wn.report", description=__doc__)
    parser.add_argument("experiment", nargs="*", help="default: every experiment that has a run done")
    parser.add_argument("--status", action="store_true", help="how far every experiment is, and what is left")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="records (default: runs)")
    parser.add_argument("--results-dir", type=Path, default=Path("results"), help="default: results")
    options = parser.parse_args(arguments)
    try:
        if options.status:
            from wn.report.status import status

            print(status(options.runs_dir, options.results_dir))
        else:
            names = options.experiment or _with_rows(options.runs_dir, options.results_dir)
            print("\n\n".join(_report(name, options.runs_dir, options.results_dir) for name in names))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _with_rows(runs_dir: Path, results_dir: Path) -> list[str]:
    from wn.report import collect

    names = []
    for name in experiments.names():
        experiment = experiments.load(name)
        local = collect.local_records(experiment, runs_dir)
        if len(collect.merge(experiment, local, results_dir / name).runs):
            names.append(name)
    if not names:
        known = ", ".join(experiments.names())
        raise UserError(
            f"{runs_dir}: no run of an experiment is done yet; name one to see its command: {known}"
        )
    return names


def _report(name: str, runs_dir: Path, results_dir: Path) -> str:
    """Build one report and say what it shows and where it is."""
    built = build(name, runs_dir, results_dir)
    files = [f"{path.with_suffix('.svg')}" for path in built.figures]
    return "\n".join([name, built.text, *files, f"{results_dir / 'README.md'}"])


if __name__ == "__main__":
    sys.exit(main())
