"""What stands out of a report card, in sentences that follow from its numbers by rules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wn.report.card.families import FAMILIES, Family
from wn.report.columns import missing
from wn.report.statistics import Estimate

ALPHA = 0.05
SLOW = 1.05  # a step's time, in multiples of plain weights', that is worth a sentence


def standing_out(families: Sequence[Family]) -> list[str]:
    """What a reader should know first: sentences that follow from the numbers by rules."""
    said = [sentence for family in families for sentence in _of_metric(family)]
    if not said:
        compared = [n for family in families for line in family.table[1:] if (n := line["difference"].n)]
        none = "not compared, as this norm, or every other, has no best learning rate"
        if compared:
            few = f"n = {min(compared)} shows only large ones"
            none = f"nowhere a significant difference to another; {few}"
        said.append(f"Best metric: {none}.")
    said += [sentence for family in families for sentence in _of_robustness(family)]
    steps = {FAMILIES[f.name]: (f.table[0]["step"], f.table[0]["step_half_width"]) for f in families}
    slow = [f"{ratio:.2f} ({where})" for where, (ratio, half) in steps.items() if ratio - half > SLOW]
    if slow:
        said.append(f"A step takes longer than with plain weights, by a factor of {', '.join(slow)}.")
    return said


def _of_metric(family: Family) -> list[str]:
    unit, better = ("points", -1) if family.plan.metric.key == "error" else ("nats", 1)
    said = []
    for line in family.table[1:]:
        apart: Estimate = line["difference"]
        if line["p"] < ALPHA:
            word = "better" if better * apart.mean > 0 else "worse"
            by = f"{abs(apart.mean):.2f} ± {apart.half_width:.2f} {unit}, p {line['p']:.3f}"
            said.append(
                f"**{FAMILIES[family.name]}: {word} than {line['norm']}** at the best rate of each ({by})."
            )
    return said


def _of_robustness(family: Family) -> list[str]:
    mine, *others = family.table
    where, said = FAMILIES[family.name], []
    if mine["diverged"] == mine["runs"]:
        return [f"**{where}: every run diverged.**"]
    if mine["n"] and missing(mine["lr"]):
        said.append(f"**{where}: some seed diverged at every learning rate**, so that none is its best.")
    for word, sign in (("less", -1), ("more", 1)):
        found = [
            f"{line['norm']} ({line['sensitivity']:.2f} nats)"
            for line in others
            if line["sensitivity_p"] < ALPHA and sign * (mine["sensitivity"] - line["sensitivity"]) > 0
        ]
        if found:
            own = f"mean regret S {mine['sensitivity']:.2f} nats"
            said.append(f"{where}: {word} sensitive to the learning rate ({own}) than {', '.join(found)}.")
    stable = [line.get("largest_stable_lr", -np.inf) for line in others]
    if mine.get("largest_stable_lr", np.nan) < min(stable):
        said.append(f"{where}: the first to diverge, above a learning rate of {mine['largest_stable_lr']:g}.")
    if mine.get("edge"):
        said.append(
            f"{where}: its best learning rate, {mine['lr']:g}, is the grid's edge: a better may lie beyond."
        )
    return said
