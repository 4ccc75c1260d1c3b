"""Rows -> lines of a table of variational bounds, in nats an image as the paper gives them.

A loss is minus a bound. Of black and white pixels that is all. Of bytes the paper's bounds, which are
positive, are taken for those of a density of images from 0 to 1: higher by D ln 256 than the log probability
of D bytes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from wn import experiments
from wn.experiments import Experiment, Point
from wn.report import statistics
from wn.report.lines import Line, by_seed, counterpart, counts, lines_of, runs_of

BASELINE = "none_init"
"""The norm that a row is compared with: the paper's ``normal``."""

EPOCHS = (20, 50, 100, 200, 300)
"""Where our bounds are compared with the published ones."""

NUMBERS = {"digits": 64, "mnist": 784, "fashion_mnist": 784, "cifar10": 3072}
"""D: how many numbers an image of a data set has."""

TABLE_COLUMNS = [
    *("row", "norm", "lr", "declared", "chosen", "paper", "runs", "planned", "diverged", "n"),
    *("test_bound", "test_bound_half_width", "test_bound_sd"),
    *("iwae_bound", "importance_bound_half_width", "reconstruction", "kl", "bits_per_dim"),
    *("above_normal", "p_vs_normal"),
    *(f"{what}_{epoch}" for what in ("gap", "sd", "above_normal") for epoch in EPOCHS),
]


class Scale(NamedTuple):
    """How losses are told: a bound is ``shift - loss``, in nats."""

    shift: float
    bits: float
    """Bits per dimension of a nat of loss; NaN of black and white pixels, of which nobody gives them."""
    digits: int
    """Decimals of a bound."""


def scale_of(experiment: Experiment) -> Scale:
    """How the losses of an experiment are told: by the likelihood of its model and its data set's D."""
    numbers = NUMBERS[experiment.setting("data.name")]
    if experiment.setting("model.likelihood") == "bernoulli":
        return Scale(0.0, math.nan, 2)
    return Scale(numbers * math.log(256), 1 / (numbers * math.log(2)), 1)


def published(experiment: Experiment, row: str) -> dict[float, Point]:
    """The points of a row's published curve, by epoch. Between two of them nothing is taken as published."""
    return {point.epoch: point for point in experiments.published(experiment).get(row, [])}


def table(rows: Any, experiment: Experiment) -> Any:
    """Frame, a row per :class:`Line`; bounds in nats, as the paper gives them; unknown is missing.

    ``paper``: the published bound after the last epoch; ``runs`` (done) of ``planned``, ``diverged`` of them.
    Over the ``n`` finished ones, of the last epoch: ``test_bound``, the half-width of its interval, the
    standard deviation over the seeds; ``iwae_bound`` likewise; ``reconstruction`` (E log p(x|z)) and
    ``kl``, whose difference is the bound; ``bits_per_dim``; ``above_normal``, the mean difference to
    :data:`BASELINE` by seed, and its p. After each of :data:`EPOCHS`: ``gap`` to the published bound, ``sd``
    over the seeds, ``above_normal``.
    """
    runs, scale = statistics.numeric(rows.runs), scale_of(experiment)
    every = lines_of(rows.runs, experiment)
    own = [runs_of(line, runs) for line in every]
    bounds = [by_seed(part.assign(bound=scale.shift - part["test_loss"]), "bound") for part in own]
    paths = seeds_by_line(rows, experiment)
    table = []
    for i, line in enumerate(every):
        facts = _named(line, experiment) | counts(line, runs, experiment)
        facts |= _means(own[i], bounds[i], experiment)
        place = counterpart(line, every, BASELINE)
        normal = None if place is None else every[place]
        if place is not None:
            shared = [bounds[i][seed] - bounds[place][seed] for seed in bounds[i] if seed in bounds[place]]
            facts["above_normal"] = float(np.mean(shared)) if shared else np.nan
            facts["p_vs_normal"] = statistics.paired_p(bounds[i], bounds[place])
        table.append(facts | _by_epoch(line, normal, paths, experiment))
    unknown = {"lr": "float64", "paper": "float64", "above_normal": "float64", "p_vs_normal": "float64"}
    return pd.DataFrame(table, columns=TABLE_COLUMNS).astype(unknown)


def _named(line: Line, experiment: Experiment) -> dict[str, Any]:
    point = published(experiment, line.row.name).get(experiment.setting("trainer.epochs"))
    return {
        "row": line.row.name,
        "norm": line.row.norm,
        "lr": line.lr,
        "declared": line.declared,
        "chosen": line.chosen,
        "paper": point.value if point else None,
    }


def _means(own: Any, bounds: dict[int, float], experiment: Experiment) -> dict[str, Any]:
    """Over a line's finished runs. An importance-weighted bound counts if taken as the heading says."""
    scale, values = scale_of(experiment), np.array(list(bounds.values()))
    samples, images = (experiment.setting(f"trainer.importance_{what}") for what in ("samples", "images"))
    as_said = own["iwae_samples"].eq(samples) & own["iwae_images"].fillna(0).eq(images or 0)
    tight = statistics.estimate((scale.shift - own["test_nll"][as_said]).to_numpy(dtype=float))
    test = statistics.estimate(values)
    return {
        "n": test.n,
        "test_bound": test.mean,
        "test_bound_half_width": test.half_width,
        "test_bound_sd": float(values.std(ddof=1)) if test.n > 1 else np.nan,
        "iwae_bound": tight.mean,
        "importance_bound_half_width": tight.half_width,
        "reconstruction": scale.shift - own["test_reconstruction"].mean(),
        "kl": own["test_kl"].mean(),
        "bits_per_dim": scale.bits * own["test_loss"].mean(),
    }


def _by_epoch(line: Line, normal: Line | None, paths: dict[str, Any], experiment: Experiment) -> Any:
    """What the table says of the epochs of :data:`EPOCHS`; only what was measured at one is there."""
    own, theirs = paths[line.label], published(experiment, line.row.name)
    facts = {}
    for epoch in (epoch for epoch in EPOCHS if epoch in own.index):
        facts[f"sd_{epoch}"] = float(own.loc[epoch].std())
        if epoch in theirs:
            facts[f"gap_{epoch}"] = float(own.loc[epoch].mean()) - theirs[epoch].value
        if normal and epoch in paths[normal.label].index:
            facts[f"above_normal_{epoch}"] = float((own.loc[epoch] - paths[normal.label].loc[epoch]).mean())
    return facts


def seeds_by_line(rows: Any, experiment: Experiment) -> dict[str, Any]:
    """The test bounds of each line, by its label: a frame with a row per epoch and a column per seed."""
    every = each_run(rows, experiment)
    labels = [line.label for line in lines_of(rows.runs, experiment)]
    groups = dict(list(every.groupby("line")))
    return {
        label: groups.get(label, every[:0]).pivot(index="epoch", columns="seed", values="bound")
        for label in labels
    }


def each_run(rows: Any, experiment: Experiment) -> Any:
    """Frame, a row per finished run and epoch at which the test set was looked at, line by line.

    ``line``, ``row``, ``lr``, ``seed``, ``epoch``; nats: ``bound`` and its parts ``reconstruction`` and
    ``kl`` on the test set, ``train_bound`` of what the epoch's steps saw.
    """
    scale = scale_of(experiment)
    lines = pd.DataFrame(
        [(line.label, line.row.name, line.row.norm, line.lr) for line in lines_of(rows.runs, experiment)],
        columns=["line", "row", "norm", "lr"],
    ).astype({"lr": float})
    runs = statistics.numeric(rows.runs).rename(columns={"optim.lr": "lr"})
    runs = runs[runs["diverged"] == 0][["run_id", "norm", "lr", "seed"]]
    frame = lines.merge(runs, on=["norm", "lr"]).merge(rows.series, on="run_id").astype({"epoch": int})
    return frame.assign(
        bound=scale.shift - frame["test_loss"],
        reconstruction=scale.shift - frame["test_reconstruction"],
        kl=frame["test_kl"],
        train_bound=scale.shift - frame["train_loss"],
    )


MEASURED = ("bound", "reconstruction", "kl", "train_bound")
"""Columns of :func:`each_run` that :func:`curves` has."""


def curves(rows: Any, experiment: Experiment) -> Any:
    """Frame, a row per line and epoch: mean and standard deviation (``*_sd``) over the finished ``runs``."""
    groups = each_run(rows, experiment).groupby(["line", "row", "lr", "epoch"], sort=False)
    statistic = {name + end: (name, how) for name in MEASURED for end, how in (("", "mean"), ("_sd", "std"))}
    return groups.agg(runs=("run_id", "count"), **statistic).reset_index()
