"""Experiments: one file of data per figure or table, in ``experiments/``.

An experiment names the settings that all its runs share (``fixed``), the ``grid`` whose every
combination is a run, and what the report makes of them. A key of ``fixed`` or ``grid`` is a Hydra
override: a group (``norm``) or a dotted field (``optim.lr``).
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from wn.config import UserError, nearest

FOLDER = Path(__file__).parent.parent / "experiments"

Value = str | int | float | bool


class Experiment(pydantic.BaseModel):
    """What is claimed, which runs show it, and how they are reported."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    claim: str
    report: Literal["lr_robustness"]
    fixed: dict[str, Value]
    grid: dict[str, list[Value]]

    @property
    def size(self) -> int:
        """How many runs the grid has."""
        return len(list(self.cells()))

    def cells(self) -> list[dict[str, Value]]:
        """Every combination of the grid, in its order."""
        return [
            dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())
        ]

    def cell_of(self, record: dict[str, Any]) -> dict[str, Value] | None:
        """The cell of the grid that a record (the content of ``record.json``) fills, None for no cell."""
        cell = {key: _setting(record, key) for key in self.grid}
        fixed = all(_setting(record, key) == value for key, value in self.fixed.items())
        on_grid = all(value in self.grid[key] for key, value in cell.items())
        return cell if fixed and on_grid else None


def _setting(record: dict[str, Any], key: str) -> Any:
    """A record's value for a grid key; a group is known by its name, a norm by its preset."""
    if key == "norm":
        return record["norm"]
    value: Any = record["config"]
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value["name"] if isinstance(value, dict) else value


def names() -> list[str]:
    """The experiments there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> Experiment:
    """Read one experiment.

    Raises:
        UserError: there is no such experiment, or its file is not well formed.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.exists():
        raise UserError(f"experiment={name}: no file experiments/{name}.yaml{nearest(name, names())}")
    try:
        return Experiment.model_validate({"name": name, **yaml.safe_load(path.read_text())})
    except (pydantic.ValidationError, yaml.YAMLError, TypeError) as error:
        raise UserError(f"experiments/{name}.yaml: {' '.join(str(error).split())}") from None
