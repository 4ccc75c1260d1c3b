"""B5 to B7 in a narrow ConvNet on a fifth of CIFAR-10: the runs are those of ``cifar10_lr_narrow_*``.

Judged by validation error: 1.5 times the best loss would count a network at chance as trained, since in five
epochs the loss falls from 2.3 nats to 1.2 at best.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from wn import experiments
from wn.claims.measuring import Part, file_name, measurement
from wn.claims.rates import Contrast, Grid, rows_of, trained
from wn.claims.rows import Row

ARMS = (
    "plain",
    "plain, decay",
    "weight norm",
    "capped",
    "capped and held",
    "batch norm",
    "mean-only batch norm",
)
"""In the order of the experiments' norms."""

OPTIMISERS = {"SGD": "cifar10_lr_narrow_sgd", "Adam": "cifar10_lr_narrow_adam"}

UNSEEN = {"tracking.mode": "disabled", "trainer.progress": False}


@functools.cache  # three claims are about the same runs
def grids(optimiser: str) -> dict[str, Grid]:
    """Every arm's validation errors; a run that is recorded is not trained again."""
    experiment = experiments.load(OPTIMISERS[optimiser])
    norms, rates, seeds = (experiment.grid[axis] for axis in ("norm", "optim.lr", "seed"))
    errors = trained([run.config for run in experiment.runs(UNSEEN)], "error")
    by_arm = np.reshape(errors, (len(norms), len(rates), len(seeds)))
    return {arm: Grid(np.array(rates), own) for arm, own in zip(ARMS, by_arm, strict=True)}


def _parts(contrasts: Sequence[Contrast]) -> Iterator[Part]:
    for optimiser in OPTIMISERS:
        condition = f"convnet, {optimiser}"
        measure = functools.partial(_rows, condition, optimiser, contrasts)
        yield Part(file_name(condition, comma="_").lower(), measure)


def _rows(condition: str, optimiser: str, contrasts: Sequence[Contrast]) -> list[Row]:
    return rows_of(condition, grids(optimiser), contrasts, ARMS)


@measurement("B5c")
def wider_range() -> Iterator[Part]:
    """Width of weight normalisation less that of plain weights; batch normalisation is the control."""
    others = ("plain, decay", "batch norm", "mean-only batch norm")
    controls = [Contrast(f"control {arm} less plain", arm, "plain") for arm in others]
    return _parts([Contrast("wider", "weight norm", "plain"), *controls])


@measurement("B6c")
def what_limits() -> Iterator[Part]:
    """Width with the rates of gains and biases capped, less that with one rate, and less plain's."""
    judged = [Contrast("over joint", "capped", "weight norm"), Contrast("over plain", "capped", "plain")]
    return _parts([*judged, Contrast("control over annealing", "capped", "plain, decay")])


@measurement("B7c")
def growth() -> Iterator[Part]:
    """Width of capped less that of capped with ||v|| put back to its start after every step."""
    judged = [Contrast("by growth", "capped", "capped and held")]
    return _parts([*judged, Contrast("control capped and held less plain", "capped and held", "plain")])
