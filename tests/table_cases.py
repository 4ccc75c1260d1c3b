"""A small table of test errors, and synthetic records of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from report_cases import TREE, declare, write_record

from wn import experiments
from wn.experiments import Experiment
from wn.report import classification, collect

ROWS: Any = [
    {"name": "ours", "norm": "weight_norm", "lrs": [0.1], "paper": 7.3, "band": [7.1, 7.7]},
    {"name": "BN", "norm": "batch_norm", "lrs": [0.1], "paper": 8.05, "rerun": 8.25},
    {"name": "normal", "norm": "none_init", "lrs": [0.01, 0.1]},
]

TABLE: Any = {
    "report": "classification",
    "fixed": {"data": "digits", "trainer.epochs": 4},
    "grid": {},
    "rows": ROWS,
    "seeds": [0, 1, 2],
}

CHOICE = "choice"
"""The experiment that chooses the table's learning rates."""


def declare_table(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Experiment:
    """The table, with changes, as the only experiment; nothing is committed."""
    monkeypatch.setattr(experiments, "RESULTS", folder / "committed")
    return declare(folder, monkeypatch, **(TABLE | changes))


def commit_choice(folder: Path, *rows: str) -> None:
    """The committed table of :data:`CHOICE`: lines ``norm,runs,planned,best_lr``."""
    (folder / "experiments" / f"{CHOICE}.yaml").write_text(yaml.safe_dump(TREE))
    path = folder / "committed" / CHOICE / "table.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["norm,runs,planned,best_lr", *rows]) + "\n")


def write_runs(runs_dir: Path, norm: str, lr: float, errors: list[float | None]) -> None:
    """A run per seed."""
    for seed, error in enumerate(errors):
        write_record(runs_dir, norm, lr, seed, error)


def rows_of(experiment: Experiment, runs_dir: Path) -> Any:
    return collect.merge(experiment, collect.local_records(experiment, runs_dir), Path("nothing"))


def lines_of(experiment: Experiment, runs_dir: Path) -> dict[tuple[str, float], dict[str, Any]]:
    """The table's lines by row and learning rate."""
    table = classification.table(rows_of(experiment, runs_dir), experiment)
    return {(line["row"], line["lr"]): line for line in table.to_dict("records")}
