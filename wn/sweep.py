"""Many runs: skip what is done, take up what was cut short, train the rest in stacks."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from wn import again, cost, messages, plugins, tracking
from wn.config import Config
from wn.messages import Resolved, counted, say
from wn.processes import WorkerDied, map_workers
from wn.provenance import other_code
from wn.records import Record
from wn.resources import OTHER_FILES, devices_here, largest_stack, open_files, resolve
from wn.run import title, train_stack
from wn.stops import Preempted, StopWatcher
from wn.trainer import steps_per_epoch

WORKER_STEPS = 4_000  # of single runs, to amortise the seconds that a worker takes to start
POLL_SECONDS = 2.0  # between two looks at what other processes train


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
    reused = again.reuse((r for run_id, r in missing.items() if run_id not in forced), dry)
    todo = [run_id for run_id in missing if run_id not in reused]
    if dry and (download := cost.to_download([runs[run_id] for run_id in todo])):
        say(f"{counted(len(runs), 'run')}: {len(todo)} to train; {download}")
        return [records[run_id] for run_id in ids]
    resolved = _resolve({run_id: runs[run_id] for run_id in todo})
    messages.announce(runs, records, todo, len(reused))
    workers = workers or _workers(runs, resolved)

    def plan(held: set[str]) -> list[list[Config]]:
        cut = _interrupted([records[run_id] for run_id in todo], runs)
        taken = {run_id for stack in cut for run_id in stack} | held
        fresh = {run_id: runs[run_id] for run_id in todo if run_id not in taken}
        free = [stack for stack in cut if held.isdisjoint(stack)]
        stacks = free + _stacks(fresh, resolved, members, workers, len(runs))
        return [[runs[run_id] for run_id in stack] for stack in stacks]

    if dry:
        messages.costs(plan(set()), resolved, workers)
        return [records[run_id] for run_id in ids]
    train = functools.partial(_train, plugins.loaded())
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
    _replace(forced, records)
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
    for before in {record.folder.parent / "before" for record in replaced}:
        if before.is_dir():  # none where nothing was there before
            say(f"trained again; the old records are in {before}")


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
    where = f"waiting for {counted(len(held), 'run')} that other processes train"
    say(where)
    watcher = StopWatcher(max_minutes)
    while True:
        if stop := watcher.stop(where):
            raise stop
        time.sleep(POLL_SECONDS)
        if not all(record.held() for record in watched):
            return


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
    say(f"{title(stack)}: {messages.outcome(stack[0], ended, time.monotonic() - started)}")


def _fail(stack: list[Config], death: WorkerDied) -> None:
    for config in stack:
        record = Record.of(config)
        if record.claim():
            if not record.done:
                record.begin(config, [c.run_id for c in stack], "unknown")
                record.save(status="failed", error=str(death))
            record.release()
    say(f"{title(stack)}: failed: {death}")
