"""``hydra/launcher=stacked``. Every Hydra application imports this module in its search for plugins, so what
needs torch is imported when it is used."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class StackedLauncher(Launcher):
    """Trains the runs of all jobs together, in this process and its workers: :class:`wn.launcher.Jobs`."""

    def __init__(self, members: int | None = None, workers: int | None = None) -> None:
        """Both are read from the configuration by :func:`wn.launcher.train`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from wn.launcher import Jobs

        self.jobs = Jobs(hydra_context, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        return self.jobs.train(job_overrides)
