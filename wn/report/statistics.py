"""Arrays in, numbers out: the best learning rate, how wide the usable range is, and how sure that is.

A seed counts for a row once its run at every learning rate of the row is done, so that no number compares
unequal sets of runs. A diverged run is done: it counts at its initial loss where losses are averaged over
learning rates, and as worse than any finished run where a learning rate is chosen.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import scipy.special
from numpy.typing import NDArray

Array = NDArray[np.float64]

ROUNDING = 1e-9
"""Two means closer than this differ by the rounding of sums, not by an image."""

ENOUGH = 3
"""Seeds that it takes to draw an interval, or to say whether a mean is where it was expected."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One row's runs: L learning rates, ascending, by the S seeds that are complete."""

    lrs: Array
    """(L,)"""
    seeds: tuple[int, ...]
    diverged: NDArray[np.bool_]
    """(L, S)"""
    valid: Array
    """(L, S): the selection metric, an error as a fraction or a loss in nats; infinite where diverged."""
    valid_loss: Array
    """(L, S), nats; infinite where diverged or not finite."""
    initial_loss: Array
    """(L, S), nats: validation loss before training."""
    test: Array
    """(L, S): the metric on the test set; read at the chosen learning rate only."""

    @property
    def stable(self) -> NDArray[np.bool_]:
        """(L,): whether no seed diverged."""
        return np.logical_not(self.diverged.any(axis=1))


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
    return Estimate(mean, float(scipy.special.stdtrit(n - 1, 0.975) * error), n)


def paired_p(ours: dict[int, float], theirs: dict[int, float]) -> float:
    """p of the two-sided paired t test over the seeds of both; NaN below two seeds or without any spread."""
    seeds = [seed for seed in ours if seed in theirs]
    d = np.array([ours[seed] - theirs[seed] for seed in seeds])
    if len(seeds) < 2 or not np.isfinite(d).all() or np.ptp(d) < ROUNDING:
        return np.nan
    t = d.mean() / (d.std(ddof=1) / np.sqrt(len(d)))
    return float(2 * scipy.special.stdtr(len(d) - 1, -abs(t)))


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
    run counts at its initial loss. 0 is a norm that is equally good at every learning rate. (The learning
    rate sensitivity of Wortsman et al., 2023, arXiv:2309.14322, with the loss of each seed.)
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
