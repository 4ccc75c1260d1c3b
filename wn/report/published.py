"""Training curves beside those that the paper has published: how far from its figure 1, and what that shows.

A row is *on the curve* if its mean over the seeds is within 15% of the published curve at epochs 20, 50, 100
and 150, and its mean signed difference from that curve's points is at most 0.7 percentage points. The same is
asked of every published curve against every other: a criterion that cannot tell two of them apart says
nothing about these two.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wn.report.collect import Rows
from wn.report.columns import in_markdown
from wn.report.curves import curves_of
from wn.report.plan import Plan

Curve = NDArray[np.float64]
"""Points [epoch, error in %], by ascending epoch."""

EPOCHS = (20, 50, 100, 150)
RATIO, POINTS = 0.15, 0.7


class Distance(NamedTuple):
    """From a published curve: mean signed difference over its points, in percentage points; the ratio less 1
    at each of :data:`EPOCHS` that both curves reach."""

    points: float
    ratios: list[float]

    @property
    def on(self) -> bool:
        return bool(self.ratios) and abs(self.points) <= POINTS and max(map(abs, self.ratios)) <= RATIO


def distance(ours: Curve, theirs: Curve) -> Distance:
    """How far a curve is from a published one, both taken as straight between their points."""
    first, last = (pick(ours[end, 0], theirs[end, 0]) for pick, end in ((max, 0), (min, -1)))
    shared = theirs[(theirs[:, 0] >= first) & (theirs[:, 0] <= last)]
    points = np.interp(shared[:, 0], *ours.T) - shared[:, 1]
    epochs = [epoch for epoch in EPOCHS if first <= epoch <= last]
    ratios = [float(np.interp(e, *ours.T) / np.interp(e, *theirs.T) - 1) for e in epochs]
    return Distance(float(points.mean()) if len(points) else np.nan, ratios)


def section(plan: Plan, rows: Rows) -> str:
    """A table of all rows with a published curve; nothing where there is none."""
    theirs = plan.published
    if plan.metric.key != "error" or not theirs:
        return ""
    curves = {name: np.array(points, dtype=float)[:, :2] for name, points in theirs.items()}
    table = [["row", "n", "mean difference (pp)", *(f"epoch {e}" for e in EPOCHS), "on the paper's curve"]]
    for line, epochs, values in curves_of(plan, rows, "train_error"):
        row = line.group.row
        name = (row and row.curve) or line.group.name
        if name in curves:
            found = distance(np.stack([epochs, values.mean(1)], 1), curves[name])
            ratios = [f"{ratio:+.0%}" for ratio in found.ratios] + ["–"] * (len(EPOCHS) - len(found.ratios))
            verdict = "on" if found.on else "off"
            table.append([line.label, str(values.shape[1]), f"{found.points:+.2f}", *ratios, verdict])
    if len(table) == 1:
        return ""
    told = (
        "Training error beside the paper's figure 1, against the curve of its row. *On*: within "
        f"{RATIO:.0%} at these epochs, and a mean signed difference of at most {POINTS} percentage points."
    )
    return "\n\n".join([told, in_markdown(table), separated(curves)])


def separated(curves: dict[str, Curve]) -> str:
    """Which published curves this criterion tells apart: its negative control."""
    same = [f"{a} and {b}" for a, b in combinations(curves, 2) if distance(curves[a], curves[b]).on]
    pairs = len(curves) * (len(curves) - 1) // 2
    told = f"By the same rule {len(same)} of the {pairs} pairs of published curves lie on each other"
    return f"{told}: {'; '.join(same)}." if same else f"{told}."
