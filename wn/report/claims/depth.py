"""The figure of initialisation in depth: gradients on their way back, images on their way forward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wn.claims.predictions import predicted_factor
from wn.report.figures import OTHERS, PLAIN, STYLE

TITLE = "Initialisation in depth: gradient of the first hidden layer over that of the last, images alike"
STARTS = {  # the last is drawn on top: its line lies on batch normalisation's
    "batch_norm": ("batch normalisation", STYLE["batch_norm"], 9),
    "he": ("He", STYLE["none"], 5),
    "arpit": ("Arpit et al.", STYLE["arpit_weight_norm"], 5),
    "stale": ("from data, all layers at once", (OTHERS[0], "x", ":"), 5),
    "data": ("from data", STYLE["weight_norm_init"], 5),
}
COLUMNS = {  # condition of E2b, of E2a, kind
    "plain": ("mlp, plain, ReLU", "mlp, plain", "plain"),
    "3x3 convolutions": ("convnet, plain, ReLU", "convnet, plain", "convolutional"),
    "residual": ("mlp, residual, ReLU", "mlp, residual", "residual"),
}
PREDICTED: Any = {"color": "#888888", "linestyle": "--", "linewidth": 3, "alpha": 0.5}
DEPTHS = (2, 5, 10, 20, 50)


def depth_figure(rows: pd.DataFrame) -> Figure | None:
    """Lines: means over seeds (of logarithms, of ratios); dashed grey: the prediction."""
    if not {"E2a", "E2b"} <= set(rows["claim"]):
        return None
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    axes = figure.subplots(2, len(COLUMNS), sharex=True, sharey="row")
    for (title, (backward, forward, kind)), (upper, lower) in zip(COLUMNS.items(), axes.T, strict=True):
        ratios = rows[(rows["claim"] == "E2b") & (rows["condition"] == backward)]
        images = rows[(rows["claim"] == "E2a") & (rows["condition"] == forward)]
        _lines(upper, ratios, "gradient ratio", geometric=True)
        _lines(lower, images, "correlation", geometric=False)
        expected = [predicted_factor(kind, depth, "relu") ** (depth - 1) for depth in DEPTHS]
        upper.plot(DEPTHS, expected, **PREDICTED, zorder=1)
        upper.set(title=title, xscale="log", yscale="log", ylim=(1e-2, 1e8))
        lower.set(xlabel="hidden layers", ylim=(-0.1, 1.05))
        lower.set_xticks(DEPTHS, minor=False)
        lower.xaxis.set_major_formatter(PLAIN)
        lower.minorticks_off()
    axes[0, 0].set_ylabel("gradient, first layer / last")
    axes[1, 0].set_ylabel("cosine between images")
    axes[0, 0].plot([], [], **PREDICTED, label="predicted, from data")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=6,
        columnspacing=1.2,
        frameon=False,
    )
    return figure


def _lines(axes: Axes, rows: pd.DataFrame, quantity: str, geometric: bool) -> None:
    for start, (label, (color, marker, line), size) in STARTS.items():
        own = rows[rows["quantity"] == f"{quantity}, {start}"].replace([np.inf, -np.inf], np.nan)
        own = own.dropna(subset="value")
        values = np.log(own["value"]) if geometric else own["value"]
        means = values.groupby(own["x"]).mean()
        means = np.exp(means) if geometric else means
        style: Any = {"color": color, "marker": marker, "linestyle": line}
        axes.plot(means.index, means, mfc="white", ms=size, label=label, **style)
