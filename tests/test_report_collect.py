"""Collecting rows: what they hold, and how the results of several machines merge."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
from report_cases import NAME, TREE, contents, declare, write_all, write_run

from wn.config import SCHEMA, UserError
from wn.experiments import Experiment
from wn.report import collect


@pytest.fixture(autouse=True)
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    return declare(tmp_path, monkeypatch)


def merged(experiment: Experiment, runs_dir: Path, folder: Path) -> collect.Rows:
    rows = collect.merge(experiment, collect.local_records(experiment, runs_dir), folder)
    collect.write(rows, experiment, folder)
    return rows


def test_rows_are_in_the_order_of_the_grid_and_read_back_exactly(
    experiment: Experiment, tmp_path: Path
) -> None:
    write_all(tmp_path / "runs", seconds=1 / 3)
    write_run(tmp_path / "runs", "none", 0.1, 0, run_id="1234567890e1")  # text, though it looks like a number
    (first, *_) = (tmp_path / "runs" / NAME).glob(hashlib.sha256(b"none 0.1 0").hexdigest()[:12])
    (first / "record.json").unlink()
    rows = merged(experiment, tmp_path / "runs", tmp_path)
    back = collect.read(experiment, tmp_path)
    for written, read in zip(rows, back, strict=True):
        assert read.equals(written)
    cells = [(str(c["norm"]), str(c["optim.lr"]), str(c["seed"])) for c in experiment.cells()]
    assert list(back.runs[["norm", "optim.lr", "seed"]].itertuples(index=False, name=None)) == cells
    assert back.runs["run_id"][3] == "1234567890e1"
    assert back.runs["seconds"][0] == 1 / 3
    assert back.runs["valid_loss"][5] == 10 * 0.06 + 2 / 3


def test_rows_tell_what_a_run_was(experiment: Experiment, tmp_path: Path) -> None:
    write_all(tmp_path)
    rows = merged(experiment, tmp_path, tmp_path / "results").runs.to_dict("records")
    finished, diverged = rows[0], rows[6]
    assert (finished["epochs"], finished["steps"], finished["stack_size"]) == (4, 28, 2)
    assert (finished["data"], finished["precision"], finished["torch"]) == ("digits", "float32", "2.15")
    assert (diverged["status"], diverged["diverged_epoch"], diverged["diverged_step"]) == ("diverged", 1, 7)
    assert math.isnan(diverged["valid_error"])


def test_trajectories_are_of_the_first_seed_and_the_middle_layer(
    experiment: Experiment, tmp_path: Path
) -> None:
    write_all(tmp_path)
    runs, trajectories = merged(experiment, tmp_path, tmp_path / "results")
    seeds = dict(zip(runs["run_id"], runs["seed"], strict=True))
    assert {seeds[run_id] for run_id in trajectories["run_id"]} == {"0"}
    assert set(trajectories["layer"]) == {"hidden1"}
    assert len(trajectories) == 2 * 5  # two probes of each run of a first seed that did not diverge
    assert trajectories["relative_update"].iloc[0] == 0.0033333  # five digits are kept


def test_results_of_several_machines_add_up(experiment: Experiment, tmp_path: Path) -> None:
    write_run(tmp_path / "a", "none", 0.1, 0, seconds=1.0)
    write_run(tmp_path / "a", "none", 0.01, 1, seconds=1.0)
    write_run(tmp_path / "b", "none", 0.1, 0, seconds=2.0, run_id="b" * 12)
    write_run(tmp_path / "b", "weight_norm", 1.0, 0, seconds=2.0)
    folder = tmp_path / "results"
    assert len(merged(experiment, tmp_path / "a", folder).runs) == 2
    runs, trajectories = merged(experiment, tmp_path / "b", folder)
    assert list(runs["seconds"]) == [1.0, 2.0, 2.0]
    assert list(runs["norm"]) == ["none", "none", "weight_norm"]
    assert set(trajectories["run_id"]) == {"b" * 12, runs["run_id"].iloc[2]}, "none of the run replaced"
    before = contents(folder)
    merged(experiment, tmp_path / "nothing", folder)
    assert contents(folder) == before, "a fresh clone keeps what is committed"


def test_what_is_no_result_takes_no_place(experiment: Experiment, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    write_run(tmp_path / "a", "none", 0.1, 0)
    merged(experiment, tmp_path / "a", folder)
    before = contents(folder)
    write_run(tmp_path / "b", "none", 0.1, 0, status="running")
    write_run(tmp_path / "b", "none", 0.1, 1, status="failed", error="x")
    write_run(tmp_path / "b", "none", 0.1, 2, schema=SCHEMA - 1)
    longer = {"epochs": 5, "precision": "float32"}
    setting = {"data": {"name": "digits"}, "optim": {"lr": 0.01}, "trainer": longer, "seed": 2}
    write_run(tmp_path / "b", "none", 0.01, 2, config=setting)
    merged(experiment, tmp_path / "b", folder)
    assert contents(folder) == before


def test_committed_rows_of_another_setting_go(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(tmp_path / "runs")
    merged(experiment, tmp_path / "runs", tmp_path)
    shifted = declare(tmp_path, monkeypatch, grid=TREE["grid"] | {"optim.lr": [0.1, 1.0, 10.0]})
    assert len(collect.read(shifted, tmp_path).runs) == 12
    longer = declare(tmp_path, monkeypatch, fixed=TREE["fixed"] | {"trainer.epochs": 5})
    assert len(collect.read(longer, tmp_path).runs) == 0


def test_two_runs_of_one_cell_are_refused(experiment: Experiment, tmp_path: Path) -> None:
    first = write_run(tmp_path, "none", 0.1, 0)
    second = write_run(tmp_path, "none", 0.1, 0, run_id="f" * 12)
    with pytest.raises(UserError, match=r"norm=none, optim\.lr=0\.1, seed=0") as refusal:
        collect.local_records(experiment, tmp_path)
    assert str(first) in str(refusal.value)
    assert str(second) in str(refusal.value)
    assert "\n" not in str(refusal.value)
