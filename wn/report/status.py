"""How far every experiment is, and what the rest will take. Each record is read once."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from wn import experiments
from wn.experiments import Experiment
from wn.records import DONE
from wn.report import collect
from wn.report.columns import aligned

HEADINGS = ("experiment", "runs", "done", "diverged", "running", "failed", "missing", "rest")


def status(runs_dir: Path, results_dir: Path) -> str:
    """A line per experiment. Runs are done, running, failed or missing; diverged ones are among the done.

    A run is ``running`` that began and has no result: it is trained now, or was when its process died. The
    rest is what the other runs will take, each the mean of the finished runs of its norm, else of all.
    """
    notes: list[str] = []
    lines = [_line(experiments.load(name), runs_dir, results_dir, notes) for name in experiments.names()]
    return "\n".join([aligned([HEADINGS, *lines]), *notes])


def _line(experiment: Experiment, runs_dir: Path, results_dir: Path, notes: list[str]) -> list[str]:
    norms = {config.run_id: config.norm.label for config in experiment.configs()}
    rows = {row["run_id"]: row for row in collect.read_csv(results_dir / experiment.name / collect.RUNS)}
    records, unreadable = collect.records_in(runs_dir / experiment.name)
    local = {str(record.content.get("run_id")): record.content for record in records}
    rows = {**local, **rows, **{run_id: own for run_id, own in local.items() if own["status"] in DONE}}
    others = [run_id for run_id in rows if run_id not in norms]
    notes += unreadable + collect.left_out(
        others, f"row{{0}} or record{{0}} of no run of {experiment.name} as it is now"
    )
    found = {run_id: rows[run_id]["status"] for run_id in norms if run_id in rows}
    counts = [list(found.values()).count(word) for word in ("finished", "diverged", "failed")]
    finished, diverged, failed = counts
    running = len(found) - sum(counts)
    seconds: dict[str, list[float]] = defaultdict(list)
    for run_id, word in found.items():
        if word == "finished" and rows[run_id].get("seconds") is not None:
            seconds[norms[run_id]].append(rows[run_id]["seconds"])
    rest = [norms[run_id] for run_id in norms if found.get(run_id) not in DONE]
    numbers = (len(norms), finished + diverged, diverged, running, failed, len(norms) - len(found))
    return [experiment.name, *map(str, numbers), duration(expected_seconds(seconds, rest))]


def expected_seconds(seconds: dict[str, list[float]], rest: list[str]) -> float | None:
    """What runs of these norms will take; None where nothing is finished to judge by."""
    every = [one for own in seconds.values() for one in own]
    if rest and not every:
        return None
    means = {norm: sum(own) / len(own) for norm, own in seconds.items()}
    return sum(means.get(norm, sum(every) / len(every)) for norm in rest)


def duration(seconds: float | None) -> str:
    """``unknown``, or in the largest unit that leaves at least one of it."""
    if seconds is None:
        return "unknown"
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
