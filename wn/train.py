"""The application: ``python -m wn.train`` composes a configuration with Hydra and trains what it says.

One run, a sweep (``-m``) or an experiment (``+experiment=NAME``: a file of ``experiments/``).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from wn import experiments, launcher
from wn.config import Config, UserError, explain_key, nearest
from wn.config.compose import CONFIGS, set_value
from wn.config.models import MODELS
from wn.processes import Preempted, termination
from wn.run import RunFailed
from wn.sync import send_report

TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"  # Hydra's way to ask where an error came from


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def job(tree: DictConfig) -> float:
    """Train a run, or an experiment, and return its final validation loss, which a sweeper may minimise."""
    chosen = HydraConfig.get()
    try:
        launcher.check_hydra(chosen)
        overrides = OverridesParser.create().parse_overrides(list(chosen.overrides.task))
        experiment = chosen.runtime.choices.get("experiment")
        records = launcher.train(launcher.expand(launcher.plain(tree), experiment, overrides), chosen)
    except (UserError, OmegaConfBaseException) as error:
        if launcher.home != os.getpid():
            raise launcher.JobEnded(f"error: {' '.join(explain(error).split())}", 2) from None
        refuse(error)  # here, as Hydra would go on to the next job
    except Preempted as stopped:
        if launcher.home != os.getpid():
            raise launcher.JobEnded(str(stopped), stopped.status) from None
        raise
    return launcher.summary(records)


def main() -> int:
    """Run the application and return its exit status.

    0, 1 (a run failed), 2 (a mistake of the user's), or where the same command goes on from a stop: 75
    (``trainer.max_minutes``, SIGUSR1, SIGUSR2), 130 (SIGINT) or 143 (SIGTERM).
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra lets errors through instead of printing them
    switches = ("-m", "--multirun")  # wherever they stand: after an override, argparse would not know them
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in switches)
    launcher.trained.clear()
    launcher.home = os.getpid()
    status = 0
    try:
        register()
        with termination():
            try:
                job()
            except RunFailed as error:
                print(f"error: {error}", file=sys.stderr)
                status = 1
            report()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        refuse(error)
    except OSError as error:
        if error.filename is None:
            raise
        refuse(UserError(f"{error.filename}: {error.strerror}; name another folder with runs_dir=..."))
    except ValueError as error:
        if not str(error).startswith("Config group override"):  # what Hydra says to optim=3
            raise
        refuse(error)
    except Preempted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.status
    except launcher.JobEnded as ended:
        line, status = ended.args
        print(line, file=sys.stderr)
    except Exception as error:
        if TRACEBACKS or type(error).__module__.partition(".")[0] not in ("submitit", "joblib", "ray"):
            raise
        what = f"{type(error).__name__}: {str(error).partition(os.linesep)[0]}"
        print(f"error: a job ended without a result: {what}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        return 130
    return status


def report() -> None:
    """After a sweep: print its table, name its figures, and send them to W&B."""
    folders = {Path(c.runs_dir, c.experiment_name): c.tracking for c in launcher.trained}
    if len({config.run_id for config in launcher.trained}) > 1:
        for folder, tracking in folders.items():
            if make_report(folder):
                send_report(folder, tracking)
            else:
                print(f"no report; to see why: python -m wn.report {folder}", file=sys.stderr)


def make_report(folder: Path) -> bool:
    """Run ``python -m wn.report``, as a process: training imports neither pandas nor matplotlib."""
    sys.stdout.flush()
    return subprocess.run([sys.executable, "-m", "wn.report", str(folder)]).returncode == 0


def register() -> None:
    """Tell Hydra what lies outside ``configs/``: the defaults, and every experiment as a preset."""
    store = ConfigStore.instance()
    store.store(name="_defaults", node=Config().model_dump(mode="json", exclude={"model"}))
    for model in MODELS:
        defaults = model().model_dump(mode="json")
        store.store(group="model", name=f"_{defaults['name']}", node=defaults)
    for name in experiments.names():
        try:
            fixed = experiments.load(name).fixed
        except UserError:
            if any("experiment=" in word and name in word for word in sys.argv):
                raise
            continue  # a broken file stops those alone who ask for it
        # Presets and values as the file fixes them, so that Hydra knows which keys may be overridden.
        presets = [{f"override /{key}": value} for key, value in fixed.items() if "." not in key]
        node: dict[str, Any] = {"defaults": [*presets, "_self_"], "experiment_name": name}
        for key, value in fixed.items():
            if "." in key:
                set_value(node, key, value)
        store.store(group="experiment", name=name, node=node, package="_global_")


EXPLANATIONS = {
    r"append to your default list use (\S+)": "no such key without a plus sign; write {}",
    r"(?:Ambiguous value|Sweep parameters).* '([^']+)'": "{}: several values; to train each, add -m",
    r"Multiple values for ([\w/]+)\.": "{0}: chosen already; write {0}=... without a plus sign",
    r"An item is already at '([^']+)'": "{0}: there already; write {0}=... without a plus sign",
    rf"Could not override '({'|'.join(launcher.GROUPS)})'": "{}: takes a preset's name, as in norm=none",
    r"does not support sweep type": "no values to try one by one; list them, as in optim.lr=0.01,0.1",
    r"^Config group override": "a group takes the name of a preset, as in norm=weight_norm",
}
"""What Hydra and OmegaConf say of an override, and the line that the user gets instead."""


def refuse(error: Exception) -> NoReturn:
    if TRACEBACKS:
        raise error
    print("error:", *explain(error).split(), file=sys.stderr)
    sys.exit(2)


def explain(error: Exception) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        known = [option for option in error.options or [] if not option.startswith("_")]
        return f"{group}={name}: no such preset{nearest(name, known)}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not well formed; write KEY=VALUE, as in norm=none 'model.widths=[64,64]'"
    text = " ".join(str(error).split())  # Hydra breaks its lines
    for pattern, line in EXPLANATIONS.items():
        if found := re.search(pattern, text):
            return line.format(*found.groups())
    key = re.search(r"Could not override '([^']+)'|not in struct full_key: (\S+)", text)
    return explain_key(Config, key[1] or key[2]) if key else text


if __name__ == "__main__":
    sys.exit(main())
