"""What a sweeper is told of its jobs; those of another launcher, with a scheduler's signal handlers."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hydra._internal.hydra import Hydra
from stop_cases import late, send, when
from sweep_cases import DIVERGING, outcome, tiny
from train_cases import Call, declare, records

from wn import launcher, stops, train
from wn.stops import Preempted, StopWatcher
from wn.sweep import train_sweep

BASIC = "-m norm=none,weight_norm hydra/launcher=basic"


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra's basic launcher as one whose jobs are in a process where main() has not run."""

    @contextlib.contextmanager
    def leave_home() -> Iterator[None]:
        launcher.home = -1
        yield

    monkeypatch.setattr(train, "termination", leave_home)


# What a sweeper minimises


@pytest.mark.parametrize("words", ["", "hydra/launcher=basic", "+experiment=mine"])
def test_a_job_returns_the_final_loss_of_its_runs(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """The mean of an experiment's two; the loss before training where that diverged."""
    returned: list[Any] = []
    multirun = Hydra.multirun
    monkeypatch.setattr(Hydra, "multirun", lambda *args, **named: returned.extend(*multirun(*args, **named)))
    grid = {"norm": ["weight_norm"], "optim.lr": [0.1, DIVERGING], "seed": [0, 1]}
    declare(tmp_path, monkeypatch, "mine", grid=grid)
    assert call(f"-m {words} optim.lr=0.1,{DIVERGING} experiment_name=x").status == 0
    runs = outcome(tmp_path / "runs", "x").values()
    ends = {0.1: ("finished", -1), DIVERGING: ("diverged", 0)}
    for job, (lr, (status, row)) in zip(returned, ends.items(), strict=True):
        assert f"optim.lr={lr}" in job.overrides
        mine = [run for run in runs if run["record"]["config"]["optim"]["lr"] == lr]
        assert [run["record"]["status"] for run in mine] == [status] * (2 if "mine" in words else 1)
        assert job.return_value == pytest.approx(fmean(run["metrics"][row]["valid_loss"] for run in mine))


# What comes home


def test_a_mistake_comes_home_as_a_line(call: Call, elsewhere: None) -> None:
    result = call(f"{BASIC} trainer.batch_size=5000")
    first, line = result.err.splitlines()
    assert first.startswith("Error executing job with overrides: ")  # Hydra's, which names the job
    assert line == "error: trainer.batch_size=5000: larger than the 1149 training images; give less"
    assert result.status == 2


def test_a_limit_comes_home_as_75_and_the_same_command_goes_on(
    call: Call, tmp_path: Path, elsewhere: None
) -> None:
    assert call(f"{BASIC} runs_dir=whole").status == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stops, "STARTED", time.monotonic())
        when(patch, lambda t: t.step == 1, late(patch))
        result = call(f"{BASIC} runs_dir=cut trainer.max_minutes=50")
    assert result.status == 75
    assert result.err.splitlines()[-1].startswith("stopped: mlp none sgd lr=0.1 seed=0, step 1 of ")
    assert call(f"{BASIC} runs_dir=cut").status == 0
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_a_failure_comes_home_as_1(call: Call, elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    when(monkeypatch, lambda t: t.step == 1, lambda: [][0])
    result = call(BASIC)
    assert result.status == 1
    assert " failed: IndexError: list index out of range (traceback: " in result.err.splitlines()[-1]


def test_what_comes_home_can_be_pickled() -> None:
    ended = launcher.JobEnded("stopped: there", 75)
    assert pickle.loads(pickle.dumps(ended)).args == ended.args
    assert isinstance(ended, Exception)  # launchers hand over no other


def test_a_job_that_came_to_no_end_is_told_in_a_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed for its memory, say: the launcher raises what it has for that."""

    class UncompletedJobError(RuntimeError):
        __module__ = "submitit.core.utils"

    def killed(*_: object) -> None:
        raise UncompletedJobError("Job 1 (task: 0) with path a/b.pkl\nhas not produced any output")

    monkeypatch.setattr(train, "job", killed)
    result = call("")
    what = "UncompletedJobError: Job 1 (task: 0) with path a/b.pkl"
    assert result.err == f"error: a job ended without a result: {what}\n"
    assert result.status == 1


# A scheduler's handlers


class Requeued(SystemExit):
    pass


@pytest.fixture
def scheduler() -> Iterator[list[Any]]:
    """Handlers as submitit has them: SIGTERM is only noted, SIGUSR2 does what the test appends."""
    told: list[Any] = []

    def warned(number: int, frame: Any) -> None:
        raise told.pop()

    handlers = {signal.SIGTERM: lambda *_: told.append("bypassed"), signal.SIGUSR2: warned}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield told
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_scheduler_that_keeps_a_job_at_sigterm_does_so_with_ours(
    tmp_path: Path, scheduler: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    when(monkeypatch, lambda t: t.step == 2, send(signal.SIGTERM))
    (record,) = train_sweep([tiny(tmp_path)])
    assert (record.status, scheduler) == ("finished", ["bypassed"])


@pytest.mark.parametrize("step", range(1, 7))
def test_a_requeued_job_goes_on_from_the_step(
    tmp_path: Path, scheduler: list[Any], steps: list[int], step: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        when(patch, lambda t: t.step == step, send(signal.SIGUSR2))
        scheduler.append(Requeued(144))
        with pytest.raises(Requeued):
            train_sweep([tiny(tmp_path / "cut")])
    train_sweep([tiny(tmp_path / "cut")])
    assert len(steps) == 6  # none is taken twice
    train_sweep([tiny(tmp_path / "whole")])
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_a_job_that_is_not_requeued_says_why_and_is_no_failure(
    call: Call, tmp_path: Path, scheduler: list[Any], elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler.append(RuntimeError("timed-out too many times"))
    when(monkeypatch, lambda t: t.step == 1, send(signal.SIGUSR2))
    result = call(BASIC)
    line = "stopped: mlp none sgd lr=0.1 seed=0, step 1 of 4 (SIGUSR2: timed-out too many times)"
    assert result.err.splitlines()[-1] == f"{line}; the same command goes on from here"
    assert result.status == 75
    states = {record["norm"]: record["status"] for record in records(tmp_path / "runs/adhoc").values()}
    assert states["none"] == "running"


def test_the_handlers_are_put_back(scheduler: list[Any]) -> None:
    before = [signal.getsignal(number) for number in stops.STOPS]
    with StopWatcher(None) as watcher:
        assert watcher.stop("") is None
        os.kill(os.getpid(), signal.SIGUSR1)
        stop = watcher.stop("amid")
        assert isinstance(stop, Preempted)
        assert stop.status == 75
        watcher.signal = None
    assert [signal.getsignal(number) for number in stops.STOPS] == before
