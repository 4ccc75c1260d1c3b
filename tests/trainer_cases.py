"""Small trainings, and an observer that keeps all that it is told."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from wn.config import Config, MLPConfig, NormConfig, OptimConfig
from wn.config import TrainerConfig as Settings
from wn.data import Dataset, Split
from wn.models import build
from wn.presets import PRESETS
from wn.trainer import Observer, Trainer

CPU = torch.device("cpu")
NORMS = {name: NormConfig.model_validate(preset) for name, preset in PRESETS.items()}
RULES = {
    "sgd": OptimConfig(name="sgd", lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": OptimConfig(name="adam", lr=0.01, momentum=0.9),
    "adamax": OptimConfig(name="adamax", lr=0.01, momentum=0.9),
}
NOISY = MLPConfig(widths=(8,), noise=0.1, dropout=0.2)
SIZE, CLASSES = 45, 3


class Watcher(Observer):
    """Keeps all that a trainer tells."""

    def __init__(self) -> None:
        self.rows: dict[int, list[dict[str, Any]]] = {}
        self.probes: dict[int, list[dict[str, Any]]] = {}
        self.ends: dict[int, tuple[str, dict[str, Any]]] = {}
        self.states: list[dict[str, Any]] = []
        self.steps: list[tuple[int, int]] = []

    def on_step(self, done: int, total: int) -> None:
        self.steps.append((done, total))

    def on_epoch(self, member: int, metrics: dict[str, Any], probes: list[dict[str, Any]]) -> None:
        assert member not in self.ends
        self.rows.setdefault(member, []).append(metrics)
        self.probes.setdefault(member, []).extend(probes)

    def on_end(self, member: int, status: str, result: dict[str, Any]) -> None:
        assert member not in self.ends
        self.ends[member] = (status, result)

    def on_checkpoint(self, state: dict[str, Any]) -> None:
        self.states.append(copy.deepcopy(state))


def dataset(dtype: torch.dtype = torch.float64, valid: int = 12) -> Dataset:
    """Three blurred classes, which a small network tells apart."""
    torch.manual_seed(0)
    centres = torch.randn(CLASSES, 1, 3, 4, dtype=torch.float64)

    def split(size: int) -> Split:
        y = torch.arange(size) % CLASSES
        return Split((centres[y] + 0.7 * torch.randn(size, 1, 3, 4, dtype=torch.float64)).to(dtype), y)

    return Dataset(split(SIZE), split(valid), split(15), CLASSES)


def config(norm: str = "weight_norm", seed: int = 0, model: MLPConfig = NOISY, **changes: Any) -> Config:
    optim = changes.pop("optim", RULES["sgd"])
    settings = {"epochs": 4, "batch_size": 10, "init_batch_size": 20, "precision": "float64"} | changes
    return Config(model=model, norm=NORMS[norm], optim=optim, trainer=Settings(**settings), seed=seed)


def at_rate(lr: float, **changes: Any) -> Config:
    return config(optim=RULES["sgd"].model_copy(update={"lr": lr}), **changes)


def train(*configs: Config, on: Dataset | None = None) -> tuple[Trainer, Watcher]:
    watcher = Watcher()
    loop = Trainer(configs, on or dataset(), CPU, watcher)
    loop.run()
    return loop, watcher


def member_of(loop: Trainer, row: int) -> dict[str, Tensor]:
    return {k: t[row].detach() for k, t in (*loop.stack.params.items(), *loop.stack.buffers.items())}


def load(loop: Trainer, row: int, config: Config, on: Dataset) -> nn.Module:
    """A member as a module of its own, in evaluation mode."""
    model = build(config.model, config.norm, on.shape, on.classes, seed=99).double()
    model.load_state_dict(member_of(loop, row))
    return model.eval()
