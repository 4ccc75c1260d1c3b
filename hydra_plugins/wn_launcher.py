"""Where Hydra looks for plugins; it is written in :mod:`wn.launcher`."""

from wn import launcher


class StackedLauncher(launcher.StackedLauncher):
    """``hydra/launcher=stacked``."""
