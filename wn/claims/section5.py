"""Claims about section 5 that a processor can train: rows of an experiment, a part for each seed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from wn import experiments
from wn.claims.known import Trained, runs_of
from wn.claims.measuring import Part, measurement
from wn.claims.rows import Row, per_quantity
from wn.claims.training import UNSEEN
from wn.config import Config, UserError
from wn.report.statistics import Array

TABLE, CONVNET = "cifar10_narrow", "convnet, CIFAR-10"
JUDGED, CODE = ("WN + MOBN", "BN", "WN", "normal", "MOBN"), "normal as in the code"
HALF = 8
"""The last epoch of 16 at the constant learning rate."""

FIGURE, VAE = "vae_mnist_cpu", "vae, MNIST"
EARLY = 50
"""The epoch at which the two curves of figure 3 are one."""


def configs_of(experiment: str, rows: Sequence[str], seed: int) -> dict[str, Config]:
    """A run for each row, at the learning rate that its file names, or that was chosen.

    Raises:
        UserError: a learning rate is still to be chosen.
    """
    file = experiments.load(experiment)
    rates = {row.name: row.chosen if file.chosen_by else row.lrs[0] for row in file.rows if row.name in rows}
    if waiting := [name for name, rate in rates.items() if rate is None]:
        how = f"python -m wn.train +experiment={file.chosen_by} && python -m wn.report {file.chosen_by}"
        raise UserError(f"experiments/{experiment}.yaml: {waiting[0]}: no chosen learning rate; first {how}")
    return {
        run.row: run.config
        for run in file.runs(UNSEEN)
        if run.row in rates and (run.cell["optim.lr"], run.cell["seed"]) == (rates[run.row], seed)
    }


@functools.cache  # several claims are about the same rows
def trained(experiment: str, rows: tuple[str, ...], seed: int) -> Mapping[str, Trained]:
    configs = configs_of(experiment, rows, seed)
    return dict(zip(configs, runs_of(experiment, [*configs.values()], diverged=False), strict=True))


Values = dict[str, float]
"""By quantity, of one seed."""


def _less(values: Mapping[str, float], *pairs: tuple[str, str], name: str = "{} less {}") -> Values:
    return {name.format(one, other): values[one] - values[other] for one, other in pairs}


def lowest(runs: Mapping[str, Trained]) -> Values:
    """Test errors less that of weight normalisation with mean-only batch normalisation; L1."""
    errors = {name: run.test_error for name, run in runs.items()}
    judged = _less(errors, ("BN", "WN + MOBN"), ("WN", "WN + MOBN"))
    control = _less(errors, ("normal", "WN + MOBN"), name="control {} less {}")
    return judged | control | {f"test error {name}": error for name, error in errors.items()}


def faster(runs: Mapping[str, Trained]) -> Values:
    """Training error of plain weights less those of others, at equal epochs; L2."""
    errors = {name: run.train_error(HALF) for name, run in runs.items()}
    judged = _less(errors, ("normal", "BN"), ("normal", "WN"))
    control = _less(errors, ("normal", "MOBN"), name="control {} less {}")
    return judged | control | {f"train error {name}": error for name, error in errors.items()}


def faster_than_in_the_code(runs: Mapping[str, Trained]) -> Values:
    errors = {name: run.train_error(HALF) for name, run in runs.items()}
    return _less(errors, (CODE, "BN"), (CODE, "WN"), name="control {} less {}")


def same(runs: Mapping[str, Trained]) -> Values:
    """Test errors in pairs; L3."""
    errors = {name: run.test_error for name, run in runs.items()}
    control = _less(errors, ("BN", "normal"), name="control {} less {}")
    return _less(errors, ("WN", "normal"), ("MOBN", "normal"), ("MOBN", "WN")) | control


def same_in_the_code(runs: Mapping[str, Trained]) -> Values:
    errors = {name: run.test_error for name, run in runs.items()}
    return _less(errors, (CODE, "normal"), name="control {} less {}")


def reached(points: Array, level: float) -> float:
    """The first epoch at which a line through points [epoch, bound] is at a level, which some point has."""
    first = int(np.argmax(points[:, 1] >= level))
    epochs, bounds = points[max(first - 1, 0) : first + 1].T
    return float(np.interp(level, bounds, epochs))


def converges(runs: Mapping[str, Trained]) -> Values:
    """How much higher a bound weight normalisation has, and how much sooner; M1.

    A run that diverged has the bound that it began with, and reaches a level after the last epoch.
    """
    ended = {name: run.bounds for name, run in runs.items() if run.final}
    if not ended:
        return {}
    level, last = min(p[:, 1].max() for p in ended.values()), max(p[-1, 0] for p in ended.values())
    points = {name: ended.get(name, run.bounds[:1]) for name, run in runs.items()}
    after = {name: reached(ended[name], level) if name in ended else last for name in runs}
    early = {name: float(np.interp(EARLY, *p.T)) for name, p in points.items()}
    return {
        "better": float(points["WN"][-1, 1] - points["normal"][-1, 1]),
        "faster": after["WN"] / after["normal"],
        f"control better after {EARLY} epochs": early["WN"] - early["normal"],
    }


def _parts(
    experiment: str,
    condition: str,
    rows: Sequence[str],
    values: Callable[[Mapping[str, Trained]], Values],
    suffix: str = "",
) -> Iterator[Part]:
    """A part a seed of the experiment's.

    Raises:
        UserError: a learning rate is still to be chosen.
    """
    for seed in experiments.load(experiment).seeds:
        configs_of(experiment, rows, seed)
        measure = functools.partial(_measured, experiment, condition, tuple(rows), values, seed)
        yield Part(f"seed_{seed}{suffix}", measure)


def _controls(values: Callable[[Mapping[str, Trained]], Values]) -> Iterator[Part]:
    """The code's normal parameterisation beside others, once its rate is chosen: verdicts do without it."""
    chosen = {row.name: row.chosen for row in experiments.load(TABLE).rows}
    return iter(()) if chosen[CODE] is None else _parts(TABLE, CONVNET, (*JUDGED, CODE), values, "_code")


def _measured(
    experiment: str,
    condition: str,
    rows: tuple[str, ...],
    values: Callable[[Mapping[str, Trained]], Values],
    seed: int,
) -> list[Row]:
    return per_quantity(condition, seed, values(trained(experiment, rows, seed)))


@measurement("L1")
def best() -> Iterator[Part]:
    """Section 5.1: test errors of batch and of weight normalisation less that of WN + MOBN."""
    return _parts(TABLE, CONVNET, JUDGED, lowest)


@measurement("L2")
def speed() -> Iterator[Part]:
    """Section 5.1: training error of plain weights at half of the epochs, less those of BN and of WN."""
    yield from _parts(TABLE, CONVNET, JUDGED, faster)
    yield from _controls(faster_than_in_the_code)


@measurement("L3")
def end() -> Iterator[Part]:
    """Section 5.1: test errors of plain weights, WN and MOBN, in pairs."""
    yield from _parts(TABLE, CONVNET, JUDGED, same)
    yield from _controls(same_in_the_code)


@measurement("M1")
def autoencoder() -> Iterator[Part]:
    """Section 5.2: the test bound at the end, and how soon it is as high as the other ever is."""
    return _parts(FIGURE, VAE, ("normal", "WN"), converges)
