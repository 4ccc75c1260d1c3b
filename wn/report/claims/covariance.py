"""Figures of section 2.1's covariances and of batch against weight normalisation."""

from __future__ import annotations

import pandas as pd
import scipy.special
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wn.report.figures import PLAIN, SMALL, STYLE, log_scale

ALIGNMENT = "How much of w lies along the first eigenvectors of its gradient's covariance"
SPREAD = "Spread of batch normalisation's scale over ||v||, by layer and by position"

WN, BN = STYLE["weight_norm"][0], STYLE["batch_norm"][0]
EPOCHS = {0: "#9ecae1", 1: "#6baed6", 10: "#3182bd", 30: "#08519c"}
"""Of the network that is looked at, pale to dark."""

TOP = 5  # eigenvectors that the weaker reading is about
BORDER = 8  # rows of places that are shown


def covariance(rows: pd.DataFrame) -> Figure | None:
    """How much of w lies along C's first eigenvector, and along the first five, layer by layer."""
    mine = rows[rows["claim"] == "C1"]
    conditions = [c for c in dict.fromkeys(mine["condition"]) if not c.endswith("steps")]
    if not conditions:
        return None
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots(2, len(conditions), sharex="col", sharey="row", squeeze=False)
    for column, condition in zip(axes.T, conditions, strict=True):
        own = mine[mine["condition"] == condition]
        column[0].set_title(condition.split(",")[0])
        for axis, word, vectors in zip(column, ("cos2", "energy"), (1, TOP), strict=True):
            _points(axis, own, word, vectors)
    for line, threshold in zip(axes, (0.5, 0.3), strict=True):
        for axis in line:
            axis.axhline(threshold, color="#444444", linewidth=0.8, linestyle="--")
    axes[0, 0].set_ylabel("cos²(w, first eigenvector)")
    axes[1, 0].set_ylabel(f"share of w in the first {TOP}")
    axes[0, 0].legend(fontsize=7, ncols=2, title="epoch", title_fontsize=7)
    figure.supxlabel(
        "median over a layer's units, mean and lowest to highest of the seeds; black: a random direction\n"
        "(its median); dashed: what would be close (cos² of .5), or weakly so (.3)",
        **SMALL,
    )
    return figure


def _points(axis: Axes, rows: pd.DataFrame, word: str, vectors: int) -> None:
    """A group of points for each layer, one for each time, and what a random direction's median is."""
    layers = [q.removeprefix("cos2 of ") for q in dict.fromkeys(rows["quantity"]) if q.startswith("cos2 of ")]
    for i, (epoch, color) in enumerate(EPOCHS.items()):
        for place, layer in enumerate(layers):
            values = rows[(rows["quantity"] == f"{word} of {layer}") & (rows["x"] == epoch)]["value"]
            x = place + (i - (len(EPOCHS) - 1) / 2) * 0.2
            axis.plot(x, values.mean(), "o", color=color, label=f"{epoch}" if place == 0 else None)
            axis.plot([x, x], [values.min(), values.max()], color=color, linewidth=1.2)
    for place, layer in enumerate(layers):
        d = 1 / rows[rows["quantity"] == f"random of {layer}"]["value"].mean()
        random = scipy.special.betaincinv(vectors / 2, (d - vectors) / 2, 0.5)
        axis.plot([place - 0.42, place + 0.42], [random, random], color="#000000", linewidth=1.6)
    axis.set_xticks(range(len(layers)), layers)
    log_scale(axis)
    axis.set_ylim(3e-4, 1.2)


def batch_norm(rows: pd.DataFrame) -> Figure | None:
    """Spread of sigma_BN/||v|| by layer, and how far it is from 1 by distance from the border."""
    mine = rows[rows["claim"] == "D2"]
    if mine.empty:
        return None
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.35, 1])
    names, place = [], 0
    for family in ("mlp", "convnet"):
        of_family = mine[mine["condition"].str.startswith(family)]
        layers = [
            q.removeprefix("cv of ") for q in dict.fromkeys(of_family["quantity"]) if q.startswith("cv of ")
        ]
        for layer in layers:
            for shift, word, color in ((-0.2, "at the start", "#9ecae1"), (0.2, "trained", WN)):
                values = of_family[
                    of_family["condition"].str.endswith(word) & (of_family["quantity"] == f"cv of {layer}")
                ]["value"]
                left.bar(place + shift, values.mean(), 0.4, color=color, label=word if place == 0 else None)
                left.plot([place + shift] * 2, [values.min(), values.max()], color="#444444", linewidth=0.8)
            names.append(layer)
            place += 1
        place += 1
        names.append("")
    left.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=7.5)
    left.axhline(0.3, color="#444444", linewidth=0.8, linestyle="--")
    left.axhline(0.1, color="#444444", linewidth=0.8, linestyle=":")
    left.set_ylabel("spread of σ(BN)/‖v‖ over units (CV)")
    left.set_title("layers of an MLP, and of a ConvNet", fontsize=9)
    left.legend(fontsize=7)
    _profile(right, mine)
    figure.supxlabel(
        "mean and lowest to highest of the seeds; inputs ZCA-whitened; dashed: a poor approximation (.3), "
        "dotted: a good one (.1)",
        **SMALL,
    )
    return figure


def _profile(axis: Axes, rows: pd.DataFrame) -> None:
    own = rows[rows["condition"] == "convnet, at the start"]
    for name, color, marker in (("conv1", WN, "o"), ("conv2", BN, "s")):
        values = own[own["quantity"] == f"deviation by row, {name}"]
        lines = values.groupby("x")["value"].agg(["mean", "min", "max"]).iloc[:BORDER]
        axis.plot(lines.index, lines["mean"], color=color, marker=marker, mfc="white", label=name)
        axis.fill_between(lines.index, lines["min"], lines["max"], color=color, alpha=0.15, linewidth=0)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("rows from the upper border")
    axis.set_ylabel("mean of |σ(BN)/‖v‖ − 1|")
    axis.set_title("by position, at the start", fontsize=9)
    axis.yaxis.set_major_formatter(PLAIN)
    axis.legend(fontsize=7)
