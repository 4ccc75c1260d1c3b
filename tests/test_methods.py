"""Every method trains every family of models: two epochs at the best of three learning rates."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from torch import Tensor
from trainer_cases import CPU, Watcher

from wn import experiments
from wn.config import Config
from wn.config.compose import CONFIGS, compose
from wn.data import Dataset, Split
from wn.presets import PRESETS
from wn.resources import resolve
from wn.trainer import Trainer

METHODS = sorted(path.stem for path in (CONFIGS / "norm").glob("*.yaml"))
FAMILIES: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "mlp": ({"optim": "sgd"}, (0.03, 0.1, 0.3)),
    "convnet": ({"model.width": 16, "model.weight_init": "he", "optim": "adam_paper"}, (0.003, 0.001, 0.01)),
    "mlp_vae": ({"optim": "adamax", "trainer.images": 0, "trainer.iwae_images": 1}, (0.003, 0.01, 0.03)),
    "transformer": ({"optim": "adam"}, (0.001, 0.003, 0.01)),
}
"""Settings and learning rates of each. The convolutional network starts from He's weights: from the paper's,
which data are to scale, its signal vanishes in ten layers where nothing scales it.
"""


@functools.cache
def few_digits(unit: bool) -> Dataset:
    """A fifth of the digits."""
    settings = {"model": "mlp_vae" if unit else "mlp", "data.train_fraction": 0.2, "trainer.device": "cpu"}
    return resolve(compose({**settings, "trainer.batch_size": 20}))[1]


def as_large_as(side: int, data: Dataset) -> Dataset:
    """Images of so many pixels a side, each pixel a square of the original's."""

    def enlarged(x: Tensor) -> Tensor:
        times = side // x.shape[-1]
        return x.repeat_interleave(times, -1).repeat_interleave(times, -2)

    splits = [Split(enlarged(split.x), split.y) for split in (data.train, data.valid, data.test)]
    return Dataset(*splits, classes=data.classes)


def losses(configs: list[Config], data: Dataset) -> dict[float, list[float]]:
    """The mean training loss of each epoch, by learning rate."""
    watcher = Watcher()
    Trainer(configs, data, CPU, watcher).run()
    return {
        config.optim.lr: [row["train_loss"] for row in watcher.rows[i] if "train_loss" in row]
        for i, config in enumerate(configs)
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_every_family(method: str, family: str) -> None:
    settings, rates = FAMILIES[family]
    base = {"model": family, "norm": method, "trainer.epochs": 2, "trainer.batch_size": 20, **settings}
    configs = [compose({**base, "optim.lr": lr}) for lr in rates]
    data = few_digits(family == "mlp_vae")
    if family == "convnet":
        data, stacks = as_large_as(16, data), [[config] for config in configs]
    else:
        stacks = [configs]
    found: dict[float, list[float]] = {}
    for stack in stacks:
        found |= losses(stack, data)
        if any(len(means) == 2 and means[1] < means[0] for means in found.values()):
            return
    pytest.fail(f"mean losses of two epochs, by learning rate: {found}")


def test_the_comparison_has_every_method() -> None:
    norms = list(map(str, experiments.load("methods_digits").grid["norm"]))
    assert {norm for norm in norms if " " not in norm} == set(METHODS) == set(PRESETS)
    assert {"batch_norm norm.output_layers=false", "weight_norm norm.output_layers=false"} <= set(norms)
