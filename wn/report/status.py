"""Which records there are, how far every experiment is, and what the rest will take.

Each record is read once, and pandas is not imported: a status takes half a millisecond a run.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from wn import experiments
from wn.config import UserError
from wn.experiments import Experiment
from wn.records import DONE, Record
from wn.report.columns import aligned

HEADINGS = ("experiment", "runs", "done", "diverged", "running", "failed", "missing", "rest")


def records_in(folder: Path) -> tuple[dict[str, Record], list[str]]:
    """The records of a folder, by run_id, and a line that names those that cannot be read."""
    found, unreadable = {}, []
    for path in sorted(folder.glob("*/record.json")):
        try:
            record = Record.read(path.parent)
            found[str(record.content["run_id"])] = record
        except (UserError, LookupError):
            unreadable.append(path.parent.name)
    return found, left_out(unreadable, f"record{{}} in {folder} cannot be read; training sets them aside")


def left_out(run_ids: Sequence[str], what: str, why: str = "") -> list[str]:
    """One line about what does not count; none where there is nothing."""
    if not run_ids:
        return []
    words = what.format("s" * (len(run_ids) > 1), be="are" if len(run_ids) > 1 else "is")
    return [f"{len(run_ids)} {words} (first: {run_ids[0]}{why})"]


def damaged(path: Path) -> UserError:
    return UserError(f"{path}: empty, cut short or in conflict; `git checkout {path}` brings the file back")


def status(runs_dir: Path, results_dir: Path) -> str:
    """A line per experiment. Runs are done, running, failed or missing; diverged ones are among the done.

    A run is ``running`` that began and has no result: it is trained now, or was when its process died. The
    rest is what the other runs will take, each the mean of the finished runs of its norm, else of all.
    """
    notes: list[str] = []
    lines = []
    for name in experiments.names():
        try:
            lines.append(_line(experiments.load(name), runs_dir, results_dir, notes))
        except UserError as error:  # one bad file changes nothing for the others
            notes.append(str(error))
    return "\n".join([aligned([HEADINGS, *lines]), *notes])


def _line(experiment: Experiment, runs_dir: Path, results_dir: Path, notes: list[str]) -> list[str]:
    norms = {config.run_id: config.norm.label for config in experiment.configs()}
    records, unreadable = records_in(runs_dir / experiment.name)
    local = {i: (record.status, record.content.get("seconds")) for i, record in records.items()}
    known = local | _committed(results_dir / experiment.name / "runs.csv")
    known |= {run_id: own for run_id, own in local.items() if own[0] in DONE}
    others = [run_id for run_id in known if run_id not in norms]
    notes += unreadable
    notes += left_out(others, f"row{{0}} or record{{0}} of no run of {experiment.name} as it is now")
    found = {run_id: known[run_id] for run_id in norms if run_id in known}
    counts = Counter(word for word, _ in found.values())
    seconds: dict[str, list[float]] = {}
    for run_id, (word, took) in found.items():
        if word == "finished" and took is not None:
            seconds.setdefault(norms[run_id], []).append(took)
    rest = expected_seconds(seconds, [norms[i] for i in norms if i not in found or found[i][0] not in DONE])
    done, diverged, failed = counts["finished"] + counts["diverged"], counts["diverged"], counts["failed"]
    numbers = (len(norms), done, diverged, len(found) - done - failed, failed, len(norms) - len(found))
    return [experiment.name, *map(str, numbers), "unknown" if rest is None else f"{rest / 3600:.2f} h"]


def _committed(path: Path) -> dict[str, tuple[str, float | None]]:
    """Status and seconds by run_id."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    try:
        rows = list(csv.DictReader(content.decode("utf-8").splitlines()))
        seconds = [float(row["seconds"]) if row["seconds"] else None for row in rows]
        found = {row["run_id"]: (row["status"], took) for row, took in zip(rows, seconds, strict=True)}
    except (ValueError, LookupError, TypeError):
        raise damaged(path) from None
    if not content.endswith(b"\n") or not all(word in DONE for word, _ in found.values()):
        raise damaged(path)
    return found


def expected_seconds(seconds: dict[str, list[float]], rest: list[str]) -> float | None:
    """What runs of these norms will take; None where nothing is finished to judge by."""
    every = [one for own in seconds.values() for one in own]
    if rest and not every:
        return None
    return sum(fmean(seconds.get(norm, every)) for norm in rest)
