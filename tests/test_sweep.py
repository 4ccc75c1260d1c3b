"""Sweeps: what is done is skipped, what is cut short goes on to the same numbers, no run is trained twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import sweep_cases
import torch
from sweep_cases import DIVERGING, NORMS, dying, grid, moments, outcome, tiny, train_until

from wn import run, sweep, trainer
from wn.config import MLP, Config, UserError
from wn.records import Record, Row
from wn.run import RunFailed, conclude
from wn.sweep import train_sweep
from wn.trainer import Trainer

LATER = 1e4
"""A learning rate at which weight normalisation diverges in the third epoch, after a checkpoint."""


def stack_of_three(folder: Path, **changes: Any) -> list[Config]:
    """One member finishes, one diverges at once, one diverges after a checkpoint."""
    return [tiny(folder, "weight_norm", lr, **changes) for lr in (0.1, DIVERGING, LATER)]


def assert_near(rows: list[Row], others: list[Row]) -> None:
    """Equal but for what rounding makes of stacks of different sizes."""
    for row, other in zip(rows, others, strict=True):
        known = {key: value for key, value in other.items() if value is not None}
        assert row.keys() == other.keys()
        assert {key: value for key, value in row.items() if value is not None} == pytest.approx(
            known, rel=1e-4
        )


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of members that each step trained."""
    taken: list[int] = []
    step = Trainer._step

    def counted(self: Trainer, batch: torch.Tensor) -> torch.Tensor:
        taken.append(len(batch))
        return step(self, batch)

    monkeypatch.setattr(Trainer, "_step", counted)
    return taken


# A sweep, and the same again


def test_a_sweep_trains_every_run(tmp_path: Path, steps: list[int]) -> None:
    configs = grid(tmp_path)
    results = train_sweep(configs)
    assert [record.content["run_id"] for record in results] == [config.run_id for config in configs]
    expected = ["diverged" if config.optim.lr == DIVERGING else "finished" for config in configs]
    assert [record.status for record in results] == expected
    assert Counter(steps) == {4: 2 * 2, 2: 2 * 4}  # two steps with all, four with those that did not diverge
    for config, record in zip(configs, results, strict=True):
        group = [c.run_id for c in configs if c.norm == config.norm]
        assert record.content["stack"] == group
        assert record.content["engine"]["stack_size"] == 4
        epochs = [row["epoch"] for row in record.metrics]
        assert epochs == list(range(4 if record.status == "finished" else 2))
        assert [row["step"] for row in record.metrics] == [2 * epoch for epoch in epochs]
        assert {row["layer"] for row in record.probes} == {"hidden1", "logits"}


def test_the_second_call_trains_nothing_and_says_so(
    tmp_path: Path, steps: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    configs = grid(tmp_path)
    train_sweep(configs)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    steps.clear()
    capsys.readouterr()
    train_sweep(configs)
    assert capsys.readouterr().out == "8 runs: 8 done before, 0 to train\n"
    assert not steps
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_what_is_done_needs_no_data_and_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_sweep([tiny(tmp_path)])
    monkeypatch.setattr(run, "_load", pytest.fail)
    (record,) = train_sweep([tiny(tmp_path, trainer={"device": "nowhere"})])
    assert record.done


def test_no_checkpoint_is_left(tmp_path: Path) -> None:
    train_sweep([*grid(tmp_path), tiny(tmp_path, "batch_norm")])
    assert not list(tmp_path.rglob("*.pt*"))


def test_the_same_run_twice_is_trained_once(tmp_path: Path, steps: list[int]) -> None:
    one, other = train_sweep([tiny(tmp_path), tiny(tmp_path)])
    assert one.content == other.content
    assert steps == [1] * 6


def test_another_experiment_s_runs_are_adopted(tmp_path: Path, steps: list[int]) -> None:
    train_sweep(grid(tmp_path, experiment_name="first"))
    steps.clear()
    train_sweep([*grid(tmp_path, experiment_name="second"), tiny(tmp_path, seed=9, experiment_name="second")])
    assert steps == [1] * 6  # of the ninth
    first, second = outcome(tmp_path, "first"), outcome(tmp_path, "second")
    del second[tiny(tmp_path, seed=9).run_id]
    for run_id, whole in first.items():
        assert second[run_id] == {**whole, "record": {**whole["record"], "experiment": "second"}}


@pytest.mark.parametrize(("members", "sizes"), [(None, [7]), (1, [1] * 7), (3, [3, 2, 2]), (100, [7])])
def test_stacks_are_of_nearly_equal_size(tmp_path: Path, members: int | None, sizes: list[int]) -> None:
    configs = [tiny(tmp_path, seed=seed) for seed in range(7)]
    stacks = sweep._stacks(configs, members)
    assert [len(stack) for stack in stacks] == sizes
    assert sorted(c.seed for stack in stacks for c in stack) == list(range(7))


def test_only_numbers_differ_within_a_stack(tmp_path: Path) -> None:
    configs = [
        tiny(tmp_path, norm, lr, trainer={"batch_size": batch})
        for norm in NORMS
        for lr in (0.1, 0.2)
        for batch in (400, 500)
    ]
    stacks = sweep._stacks(configs, None)
    assert len(stacks) == 8
    for stack in stacks:
        assert [config.optim.lr for config in stack] == [0.1, 0.2]
        assert len({(config.norm, config.trainer) for config in stack}) == 1


@pytest.mark.parametrize("norm", NORMS)
def test_alone_and_in_a_stack_a_run_is_the_same(tmp_path: Path, norm: str) -> None:
    configs = [tiny(tmp_path / "stacked", norm, lr, seed) for lr in (0.1, 0.02) for seed in (0, 5)]
    for config, stacked in zip(configs, train_sweep(configs), strict=True):
        alone = Config.model_validate({**config.model_dump(), "runs_dir": str(tmp_path / "alone")})
        (record,) = train_sweep([alone])
        assert record.content["run_id"] == stacked.content["run_id"]
        assert record.content["engine"]["stack_size"] == 1
        assert_near(record.metrics, stacked.metrics)


# Refusals


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            {"trainer": {"batch_size": 5000}},
            r"trainer\.batch_size=5000: larger than the 1149 training images",
        ),
        ({"trainer": {"device": "nowhere"}}, r"trainer\.device=nowhere: not available here"),
        ({"data": {"name": "mnist", "root": "missing"}}, r"data\.root=missing: no such folder"),
        ({"data": {"valid_fraction": 0.999}}, r"data\.valid_fraction=0\.999"),
    ],
)
def test_a_sweep_with_a_bad_run_is_refused_before_any_is_trained(
    tmp_path: Path, steps: list[int], bad: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_sweep([*grid(tmp_path), tiny(tmp_path, "batch_norm", **bad)])
    assert not steps
    assert not list(tmp_path.rglob("record.json"))


# Failures


def fail_at(monkeypatch: pytest.MonkeyPatch, norm: str, message: str) -> None:
    """Let the third step of every stack with this norm raise."""
    step = Trainer._step

    def failing(self: Trainer, batch: torch.Tensor) -> torch.Tensor:
        if self.config.norm.label == norm and self.step == 3:
            raise RuntimeError(message)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "_step", failing)


def test_a_failed_stack_does_not_stop_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = grid(tmp_path)
    with monkeypatch.context() as patch:
        fail_at(patch, "none", f"no room in {tmp_path}/somebody/file.bin\nor '/home/somebody/x'")
        results = train_sweep(configs)
    statuses = Counter((config.norm.label, r.status) for config, r in zip(configs, results, strict=True))
    assert statuses == {
        ("none", "diverged"): 2,  # in the first epoch
        ("none", "failed"): 2,
        ("weight_norm_init", "diverged"): 2,
        ("weight_norm_init", "finished"): 2,
    }
    error = results[0].content["error"]
    assert error.endswith("RuntimeError: no room in file.bin or 'x'")
    assert "wn/trainer.py" in error
    assert "in failing: raise RuntimeError(message)" in error
    assert not re.search(r"(?<![\w/.])/\w", error)
    assert len(results[0].metrics) == 2  # what was measured before is kept
    with pytest.raises(RunFailed, match=r"run \w+ failed: RuntimeError: no room .*record\.json"):
        conclude(results[0])


def test_a_failed_run_is_trained_again_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, "none", "boom")
        train_sweep(grid(tmp_path / "failed"))
    capsys.readouterr()
    train_sweep(grid(tmp_path / "failed"))
    assert capsys.readouterr().out.startswith("8 runs: 6 done before, 2 to train\n")
    train_sweep(grid(tmp_path / "whole"))
    found = outcome(tmp_path / "failed")
    for run_id, whole in outcome(tmp_path / "whole").items():
        assert found[run_id]["record"].keys() == whole["record"].keys()
        assert found[run_id]["record"]["status"] == whole["record"]["status"]
        assert len(found[run_id]["probes"]) == len(whole["probes"])
        assert_near(found[run_id]["metrics"], whole["metrics"])


def test_what_failed_in_a_large_stack_can_be_trained_in_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step

    def small_only(self: Trainer, batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > 2:
            raise torch.OutOfMemoryError("too large")
        return step(self, batch)

    monkeypatch.setattr(Trainer, "_step", small_only)
    configs = [tiny(tmp_path, seed=seed) for seed in range(4)]
    assert {record.status for record in train_sweep(configs)} == {"failed"}
    assert {record.status for record in train_sweep(configs, members=2)} == {"finished"}


def test_a_model_that_cannot_be_built_is_a_failure_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = trainer.build

    def short_of_memory(model: MLP, *rest: Any) -> torch.nn.Module:
        if model.widths == (5,):
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 5 GiB")
        return build(model, *rest)

    monkeypatch.setattr(trainer, "build", short_of_memory)
    failed, finished = train_sweep([tiny(tmp_path, model={"widths": [5]}), tiny(tmp_path)])
    assert (failed.status, finished.status) == ("failed", "finished")
    assert failed.content["config"]["model"]["widths"] == [5]
    with pytest.raises(RunFailed, match=r"OutOfMemoryError: CUDA out of memory\. Tried to allocate 5 GiB"):
        conclude(failed)


# Kills


def assert_resumed(folder: Path, configs: list[Config], expected: dict[str, Row]) -> None:
    """Train what is left, and compare."""
    train_sweep(configs)
    assert outcome(folder) == expected


@pytest.mark.parametrize("make", [stack_of_three, lambda folder: [tiny(folder)]], ids=["stack", "alone"])
def test_killed_at_any_moment_a_sweep_goes_on_to_the_same_numbers(tmp_path: Path, make: Any) -> None:
    total = moments(make(tmp_path / "whole"))
    expected = outcome(tmp_path / "whole")
    assert total > 15
    for at in range(total):
        folder = tmp_path / str(at)
        assert not train_until(at, make(folder))
        assert_resumed(folder, make(folder), expected)


def test_killed_again_and_again_it_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    total = moments(grid(tmp_path / "whole"))
    expected = outcome(tmp_path / "whole")
    chance = random.Random(0)
    kills = 0
    for trial in range(3):
        folder = tmp_path / str(trial)
        while not train_until(chance.randint(0, total), grid(folder)):  # often beyond the next checkpoint
            kills += 1
        assert outcome(folder) == expected
    assert kills > 3


@pytest.mark.slow
@pytest.mark.parametrize("members", [None, 1, 3])
def test_killed_at_any_moment_a_whole_grid_goes_on_to_the_same_numbers(
    tmp_path: Path, members: int | None
) -> None:
    total = moments(grid(tmp_path / "whole"), members)
    expected = outcome(tmp_path / "whole")
    for at in range(total):
        folder = tmp_path / str(at)
        assert not train_until(at, grid(folder), members)
        train_sweep(grid(folder), members)
        assert outcome(folder) == expected


def test_rows_wait_in_memory_and_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between two flushes: no row of the lost epochs is on disk, none is doubled afterwards."""
    longer = {"trainer": {"epochs": 6}}
    train_sweep(stack_of_three(tmp_path / "whole", **longer))
    for fatal in range(1, 12):
        folder = tmp_path / str(fatal)
        step = Trainer._step

        def killed(self: Trainer, batch: torch.Tensor, fatal: int = fatal, step: Any = step) -> torch.Tensor:
            if self.step == fatal:
                raise sweep_cases.Killed
            return step(self, batch)  # type: ignore[no-any-return]

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_step", killed)
            with pytest.raises(sweep_cases.Killed):
                train_sweep(stack_of_three(folder, **longer))
        assert_resumed(folder, stack_of_three(folder, **longer), outcome(tmp_path / "whole"))


def test_a_narrowed_sweep_between_leaves_no_mixture(tmp_path: Path) -> None:
    """Killed as a stack of four, then two of them killed as a stack of two, then all four again."""
    changes: dict[str, Any] = {"trainer": {"epochs": 6}}

    def four(folder: Path) -> list[Config]:
        return [tiny(folder, seed=seed, **changes) for seed in range(4)]

    total = moments(four(tmp_path / "whole"))
    expected = outcome(tmp_path / "whole")
    for at in range(total // 2, total, 12):
        for then in (5, 30):
            folder = tmp_path / f"{at}-{then}"
            train_until(at, four(folder))
            train_until(then, four(folder)[2:])
            found = (train_sweep(four(folder)), outcome(folder))[1]
            for run_id, whole in expected.items():
                assert [row["step"] for row in found[run_id]["metrics"]] == [0, 2, 4, 6, 8, 10, 12]
                assert [row["step"] for row in found[run_id]["probes"]] == [
                    row["step"] for row in whole["probes"]
                ]
                assert_near(found[run_id]["metrics"], whole["metrics"])
                final = found[run_id]["record"]["final"]
                last = found[run_id]["metrics"][-1]
                assert final["valid_loss"] == last["valid_loss"]


def test_a_wider_sweep_takes_up_what_was_cut_short(tmp_path: Path) -> None:
    train_sweep(stack_of_three(tmp_path / "whole"))
    with dying(30):
        pass
    folder = tmp_path / "wider"
    assert not train_until(25, stack_of_three(folder))
    more = [tiny(folder, "weight_norm", 0.1, seed=7), tiny(folder, "none")]
    train_sweep([*more, *stack_of_three(folder)])
    found = outcome(folder)
    assert len(found) == 5
    for run_id, whole in outcome(tmp_path / "whole").items():
        assert found[run_id] == whole


def test_other_members_at_the_second_call_change_nothing(tmp_path: Path) -> None:
    train_sweep(stack_of_three(tmp_path / "whole"))
    assert not train_until(25, stack_of_three(tmp_path / "cut"))
    train_sweep(stack_of_three(tmp_path / "cut"), members=1)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    "damage",
    [b"", b"\0" * 100, b"part", {}, {"trainer": {"step": 4, "alive": [0, 1, 2]}, "seconds": 1.0}],
    ids=["empty", "zeros", "part", "nothing in it", "no parameters in it"],
)
def test_a_damaged_checkpoint_is_trained_anew(
    tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    train_sweep(stack_of_three(tmp_path / "whole"))
    folder = tmp_path / "cut"
    at = 0
    while not list(folder.rglob("*.pt")):
        at += 1
        assert not train_until(at, stack_of_three(folder))
    (checkpoint,) = folder.rglob("*.pt")
    if damage == b"part":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-200])
    elif isinstance(damage, bytes):
        checkpoint.write_bytes(damage)
    else:
        torch.save(damage, checkpoint)
    assert_resumed(folder, stack_of_three(folder), outcome(tmp_path / "whole"))
    assert "start anew" in caplog.text


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    assert not train_until(0, stack_of_three(folder))
    bait = tmp_path / "bait"
    stack = sweep._stacks(stack_of_three(folder), None)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run._Session, "train", lambda session: paths.append(session.checkpoint))
        paths: list[Path] = []
        run.train_stack(stack)
    paths[0].parent.mkdir(exist_ok=True)
    torch.save(_Trap(bait), paths[0])
    train_sweep(stack_of_three(folder))
    assert not bait.exists()


class _Trap:
    def __init__(self, bait: Path) -> None:
        self.bait = bait

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.bait),)


# Several processes


@pytest.fixture(scope="module")
def children() -> Iterator[ForkServerContext]:
    """Processes that start with everything imported, by a server that is started here."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sweep_cases", "sklearn.datasets", "sklearn.model_selection"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server looks nowhere else
        forkserver.ensure_running()
    yield context
    for child in multiprocessing.active_children():
        child.kill()


def start(
    context: ForkServerContext, configs: list[Config], log: Path, members: int | None = None
) -> BaseProcess:
    child = context.Process(target=sweep_cases.sweep_in_child, args=(configs, members, log))
    child.start()
    return child


def test_what_another_process_trains_is_left_to_it(tmp_path: Path, steps: list[int]) -> None:
    configs = grid(tmp_path)
    held = Record.of(configs[0])
    assert held.claim()
    results = train_sweep(configs)
    assert results[0].status == "new"
    assert all(record.done for record in results[1:])
    held.release()
    steps.clear()
    train_sweep(configs)
    assert steps == [1] * 6


def test_nothing_is_resumed_while_another_process_has_a_member(tmp_path: Path, steps: list[int]) -> None:
    train_sweep(stack_of_three(tmp_path / "whole"))
    configs = stack_of_three(tmp_path / "cut")
    assert not train_until(25, configs)
    steps.clear()
    for config in configs:
        held = Record.of(config)
        assert held.claim()
        train_sweep(configs)
        held.release()
    assert not steps
    assert_resumed(tmp_path / "cut", configs, outcome(tmp_path / "whole"))


def test_two_sweeps_at_once_begin_each_run_once(tmp_path: Path, children: ForkServerContext) -> None:
    configs = grid(tmp_path / "runs", trainer={"epochs": 20})
    log = tmp_path / "log"
    pair = [start(children, configs, log, members=2) for _ in range(2)]
    for child in pair:
        child.join(60)
        assert child.exitcode == 0
    begun = Counter(log.read_text().split())
    assert begun == {config.run_id: 1 for config in configs}
    found = outcome(tmp_path / "runs")
    for config in configs:
        epochs = [row["epoch"] for row in found[config.run_id]["metrics"]]
        assert epochs == list(range(len(epochs)))
        assert found[config.run_id]["record"]["status"] in ("finished", "diverged")


def kill_when(child: BaseProcess, seen: Any) -> None:
    """SIGKILL as soon as ``seen()``, or when the child has ended."""
    while child.is_alive() and not seen():
        time.sleep(0.0005)
    child.kill()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)


@pytest.mark.parametrize("members", [None, 1])
def test_a_killed_process_is_taken_over(
    tmp_path: Path, children: ForkServerContext, members: int | None
) -> None:
    """SIGKILL, which no handler sees, at each first sight of a kind of file."""
    epochs = {"trainer": {"epochs": 6}}
    train_sweep(grid(tmp_path / "whole", **epochs), members)
    for number, pattern in enumerate(("*/lock", "*/record.json", "*/metrics.jsonl", "stacks/*.pt")):
        folder = tmp_path / str(number)

        def seen(folder: Path = folder, pattern: str = pattern) -> bool:
            return any(folder.glob(f"adhoc/{pattern}"))

        kill_when(start(children, grid(folder, **epochs), tmp_path / "log", members), seen)
        train_sweep(grid(folder, **epochs), members)
        assert outcome(folder) == outcome(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("members", [None, 1, 3])
def test_a_process_killed_at_random_is_taken_over(
    tmp_path: Path, children: ForkServerContext, members: int | None
) -> None:
    epochs = {"trainer": {"epochs": 6}}
    start(children, grid(tmp_path / "whole", **epochs), tmp_path / "log", members).join()
    expected = outcome(tmp_path / "whole")
    assert len(expected) == 8
    chance = random.Random(1)
    kills = 0
    for trial in range(25):
        folder = tmp_path / str(trial)
        while True:
            child = start(children, grid(folder, **epochs), tmp_path / "log", members)
            begun = time.monotonic() + 0.1 + chance.random() * 0.6
            kill_when(child, lambda begun=begun: time.monotonic() > begun)
            if child.exitcode == 0:
                break
            kills += 1
        assert outcome(folder) == expected
    assert kills > 10


def test_nothing_private_is_in_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, "none", f"{Path.home()}/a {sys.executable} {os.getcwd()}/b")
        train_sweep(grid(tmp_path))
    for path in tmp_path.rglob("*.json*"):
        text = path.read_text()
        for private in (os.uname().nodename, str(Path.home()), os.getcwd(), str(tmp_path)):
            assert private not in text
        rows = text.splitlines() if path.suffix == ".jsonl" else [text]
        assert all(json.loads(row, parse_constant=pytest.fail) is not None for row in rows)
