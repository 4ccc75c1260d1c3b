"""What several measurements need of a training: the loop's own trainer, and what it tells; or its record."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from wn.config import Config
from wn.config.compose import Value
from wn.data import Dataset
from wn.probes import Row
from wn.records import Record
from wn.resources import resolve
from wn.run import raise_if_failed
from wn.sweep import train_sweep
from wn.trainer import Observer, Trainer

OPTIMISERS: dict[str, dict[str, Value]] = {
    "SGD": {"optim": "sgd", "optim.momentum": 0.0},
    "momentum": {"optim": "sgd", "optim.momentum": 0.9},
    "Adam": {"optim": "adam"},
    "Adamax": {"optim": "adamax"},
}
UNSEEN: dict[str, Value] = {
    "tracking.mode": "disabled",
    "trainer.progress": False,
    "trainer.device": "cpu",
}
"""Settings of recorded runs that a claim trains; they are no part of a run's identity."""

QUICK: dict[str, Value] = {"trainer.images": 0, "trainer.iwae_samples": 1, "trainer.iwae_images": 1}
"""Of VAEs, whose final bound and pictures a claim does not read."""

AfterStep = Callable[[Trainer], None]
"""Sees the trainer after every step; rows of its stack are those of ``trainer.alive``."""


Watcher = TypeVar("Watcher", bound=AfterStep)


class Watch(Observer):
    """Keeps what a trainer tells: metrics and probes by member, and how each ended."""

    def __init__(self, members: int) -> None:
        self.metrics: list[list[Row]] = [[] for _ in range(members)]
        self.probes: list[list[Row]] = [[] for _ in range(members)]
        self.results: list[Row | None] = [None] * members  # of those that diverged: None
        self.models: list[dict[str, torch.Tensor] | None] = [None] * members
        self.after_step: Callable[[], None] = lambda: None

    def on_step(self, done: int, total: int) -> None:
        self.after_step()

    def on_epoch(self, member: int, metrics: Row, probes: list[Row]) -> None:
        self.metrics[member].append(metrics)
        self.probes[member].extend(probes)

    def on_model(self, member: int, state: dict[str, torch.Tensor]) -> None:
        self.models[member] = state

    def on_end(self, member: int, status: str, result: Row) -> None:
        self.results[member] = result if status == "finished" else None


def data_of(config: Config) -> Dataset:
    """On the CPU, where claims train, whatever the run says."""
    here = config.trainer.model_copy(update={"device": "cpu"})
    return resolve(config.model_copy(update={"trainer": here}))[1]


def recorded(configs: Sequence[Config]) -> list[Record]:
    """Records of runs that are finished or diverged; what is not there yet is trained.

    Raises:
        RunFailed: one failed.
    """
    records = train_sweep(configs)
    for record in records:
        raise_if_failed(record)
        if not record.done:
            raise RuntimeError(f"run {record.folder.name}: {record.status}")
    return records


def train(
    configs: Sequence[Config],
    data: Dataset | None = None,
    models: Sequence[nn.Module] | None = None,
    prepare: Callable[[Trainer], AfterStep] | None = None,
) -> Watch:
    """Train runs that differ only in numbers as one stack, unrecorded, on the CPU whatever they say.

    ``data`` and ``models`` take the place of those of the configurations. ``prepare`` may change the start,
    and returns what to call after each step.
    """
    watch = Watch(len(configs))
    trainer = Trainer(configs, data or data_of(configs[0]), torch.device("cpu"), watch, models)
    if prepare:
        watch.after_step = functools.partial(prepare(trainer), trainer)
    trainer.run()
    return watch


def watched(configs: Sequence[Config], make: Callable[[Trainer], Watcher]) -> tuple[Watch, Watcher]:
    """Train; also what ``make`` makes of the trainer at the start and is called after every step."""
    kept: list[Watcher] = []

    def prepare(trainer: Trainer) -> AfterStep:
        kept.append(make(trainer))
        return kept[0]

    return train(configs, prepare=prepare), kept[0]


def by_rate(rates: Sequence[float], values: Sequence[float]) -> dict[float, list[float]]:
    """Of members that are rates x seeds."""
    return dict(zip(rates, np.reshape(values, (len(rates), -1)).tolist(), strict=True))
