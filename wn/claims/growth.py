"""The growth of ||v|| sets the size of an update, at any learning rate: claims B2 and B8 (section 2.1).

What is said of the end of training depends on when it ends: B2h and B8h are the same in four times the steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from wn.claims.lengths import Lengths
from wn.claims.measuring import Part, file_name, measurement
from wn.claims.rows import Row, row
from wn.claims.training import OPTIMISERS, QUICK, Watch, train, watched
from wn.config import Config
from wn.config.compose import compose

SEEDS = range(5)
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"model": "mlp", "trainer.epochs": 30},
    "vae": {"model": "mlp_vae", "trainer.epochs": 20, **QUICK},
}
NOISE: dict[str, dict[str, Any]] = {"mlp": {"data.label_noise": 0.2}, "vae": {}}
ARMS: dict[str, dict[str, Any]] = {
    "weight normalisation": {"norm": "weight_norm"},
    "plain weights": {"norm": "none"},
    "held weights": {"norm": "weight_norm", "norm.hold": "start"},
    "batch normalisation": {"norm": "batch_norm"},
}
RATES = {
    "mlp, SGD": (3e-3, 30.0),
    "mlp, momentum": (1e-3, 10.0),
    "mlp, Adam": (1e-4, 1.0),
    "vae, SGD": (1e-4, 1.0),
    "vae, momentum": (3e-5, 0.3),
    "vae, Adam": (1e-4, 1.0),
}
"""From 1/300 to 30 times the largest rate at which plain weights train (vae, SGD: 1/100 to 100 times)."""
HIGHER = {"mlp, SGD": 100.0, "vae, SGD": 100.0, "vae, momentum": 10.0}
"""For batch normalisation, whose best is above that."""
CAPS = {"mlp": 0.1, "vae": 0.01, "vae, momentum": 0.001}
LAST = 10  # epochs over whose last steps an angle is averaged
LONGER = 4  # times the epochs
ABOVE_BEST = 31.7  # thirty times, or one and a half decades


def config(condition: str, lr: float, seed: int, times: int = 1, **changes: Any) -> Config:
    """A run of a condition, ``times`` as long; ``changes`` are dotted keys."""
    model, rule = condition.split(", ")
    fixed = {"trainer.probe_every": 1, "optim.lr": lr, "seed": seed}
    settings = MODELS[model] | {"trainer.epochs": times * MODELS[model]["trainer.epochs"]}
    return compose({"norm": "weight_norm", **fixed, **settings, **OPTIMISERS[rule], **changes})


def half_decades(low: float, high: float) -> list[float]:
    """
    >>> half_decades(0.03, 1)
    [0.0316, 0.1, 0.316, 1.0]
    """
    first, last = (round(2 * math.log10(x)) for x in (low, high))
    return [float(f"{10 ** (k / 2):.3g}") for k in range(first, last + 1)]


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope of the least-squares line, and its R^2 (nan where y does not change)."""
    xs, ys = np.asarray(x), np.asarray(y)
    slope, height = np.polyfit(xs, ys, 1)
    left = np.square(slope * xs + height - ys).sum()
    total = np.square(ys - ys.mean()).sum()
    return float(slope), float(1 - left / total) if total else math.nan


def upper_half(losses: Mapping[float, Sequence[float]], start: float) -> list[float]:
    """Upper half, in decades, of the learning rates that train, up to thirty times the best.

    Args:
        losses: final training losses by learning rate, infinite where a run diverged. A rate trains if all
            are below the middle between ``start``, the loss before training, and the lowest mean.

    >>> upper_half({0.1: [2.0], 1: [0.5], 10: [0.6], 100: [2.2]}, start=2.3)
    [10]
    """
    means = {lr: float(np.mean(of)) for lr, of in losses.items()}
    best = min(means, key=lambda lr: means[lr])
    middle = (start + means[best]) / 2
    trained = [lr for lr in sorted(means) if max(losses[lr]) < middle and lr < best * ABOVE_BEST]
    return [lr for lr in trained if lr > 0.99 * math.sqrt(trained[0] * trained[-1])]


class Sweep(NamedTuple):
    """An arm, trained: (seed, learning rate) of its members, and what was told of them."""

    members: list[tuple[int, float]]
    watch: Watch

    def losses(self) -> dict[tuple[int, float], float]:
        """Training losses of the last epoch."""
        return {member: final(self.watch, i, "train_loss") for i, member in enumerate(self.members)}

    def used(self) -> list[float]:
        """Learning rates of the slope."""
        losses: dict[float, list[float]] = {}
        for (_, lr), loss in self.losses().items():
            losses.setdefault(lr, []).append(loss)
        starts = [rows[0]["valid_loss"] for rows in self.watch.metrics]  # training begins with the same loss
        return upper_half(losses, float(np.mean(starts)))

    def angles(self) -> dict[tuple[int, float], float]:
        return {member: angle(self.watch, i) for i, member in enumerate(self.members)}


def final(watch: Watch, member: int, metric: str) -> float:
    """A loss or an error after the last epoch; infinite if the member diverged."""
    value = watch.metrics[member][-1].get(metric, math.inf)
    return float(value) if watch.results[member] is not None else math.inf


def angle(watch: Watch, member: int) -> float:
    """Mean over units, layers and the last steps of the last epochs; nan of a member that diverged."""
    if watch.results[member] is None:
        return math.nan
    after = [row for row in watch.probes[member] if row["epoch"] > 0]
    last = max(row["epoch"] for row in after)
    return float(np.mean([row["angle"] for row in after if row["epoch"] > last - LAST]))


def arm(condition: str, name: str, times: int) -> tuple[list[Config], list[tuple[int, float]]]:
    """Seeds x learning rates of an arm, gains and biases at a capped rate; trained ``times`` as long."""
    model, (low, high) = condition.split(", ")[0], RATES[condition]
    cap = CAPS.get(condition, CAPS[model])
    changes = {**ARMS[name], **NOISE[model], "optim.lr_gain_cap": cap, "optim.lr_bias_cap": cap}
    if name == "batch normalisation":
        high = HIGHER.get(condition, high)
    members = [(seed, lr) for seed in SEEDS for lr in half_decades(low, high)]
    return [config(condition, lr, seed, times, **changes) for seed, lr in members], members


def slopes(condition: str, name: str, trained: Sweep, quantity: str) -> list[Row]:
    """Angles and losses by learning rate, the rates that were used, and the slope for each seed.

    Losses are there because an angle is small, too, where a gradient has vanished.
    """
    used, angles = trained.used(), trained.angles()
    if len(used) < 2:
        raise ArithmeticError(f"{condition}, {name}: {len(used)} usable rates, and a slope needs two")
    rows = [
        row(condition, f"{what} of {name}", seed, value, lr)
        for what, values in (("angle", angles), ("loss", trained.losses()))
        for (seed, lr), value in values.items()
    ]
    rows += [row(condition, f"used of {name}", 0, 1.0, lr) for lr in used]
    for seed in SEEDS:
        measured, _ = line(np.log(used).tolist(), [math.log(angles[seed, lr]) for lr in used])
        rows.append(row(condition, quantity, seed, measured))
    return rows


@measurement("B2h", LONGER)
@measurement("B2", 1)
def self_stabilisation(times: int) -> Iterator[Part]:
    """Slope of log angle on log lr, of plain and of normalised weights, free and held (section 2.1)."""
    for condition in RATES:
        for name in ("weight normalisation", "plain weights", "held weights"):
            yield Part(file_name(condition, name), partial(_slope_of, condition, name, times))


def _slope_of(condition: str, name: str, times: int) -> list[Row]:
    configs, members = arm(condition, name, times)
    quantity = f"control slope of {name}" if name == "held weights" else f"slope of {name}"
    return slopes(condition, name, Sweep(members, train(configs)), quantity)


@measurement("B8h", LONGER)
@measurement("B8", 1)
def batch_normalisation(times: int) -> Iterator[Part]:
    """The same slope of batch normalisation's weights, and the recursion of A2 and A3 for them."""
    for condition in ("mlp, SGD", "mlp, momentum", "vae, SGD", "vae, momentum"):
        yield Part(file_name(condition), partial(_recursive, condition, "batch normalisation", "{}", times))
    for condition in ("mlp, SGD", "vae, SGD"):
        part = partial(_recursive, condition, "plain weights", "control {} of plain weights", times)
        yield Part(file_name(condition, "plain"), part)


def _recursive(condition: str, name: str, quantity: str, times: int) -> list[Row]:
    configs, members = arm(condition, name, times)
    watch, lengths = watched(configs, Lengths)
    trained = Sweep(members, watch)
    rows = slopes(condition, name, trained, quantity.format("slope"))
    return rows + recursion(condition, trained, lengths, quantity.format("recursion"))


def recursion(condition: str, trained: Sweep, lengths: Lengths, quantity: str) -> list[Row]:
    """|log| of ||w||^2 over its prediction, mean over units and learning rates used, for each seed."""
    used = trained.used()
    ratio = (lengths.observed / lengths.predicted.clamp_min(1e-30)).log().abs().mean(1).tolist()
    by_seed: dict[int, list[float]] = {}
    for (seed, lr), value in zip(trained.members, ratio, strict=True):
        if lr in used:
            by_seed.setdefault(seed, []).append(value)
    return [row(condition, quantity, seed, float(np.mean(of))) for seed, of in by_seed.items()]
