"""Sweeps: every run is trained once, and what is done is skipped."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sweep_cases import (
    DIVERGING,
    NORMS,
    assert_near,
    grid,
    outcome,
    tiny,
)

from wn import resources, sweep
from wn.config import Config, UserError
from wn.sweep import train_sweep


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
        "1 run: 1 done before, 0 to train\nmlp none sgd lr=0.1 seed=0: finished, validation error "
        f"{100 * record.content['final']['valid_error']:.2f} %, record {record.folder}\n"
    )
    assert not steps
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_setting_that_a_done_run_was_not_measured_with_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_sweep([tiny(tmp_path)])
    capsys.readouterr()
    train_sweep([tiny(tmp_path, trainer={"test_every": 1})])
    said = capsys.readouterr().out
    assert (
        "1 of them were measured with another trainer.test_every; trainer.force=true trains again\n" in said
    )


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


def test_another_experiment_s_runs_are_adopted(
    tmp_path: Path, steps: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    train_sweep(grid(tmp_path, experiment_name="first"))
    steps.clear()
    capsys.readouterr()
    both = [*grid(tmp_path, experiment_name="second"), tiny(tmp_path, seed=9, experiment_name="second")]
    dry = both[0].trainer.model_copy(update={"dry_run": True})
    train_sweep([config.model_copy(update={"trainer": dry}) for config in both])
    said = capsys.readouterr().out
    assert not outcome(tmp_path, "second")
    steps.clear()
    train_sweep(both)
    announced = "8 runs taken over from other experiments\n9 runs: 8 done before, 1 to train\n"
    assert said.startswith(announced)
    assert capsys.readouterr().out.startswith(announced)
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
