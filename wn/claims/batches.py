"""I: what becomes of batch and weight normalisation in small batches (sections 1 and 2.2)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from wn.claims.measuring import Part, file_name, measurement
from wn.claims.rows import Row, per_seed, row
from wn.claims.training import QUICK, train
from wn.config.compose import compose
from wn.report.statistics import Array

SMALL, USUAL = 2, 64  # images in a batch
CHANCE = 90.0  # error in % of a run that diverged: ten classes
STACK = 50  # members

NORMS = {"BN": "batch_norm", "WN": "weight_norm_init", "plain": "none_init"}
OTHERS = {"batch renormalisation": "batch_renorm", "WN and MOBN": "weight_norm_mean_only_bn_init"}


class Task(NamedTuple):
    """What is trained in batches of any size: settings, the learning rates to choose from, and the seeds."""

    settings: dict[str, Any]
    lrs: tuple[float, ...]
    seeds: int


MLP: dict[str, Any] = {"model": "mlp", "data": "digits", "trainer.epochs": 10}
CONVNET: dict[str, Any] = {
    **{"model": "convnet", "model.width": 8, "model.depth": 1, "model.weight_init": "he"},
    **{"model.noise": 0.0, "model.dropout": 0.0, "data": "mnist", "data.train_fraction": 0.02},
    **{"optim": "adam", "trainer.epochs": 20},
    # The authors' n/(n-1), of n = 2 images, would double the running variance, which is over places too.
    "norm.correction": "samples",
}
VAE: dict[str, Any] = {
    **{"model": "mlp_vae", "data": "digits", "optim": "adamax", "trainer.epochs": 20},
    **QUICK,
}
TASKS = {
    "mlp, digits": Task(MLP, (3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3), 5),
    "convnet, MNIST": Task(CONVNET, (1e-3, 3e-3, 0.01), 5),
    "vae, diagonal posterior": Task(VAE, (3e-4, 1e-3, 3e-3, 0.01, 0.03), 5),
    "vae, IAF posterior": Task({**VAE, "model.posterior": "iaf"}, (3e-4, 1e-3, 3e-3, 0.01, 0.03), 5),
}


class Chosen(NamedTuple):
    """At the learning rate that was best on the validation split: the metric on the test split, by seed."""

    lr: float
    test: Array


def chosen(task: Task, norm: str, batch: int) -> Chosen:
    """Train every learning rate with every seed; choose by the mean over seeds on the validation split.

    The metric is the error in percent or, of a VAE, the negative ELBO in nats. A run that diverged counts at
    chance (a VAE: infinity).
    """
    base = compose({**task.settings, "norm": norm, "trainer.batch_size": batch})
    metric, scale, worst = ("loss", 1.0, np.inf) if "vae" in base.model.name else ("error", 100.0, CHANCE)
    configs = [
        base.model_copy(update={"optim": base.optim.model_copy(update={"lr": lr}), "seed": seed})
        for lr in task.lrs
        for seed in range(task.seeds)
    ]
    valid, test = [], []
    for first in range(0, len(configs), STACK):
        watch = train(configs[first : first + STACK])
        for result, epochs in zip(watch.results, watch.metrics, strict=True):
            valid.append(worst if result is None else scale * epochs[-1][f"valid_{metric}"])
            test.append(worst if result is None else scale * result[f"test_{metric}"])
    by_rate = np.reshape(valid, (len(task.lrs), task.seeds)).mean(1)
    best = int(np.argmin(by_rate))
    return Chosen(task.lrs[best], np.reshape(test, (len(task.lrs), task.seeds))[best])


@functools.cache
def outcome(condition: str, norm: str, batch: int, seeds: int) -> Chosen:
    return chosen(TASKS[condition]._replace(seeds=seeds), norm, batch)


def excess(condition: str, norm: str, quantity: str, seeds: int) -> list[Row]:
    """Error in batches of 2 less that in batches of 64, percentage points, a row per seed."""
    found = {batch: outcome(condition, norm, batch, seeds) for batch in (SMALL, USUAL)}
    difference = found[SMALL].test - found[USUAL].test
    return per_seed(condition, quantity, difference) + [
        row for batch, one in found.items() for row in _details(condition, norm, batch, one)
    ]


def _details(condition: str, norm: str, batch: int, one: Chosen) -> list[Row]:
    """Data of no verdict: the metric itself and the learning rate that was chosen, against the batch size."""
    rate = row(condition, f"lr {norm}", 0, one.lr, batch)
    return [*per_seed(condition, f"test {norm}", one.test, batch), rate]


@measurement("I1a")
def small_batches_of_batch_normalization() -> Iterator[Part]:
    """Test error in batches of 2 less that in batches of 64, the same images seen; lr chosen for each."""
    mlp = "mlp, digits"
    yield Part("mlp_BN", lambda: excess(mlp, NORMS["BN"], "excess", 5))
    yield Part("mlp_8", lambda: _details(mlp, NORMS["BN"], 8, outcome(mlp, NORMS["BN"], 8, 5)))
    for name, norm in {"plain": NORMS["plain"], **OTHERS}.items():
        quantity = f"control {name}"
        yield Part(file_name("mlp", name), functools.partial(excess, mlp, norm, quantity, 5))
    yield Part("convnet_BN", lambda: excess("convnet, MNIST", NORMS["BN"], "excess", 5))


@measurement("I1b")
def small_batches_of_weight_normalization() -> Iterator[Part]:
    """The same difference with weight normalisation, for equivalence with none: ten seeds."""
    mlp = "mlp, digits"
    yield Part("mlp_WN", lambda: excess(mlp, NORMS["WN"], "excess", 10))
    yield Part("mlp_8", lambda: _details(mlp, NORMS["WN"], 8, outcome(mlp, NORMS["WN"], 8, 10)))


@measurement("I3")
def generative_model() -> Iterator[Part]:
    """Bound (ELBO) with batch normalisation less that with weight normalisation, in nats."""
    for condition in ("vae, diagonal posterior", "vae, IAF posterior"):
        for batch, quantity in ((8, "difference"), (100, "control difference in batches of 100")):
            measure = functools.partial(_bounds, condition, batch, quantity)
            yield Part(file_name(condition, str(batch), comma="_"), measure)


def _bounds(condition: str, batch: int, quantity: str) -> list[Row]:
    bn, wn = (outcome(condition, NORMS[name], batch, 5) for name in ("BN", "WN"))
    details = [
        row for name, one in (("BN", bn), ("WN", wn)) for row in _details(condition, NORMS[name], batch, one)
    ]
    return per_seed(condition, quantity, wn.test - bn.test) + details  # of losses: the bounds' negatives
