"""Worker processes: everything is done once, and none outlives or outwaits the others."""

from __future__ import annotations

import errno
import functools
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections import Counter
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from sweep_cases import grid, outcome, tiny

from wn import processes, stops, sweep
from wn.config import Config, UserError
from wn.processes import WorkerDied, map_workers
from wn.records import Damaged, Record
from wn.run import RunFailed
from wn.stops import Preempted, StopWatcher

train_one = sweep._train  # a test replaces it

HELP_COMES = 60.0
"""Seconds that another process has to start."""


def note(folder: Path, item: int) -> None:
    """Write down who did an item."""
    (folder / f"{item}-{os.getpid()}").touch()


def note_in_company(folder: Path, item: int) -> None:
    """The same, but nobody goes on before two processes have come."""
    note(folder, item)
    until(lambda: len({name.partition("-")[2] for name in os.listdir(folder)}) == 2)


def die_abroad(folder: Path, parent: int, deadly: int, item: int) -> None:
    """The same, but a process other than this one dies of the deadly item, and here it is waited for that."""
    if os.getpid() == parent:
        if item == 0:
            until(lambda: len([name for name in os.listdir(folder) if name.startswith(f"{deadly}-")]) == 2)
        return note(folder, item)
    note(folder, item)
    if item == deadly:
        os.kill(os.getpid(), signal.SIGKILL)


def die_once(folder: Path, parent: int, item: int) -> None:
    """The first other process dies of its first item."""
    note(folder, item)
    if os.getpid() != parent:
        try:
            (folder.parent / "died").touch(exist_ok=False)
        except FileExistsError:
            return
        os._exit(3)
    if item == 0:
        until(lambda: len(os.listdir(folder)) > 3 and (folder.parent / "died").exists())


def die_abroad_first(folder: Path, parent: int, item: int) -> None:
    """Another process dies of its first item, while this one has one."""
    note(folder, item)
    if os.getpid() != parent:
        os._exit(3)
    wait_for_a_stop()


def fail_abroad(folder: Path, parent: int, item: int) -> None:
    """Raise in another process; here wait until asked to stop."""
    note(folder, item)
    if os.getpid() != parent:
        raise UserError("not here")
    wait_for_a_stop()


def wait_for_a_stop(number: int | None = None) -> None:
    with StopWatcher(None) as watcher:
        if number is not None:
            os.kill(os.getpid(), number)
        until(lambda: watcher.stop("amid an item"))
        stop = watcher.stop("amid an item")
        assert stop is not None
        raise stop


def signal_abroad(folder: Path, parent: int, item: int) -> None:
    """SIGTERM to the other process alone; both stop."""
    note_in_company(folder, item)
    wait_for_a_stop(signal.SIGTERM if os.getpid() != parent else None)


def until(true: functools.partial[bool] | object) -> None:
    """Wait for something to be true."""
    end = time.monotonic() + HELP_COMES
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def share_with_a_process_that_ignores_the_end(folder: Path) -> None:
    """In a child: two processes that never finish."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, under which tests may run, has children ignore it
    map_workers(functools.partial(stay, folder), [0, 1], 2)


def stay(folder: Path, item: int) -> None:
    """Write down who has an item, and keep it; a worker holds the interpreter's lock all the time."""
    note(folder, item)
    if item and sys.platform == "linux":
        sum(range(10**12))
    time.sleep(10 * HELP_COMES)


@pytest.mark.usefixtures("quick_workers")
def test_every_item_is_done_once_by_two_processes(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    assert map_workers(functools.partial(note_in_company, tmp_path), range(6), 2) == []
    items, processes = zip(*(name.split("-") for name in os.listdir(tmp_path)), strict=True)
    assert Counter(items) == {str(item): 1 for item in range(6)}
    assert len(set(processes)) == 2
    assert torch.get_num_threads() == threads


def test_one_process_starts_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_context", pytest.fail)
    for items, workers in (([1, 2], 1), ([3], 5), ([], 5)):
        map_workers(functools.partial(note, tmp_path), items, workers)
    assert sorted(os.listdir(tmp_path)) == [f"{item}-{os.getpid()}" for item in (1, 2, 3)]


def test_who_comes_too_late_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    born, kind = [], multiprocessing.get_context("spawn").Process
    start = kind.start
    monkeypatch.setattr(kind, "start", lambda self: (born.append(self), start(self))[1])
    take = processes._Pool._take

    def taken(pool: Any, worker: Any = None) -> Any:
        """In this process only once there is another one, which then takes seconds to load torch."""
        if worker is None:
            until(lambda: born)
        return take(pool, worker)

    monkeypatch.setattr(processes._Pool, "_take", taken)
    map_workers(functools.partial(note, tmp_path), [1, 2], 2)
    assert len(os.listdir(tmp_path)) == 2
    assert [worker.exitcode for worker in born] == [-signal.SIGKILL]


@pytest.mark.usefixtures("quick_workers")
def test_what_kills_two_workers_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    work = functools.partial(die_abroad, tmp_path, os.getpid(), 1)
    ((item, death),) = map_workers(work, range(5), 2)
    assert (item, str(death)) == (1, "two worker processes died of it (SIGKILL)")
    assert isinstance(death, WorkerDied)
    tries = Counter(name.partition("-")[0] for name in os.listdir(tmp_path))
    assert tries == {"0": 1, "1": 2, "2": 1, "3": 1, "4": 1}


@pytest.mark.usefixtures("quick_workers")
def test_what_kills_one_worker_is_done_by_another(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    assert map_workers(functools.partial(die_once, folder, os.getpid()), range(4), 2) == []
    done = Counter(name.partition("-")[0] for name in os.listdir(folder))
    assert done.keys() == {"0", "1", "2", "3"}
    assert max(done.values()) == 2


@pytest.mark.usefixtures("quick_workers")
def test_an_item_whose_worker_cannot_be_replaced_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: ForkServerContext
) -> None:
    start, born = children.Process.start, []

    def once(process: Any) -> None:
        if born:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        born.append(start(process))

    monkeypatch.setattr(children.Process, "start", once)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        map_workers(functools.partial(die_abroad_first, tmp_path, os.getpid()), range(4), 2)


@pytest.mark.usefixtures("quick_workers")
def test_an_error_in_a_worker_stops_all_and_is_raised(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^not here$"):
        map_workers(functools.partial(fail_abroad, tmp_path, os.getpid()), range(5), 2)
    assert len(os.listdir(tmp_path)) == 2
    assert stops.STOP.value == 0


def test_what_crosses_between_processes_can_be_pickled() -> None:
    stop = Preempted("SIGTERM", "somewhere", 143)
    broken = OSError(28, "No space left on device")
    errors = [stop, KeyboardInterrupt(), Damaged(Path("a"), "b"), broken]
    for error in errors:
        there = processes._portable(error)
        assert str(pickle.loads(pickle.dumps(there))) == str(there)
    assert processes._portable(KeyboardInterrupt()).status == 130  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(stop)).status == 143
    assert not isinstance(stop, Exception)
    assert str(processes._portable(errors[2])) == "a: damaged (b)"
    assert "OSError: of no disk" in str(processes._portable(OSError("of no disk")))


@pytest.mark.usefixtures("quick_workers")
def test_a_stop_of_one_process_stops_all(tmp_path: Path) -> None:
    with pytest.raises(Preempted) as stopped:
        map_workers(functools.partial(signal_abroad, tmp_path, os.getpid()), range(5), 2)
    assert str(stopped.value) == "stopped: amid an item (SIGTERM); the same command goes on from here"
    assert stopped.value.status == 143
    assert len(os.listdir(tmp_path)) == 2
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGABRT)),
    ],
)
def test_no_worker_outlives_its_parent(
    tmp_path: Path, children: ForkServerContext, number: signal.Signals
) -> None:
    """However it ended, and though the worker is amid an operation that lets no other thread run."""
    main = children.Process(target=share_with_a_process_that_ignores_the_end, args=(tmp_path,))
    main.start()
    until(lambda: len(os.listdir(tmp_path)) == 2)
    os.kill(int(str(main.pid)), number)
    main.join()
    workers = [int(name.partition("-")[2]) for name in os.listdir(tmp_path)]
    (other,) = [pid for pid in workers if pid != main.pid]
    until(
        lambda: (
            not Path(f"/proc/{other}").exists() or "Z" in Path(f"/proc/{other}/stat").read_text().split()[2]
        )
    )


def train_in_company(folder: Path, stack: list[Config]) -> None:
    """Train a stack once two processes have one."""
    note_in_company(folder, stack[0].seed)
    train_one([], stack)


def die_of_seed_1(folder: Path, parent: int, own: list[Any], stack: list[Config]) -> None:
    """The worker dies as it trains this one; the others are trained."""
    if stack[0].seed == 0:
        until(lambda: len(os.listdir(folder)) == 2)
    if stack[0].seed == 1:
        assert os.getpid() != parent
        note(folder, 1)
        record = Record.of(stack[0])
        assert record.claim()
        record.begin(stack[0], [stack[0].run_id], "a processor")
        os._exit(3)
    train_one([], stack)


@pytest.mark.usefixtures("quick_workers")
def test_a_run_that_kills_two_workers_is_recorded_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").mkdir()
    monkeypatch.setattr(sweep, "_train", functools.partial(die_of_seed_1, tmp_path / "notes", os.getpid()))
    configs = [tiny(tmp_path / "runs", seed=seed) for seed in range(4)]
    results = sweep.train_sweep(configs, members=1, workers=2)
    assert [record.status for record in results] == ["finished", "failed", "finished", "finished"]
    reason = "two worker processes died of it (exit status 3)"
    assert results[1].content["error"] == reason
    assert capsys.readouterr().out.splitlines()[-1] == f"mlp none sgd lr=0.1 seed=1: failed: {reason}"
    assert results[1].claim()  # the dead process's lock is free
    results[1].release()


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    sweep.train_sweep(grid(tmp_path / "one"), members=2)
    configs = grid(tmp_path / "two")
    stacks = [[*configs[i : i + 4 : 2]] for i in (0, 1, 4, 5)]  # as a sweep divides them
    assert map_workers(functools.partial(train_in_company, tmp_path / "notes"), stacks, 2) == []
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")


@pytest.mark.parametrize(
    ("end", "status", "line"),
    [
        (UserError("optim.lr=0: too small"), 2, "error: optim.lr=0: too small"),
        (RunFailed("run 1 failed"), 1, "error: run 1 failed"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a"), 2, "error: a: No such file"),
        (
            OSError(errno.ENOSPC, "No space left", "a"),
            1,
            "error: a: No space left; the same command goes on from here when there is space",
        ),
        (
            Preempted("SIGUSR1", "there", 75),
            75,
            "stopped: there (SIGUSR1); the same command goes on from here",
        ),
        (KeyboardInterrupt(), 130, "stopped: the same command goes on from here"),
    ],
)
def test_what_ends_a_command_is_told_in_a_line(
    capsys: pytest.CaptureFixture[str], end: BaseException, status: int, line: str
) -> None:
    assert stops.tell(end) == status
    assert capsys.readouterr() == ("", f"{line}\n")
