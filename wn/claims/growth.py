"""How the growth of ||v|| sets the learning rate of the direction (section 2.1): claims B2 and B8."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wn.claims.lengths import AfterStep, Lengths, train_with
from wn.claims.measuring import Part, Row, measurement
from wn.claims.training import Watch, train
from wn.config import Config
from wn.config.compose import compose
from wn.trainer import Trainer

Array = NDArray[np.float64]

SEEDS = range(5)
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"model": "mlp", "data.label_noise": 0.2, "trainer.epochs": 30},
    "vae": {
        **{"model": "mlp_vae", "trainer.epochs": 20},
        **{"trainer.images": 0, "trainer.iwae_samples": 1, "trainer.iwae_images": 1},
    },
}
RULES: dict[str, dict[str, Any]] = {
    "SGD": {"optim": "sgd", "optim.momentum": 0.0},
    "momentum": {"optim": "sgd", "optim.momentum": 0.9},
    "Adam": {"optim": "adam"},
    "Adamax": {"optim": "adamax"},
}
ARMS: dict[str, dict[str, Any]] = {
    "weight normalisation": {"norm": "weight_norm"},
    "plain weights": {"norm": "none"},
    "held weights": {"norm": "weight_norm", "norm.hold": "start"},
    "batch normalisation": {"norm": "batch_norm"},
}
LAST = 10  # epochs whose last step's angle is averaged


def config(model: str, rule: str, **changes: Any) -> Config:
    """A run of a model under a rule; ``changes`` are dotted keys with ``__`` for the dot."""
    fixed = {"trainer.device": "cpu", "trainer.probe_every": 1}
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return compose({**fixed, **MODELS[model], **RULES[rule], **dotted})


def half_decades(low: float, high: float) -> list[float]:
    """
    >>> half_decades(0.01, 1)
    [0.01, 0.0316, 0.1, 0.316, 1.0]
    """
    first, last = (round(2 * math.log10(x)) for x in (low, high))
    return [float(f"{10 ** (k / 2):.3g}") for k in range(first, last + 1)]


CAPS = {"mlp": 0.1, "vae": 0.01}
GRIDS = {
    "mlp, SGD": (1e-3, 100.0),
    "mlp, momentum": (1e-4, 100.0),
    "mlp, Adam": (1e-4, 10.0),
    "vae, SGD": (1e-5, 1.0),
    "vae, momentum": (1e-6, 1.0),
    "vae, Adam": (1e-4, 10.0),
}


def slope(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Least squares: slope, and R^2.

    >>> slope([0, 1, 2], [1, 3, 5])
    (2.0, 1.0)
    """
    a, b = np.polyfit(x, y, 1)
    residual, total = np.sum((np.polyval((a, b), x) - y) ** 2), np.sum((y - np.mean(y)) ** 2)
    return round(float(a), 12), round(float(1 - residual / total), 12) if total else 1.0


def upper_half(losses: Mapping[float, Sequence[float]], start: float) -> list[float]:
    """Learning rates in the upper half, in decades, of those at which every seed trained.

    Args:
        losses: final training losses by learning rate, not finite where a run diverged. Trained is what ends
            below the middle between ``start``, the loss before training, and the lowest mean.
    """
    means = {lr: float(np.mean(of)) for lr, of in losses.items() if np.isfinite(of).all()}
    middle = (start + min(means.values())) / 2
    trained = [lr for lr in means if max(losses[lr]) < middle]
    lowest = math.sqrt(min(trained) * max(trained))
    return [lr for lr in sorted(trained) if lr >= lowest * 0.999]


def angle(watch: Watch, member: int) -> float:
    """Mean over layers and the last step of the last epochs; nan of a member that diverged."""
    if watch.results[member] is None:
        return math.nan
    last = max(row["epoch"] for row in watch.probes[member])
    return float(np.mean([r["angle"] for r in watch.probes[member] if r["epoch"] > last - LAST]))


def final_loss(watch: Watch, member: int) -> float:
    """Training loss of the last epoch; infinite if the member diverged."""
    loss = watch.metrics[member][-1].get("train_loss", math.inf)
    return float(loss) if watch.results[member] is not None else math.inf


def capped(condition: str, arm: str) -> tuple[list[Config], list[tuple[int, float]]]:
    """An arm's runs: seeds x learning rates, gains and biases at a capped rate."""
    model, rule = condition.split(", ")
    cap, rates = CAPS[model], half_decades(*GRIDS[condition])
    caps = {"optim__lr_gain_cap": cap, "optim__lr_bias_cap": cap}
    members = [(seed, lr) for seed in SEEDS for lr in rates]
    make = [config(model, rule, **ARMS[arm], **caps, optim__lr=lr, seed=seed) for seed, lr in members]
    return make, members


Trained = tuple[list[tuple[int, float]], Watch, list[float]]


def slopes(condition: str, arm: str, trained: Trained, judged: str) -> list[Row]:
    """The arm's angles by learning rate, its range, and the slope of the upper half for each seed."""
    members, watch, used = trained
    angles = {member: angle(watch, i) for i, member in enumerate(members)}
    rows = [
        Row(condition=condition, quantity=f"angle of {arm}", seed=seed, value=value, x=lr)
        for (seed, lr), value in angles.items()
    ]
    for seed in SEEDS:
        steepness, _ = slope(np.log(used).tolist(), [math.log(angles[seed, lr]) for lr in used])
        rows.append(Row(condition=condition, quantity=judged, seed=seed, value=steepness))
    ends = {"lowest": used[0], "highest": used[-1]}
    return rows + [
        Row(condition=condition, quantity=f"{name} rate of {arm}", seed=0, value=lr)
        for name, lr in ends.items()
    ]


def in_range(members: list[tuple[int, float]], watch: Watch, start: float) -> list[float]:
    losses: dict[float, list[float]] = {}
    for i, (_, lr) in enumerate(members):
        losses.setdefault(lr, []).append(final_loss(watch, i))
    return upper_half(losses, start)
