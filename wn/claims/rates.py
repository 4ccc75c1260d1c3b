"""How wide the range of learning rates is, and why: interventions on gains, biases, growth and schedule.

All arms but batch normalisation start as the same function (section 3). *Capped* is min(lr, c): a constant
rate would widen a range downwards, as gains would go on learning where that of the weights is too small to.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from wn.claims.measuring import Part, file_name, measurement
from wn.claims.ranges import Contrast, Grid, common, metric_of, rows_of, tolerated
from wn.claims.rows import Row
from wn.claims.training import OPTIMISERS, QUICK, UNSEEN, recorded
from wn.config import Config
from wn.config.compose import Value, compose
from wn.report.statistics import Array

Settings = dict[str, Value]

SEEDS = range(5)  # a seed is its place in an array
RATES = (*(float(f"{digit}e{power}") for power in range(-5, 6) for digit in (1, 3)), 1e6)
"""Half decades; how far an arm's grid goes is for its losses to say (:func:`grid_end`)."""

LOWEST = {"mlp for 120 epochs": 1e-5}
"""Where grids begin that do not at 1e-4: over more steps smaller rates are usable."""

FIRST, MORE = 1.0, 2
"""Up to where every arm trains, and how many rates are added at once to a grid that goes on."""

MODELS: dict[str, Settings] = {
    "mlp": {"model": "mlp", "data": "digits", "trainer.epochs": 30},
    "vae": {"model": "mlp_vae", "data": "digits", "trainer.epochs": 20},
    "mlp on MNIST": {
        **{"model": "mlp", "data": "mnist", "trainer.epochs": 15},
        **{"data.train_fraction": 0.2, "data.valid_fraction": 0.5},  # 6,000 images each
    },
    "mlp for 120 epochs": {"model": "mlp", "data": "digits", "trainer.epochs": 120},
}


def _capped(c: float) -> Settings:
    return {"optim.lr_gain_cap": c, "optim.lr_bias_cap": c}


PLAIN: Settings = {"norm": "none_init"}
WEIGHT_NORM: Settings = {"norm": "weight_norm_init"}
HELD: Settings = {**WEIGHT_NORM, "norm.hold": "start"}
DECAY: Settings = {"optim.schedule": "constant_then_linear", "optim.decay_from": 0.0}
"""Linear from the first epoch to nearly zero in the last; of capped rates too, after the cap."""

ARMS: dict[str, Settings] = {
    "plain": PLAIN,
    "plain, biases capped": {**PLAIN, "optim.lr_bias_cap": 0.1},
    "plain, decay": {**PLAIN, **DECAY},
    "weight norm": WEIGHT_NORM,
    "gains capped": {**WEIGHT_NORM, "optim.lr_gain_cap": 0.1},
    "gains fixed": {**WEIGHT_NORM, "norm.gain": "fixed"},
    "capped": {**WEIGHT_NORM, **_capped(0.1)},
    "capped at 0.03": {**WEIGHT_NORM, **_capped(0.03)},
    "capped at 0.3": {**WEIGHT_NORM, **_capped(0.3)},
    "capped, decay": {**WEIGHT_NORM, **_capped(0.1), **DECAY},
    "capped and held": {**HELD, **_capped(0.1)},
    "capped and held, decay": {**HELD, **_capped(0.1), **DECAY},
    "batch norm": {"norm": "batch_norm"},
    "batch norm, capped": {"norm": "batch_norm", **_capped(0.1)},
}

PLACE: Settings = {"experiment_name": "claims_rates", **UNSEEN, **QUICK, "trainer.probe_every": 1000}


def config_of(model: str, optimiser: str, arm: str, lr: float, seed: int) -> Config:
    """One run; what says where and how it is watched is no part of its identity."""
    chosen = MODELS[model] | OPTIMISERS[optimiser] | ARMS[arm]
    return compose({**chosen, **PLACE, "optim.lr": lr, "seed": seed})


def rates_of(model: str) -> tuple[float, ...]:
    return tuple(rate for rate in RATES if rate >= LOWEST.get(model, 1e-4))


def grid_end(model: str, losses: Array) -> int | None:
    """How many rates a grid has: the fewest of which the last two are out of range for all seeds.

    ``losses`` (L, S) of the first rates; None where it has to go on.
    """
    for count in range(3, len(losses) + 1):
        some = losses[:count]
        inside = some <= tolerated(model, some.min(axis=0))
        if inside.any() and not inside[-2:].any():
            return count
    return len(losses) if len(losses) == len(rates_of(model)) else None


Losses = Callable[[Sequence[Config]], list[float]]


def trained(configs: Sequence[Config], metric: str) -> list[float]:
    """Final validation losses, infinite where training diverged; what is recorded is not trained again."""
    found = []
    for record in recorded(configs):
        finished = record.status == "finished"
        found.append(float(record.content["final"][f"valid_{metric}"]) if finished else math.inf)
    return found


def explore(condition: str, arms: Sequence[str], losses_of: Losses) -> dict[str, Grid]:
    """Every arm's grid, as long as it has to be; ``condition`` is ``MODEL, OPTIMISER``."""
    model, optimiser = condition.split(", ")
    rates = rates_of(model)
    first = len([rate for rate in rates if rate <= FIRST])
    known: dict[str, list[list[float]]] = {arm: [] for arm in arms}
    ends: dict[str, int | None] = dict.fromkeys(arms)
    while going := [arm for arm in arms if ends[arm] is None]:
        wanted = []
        for arm in going:
            there = len(known[arm])
            wanted += [(arm, lr) for lr in rates[there : there + (MORE if there else first)]]
        configs = [config_of(model, optimiser, arm, lr, seed) for arm, lr in wanted for seed in SEEDS]
        measured = np.reshape(losses_of(configs), (len(wanted), len(SEEDS)))
        for (arm, _), row in zip(wanted, measured.tolist(), strict=True):
            known[arm].append(row)
        ends |= {arm: grid_end(model, np.array(known[arm])) for arm in going}
    return {arm: Grid(np.array(rates[: ends[arm]]), np.array(known[arm][: ends[arm]])) for arm in arms}


@functools.cache  # several claims are about the same arms
def grid_of(condition: str, arms: tuple[str, ...]) -> dict[str, Grid]:
    return explore(condition, arms, functools.partial(trained, metric=metric_of(condition)))


def conditions_of(*models: str) -> tuple[str, ...]:
    return tuple(f"{model}, {optimiser}" for model in models for optimiser in OPTIMISERS)


CONDITIONS = conditions_of("mlp", "vae")


def parts(
    conditions: Sequence[str],
    judged: Sequence[Contrast],
    controls: Sequence[Contrast],
    evidence: Sequence[str],
    every: bool = False,
) -> Iterator[Part]:
    """A part per condition for what is judged, then one for its controls; with ``every`` of all arms."""
    arms = _arms(judged)
    others = tuple(arm for arm in ARMS if every or arm in _arms(controls))
    new = [arm for arm in others if arm not in arms]
    for condition in conditions:
        name = file_name(condition, comma="_").lower()
        yield Part(name, functools.partial(_judged, condition, arms, judged, evidence))
    for condition in conditions:
        name = file_name(condition, comma="_").lower()
        yield Part(f"{name}_controls", functools.partial(_controls, condition, others, controls, new))


def _arms(contrasts: Sequence[Contrast]) -> tuple[str, ...]:
    return tuple(arm for arm in ARMS if any(arm in contrast[1:] for contrast in contrasts))


def _judged(
    condition: str, arms: tuple[str, ...], contrasts: Sequence[Contrast], evidence: Sequence[str]
) -> list[Row]:
    grids = grid_of(condition, arms)
    shared = [row for _, arm, less in contrasts for row in common(condition, grids, arm, less)]
    return rows_of(condition, grids, contrasts, arms, evidence) + shared


def _controls(
    condition: str, arms: tuple[str, ...], contrasts: Sequence[Contrast], own: Sequence[str]
) -> list[Row]:
    return rows_of(condition, grid_of(condition, arms), contrasts, own)


def less_of(arm: str, other: str) -> Contrast:
    return Contrast(f"control {arm} less {other}", arm, other)


WIDER = [Contrast("wider", "weight norm", "plain")]
LIMITS = [Contrast("over joint", "capped", "weight norm"), Contrast("over plain", "capped", "plain")]
GROWTH = [Contrast("by growth", "capped", "capped and held")]


@measurement("B5")
def wider_range() -> Iterator[Part]:
    """Section 2.1: width of weight normalisation less that of plain weights, one rate for all parameters."""
    others = ("plain, biases capped", "plain, decay", "batch norm")
    return parts(CONDITIONS, WIDER, [less_of(arm, "plain") for arm in others], ["plain", "weight norm"])


@measurement("B6a")
def what_limits() -> Iterator[Part]:
    """Width with gains and biases at min(lr, 0.1), less that with one rate for all, and less plain's."""
    others = ("capped at 0.03", "capped at 0.3", "gains capped", "gains fixed")
    controls = [less_of(arm, "weight norm") for arm in others]
    controls += [less_of("plain, biases capped", "plain"), less_of("batch norm, capped", "batch norm")]
    return parts(CONDITIONS, LIMITS, controls, ["capped"], every=True)


@measurement("B6b")
def annealing() -> Iterator[Part]:
    """Width of capped, at a constant rate, less that of plain weights with linear decay to zero."""
    judged = [Contrast("over annealing", "capped", "plain, decay")]
    controls = [less_of("plain, decay", "plain"), less_of("capped, decay", "plain, decay")]
    return parts(CONDITIONS, judged, controls, ["plain, decay"])


@measurement("B7")
def growth() -> Iterator[Part]:
    """Width of capped less that of capped with ||v|| put back to its start after every step."""
    controls = [less_of("capped and held", "plain"), less_of("capped, decay", "capped and held, decay")]
    return parts(CONDITIONS, GROWTH, controls, ["capped and held"])
