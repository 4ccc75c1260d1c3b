"""Where Hydra looks for plugins; they are written in :mod:`wn.launcher`."""

from wn import launcher


class StackedLauncher(launcher.StackedLauncher):
    """``hydra/launcher=stacked``."""


class CheckedSweeper(launcher.CheckedSweeper):
    """``hydra/sweeper=checked``."""
