"""A run that fails stops no other, and a stack that runs out of memory is split."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from stop_cases import send, throw, when
from sweep_cases import (
    assert_near,
    grid,
    outcome,
    tiny,
)

from wn import launcher, messages, run, trainer
from wn.config import MLPConfig, UserError
from wn.records import Record
from wn.run import RunFailed, final_loss
from wn.step import CaptureFailed
from wn.stops import Preempted
from wn.sweep import train_sweep
from wn.trainer import Trainer


def fail_at(monkeypatch: pytest.MonkeyPatch, norm: str, message: str) -> None:
    """Let the third step of every stack with this norm raise."""
    when(monkeypatch, lambda t: t.config.norm.label == norm and t.step == 3, throw(RuntimeError, message))


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
    assert "in thrown: raise kind(*words)" in error
    assert not re.search(r"(?<![\w/.])/\w", error)
    assert len(results[0].metrics) == 2  # what was measured before is kept
    with pytest.raises(RunFailed, match=r"run \w+ failed: RuntimeError: no room .*record\.json"):
        final_loss(results[0])
    assert math.isnan(launcher.summary(results))  # what a sweeper is told
    assert "no room" in str(launcher.failed.pop())


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
    configs = [tiny(tmp_path, seed=seed) for seed in range(7)]
    with monkeypatch.context() as patch:
        when(patch, lambda t: len(t.alive) > fits and t.step > 2, throw(torch.OutOfMemoryError, "too large"))
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


def test_a_stop_between_two_halves_fails_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of the second half still name the whole stack, which has no checkpoint and is split again."""
    configs = [tiny(tmp_path, seed=seed) for seed in range(4)]
    when(monkeypatch, lambda t: len(t.alive) > 2, throw(torch.OutOfMemoryError, "too large"))
    with monkeypatch.context() as patch:
        when(patch, lambda t: len(t.alive) == 2, send(signal.SIGTERM))
        with pytest.raises(Preempted):
            train_sweep(configs)
    assert {record.status for record in train_sweep(configs)} == {"finished"}
    assert not list(tmp_path.rglob("*.pt"))


def test_what_the_user_can_mend_is_no_failure_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stack is built within the training: a model of the user's may have nothing to train, say."""
    config = tiny(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_prepare", lambda *_: throw(UserError, "all are frozen")())
        with pytest.raises(UserError, match=r"^all are frozen$"):
            train_sweep([config])
    assert Record.of(config).status == "running"
    (record,) = train_sweep([config])
    assert record.status == "finished"


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
    monkeypatch.setattr(messages, "git_state", lambda: {"commit": None, "dirty": None})
    messages.unknown_commit.cache_clear()
    for seed in range(2):
        train_sweep([tiny(tmp_path, seed=seed)])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "no commit is known" in line)
    assert line.endswith(f" {Record.of(tiny(tmp_path)).content['provenance']['source']}")
    monkeypatch.setattr(messages, "git_state", lambda: {"commit": "1" * 40, "dirty": False})
    messages.unknown_commit.cache_clear()
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


@pytest.mark.parametrize(
    ("home", "place"),
    [
        ("/home/Al Smith", "/home/Al Smith/x/y.py"),
        ("/home/Al Smith", "file:///home/Al Smith/y.py"),
        ("/home/Al Smith", "'/home/Al Smith'"),
        ("/home/Al Smith", "/home/x/y.py"),
        ("/home/Smith", "/home/Smithson/x/y.py"),
        ("/home/Smith", "file:///scratch/x/y.py"),
        ("/home/Smith", "file:/scratch/x/y.py"),
        ("/home/Smith", "//nas/x/y.py"),
        ("/home/Smith", "data:/scratch/x/y.py"),
    ],
)
def test_a_traceback_names_no_folder_of_the_user_s(
    monkeypatch: pytest.MonkeyPatch, home: str, place: str
) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path(home))
    try:
        exec(compile(f"raise ValueError({place!r})", f"{home}/y.py", "exec"))
    except ValueError as error:
        *_, where, said = run._describe(error).splitlines()
    assert where.startswith("y.py:1 in <module>")
    assert not re.search("Smith|home|/x", said), said


def test_a_traceback_keeps_addresses() -> None:
    said = run._describe(ValueError("404: https://example.org/a/b.gz, s3://bucket/c/d"))
    assert said.endswith("404: https://example.org/a/b.gz, s3://bucket/c/d")


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
