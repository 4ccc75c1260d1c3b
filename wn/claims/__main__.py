"""``python -m wn.claims [ID ...]``: measure what is missing of the claims, into runs/claims/.

Without an ID: the core; with --long also what takes hours (``long: true`` in experiments/claims/). A process
for each core; steps are timed at the end, when no other process runs. A kill costs the parts that were being
measured; the same command goes on. ``python -m wn.report claims`` makes the page, results/claims/README.md.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence

import torch

from wn.claims import criteria
from wn.claims.measuring import MEASUREMENTS, complete, families, left_out, measure_family, measured
from wn.config import UserError, nearest
from wn.processes import WorkerDied, map_workers
from wn.stops import Preempted, tell, termination


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 where a process died; 2 after a mistake, or where a claim is left out; 75 where time was over."""
    parser = argparse.ArgumentParser(prog="python -m wn.claims", description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", help="claims, as A1 or a family, as B or growth")
    parser.add_argument("--long", action="store_true", help="what takes hours too")
    parser.add_argument("--workers", type=int, default=torch.get_num_threads(), help="default: one per core")
    parser.add_argument("--max-minutes", type=float, help="begin no part after so many")
    options = parser.parse_args(arguments)
    try:
        with termination():
            names = chosen(options.ids, options.long)
            deaths = _measure_all(names, options.workers, options.max_minutes)
    except (UserError, Preempted, KeyboardInterrupt, OSError) as end:
        return tell(end)
    for family, death in deaths:
        print(f"{', '.join(family)}: {death}", file=sys.stderr)
    return 1 if deaths else 0 if all(map(complete, names)) else 2


def _measure_all(
    names: Sequence[str], workers: int, max_minutes: float | None
) -> list[tuple[list[str], WorkerDied]]:
    """Measure claims; what died twice comes back."""
    parts: dict[str, list[bool]] = {}
    for name in names:
        try:
            parts[name] = [measured(name, part) for part in MEASUREMENTS[name]()]
        except UserError as error:  # what it needs is not there yet: the others do without
            left_out(name, error)
    names, count = list(parts), sum(map(len, parts.values()))
    print(
        f"{len(names)} claims in {count} parts: {sum(map(sum, parts.values()))} measured before", flush=True
    )
    together, timed = groups(names)
    work = functools.partial(measure_family, max_minutes)
    return map_workers(work, together, workers) + map_workers(work, timed, 1)


def groups(names: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Claims by family, as those share trainings: that can be measured beside others, and that are timed.

    The families of most claims come first: they take longest, and begun last would leave a core idle.
    """
    by_family = {module: [n for n in own if n in names] for module, own in families().items()}
    timed = by_family.pop("cost")
    return sorted(filter(None, by_family.values()), key=len, reverse=True), [timed] if timed else []


def chosen(words: Sequence[str], with_long: bool) -> list[str]:
    """The claims that words name: an id, a letter, or a module's name; without words all but the long."""
    modules = families()
    known = sorted(MEASUREMENTS)
    if not words:
        return [name for name in known if with_long or not criteria.load(name).long]
    names: list[str] = []
    for word in words:
        mine = modules.get(word) or [n for n in known if word in (n, n[0])]
        if not mine:
            raise UserError(f"{word}: no claim that is measured{nearest(word, [*known, *modules])}")
        names += [name for name in mine if name not in names]
    return names


if __name__ == "__main__":
    sys.exit(main())
