"""Which runs a report is about: those of an experiment's file, or those whose records lie in a folder.

A row of a table is a :class:`Group`: runs that differ in learning rate and seed alone. Whatever else differs
between configurations, other than the norm, is a facet and stands before the norm in the row's name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from wn import experiments, presets
from wn.config import Config, VAEConfig, decides
from wn.experiments import Experiment

SECTIONS = ("model", "data", "optim", "trainer", "norm")
NOT_FACETS = {"optim.lr", *(f"norm.{choice}" for choice in presets.DEFAULTS)}
DIMENSIONS = {"digits": 64, "mnist": 784, "fashion_mnist": 784, "cifar10": 3072}
"""D: numbers in an image of a data set."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """What runs are judged by: a classifier's error, or a VAE's ELBO, which is minus its loss."""

    key: str
    """Of the selection metric in a record: ``valid_<key>`` chooses, ``test_<key>`` is reported."""
    column: str
    """What the table calls it, in the units that it shows: % or nats."""
    heading: str
    measured: tuple[str, ...]
    """What a record has of each split."""
    widths: dict[str, tuple[str, float, float]]
    """Usable widths: heading, and a and b of the threshold a + b x best."""
    cut: int
    """Figures show losses up to this many times that before training: some classifiers finish at thousands
    of nats, and VAEs differ by a nat or two among dozens."""
    shift: float = 0.0
    bits: float = math.nan
    """Bits per dimension of a nat of loss; NaN for binary pixels, where they are not customary."""
    digits: int = 2

    def shown(self, name: str, value: float) -> float:
        """A recorded number in the units of tables and figures: errors in %, bounds in nats, higher is better.

        For bytes the paper's bounds, which are positive, are taken as those of a density of images from 0 to
        1: ``shift`` = D ln 256 above the log probability of D bytes.
        """
        if name.endswith("error"):
            return 100 * value
        return value if self.key == "error" or name.endswith("kl") else self.shift - value


def metric_of(config: Config) -> Metric:
    """The metric follows from the model."""
    if not isinstance(config.model, VAEConfig):
        widths = {"width_1pp": ("width +1pp", 0.01, 1.0), "width_x1.5": ("width ×1.5", 0.0, 1.5)}
        return Metric("error", "error_percent", "test error %", ("loss", "error"), widths, cut=4)
    widths = {"width_1nat": ("width 1 nat", 1.0, 1.0), "width_3nats": ("width 3 nats", 3.0, 1.0)}
    parts = ("loss", "reconstruction", "kl")
    elbo = Metric("loss", "elbo", "test ELBO (nats)", parts, widths, cut=1)
    if config.model.likelihood == "bernoulli":
        return elbo
    d = DIMENSIONS[config.data.name]
    return dataclasses.replace(elbo, shift=d * math.log(256), bits=1 / (d * math.log(2)), digits=1)


@dataclasses.dataclass(frozen=True)
class Group:
    """A row of the table."""

    name: str
    facet: tuple[str, ...]
    configs: dict[str, Config]
    """By run_id."""
    row: experiments.Row | None = None
    """Of an experiment that is a list of rows."""

    @cached_property
    def first(self) -> Config:
        return next(iter(self.configs.values()))

    @cached_property
    def norm(self) -> str:
        return self.first.norm.label

    @cached_property
    def lrs(self) -> list[float]:
        """Ascending."""
        return sorted({config.optim.lr for config in self.configs.values()})

    @cached_property
    def seeds(self) -> list[int]:
        return list(dict.fromkeys(config.seed for config in self.configs.values()))

    @cached_property
    def ids(self) -> dict[tuple[float, int], str]:
        """run_id by learning rate and seed."""
        return {(config.optim.lr, config.seed): run_id for run_id, config in self.configs.items()}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The runs that a report is about, whether they are done or not."""

    name: str
    groups: list[Group]
    facets: tuple[str, ...] = ()
    experiment: Experiment | None = None
    suffix: str = ""
    """Of file names, where a folder holds classifiers and VAEs."""

    @property
    def is_sweep(self) -> bool:
        return self.experiment is None or not self.experiment.rows

    @cached_property
    def metric(self) -> Metric:
        return metric_of(self.groups[0].first)

    @cached_property
    def group_of(self) -> dict[str, Group]:
        """By run_id, group after group."""
        return {run_id: group for group in self.groups for run_id in group.configs}

    @cached_property
    def one_lr(self) -> bool:
        """Whether no row has a second learning rate: there is nothing to draw against it."""
        return all(len(group.lrs) == 1 for group in self.groups)


def of_experiment(experiment: Experiment) -> Plan:
    """The runs of an experiment's file."""
    runs = experiment.runs()
    if not experiment.rows:
        groups, facets = _grouped([run.config for run in runs])
        return Plan(experiment.name, groups, facets, experiment)
    groups = []
    for row in experiment.rows:
        configs = {run.config.run_id: run.config for run in runs if run.row == row.name}
        groups.append(Group(row.name, (), configs, row))
    return Plan(experiment.name, groups, (), experiment)


def of_configs(name: str, configs: Iterable[Config]) -> list[Plan]:
    """The runs that lie in a folder: one plan, or one for classifiers and one for VAEs."""
    families: dict[str, list[Config]] = {}
    for config in configs:
        families.setdefault(metric_of(config).key, []).append(config)
    plans = []
    for key, family in sorted(families.items()):
        groups, facets = _grouped(sorted(family, key=lambda config: (config.seed, config.optim.lr)))
        norms = list(presets.PRESETS)
        groups.sort(
            key=lambda g: (list(map(_natural, g.facet)), norms.index(g.norm) if g.norm in norms else 99)
        )
        suffix = "-elbo" if key == "loss" and len(families) > 1 else ""
        plans.append(Plan(name, groups, facets, suffix=suffix))
    return plans


def settings(config: Config) -> dict[str, str]:
    """All that decides a run's numbers, but for learning rate and seed, as text; the norm by its label."""
    tree = config.model_dump(mode="json")
    pairs = ((f"{section}.{key}", value) for section in SECTIONS for key, value in tree[section].items())
    flat = {key: _text(value) for key, value in pairs if decides(key) and key not in NOT_FACETS}
    names_first = sorted(flat, key=lambda key: not key.endswith(".name"))
    return {"norm": config.norm.label, **{key: flat[key] for key in names_first}}


def facets_of(every: list[dict[str, str]]) -> tuple[str, ...]:
    """The fewest settings that tell the runs apart as all settings do, in their order.

    A setting that follows from earlier ones (the initial weights of another model) is none.
    """

    def parts(keys: list[str]) -> int:
        return len({tuple(one.get(key) for key in keys) for one in every})

    kept: list[str] = []
    for key in dict.fromkeys(key for one in every for key in one if key != "norm"):
        known = [*kept, "norm"] if key.startswith("norm.") else kept
        if parts([key]) > 1 and parts([*known, key]) > parts(known):
            kept.append(key)
    return tuple(kept)


def _grouped(configs: list[Config]) -> tuple[list[Group], tuple[str, ...]]:
    every = [settings(config) for config in configs]
    facets = facets_of(every)
    groups: dict[tuple[str, ...], dict[str, Config]] = {}
    for config, one in zip(configs, every, strict=True):
        key = (*(one.get(facet, "–") for facet in facets), one["norm"])
        groups.setdefault(key, {})[config.run_id] = config
    named = {key: [f"{f}={value}" for f, value in zip(facets, key, strict=False)] for key in groups}
    return [Group(", ".join([*named[k], k[-1]]), k[:-1], own) for k, own in groups.items()], facets


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _natural(text: str) -> tuple[bool, float, str]:
    """Numbers in their order, then words in theirs."""
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text
