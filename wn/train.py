"""The application: ``python -m wn.train`` composes a configuration with Hydra and trains what it says.

One run, a sweep (``-m``) or an experiment (``+experiment=NAME``: a file of ``experiments/``).
"""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wn import experiments, launcher, plugins
from wn.config import Config, UserError, explain_key, nearest, places
from wn.config.compose import CONFIGS, OWN, check_presets, set_value
from wn.config.errors import ends_training, explain_disk, short
from wn.config.models import MODELS
from wn.messages import module
from wn.stops import Preempted, tell, termination
from wn.sync import send_report

TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"  # Hydra's way to ask where an error came from


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def job(tree: DictConfig) -> float:
    """Train a run, or an experiment, and return its final validation loss, which a sweeper may minimise."""
    chosen, home = HydraConfig.get(), launcher.home == os.getpid()
    try:
        launcher.check_hydra(chosen)
        if not home:  # a launcher's own process; at home main() has run them
            plugins.load(launcher.named_plugins(chosen.overrides.task))
        overrides = OverridesParser.create().parse_overrides(list(chosen.overrides.task))
        check_presets(chosen.runtime.choices)
        experiment = chosen.runtime.choices.get("experiment")
        records = launcher.train(launcher.expand(launcher.plain(tree), experiment, overrides), chosen)
    except (UserError, OSError, OmegaConfBaseException) as error:
        if home:
            refuse(error)  # here, as Hydra would go on to the next job
        status = 1 if ends_training(error) else 2
        raise launcher.JobEnded(f"error: {' '.join(explain(error).split())}", status) from None
    except Preempted as stopped:
        if home:
            raise
        raise launcher.JobEnded(str(stopped), stopped.status) from None
    loss = launcher.summary(records)
    if launcher.failed and not home:
        raise launcher.JobEnded(f"error: {launcher.failed.pop()}", 1)
    return loss


def main() -> int:
    """Run the application and return its exit status.

    0, 1 (a run failed), 2 (a mistake of the user's), or where the same command goes on from a stop: 75
    (``trainer.max_minutes``, SIGUSR1, SIGUSR2), 130 (SIGINT) or 143 (SIGTERM).
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra lets errors through instead of printing them
    switches = ("-m", "--multirun")  # wherever they stand: after an override, argparse would not know them
    sys.argv[1:] = sorted(map(spelling, sys.argv[1:]), key=lambda word: word not in switches)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    launcher.trained.clear()
    launcher.failed.clear()
    launcher.home = os.getpid()
    try:
        register()
        sys.argv += own_presets()
        with termination():
            job()
            for error in launcher.failed[:1]:
                print(f"error: {error}", file=sys.stderr)
            report()
    except (UserError, OSError, HydraException, OmegaConfBaseException) as error:
        refuse(error)
    except ValueError as error:
        if not str(error).startswith("Config group override"):  # what Hydra says to optim=3
            raise
        refuse(error)
    except (Preempted, KeyboardInterrupt) as end:
        return tell(end)
    except launcher.JobEnded as ended:
        line, status = ended.args
        print(line, file=sys.stderr)
        return int(status)
    except Exception as error:
        if TRACEBACKS or type(error).__module__.partition(".")[0] not in ("submitit", "joblib", "ray"):
            raise
        what = f"{type(error).__name__}: {str(error).partition(os.linesep)[0]}"
        print(f"error: a job ended without a result: {what}", file=sys.stderr)
        return 1
    return 1 if launcher.failed else 0


def spelling(word: str) -> str:
    """``--optim.lr=0.1``, as ``wandb sweep`` writes it, for ``optim.lr=0.1``."""
    if word == "--dry-run":
        return "trainer.dry_run=true"
    key = word.removeprefix("--").partition("=")[0]
    ours = "." in key or key in Config.model_fields or key in launcher.GROUPS
    return word.removeprefix("--") if ours and "=" in word else word


def own_presets() -> list[str]:
    """What makes Hydra find the presets of an installed project's user, in ``configs/`` of this folder."""
    if len(places.folders(CONFIGS)) == 1:
        return []
    for word in sys.argv[1:]:
        group, _, names = word.partition("=")
        for name in names.split(",") if group in launcher.GROUPS else []:
            places.find(CONFIGS, f"{group}/{name}.yaml")  # refuses a name that the project has too
    return ["hydra.searchpath=[file://configs]"]


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
    return module("wn.report", str(folder)) == 0


def register() -> None:
    """Tell Hydra what lies outside ``configs/``: the defaults, and every experiment as a preset."""
    store = ConfigStore.instance()
    plugins.load(launcher.named_plugins(sys.argv[1:]))
    for group, choice in OWN.items():
        for name in plugins.names(group):
            own = OmegaConf.create({**choice, "plugin": name}, flags={"struct": group != "model"})
            store.store(group=group, name=name, node=own)  # a model's numbers are known to its file alone
    store.store(name="_defaults", node=Config().model_dump(mode="json", exclude={"model", "plugins"}))
    for model in MODELS:
        defaults = model().model_dump(mode="json")
        store.store(group="model", name=f"_{defaults['name']}", node=defaults)
    asked = {name for word in sys.argv if "experiment=" in word for name in re.split(r"[^\w.-]+", word)}
    for name in experiments.names():
        try:
            plan = experiments.load(name)
            if name in asked:
                plan.runs()  # the whole file is checked
            fixed = plan.fixed | ({"plugins": plan.plugins} if plan.plugins else {})
        except UserError:
            if name in asked:
                raise
            continue  # a broken file stops those alone who ask for it
        # Presets and values as the file fixes them, so that Hydra knows which keys may be overridden.
        presets = [{f"override /{key}": value} for key, value in fixed.items() if key in launcher.GROUPS]
        node: dict[str, Any] = {"defaults": [*presets, "_self_"], "experiment_name": name}
        for key, value in fixed.items():
            if key not in launcher.GROUPS:
                set_value(node, key, value)
        store.store(group="experiment", name=name, node=node, package="_global_")


PATHS = ("runs_dir", "data.root", "tracking.project", "tracking.entity")

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
    """End with one line: status 2 for what the user asked for, 1 for a disk that is full."""
    known = isinstance(error, HydraException) or ends_training(error)  # some of Hydra's are OSErrors
    if TRACEBACKS or (isinstance(error, OSError) and not error.filename and not known):
        raise error
    text = explain(error).encode(errors="backslashreplace").decode()  # a path may hold what is no text
    print("error:", *(short(word, 300) for word in text.split()), file=sys.stderr)
    sys.exit(1 if ends_training(error) else 2)


def explain(error: Exception) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        known = [option for option in error.options or [] if not option.startswith("_")]
        return f"{group}={name}: no such preset{nearest(name, known)}"
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return explain_disk(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not well formed; write {_well_formed(str(error.override))}"
    text = " ".join(str(error).split())  # Hydra breaks its lines
    for pattern, line in EXPLANATIONS.items():
        if found := re.search(pattern, text):
            return line.format(*found.groups())
    key = re.search(r"Could not override '([^']+)'|not in struct full_key: (\S+)", text)
    return explain_key(Config, key[1] or key[2]) if key else text


def _well_formed(override: str) -> str:
    """Of a value that would be well formed as text, such as a path with = or #: that spelling."""
    key, _, value = override.partition("=")
    path = key in PATHS and value and not {*value} & {*"'\"\n"}
    return shlex.quote(f'{key}="{value}"') if path else "KEY=VALUE, as in norm=none 'model.widths=[64,64]'"


if __name__ == "__main__":
    sys.exit(main())
