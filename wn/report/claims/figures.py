"""Figures of the claims, from their rows: one for each family that a reader would rather look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from wn.report.claims import covariance, depth, growth, headline, noise
from wn.report.claims.collect import Found
from wn.report.figures import house_style, save

Draw = Callable[[pd.DataFrame], Figure | None]

FIGURES: dict[str, Draw] = {
    "headline": headline.headline,
    "growth": growth.draw,
    "covariance": covariance.covariance,
    "batch_norm": covariance.batch_norm,
    "depth": depth.depth_figure,
    "noise": noise.noise_figure,
}
"""File name -> what draws it from all rows (with a column ``claim``); None where its rows are not there."""

TITLES = {
    "headline": headline.TITLE,
    "growth": growth.TITLE,
    "covariance": "How much of w lies along the first eigenvectors of its gradient's covariance",
    "batch_norm": "Spread of batch normalisation's scale over ||v||, by layer and by position",
    "depth": depth.TITLE,
    "noise": noise.TITLE,
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
