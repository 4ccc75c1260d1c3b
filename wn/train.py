"""The application: ``python -m wn.train`` composes a configuration with Hydra and trains what it says.

One run, a sweep (``-m``) or an experiment (``+experiment=NAME``: a file of ``experiments/``).
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from wn import experiments
from wn.config import UserError, known_keys, nearest
from wn.launcher import config_of
from wn.run import RunFailed, conclude
from wn.sweep import train_sweep

TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"
"""Whether the user asked, in Hydra's own way, to see where an error came from."""


CONFIGS = Path(__file__).parent.parent / "configs"


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def job(tree: DictConfig) -> float:
    """Train one run; the validation loss that it ends with is what a sweeper may minimise."""
    try:
        (record,) = train_sweep([config_of(tree)])
    except UserError as error:
        refuse(error)  # here, as Hydra would go on to the next job
    return conclude(record)


def main() -> int:
    """Run the application and return its exit status: 0, 1 (a run failed) or 2 (a mistake of the user's)."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra lets errors through instead of printing them
    try:
        offer_experiments()
        job()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        refuse(error)
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def offer_experiments() -> None:
    """Make each file of ``experiments/`` an option of Hydra's group ``experiment``: a sweep over its grid."""
    for name in experiments.names():
        experiment = experiments.load(name)
        grid = {key: ",".join(map(str, values)) for key, values in experiment.grid.items()}
        params = {**experiment.fixed, **grid}
        node = {
            "defaults": [{"override /hydra/launcher": "stacked"}],
            "experiment_name": name,
            "hydra": {"mode": "MULTIRUN", "sweeper": {"params": params}},
        }
        ConfigStore.instance().store(group="experiment", name=name, node=node, package="_global_")


def refuse(error: Exception) -> NoReturn:
    """End with one line about a mistake of the user's."""
    if TRACEBACKS:
        raise error
    print(f"error: {explain(error)}", file=sys.stderr)
    sys.exit(2)


def explain(error: Exception) -> str:
    """An error in one line: what is wrong, and what would be right."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"{group}={name}: no such preset{nearest(name, list(error.options or []))}"
    text = str(error)
    key = re.search(r"Could not override '([^']+)'|full_key: (\S+)", text)
    if key:
        path = (key[1] or key[2]).split(".")
        return f"{'.'.join(path)}: unknown key{nearest(path[-1], known_keys(path[:-1]))}"
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
