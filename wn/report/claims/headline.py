"""The headline: how wide the range of usable learning rates is, and what widens it (claims B5 to B7)."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from wn.report.figures import SMALL
from wn.report.statistics import Estimate, estimate

TITLE = (
    "What widens the range of learning rates: with one rate for all parameters weight normalisation is held "
    "against plain weights; with the rate of gains and biases capped, against the same without growth of v"
)

GREY, SKY, BLUE, ORANGE, VERMILION = "#7f7f7f", "#56B4E9", "#0072B2", "#E69F00", "#D55E00"

ARMS: dict[str, tuple[str, str]] = {
    "plain": ("plain weights", GREY),
    "plain, biases capped": ("plain, biases capped", GREY),
    "plain, decay": ("plain, linear decay", GREY),
    "weight norm": ("weight norm, one rate for all", SKY),
    "gains fixed": ("weight norm, g fixed", SKY),
    "gains capped": ("weight norm, g capped", BLUE),
    "capped": ("weight norm, g and b capped", BLUE),
    "capped at 0.03": ("… at 0.03", BLUE),
    "capped at 0.3": ("… at 0.3", BLUE),
    "capped, decay": ("… capped, linear decay", BLUE),
    "capped and held": ("capped, and ‖v‖ cannot grow", ORANGE),
    "capped and held, decay": ("… linear decay", ORANGE),
    "batch norm": ("batch norm, one rate for all", VERMILION),
    "batch norm, capped": ("batch norm, γ and β capped", VERMILION),
    "mean-only batch norm": ("mean-only batch norm, one rate for all", VERMILION),
}
"""Arm -> its name in the figure and its colour."""

STRONG = ("plain", "weight norm", "capped", "capped and held")
"""The four that make the argument; the others are controls, and paler."""

MODELS = {"mlp": "MLP", "mlp on MNIST": "MLP, MNIST", "vae": "VAE", "convnet": "ConvNet"}
OPTIMISERS = ("SGD", "momentum", "Adam", "Adamax")
CLAIMS = ("B6a", "B5", "B6b", "B7", *(f"B{n}{where}" for n in "657" for where in "cm"))
"""Their arms overlap: what several have is of the same records, and one of them may have more controls."""

Widths = dict[tuple[str, str], tuple[Estimate, bool]]


def widths(rows: pd.DataFrame) -> Widths:
    """(condition, arm) -> decades over seeds, and whether the range goes on beyond the grid."""
    rows = rows.drop_duplicates(["condition", "quantity", "seed", "x"])  # several claims share an arm
    parts = rows["quantity"].str.extract(r"^(?P<kind>width|edge) (?P<arm>.+)$")
    mine = rows.assign(**parts)[parts["kind"].notna()]
    return {
        (str(condition), str(arm)): (estimate(group["value"]), bool((group["kind"] == "edge").any()))
        for (condition, arm), group in mine.groupby(["condition", "arm"], sort=False)
    }


def headline(rows: pd.DataFrame) -> Figure | None:
    """A row of panels per model and one per optimiser; a bar per arm, with its interval."""
    if (mine := rows[rows["claim"].isin(CLAIMS)]).empty:
        return None
    found = widths(mine)
    conditions = {condition for condition, _ in found}
    optimisers = [name for name in OPTIMISERS if any(c.endswith(f", {name}") for c in conditions)]
    models = [model for model in MODELS if any(c.startswith(f"{model}, ") for c in conditions)]
    arms = [
        [arm for arm in ARMS if any((f"{model}, {optimiser}", arm) in found for optimiser in optimisers)]
        for model in models
    ]
    heights = [0.7 + 0.15 * len(own) for own in arms]
    figure = Figure(figsize=(2.3 + 1.95 * len(optimisers), 0.8 + sum(heights)), layout="constrained")
    shape = len(models), len(optimisers)
    grid = figure.subplots(*shape, sharex=True, sharey="row", squeeze=False, height_ratios=heights)
    for line, model, own in zip(grid, models, arms, strict=True):
        for axes, optimiser in zip(line, optimisers, strict=True):
            axes.tick_params(labelbottom=True)  # a panel below it may be missing
            if f"{model}, {optimiser}" not in conditions:
                axes.set_axis_off()
                continue
            _panel(axes, found, f"{model}, {optimiser}", own)
            axes.set_title(f"{MODELS[model]}, {optimiser}", fontsize=9)
        line[0].set_yticks(range(len(own)), [ARMS[arm][0] for arm in own])
        line[0].set_ylim(len(own) - 0.4, -0.6)
        for arm, text in zip(own, line[0].get_yticklabels(), strict=True):
            text.set(fontsize=7.5, fontweight="bold" if arm in STRONG else "normal")
    grid[0, 0].xaxis.set_major_locator(MultipleLocator(2))
    grid[0, 0].set_xlim(left=0)
    figure.supxlabel(
        "decades of learning rate in which validation loss stays near the arm's best (MLP: within 1.5 times "
        "it, VAE: within 1 nat), or\nthe error does: on MNIST within a percentage point, in the ConvNet it "
        "keeps half of what the arm's best has over chance.\nCapped at c: learns at min(lr, c), c = 0.1, in "
        "the ConvNet 0.01. Line: 95% interval over seeds; dashed: plain weights;\n"
        "triangle: in range at an end of the grid, so wider than drawn",
        **SMALL,
    )
    return figure


def _panel(axes: Axes, found: Widths, condition: str, arms: list[str]) -> None:
    for place, arm in enumerate(arms):
        color = ARMS[arm][1]
        width, edge = found.get((condition, arm), (None, False))
        if width is None:
            continue
        axes.barh(place, width.mean, 0.74, color=color, alpha=1 if arm in STRONG else 0.45, linewidth=0)
        if edge:
            axes.plot(width.mean, place, ">", color=color, markersize=6, clip_on=False)
        elif width.half_width > 0:
            axes.errorbar(width.mean, place, xerr=width.half_width, color="black", linewidth=0.9)
    if plain := found.get((condition, "plain")):
        axes.axvline(plain[0].mean, color=GREY, linestyle="--", linewidth=0.9)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
