"""How far every experiment is, and what the rest will cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wn import experiments
from wn.experiments import Experiment
from wn.report import collect
from wn.report.words import aligned

HEADINGS = ("experiment", "runs", "done", "diverged", "running", "failed", "missing", "rest")


def status(runs_dir: Path, results_dir: Path) -> str:
    """A line per experiment. Runs are done, running, failed or missing; diverged ones are among the done.

    A run is ``running`` that began and has no result: it is trained now, or was when its process died.

    Raises:
        UserError: a record is unreadable, or two fill the same cell.
    """
    lines = [_line(experiments.load(name), runs_dir, results_dir) for name in experiments.names()]
    return aligned([HEADINGS, *lines])


def _line(experiment: Experiment, runs_dir: Path, results_dir: Path) -> tuple[str, ...]:
    local = collect.local_records(experiment, runs_dir)
    runs = collect.merge(experiment, local, results_dir / experiment.name).runs
    done = set(runs[experiment.axes].itertuples(index=False, name=None))
    rest = [cell for cell in experiment.cells() if tuple(str(value) for value in cell.values()) not in done]
    found = [local[key].status for cell in rest if (key := tuple(cell.values())) in local]
    counts = {
        "runs": experiment.size,
        "done": len(runs),
        "diverged": int((runs["status"] == "diverged").sum()),
        "running": found.count("running"),
        "failed": found.count("failed"),
        "missing": len(rest) - len(found),
    }
    cost = _duration(expected_seconds(runs, [str(cell["norm"]) for cell in rest]))
    return (experiment.name, *(str(count) for count in counts.values()), cost)


def expected_seconds(runs: Any, norms: list[str]) -> float | None:
    """What runs of these norms will take: each the mean of the finished runs of its norm, else of all.

    None where nothing is finished to judge by.
    """
    finished = runs[(runs["status"] == "finished") & runs["seconds"].notna()]
    if norms and not len(finished):
        return None
    of_norm = finished.groupby("norm")["seconds"].mean().to_dict()
    return float(sum(of_norm.get(norm, finished["seconds"].mean()) for norm in norms))


def _duration(seconds: float | None) -> str:
    """``unknown``, or in the largest unit that leaves at least one of it."""
    if seconds is None:
        return "unknown"
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
