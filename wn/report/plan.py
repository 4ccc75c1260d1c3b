"""Which runs a report is about: those of an experiment's file, or those whose records lie in a folder.

A row of a table is a :class:`Group`: runs that differ in learning rate and seed alone. Whatever else differs
between configurations, other than the norm, is a facet, and stands before the norm in the row's name.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from wn import experiments, grammar, presets
from wn.config import Config, UserError, VAEConfig, decides

SECTIONS = ("model", "data", "optim", "trainer", "norm")
NOT_FACETS = {"optim.lr", *(f"norm.{choice}" for choice in grammar.DEFAULTS)}
DIMENSIONS = {"digits": 64, "mnist": 784, "fashion_mnist": 784, "cifar10": 3072}  # of an image


class Metric(NamedTuple):
    """What runs are judged by: a classifier's error, or a VAE's ELBO, which is minus its loss.

    ``valid_<key>`` of a record chooses a learning rate, ``test_<key>`` is reported, in the column ``test``.
    Records have ``parts`` of each split. Widths are columns: heading, and a and b of the threshold a + b x
    best. Figures show losses up to ``cut`` times that before training: some classifiers end at thousands of
    nats, while VAEs differ by a nat or two among dozens. ``bits`` per dimension and nat: NaN for binary
    pixels, where they are not customary.
    """

    key: str
    test: str
    heading: str
    parts: tuple[str, ...]
    widths: dict[str, tuple[str, float, float]]
    cut: int
    shift: float = 0.0
    bits: float = math.nan
    digits: int = 2

    def shown(self, name: str, value: Any) -> Any:
        """A recorded number as tables and figures show it: errors in %, bounds in nats.

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
        return Metric("error", "test_error_percent", "test error %", ("loss", "error"), widths, cut=4)
    widths = {"width_1nat": ("width 1 nat", 1.0, 1.0), "width_3nats": ("width 3 nats", 3.0, 1.0)}
    elbo = Metric("loss", "test_elbo", "test ELBO (nats)", ("loss", "reconstruction", "kl"), widths, cut=1)
    if config.model.likelihood == "bernoulli" or config.data.name not in DIMENSIONS:
        return elbo
    d = DIMENSIONS[config.data.name]
    return elbo._replace(shift=d * math.log(256), bits=1 / (d * math.log(2)), digits=1)


class Group:
    """A row of the table: its runs by run_id, and where each stands."""

    def __init__(
        self,
        facet: tuple[str, ...],
        configs: list[Config],
        name: str,
        row: experiments.Row | None = None,
        norm: str | None = None,
    ) -> None:
        self.facet, self.name, self.row = facet, name, row
        self.configs = {config.run_id: config for config in configs}
        self.ids = {(config.optim.lr, config.seed): run_id for run_id, config in self.configs.items()}
        self.first, self.norm = configs[0], norm or configs[0].norm.label
        self.lrs = sorted({lr for lr, _ in self.ids})
        self.seeds = list(dict.fromkeys(seed for _, seed in self.ids))


@dataclasses.dataclass(frozen=True)
class Plan:
    """The runs that a report is about, whether they are done or not."""

    name: str
    groups: list[Group]
    facets: tuple[str, ...] = ()
    experiment: experiments.Experiment | None = None

    @cached_property
    def metric(self) -> Metric:
        return metric_of(self.groups[0].first)

    @cached_property
    def group_of(self) -> dict[str, Group]:
        return {run_id: group for group in self.groups for run_id in group.configs}

    @cached_property
    def published(self) -> dict[str, list[experiments.Point]]:
        """Published curves, by row."""
        return experiments.published(self.experiment) if self.experiment else {}

    def norm_of(self, group: Group) -> str:
        """How tables call a group's norm: by the experiment's name for it, if there is one."""
        return self.experiment.labels.get(group.norm, group.norm) if self.experiment else group.norm

    @property
    def is_sweep(self) -> bool:
        """A row per norm, at the learning rate that validation chooses; otherwise the file lists the rows."""
        return self.experiment is None or not self.experiment.rows

    @property
    def one_lr(self) -> bool:
        """Whether no row has a second learning rate: there is nothing to draw against it."""
        return all(len(group.lrs) == 1 for group in self.groups)

    @property
    def chooses_itself(self) -> bool:
        """Whether its own validation images choose each row's learning rate."""
        return self.experiment is None or self.is_sweep or self.experiment.chosen_by == self.name


def of_experiment(name: str) -> Plan:
    experiment = experiments.load(name)
    runs = experiment.runs()
    if len(kinds := {kind_of(run.config) for run in runs}) > 1:
        several = " and ".join(sorted(kinds))
        raise UserError(f"experiments/{name}.yaml: {several} share no table; give each a file of its own")
    if not experiment.rows:
        norms = [str(run.cell.get("norm", run.config.norm.label)) for run in runs]
        groups, facets = _grouped([run.config for run in runs], norms, experiment)
        return Plan(name, groups, facets, experiment)
    own = {row.name: [run.config for run in runs if run.row == row.name] for row in experiment.rows}
    return Plan(name, [Group((), own[row.name], row.name, row) for row in experiment.rows], (), experiment)


def of_configs(name: str, configs: Iterable[Config]) -> tuple[Plan, list[str]]:
    """The runs that lie in a folder, of the kind that has most; the others are told."""
    kinds: dict[str, list[Config]] = defaultdict(list)
    for config in sorted(configs, key=lambda config: (config.seed, config.optim.lr)):
        kinds[kind_of(config)].append(config)
    most, *fewer = sorted(kinds, key=lambda kind: (-len(kinds[kind]), kind))
    groups, facets = _grouped(kinds[most])
    norms = [*presets.PRESETS, *(group.norm for group in groups)]
    # the shorter text first sorts whole numbers by value
    groups.sort(key=lambda g: ([(len(value), value) for value in g.facet], norms.index(g.norm)))
    only = f"not shown: only those of {most} are, which are more"
    return Plan(name, groups, facets), [f"{len(kinds[kind])} runs of {kind} are {only}" for kind in fewer]


def kind_of(config: Config) -> str:
    """Runs of one kind are judged by one number, and can stand in one table."""
    if not isinstance(config.model, VAEConfig):
        return "classifiers"
    return f"VAEs of {DIMENSIONS[config.data.name]} bytes an image" if metric_of(config).shift else "VAEs"


def _grouped(
    configs: list[Config], norms: Sequence[str] = (), experiment: experiments.Experiment | None = None
) -> tuple[list[Group], tuple[str, ...]]:
    """Groups of runs, under ``norms`` that say how its variants are set, or under the names of these."""
    variants, labels = (experiment.variants, experiment.labels) if experiment else (set(), {})
    every = [_settings(config) for config in configs]
    for own, norm in zip(every, norms, strict=False):
        own["norm"] = norm
    facets = facets_of([{key: own[key] for key in own if key not in variants} for own in every])
    found: dict[tuple[str, ...], list[Config]] = {}
    for config, own in zip(configs, every, strict=True):
        found.setdefault(tuple(own.get(key, "–") for key in (*facets, "norm")), []).append(config)
    groups = []
    for (*facet, norm), alike in found.items():
        names = [f"{key}={value}" for key, value in zip(facets, facet, strict=True)]
        name = ", ".join([*names, labels.get(norm, norm)])
        groups.append(Group(tuple(facet), alike, name, norm=norm))
    return groups, facets


def _settings(config: Config) -> dict[str, str]:
    """All that decides a run's numbers but for learning rate and seed, as text; the norm by its label."""
    tree = config.model_dump(mode="json")
    pairs = ((f"{section}.{key}", value) for section in SECTIONS for key, value in tree[section].items())
    for section in ("model", "data"):
        tree[section]["name"] = tree[section].get("plugin") or tree[section]["name"]
    flat = {k: _text(v) for k, v in pairs if k not in NOT_FACETS}
    names_first = sorted(filter(decides, flat), key=lambda key: not key.endswith(".name"))
    code = {"plugins": ", ".join(digest[:8] for digest in config.plugins.values())} if config.own else {}
    return {"norm": config.norm.label, **{key: flat[key] for key in names_first}, **code}


def _text(value: Any) -> str:
    """Six digits of a number, and all where these are not it: another number has another text."""
    if not isinstance(value, float):
        return str(value)
    short = f"{value:g}"
    return short if float(short) == value else str(value)


def facets_of(every: list[dict[str, str]]) -> tuple[str, ...]:
    """The fewest settings that tell the runs apart as all settings do, in their order.

    A setting that follows from earlier ones (such as another model's own initial weights) is none.
    """

    def parts(keys: list[str]) -> int:
        return len({tuple(one.get(key) for key in keys) for one in every})

    kept: list[str] = []
    for key in dict.fromkeys(key for one in every for key in one if key != "norm"):
        known = [*kept, "norm"] if key.startswith(("norm.", "plugins")) else kept  # a norm's own file, too
        if parts([key]) > 1 and parts([*known, key]) > parts(known):
            kept.append(key)
    return tuple(kept)
