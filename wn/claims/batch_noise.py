"""G4: whether mean-only statistics lead to better test accuracy by their noise (section 4)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wn.claims.measuring import Part, measurement
from wn.claims.rows import Row, per_quantity
from wn.claims.training import data_of, train
from wn.config.compose import compose
from wn.models import build
from wn.models.noise import CounterBased, normal
from wn.norm import NormalizedLayer

CONDITION = "convnet, width 16"
SETTINGS: dict[str, Any] = {
    **{"model": "convnet", "model.width": 16, "model.weight_init": "he", "optim": "adam_paper"},
    **{"data": "cifar10", "data.train_fraction": 0.1, "data.valid_fraction": 0.1, "trainer.epochs": 4},
}
WN, MOBN = "weight_norm_init", "weight_norm_mean_only_bn_init"
ARMS = {"WN": (WN, ""), "MOBN": (MOBN, ""), "normal noise": (WN, "normal"), "BN noise": (WN, "resampled")}
SEEDS = 5


class BatchNoise(CounterBased):
    r"""The noise of batch statistics without the statistics, in training, on ``y [batch, units, ...]``.

    With s^2 the variance over the batch of an image's mean, m and sigma mean and deviation of y, and m*,
    sigma* those of the batch resampled with replacement (the bootstrap's estimate of how both vary)::

        normal       y + s / sqrt(batch) e, with e of a normal distribution, one number for each unit
        resampled    (y - m*) sigma / sigma* + m
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, y: Tensor) -> Tensor:
        if not self.training:
            return y
        shape = [1, -1] + [1] * (y.dim() - 2)
        images = y.detach().flatten(2) if y.dim() > 2 else y.detach()[:, :, None]
        first, size = images.mean(2), len(y)
        if self.kind == "normal":
            e = normal(self.draw(first.shape[1:]))
            return y + (e * first.std(0) / math.sqrt(size)).view(shape)
        second = images.square().mean(2)
        chosen = (self.draw(torch.Size([size])) * size).long()
        mean, again = first.mean(0), first[chosen].mean(0)
        variance = second.mean(0) - mean.square()
        factor = torch.sqrt((variance + 1e-6) / (second[chosen].mean(0) - again.square() + 1e-6))
        return (y - again.view(shape)) * factor.view(shape) + mean.view(shape)


def with_noise(network: nn.Module, kind: str, seed: int) -> nn.Sequential:
    """The network with noise after each normalised layer, its own stream for each."""
    noisy = nn.Sequential()
    for place, (name, module) in enumerate(network.named_children()):
        noisy.add_module(name, module)
        if isinstance(module, NormalizedLayer):
            noise = BatchNoise(kind)
            noise.seed(1000 * seed + place)
            noisy.add_module(f"{name}_noise", noise)
    return noisy


def test_error(arm: str, seed: int) -> float:
    """In percent, after training; 90 where it diverged."""
    norm, kind = ARMS[arm]
    config = compose({**SETTINGS, "norm": norm, "seed": seed})
    data = data_of(config)
    network = build(config.model, config.norm, data.shape, data.classes, seed)
    result = train([config], data, [with_noise(network, kind, seed) if kind else network]).results[0]
    return 90.0 if result is None else 100.0 * float(result["test_error"])


def rows(errors: dict[str, float], seed: int) -> list[Row]:
    """What is judged of a seed's test errors, in percent, by arm."""
    wn, mobn, noisy = (errors[arm] for arm in ("WN", "MOBN", "normal noise"))
    numbers = {
        "gain": wn - mobn,
        "recovered": (wn + mobn) / 2 - noisy,
        "control BN noise less normal noise": errors["BN noise"] - noisy,
        **{f"control test error, {arm}": error for arm, error in errors.items()},
    }
    return per_quantity(CONDITION, seed, numbers)


@measurement("G4")
def accuracy() -> Iterator[Part]:
    """Test error of four arms, a part per seed."""
    for seed in range(SEEDS):
        yield Part(f"seed{seed}", functools.partial(_measured, seed))


def _measured(seed: int) -> list[Row]:
    return rows({arm: test_error(arm, seed) for arm in ARMS}, seed)
