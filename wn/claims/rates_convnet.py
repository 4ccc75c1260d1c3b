"""B5 to B7 in a narrow ConvNet on a fifth of CIFAR-10: the runs are those of ``cifar10_lr_narrow_*``.

Judged by validation error: 1.5 times the best loss would count a network at chance as trained, since in five
epochs the loss falls from 2.3 nats to 1.2 at best.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from wn import experiments
from wn.claims.known import runs_of
from wn.claims.measuring import Part, measurement
from wn.claims.ranges import Contrast, Grid, rows_of
from wn.claims.rates import GROWTH, LIMITS, WIDER, less_of
from wn.claims.rows import Row
from wn.claims.training import UNSEEN

OPTIMISERS = {"SGD": "cifar10_lr_narrow_sgd", "Adam": "cifar10_lr_narrow_adam"}


@functools.cache  # three claims are about the same runs
def grids(optimiser: str, arms: tuple[str, ...]) -> dict[str, Grid]:
    """These arms' validation errors, infinite where training diverged."""
    experiment = experiments.load(OPTIMISERS[optimiser])
    rates, names = experiment.values["optim.lr"], experiment.labels
    runs = [run for run in experiment.runs(UNSEEN) if names[run.cell["norm"]] in arms]
    by_arm: dict[str, list[float]] = {arm: [] for arm in arms}
    for run, done in zip(runs, runs_of(experiment.name, [run.config for run in runs]), strict=True):
        by_arm[names[run.cell["norm"]]].append(done.final["valid_error"] if done.final else math.inf)
    return {arm: Grid(np.array(rates), np.reshape(own, (len(rates), -1))) for arm, own in by_arm.items()}


def _parts(judged: Sequence[Contrast], controls: Sequence[Contrast]) -> Iterator[Part]:
    """A part per optimiser for what is judged, then one for its controls."""
    new = [arm for arm in _arms(controls) if arm not in _arms(judged)]
    for contrasts, own, suffix in ((judged, _arms(judged), ""), (controls, new, "_controls")):
        for optimiser in OPTIMISERS:
            measure = functools.partial(_rows, optimiser, contrasts, own)
            yield Part(f"convnet_{optimiser.lower()}{suffix}", measure)


def _arms(contrasts: Sequence[Contrast]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(arm for contrast in contrasts for arm in contrast[1:]))


def _rows(optimiser: str, contrasts: Sequence[Contrast], own: Sequence[str]) -> list[Row]:
    return rows_of(f"convnet, {optimiser}", grids(optimiser, _arms(contrasts)), contrasts, own)


@measurement("B5c")
def wider_range() -> Iterator[Part]:
    """Width of weight normalisation less that of plain weights."""
    others = ("batch norm", "mean-only batch norm", "plain, decay")
    return _parts(WIDER, [less_of(arm, "plain") for arm in others])


@measurement("B6c")
def what_limits() -> Iterator[Part]:
    """Width with the rates of gains and biases capped, less that with one rate, and less plain's."""
    return _parts(LIMITS, [Contrast("control over annealing", "capped", "plain, decay")])


@measurement("B7c")
def growth() -> Iterator[Part]:
    """Width of capped less that of capped with ||v|| put back to its start after every step."""
    return _parts(GROWTH, [less_of("capped and held", "plain")])
