"""The runs of an experiment, as a claim reads them: recorded here, else committed, else trained."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from wn import experiments
from wn.claims.training import recorded
from wn.config import Config
from wn.records import Record
from wn.report.statistics import Array

CHANCE = 90.0
"""Error in % of a classifier of CIFAR-10 that diverged."""


class Trained(NamedTuple):
    """A run that is done: its metrics by epoch, and its final ones, empty where it diverged."""

    epochs: list[dict[str, float]]
    final: dict[str, float]

    @classmethod
    def of(cls, record: Record) -> Trained:
        return cls(record.metrics, record.content["final"] if record.status == "finished" else {})

    @property
    def test_error(self) -> float:
        """In %, after the last epoch."""
        return 100 * self.final["test_error"] if self.final else CHANCE

    def train_error(self, epoch: int) -> float:
        """In %, a mean over the epoch."""
        done = [row for row in self.epochs if row["epoch"] == epoch]
        if not done or (not self.final and done[0] is self.epochs[-1]):
            return CHANCE  # a run that diverged ends with the row of that epoch
        return 100 * done[0]["train_error"]

    @property
    def bounds(self) -> Array:
        """Points [epoch, bound on the test set in nats], where it was evaluated."""
        told = [(row["epoch"], row.get("test_loss")) for row in self.epochs]
        return np.array([(epoch, -loss) for epoch, loss in told if loss is not None])


def runs_of(experiment: str, configs: Sequence[Config], diverged: bool = True) -> list[Trained]:
    """One for each configuration; what is neither recorded here nor committed is trained.

    Without ``diverged`` a run that diverged is not taken from the committed rows: those know it by its end
    alone, as no committed curve tells epoch 0.

    Raises:
        UserError: a committed file is damaged.
        RunFailed: a run failed.
    """
    there = {run_id: run for run_id, run in committed(experiment).items() if run.final or diverged}
    known = {c.run_id: there[c.run_id] for c in configs if c.run_id in there and not Record.of(c).done}
    if known:
        print(f"{experiment}: {len(known)} of {len(configs)} runs are committed ones", flush=True)
    here = [config for config in configs if config.run_id not in known]
    if here:
        known |= zip((config.run_id for config in here), map(Trained.of, recorded(here)), strict=True)
    return [known[config.run_id] for config in configs]


@functools.cache
def committed(experiment: str) -> Mapping[str, Trained]:
    """The runs of ``results/EXPERIMENT/`` that are done, by run_id; their metrics are of epochs after 0.

    Raises:
        UserError: a file is damaged.
    """
    from wn.report import collect  # pandas takes a second or two: not for other claims
    from wn.report.plan import of_experiment

    folder = experiments.FOLDER.parent / "results" / experiment
    runs, curves = collect.committed(of_experiment(experiment), folder)[0]
    epochs: dict[str, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    metrics = curves[curves["layer"].isna()]  # else a probe's
    for run_id, epoch, _, name, value in metrics.itertuples(index=False):
        epochs[run_id][epoch][name] = value
    return {
        run_id: Trained(
            [{"epoch": epoch, **told} for epoch, told in sorted(epochs[run_id].items())],
            _final(result) if result["status"] == "finished" else {},
        )
        for run_id, result in runs.to_dict("index").items()
    }


def _final(result: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in result.items() if name.startswith(("valid_", "test_"))}
