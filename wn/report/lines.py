"""Rows -> lines of a table of test errors: which learning rates are shown, and what came of them.

Every learning rate is decided before a test error is read: the row's file declares it, or a validation split
chose it. Where the experiment itself holds images out, a row is shown at the rate that they choose alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from wn import experiments
from wn.experiments import Experiment, Row
from wn.report import statistics

BASELINES = {"p_vs_bn": "batch_norm", "p_vs_normal": "none_init"}
"""Columns of p, and the norm that a row is compared with."""

EPOCHS = (20, 50, 100, 150)
"""Where our training curves are compared with the published ones."""

ENOUGH = 3
"""Seeds that it takes to say whether a mean is in its band."""

TABLE_COLUMNS = [
    *("row", "norm", "lr", "declared", "chosen", "paper", "rerun", "band_low", "band_high"),
    *("runs", "planned", "diverged", "n", "test_error", "test_error_half_width", "train_error"),
    *BASELINES,
]


class Line(NamedTuple):
    """A line of the table: a row at one learning rate."""

    row: Row
    lr: float | None
    """None: to be chosen."""
    declared: bool
    """Whether the row's own file names the learning rate."""
    chosen: bool
    """Whether a validation split chose it."""

    @property
    def label(self) -> str:
        """What to call it in a figure."""
        return f"{self.row.name}, lr {self.lr:g}" if self.lr else self.row.name


def lines_of(runs: Any, experiment: Experiment) -> list[Line]:
    """The lines of the table, row by row: the declared learning rates, then a chosen one that is another."""
    found = []
    for row in experiment.rows:
        declared = [] if chooses_itself(experiment) else row.lrs
        chosen = _chosen(runs, experiment, row)
        found += [Line(row, lr, True, lr == chosen) for lr in declared]
        if experiment.chosen_by and chosen not in declared:
            found.append(Line(row, chosen, False, True))
    return found


def chooses_itself(experiment: Experiment) -> bool:
    """Whether the learning rates are chosen on images that the experiment itself holds out."""
    return experiment.chosen_by == experiment.name


def _chosen(runs: Any, experiment: Experiment, row: Row) -> float | None:
    """The learning rate that validation images chose for a row, None where they have not yet."""
    if not chooses_itself(experiment):
        return experiment.chosen.get(row.norm)
    sweep = statistics.sweep_of(runs, experiment, row.norm)
    best = statistics.best_lr(sweep)
    return None if best is None else float(sweep.lrs[best])


def table(rows: Any, experiment: Experiment) -> Any:
    """Frame, a row per :class:`Line`; own errors are fractions, published ones in %; unknown is missing.

    ``runs`` (done) of ``planned``, ``diverged`` of these; over the ``n`` finished ones: ``test_error`` with
    the half-width of its interval, final ``train_error``, p of :data:`BASELINES`, and the relative
    deviation of the training error from the published curve after :data:`EPOCHS`.
    """
    runs = statistics.numeric(rows.runs)
    every = lines_of(rows.runs, experiment)
    curve = curves(rows, experiment)
    errors = [by_seed(runs_of(line, runs), "test_error") for line in every]
    table = []
    for line, own in zip(every, errors, strict=True):
        facts = counts(line, runs, experiment) | _means(line, runs, own)
        for column, norm in BASELINES.items():
            theirs = counterpart(line, every, norm)
            facts[column] = np.nan if theirs is None else statistics.paired_p(own, errors[theirs])
        table.append(_published(line) | facts | _deviations(line, curve, experiment))
    columns = [*TABLE_COLUMNS, *(f"deviation_{epoch}" for epoch in EPOCHS)]
    may_be_missing = dict.fromkeys(["lr", "paper", "rerun", "band_low", "band_high"], "float64")
    return pd.DataFrame(table, columns=columns).astype(may_be_missing)


def _published(line: Line) -> dict[str, Any]:
    row, (low, high) = line.row, line.row.band or (None, None)
    facts = {"row": row.name, "norm": row.norm, "paper": row.paper, "rerun": row.rerun}
    own = {"lr": line.lr, "declared": line.declared, "chosen": line.chosen}
    return facts | own | {"band_low": low, "band_high": high}


def counts(line: Line, runs: Any, experiment: Experiment) -> dict[str, int]:
    """The runs that a line rests on: at its learning rate, and at all where the experiment chooses it."""
    own = runs[runs["norm"] == line.row.norm]
    planned = [cell["optim.lr"] for cell in experiment.cells() if cell["norm"] == line.row.norm]
    if not chooses_itself(experiment):
        own, planned = own[own["optim.lr"] == line.lr], [lr for lr in planned if lr == line.lr]
    return {"runs": len(own), "planned": len(planned), "diverged": int(own["diverged"].sum())}


def _means(line: Line, runs: Any, errors: dict[int, float]) -> dict[str, Any]:
    test = statistics.estimate(np.array(list(errors.values())))
    train = runs_of(line, runs)["train_error"].mean()
    values = {"test_error": test.mean, "test_error_half_width": test.half_width, "train_error": train}
    return {"n": test.n, **values}


def runs_of(line: Line, runs: Any) -> Any:
    """The line's finished runs."""
    return runs[(runs["norm"] == line.row.norm) & (runs["optim.lr"] == line.lr) & (runs["diverged"] == 0)]


def by_seed(runs: Any, column: str) -> dict[int, float]:
    """A column of a line's runs, to be paired with another line's."""
    return dict(zip(runs["seed"].tolist(), runs[column].tolist(), strict=True))


def counterpart(line: Line, every: list[Line], norm: str) -> int | None:
    """Place of the line of another norm at its learning rate of the same kind, declared or chosen."""
    places = [
        i
        for i, other in enumerate(every)
        if other.row.norm == norm and (other.declared if line.declared else other.chosen)
    ]
    return places[0] if places and line.row.norm != norm else None


def _deviations(line: Line, curve: Any, experiment: Experiment) -> dict[str, float]:
    """ours / published - 1 after every epoch of :data:`EPOCHS`; the published curve is interpolated."""
    points = np.array(experiments.published(experiment).get(line.row.name, [])).reshape(-1, 3)[:, :2]
    own = curve[curve["line"] == line.label].set_index("epoch")["train_error"]
    return {
        f"deviation_{epoch}": 100 * float(own[epoch]) / float(np.interp(epoch, *points.T)) - 1
        if len(points) and epoch in own.index
        else np.nan
        for epoch in EPOCHS
    }


def curves(rows: Any, experiment: Experiment) -> Any:
    """Frame, a row per line and epoch: over the finished ``runs``, mean, lowest and highest error (fraction).

    Columns ``train_error``, ``train_error_min``, ``train_error_max``, and likewise ``valid_error``, which is
    missing where nothing is held out.
    """
    runs = statistics.numeric(rows.runs)
    parts = []
    for line in lines_of(rows.runs, experiment):
        own = rows.series[rows.series["run_id"].isin(runs_of(line, runs)["run_id"])]
        part = own.groupby("epoch").agg(
            runs=("run_id", "count"),
            **{
                name + suffix: (name, how)
                for name in ("train_error", "valid_error")
                for suffix, how in (("", "mean"), ("_min", "min"), ("_max", "max"))
            },
        )
        parts.append(part.reset_index().assign(line=line.label, row=line.row.name, lr=line.lr))
    parts = [part for part in parts if len(part)] or parts[:1]
    return pd.concat(parts, ignore_index=True).astype({"epoch": int})
