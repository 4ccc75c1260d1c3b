"""Records that are sent to W&B afterwards, and runs in groups or of an agent's."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from tracking_cases import (
    FOLDER,
    KEY,
    OFFLINE,
    Fake,
    assert_private,
    fail,
    trained,
    warnings,
)
from train_cases import Call
from wandb.sdk.launch.sweeps import utils

from wn import records, sync, tracking
from wn.config import TrackingConfig, UserError

pytestmark = pytest.mark.usefixtures("no_account")


@pytest.fixture
def report(no_account: None) -> None:
    """What ``python -m wn.report`` leaves."""
    from PIL import Image

    (FOLDER / "report").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(FOLDER / "report/robustness.png")
    write_points(("none", 0.01, 0.5), ("none", 0.1, ""), ("weight_norm", 0.1, 0.25))
    summary = {"x": "lr", "y": "error", "line": "norm", "points": "points.csv", "figures": ["robustness.png"]}
    (FOLDER / "report/summary.json").write_text(json.dumps(summary))


@pytest.mark.usefixtures("report")
def test_the_summary_run_holds_points_and_figures() -> None:
    sync.send_report(FOLDER, OFFLINE)
    wandb.teardown()
    (copy,) = FOLDER.glob("wandb/offline-run-*-robust-summary")
    tables = [json.loads(path.read_text()) for path in (copy / "files").rglob("*.table.json")]
    points, chart = sorted(tables, key=lambda table: "lineKey" in table["columns"])
    assert points["columns"] == ["norm", "lr", "error"]
    assert points["data"] == [["none", 0.01, 0.5], ["none", 0.1, None], ["weight_norm", 0.1, 0.25]]
    assert chart["data"] == [[-2, "none", 0.5], [-1, "weight_norm", 0.25]]
    assert len(list(copy.glob("files/media/images/figures/robustness_*.png"))) == 1
    assert_private(b"".join(path.read_bytes() for path in copy.rglob("*") if path.is_file()))


def write_points(*points: tuple[str, float, float | str]) -> None:
    with (FOLDER / "report/points.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("norm", "lr", "error"), *points])


@pytest.mark.usefixtures("report")
@pytest.mark.parametrize("points", [[], [("none", 0.1, "")]])
def test_a_sweep_without_a_result_has_a_summary_all_the_same(
    points: list[tuple[str, float, float | str]], caplog: pytest.LogCaptureFixture
) -> None:
    """All its runs diverged, or none counts."""
    write_points(*points)
    sync.send_report(FOLDER, OFFLINE)
    assert warnings(caplog) == []
    wandb.teardown()
    (copy,) = FOLDER.glob("wandb/offline-run-*-robust-summary")
    tables = [json.loads(path.read_text()) for path in (copy / "files").rglob("*.table.json")]
    assert [table["data"] for table in tables] == [[["none", 0.1, None]]] * len(points)
    assert len(list(copy.glob("files/media/images/figures/robustness_*.png"))) == 1


def test_without_a_report_there_is_no_summary_run(started: list[Fake]) -> None:
    sync.send_report(FOLDER, OFFLINE)
    assert started == []


@pytest.mark.usefixtures("report")
def test_sync_sends_what_never_reached_wandb(started: list[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    never, offline, online, failed = (
        trained(seed, status, tracking={"project": "theirs", "mode": "disabled"})
        for seed, status in enumerate(("finished", "diverged", "finished", "failed"))
    )
    trained(4, status="running")
    tracking.mirror_all([offline], OFFLINE)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracking.mirror_all([online], TrackingConfig())
    del started[:]
    assert sync.sync(FOLDER) == "robust: runs sent: 3, there already: 1, not ended: 1"
    *runs, summary = started
    assert summary.identity["id"] == "robust-summary"
    assert {copy.identity["id"] for copy in runs} == {
        f"robust-{r.content['run_id']}" for r in (never, offline, failed)
    }
    assert {(copy.identity["mode"], copy.project) for copy in started} == {("online", "theirs")}
    assert all(list(copy.told) == [0, 10, 20, 30] and len(copy.ends) == 1 for copy in runs)
    del started[:]
    assert sync.sync(FOLDER).startswith("robust: runs sent: 0, there already: 4,")
    assert sync.sync(FOLDER, again=True).startswith("robust: runs sent: 4,")


def test_sync_says_what_it_could_not_send(
    started: list[Fake], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    first, second = (trained(seed) for seed in (0, 1))
    start = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **kw: fail() if len(started) else start(**kw))
    with pytest.raises(UserError, match="1 of 2 runs sent, then W&B is in pieces; sync again later"):
        sync.sync(FOLDER)
    assert sorted((r.folder / "tracking.json").exists() for r in (first, second)) == [False, True]
    assert warnings(caplog) == []  # the error says it


def test_sync_as_a_command(
    started: list[Fake], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(runs_dir="elsewhere")
    for name, message in (("robust", "wandb login"), ("robbust", "did you mean 'robust'")):
        monkeypatch.setattr(sys, "argv", ["sync", name, "--runs-dir", "elsewhere"])
        assert sync.main() == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error
    monkeypatch.setattr(sys, "argv", ["sync", "robust", "--runs-dir", "elsewhere"])
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert sync.main() == 0
    assert capsys.readouterr().out == "robust: runs sent: 1, there already: 0, not ended: 0\n"


# Groups, and wandb agent.


def test_adhoc_sweeps_have_groups_of_their_own(call: Call, started: list[Fake]) -> None:
    def groups(words: str, mode: str = "offline") -> set[Any]:
        started.clear()
        assert call(f"{words} trainer.epochs=1 tracking.mode={mode}").status == 0
        return {copy.identity["group"] for copy in started}

    (first,) = groups("-m norm=none seed=0,1")
    (second,) = groups("-m norm=none seed=2,3")
    assert first != second
    assert re.fullmatch(r"adhoc-[0-9a-f]{8}", first)
    assert groups("-m norm=none seed=1,0 trainer.force=true") == {first}  # the same runs
    assert groups("norm=none seed=4") == {"adhoc"}
    assert groups("-m norm=none seed=5,6 experiment_name=named") == {"named"}
    assert groups("-m norm=none seed=7,8 tracking.group=mine") == {"mine"}
    found = {
        record.content["config"]["seed"]: record for record in records.read_experiment(Path("runs"), "adhoc")
    }
    assert {sync._tracking(found[seed]).group for seed in (0, 1)} == {first}
    assert sync._tracking(found[7]).group == "mine"


def test_a_result_that_is_taken_over_is_in_its_own_experiment_s_group(call: Call) -> None:
    assert call("-m norm=none seed=0,1 trainer.epochs=1").status == 0
    assert call("-m norm=none seed=0,1 trainer.epochs=1 experiment_name=named").status == 0
    for record in records.read_experiment(Path("runs"), "named"):
        assert sync._tracking(record).group is None


def test_the_variable_for_a_group_is_heard(started: list[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_GROUP", "theirs")
    tracking.mirror_all([trained()], OFFLINE)
    assert [copy.identity["group"] for copy in started] == ["theirs"]


SWEEP_FILE = Path(__file__).parent.parent / "scripts/wandb_sweep.yaml"


def trial(run_id: str, monkeypatch: pytest.MonkeyPatch, **values: Any) -> str:
    """The words that W&B's own code makes of the sweep's file for a trial, in an agent's environment."""
    config = yaml.safe_load(SWEEP_FILE.read_text(encoding="utf-8"))
    assert values.keys() <= config["parameters"].keys()
    command = utils.create_sweep_command(config["command"])
    words = utils.create_sweep_command_args(
        {"args": {key: {"value": value} for key, value in values.items()}}
    )
    assert command[1:] == ["python", "-m", "wn.train", "${args_no_hyphens}"]
    assert command[0] in ("/usr/bin/env", "${env}")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", run_id)
    assert [word.removeprefix("--") for word in words["args"]] == words["args_no_hyphens"]
    return shlex.join(words["args_no_hyphens"])


def test_an_agent_s_trials_are_its_own_runs(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of real W&B: each trial has the agent's id, one with the settings of an earlier one too."""
    settings = {"norm": "none", "optim.lr": 0.0625, "seed": 1}
    for run_id in ("first", "again"):
        words = trial(run_id, monkeypatch, **settings)
        result = call(f"{words} tracking.mode=offline")
        assert (result.status, result.err) == (0, "")
        tracking.connection.cache_clear()
        wandb.teardown()  # an agent starts a process for each
    ids = sorted(path.name.rpartition("-")[2] for path in Path("runs/adhoc/wandb").glob("offline-run-*"))
    assert ids == ["again", "first"]
    (record,) = records.read_experiment(Path("runs"), "adhoc")
    assert (record.content["config"]["optim"]["lr"], record.content["norm"]) == (0.0625, "none")


def test_an_agent_s_trial_is_one_run(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    words = trial("first", monkeypatch, norm="none")
    result = call(f"-m {words} seed=0,1 tracking.mode=offline")
    line = "error: wandb agent: a trial is one run; leave out -m, and give one value of each setting\n"
    assert (result.status, result.out, result.err) == (2, "", line)
    assert not Path("runs").exists() or not list(Path("runs").rglob("record.json"))


def test_the_metric_of_the_sweep_is_one_that_runs_log(started: list[Fake]) -> None:
    config = yaml.safe_load(SWEEP_FILE.read_text(encoding="utf-8"))
    tracking.mirror_all([trained()], OFFLINE)
    assert config["metric"]["name"] in {key for row in started[0].told.values() for key in row}
