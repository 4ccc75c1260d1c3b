"""What Hydra composed -> the runs that it stands for; and the jobs of a sweep (``-m``), trained in stacks."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from wn import experiments, tracking
from wn.config import Config, UserError, decides, parse
from wn.config.compose import CONFIGS, set_value
from wn.config.errors import ends_training
from wn.config.yaml_files import listed
from wn.records import Record
from wn.run import RunFailed, final_loss
from wn.sweep import train_sweep

GROUPS = {path.name for path in CONFIGS.iterdir() if path.is_dir()} - {"hydra"}

trained: list[Config] = []
"""The runs of this launch, for the report at its end."""

failed: list[RunFailed] = []
"""One for each job of this launch with a run that failed."""

home: int | None = None
"""The process in which main() runs; jobs of other launchers than ours may run in others."""


class JobEnded(Exception):
    """A job in another process ended without a result. An Exception, which every launcher hands over.

    Its arguments are the line that tells why, and the exit status.
    """


def train(configs: Sequence[Config], hydra: Any) -> list[Record]:
    """:func:`wn.sweep.train_sweep` within the limits of ``hydra.launcher``, noted in :data:`trained`.

    A run that several experiments have is trained for the first; then the others take over its result (with
    ``trainer.force`` each trains its own).
    """
    limits = {name: hydra.launcher.get(name) for name in ("members", "workers")}
    for name, limit in limits.items():
        if limit is not None and not (isinstance(limit, int) and limit > 0):
            raise UserError(f"hydra.launcher.{name}={limit}: should be a positive whole number, or null")
    configs = _as_launched(configs, alone=len(configs) == 1 and hydra.mode == RunMode.RUN)
    folders: dict[str, list[Path]] = defaultdict(list)  # of each run, as many as experiments name it
    passes: dict[int, list[int]] = defaultdict(list)  # the first pass trains each run in its first folder
    for i, config in enumerate(configs):
        folder, known = Path(config.runs_dir, config.experiment_name), folders[config.run_id]
        if folder not in known:
            known.append(folder)
        passes[known.index(folder)].append(i)
    for i in itertools.chain(*list(passes.values())[1:]):  # the first pass reads its own before it trains
        Record.of(configs[i])  # a folder that cannot be read is refused before anything is trained
    records: dict[int, Record] = {}
    dry = any(config.trainer.dry_run for config in configs)
    for runs in passes.values():
        records |= zip(runs, train_sweep([configs[i] for i in runs], **limits), strict=True)
        if dry and not any(config.trainer.force for config in configs):
            return []  # the other passes would take over what this one trains
    if dry:
        return []
    trained.extend(configs)
    return [records[i] for i in range(len(configs))]


def _as_launched(configs: Sequence[Config], alone: bool) -> list[Config]:
    """The runs with what follows from how they are launched: whether a model is kept, the group on W&B."""
    ids = sorted({config.run_id for config in configs})
    if tracking.trial() and len(ids) > 1:
        raise UserError("wandb agent: a trial is one run; leave out -m, and give one value of each setting")
    adhoc = Config.model_fields["experiment_name"].default
    sweep = f"{adhoc}-{hashlib.sha256(''.join(ids).encode()).hexdigest()[:8]}"
    launched = []
    for config in configs:
        save, group = config.trainer.save, config.tracking.group
        if group is None and len(ids) > 1 and config.experiment_name == adhoc:
            group = sweep
        parts = {
            "trainer": config.trainer.model_copy(update={"save": alone if save is None else save}),
            "tracking": config.tracking.model_copy(update={"group": group}),
        }
        launched.append(config.model_copy(update=parts))
    return launched


class Jobs:
    """The jobs of a sweep.

    Hydra takes a tenth of a second to compose a choice of presets, so it does that once for each. Plain
    numbers, of which a sweep has hundreds, are then set on that tree as they are.
    """

    def __init__(self, context: HydraContext, config: DictConfig) -> None:
        loader: Any = context.config_loader
        load, self.config = loader.load_sweep_config, config
        parser = OverridesParser.create(config_loader=loader)
        self.parse = functools.cache(lambda text: parser.parse_overrides([text])[0])
        self.compose = functools.cache(lambda presets: load(config, list(presets)))
        self.tree = functools.cache(lambda presets: plain(self.compose(presets)))
        # Hydra's sweeper checks every job by composing it through this loader: now once a choice of presets.
        # (``load``, above, is the method that is replaced here.)
        loader.load_sweep_config = lambda master_config, sweep_overrides: self.compose(
            self._presets(sweep_overrides)
        )
        self._check()

    def _check(self) -> None:
        """Refuse a sweep that is too large, or has no folder, before Hydra's sweeper falls over it."""
        check_hydra(self.config.hydra)
        overrides = map(self.parse, self.config.hydra.overrides.task)
        sweeps = [override.sweep_iterator() for override in overrides if override.is_discrete_sweep()]
        runs = math.prod(
            sum(1 for _ in itertools.islice(values, experiments.LARGEST + 1)) for values in sweeps
        )
        if not runs:
            raise UserError("no runs: a range(...) or glob(...) has no value")
        if runs > experiments.LARGEST:
            raise UserError(f"more than {experiments.LARGEST:,} runs in one sweep; give fewer values")
        parse({key: self.config[key] for key in ("runs_dir", "experiment_name")})  # Hydra makes that folder
        try:
            Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if ends_training(error):
                raise
            why = f"cannot be written to ({error.strerror}); name another folder with runs_dir=..."
            raise UserError(f"{self.config.hydra.sweep.dir}: {why}") from None

    def train(self, job_overrides: Sequence[Sequence[str]]) -> list[JobReturn]:
        """Train the runs of all jobs, or none if one raises UserError; each returns its :func:`summary`."""
        Path(self.config.hydra.sweep.dir, "multirun.yaml").unlink(missing_ok=True)  # the records tell it all
        jobs = [self._configs(texts) for texts in job_overrides]
        records = iter(train([config for job in jobs for config in job], self.config.hydra))
        returns = []
        for texts, job in zip(job_overrides, jobs, strict=True):
            done = JobReturn(overrides=list(texts), status=JobStatus.COMPLETED)
            done.return_value = summary(list(itertools.islice(records, len(job))))
            returns.append(done)
        return returns

    def _configs(self, texts: Sequence[str]) -> list[Config]:
        presets = self._presets(texts)
        tree, overrides = copy.deepcopy(self.tree(presets)), [self.parse(text) for text in texts]
        for override in overrides:
            if override.input_line not in presets:
                set_value(tree, override.key_or_group, override.value())
        experiment = self.compose(presets).hydra.runtime.choices.get("experiment")
        return expand(tree, experiment, overrides)

    def _presets(self, texts: Sequence[str]) -> tuple[str, ...]:
        """All overrides but those that only give a field another number."""
        return tuple(text for text in texts if not _sets_a_number(self.parse(text)))


def _sets_a_number(override: Override) -> bool:
    is_field = "." in override.key_or_group or override.key_or_group == "seed"
    changes_keys = override.is_add() or override.is_force_add() or override.is_delete()
    return is_field and not changes_keys and type(override.value()) in (int, float)


def named_plugins(words: Sequence[str]) -> list[str]:
    """The files of code that a command line names, itself or by the experiments that it chooses."""
    files: list[str] = []
    for word in words:
        key = word.lstrip("+").partition("=")[0]
        if key not in ("plugins", "experiment"):
            continue
        with contextlib.suppress(HydraException):  # which Hydra itself will tell
            override = OverridesParser.create().parse_overrides([word])[0]
            value = list(override.sweep_iterator()) if override.is_sweep_override() else override.value()
            values = listed(value)
            chosen = [experiments.load(name) for name in values if name in experiments.names()]
            files += values if key == "plugins" else [file for one in chosen for file in one.plugins]
    return files


def check_hydra(hydra: Any) -> None:
    """Raise UserError for a change of Hydra's own settings that it would ignore, or that would mislead."""
    if hydra.job.chdir:
        raise UserError("hydra.job.chdir=true: records would lie where no report looks; leave it out")
    free = ["hydra.job.env_set."]  # and what the launchers and sweepers of others take
    for part, ours in (("launcher", "StackedLauncher"), ("sweeper", "BasicSweeper")):
        if not hydra[part]["_target_"].endswith(ours):
            free.append(f"hydra.{part}.")
    for text in hydra.overrides.hydra:
        if text[0] in "+~" and not text.lstrip("+").startswith(tuple(free)):
            raise UserError(f"{text}: no key of Hydra's is added or left out; see --cfg hydra")


def plain(tree: DictConfig) -> dict[str, Any]:
    """What Hydra composed as plain data with its interpolations, without Hydra's own part."""
    whole: Any = OmegaConf.to_container(OmegaConf.masked_copy(tree, [str(k) for k in tree if k != "hydra"]))
    return dict(whole)


def expand(tree: dict[str, Any], experiment: str | None, overrides: Sequence[Override]) -> list[Config]:
    """The runs that a composed tree stands for: itself, or those of the experiment that was chosen.

    Raises:
        UserError: the tree is no configuration; an override is none that Hydra would honour; or it is at odds
            with the experiment: it asks for runs that it has not, or would train runs that its table lacks.
    """
    if "${" in str(tree):
        tree = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)  # type: ignore[assignment]
    for override in overrides:
        key = override.key_or_group
        if override.is_delete():
            raise UserError(f"~{key}: nothing can be left out; write {key}=... with a value")
        if key in GROUPS and not isinstance(override.value(), str):
            raise UserError(f"{override.input_line}: {key}= takes the name of a preset")
    composed = parse(tree)
    if experiment is None:
        return [composed]
    plan = experiments.load(experiment)
    values = {o.key_or_group: o.value() for o in overrides if o.key_or_group != "experiment"}
    # What the runs differ in is restricted to the wanted value; any other setting would change what they are.
    differ = {*plan.axes, *plan.own}
    wanted = {key: value for key, value in values.items() if key in differ}
    free = {key for key in values if key in wanted or (key, values[key]) in plan.fixed.items()}
    settings = {key: value for key, value in values.items() if decides(key) and key not in free}
    runs = plan.runs({**settings, "experiment_name": composed.experiment_name})
    changed = bool(settings) and [run.config.run_id for run in runs] != [c.run_id for c in plan.configs()]
    if changed and composed.experiment_name == experiment:
        raise UserError(
            f"{_texts(overrides, settings)}: experiment {experiment} fixes its numbers; for one of your own "
            f"add experiment_name=NAME, or copy experiments/{experiment}.yaml and change the copy"
        )
    chosen = [run for run in runs if all(_has(run, key, value, composed) for key, value in wanted.items())]
    if not chosen:
        asked = _texts(overrides, wanted)
        raise UserError(f"{asked}: the experiment has no such run; its file names those that it has")
    return [run.config.placed_as(composed) for run in chosen]


def _has(run: experiments.Run, key: str, value: Any, composed: Config) -> bool:
    """Whether a run has the wanted preset, or the wanted value as ``composed`` has understood it."""
    if key in GROUPS:
        return bool(str(run.cell[key]).partition(" ")[0] == value)
    section, _, field = key.rpartition(".")
    mine, theirs = (getattr(c, section) if section else c for c in (run.config, composed))
    return bool(getattr(mine, field) == getattr(theirs, field, None))


def _texts(overrides: Sequence[Override], keys: dict[str, Any]) -> str:
    return " ".join(str(override.input_line) for override in overrides if override.key_or_group in keys)


def summary(records: Sequence[Record]) -> float:
    """What a sweeper may minimise: the mean of the runs' final validation losses; NaN where one failed."""
    if not records:  # of a dry run
        return math.nan
    try:
        return math.fsum(map(final_loss, records)) / len(records)
    except RunFailed as error:  # told at the end; Hydra would print its own lines about it
        failed.append(error)
        return math.nan
