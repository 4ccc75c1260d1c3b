"""Many runs: skip what is done, take up what was cut short, train the rest in stacks."""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from wn import again, cost, plugins, tracking
from wn.config import Config, idle
from wn.data import Dataset
from wn.metrics import objective_of
from wn.processes import Preempted, StopWatcher, WorkerDied, map_workers
from wn.provenance import git_state, other_code, source
from wn.records import Record
from wn.resources import OTHER_FILES, devices_here, largest_stack, open_files, resolve
from wn.run import title, train_stack
from wn.trainer import steps_per_epoch

WORKER_STEPS = 4_000  # of single runs, to amortise the seconds that a worker takes to start
POLL_SECONDS = 2.0  # between two looks at what other processes train

Resolved = dict[str, tuple[torch.device, Dataset]]


def _say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody reads any more (``| head``); training goes on
        print(line, flush=True)


def train_sweep(
    configs: Sequence[Config], members: int | None = None, workers: int | None = None
) -> list[Record]:
    """Train every run that is not done yet, and return the records of all; the same run twice counts once.

    The same command may run elsewhere at the same time, on the same folder: what a process has claimed is
    left to it, and waited for at the end (but not what ``trainer.force`` trains again). What it leaves undone
    is taken over.

    Args:
        members: the largest stack; None chooses by architecture and device.
        workers: processes to train in; None chooses: one, or with enough to do one per core or GPU.

    Raises:
        UserError: one of them cannot be trained here; none is trained.
        Preempted: training was asked to stop; what was in training is saved.
    """
    ids = [config.run_id for config in configs]
    runs = dict(zip(ids, configs, strict=True))
    records = {run_id: Record.of(config, run_id) for run_id, config in runs.items()}
    dry = any(config.trainer.dry_run for config in configs)
    forced = {run_id for run_id, config in runs.items() if config.trainer.force}
    if not dry:
        _finish_replacing(forced, runs, records)
    missing = {run_id: record for run_id, record in records.items() if not record.done}
    reused = set() if dry else again.reuse(r for run_id, r in missing.items() if run_id not in forced)
    todo = [run_id for run_id in missing if run_id not in reused]
    if dry and (download := cost.to_download([runs[run_id] for run_id in todo])):
        _say(f"{len(runs)} runs: {len(todo)} to train; {download}")
        return [records[run_id] for run_id in ids]
    resolved = _resolve({run_id: runs[run_id] for run_id in todo})
    _announce(runs, records, todo, len(reused))
    workers = workers or _workers(runs, resolved)

    def plan(held: set[str]) -> list[list[Config]]:
        cut = _interrupted([records[run_id] for run_id in todo], runs)
        taken = {run_id for stack in cut for run_id in stack} | held
        fresh = {run_id: runs[run_id] for run_id in todo if run_id not in taken}
        free = [stack for stack in cut if held.isdisjoint(stack)]
        stacks = free + _stacks(fresh, resolved, members, workers, len(runs))
        return [[runs[run_id] for run_id in stack] for stack in stacks]

    if dry:
        _say_cost(plan(set()), resolved, workers)
        return [records[run_id] for run_id in ids]
    begun, train = bool(todo), functools.partial(_train, plugins.loaded())
    held: set[str] = set()  # not looked up at first, so that the same command elsewhere plans the same stacks
    blocked: set[str] = set()  # held by nobody and yet not trained: others of a stack that was cut short are
    with _stops_counted(runs):
        while todo:
            for stack, death in map_workers(train, plan(held), workers):
                _fail(stack, death)
            if left := [key for key in _left(todo, runs, records, missing) if key not in forced]:
                _wait([records[run_id] for run_id in left], blocked, runs[left[0]].trainer.max_minutes)
                left = _left(left, runs, records, missing)
                held = {run_id for run_id in left if records[run_id].held()}
                blocked = {*left} - held
            todo = left
    records |= {run_id: Record.of(runs[run_id], run_id) for run_id in reused}
    _replace(forced, records)
    if begun:
        _say_best([(runs[run_id], record) for run_id, record in records.items()])
    return [records[run_id] for run_id in ids]


Records = dict[str, Record]


@contextlib.contextmanager
def _stops_counted(runs: dict[str, Config]) -> Iterator[None]:
    """Inside, a stop that ends a sweep says how many of its runs are done, here or elsewhere."""
    try:
        yield
    except Preempted as stopped:
        if len(runs) > 1:
            done = sum(Record.of(config, run_id).done for run_id, config in runs.items())
            stopped.so_far = f"{done} of {len(runs)} runs are done"
        raise


def _finish_replacing(forced: set[str], runs: dict[str, Config], records: Records) -> None:
    """An earlier training anew may have been stopped when it was done, before it took its place."""
    for run_id in forced:
        if records[run_id].done and other_code(records[run_id].content["provenance"]):
            again.replace(records[run_id])
            records[run_id] = Record.of(runs[run_id], run_id)


def _replace(forced: set[str], records: Records) -> None:
    replaced = [again.replace(records[run_id]) for run_id in forced if records[run_id].done]
    records |= {record.folder.name: record for record in replaced}
    for experiment in {record.folder.parent for record in replaced}:
        _say(f"trained again; the old records are in {experiment / 'before'}")


def _announce(runs: dict[str, Config], records: Records, todo: list[str], reused: int) -> None:
    if reused:
        _say(f"{reused} runs taken over from other experiments")
    _say(f"{len(runs)} runs: {len(runs) - len(todo)} done before, {len(todo)} to train")
    if len(runs) == 1 and not todo:
        (config,) = runs.values()
        _say(f"{title([config])}: {_outcome(config, list(records.values()))}")
        if tracking.trial():  # of an agent that has given the same settings before
            tracking.mirror_all(records.values(), config.tracking)
    _tell(runs, [record for record in records.values() if record.done])
    for line in sorted({line for config in runs.values() for line in idle(config)}):
        _say(line)
    if todo:
        _say_unknown_commit()


@functools.cache  # once a process
def _say_unknown_commit() -> None:
    if git_state()["commit"] is None:
        where = "no git checkout of this project, or no git"
        _say(f"no commit is known ({where}): records name the code by its hash alone, {source()}")


def _left(todo: list[str], runs: dict[str, Config], records: Records, missing: Records) -> list[str]:
    """What is neither done nor has failed since it was found missing; reads these records again."""
    records |= {run_id: Record.of(runs[run_id], run_id) for run_id in todo}
    return [run_id for run_id in todo if not _ended(records[run_id], since=missing[run_id])]


def _ended(record: Record, since: Record) -> bool:
    """Whether a run is done, or has failed after a look at it."""
    return record.done or (record.status == "failed" and record.content != since.content)


def _wait(left: list[Record], blocked: set[str], max_minutes: float | None) -> None:
    """Wait until one of these runs, the ``blocked`` ones apart, is in training nowhere.

    Then its process has finished it, or was stopped.
    """
    held = [record for record in left if record.held()]
    if not held:
        return
    watched = [record for record in left if record in held or record.folder.name not in blocked]
    where = f"waiting for {len(held)} runs that other processes train"
    _say(where)
    watcher = StopWatcher(max_minutes)
    while True:
        if stop := watcher.stop(where):
            raise stop
        time.sleep(POLL_SECONDS)
        if not all(record.held() for record in watched):
            return


def _tell(runs: dict[str, Config], done: list[Record]) -> None:
    """Say of records from earlier launches what trainer.force would change."""
    told = Counter(other_code(record.content["provenance"]) for record in done)
    for line in told.keys() - {""}:
        _say(f"{told[line]} of them {line}")
    without = [r for r in done if r.status == "finished" and "model" not in r.content]
    if count := sum(bool(runs[record.folder.name].trainer.save) for record in without):
        _say(f"{count} of them kept no model; trainer.force=true trains again")


def _say_cost(stacks: list[list[Config]], resolved: Resolved, workers: int) -> None:
    _say(f"{len(stacks)} stack{'s' * (len(stacks) > 1)} to train" if stacks else "nothing to train")
    places: dict[tuple[torch.device, int], list[list[Config]]] = defaultdict(list)
    for stack in stacks:
        device, dataset = resolved[stack[0].run_id]
        places[device, id(dataset)].append(stack)
    for (device, _), own in places.items():
        for line in cost.estimate(own, device, resolved[own[0][0].run_id][1], min(workers, len(own))):
            _say(line)


def _resolve(runs: dict[str, Config]) -> Resolved:
    """Device and data of every run; looked up once for all that share them."""
    shared = {run_id: (c.model, c.norm, c.data, c.trainer) for run_id, c in runs.items()}
    known = {shared[run_id]: config for run_id, config in runs.items()}
    resolved = {key: resolve(config) for key, config in known.items()}
    return {run_id: resolved[key] for run_id, key in shared.items()}


def _interrupted(unfinished: list[Record], runs: dict[str, Config]) -> list[list[str]]:
    """The stacks that were cut short and whose members are all among ``runs``.

    Not those that failed: the user may have asked for smaller ones.
    """
    stacks = dict.fromkeys(tuple(r.content["stack"]) for r in unfinished if r.status == "running")
    return [list(stack) for stack in stacks if runs.keys() >= {*stack}]


def _workers(runs: dict[str, Config], resolved: Resolved) -> int:
    """One per core, or per GPU that the runs may use, with enough work to amortise the start-up.

    What is done already counts as well: a sweep that was cut short goes on as it began.
    """
    gpus = [
        len(devices_here(runs[key].trainer.device))
        for key, (device, _) in resolved.items()
        if device.type != "cpu"
    ]
    known = {(runs[key].data, runs[key].trainer): dataset for key, (_, dataset) in resolved.items()}
    shared = [(c, known.get((c.data, c.trainer))) for c in runs.values()]
    steps = sum(c.trainer.epochs * steps_per_epoch(c, dataset) for c, dataset in shared if dataset)
    return max(1, min(max(gpus, default=torch.get_num_threads()), steps // WORKER_STEPS))


def _stacks(
    fresh: dict[str, Config], resolved: Resolved, members: int | None = None, workers: int = 1, runs: int = 0
) -> list[list[str]]:
    """Group runs into stacks of nearly equal size, in the order of their first members.

    Where no size is given, there are enough stacks to keep all workers busy in a sweep of so many ``runs``.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for run_id, config in fresh.items():
        groups[config.stack_key].append(run_id)
    stacks = []
    for group in groups.values():
        most = min(members or -(-max(runs, len(fresh)) // workers), max(1, open_files() - OTHER_FILES))
        if members is None and len(group) > 1:
            most = min(most, largest_stack(fresh[group[0]], *resolved[group[0]], workers))
        count = -(-len(group) // most)
        stacks += [group[i::count] for i in range(count)]
    place = {run_id: i for i, run_id in enumerate(fresh)}
    return sorted(stacks, key=lambda stack: place[stack[0]])


def _train(own: list[tuple[Path, str]], stack: list[Config]) -> None:
    """Train one stack, copy it to W&B (a run alone is copied while it trains), and say what came of it.

    ``own``: the user's files, which a worker process has to run as the parent did.
    """
    plugins.load_again(own)
    started = time.monotonic()
    if not train_stack(stack):  # another process was quicker
        return
    ended = [record for record in map(Record.of, stack) if record.status not in ("new", "running")]
    if len(stack) > 1 and stack[0].tracking.mode != "disabled":
        tracking.mirror_all(ended, stack[0].tracking)
    _say(f"{title(stack)}: {_outcome(stack[0], ended, time.monotonic() - started)}")


def _fail(stack: list[Config], death: WorkerDied) -> None:
    for config in stack:
        record = Record.of(config)
        if record.claim():
            if not record.done:
                record.begin(config, [c.run_id for c in stack], "unknown")
                record.save(status="failed", error=str(death))
            record.release()
    _say(f"{title(stack)}: failed: {death}")


def _outcome(config: Config, ended: list[Record], seconds: float | None = None) -> str:
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


def _say_best(done: list[tuple[Config, Record]]) -> None:
    """The best learning rate of each norm, by the mean over its seeds, where there is a choice."""
    sets: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    titles = {}
    for config, record in done:
        metric = objective_of(config.model).selection_metric
        alike = config.model_copy(update={"seed": 0, "optim": config.optim.model_copy(update={"lr": 1.0})})
        value = record.content["final"].get(f"valid_{metric}") if record.status == "finished" else None
        sets[alike.run_id][config.optim.lr].append(math.inf if value is None else value)
        titles[alike.run_id] = f"{config.model.name} {config.norm.label} {config.optim.name}", metric
    for key, (name, metric) in titles.items():
        means = {lr: statistics.fmean(values) for lr, values in sets[key].items()}
        best = min(means, key=means.__getitem__)
        if len(means) > 1 and means[best] < math.inf and list(titles.values()).count((name, metric)) == 1:
            seeds = f"mean of {len(sets[key][best])} seeds" if len(sets[key][best]) > 1 else "one seed"
            _say(f"{name}: best lr {best:g}, validation {metric} {_shown(metric, means[best])} ({seeds})")


def _shown(metric: str, value: float) -> str:
    return f"{100 * value:.2f} %" if metric == "error" else f"{value:.2f} nats"
