"""Figure of claims B2 and B8: the angle of an update against the learning rate."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wn.report.figures import SMALL, STYLE

ARMS = {
    # quantity       label, style of the norm, line, claim
    "weight normalisation": ("weight normalisation", "weight_norm", "-", "B2"),
    "held weights": ("the same, ‖v‖ held", "weight_norm_init", "--", "B2"),
    "plain weights": ("plain weights", "none", "-", "B2"),
    "batch normalisation": ("batch normalisation", "batch_norm", "-", "B8"),
}
MODELS = {"mlp": "MLP", "vae": "VAE"}
RULES = ("SGD", "momentum", "Adam")

TITLE = (
    "B2, B8: angle between successive directions at the end of training, against the learning rate; filled: "
    "rates that the slope is taken over; grey: proportional to the learning rate; an update that does not "
    "depend on it would be flat"
)
BELOW = (
    "geometric mean and range over seeds; filled: rates of the slope; grey: proportional to the rate;\n"
    "not drawn: rates at which a seed diverged or no longer moves"
)


def draw(rows: pd.DataFrame) -> Figure | None:
    """A panel for each model and rule; None where there are no angles."""
    angles = rows[rows["claim"].isin(["B2", "B8"]) & rows["quantity"].str.startswith("angle of ", na=False)]
    conditions = [c for c in dict.fromkeys(rows["condition"].dropna()) if c in set(angles["condition"])]
    if not conditions:
        return None
    models = [m for m in MODELS if any(c.startswith(m) for c in conditions)]
    rules = [r for r in RULES if any(c.endswith(r) for c in conditions)]
    size = (2.6 * len(rules) + 0.6, 2.3 * len(models) + 1)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(models), len(rules), sharey=True, squeeze=False)
    for row, model in zip(axes, models, strict=True):
        for ax, rule in zip(row, rules, strict=True):
            if f"{model}, {rule}" not in conditions:
                ax.set_axis_off()
                continue
            _panel(ax, rows[rows["condition"] == f"{model}, {rule}"])
            ax.set_title(f"{MODELS[model]}, {rule}", fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("learning rate")
    for ax in axes[:, 0]:
        ax.set_ylabel("angle (radians)")
    figure.supxlabel(BELOW, **SMALL)
    lines = {line.get_label(): line for ax in axes.flat for line in ax.get_lines()}
    shown = [lines[label] for label, *_ in ARMS.values() if label in lines]
    figure.legend(
        handles=shown, loc="outside upper center", ncols=len(shown) if len(rules) > 2 else 2, frameon=False
    )
    return figure


def _panel(ax: Axes, rows: pd.DataFrame) -> None:
    ax.set(xscale="log", yscale="log")
    for quantity, (label, norm, line, claim) in ARMS.items():
        of_claim = rows[rows["claim"] == claim]
        mine = of_claim[of_claim["quantity"] == f"angle of {quantity}"]
        used = set(of_claim[of_claim["quantity"] == f"used of {quantity}"]["x"])
        by_rate = mine.groupby("x")["value"]
        whole = {x: v.to_numpy() for x, v in by_rate if np.isfinite(v).all()}  # no seed diverged
        if not whole:
            continue
        still = whole[min(whole)].min() / 10  # a dead network does not move
        x = [at for at in sorted(whole) if whole[at].min() > still]
        mean = [float(np.exp(np.log(whole[at]).mean())) for at in x]
        color, marker, _ = STYLE[norm]
        ax.fill_between(
            x, [whole[at].min() for at in x], [whole[at].max() for at in x], color=color, alpha=0.15, lw=0
        )
        ax.plot(x, mean, line, color=color, marker=marker, markersize=4, mfc="white", label=label, lw=1.2)
        filled = [(at, y) for at, y in zip(x, mean, strict=True) if at in used]
        ax.plot([at for at, _ in filled], [y for _, y in filled], marker, color=color, markersize=4)
    low, high = ax.get_ylim()
    left, right = ax.get_xlim()
    ax.axline((left, low), slope=None, xy2=(10 * left, 10 * low), color="#bbbbbb", lw=0.8, zorder=0)
    ax.set(xlim=(left, right), ylim=(low, high))
    ax.tick_params(labelsize=SMALL["fontsize"])
