"""How wide a range of learning rates is: decades at which a seed's final validation loss is near the best.

The best is that of the arm with that seed. A difference of widths is paired by seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from wn.claims.rows import Row, per_seed
from wn.report.statistics import Array, usable_width

METRICS = {"mlp on MNIST": "error", "convnet": "error"}
"""The validation metric that is read where it is not the loss."""


def metric_of(condition: str) -> str:
    return METRICS.get(condition.split(", ")[0], "loss")


def tolerated(model: str, best: Array) -> Array:
    """The loss up to which a rate is usable: 1.5 times the best; of a VAE 1 nat above it.

    Digits have a mean image that costs 27.2 nats, 1.1 times the best of these VAEs: within 1.5 of the best a
    decoder that has learnt nothing else would do. On MNIST it is an error, one percentage point above the
    best; of the ConvNet the error that loses half of what the best has over chance, 0.9.
    """
    others = {"vae": best + 1.0, "mlp on MNIST": best + 0.01, "convnet": (best + 0.9) / 2}
    limit = others.get(model, 1.5 * best)
    return np.where(np.isfinite(best), limit, -np.inf)  # with a seed that always diverges no rate is usable


class Grid(NamedTuple):
    """An arm's rates (L,), ascending, and its final validation losses (L, S): infinite where diverged."""

    rates: Array
    losses: Array

    def widths(self, model: str, best: Array | None = None) -> tuple[Array, bool]:
        """Decades (S,), and whether some seed is in range at an end of the grid; ``best``: another arm's."""
        limits = tolerated(model, self.losses.min(axis=0) if best is None else best)
        found = [usable_width(self.rates, self.losses[:, s], limit) for s, limit in enumerate(limits)]
        return np.array([width for width, _ in found]), any(edge for _, edge in found)


class Contrast(NamedTuple):
    """A quantity that is judged, or shown as a control: the width of one arm less that of another."""

    quantity: str
    arm: str
    less: str


def rows_of(
    condition: str,
    grids: dict[str, Grid],
    contrasts: Sequence[Contrast],
    own: Sequence[str] = (),
    evidence: Sequence[str] = (),
) -> list[Row]:
    """Differences by seed; the widths of ``own`` arms, ``edge`` where the grid is too short; losses.

    A difference has no rows where one of its arms is in range at an end of its grid. ``evidence``: the arms
    whose losses are given as well.
    """
    model = condition.split(", ")[0]
    rows: list[Row] = []

    def add(quantity: str, values: Array, x: float | None = None) -> None:
        rows.extend(per_seed(condition, quantity, values, x))

    for quantity, arm, less in contrasts:
        rows += difference(condition, quantity, grids[arm], grids[less])
    for arm in own:
        width, edge = grids[arm].widths(model)
        add(f"edge {arm}" if edge else f"width {arm}", width)
        add(f"best {arm}", grids[arm].losses.min(axis=0))
    for arm in evidence:
        for rate, losses in zip(grids[arm].rates, grids[arm].losses, strict=True):
            add(f"{metric_of(condition)} {arm}", losses, float(rate))
    return rows


def difference(condition: str, quantity: str, one: Grid, other: Grid, best: Array | None = None) -> list[Row]:
    """The width of one arm less that of another; none where one of them is in range at an end of its grid."""
    model = condition.split(", ")[0]
    (width, edge), (less, also) = one.widths(model, best), other.widths(model, best)
    return [] if edge or also else per_seed(condition, quantity, width - less)


def common(condition: str, grids: dict[str, Grid], arm: str, less: str) -> list[Row]:
    """The same difference where both arms are held against the best of the second."""
    name = f"control {arm} less {less}, both held against the best of {less}"
    return difference(condition, name, grids[arm], grids[less], grids[less].losses.min(axis=0))
