"""The application: ``python -m wn.train`` composes a configuration with Hydra and trains what it says.

One run, a sweep (``-m``) or an experiment (``+experiment=NAME``: a file of ``experiments/``).
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from wn import experiments
from wn.config import UserError, explain_key, nearest
from wn.launcher import config_of
from wn.run import RunFailed, conclude
from wn.stops import Stopped, termination
from wn.sweep import train_sweep

TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"
"""Whether the user asked, in Hydra's own way, to see where an error came from."""


@hydra.main(version_base="1.3", config_path=str(experiments.CONFIGS), config_name="train")
def job(tree: DictConfig) -> float:
    """Train one run; the validation loss that it ends with is what a sweeper may minimise."""
    try:
        (record,) = train_sweep([config_of(tree)])
    except (UserError, OmegaConfBaseException) as error:
        refuse(error)  # here, as Hydra would go on to the next job
    return conclude(record)


def main() -> int:
    """Run the application and return its exit status.

    0, 1 (a run failed), 2 (a mistake of the user's), or after a stop 75 (``trainer.max_minutes``), 130
    (SIGINT) or 143 (SIGTERM): then the same command goes on.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra lets errors through instead of printing them
    switches = ("-m", "--multirun")  # wherever they stand: after an override, argparse would not know them
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in switches)
    try:
        offer_experiments()
        with termination():
            job()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        refuse(error)
    except ValueError as error:
        if not str(error).startswith("Config group override"):  # what Hydra says to optim=3
            raise
        refuse(error)
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def offer_experiments() -> None:
    """Make each file of ``experiments/`` an option of Hydra's group ``experiment``: a sweep over its runs."""
    for name in experiments.names():
        try:
            experiment = experiments.load(name)
        except UserError:
            if any(word.endswith(f"experiment={name}") for word in sys.argv):
                raise
            continue  # a broken file stops those alone who ask for it
        grid = {key: ",".join(map(str, values)) for key, values in experiment.grid.items()}
        sweeper: dict[str, Any] = {"params": {**experiment.fixed, **grid}}
        if experiment.rows:
            sweeper["cells"] = experiment.cells()
        groups = {"hydra/launcher": "stacked", **{k: v for k, v in experiment.fixed.items() if "." not in k}}
        node = {  # the groups as well: Hydra takes no field on the command line that its presets lack
            "defaults": [{f"override /{group}": preset} for group, preset in groups.items()],
            "experiment_name": name,
            "hydra": {"mode": "MULTIRUN", "sweeper": sweeper},
        }
        ConfigStore.instance().store(group="experiment", name=name, node=node, package="_global_")


EXPLANATIONS = {
    r"append to your default list use (\S+)": "no such key without a plus sign; write {}",
    r"Ambiguous value for argument '([^']+)'": "{}: several values; to train each, add -m",
    r"Multiple values for ([\w/]+)\.": "{0}: chosen already; write {0}=... without a plus sign",
    r"An item is already at '([^']+)'": "{0}: there already; write {0}=... without a plus sign",
    r"does not support sweep type": "no values to try one by one; list them, as in optim.lr=0.01,0.1",
    r"^Config group override": "a group takes the name of a preset, as in norm=weight_norm",
    r"(Interpolation key \S+ not found) full_key: (\S+)": "{1}: {0}",
}
"""What Hydra and OmegaConf say of an override, and the line that the user gets instead."""


def refuse(error: Exception) -> NoReturn:
    """End with one line about a mistake of the user's."""
    if TRACEBACKS:
        raise error
    print("error:", *explain(error).split(), file=sys.stderr)
    sys.exit(2)


def explain(error: Exception) -> str:
    """An error in one line: what is wrong, and what would be right."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"{group}={name}: no such preset{nearest(name, list(error.options or []))}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not well formed; write KEY=VALUE, as in norm=none 'model.widths=[64,64]'"
    text = " ".join(str(error).split())  # Hydra breaks its lines
    for pattern, line in EXPLANATIONS.items():
        if found := re.search(pattern, text):
            return line.format(*found.groups())
    key = re.search(r"Could not override '([^']+)'|not in struct full_key: (\S+)", text)
    return explain_key(key[1] or key[2]) if key else text


if __name__ == "__main__":
    sys.exit(main())
