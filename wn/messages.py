"""What a sweep says: what there is to train, what it costs, what came of it."""

from __future__ import annotations

import contextlib
import functools
import statistics
import subprocess
import sys
from collections import Counter, defaultdict

import torch

from wn import again, cost, tracking
from wn.config import Config, idle
from wn.data import Dataset
from wn.metrics import ELBO, objective_of
from wn.provenance import git_state, other_code, source
from wn.records import Record
from wn.run import title

MEASURING = ("probe_every", "test_every", "iwae_samples", "iwae_images")
"""Settings of the trainer that are no part of a run's identity and decide what its record holds (those of
the IWAE bound: a VAE's)."""

Resolved = dict[str, tuple[torch.device, Dataset]]
"""Device and data of runs, by run_id."""


def say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody reads any more (``| head``); training goes on
        print(line, flush=True)


def counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def announce(runs: dict[str, Config], records: dict[str, Record], todo: list[str], reused: int) -> None:
    """How much there is to do, and what a user should know before it begins."""
    if reused:
        say(f"{counted(reused, 'run')} taken over from other experiments")
    say(f"{counted(len(runs), 'run')}: {len(runs) - len(todo)} done before, {len(todo)} to train")
    done = [record for record in records.values() if record.done]
    if len(runs) == 1 and done:
        (config,) = runs.values()
        say(f"{title([config])}: {outcome(config, done)}")
        if tracking.trial():  # of an agent that has given the same settings before
            tracking.mirror_all(records.values(), config.tracking)
    _earlier(runs, done)
    for line in sorted({line for config in runs.values() for line in idle(config)}):
        say(line)
    if todo:
        unknown_commit()


@functools.cache  # once a process
def unknown_commit() -> None:
    if git_state()["commit"] is None:
        where = "no git checkout of this project, or no git"
        say(f"no commit is known ({where}): records name the code by its hash alone, {source()}")


def _earlier(runs: dict[str, Config], done: list[Record]) -> None:
    """Say of records from earlier launches what trainer.force would change."""
    told = Counter(other_code(record.content["provenance"]) for record in done)
    for line in told.keys() - {""}:
        say(f"{told[line]} of them {line}")
    without = [r for r in done if r.status == "finished" and "model" not in r.content]
    if count := sum(bool(runs[record.folder.name].trainer.save) for record in without):
        say(f"{count} of them kept no model; trainer.force=true trains again")
    for key in MEASURING:
        if count := sum(_differs(runs[record.folder.name], record, key) for record in done):
            say(f"{count} of them were measured with another trainer.{key}; trainer.force=true trains again")


def _differs(config: Config, record: Record, key: str) -> bool:
    """Whether the run was measured with another value of a setting than is asked for now."""
    applies = not key.startswith("iwae") or objective_of(config.model) is ELBO
    asked = getattr(config.trainer, key)
    return applies and record.content["config"]["trainer"].get(key, asked) != asked


def module(name: str, *arguments: str) -> int:
    """The exit status of ``python -m name``, run after what was said so far."""
    sys.stdout.flush()
    return subprocess.run([sys.executable, "-m", name, *arguments]).returncode


def costs(stacks: list[list[Config]], resolved: Resolved, workers: int) -> None:
    """Of a dry run: the time on each device."""
    say(f"{counted(len(stacks), 'stack')} to train" if stacks else "nothing to train")
    places: dict[tuple[torch.device, int], list[list[Config]]] = defaultdict(list)
    for stack in stacks:
        device, dataset = resolved[stack[0].run_id]
        places[device, id(dataset)].append(stack)
    for (device, _), own in places.items():
        say(cost.estimate(own, device, resolved[own[0][0].run_id][1], min(workers, len(own))))


def outcome(config: Config, ended: list[Record], seconds: float | None = None) -> str:
    """How the runs of a stack ended, with their validation metric; of a run alone, where its record is."""
    counts = Counter(record.status for record in ended)
    alone = len(ended) == 1
    text = ended[0].status if alone else ", ".join(f"{n} {status}" for status, n in counts.items())
    if seconds is not None:
        text += f" in {seconds:.1f} s"
    metric = objective_of(config.model).selection_metric
    finals = [r.content["final"].get(f"valid_{metric}") for r in ended if r.status == "finished"]
    if values := [value for value in finals if value is not None]:
        text += f", validation {metric} {_shown(metric, min(values))}"
        if not alone:
            text += f" at best, {_shown(metric, statistics.median(values))} in the median"
    place = again.place_of(ended[0]) if config.trainer.force else ended[0]
    return f"{text}, record {place.folder}" if alone else text


def _shown(metric: str, value: float) -> str:
    return f"{100 * value:.2f} %" if metric == "error" else f"{value:.2f} nats"
