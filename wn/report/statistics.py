"""Rows -> numbers: which learning rate is best, how wide the range of usable ones is, how sure that is.

A seed counts for a norm once its run at every learning rate of the grid is done, so that no number of the
table compares unequal sets of runs; a norm without such a seed is pending. A diverged run is done: it counts
at its initial loss, and as worse than any finished run where errors are compared.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import NDArray

from wn.config import UserError
from wn.experiments import Experiment
from wn.report import measures
from wn.report.measures import Measure

Array = NDArray[np.float64]

AXES = {"norm", "optim.lr", "seed"}
BASELINE = "none"
ROUNDING = 1e-9
"""Two means closer than this differ by the rounding of sums, not by an image."""


def check(experiment: Experiment) -> None:
    """See that the grid is one that this report can show.

    Raises:
        UserError: it is not.
    """
    if set(experiment.grid) != AXES:
        raise UserError(
            f"experiments/{experiment.name}.yaml: report lr_robustness needs the grid keys "
            f"{', '.join(sorted(AXES))}; it has {', '.join(sorted(experiment.grid))}"
        )


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One norm's runs: L learning rates, ascending, by the S seeds that are complete."""

    lrs: Array
    """(L,)"""
    seeds: tuple[int, ...]
    diverged: NDArray[np.bool_]
    """(L, S)"""
    valid: Array
    """(L, S): what is measured (an error as a fraction, a loss in nats); infinite where diverged."""
    valid_loss: Array
    """(L, S), nats; infinite where diverged or not finite."""
    initial_loss: Array
    """(L, S), nats: validation loss before training."""
    test: Array
    """(L, S): what is measured, on the test set; read at the chosen learning rate only."""

    @property
    def stable(self) -> NDArray[np.bool_]:
        """(L,): whether no seed diverged."""
        return np.logical_not(self.diverged.any(axis=1))


def sweep_of(runs: Any, experiment: Experiment, norm: str) -> Sweep:
    """A norm's runs as arrays."""
    lrs = sorted({float(cell["optim.lr"]) for cell in experiment.cells() if cell["norm"] == norm})
    rows = numeric(runs[runs["norm"] == norm])

    def array(column: str) -> Any:
        return rows.pivot(index="optim.lr", columns="seed", values=column).reindex(index=lrs)

    done = array("done").notna().all(axis=0)
    seeds = [int(seed) for seed in experiment.values("seed") if done.get(int(seed), False)]
    measure = measures.of(experiment)
    columns = ("diverged", measure.valid, "valid_loss", "initial_valid_loss", measure.test)
    diverged, valid, loss, initial, test = (array(name)[seeds].to_numpy(dtype=float) for name in columns)
    worst = np.where(diverged > 0, np.inf, 0.0)
    return Sweep(
        np.array(lrs),
        tuple(seeds),
        diverged > 0,
        np.nan_to_num(valid, nan=np.inf) + worst,
        np.nan_to_num(loss, nan=np.inf) + worst,
        initial,
        test,
    )


def numeric(runs: Any) -> Any:
    """The runs with learning rates and seeds as numbers, and with ``diverged`` (0 or 1) and ``done`` (1)."""
    return runs.assign(
        **{"optim.lr": runs["optim.lr"].astype(float), "seed": runs["seed"].astype(int)},
        diverged=(runs["status"] == "diverged").astype(float),
        done=1.0,
    )


class Estimate(NamedTuple):
    """A mean, and half the width of its 95% Student interval: NaN where n < 2."""

    mean: float
    half_width: float
    n: int


def estimate(values: Array) -> Estimate:
    """Mean of independent values (n,), with its interval t(0.975, n - 1) s / sqrt(n)."""
    n = len(values)
    mean = float(values.mean()) if n else np.nan
    if n < 2 or not np.isfinite(mean):
        return Estimate(mean, np.nan, n)
    error = float(values.std(ddof=1)) / np.sqrt(n)
    return Estimate(mean, float(scipy.stats.t.ppf(0.975, n - 1) * error), n)


def best_lr(sweep: Sweep) -> int | None:
    """Index of the learning rate with the lowest validation mean; ties by loss, then the smaller.

    None where some seed diverged at every learning rate: such a rate is never the best.
    """
    means = np.round(sweep.valid.mean(axis=1) / ROUNDING) if sweep.seeds else np.array([np.inf])
    if not np.isfinite(means).any():
        return None
    losses = sweep.valid_loss.mean(axis=1)
    return int(np.lexsort((losses, means))[0])


def sensitivity(sweep: Sweep) -> Array:
    """S of every seed (S,), in nats: what a learning rate drawn from the grid costs.

    Mean over the learning rates of min(final, initial) validation loss, less the best of these; a diverged
    run counts at its initial loss. 0 is a norm that is equally good at every learning rate.
    """
    capped = np.minimum(sweep.valid_loss, sweep.initial_loss)
    return np.asarray(capped.mean(axis=0) - capped.min(axis=0))


def usable_width(lrs: Array, error: Array, threshold: float) -> tuple[float, bool]:
    """Decades of learning rate at which the error is at most ``threshold``.

    Between neighbouring learning rates (L,) the mean error (L,) is taken as a straight line over log10 of
    the learning rate. The lengths at or below the threshold are added up, contiguous or not. An infinite
    error (a seed diverged) is above any threshold, and so is all of the way to it.

    Returns:
        The decades, and whether an end of the grid is among them: then the range may go on beyond it.
    """
    inside = error <= threshold
    decades = 0.0
    for i, length in enumerate(np.diff(np.log10(lrs))):
        if inside[i] and inside[i + 1]:
            decades += length
        elif inside[i] or inside[i + 1]:
            low, high = sorted((error[i], error[i + 1]))
            decades += length * (threshold - low) / (high - low)
    return float(decades), bool(inside[0] or inside[-1])


def paired_p(ours: dict[int, float], theirs: dict[int, float]) -> float:
    """p of the paired t test over the seeds that both have; NaN below two seeds or without any spread."""
    seeds = [seed for seed in ours if seed in theirs]
    a, b = (np.array([values[seed] for seed in seeds]) for values in (ours, theirs))
    if len(seeds) < 2 or not np.isfinite(a - b).all() or np.ptp(a - b) < ROUNDING:
        return np.nan
    return float(scipy.stats.ttest_rel(a, b).pvalue)


def table(runs: Any, experiment: Experiment) -> Any:
    """Frame, a row per norm in the order of the grid; errors are fractions, what is not known is missing.

    ``runs`` (done) of ``planned``, ``diverged`` of these; over the ``n`` complete seeds: ``best_lr`` and
    its ``valid_*`` (error or loss, by the measure); ``test_*`` there with the half-width of its interval and
    ``p_vs_none``; ``sensitivity`` likewise; the widths of :attr:`Measure.widths`, which are ``*_open`` where
    they reach an end of the grid; ``largest_stable_lr``: no seed diverged there.
    """
    measure = measures.of(experiment)
    sweeps = {str(norm): sweep_of(runs, experiment, str(norm)) for norm in experiment.grid["norm"]}
    planned = len(experiment.grid["optim.lr"]) * len(experiment.grid["seed"])
    baseline = _test_numbers(sweeps[BASELINE]) if BASELINE in sweeps else {}
    rows = []
    for norm, sweep in sweeps.items():
        own = runs[runs["norm"] == norm]
        row = {"norm": norm, "runs": len(own), "planned": planned, "n": len(sweep.seeds)}
        row |= _row(sweep, measure) | {"diverged": int((own["status"] == "diverged").sum())}
        row["p_vs_none"] = np.nan if norm == BASELINE else paired_p(_test_numbers(sweep), baseline)
        rows.append(row)
    return pd.DataFrame(rows).reindex(columns=_table_columns(measure))


def _table_columns(measure: Measure) -> list[str]:
    return [
        *("norm", "runs", "planned", "diverged", "n", "best_lr", measure.valid),
        *(measure.test, f"{measure.test}_half_width", "p_vs_none", "sensitivity", "sensitivity_half_width"),
        *(name + end for name in measure.widths for end in ("", "_open")),
        "largest_stable_lr",
    ]


def _row(sweep: Sweep, measure: Measure) -> dict[str, Any]:
    """What the table says of a norm by itself."""
    if not sweep.seeds:
        return {}
    row: dict[str, Any] = {}
    if sweep.stable.any():
        row["largest_stable_lr"] = float(np.max(sweep.lrs[sweep.stable]))
    best = best_lr(sweep)
    if best is None:  # there is nothing that the other numbers could be relative to
        return row
    means = sweep.valid.mean(axis=1)
    lowest = float(means[best])
    test, cost = estimate(sweep.test[best]), estimate(sensitivity(sweep))
    row |= {"best_lr": float(sweep.lrs[best]), measure.valid: lowest}
    row |= {measure.test: test.mean, f"{measure.test}_half_width": test.half_width}
    row |= {"sensitivity": cost.mean, "sensitivity_half_width": cost.half_width}
    for name, (_, threshold) in measure.widths.items():
        decades, is_open = usable_width(sweep.lrs, means, threshold(lowest) + ROUNDING)
        row |= {name: decades, f"{name}_open": is_open}
    return row


def _test_numbers(sweep: Sweep) -> dict[int, float]:
    """What the test set gives every seed at the norm's best learning rate."""
    best = best_lr(sweep)
    return {} if best is None else dict(zip(sweep.seeds, sweep.test[best].tolist(), strict=True))


def curves(runs: Any, experiment: Experiment) -> Any:
    """Frame, a row per norm and learning rate with a run that is done, in the order of the grid.

    ``runs`` of which ``diverged``; median ``initial_loss`` before training; over the seeds that did not
    diverge, median, lowest and highest final validation ``loss`` (nats; ``loss_min``, ``loss_max``) and,
    where it is measured, ``error`` (fraction; ``error_min``, ...).
    """
    drawn = measures.of(experiment).drawn
    rows = numeric(runs)
    rows = rows.assign(**{name: rows[f"valid_{name}"].where(rows["diverged"] == 0) for name in drawn})
    groups = rows.groupby(["norm", "optim.lr"], sort=False)
    frame = groups.agg(
        runs=("done", "count"),
        diverged=("diverged", "sum"),
        initial_loss=("initial_valid_loss", "median"),
        **{
            name + suffix: (name, how)
            for name in drawn
            for suffix, how in (("", "median"), ("_min", "min"), ("_max", "max"))
        },
    ).reset_index()
    return frame.rename(columns={"optim.lr": "lr"}).astype({"diverged": int})
