"""What training would cost: told before anything is trained, by what is known or by a measured step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from sweep_cases import tiny
from train_cases import SWEEP, Call

from wn import cost
from wn.config import Config
from wn.data import sources
from wn.records import Record
from wn.resources import device_name, resolve
from wn.timings import Timings


@pytest.fixture(autouse=True)
def one_measured_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "MEASURED", 1e-9)


def finished(config: Config, seconds: float, device: str = "a processor", stack: int = 1) -> Record:
    """A record of a run that took so long."""
    record = Record.unread(config)
    record.folder.mkdir(parents=True, exist_ok=True)
    record.begin(config, [config.run_id] * stack, device)
    record.save(status="finished", seconds=seconds, initial={}, final={})
    return record


@pytest.mark.parametrize(
    "words",
    ["norm=none", SWEEP, "-m norm=none,weight_norm hydra/launcher=basic", "+experiment=vae_lr seed=0"],
)
def test_a_dry_run_trains_nothing(call: Call, tmp_path: Path, steps: list[int], words: str) -> None:
    words = words if "experiment" not in words else f"{words} model.widths=[8] experiment_name=x"
    result = call(f"{words} --dry-run")
    assert (result.status, result.err) == (0, "")
    assert not list(tmp_path.rglob("*.json*"))
    lines = result.out.splitlines()
    assert re.fullmatch(r"(1 run|(?!1 )\d+ runs): 0 done before, \d+ to train", lines[0])
    assert re.fullmatch(r"\d+ stacks? to train", lines[1])
    assert re.fullmatch(r"time: .* on .*, by a measured step, uncompiled", lines[2])


def test_a_dry_run_counts_what_is_done(call: Call, tmp_path: Path) -> None:
    assert call("-m norm=none seed=0,1").status == 0
    lines = call("-m norm=none seed=0,1,2 trainer.dry_run=true").out.splitlines()
    assert lines[:2] == ["3 runs: 2 done before, 1 to train", "1 stack to train"]
    assert lines[2].endswith("as finished runs took")
    assert call("-m norm=none seed=0,1 --dry-run").out.splitlines()[1] == "nothing to train"
    assert call("-m norm=none seed=0,1,2").out.startswith("3 runs: 2 done before, 1 to train")


def test_time_is_steps_and_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps and an evaluation an epoch, and a test at the end, of a minute each: three stacks of two."""
    monkeypatch.setattr(cost, "_seconds", lambda work, trainer: 60.0)
    stacks = [[tiny(tmp_path, lr=lr, seed=seed) for seed in (0, 1)] for lr in (0.1, 0.2, 0.3)]
    device, data = resolve(stacks[0][0])
    minutes = 3 * (2 + 1) + len(data.test.x) / len(data.valid.x)
    line = cost.estimate(stacks, device, data, workers=1)
    assert line.startswith(f"time: {3 * minutes:.0f} minutes on ")
    line = cost.estimate(stacks, device, data, workers=3)
    assert line.startswith(f"time: {minutes:.0f} minutes on ")
    assert "in 3 processes" in line


def test_runs_that_workers_trained_tell_what_others_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker has its share of this process's threads, and its records name that."""
    for seed in (1, 2):
        finished(tiny(tmp_path, seed=seed), 120.0, device_name(torch.device("cpu"), threads=1))
    stacks = [[tiny(tmp_path, seed=seed)] for seed in (3, 4)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    line = cost.estimate(stacks, *resolve(stacks[0][0]), workers=4)
    assert line.endswith("as finished runs took")


def test_a_vae_s_bound_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_seconds", lambda work, trainer: 60.0)
    config = tiny(tmp_path, model={"name": "mlp_vae"}, trainer={"iwae_samples": 50, "test_every": 3})
    device, data = resolve(config)
    minutes = 3 * (2 + 1) + (1 + 50) * len(data.test.x) / len(data.valid.x)
    assert cost._one_step([config], device, data, 1) == pytest.approx(60 * minutes)


def test_finished_runs_tell_what_others_take(tmp_path: Path) -> None:
    """By norm, then by any; on this device; in a stack of about this size; per epoch."""
    records = [
        finished(tiny(tmp_path, seed=1), 3.0),
        finished(tiny(tmp_path, seed=2), 9.0),
        finished(tiny(tmp_path, seed=3), 6.0),
        finished(tiny(tmp_path, seed=4), 1.5, stack=64),
        finished(tiny(tmp_path, seed=5), 0.3, device="another"),
        finished(tiny(tmp_path, "weight_norm", seed=1), 30.0),
        finished(tiny(tmp_path, seed=6, model={"widths": [5]}), 99.0),
    ]
    known = Timings(records)
    asked = tiny(tmp_path, lr=7.0, seed=8)
    assert known.seconds(asked, "a processor", 1) == 6.0
    assert known.seconds(asked, "a processor", 40) == 1.5
    assert known.seconds(asked, "a processor", 8) is None
    assert known.seconds(asked, "another", 2) == pytest.approx(0.3)
    assert known.seconds(asked) == 3.0
    assert known.seconds(tiny(tmp_path, seed=8, trainer={"epochs": 30}), "a processor", 1) == pytest.approx(
        60.0
    )
    assert known.seconds(tiny(tmp_path, "batch_norm"), "a processor", 1) == 7.5, "the median of all norms"
    assert known.seconds(tiny(tmp_path, trainer={"batch_size": 100})) is None


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_dry_run_downloads_nothing(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sources, "_download", pytest.fail)
    (tmp_path / "there").mkdir()
    result = call(f"data={name} data.root=there --dry-run")
    size = sources.OFFICIAL[name].megabytes
    assert (result.status, result.err) == (0, "")
    assert f"1 to train; to download first: {name} ({size} MB)" in result.out
