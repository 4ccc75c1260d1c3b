"""Experiments: one file of data per figure or table, in ``experiments/``.

An experiment names the settings that all its runs share (``fixed``) and which runs there are: every
combination of a ``grid``, or the ``rows`` of a table, each with learning rates of its own, once per seed.
A key is a preset's group (``norm``) or a dotted field (``optim.lr``). A value of a group may have overrides
behind the preset, as on the command line: ``weight_norm norm.eps=1e-5``; norms of a grid may have names, by
which tables and figures call them. :meth:`Experiment.runs` makes configurations of it, and so ``run_id``s: a
record or a committed row counts if its ``run_id`` is among them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import pydantic

from wn.config import PLACES, Config, UserError, decides, nearest, places
from wn.config.compose import Value, compose
from wn.config.errors import explain_file
from wn.config.yaml_files import listed, parse_yaml, read_yaml

FOLDER = places.ROOT / "experiments"

LARGEST = 100_000
"""Runs of an experiment or a sweep; more is taken for a slip."""

Cell = dict[str, Value]
"""What one run has of its own: a value for each of the experiment's axes."""


def _plain(value: Any) -> Any:
    if isinstance(value, dict | list):
        raise ValueError("should be one value; a field in a section is written as optim.lr")
    return value


def _plain_or_list(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, list) else _plain(value)


Plain = Annotated[Any, pydantic.AfterValidator(_plain)]
PlainOrList = Annotated[Any, pydantic.AfterValidator(_plain_or_list)]
Axis = Annotated[
    Annotated[list[Plain], pydantic.Field(min_length=1), pydantic.Tag("values")]
    | Annotated[dict[str, Plain], pydantic.Field(min_length=1), pydantic.Tag("names")],
    pydantic.Discriminator(lambda axis: "names" if isinstance(axis, dict) else "values"),
]
"""Values, or the value of each name."""


def settings_of(key: str, value: Value) -> dict[str, Any]:
    """What a value of an axis sets.

    >>> settings_of("norm", "weight_norm norm.eps=1e-5")
    {'norm': 'weight_norm', 'norm.eps': 1e-05}
    """
    if not isinstance(value, str) or "=" not in value:
        return {key: value}
    preset, *overrides = value.split()
    found: dict[str, Any] = {key: preset}
    for override in overrides:
        field, _, text = override.partition("=")
        if "." not in field or not text:
            raise ValueError(f"{value}: should be a preset, then SECTION.FIELD=VALUE ...")
        found[field] = parse_yaml(text)
    return found


class Part(pydantic.BaseModel):
    """Base of what is read from a file: immutable, and an unknown key is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Row(Part):
    """A row of a table, and what others have published of it: test errors in %."""

    name: str
    norm: str
    lrs: list[float] = pydantic.Field(min_length=1)
    """Learning rates that the paper names."""
    set: dict[str, PlainOrList] = {}
    """Further settings of this row alone."""
    chosen: float | None = None
    """The learning rate that the validation split of ``chosen_by`` selected."""
    paper: float | None = None
    rerun: float | None = None
    """In the rerun of the authors' code by the authors of RMSNorm."""
    band: tuple[float, float] | None = None
    """Where the mean of three seeds or more is expected."""
    curve: str | None = None
    """The published curve that it is held against; null: the one of its name, if there is one."""

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
    fixed: dict[str, PlainOrList]
    grid: dict[str, Axis] = {}
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
        if named := [key for key, axis in self.grid.items() if isinstance(axis, dict) and key != "norm"]:
            raise ValueError(f"grid {named[0]}: should be a list; only the values of norm have names")
        own = math.prod(map(len, self.grid.values())) if self.grid else len(self.seeds) * len(self.rows)
        if own > LARGEST:
            raise ValueError(f"{own:,} runs; an experiment has {LARGEST:,} at most")
        axes, variants = {*self.axes}, self.variants  # these raise where a value is not well formed
        for name, keys in (
            ("fixed", {*self.fixed}),
            *((f"row {row.name}: set", {*row.set}) for row in self.rows),
        ):
            if both := sorted(keys & axes):
                raise ValueError(f"{name}: {both[0]} is an axis of the runs as well; leave out one of them")
        if both := sorted(variants & axes):
            raise ValueError(
                f"{both[0]} is an axis, and set by a value of another one; leave out one of them"
            )
        if places := sorted(key for key in self.fixed if key.partition(".")[0] in PLACES):
            raise ValueError(f"fixed: {places[0]} changes no run; give it on the command line")
        return self

    @property
    def axes(self) -> list[str]:
        return list(self.grid or ("norm", "optim.lr", "seed"))

    @property
    def values(self) -> dict[str, list[Value]]:
        """Of each axis of the grid."""
        return {k: list(axis.values()) if isinstance(axis, dict) else axis for k, axis in self.grid.items()}

    @property
    def labels(self) -> dict[Value, str]:
        """The names of the grid's norms, where it gives them."""
        norms = self.grid.get("norm")
        return {norm: name for name, norm in norms.items()} if isinstance(norms, dict) else {}

    @property
    def variants(self) -> set[str]:
        """The fields that values of the axes set behind a preset."""
        every = self.values or {"norm": [row.norm for row in self.rows]}
        return {k for key in every for one in every[key] for k in settings_of(key, one) if k != key}

    @property
    def own(self) -> set[str]:
        """The fields that some runs alone set: behind a preset, or in a row's ``set``."""
        return self.variants.union(*(row.set for row in self.rows))

    def runs(self, settings: Mapping[str, Any] | None = None) -> list[Run]:
        """Every run, in the order in which they are trained; ``settings`` are above those of the file.

        Raises:
            UserError: the file, or a setting, names a preset, key or value that does not exist; a setting of
                some runs alone decides no number.
        """
        every: list[tuple[Row | None, tuple[Value, ...]]]
        if self.grid:
            every = [(None, values) for values in itertools.product(*self.values.values())]
        else:
            rows = itertools.product(self.seeds, self.rows)
            every = [(row, (row.norm, lr, seed)) for seed, row in rows for lr in row.all_lrs]
        found: dict[str, Run] = {}
        named = {"experiment_name": self.name.rpartition("/")[2], "plugins": self.plugins}
        for row, values in every:
            cell = dict(zip(self.axes, values, strict=True))
            own = {**self.fixed, **(row.set if row else {}), **named}
            for key, value in cell.items():
                own |= settings_of(key, value)
            try:
                config = compose({**own, **(settings or {})})
            except UserError as error:
                raise UserError(f"experiments/{self.name}.yaml: {error}") from None
            run = Run(config, cell, row.name if row else None)
            if (other := found.setdefault(config.run_id, run)) is not run:
                same = " and ".join(
                    ", ".join(f"{k}={v}" for k, v in one.cell.items()) for one in (other, run)
                )
                raise UserError(
                    f"experiments/{self.name}.yaml: {same} are the same run; leave out one of them"
                )
        if idle := sorted(key for key in self.own if not decides(key)):
            why = f"{idle[0]} decides no number: give it in fixed, for all runs alike"
            raise UserError(f"experiments/{self.name}.yaml: {why}")
        return list(found.values())

    @property
    def plugins(self) -> list[str]:
        """The files of code that it names; a path is seen from the folder that holds ``experiments/``."""
        mine = (folder for folder in places.folders(FOLDER) if (folder / f"{self.name}.yaml").is_file())
        root = next(mine, FOLDER).parent
        return [str(root / path) for path in listed(self.fixed.get("plugins", []))]

    def configs(self) -> list[Config]:
        return [run.config for run in self.runs()]


def names() -> list[str]:
    return sorted({path.stem for folder in places.folders(FOLDER) for path in folder.glob("*.yaml")})


def load(name: str) -> Experiment:
    """Read one experiment; UserError if there is none of that name, or its file is not well formed."""
    path, shown = places.find(FOLDER, f"{name}.yaml"), f"experiments/{name}.yaml"
    if not path.exists():
        raise UserError(f"experiment={name}: no file {shown}{nearest(name, names())}")
    tree = read_yaml(path, shown)
    if "name" in tree:
        raise UserError(f"{shown}: name: is that of the file; leave it out")
    try:
        return Experiment.model_validate({"name": name, **tree})
    except pydantic.ValidationError as error:
        raise UserError(f"{shown}: {explain_file(Experiment, error)}") from None


class Point(NamedTuple):
    """A point of a published curve, an error in % or an ELBO in nats; ``bar``: half its error bar."""

    epoch: float
    value: float
    bar: float = math.nan


def published(experiment: Experiment) -> dict[str, list[Point]]:
    """Published curves, by row; UserError if the file that is named is not there, or not well formed."""
    if experiment.curves is None:
        return {}
    shown = f"experiments/{experiment.curves}"
    tree = read_yaml(places.find(FOLDER, experiment.curves), shown)
    try:
        return {row: [Point(*map(float, point)) for point in curve] for row, curve in tree["curves"].items()}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{shown}: {' '.join(str(error).split())}") from None
