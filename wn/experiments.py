"""Experiments: one file of data per figure or table, in ``experiments/``.

An experiment names the settings that all its runs share (``fixed``), which runs there are, and what the
report makes of them. The runs are every combination of a ``grid``, or the ``rows`` of a table, each with
learning rates of its own, once per seed. A key of ``fixed`` or ``grid`` is a Hydra override: a group
(``norm``) or a dotted field (``optim.lr``).
"""

from __future__ import annotations

import csv
import functools
import itertools
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pydantic
import yaml

from wn.config import UserError, nearest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "experiments"
CONFIGS = ROOT / "configs"
RESULTS = ROOT / "results"

Value = str | int | float | bool
Cell = dict[str, Value]
"""What one run has of its own: a value for each of the experiment's axes."""


class Part(pydantic.BaseModel):
    """Base of what is read from a file: immutable, and an unknown key is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Row(Part):
    """A row of a table, and what others have published of it."""

    name: str
    norm: str
    lrs: list[float] = pydantic.Field(min_length=1)
    """Learning rates that are trained whatever another experiment chooses."""
    paper: float | None = None
    """The paper's test error, %."""
    rerun: float | None = None
    """The same in the rerun of the authors' code by the authors of RMSNorm, %."""
    band: tuple[float, float] | None = None
    """Where the mean of three seeds or more is expected, %."""


class Experiment(Part):
    """What is claimed, which runs show it, and how they are reported."""

    name: str
    title: str
    claim: str
    report: Literal["lr_robustness", "classification", "bound"]
    measure: Literal["error", "loss"] = "error"
    """What the runs are judged by: the error of a classifier, the loss of a VAE (minus its bound)."""
    fixed: dict[str, Value | list[Value]]
    grid: dict[str, list[Value]] = {}
    rows: list[Row] = []
    """In the order in which they are trained: all of them with the first seed, then with the next."""
    seeds: list[int] = []
    chosen_by: str | None = None
    """The experiment on whose validation split the rows' learning rates are chosen; it may be this one."""
    chosen: dict[str, float] = {}
    """Those learning rates by norm, as far as the committed table of ``chosen_by`` has them."""
    curves: str | None = None
    """A file of published training curves, beside the experiments (see :func:`published`)."""

    @pydantic.model_validator(mode="after")
    def _has_runs(self) -> Experiment:
        if bool(self.grid) == bool(self.rows) or bool(self.rows) != bool(self.seeds):
            raise ValueError("the runs are a grid, or rows and seeds")
        if len({row.norm for row in self.rows}) < len(self.rows):
            raise ValueError("two rows have the same norm")
        measures = {"classification": "error", "bound": "loss"}
        if self.measure != measures.get(self.report, self.measure):
            raise ValueError(f"report {self.report} needs measure: {measures[self.report]}")
        return self

    @property
    def size(self) -> int:
        """How many runs there are."""
        return len(self.cells())

    @property
    def axes(self) -> list[str]:
        """The keys of a cell."""
        return list(self.grid or ("norm", "optim.lr", "seed"))

    def cells(self) -> list[Cell]:
        """Every run, in the order in which they are trained."""
        if self.grid:
            products = itertools.product(*self.grid.values())
            return [dict(zip(self.grid, values, strict=True)) for values in products]
        return [
            {"norm": row.norm, "optim.lr": lr, "seed": seed}
            for seed in self.seeds
            for row in self.rows
            for lr in self.lrs(row)
        ]

    def lrs(self, row: Row) -> list[float]:
        """A row's own learning rates, then the one chosen for it where that is another."""
        chosen = [self.chosen[row.norm]] if row.norm in self.chosen else []
        return list(dict.fromkeys([*row.lrs, *chosen]))

    def values(self, key: str) -> list[Value]:
        """What the runs have on one axis, each value once."""
        return list(dict.fromkeys(cell[key] for cell in self.cells()))

    def setting(self, key: str) -> Any:
        """What a dotted field is in every run: as fixed here, or as the preset has it; None without one."""
        group, _, field = key.partition(".")
        preset = _preset(group, str(self.fixed.get(group) or _defaults()[group]))
        return self.fixed.get(key, preset.get(field))

    def cell_of(self, record: dict[str, Any]) -> Cell | None:
        """The cell that a record (the content of ``record.json``) fills, None for no cell."""
        found = {key: _setting(record, key) for key in self.axes}
        for cell in self.cells():
            if cell == found:
                settings = {**self.fixed, **cell}
                same = all(_agrees(record, key, value, settings) for key, value in settings.items())
                return cell if same else None
        return None


def _setting(record: dict[str, Any], key: str) -> Any:
    """A record's value for a key; a group is known by its name, a norm by its preset."""
    if key == "norm":
        return record["norm"]
    value: Any = record["config"]
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value["name"] if isinstance(value, dict) else value


def _agrees(record: dict[str, Any], key: str, value: Any, settings: dict[str, Any]) -> bool:
    """Whether a record was made with one of the settings. One made with a preset has all that the preset
    says, but for what another of the settings says."""
    section = record["config"].get(key)
    if not isinstance(section, dict):
        return bool(_setting(record, key) == value)
    return all(
        section.get(field, each) == each
        for field, each in _preset(key, value).items()
        if field not in WHERE and f"{key}.{field}" not in settings
    )


WHERE = ("root", "download")
"""Fields that say where files are, and so decide no number."""


@functools.cache
def _preset(group: str, name: str) -> dict[str, Any]:
    preset: dict[str, Any] = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())
    return preset


@functools.cache
def _defaults() -> dict[str, str]:
    """The preset of each group that is not chosen."""
    tree = yaml.safe_load((CONFIGS / "train.yaml").read_text())
    return {
        group: name for default in tree["defaults"] if default != "_self_" for group, name in default.items()
    }


def names() -> list[str]:
    """The experiments there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> Experiment:
    """Read one experiment, and the learning rates that another one has chosen for it.

    Raises:
        UserError: there is no such experiment, or its file is not well formed.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.exists():
        raise UserError(f"experiment={name}: no file experiments/{name}.yaml{nearest(name, names())}")
    try:
        tree = yaml.safe_load(path.read_text())
        chooser = tree.get("chosen_by", name)
        chosen = {} if chooser == name else _chosen_by(chooser)
        return Experiment.model_validate({"name": name, **tree, "chosen": chosen})
    except (ValueError, yaml.YAMLError, TypeError, AttributeError) as error:
        raise UserError(f"experiments/{name}.yaml: {' '.join(str(error).split())}") from None


def _chosen_by(name: str) -> dict[str, float]:
    """The best learning rate of every norm that has all its runs in ``results/<name>/table.csv``.

    Raises:
        ValueError: there is no such experiment.
    """
    if name not in names():
        raise ValueError(f"chosen_by: no experiment {name}{nearest(name, names())}")
    path = RESULTS / name / "table.csv"
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["runs"] == row["planned"] and row["best_lr"]]
    return {row["norm"]: float(row["best_lr"]) for row in rows}


class Point(NamedTuple):
    """A point of a published curve: an error in %, or a bound in nats."""

    epoch: float
    value: float
    bar: float = math.nan
    """Half the height of the error bar that is drawn there."""


def published(experiment: Experiment) -> dict[str, list[Point]]:
    """Published curves, by row; none where the experiment names none.

    Raises:
        UserError: the file that it names is not there, or not well formed.
    """
    if experiment.curves is None:
        return {}
    try:
        curves = yaml.safe_load((FOLDER / experiment.curves).read_text())["curves"]
        return {row: [Point(*map(float, point)) for point in curves[row]] for row in curves}
    except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"experiments/{experiment.curves}: {' '.join(str(error).split())}") from None
