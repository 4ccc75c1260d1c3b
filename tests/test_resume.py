"""What is cut short goes on to the same numbers, and no two processes train the same run."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import sweep_cases
import torch
from stop_cases import throw, when
from sweep_cases import (
    assert_near,
    grid,
    moments,
    outcome,
    stack_of_three,
    tiny,
    train_until,
    vae,
)

from wn import step
from wn.config import Config
from wn.records import Row
from wn.sweep import train_sweep

# Kills


def assert_resumed(folder: Path, configs: list[Config], expected: dict[str, Row]) -> None:
    """Train what is left, and compare."""
    train_sweep(configs)
    assert outcome(folder) == expected


def transformer(folder: Path) -> list[Config]:
    model = {"name": "transformer", "patch": 4, "width": 4, "heads": 2, "depth": 1}
    return [tiny(folder, "batch_norm", 0.01, model=model)]


def compiled(folder: Path) -> list[Config]:
    """Members that diverge train along, unrecorded."""
    return stack_of_three(folder, trainer={"compile": True})


def vaes(folder: Path) -> list[Config]:
    return [vae(folder, seed) for seed in (0, 1)]


@pytest.mark.parametrize(
    ("make", "every"),
    [
        pytest.param(stack_of_three, 1, id="stack"),
        pytest.param(lambda folder: [tiny(folder)], 1, id="alone"),
        pytest.param(transformer, 5, id="transformer"),  # another model is another state, at the same moments
        pytest.param(vaes, 9, id="vaes"),
        pytest.param(compiled, 1, id="compiled", marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_moment_a_sweep_goes_on_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, every: int
) -> None:
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)  # what was traced
    monkeypatch.setattr(step, "COMPILED", {})
    total = moments(make(tmp_path / "whole"))
    expected = outcome(tmp_path / "whole")
    assert total > 15
    for at in range(0, total, every):
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
        with monkeypatch.context() as patch:
            when(patch, lambda t, fatal=fatal: t.step == fatal, throw(sweep_cases.Killed))
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


# Several processes


def start(
    context: ForkServerContext, configs: list[Config], log: Path, members: int | None = None
) -> BaseProcess:
    child = context.Process(target=sweep_cases.sweep_in_child, args=(configs, members, log))
    child.start()
    return child


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
    ids = [config.run_id for config in configs]
    planned = [ids[i : i + 4 : 2] for i in (0, 1, 4, 5)]  # each was taken whole, by one or the other
    assert all(found[run_id]["record"]["stack"] == stack for stack in planned for run_id in stack)
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
    for name in ("first", "whole"):  # the first one is slower
        before = time.monotonic()
        start(children, grid(tmp_path / name, **epochs), tmp_path / "log", members).join()
        whole = time.monotonic() - before
    expected = outcome(tmp_path / "whole")
    assert len(expected) == 8
    chance = random.Random(1)
    kills = 0
    for trial in range(25):
        folder = tmp_path / str(trial)
        while True:
            child = start(children, grid(folder, **epochs), tmp_path / "log", members)
            begun = time.monotonic() + chance.random() * whole
            kill_when(child, lambda begun=begun: time.monotonic() > begun)
            if child.exitcode == 0:
                break
            kills += 1
        assert outcome(folder) == expected
    assert kills > 10
