"""``python -m wn.claims [ID ...]``: measure what is missing of the claims, into runs/claims/.

Without an ID: the core; with --long also what takes hours (``long: true`` in experiments/claims/). A kill
costs the part that was being measured; the same command goes on. ``python -m wn.report claims`` makes the
page, results/claims/README.md.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

import wn.claims
from wn.claims import criteria
from wn.claims.measuring import MEASUREMENTS, measure
from wn.config import UserError, nearest
from wn.processes import Preempted, StopWatcher, termination


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 2 after an error that the user can mend; 75 where the time was over."""
    parser = argparse.ArgumentParser(prog="python -m wn.claims", description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", help="claims, as A1 or a family, as B or growth")
    parser.add_argument("--long", action="store_true", help="what takes hours too")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="default: runs")
    parser.add_argument("--max-minutes", type=float, help="for the whole command")
    options = parser.parse_args(arguments)
    try:
        with termination(), StopWatcher(options.max_minutes) as watcher:
            for name in chosen(options.ids, options.long):
                measure(name, options.runs_dir / "claims", watcher)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Preempted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def families() -> dict[str, list[str]]:
    """Modules of this package that measure, and the claims that each measures."""
    found: dict[str, list[str]] = {}
    for module in pkgutil.iter_modules(wn.claims.__path__):
        if module.name != "__main__":
            importlib.import_module(f"wn.claims.{module.name}")
    for claim, function in MEASUREMENTS.items():
        found.setdefault(function.__module__.rpartition(".")[2], []).append(claim)
    return found


def chosen(words: Sequence[str], with_long: bool) -> list[str]:
    """The claims that words name: an id, a letter, or a module's name; without words all but the long."""
    modules = families()
    known = sorted(MEASUREMENTS)
    if not words:
        return [name for name in known if with_long or not criteria.load(name).long]
    names: list[str] = []
    for word in words:
        mine = modules.get(word) or [n for n in known if n == word or n.rstrip("0123456789abc") == word]
        if not mine:
            raise UserError(f"{word}: no claim that is measured{nearest(word, [*known, *modules])}")
        names += [name for name in mine if name not in names]
    return names


if __name__ == "__main__":
    sys.exit(main())
