"""Many runs: skip what is done, take up what was cut short, train the rest in stacks."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from wn import memory, records, tracking
from wn.config import Config
from wn.records import Record
from wn.run import check, prepare, title, train_stack
from wn.trainer import steps_per_epoch
from wn.workers import share_out

WORKER_STEPS = 4_000
"""Steps of a single run that a worker process must be given to make up for its start of some seconds."""


class Job(NamedTuple):
    """A stack to train."""

    configs: list[Config]
    resuming: bool


def train_sweep(
    configs: Sequence[Config], members: int | None = None, workers: int | None = None
) -> list[Record]:
    """Train every run that is not done yet, and return all their records.

    Args:
        configs: the runs, in any number of architectures; the same run twice counts once.
        members: the largest stack; None chooses what fits memory and cache.
        workers: processes to train in; None chooses: one, or on a CPU with enough to do one per core.

    Raises:
        UserError: one of them cannot be trained here.
        WorkerDied: a worker process ended early; the other runs are trained.
    """
    runs = {config.run_id: config for config in configs}
    todo = outstanding(configs)
    _say(f"{len(runs)} runs: {len(runs) - len(todo)} done before, {len(todo)} to train")
    workers = workers or _workers(runs.values(), todo.values())
    cut_short = _interrupted(runs, todo)
    taken = {key for ids in cut_short for key in ids}
    fresh = [config for key, config in todo.items() if key not in taken]
    jobs = [Job([runs[key] for key in ids], True) for ids in cut_short]
    jobs += [Job(stack, False) for stack in _stacks(fresh, members, workers, len(runs))]
    share_out(jobs, _train, workers)
    return [Record.of(config) for config in configs]


def outstanding(configs: Sequence[Config]) -> dict[str, Config]:
    """The runs, by run_id, that neither this experiment nor another has done; all can be trained here.

    Raises:
        UserError: one of them cannot.
    """
    runs = {config.run_id: config for config in configs}
    missing = {key: config for key, config in runs.items() if not Record.of(config).done}
    todo = {key: config for key, config in missing.items() if not records.adopt(config)}
    if len(todo) < len(missing):
        _say(f"{len(missing) - len(todo)} runs taken over from other experiments")
    check(todo.values())
    return todo


def _train(job: Job) -> None:
    """Train one stack, copy it to W&B (a run alone is copied while it trains), and say what came of it."""
    stack, resuming = job
    started = time.monotonic()
    train_stack(stack, resuming)
    ended = [Record.of(config) for config in stack]
    if len(stack) > 1:
        here = [record for record in ended if record.status not in ("new", "running")]  # not elsewhere
        tracking.mirror_all(here, stack[0].tracking)
    _say(f"{title(stack)}: {_outcome(ended, time.monotonic() - started)}")


def _outcome(ended: list[Record], seconds: float) -> str:
    """What became of a stack, or, in more detail, of a run alone."""
    if len(ended) > 1:
        counts = Counter(record.status for record in ended)
        return ", ".join(f"{n} {status}" for status, n in counts.items()) + f" in {seconds:.1f} s"
    error = ended[0].content.get("final", {}).get("valid_error")
    shown = "" if error is None else f", validation error {100 * error:.2f} %"
    return f"{ended[0].status} in {seconds:.1f} s{shown}, record {ended[0].folder}"


def _say(line: str) -> None:
    print(line, flush=True)


def _interrupted(runs: dict[str, Config], todo: dict[str, Config]) -> list[list[str]]:
    """The stacks, as lists of run_ids, that were cut short and whose members are all among ``runs``.

    Not those that failed: the user may have asked for smaller ones.
    """
    unfinished = [record for record in map(Record.of, todo.values()) if record.status == "running"]
    named = [record.content["stack"] for record in unfinished]
    unique = {tuple(ids): list(ids) for ids in named}
    return [ids for ids in unique.values() if all(key in runs for key in ids)]


def _workers(runs: Iterable[Config], todo: Iterable[Config]) -> int:
    """How many processes are worth their start: one, unless a CPU has more cores and enough to do.

    What is done already counts as well: a sweep that was cut short goes on as it began.
    """
    prepared = {(c.data, c.trainer): prepare(c) for c in todo}
    if any(device.type != "cpu" for device, _ in prepared.values()):
        return 1
    known = [(c, prepared[c.data, c.trainer][1]) for c in runs if (c.data, c.trainer) in prepared]
    steps = sum(config.trainer.epochs * steps_per_epoch(config, dataset) for config, dataset in known)
    return max(1, min(torch.get_num_threads(), steps // WORKER_STEPS))


def _stacks(
    configs: list[Config], members: int | None = None, workers: int = 1, runs: int = 0
) -> list[list[Config]]:
    """Runs that can train together, together: in stacks of nearly equal size, by their first member's place.

    Where no size is given, a stack fits memory and cache, and a sweep of so many ``runs`` makes enough
    of them to keep all workers busy.
    """
    groups: dict[str, list[Config]] = defaultdict(list)
    for config in configs:
        groups[config.stack_key].append(config)
    stacks = []
    for group in groups.values():
        largest = members or min(stack_size(group, workers), -(-max(runs, len(configs)) // workers))
        count = -(-len(group) // largest)
        stacks += [group[i::count] for i in range(count)]
    place = {config.run_id: i for i, config in enumerate(configs)}
    return sorted(stacks, key=lambda stack: place[stack[0].run_id])


def stack_size(group: list[Config], workers: int) -> int:
    """How many members of a group may train together where each worker plans with its share of the memory."""
    if len(group) == 1:
        return 1
    device, dataset = prepare(group[0])
    return memory.largest_stack(group[0], dataset, device, 1 / workers)
