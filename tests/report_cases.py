"""A small experiment and synthetic records of it, for the tests of the report."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from wn import experiments
from wn.config import SCHEMA
from wn.experiments import Experiment
from wn.report import collect, statistics

NAME = "robust"
LRS = [0.01, 0.1, 1.0]
SEEDS = [0, 1, 2]

# What the synthetic runs end with: validation error per learning rate (None: diverged), seed by seed.
ERRORS: dict[str, list[list[float | None]]] = {
    "none": [[0.10, 0.11, 0.12], [0.04, 0.05, 0.06], [None, 0.9, 0.9]],
    "weight_norm": [[0.06, 0.06, 0.06], [0.03, 0.02, 0.04], [0.05, 0.05, 0.05]],
}

TREE: Any = {
    "title": "How robust?",
    "claim": "Very.",
    "report": "lr_robustness",
    "fixed": {"data": "digits", "trainer.epochs": 4},
    "grid": {"norm": list(ERRORS), "optim.lr": LRS, "seed": SEEDS},
}


def declare(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Experiment:
    """The experiment, with changes, as the only one in the folder of experiments."""
    folder = folder / "experiments"
    folder.mkdir(exist_ok=True)
    (folder / f"{NAME}.yaml").write_text(yaml.safe_dump(TREE | changes, sort_keys=False))
    monkeypatch.setattr(experiments, "FOLDER", folder)
    return experiments.load(NAME)


def write_run(runs_dir: Path, norm: str, lr: float, seed: int, **changes: Any) -> Path:
    """A record as training leaves it, of the experiment that :func:`declare` declares."""
    return write_record(runs_dir, norm, lr, seed, ERRORS[norm][LRS.index(lr)][SEEDS.index(seed)], **changes)


def write_record(runs_dir: Path, norm: str, lr: float, seed: int, end: float | None, **changes: Any) -> Path:
    """A record whose errors end as given (None: it diverged); the training error is halved every epoch."""
    run_id = changes.get("run_id", hashlib.sha256(f"{norm} {lr} {seed}".encode()).hexdigest()[:12])
    diverged = end is None
    numbers = {"error": None if diverged else end, "loss": None if diverged else 10 * end + seed / 3}
    content = {
        "schema": SCHEMA,
        "run_id": run_id,
        "experiment": NAME,
        "norm": norm,
        "status": "diverged" if diverged else "finished",
        "config": {
            "data": {"name": "digits"},
            "optim": {"name": "sgd", "lr": lr},
            "trainer": {"epochs": 4, "precision": "float32"},
            "seed": seed,
        },
        "stack": [run_id, "another"],
        "provenance": {"commit": "c" * 40, "dirty": False, "device": "CPU", "packages": {"torch": "2.15"}},
        "seconds": 2.5,
        "initial": {"valid_loss": 2.0, "valid_error": 0.9},
        "final": {f"{part}_{what}": x for part in ("train", "valid", "test") for what, x in numbers.items()},
        "best": {"epoch": 3, "valid_error": numbers["error"]},
        **({"diverged_at": {"epoch": 1, "step": 7}} if diverged else {}),
    }
    folder = runs_dir / NAME / run_id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(json.dumps(content | changes))
    epochs = range(2 if diverged else 5)
    metrics = [{"epoch": epoch, "step": 7 * epoch} for epoch in epochs]
    for row in metrics[1:]:
        row["train_error"] = numbers["error"] and numbers["error"] * 2 ** (4 - row["epoch"])
    directions = {"v_norm_mean": 1 + lr / 3, "g_mean": 1.5} if norm == "weight_norm" else {}
    probes = [
        {"epoch": epoch, "step": 7 * epoch, "layer": layer, "w_norm_mean": 1.5, "effective_lr": lr / 7}
        | {"relative_update": lr / 3, **directions}
        for epoch in epochs[2::2]
        for layer in ("hidden0", "hidden1", "output")
    ]
    for name, rows in (("metrics", metrics), ("probes", probes)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_all(runs_dir: Path, **changes: Any) -> None:
    for norm in ERRORS:
        for lr in LRS:
            for seed in SEEDS:
                write_run(runs_dir, norm, lr, seed, **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def table_of(experiment: Experiment, runs_dir: Path) -> dict[str, dict[str, Any]]:
    rows = collect.merge(experiment, collect.local_records(experiment, runs_dir), Path("nothing"))
    table = statistics.table(rows.runs, experiment)
    return {row["norm"]: row for row in table.to_dict("records")}
