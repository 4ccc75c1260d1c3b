"""Hydra's extension points: a sweeper that checks every job first, and a launcher that stacks them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from wn import tracking
from wn.config import Config, UserError, parse
from wn.run import conclude
from wn.sweep import outstanding, train_sweep


def config_of(tree: DictConfig) -> Config:
    """What Hydra composed, checked.

    Raises:
        UserError: a key or a value that is none.
    """
    plain: Any = OmegaConf.to_container(tree, resolve=True)
    return parse({key: value for key, value in plain.items() if key != "hydra"})


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
    """Launches what Hydra's basic sweeper does, in one batch; what cannot be trained stops it before."""

    def __init__(self, params: dict[str, str] | None = None) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's hand-over."""
        self.compose = Composer(hydra_context.config_loader, config)
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if isinstance(self.launcher, StackedLauncher):
            self.launcher.compose = self.compose  # nothing is composed twice

    def sweep(self, arguments: list[str]) -> Any:
        """Launch every combination of the arguments' values, then send the summary to W&B.

        Raises:
            UserError: one of them is no configuration, or cannot be trained here; nothing is launched.
            RunFailed: a run failed; the others have ended.
        """
        params = [f"{key}={values}" for key, values in self.params.items()]
        overrides = self.compose.parser.parse_overrides([*params, *arguments])
        if any(o.key_or_group == "experiment" and o.is_sweep_override() for o in overrides):
            raise UserError("experiment: one at a time; write +experiment=NAME")
        (jobs,) = BasicSweeper.split_arguments(overrides, None)
        configs = [self.compose(job) for job in jobs]
        anything_to_do = bool(outstanding(configs))
        returns = self.launcher.launch(jobs, initial_job_idx=0)
        for job in returns:
            _ = job.return_value  # raises what the job did
        if anything_to_do:
            one = configs[0]
            tracking.publish(one.experiment_name, Path(one.runs_dir), one.tracking)
        return returns


class StackedLauncher(Launcher):
    """Trains the jobs of a sweep in stacks, in this process (:mod:`wn.sweep`)."""

    def __init__(self, members: int | None = None) -> None:
        self.members = members

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's hand-over."""
        self.compose = Composer(hydra_context.config_loader, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train all jobs; each returns what :func:`wn.run.conclude` makes of its record."""
        if self.members is not None and not (isinstance(self.members, int) and self.members > 0):
            raise UserError(f"hydra.launcher.members={self.members}: should be a positive number, or null")
        records = train_sweep([self.compose(overrides) for overrides in job_overrides], self.members)
        returns = []
        for overrides, record in zip(job_overrides, records, strict=True):
            job = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
            try:
                job.return_value = conclude(record)
            except Exception as error:
                job.status, job.return_value = JobStatus.FAILED, error
            returns.append(job)
        return returns
