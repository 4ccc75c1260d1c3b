"""How far experiments are, and what the rest will take."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_cases import (
    NAME,
    SEEDS,
    SWEEP,
    config,
    declare,
    write_record,
    write_run,
)

from wn.records import Record
from wn.report.plan import Plan
from wn.report.status import status

pytestmark = pytest.mark.usefixtures("plan")


def test_status_counts_every_run_once(tmp_path: Path, plan: Plan) -> None:
    for seed in SEEDS:
        write_run(tmp_path / "runs", plan, "none", 1.0, seed, seconds=30.0)
    write_run(tmp_path / "runs", plan, "weight_norm", 1.0, 0, status="failed")
    write_run(tmp_path / "runs", plan, "weight_norm", 1.0, 1, status="running")
    write_record(tmp_path / "runs" / NAME, config(seed=7), 0.1, seconds=0.0)
    heading, line, note, failure = status(tmp_path / "runs", tmp_path / "results").splitlines()
    assert failure.startswith(f"1 run of {NAME} failed; the same command trains it again (first: ")
    cells = dict(zip(heading.split(), line.split(maxsplit=7), strict=True))
    assert cells == {
        "experiment": NAME,
        "runs": "18",
        "done": "3",
        "diverged": "1",
        "running": "1",
        "failed": "1",
        "missing": "13",
        "rest": "8 minutes",
    }
    assert note.startswith(f"1 row or record of no run of {NAME} as it is now")


def test_status_reads_each_record_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = {"norm": ["none"], "optim.lr": [0.1 * k for k in range(1, 5)], "seed": list(range(10))}
    plan = declare(tmp_path, monkeypatch, {**SWEEP, "grid": grid})
    for group in plan.groups:
        for own in group.configs.values():
            write_record(tmp_path / "runs" / NAME, own, 0.1)
    read: list[Path] = []
    reader = Record.read.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        Record, "read", classmethod(lambda cls, folder: (read.append(folder), reader(cls, folder))[1])
    )
    status(tmp_path / "runs", tmp_path / "results")
    assert len(read) == len(set(read)) == 40
