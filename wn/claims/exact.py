"""Exact statements about ||v|| and the scale of v (sections 2 and 2.1), in float64: claims A2 to A4."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wn import probes
from wn.claims.lengths import Lengths, directions
from wn.claims.measuring import Part, measurement
from wn.claims.rows import Row, per_seed
from wn.claims.training import OPTIMISERS, QUICK, AfterStep, train, watched
from wn.config import Config
from wn.config.compose import compose
from wn.norm import normalized_layers
from wn.trainer import Trainer

SEEDS = range(5)
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"model": "mlp"},
    "vae": {"model": "mlp_vae", **QUICK},
}
PLAIN_DESCENT = OPTIMISERS["SGD"]
MOMENTUM = {
    **{"optim": "sgd", "optim.momentum": 0.9, "optim.late_momentum": 0.5},
    **{"optim.schedule": "constant_then_linear"},
}
RULES: dict[str, dict[str, Any]] = {
    **OPTIMISERS,
    "Adam": {"optim": "adam", "optim.eps": 1e-150},
    "Adamax": {"optim": "adamax", "optim.eps": 1e-150},
}
EPOCHS = 46  # of eleven steps: 506


def config(model: str, rule: dict[str, Any], lr: float, seed: int, **changes: Any) -> Config:
    fixed = {"trainer.precision": "float64", "trainer.epochs": EPOCHS}
    settings = {"norm": "weight_norm", **fixed, **MODELS[model], **rule, "optim.lr": lr, "seed": seed}
    return compose({**settings, **changes})


def lengths_of(
    model: str, rule: dict[str, Any], rates: tuple[float, ...], norm: str = "weight_norm"
) -> Lengths:
    """Train seeds x learning rates as one stack."""
    configs = [config(model, rule, lr, seed, norm=norm) for seed in SEEDS for lr in rates]
    return watched(configs, Lengths)[1]


def worst(values: Tensor) -> Tensor:
    """By seed, the largest value of its members; NaN where one is."""
    return values.view(len(SEEDS), -1).amax(1)


@measurement("A2")
def plain_descent() -> Iterator[Part]:
    """||v_t||^2 against ||v_0||^2 + sum of lr^2 ||grad_v||^2 (section 2.1)."""
    for model, rates in (("mlp", (0.01, 0.1, 0.3)), ("vae", (1e-4, 1e-3, 3e-3))):
        yield Part(model, partial(_growth, model, "SGD", PLAIN_DESCENT, rates))


@measurement("A3")
def heavy_ball() -> Iterator[Part]:
    """||v_t||^2 against the recursion of :mod:`wn.claims.lengths`; and how often Adam's ||v|| falls."""
    for model, rates in (("mlp", (0.001, 0.01, 0.1)), ("vae", (1e-5, 1e-4, 3e-4))):
        yield Part(model, partial(_growth, model, "momentum", MOMENTUM, rates))
        yield Part(f"{model}-falls", partial(_falls, model))


def _growth(model: str, name: str, rule: dict[str, Any], rates: tuple[float, ...]) -> list[Row]:
    condition = f"{model}, {name}"
    lengths, plain = (lengths_of(model, rule, rates, norm) for norm in ("weight_norm", "none"))
    numbers = {
        "error": lengths.error.maximum(lengths.drop),
        f"control falls under {name}": lengths.share_that_falls,
        "control error of plain weights": plain.error.maximum(plain.drop),
    }
    return [row for quantity, one in numbers.items() for row in per_seed(condition, quantity, worst(one))]


def _falls(model: str) -> list[Row]:
    rows: list[Row] = []
    for name in ("Adam", "Adamax"):
        falls = lengths_of(model, {"optim": name.lower()}, (0.001,)).share_that_falls
        rows += per_seed(f"{model}, momentum", f"control falls under {name}", worst(falls))
    return rows


SCALES = (0.1, 0.3, 3.0)
RATES = {"SGD": 0.01, "momentum": 0.001, "Adam": 0.001, "Adamax": 0.001}


@measurement("A4")
def scale_of_v() -> Iterator[Part]:
    """v_0 times c, against another learning rate of the direction (section 2)."""
    for model, name in [("mlp", name) for name in RULES] + [("vae", "Adamax")]:
        yield Part(f"{model}-{name}", partial(_scales, model, name))


def _scales(model: str, name: str) -> list[Row]:
    power = 1 if name in ("Adam", "Adamax") else 2
    condition, same = f"{model}, {name}", "control error at the same learning rate"
    rows = per_seed(condition, "error", scaling_error(model, name, power))
    return rows + per_seed(condition, same, scaling_error(model, name, 0))


def scaling_error(model: str, name: str, power: int, epochs: int = 10) -> Tensor:
    """Largest difference between training from c v_0 at lr and from v_0 at lr / c^power, by seed.

    Members come in pairs; gains and biases have the learning rate lr in both.
    """
    lr, pairs = RATES[name], [(seed, c) for seed in SEEDS for c in SCALES]
    changes = {"optim.lr_gain": lr, "optim.lr_bias": lr, "trainer.epochs": epochs}
    configs = [
        config(model, RULES[name], rate, seed, **changes) for seed, c in pairs for rate in (lr, lr / c**power)
    ]
    largest = torch.zeros(len(pairs), dtype=torch.float64)

    def compare(trainer: Trainer) -> None:
        layers = normalized_layers(trainer.stack.template)
        for layer, w in probes.snapshot(trainer.stack).items():
            own, other = w[0::2].flatten(1), w[1::2].flatten(1)
            largest.copy_(largest.maximum((own - other).abs().amax(1) / own.abs().amax(1)))
            norm = w.flatten(2).norm(dim=-1)  # [members, units]
            if layers[layer].has_gain:
                g = trainer.stack.params[f"{layer}.g"].detach().abs()
                largest.copy_(largest.maximum(((norm - g).abs() / norm).amax(1).view(-1, 2).amax(1)))

    def prepare(trainer: Trainer) -> AfterStep:
        factors = torch.tensor([c for _, c in pairs], dtype=torch.float64)
        for v in directions(trainer).values():
            v[0::2] *= factors.view(-1, *[1] * (v.dim() - 1))
        return compare

    train(configs, prepare=prepare)
    return worst(largest)
