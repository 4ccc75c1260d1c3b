"""Rows of a measurement, and the file of a part: what was measured, by which criterion and which code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypedDict

import pydantic


class Row(TypedDict, total=False):
    """A number of a condition: one a seed where it is judged; ``x`` is the abscissa of a figure's data."""

    condition: str
    quantity: str
    seed: int
    value: float
    x: float | None


class Measured(pydantic.BaseModel):
    """A part's file: its rows, and where they come from."""

    model_config = pydantic.ConfigDict(extra="forbid")

    criterion: str
    commit: str | None
    dirty: bool | None
    device: str
    torch: str
    seconds: float
    rows: list[dict[str, Any]]


def read(path: Path) -> Measured | None:
    """A part that is complete; None where it is not there, or not whole."""
    try:
        return Measured.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        return None
