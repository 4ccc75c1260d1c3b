"""Rows of a measurement, and the file of a part: what was measured, by which criterion and which code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
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


def row(condition: str, quantity: str, seed: int, value: float, x: float | None = None) -> Row:
    return Row(condition=condition, quantity=quantity, seed=seed, value=float(value), x=x)


def per_seed(condition: str, quantity: str, values: Iterable[Any], x: float | None = None) -> list[Row]:
    """A row for each of the seeds 0, 1, ..., of numbers or of a one-dimensional array or tensor."""
    return [row(condition, quantity, seed, value, x) for seed, value in enumerate(values)]


def per_quantity(condition: str, seed: int, numbers: Mapping[str, float]) -> list[Row]:
    return [row(condition, quantity, seed, value) for quantity, value in numbers.items()]


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
