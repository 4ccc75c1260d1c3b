"""Experiments: one file of data per figure or table, in ``experiments/``.

An experiment names the settings that all its runs share (``fixed``) and which runs there are: every
combination of a ``grid``, or the ``rows`` of a table, each with learning rates of its own, once per seed.
A key is a preset's group (``norm``) or a dotted field (``optim.lr``). :meth:`Experiment.runs` makes
configurations of it, and so ``run_id``s: a record or a committed row counts if its ``run_id`` is among them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pydantic
import yaml

from wn.config import Config, UserError, nearest, places
from wn.config.compose import Value, compose

FOLDER = places.ROOT / "experiments"

Cell = dict[str, Value]
"""What one run has of its own: a value for each of the experiment's axes."""


class Part(pydantic.BaseModel):
    """Base of what is read from a file: immutable, and an unknown key is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Row(Part):
    """A row of a table, and what others have published of it: test errors in %."""

    name: str
    norm: str
    lrs: list[float] = pydantic.Field(min_length=1)
    """Learning rates that the paper names."""
    set: dict[str, Value] = {}
    """Further settings of this row alone."""
    chosen: float | None = None
    """The learning rate that the validation split of ``chosen_by`` selected."""
    paper: float | None = None
    rerun: float | None = None
    """In the rerun of the authors' code by the authors of RMSNorm."""
    band: tuple[float, float] | None = None
    """Where the mean of three seeds or more is expected."""

    @property
    def all_lrs(self) -> list[float]:
        """The declared learning rates, then the chosen one where it is another."""
        return list(dict.fromkeys([*self.lrs, *([] if self.chosen is None else [self.chosen])]))


class Run(NamedTuple):
    """One run of an experiment: its configuration, its cell, and its row's name (None in a grid)."""

    config: Config
    cell: Cell
    row: str | None


class Experiment(Part):
    """What is claimed, which runs show it, and beside what they are reported."""

    name: str
    title: str
    claim: str
    fixed: dict[str, Value | list[Value]]
    grid: dict[str, list[Value]] = {}
    rows: list[Row] = []
    """In the order in which they are trained: all of them with the first seed, then with the next."""
    seeds: list[int] = []
    chosen_by: str | None = None
    """The experiment on whose validation split the rows' learning rates are chosen; it may be this one."""
    curves: str | None = None
    """A file of published training curves, beside the experiments (see :func:`published`)."""

    @pydantic.model_validator(mode="after")
    def _has_runs(self) -> Experiment:
        if bool(self.grid) == bool(self.rows) or bool(self.rows) != bool(self.seeds):
            raise ValueError("the runs are a grid, or rows and seeds")
        if len({row.name for row in self.rows}) < len(self.rows):
            raise ValueError("two rows have the same name")
        return self

    @property
    def axes(self) -> list[str]:
        return list(self.grid or ("norm", "optim.lr", "seed"))

    def runs(self, settings: Mapping[str, Any] | None = None) -> list[Run]:
        """Every run, in the order in which they are trained; ``settings`` are above those of the file.

        Raises:
            UserError: the file, or a setting, names a preset, key or value that does not exist.
        """
        every: list[tuple[Row | None, tuple[Value, ...]]]
        if self.grid:
            every = [(None, values) for values in itertools.product(*self.grid.values())]
        else:
            rows = itertools.product(self.seeds, self.rows)
            every = [(row, (row.norm, lr, seed)) for seed, row in rows for lr in row.all_lrs]
        found = []
        for row, values in every:
            cell = dict(zip(self.axes, values, strict=True))
            own = {**self.fixed, **(row.set if row else {}), **cell, "experiment_name": self.name}
            try:
                config = compose({**own, **(settings or {})})
            except UserError as error:
                raise UserError(f"experiments/{self.name}.yaml: {error}") from None
            found.append(Run(config, cell, row.name if row else None))
        return found

    def configs(self) -> list[Config]:
        return [run.config for run in self.runs()]


def names() -> list[str]:
    return sorted({path.stem for folder in places.folders(FOLDER) for path in folder.glob("*.yaml")})


def load(name: str) -> Experiment:
    """Read one experiment; UserError if there is none of that name, or its file is not well formed."""
    path = places.find(FOLDER, f"{name}.yaml")
    if not path.exists():
        raise UserError(f"experiment={name}: no file experiments/{name}.yaml{nearest(name, names())}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Experiment.model_validate({"name": name, **tree})
    except (ValueError, yaml.YAMLError, TypeError) as error:
        raise UserError(f"experiments/{name}.yaml: {' '.join(str(error).split())}") from None


class Point(NamedTuple):
    """A point of a published curve, an error in % or an ELBO in nats; ``bar``: half its error bar."""

    epoch: float
    value: float
    bar: float = math.nan


def published(experiment: Experiment) -> dict[str, list[Point]]:
    """Published curves, by row; UserError if the file that is named is not there, or not well formed."""
    if experiment.curves is None:
        return {}
    try:
        curves = yaml.safe_load(places.find(FOLDER, experiment.curves).read_text(encoding="utf-8"))["curves"]
        return {row: [Point(*map(float, point)) for point in curves[row]] for row in curves}
    except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"experiments/{experiment.curves}: {' '.join(str(error).split())}") from None
