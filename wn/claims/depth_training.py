"""Claims about the data-dependent initialisation that need training: to what depth, and beside which norm."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wn.claims import nets
from wn.claims.depth import SEEDS
from wn.claims.measuring import Part, file_name, measurement
from wn.claims.nets import Kind, Start
from wn.claims.rows import Row, per_seed, row
from wn.claims.training import QUICK, by_rate, train
from wn.config.compose import compose

RATES = {"adam": (1e-4, 1e-3, 1e-2), "sgd": (1e-3, 1e-2, 1e-1)}
CHANCE = 0.9


@measurement("E2c")
def to_what_depth() -> Iterator[Part]:
    """Validation error after 10 epochs at the best learning rate, by depth and initialisation."""
    cases: list[tuple[str, Kind, tuple[int, ...], str, tuple[Start, ...]]] = [
        ("mlp, plain", "plain", (2, 5, 10, 20, 50), "Adam", ("data", "he")),
        ("mlp, residual", "residual", (50,), "SGD", ("data", "he")),
        ("mlp, plain", "plain", (10, 20, 50), "SGD", ("data",)),
        ("convnet, plain", "convolutional", (10, 20), "Adam", ("data",)),
        ("mlp, plain", "plain", (10, 20, 50), "Adam", ("arpit", "stale")),
        ("convnet, plain", "convolutional", (10, 20), "Adam", ("he",)),
    ]
    for name, kind, depths, rule, starts in cases:
        for depth, start in itertools.product(depths, starts):
            measure = functools.partial(_trained, name, kind, depth, rule, start)
            yield Part(f"{kind}-{depth}-{rule}-{start}", measure)


def _trained(name: str, kind: Kind, depth: int, rule: str, start: Start) -> list[Row]:
    """Rows of the best learning rate. A depth that is not judged belongs to the condition of the next."""
    rates = RATES[rule.lower()]
    errors = train_deep(kind, depth, start, rule.lower(), rates, SEEDS)
    best = min(rates, key=lambda lr: sum(errors[lr]))
    condition = f"{name}, depth {max(depth, 10)}, {rule}"
    rows = per_seed(condition, f"error, {start}", errors[best], depth)
    rows.append(row(condition, f"best lr, {start}", 0, best, depth))
    judged = "error" if start == "data" else f"control {start}"
    return rows + (per_seed(condition, judged, errors[best]) if depth >= 10 else [])


def train_deep(
    kind: Kind,
    depth: int,
    start: Start,
    rule: str,
    rates: Sequence[float],
    seeds: Sequence[int],
    epochs: int = 10,
) -> dict[float, list[float]]:
    """Validation error by learning rate, one a seed; all are one stack. What has diverged is at chance."""
    data, width = nets.digits(), 8 if kind == "convolutional" else 64
    members = [(lr, seed) for lr in rates for seed in seeds]
    settings = {"norm": "none", "optim": rule, "trainer.epochs": epochs}
    configs = [compose({**settings, "optim.lr": lr, "seed": seed}) for lr, seed in members]
    models = []
    for _, seed in members:
        batch = data.train.x[nets.first_batch(data, 500, seed)]
        models.append(nets.deep(kind, depth, width, "relu", start, batch, seed))
    watch = train(configs, data, models)
    errors = [
        CHANCE if result is None else metrics[-1]["valid_error"]
        for metrics, result in zip(watch.metrics, watch.results, strict=True)
    ]
    return by_rate(rates, errors)


HALF_DECADES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
PERCEPTRON = {"model": "mlp", "optim": "sgd", "trainer.epochs": 15, "model.weight_init": "paper"}
VAE = {"model": "mlp_vae", "optim": "adamax", "trainer.epochs": 10, "model.weight_init": "paper"}
SMALL: dict[str, dict[str, Any]] = {
    "mlp": PERCEPTRON,
    "mlp, ten layers": {**PERCEPTRON, "model.widths": [64] * 9},
    "vae": {**VAE, **QUICK},
}
ARMS: dict[str, dict[str, Any]] = {
    "weight norm, set by data": {"norm": "weight_norm_init"},
    "weight norm, g = 1": {"norm": "weight_norm", "norm.scale": "one"},
    "weight norm, g = ||v||": {"norm": "weight_norm"},
    "batch norm, set by data": {"norm": "batch_norm", "norm.init": "data"},
    "batch norm": {"norm": "batch_norm"},
}


@measurement("E3")
def only_without_statistics() -> Iterator[Part]:
    """What the initialisation gains in weight normalisation, less what it gains in batch normalisation."""
    for model in SMALL:
        yield Part(file_name(model), functools.partial(_interaction, model))


def _interaction(model: str) -> list[Row]:
    losses = {
        arm: final_losses({**SMALL[model], **settings}, HALF_DECADES, SEEDS) for arm, settings in ARMS.items()
    }
    at = {arm: min(by_lr, key=lambda lr: sum(by_lr[lr])) for arm, by_lr in losses.items()}
    best = {arm: losses[arm][lr] for arm, lr in at.items()}
    rows: list[Row] = []
    for start in ("g = 1", "g = ||v||"):
        condition = f"{model}, {start}"
        for name, values in interaction(best, start).items():
            rows += per_seed(condition, name, values)
    for arm, lr in at.items():
        own = f"{model}, {'g = 1' if arm.endswith('g = 1') else 'g = ||v||'}"
        rows.append(row(own, f"best lr, {arm}", 0, lr))
        for rate, values in losses[arm].items():
            rows += per_seed(own, f"loss, {arm}", values, rate)
    return rows


def interaction(best: Mapping[str, Sequence[float]], start: str) -> dict[str, list[float]]:
    """(without - with, weight norm) - (the same, batch norm), over the lowest mean; and the two apart."""
    arms = {
        "weight": ("weight norm, set by data", f"weight norm, {start}"),
        "batch": ("batch norm, set by data", "batch norm"),
    }
    lowest = min(sum(best[arm]) / len(best[arm]) for pair in arms.values() for arm in pair)
    gains = {
        name: [(b - a) / lowest for a, b in zip(best[with_], best[without], strict=True)]
        for name, (with_, without) in arms.items()
    }
    difference = [w - b for w, b in zip(gains["weight"], gains["batch"], strict=True)]
    return {
        "interaction": difference,
        "control weight norm": gains["weight"],
        "control batch norm": gains["batch"],
    }


def final_losses(
    settings: Mapping[str, Any], rates: Sequence[float], seeds: Sequence[int]
) -> dict[float, list[float]]:
    """Final validation loss by learning rate, one a seed; diverged: that before training."""
    members = [(lr, seed) for lr in rates for seed in seeds]
    watch = train([compose({**settings, "optim.lr": lr, "seed": seed}) for lr, seed in members])
    ends = zip(watch.metrics, watch.results, strict=True)
    return by_rate(rates, [rows[0 if result is None else -1]["valid_loss"] for rows, result in ends])
