"""Tiny sweeps, their outcomes, and ways to cut them short."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from wn import run, sweep
from wn.config import Config, parse
from wn.records import Record, Row, read_experiment
from wn.sweep import train_sweep

NORMS = {
    "none": {},
    "weight_norm": {"direction": "row", "gain": "free"},
    "weight_norm_init": {"direction": "row", "gain": "free", "init": "data"},
    "batch_norm": {"gain": "free", "statistics": "batch"},
}

DIVERGING = 1e20

LATER = 1e4
"""A learning rate at which weight normalisation diverges in the third epoch, after a checkpoint."""

OF_THE_OCCASION = ("provenance", "started", "seconds")
"""What two trainings of one run may differ in."""


def tiny(folder: Path, norm: str = "none", lr: float = 0.1, seed: int = 0, **changes: Any) -> Config:
    """Two steps an epoch through one small layer, with a checkpoint every second epoch."""
    trainer = {"epochs": 3, "batch_size": 500, "init_batch_size": 100, "device": "cpu", "progress": False}
    trainer |= {"probe_every": 1, "checkpoint_every": 2, **changes.pop("trainer", {})}
    return parse(
        {
            "runs_dir": str(folder),
            "norm": NORMS[norm],
            "model": {"widths": [4]},
            "optim": {"lr": lr, "momentum": 0.9},
            "seed": seed,
            "trainer": trainer,
            "tracking": {"mode": "disabled"},
            **changes,
        }
    )


def grid(folder: Path, **changes: Any) -> list[Config]:
    """Eight runs: two norms, of which one makes a run diverge, two learning rates, two seeds."""
    cells = itertools.product(("none", "weight_norm_init"), (0.1, DIVERGING), (0, 1))
    return [tiny(folder, *cell, **changes) for cell in cells]


def stack_of_three(folder: Path, **changes: Any) -> list[Config]:
    """One member finishes, one diverges at once, one diverges after a checkpoint."""
    return [tiny(folder, "weight_norm", lr, **changes) for lr in (0.1, DIVERGING, LATER)]


def vae(folder: Path, seed: int = 0, **trainer: Any) -> Config:
    """Two steps an epoch, with an average, so that every kind of state is in use."""
    settings = {"iwae_samples": 3, "iwae_images": 40, "images": 16, **trainer}
    model = {"name": "mlp_vae", "widths": [4], "latents": 2, "flow_width": 3, "posterior": "iaf"}
    optim = {"name": "adamax", "lr": 0.01, "momentum": 0.9, "ema_epochs": 1.5}
    return tiny(folder, "weight_norm_init", seed=seed, model=model, optim=optim, trainer=settings)


def assert_near(rows: list[Row], others: list[Row]) -> None:
    """Equal but for what rounding makes of stacks of different sizes."""
    for row, other in zip(rows, others, strict=True):
        known = {key: value for key, value in other.items() if value is not None}
        assert row.keys() == other.keys()
        assert {key: value for key, value in row.items() if value is not None} == pytest.approx(
            known, rel=1e-4
        )


def outcome(folder: Path, experiment: str = "adhoc") -> dict[str, Row]:
    """All that an experiment's records hold, but for what is of the occasion."""
    found = {}
    for record in read_experiment(folder, experiment):
        content = {k: v for k, v in record.content.items() if k not in OF_THE_OCCASION}
        found[record.content["run_id"]] = {
            "record": content,
            "metrics": record.metrics,
            "probes": record.probes,
        }
    return found


class Killed(BaseException):
    """What no handler takes for a failure: to the sweep it is a kill."""


class Death:
    """Ends a sweep at the ``at``-th moment in which something on disk changes; counts them."""

    def __init__(self, at: float) -> None:
        self.at, self.moment = at, 0

    def may_come(self, work: Callable[[], object] = lambda: None) -> None:
        self.moment += 1
        if self.moment > self.at:
            work()
            raise Killed


@contextlib.contextmanager
def dying(at: float) -> Iterator[Death]:
    """Inside, the process dies before or after a file is replaced or removed, or amid an append."""
    death = Death(at)
    replace, append, unlink, copy = os.replace, Record.append, Path.unlink, shutil.copyfile

    def replaced(source: Path, target: Path) -> None:
        if str(target).endswith(".pyc"):  # pytest's, of a library's module that is called like a test
            return replace(source, target)
        death.may_come()
        replace(source, target)
        death.may_come()

    def appended(record: Record, metrics: list[Row], probes: list[Row]) -> None:
        for name, rows in (("metrics", (metrics, [])), ("probes", ([], probes))):
            path = record.folder / f"{name}.jsonl"
            before = path.stat().st_size if path.exists() else 0
            append(record, *rows)
            if any(rows):
                death.may_come(partial(os.truncate, path, (before + path.stat().st_size) // 2))
                death.may_come()

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        death.may_come()
        unlink(path, missing_ok)
        death.may_come()

    def copied(source: Path, target: Path, **options: Any) -> None:
        copy(source, target, **options)
        death.may_come(lambda: os.truncate(target, 10))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replaced)
        patch.setattr(Record, "append", appended)
        patch.setattr(Path, "unlink", unlinked)
        patch.setattr(shutil, "copyfile", copied)
        patch.setattr(run, "FLUSH_SECONDS", 0.0)  # rows are written after every epoch
        yield death


def train_until(at: float, configs: list[Config], members: int | None = None) -> bool:
    """Train a sweep; say whether it came to its end before the ``at``-th moment."""
    with dying(at), contextlib.suppress(Killed):
        train_sweep(configs, members)
        return True
    return False


def moments(configs: list[Config], members: int | None = None) -> int:
    """In how many moments a sweep can die."""
    with dying(float("inf")) as death:
        train_sweep(configs, members)
    return death.moment


# What child processes do


def sweep_in_child(configs: list[Config], members: int | None, log: Path) -> None:
    """Train a sweep, and write every run that begins to ``log``."""
    begin = Record.begin

    def logged(record: Record, config: Config, *rest: Any) -> None:
        with open(log, "a") as file:
            file.write(config.run_id + "\n")
        begin(record, config, *rest)

    Record.begin = logged  # type: ignore[method-assign]
    run.FLUSH_SECONDS, sweep.POLL_SECONDS = 0.0, 0.05
    train_sweep(configs, members)
