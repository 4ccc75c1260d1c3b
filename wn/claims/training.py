"""What several measurements need of a training: the loop's own trainer, and what it tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from wn.config import Config
from wn.data import Dataset
from wn.resources import resolve
from wn.trainer import Observer, Trainer

Row = dict[str, Any]


class Watch(Observer):
    """Keeps what a trainer tells: metrics and probes by member, and how each ended."""

    def __init__(self, members: int) -> None:
        self.metrics: list[list[Row]] = [[] for _ in range(members)]
        self.probes: list[list[Row]] = [[] for _ in range(members)]
        self.results: list[Row | None] = [None] * members  # of those that diverged: None
        self.models: list[dict[str, torch.Tensor] | None] = [None] * members

    def on_epoch(self, member: int, metrics: Row, probes: list[Row]) -> None:
        self.metrics[member].append(metrics)
        self.probes[member].extend(probes)

    def on_model(self, member: int, state: dict[str, torch.Tensor]) -> None:
        self.models[member] = state

    def on_end(self, member: int, status: str, result: Row) -> None:
        self.results[member] = result if status == "finished" else None


def train(configs: Sequence[Config], data: Dataset | None = None) -> Watch:
    """Train runs that differ only in numbers as one stack, unrecorded, on the CPU."""
    config = configs[0]
    dataset = data or resolve(config)[1]
    watch = Watch(len(configs))
    Trainer(configs, dataset, torch.device("cpu"), watch).run()
    return watch
