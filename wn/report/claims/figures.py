"""Figures of the claims, from their rows: one for each family that a reader would rather look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from wn.report.claims import covariance, depth, growth, headline, noise
from wn.report.claims.collect import COLUMNS, Found
from wn.report.figures import house_style, save

Draw = Callable[[pd.DataFrame], Figure | None]

FIGURES: dict[str, tuple[str, Draw]] = {
    "headline": (headline.TITLE, headline.headline),
    "growth": (growth.TITLE, growth.draw),
    "covariance": (covariance.ALIGNMENT, covariance.covariance),
    "batch_norm": (covariance.SPREAD, covariance.batch_norm),
    "depth": (depth.TITLE, depth.depth_figure),
    "noise": (noise.TITLE, noise.noise_figure),
}
"""File name -> title, and what draws it of all rows (with a column ``claim``); None where it has none."""


def draw(found: Sequence[Found], folder: Path) -> dict[str, str]:
    """Draw what can be drawn into a folder: names of the files, and titles."""
    frames = [one.rows.assign(claim=one.claim.id) for one in found if len(one.rows)]
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*COLUMNS, "claim"])
    drawn = {}
    with house_style():
        for name, (title, function) in FIGURES.items():
            if figure := function(rows):
                save(figure, folder / f"{name}.svg")
                drawn[name] = title
    return drawn
