"""Figures of the claims, from their rows: one for each family that a reader would rather look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from wn.report import claims_covariance
from wn.report.claims.collect import Found
from wn.report.figures import house_style, save

Draw = Callable[[pd.DataFrame], Figure | None]

FIGURES: dict[str, Draw] = {
    "covariance": claims_covariance.covariance,
    "batch_norm": claims_covariance.batch_norm,
}
"""File name -> what draws it from all rows (with a column ``claim``); None where its rows are not there."""

TITLES: dict[str, str] = {
    "covariance": "How much of w lies along the first eigenvectors of its gradient's covariance",
    "batch_norm": "Spread of batch normalisation's scale over ||v||, by layer and by position",
}


def draw(found: Sequence[Found], folder: Path) -> list[str]:
    """Draw what can be drawn into a folder; the names of the files."""
    frames = [one.rows.assign(claim=one.claim.id) for one in found if len(one.rows)]
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["claim"])
    drawn = []
    with house_style():
        for name, function in FIGURES.items():
            figure = function(rows)
            if figure is not None:
                save(figure, folder / name)
                drawn.append(name)
    return drawn
