"""Which records there are, how far every experiment is, and what the rest will take.

Each record is read once, and pandas is not imported: a status takes half a millisecond a run.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from wn import experiments
from wn.config import UserError
from wn.config.errors import short
from wn.experiments import Experiment
from wn.records import DONE, Record
from wn.report.columns import aligned
from wn.timings import Timings, spoken

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
    many = len(run_ids) > 1
    words = what.format("s" * many, be="are" if many else "is", it="them" if many else "it")
    return [f"{len(run_ids)} {words} (first: {run_ids[0]}{why})"]


def reason(record: Record) -> str:
    """Why a run failed; the lines before the last one are the traceback."""
    return short((str(record.content.get("error")).splitlines() or ["unknown"])[-1], 200)


def damaged(path: Path) -> UserError:
    return UserError(f"{path}: empty, cut short or in conflict; `git checkout {path}` brings the file back")


def status(runs_dir: Path, results_dir: Path) -> str:
    """A line per experiment. Runs are done, running, failed or missing; diverged ones are among the done.

    A run is ``running`` that began and has no result: it is trained now, or was when its process died. The
    rest is what the other runs will take, by finished runs here that are like them; GB is the size of their
    records.
    """
    found = {path.name: records_in(path) for path in sorted(runs_dir.glob("*")) if path.is_dir()}
    timings = Timings(record for records, _ in found.values() for record in records.values())
    notes: list[str] = []
    lines = []
    for name in experiments.names():
        try:
            own = found.get(name, ({}, []))
            lines.append(_line(experiments.load(name), *own, results_dir, timings, notes))
        except UserError as error:  # one bad file changes nothing for the others
            notes.append(str(error))
    if any(line[-1] == "unknown" for line in lines):
        notes.append("unknown: python -m wn.train +experiment=NAME --dry-run measures a step")
    return "\n".join([aligned([HEADINGS, *lines]), *notes])


def _line(
    experiment: Experiment,
    records: dict[str, Record],
    unreadable: list[str],
    results_dir: Path,
    timings: Timings,
    notes: list[str],
) -> list[str]:
    configs = {config.run_id: config for config in experiment.configs()}
    local = {run_id: record.status for run_id, record in records.items()}
    known = local | _committed(results_dir / experiment.name / "runs.csv")
    known |= {run_id: word for run_id, word in local.items() if word in DONE}
    others = [run_id for run_id in known if run_id not in configs]
    notes += unreadable
    notes += left_out(others, f"row{{0}} or record{{0}} of no run of {experiment.name} as it is now")
    found = {run_id: known[run_id] for run_id in configs if run_id in known}
    counts = Counter(found.values())
    failures = [run_id for run_id, word in found.items() if word == "failed"]
    why = f": {reason(records[failures[0]])}" if failures else ""
    notes += left_out(
        failures, f"run{{}} of {experiment.name} failed; the same command trains {{it}} again", why
    )
    left = [config for run_id, config in configs.items() if found.get(run_id) not in DONE]
    rest = _total([timings.seconds(config) for config in left])
    done, diverged, failed = counts["finished"] + counts["diverged"], counts["diverged"], counts["failed"]
    numbers = (len(configs), done, diverged, len(found) - done - failed, failed, len(configs) - len(found))
    return [experiment.name, *map(str, numbers), spoken(rest) if left else "none"]


def _total(each: Sequence[float | None]) -> float | None:
    known = [one for one in each if one is not None]
    return math.fsum(known) if len(known) == len(each) else None


def _committed(path: Path) -> dict[str, str]:
    """Status by run_id."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    try:
        rows = [*csv.DictReader(content.decode("utf-8").splitlines())]
        found = {row["run_id"]: row["status"] for row in rows}
    except (ValueError, LookupError):
        raise damaged(path) from None
    whole = content.endswith(b"\n") and len(found) == len(rows)  # a merge may have kept both sides
    if not whole or not all(word in DONE for word in found.values()):
        raise damaged(path)
    return found
