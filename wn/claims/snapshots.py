"""Networks as they were at several times of a training, which several measurements look at."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wn.claims.nets import passed
from wn.claims.training import data_of
from wn.config import Config
from wn.config.compose import compose
from wn.data import Dataset, Split
from wn.models import build
from wn.trainer import Observer, Trainer

EPOCHS = (0, 1, 2, 4, 7, 10, 15, 20, 25, 30)

DIGITS = {"data": "digits", "optim": "sgd", "optim.lr": 0.1, "optim.momentum": 0.9}
# 500 images to train on; 1000 others, whitened by the same statistics, to look at.
CIFAR = {"data": "cifar10", "data.whiten": True, "data.train_fraction": 0.03, "data.valid_fraction": 2 / 3}
CONVNET = {"model": "convnet", "model.width": 16, "model.depth": 1, "model.noise": 0.0, "model.dropout": 0.0}

NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"model": "mlp", **DIGITS},
    "convnet": {**CONVNET, **CIFAR, "optim": "adam", "optim.lr": 0.003},
    "mlp on CIFAR-10": {"model": "mlp", **CIFAR, "optim": "sgd", "optim.lr": 0.01, "optim.momentum": 0.9},
}
"""The MLP on digits, the ConvNet of width 16 with one convolution a block, and an MLP on its images."""


class Trained(NamedTuple):
    """A training: epoch -> the network then, and the images it was trained on and others."""

    models: Mapping[int, nn.Module]
    train: Split
    others: Split


@functools.cache
def trained(network: str, norm: str, seed: int) -> Trained:
    """One of :data:`NETWORKS`, trained with a norm for 30 epochs in batches of 100, on the CPU."""
    settings = {"norm": norm, "trainer.epochs": EPOCHS[-1], "seed": seed}
    config = compose({**NETWORKS[network], **settings})
    data = data_of(config)
    observer = _Snapshots(config, data)
    small = dataclasses.replace(data, valid=_first(data.valid, 0), test=_first(data.test, 100))
    observer.trainer = Trainer([config], small, torch.device("cpu"), observer)
    observer.trainer.run()
    if observer.diverged:
        raise ArithmeticError(f"{network}, {norm}, seed {seed} diverged")
    return Trained(observer.models, data.train, data.valid)


class _Snapshots(Observer):
    """Keeps the network at the ends of :data:`EPOCHS`."""

    trainer: Trainer

    def __init__(self, config: Config, data: Dataset) -> None:
        self.config, self.data = config, data
        self.models: dict[int, nn.Module] = {}
        self.diverged = False

    def on_epoch(self, member: int, metrics: dict[str, Any], probes: list[dict[str, Any]]) -> None:
        if metrics["epoch"] in EPOCHS:
            stack, config, data = self.trainer.stack, self.config, self.data
            model = build(config.model, config.norm, data.shape, data.classes, config.seed)
            state = {**stack.params, **stack.buffers}
            model.load_state_dict({name: t[0].detach().clone() for name, t in state.items()})
            self.models[metrics["epoch"]] = model

    def on_end(self, member: int, status: str, result: dict[str, Any]) -> None:
        self.diverged = status == "diverged"


def _first(split: Split, size: int) -> Split:
    return Split(split.x[:size], split.y[:size])


@torch.no_grad()
def inputs_and_outputs(model: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What goes into each normalised layer for images x, and its outputs, ``[images, units, ...]``."""
    return passed(model.eval(), x)
