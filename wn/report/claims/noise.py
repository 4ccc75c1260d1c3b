"""G1's figure: the tails of the noise of batch statistics, against the batch size."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from wn.report.figures import PLAIN, SMALL, STYLE

TITLE = (
    "Excess kurtosis of the noise that batch statistics put into outputs, against the batch size: 0 where "
    "it is normal"
)
PANELS = {"mlp": "MLP, digits", "convnet": "ConvNet of width 16, CIFAR-10"}
LINES = {"BN": "batch_norm", "MOBN": "mean_only_bn"}
NETWORKS = {"BN": "-", "WN and MOBN": "--"}
HIGH, LINEAR = 3.0, 1.0
TICKS = (-2, -1, -0.5, 0, 0.5, 1, 2, 3, 10, 100, 1000, 10_000)


def noise_figure(rows: pd.DataFrame) -> Figure | None:
    """A panel per family, a line per norm and network: mean over seeds, band from lowest to highest."""
    mine = rows[rows["claim"].eq("G1a") & rows["quantity"].astype(str).str.startswith("kurtosis ")]
    if mine.empty:
        return None
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    for axes, (family, title) in zip(figure.subplots(1, 2, sharey=True), PANELS.items(), strict=True):
        for norm in LINES:
            for network in NETWORKS:
                own = mine[
                    mine["condition"].eq(f"{family}, trained with {network}")
                    & mine["quantity"].eq(f"kurtosis {norm}")
                ]
                if len(own):
                    _line(axes, own, norm, network)
        axes.set_title(title, fontsize=9)
        _scales(axes, sorted(mine["x"].unique()))
    figure.axes[0].set_ylabel("excess kurtosis of the noise")
    handles = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()[:-1]}
    figure.legend(list(handles.values()), list(handles), fontsize=7.5, ncols=2, loc="outside upper center")
    words = (
        "mean of 5 seeds of the median over units and images, band: lowest to highest;\n"
        'dotted: 3, "highly"; scale linear to 1, logarithmic above'
    )
    figure.supxlabel(f"images in a batch\n{words}", **SMALL)
    return figure


def _line(axes: Axes, own: pd.DataFrame, norm: str, network: str) -> None:
    color, marker, _ = STYLE[LINES[norm]]
    by_size = own.groupby("x")["value"].agg(["mean", "min", "max"])
    label = f"noise of {norm}, in a network trained with {network}"
    style: Any = {
        "color": color,
        "marker": marker,
        "linestyle": NETWORKS[network],
        "mfc": "white",
        "label": label,
    }
    axes.plot(by_size.index, by_size["mean"], **style)
    axes.fill_between(by_size.index, by_size["min"], by_size["max"], color=color, alpha=0.15, linewidth=0)


def _scales(axes: Axes, sizes: list[float]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(PLAIN)
    axes.set_yscale("symlog", linthresh=LINEAR)
    axes.yaxis.set_major_locator(FixedLocator(list(TICKS)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PLAIN)
    axes.axhline(HIGH, color="#7f7f7f", linestyle=":", linewidth=1)
