"""Arrays in, numbers out: the best learning rate, how wide the usable range is, and how sure that is.

A seed counts for a row once its run at every learning rate of the row is done, so that no number compares
unequal sets of runs. A diverged run is done: it counts at its initial loss where losses are averaged over
learning rates, and as worse than any finished run where a learning rate is chosen.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.special  # scipy.stats takes half a second to import
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

ROUNDING = 1e-9
"""Two means closer than this differ by the rounding of sums, not by an image."""

ENOUGH = 3
"""Seeds that it takes to say whether a mean is where it was expected."""


class Sweep(NamedTuple):
    """One row's runs: L learning rates (L,), ascending, by the S seeds that are complete.

    ``stable`` (L,): whether no seed diverged. The others are (L, S): ``valid``, the selection metric, and
    ``valid_loss`` (nats), final and infinite where the run diverged; the same two before training.
    """

    lrs: Array
    seeds: list[int]
    stable: NDArray[np.bool_]
    valid: Array
    valid_loss: Array
    initial: Array
    initial_loss: Array


class Estimate(NamedTuple):
    """A mean, and half the width of its Student interval, 95% unless said otherwise: NaN where n < 2."""

    mean: float
    half_width: float
    n: int


def estimate(values: ArrayLike, tail: float = 0.025) -> Estimate:
    """Mean of independent values (n,), with its interval t(1 - tail, n - 1) s / sqrt(n)."""
    x = np.asarray(values, dtype=float)
    mean = float(x.mean()) if len(x) else np.nan
    if len(x) < 2 or not np.isfinite(mean):
        return Estimate(mean, np.nan, len(x))
    error = x.std(ddof=1) / np.sqrt(len(x))
    return Estimate(mean, float(scipy.special.stdtrit(len(x) - 1, 1 - tail) * error), len(x))


def paired_p(differences: ArrayLike) -> float:
    """p of the two-sided paired t test; NaN below two differences or without any spread."""
    d = np.asarray(differences, dtype=float)
    if len(d) < 2 or not np.isfinite(d).all() or np.ptp(d) < ROUNDING:
        return np.nan
    t = d.mean() / (d.std(ddof=1) / np.sqrt(len(d)))
    return float(2 * scipy.special.stdtr(len(d) - 1, -abs(t)))


def best_lr(sweep: Sweep) -> int | None:
    """Index of the learning rate with the lowest validation mean; ties by loss, then the smaller.

    None where some seed diverged at every learning rate: such a rate is never the best. The only rate of a
    row needs no validation images.
    """
    if not sweep.seeds or not sweep.stable.any():
        return None
    if len(sweep.lrs) == 1:
        return 0
    means = np.round(sweep.valid.mean(axis=1) / ROUNDING)
    best = int(np.lexsort((sweep.valid_loss.mean(axis=1), means))[0])
    return best if np.isfinite(means[best]) else None


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


def holm(ps: ArrayLike) -> Array:
    """p of a family of tests, corrected by Holm (1979); NaN stays, and is none of the family.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(ps, dtype=float)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN is sorted last
    corrected = np.full(len(p), np.nan)
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else steps
    return corrected
