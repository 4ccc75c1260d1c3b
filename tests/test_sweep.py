"""Sweeps: every run is trained once, what is done is skipped, a failure stops nothing else."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from sweep_cases import (
    DIVERGING,
    NORMS,
    assert_near,
    grid,
    outcome,
    tiny,
)

from wn import resources, sweep, trainer
from wn.config import Config, MLPConfig, UserError
from wn.records import Record
from wn.run import RunFailed, final_loss
from wn.step import CaptureFailed
from wn.sweep import train_sweep
from wn.trainer import Trainer


def stacks_of(configs: list[Config], members: int | None = None) -> list[list[Config]]:
    runs = {config.run_id: config for config in configs}
    stacks = sweep._stacks(runs, sweep._resolve(runs), members)
    return [[runs[run_id] for run_id in stack] for stack in stacks]


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
    (record,) = train_sweep(configs[:1])
    assert capsys.readouterr().out == (
        "1 runs: 1 done before, 0 to train\nmlp none sgd lr=0.1 seed=0: finished, validation error "
        f"{100 * record.content['final']['valid_error']:.2f} %, record {record.folder}\n"
    )
    assert not steps
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_what_is_done_needs_no_data_and_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_sweep([tiny(tmp_path)])
    monkeypatch.setattr(resources, "_load", pytest.fail)
    (record,) = train_sweep([tiny(tmp_path, trainer={"device": "nowhere"})])
    assert record.done


def test_a_stack_ends_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = train_sweep([tiny(tmp_path, lr=lr) for lr in (0.1, 0.2, 0.3, DIVERGING)])
    errors = sorted(100 * r.content["final"]["valid_error"] for r in records[:3])
    shown = f"validation error {errors[0]:.2f} % at best, {errors[1]:.2f} % in the median"
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "(4 runs)" in line)
    assert re.sub(r"\d+\.\d s", "T", line) == f"mlp none sgd (4 runs): 3 finished, 1 diverged in T, {shown}"


def test_a_damaged_run_is_trained_again(
    tmp_path: Path, steps: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    configs = grid(tmp_path)
    records = train_sweep(configs)
    expected = outcome(tmp_path)
    (records[0].folder / "record.json").write_bytes(bytes(100))
    (records[2].folder / "probes.jsonl").write_bytes(b"{}{}\n")
    steps.clear()
    train_sweep(configs)
    assert steps == [2, 2, 1, 1, 1, 1]  # the second of the two diverges again
    assert sum("damaged" in r.getMessage() for r in caplog.records) == 2
    for found, whole in zip(outcome(tmp_path).values(), expected.values(), strict=True):
        assert_near(found["metrics"], whole["metrics"])
    assert len(list(tmp_path.rglob("record.json.damaged"))) == 2


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
    stacks = stacks_of(configs, members)
    assert [len(stack) for stack in stacks] == sizes
    assert sorted(c.seed for stack in stacks for c in stack) == list(range(7))


def test_stacks_are_trained_in_the_order_of_the_sweep(tmp_path: Path) -> None:
    configs = [tiny(tmp_path, norm, seed=seed) for seed in (0, 1) for norm in NORMS]
    alone = stacks_of(configs, 1)
    assert [stack[0] for stack in alone] == configs
    assert [stack[0] for stack in stacks_of(configs)] == configs[: len(NORMS)]


def test_only_numbers_differ_within_a_stack(tmp_path: Path) -> None:
    configs = [
        tiny(tmp_path, norm, lr, trainer={"batch_size": batch})
        for norm in NORMS
        for lr in (0.1, 0.2)
        for batch in (400, 500)
    ]
    stacks = stacks_of(configs)
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
    step = Trainer.update

    def failing(self: Trainer, batch: torch.Tensor) -> torch.Tensor:
        if self.config.norm.label == norm and self.step == 3:
            raise RuntimeError(message)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "update", failing)


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
        final_loss(results[0])


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


@pytest.mark.parametrize(("fits", "expected"), [(2, {"finished"}), (0, {"failed"})])
def test_a_stack_that_runs_out_of_memory_is_split_in_two(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fits: int,
    expected: set[str],
) -> None:
    update = Trainer.update

    def small_only(self: Trainer, batch: torch.Tensor) -> None:
        if len(batch) > fits and self.step > 2:
            raise torch.OutOfMemoryError("too large")
        update(self, batch)

    configs = [tiny(tmp_path, seed=seed) for seed in range(7)]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", small_only)
        records = train_sweep(configs)
    assert {record.status for record in records} == expected
    sizes = {record.content["engine"]["stack_size"] for record in records}
    assert sizes == ({1, 2} if fits else {1})
    said = [r.getMessage() for r in caplog.records]
    assert said[0] == "mlp none sgd (7 runs): out of memory; going on with two halves"
    assert len(said) == (3 if fits else 6)
    assert not list(tmp_path.rglob("*.pt"))
    if fits:
        train_sweep([tiny(tmp_path / "alone", seed=seed) for seed in range(7)], members=1)
        for record, alone in zip(
            outcome(tmp_path).values(), outcome(tmp_path / "alone").values(), strict=True
        ):
            assert_near(record["metrics"], alone["metrics"])


@pytest.mark.parametrize("members", [None, 1])
def test_a_step_that_cannot_be_captured_ends_the_sweep_and_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: int | None
) -> None:
    """The allocator may be left amid the capture: no other stack begins, and the same command goes on."""
    configs = grid(tmp_path / "cut")
    update, begun = Trainer.update, []

    def captured(self: Trainer, batch: torch.Tensor) -> None:
        begun.append(self.config.run_id)
        if self.step == 5:
            raise CaptureFailed("the step cannot be captured; go on with trainer.cuda_graph=false")
        update(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", captured)
        with pytest.raises(UserError, match=r"go on with trainer\.cuda_graph=false$"):
            train_sweep(configs, members)
    assert {*begun} == {configs[0].run_id}
    states = Counter(Record.of(config).status for config in configs)
    assert states == (
        {"running": 2, "diverged": 2, "new": 4} if members is None else {"running": 1, "new": 7}
    )
    train_sweep(configs, members)
    train_sweep(grid(tmp_path / "whole"), members)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_a_sweep_says_once_that_no_commit_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep, "git_state", lambda: {"commit": None, "dirty": None})
    sweep._say_unknown_commit.cache_clear()
    for seed in range(2):
        train_sweep([tiny(tmp_path, seed=seed)])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "no commit is known" in line)
    assert line.endswith(f" {Record.of(tiny(tmp_path)).content['provenance']['source']}")
    monkeypatch.setattr(sweep, "git_state", lambda: {"commit": "1" * 40, "dirty": False})
    sweep._say_unknown_commit.cache_clear()
    train_sweep([tiny(tmp_path, seed=2)])
    assert "commit" not in capsys.readouterr().out


def test_a_model_that_cannot_be_built_is_a_failure_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = trainer.build

    def short_of_memory(model: MLPConfig, *rest: Any) -> torch.nn.Module:
        if model.widths == (5,):
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 5 GiB")
        return build(model, *rest)

    monkeypatch.setattr(trainer, "build", short_of_memory)
    failed, finished = train_sweep([tiny(tmp_path, model={"widths": [5]}), tiny(tmp_path)])
    assert (failed.status, finished.status) == ("failed", "finished")
    assert failed.content["config"]["model"]["widths"] == [5]
    with pytest.raises(RunFailed, match=r"OutOfMemoryError: CUDA out of memory\. Tried to allocate 5 GiB"):
        final_loss(failed)


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
