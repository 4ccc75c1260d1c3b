"""Worker processes: everything is done once, and none outlives or outwaits the others."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from sweep_cases import grid, outcome

from wn import sweep
from wn.sweep import Job
from wn.workers import WorkerDied, share_out

HELP_COMES = 60.0
"""Seconds that another process has to start."""


def note(folder: Path, item: int) -> None:
    """Write down who did an item."""
    (folder / f"{item}-{os.getpid()}").touch()


def note_in_company(folder: Path, item: int) -> None:
    """The same, but nobody goes on before two processes have come."""
    note(folder, item)
    until(lambda: len({name.partition("-")[2] for name in os.listdir(folder)}) == 2)


def die_abroad(folder: Path, parent: int, item: int) -> None:
    """The same, but any process other than this one dies of it."""
    note_in_company(folder, item)
    if os.getpid() != parent:
        os._exit(3)


def until(true: functools.partial[bool] | object) -> None:
    """Wait for something to be true."""
    end = time.monotonic() + HELP_COMES
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def share_with_a_process_that_ignores_the_end(folder: Path) -> None:
    """In a child: two processes that never finish."""
    share_out([0, 1], functools.partial(stay, folder), 2)


def stay(folder: Path, item: int) -> None:
    """Write down who has an item, and keep it."""
    note(folder, item)
    time.sleep(10 * HELP_COMES)


def test_every_item_is_done_once_by_two_processes(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    share_out(list(range(6)), functools.partial(note_in_company, tmp_path), 2)
    items, processes = zip(*(name.split("-") for name in os.listdir(tmp_path)), strict=True)
    assert Counter(items) == {str(item): 1 for item in range(6)}
    assert len(set(processes)) == 2
    assert torch.get_num_threads() == threads


def test_one_process_starts_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_context", pytest.fail)
    share_out([1, 2], functools.partial(note, tmp_path), 1)
    share_out([3], functools.partial(note, tmp_path), 5)
    share_out([], functools.partial(note, tmp_path), 5)
    assert sorted(os.listdir(tmp_path)) == [f"{item}-{os.getpid()}" for item in (1, 2, 3)]


def test_who_comes_too_late_is_not_waited_for(tmp_path: Path) -> None:
    share_out([1, 2], functools.partial(note, tmp_path), 2)  # done before another process has loaded torch
    assert len(os.listdir(tmp_path)) == 2
    assert not [child for child in multiprocessing.active_children() if child.exitcode is None]


def test_a_death_is_told_once_the_others_have_done_the_rest(tmp_path: Path) -> None:
    with pytest.raises(WorkerDied, match=r"exit status 3.*goes on from here"):
        share_out(list(range(4)), functools.partial(die_abroad, tmp_path, os.getpid()), 2)
    assert sorted(name[0] for name in os.listdir(tmp_path)) == ["0", "1", "2", "3"]


def test_no_worker_outlives_a_kill(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    main = context.Process(target=share_with_a_process_that_ignores_the_end, args=(tmp_path,))
    main.start()
    until(lambda: len(os.listdir(tmp_path)) == 2)
    os.kill(int(str(main.pid)), signal.SIGKILL)
    main.join()
    workers = [int(name.partition("-")[2]) for name in os.listdir(tmp_path)]
    (other,) = [pid for pid in workers if pid != main.pid]
    until(
        lambda: (
            not Path(f"/proc/{other}").exists() or "Z" in Path(f"/proc/{other}/stat").read_text().split()[2]
        )
    )


def train_in_company(folder: Path, job: Job) -> None:
    """Train a stack once two processes have one."""
    note_in_company(folder, job.configs[0].seed)
    sweep._train(job)


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    sweep.train_sweep(grid(tmp_path / "one"), members=2)
    jobs = [Job(stack, False) for stack in sweep._stacks(grid(tmp_path / "two"), members=2)]
    share_out(jobs, functools.partial(train_in_company, tmp_path / "notes"), 2)
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")
