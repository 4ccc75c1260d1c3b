"""What Hydra composed -> configurations; and Hydra's launcher, which trains the jobs of a sweep in stacks."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from wn import experiments
from wn.config import Config, UserError, decides, parse
from wn.config.compose import set_value
from wn.run import final_loss
from wn.sweep import train_sweep

Tree = dict[str, Any]


class StackedLauncher(Launcher):
    """Trains the runs of all jobs together, in this process and its workers (:mod:`wn.sweep`)."""

    def __init__(self, members: int | None = None, workers: int | None = None) -> None:
        self.limits = {"members": members, "workers": workers}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.loader, self.config = hydra_context.config_loader, config
        self.parse = functools.cache(OverridesParser.create(config_loader=self.loader).parse_override)
        self.tree = functools.cache(self._tree)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train the runs of all jobs; each job returns what :func:`summary` makes of its records.

        Raises:
            UserError: one of them is no configuration, or cannot be trained here; nothing is trained.
        """
        for name, limit in self.limits.items():
            if limit is not None and not (isinstance(limit, int) and limit > 0):
                raise UserError(f"hydra.launcher.{name}={limit}: should be a positive whole number, or null")
        jobs = [self._configs(overrides) for overrides in job_overrides]
        records = iter(train_sweep([config for job in jobs for config in job], **self.limits))
        returns = []
        for overrides, job in zip(job_overrides, jobs, strict=True):
            done = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
            try:
                done.return_value = summary([final_loss(next(records)) for _ in job])
            except Exception as error:
                done.status, done.return_value = JobStatus.FAILED, error
            returns.append(done)
        return returns

    def _configs(self, texts: Sequence[str]) -> list[Config]:
        """A job's runs.

        Hydra composes each choice of presets once, which takes it a tenth of a second. Plain numbers, of
        which a sweep has hundreds, are then set on that tree as they are.
        """
        overrides = [self.parse(text) for text in texts]
        plain = {text for text, override in zip(texts, overrides, strict=True) if _sets_a_number(override)}
        tree, choices = self.tree(tuple(text for text in texts if text not in plain))
        tree = OmegaConf.to_container(OmegaConf.create(tree))  # type: ignore[assignment]
        for text in texts:
            if text in plain:
                override = self.parse(text)
                set_value(tree, override.key_or_group, override.value())
        return expand(tree, choices.get("experiment"), overrides)

    def _tree(self, texts: tuple[str, ...]) -> tuple[Tree, Tree]:
        whole = self.loader.load_sweep_config(self.config, list(texts))
        return plain_tree(whole), dict(whole.hydra.runtime.choices)


def _sets_a_number(override: Override) -> bool:
    """Whether an override only gives an existing field a number."""
    changes_keys = override.is_add() or override.is_force_add() or override.is_delete()
    return not changes_keys and type(override.value()) in (int, float)


def plain_tree(tree: DictConfig) -> Tree:
    """What Hydra composed as plain data, without Hydra's own part."""
    masked = OmegaConf.masked_copy(tree, [str(key) for key in tree if key != "hydra"])
    plain: Any = OmegaConf.to_container(masked, resolve=True)
    return dict(plain)


def expand(tree: Tree, experiment: str | None, overrides: Sequence[Override]) -> list[Config]:
    """The runs that a composed tree stands for: itself, or those of the experiment that was chosen.

    Args:
        tree: what Hydra composed.
        experiment: the experiment's name; None for none.
        overrides: of the command line.

    Raises:
        UserError: the tree is no configuration; or an override is at odds with the experiment: it asks for
            runs that it has not, or would train runs that no table of it shows.
    """
    composed = parse(tree)
    if experiment is None:
        return [composed]
    plan = experiments.load(experiment)
    wanted, settings = {}, {}
    for override in overrides:
        key, value = override.key_or_group, override.value()
        if key in plan.axes:
            wanted[key] = (value, override.input_line)
        elif decides(key) and key != "experiment":
            if composed.experiment_name == experiment:
                raise UserError(
                    f"{override.input_line}: experiment {experiment} fixes its numbers; for one of your own add "
                    f"experiment_name=NAME, or copy experiments/{experiment}.yaml and change the copy"
                )
            settings[key] = value
    runs = plan.runs({**settings, "experiment_name": composed.experiment_name})
    chosen = [run for run in runs if all(run.cell[key] == value for key, (value, _) in wanted.items())]
    if not chosen:
        asked = " ".join(str(text) for _, text in wanted.values())
        raise UserError(f"{asked}: the experiment has no such run; its file names those that it has")
    return [run.config.placed_as(composed) for run in chosen]


def summary(losses: Sequence[float]) -> float:
    """What a sweeper may minimise: the mean of the runs' final validation losses."""
    return math.fsum(losses) / len(losses)
