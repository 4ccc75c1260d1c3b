"""Claims about g = e^s (section 2): no better than g itself, and slightly slower."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from wn.claims.measuring import Part, file_name, measurement
from wn.claims.rows import Row, per_seed, row
from wn.claims.training import QUICK, by_rate, train
from wn.config.compose import compose

SEEDS = range(10)  # equivalence needs short intervals
GAINS: dict[str, dict[str, Any]] = {
    "g": {"norm": "weight_norm_init"},
    "e^s": {"norm": "exp_weight_norm", "norm.init": "data"},
    "e^(3s)": {"norm": "exp_weight_norm", "norm.init": "data", "norm.gain": "exp3"},
}
MLP = {"model": "mlp", "trainer.epochs": 30}
VAE = {"model": "mlp_vae", "trainer.epochs": 20, **QUICK}
CASES: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "mlp, SGD": ({**MLP, "optim": "sgd"}, (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)),
    "mlp, Adam": ({**MLP, "optim": "adam"}, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
    "vae, SGD": ({**VAE, "optim": "sgd"}, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
    "vae, Adam": ({**VAE, "optim": "adam"}, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
}
MARGINS = {"mlp": 0.005, "vae": 0.3}  # error, nats
METRICS = {"mlp": "error", "vae": "loss"}


class Best(NamedTuple):
    """A gain at its best learning rate, by the mean of the validation loss over seeds."""

    lr: float
    by_lr: dict[float, float]
    tests: list[float]
    """Test metric per seed; diverged: chance, or the validation loss before training."""
    curves: list[list[float]]
    """Training loss per epoch, of each seed."""


@functools.cache
def best(condition: str, gain: str) -> Best:
    """All learning rates and seeds are one stack."""
    settings, rates = CASES[condition]
    metric = METRICS[condition[:3]]
    members = [(lr, seed) for lr in rates for seed in SEEDS]
    settings = {**settings, **GAINS[gain]}
    watch = train([compose({**settings, "optim.lr": lr, "seed": seed}) for lr, seed in members])
    failed = [result is None for result in watch.results]
    counted = [rows[0 if bad else -1] for rows, bad in zip(watch.metrics, failed, strict=True)]
    losses = by_rate(rates, [row["valid_loss"] for row in counted])
    by_lr = {lr: sum(values) / len(values) for lr, values in losses.items()}
    lr = min(by_lr, key=by_lr.__getitem__)
    mine = [i for i, (rate, _) in enumerate(members) if rate == lr]
    tests = [
        counted[i][f"valid_{metric}"] if failed[i] else (watch.results[i] or {})[f"test_{metric}"]
        for i in mine
    ]
    return Best(lr, by_lr, tests, [[r["train_loss"] for r in watch.metrics[i][1:]] for i in mine])


@measurement("F1")
def no_better() -> Iterator[Part]:
    """Test metric of e^s less that of g, in margins, each at its best learning rate; paired by seed."""
    for condition in CASES:
        yield Part(file_name(condition), functools.partial(_differences, condition))


def _differences(condition: str) -> list[Row]:
    found = {gain: best(condition, gain) for gain in GAINS}
    margin, rows = MARGINS[condition[:3]], []
    for gain, name in (("e^s", "difference"), ("e^(3s)", "control e^(3s)")):
        rows += per_seed(condition, name, np.subtract(found[gain].tests, found["g"].tests) / margin)
    for gain, one in found.items():
        rows.append(row(condition, f"best lr, {gain}", 0, one.lr))
        rows += per_seed(condition, f"test, {gain}", one.tests)
        rows += [row(condition, f"validation, {gain}", 0, value, lr) for lr, value in one.by_lr.items()]
    return rows


@measurement("F2")
def slightly_slower() -> Iterator[Part]:
    """Epochs until the training loss is what g has, on average, after two thirds of them: e^s over g."""
    for condition in CASES:
        yield Part(file_name(condition), functools.partial(_ratios, condition))


def _ratios(condition: str) -> list[Row]:
    found = {gain: best(condition, gain).curves for gain in GAINS}
    target = loss_after(found["g"], 2 / 3)
    last = CASES[condition][0]["trainer.epochs"]
    epochs = {gain: [epochs_to(target, curve, last) for curve in curves] for gain, curves in found.items()}
    rows: list[Row] = []
    for gain, name in (("e^s", "ratio"), ("e^(3s)", "control e^(3s)")):
        rows += per_seed(condition, name, np.divide(epochs[gain], epochs["g"]))
    for gain, values in epochs.items():
        rows += per_seed(condition, f"epochs, {gain}", values)
    return rows


def loss_after(curves: Sequence[Sequence[float]], share: float) -> float:
    """The mean over curves after a share of the epochs."""
    epoch = round(share * len(curves[0]))
    return sum(curve[epoch - 1] for curve in curves) / len(curves)


def epochs_to(target: float, curve: Sequence[float], last: int) -> float:
    """The first epoch, counted from 1, with a loss of the target or less, log-linear between epochs.

    A curve that starts there has taken one epoch; one that never gets there, as it diverged perhaps, all.

    >>> [epochs_to(0.5, [2.0, 1.0, 0.25], 3), epochs_to(3.0, [2.0], 3), epochs_to(0.5, [2.0, math.nan], 3)]
    [2.5, 1.0, 3.0]
    """
    for i, loss in enumerate(curve):
        if loss <= target:
            if i == 0:
                return 1.0
            before = curve[i - 1]
            return i + math.log(before / target) / math.log(before / loss)
    return float(last)
