"""Small experiments, and synthetic records of their runs, for the tests of the report."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from wn import experiments
from wn.config import SCHEMA, Config, VAEConfig
from wn.config.compose import compose
from wn.records import public_config
from wn.report import collect
from wn.report.collect import Rows
from wn.report.columns import Row
from wn.report.plan import Plan, of_experiment
from wn.report.status import records_in
from wn.report.tables import Table, table_of

NAME = "robust"
LRS = [0.01, 0.1, 1.0]
SEEDS = [0, 1, 2]
FIXED: dict[str, Any] = {"data": "digits", "trainer.epochs": 4, "optim": "sgd"}

# What the runs of the sweep end with: validation error per learning rate (None: diverged), seed by seed.
ERRORS: dict[str, list[list[float | None]]] = {
    "none": [[0.10, 0.11, 0.12], [0.04, 0.05, 0.06], [None, 0.9, 0.9]],
    "weight_norm": [[0.06, 0.06, 0.06], [0.03, 0.02, 0.04], [0.05, 0.05, 0.05]],
}
SWEEP: dict[str, Any] = {
    "title": "How robust?",
    "claim": "Very.",
    "fixed": FIXED,
    "grid": {"norm": list(ERRORS), "optim.lr": LRS, "seed": SEEDS},
}
ROWS: list[dict[str, Any]] = [
    {"name": "ours", "norm": "weight_norm", "lrs": [0.1], "paper": 7.3, "band": [7.1, 7.7]},
    {"name": "BN", "norm": "batch_norm", "lrs": [0.1], "paper": 8.05, "rerun": 8.25},
    {"name": "normal", "norm": "none_init", "lrs": [0.01, 0.1]},
]
TABLE: dict[str, Any] = {"title": "A table", "claim": "Low.", "fixed": FIXED, "rows": ROWS, "seeds": SEEDS}
VAE: dict[str, Any] = {
    "model": "mlp_vae",
    "data": "digits",
    "optim": "adamax",
    "trainer.epochs": 20,
    "trainer.test_every": 10,
}
ELBOS: dict[str, Any] = {
    "title": "Bounds",
    "claim": "High.",
    "fixed": VAE,
    "rows": [
        {"name": "normal", "norm": "none_init", "lrs": [0.002]},
        {"name": "WN", "norm": "weight_norm_init", "lrs": [0.002]},
        {"name": "BN", "norm": "batch_norm", "lrs": [0.002]},
    ],
    "seeds": SEEDS,
    "curves": "paper/bounds.yaml",
}


def declare(folder: Path, monkeypatch: pytest.MonkeyPatch, tree: Mapping[str, Any], name: str = NAME) -> Plan:
    """The experiment, beside others that were declared in the same folder."""
    folder = folder / "experiments"
    (folder / "paper").mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(dict(tree), sort_keys=False), encoding="utf-8")
    monkeypatch.setattr(experiments, "FOLDER", folder)
    return of_experiment(name)


def publish_curve(folder: Path, file: str, curves: dict[str, list[list[float]]]) -> None:
    """Curves that somebody published."""
    (folder / "experiments" / "paper").mkdir(parents=True, exist_ok=True)
    (folder / "experiments" / file).write_text(yaml.safe_dump({"curves": curves}), encoding="utf-8")


def config(**settings: Any) -> Config:
    """A configuration, with ``__`` for a dot."""
    return compose({key.replace("__", "."): value for key, value in {**settings}.items()})


def write_record(folder: Path, config: Config, end: float | None, **changes: Any) -> Path:
    """A record in ``folder/<run_id>``, whose error or loss ends as given (None: it diverged).

    A classifier's training error is halved every epoch, and its loss is 10 x error + seed/3; a VAE's loss
    falls by 5 nats in the last ten epochs.
    """
    is_vae, epochs = isinstance(config.model, VAEConfig), config.trainer.epochs
    final: Row = {}
    if end is not None and is_vae:
        parts = {"loss": end, "reconstruction": end - 10, "kl": 10.0}
        final = {f"{part}_{name}": x for part in ("train", "valid", "test") for name, x in parts.items()}
        final["test_nll"] = end - 2
    elif end is not None:
        numbers = {"error": end, "loss": 10 * end + config.seed / 3}
        final = {f"{part}_{name}": x for part in ("train", "valid", "test") for name, x in numbers.items()}
    content = {
        "schema": SCHEMA,
        "run_id": config.run_id,
        "experiment": folder.name,
        "norm": config.norm.label,
        "status": "diverged" if end is None else "finished",
        "config": public_config(config),
        "stack": [config.run_id, "another"],
        "provenance": {"commit": "c" * 40, "dirty": False, "device": "CPU", "packages": {"torch": "2.15"}},
        "seconds": 2.5,
        "steps": 7 * epochs,
        "initial": {"valid_loss": 60.0} if is_vae else {"valid_loss": 2.0, "valid_error": 0.9},
        "final": final,
        "best": {"epoch": 3, "valid_loss" if is_vae else "valid_error": end},
        **({"diverged_at": {"epoch": 1, "step": 7}} if end is None else {}),
    }
    place = folder / config.run_id
    place.mkdir(parents=True, exist_ok=True)
    (place / "record.json").write_text(json.dumps(content | changes), encoding="utf-8")
    metrics: list[Row] = [
        {"epoch": epoch, "step": 7 * epoch} for epoch in range(2 if end is None else epochs + 1)
    ]
    for row in metrics[1:]:
        if not is_vae:
            row["train_error"] = end and end * 2 ** (epochs - row["epoch"])
        elif end is not None and row["epoch"] % 10 == 0:
            loss = end + 5 * (epochs - row["epoch"]) / 10
            row |= {
                "train_loss": end - 1,
                "test_loss": loss,
                "test_reconstruction": loss - 10,
                "test_kl": 10.0,
            }
    direction = (
        {"v_norm_mean": 1 + config.optim.lr / 3, "g_mean": 1.5} if config.norm.direction == "row" else {}
    )
    probes = [
        {"epoch": row["epoch"], "step": row["step"], "layer": layer, "w_norm_mean": 1.5, **direction}
        | {"effective_lr": config.optim.lr / 7, "relative_update": config.optim.lr / 3}
        for row in metrics[2::2]
        for layer in ("hidden0", "hidden1", "output")
    ]
    for name, rows in (("metrics", metrics), ("probes", probes)):
        (place / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    return place


def run_of(plan: Plan, norm: str, lr: float, seed: int) -> Config:
    """The plan's run of a norm."""
    group = next(group for group in plan.groups if group.norm == norm)
    return group.configs[group.ids[lr, seed]]


def write_run(runs_dir: Path, plan: Plan, norm: str, lr: float, seed: int, **changes: Any) -> Path:
    """The record of a run of :data:`SWEEP`, which ends as :data:`ERRORS` says."""
    end = ERRORS[norm][LRS.index(lr)][seed]
    return write_record(runs_dir / plan.name, run_of(plan, norm, lr, seed), end, **changes)


def write_sweep(runs_dir: Path, plan: Plan, **changes: Any) -> None:
    for norm in ERRORS:
        for lr in LRS:
            for seed in SEEDS:
                write_run(runs_dir, plan, norm, lr, seed, **changes)


def write_seeds(
    runs_dir: Path, plan: Plan, norm: str, lr: float, ends: list[float | None], **more: Any
) -> None:
    """A record per seed."""
    for seed, end in enumerate(ends):
        write_record(runs_dir / plan.name, run_of(plan, norm, lr, seed), end, **more)


def rows_of(plan: Plan, runs_dir: Path) -> Rows:
    """The rows of the records, as a report reads them."""
    return collect.of_records(plan, records_in(runs_dir / plan.name)[0])


def table(plan: Plan, runs_dir: Path) -> Table:
    return table_of(plan, rows_of(plan, runs_dir).runs)


def by_norm(plan: Plan, runs_dir: Path) -> dict[str, Row]:
    """The rows of a sweep's table."""
    return {row["norm"]: row for row in table(plan, runs_dir).rows}


def cells(plan: Plan, runs_dir: Path) -> dict[tuple[str, str], dict[str, str]]:
    """A table as it is shown, by its first two columns."""
    heading, *rows = table(plan, runs_dir).cells()
    return {(row[0], row[1]): dict(zip(heading, row, strict=True)) for row in rows}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def data_in(page: str) -> dict[str, Any]:
    """What the page for a browser shows."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return dict(json.loads(text))


def lines(plan: Plan, runs_dir: Path) -> dict[tuple[str, Any], Row]:
    return {(row["row"], row["lr"]): row for row in table(plan, runs_dir).rows}


def p_of(d: Any) -> float:
    """Of the paired t test with two degrees of freedom."""
    t = abs(np.mean(d)) / (np.std(d, ddof=1) / math.sqrt(3))
    return float(1 - t / math.sqrt(t * t + 2))
