"""Hydra's extension points: a sweeper that checks every job first, and a launcher that stacks them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from wn import tracking
from wn.config import Config, UserError, parse
from wn.experiments import CONFIGS, Cell
from wn.run import conclude
from wn.sweep import outstanding, train_sweep


def config_of(tree: DictConfig) -> Config:
    """What Hydra composed, checked.

    Raises:
        UserError: a key or a value that is none.
    """
    plain: Any = OmegaConf.to_container(tree, resolve=True)
    return parse({key: value for key, value in plain.items() if key != "hydra"})


def configuration(*overrides: str) -> Config:
    """The configuration with these overrides, outside the application.

    Raises:
        UserError: a key or a value that is none.
    """
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        return config_of(compose("train", list(overrides)))


class Composer:
    """Composes a sweep's jobs. Hydra composes each choice of groups once; plain values are set on a copy.

    (Hydra takes a tenth of a second for a job, and a sweep over numbers has hundreds of them.)
    """

    def __init__(self, loader: ConfigLoader, sweep: DictConfig) -> None:
        self.loader, self.sweep = loader, sweep
        self.parser = OverridesParser.create(config_loader=loader)
        self.parse = functools.cache(self.parser.parse_override)
        self.is_group = functools.cache(lambda key: bool(loader.get_group_options(key)))
        self.tree = functools.cache(self._tree)
        self.done: dict[tuple[str, ...], Config] = {}

    def __call__(self, overrides: Sequence[str]) -> Config:
        """The configuration of the job with these overrides."""
        job = tuple(overrides)
        if job not in self.done:
            values = [text for text in job if self._sets_a_value(self.parse(text))]
            tree = self.tree(tuple(text for text in job if text not in values)).copy()
            for override in map(self.parse, values):
                OmegaConf.update(tree, override.key_or_group, override.value())
            self.done[job] = config_of(tree)
        return self.done[job]

    def _tree(self, overrides: tuple[str, ...]) -> DictConfig:
        tree = self.loader.load_sweep_config(self.sweep, list(overrides))
        return OmegaConf.masked_copy(tree, [str(key) for key in tree if key != "hydra"])

    def _sets_a_value(self, override: Override) -> bool:
        changes_keys = override.is_add() or override.is_force_add() or override.is_delete()
        return not changes_keys and not self.is_group(override.key_or_group)


class CheckedSweeper(Sweeper):
    """Launches what Hydra's basic sweeper does, in one batch; what cannot be trained stops it before.

    Args:
        params: overrides that every sweep has, below those of the command line.
        cells: overrides of one job each, in the order of training, for runs that are no grid. An argument
            for one of their keys then leaves the jobs that have its values.
    """

    def __init__(self, params: dict[str, Any] | None = None, cells: list[Cell] | None = None) -> None:
        self.params, self.cells = params or {}, cells or []

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's hand-over."""
        self.compose = Composer(hydra_context.config_loader, config)
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if isinstance(self.launcher, StackedLauncher):
            self.launcher.compose = self.compose  # nothing is composed twice

    def sweep(self, arguments: list[str]) -> Any:
        """Launch every combination of the arguments' values (and cells), then send the summary to W&B.

        Raises:
            UserError: one of them is no configuration, or cannot be trained here; nothing is launched.
            RunFailed: a run failed; the others have ended.
        """
        params = [f"{key}={values}" for key, values in self.params.items()]
        overrides = self.compose.parser.parse_overrides([*params, *arguments])
        if any(o.key_or_group == "experiment" and o.is_sweep_override() for o in overrides):
            raise UserError("experiment: one at a time; write +experiment=NAME")
        cells = self._cells(overrides)
        shared = [o for o in overrides if not self.cells or o.key_or_group not in self.cells[0]]
        (products,) = BasicSweeper.split_arguments(shared, None)
        jobs = [[*product, *cell] for cell in cells for product in products]
        configs = [self.compose(job) for job in jobs]
        anything_to_do = bool(outstanding(configs))
        returns = self.launcher.launch(jobs, initial_job_idx=0)
        for job in returns:
            _ = job.return_value  # raises what the job did
        if anything_to_do:
            one = configs[0]
            tracking.publish(one.experiment_name, Path(one.runs_dir), one.tracking)
        return returns

    def _cells(self, overrides: list[Override]) -> list[list[str]]:
        """The overrides of the cells that the arguments leave; of a sweep without cells, one empty list."""
        if not self.cells:
            return [[]]
        wanted = {o.key_or_group: _values(o) for o in overrides if o.key_or_group in self.cells[0]}
        left = [cell for cell in self.cells if all(cell[key] in wanted[key] for key in wanted)]
        if not left:
            asked = " ".join(o.input_line or "" for o in overrides if o.key_or_group in wanted)
            raise UserError(f"{asked}: the experiment has no such run; its file names those that it has")
        return [[f"{key}={value}" for key, value in cell.items()] for cell in left]


def _values(override: Override) -> list[Any]:
    """What an override sets its key to, one value or several."""
    if override.is_sweep_override():
        return list(override.sweep_iterator(Transformer.identity))
    return [override.value()]


class StackedLauncher(Launcher):
    """Trains the jobs of a sweep in stacks, in this process (:mod:`wn.sweep`)."""

    def __init__(self, members: int | None = None, workers: int | None = None) -> None:
        self.limits = {"members": members, "workers": workers}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's hand-over."""
        self.compose = Composer(hydra_context.config_loader, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train all jobs; each returns what :func:`wn.run.conclude` makes of its record."""
        for name, limit in self.limits.items():
            if limit is not None and not (isinstance(limit, int) and limit > 0):
                raise UserError(f"hydra.launcher.{name}={limit}: should be a positive whole number, or null")
        records = train_sweep([self.compose(overrides) for overrides in job_overrides], **self.limits)
        returns = []
        for overrides, record in zip(job_overrides, records, strict=True):
            job = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
            try:
                job.return_value = conclude(record)
            except Exception as error:
                job.status, job.return_value = JobStatus.FAILED, error
            returns.append(job)
        return returns
