"""The W&B mirror: what W&B is told, and in which mode."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
from tracking_cases import (
    KEY,
    OFFLINE,
    Fake,
    expected,
    rows,
    state,
    trained,
)

from wn import tracking
from wn.config import TrackingConfig

pytestmark = pytest.mark.usefixtures("no_account")


# What W&B is told.


def test_wandb_is_told_what_the_record_holds(started: list[Fake]) -> None:
    record = trained()
    tracking.mirror_all([record], OFFLINE)
    (copy,) = started
    assert copy.told == expected(record)
    assert copy.axes == {"epoch": None, "step": None, "metrics/*": "epoch", "probes/*": "step"}
    assert copy.ends == [0]
    assert state(record) == "offline"
    told = copy.identity
    assert (told["group"], told["job_type"], told["tags"]) == ("robust", "weight_norm", ["mlp", "digits"])
    assert (told["id"], told["resume"]) == (f"robust-{record.content['run_id']}", "allow")
    assert told["config"]["norm"]["name"] == "weight_norm"
    assert told["config"]["optim"] == record.content["config"]["optim"]
    assert told["config"]["provenance"]["device"] == "cpu"
    assert "tracking" not in told["config"]
    assert copy.summary["status"] == "finished"
    assert copy.summary["final/test_error"] == 0.25
    assert copy.summary["final/valid_loss"] == "NaN"
    assert copy.summary["best/valid_error"] == 0.125


def test_a_live_run_shows_rows_as_they_come_and_goes_on_after_a_stop(started: list[Fake]) -> None:
    record = trained(epochs=1, status="running")
    tracking.LiveMirror(record, OFFLINE).pause()
    assert (started[0].preempted, started[0].ends) == (True, [1])
    assert not (record.folder / "tracking.json").exists()  # it is not all there
    live = tracking.LiveMirror(record, OFFLINE)  # with two epochs on disk
    for epoch in (2, 3):
        live.log(*rows(epoch))
        record.append(*rows(epoch))
    record.save(status="failed")
    live.finish(record)
    assert started[1].identity["id"] == started[0].identity["id"]
    assert started[1].told == expected(record)
    assert started[1].ends == [1]
    assert state(record) == "offline"


def test_bulk_mixes_nothing_up(started: list[Fake]) -> None:
    many = [trained(seed, epochs=1 + seed % 4) for seed in range(24)]
    tracking.mirror_all(many, OFFLINE)
    copies = {copy.id.removeprefix("robust-"): copy for copy in started}
    assert len(copies) == len(started) == 24
    assert all(copies[record.content["run_id"]].told == expected(record) for record in many)


@pytest.mark.parametrize(
    ("project", "variable", "told"),
    [("weight-normalization", "theirs", "theirs"), ("mine", "theirs", "mine"), ("mine", None, "mine")],
)
def test_wandb_s_variables_win_over_defaults_alone(
    started: list[Fake], monkeypatch: pytest.MonkeyPatch, project: str, variable: str | None, told: str
) -> None:
    if variable:
        monkeypatch.setenv("WANDB_PROJECT", variable)
        monkeypatch.setenv("WANDB_ENTITY", "team")
    tracking.mirror_all([trained()], TrackingConfig(mode="offline", project=project))
    assert started[0].identity["project"] == told
    assert started[0].identity["entity"] == ("team" if variable else None)


# The mode.


@pytest.mark.parametrize(
    ("mode", "key", "environment", "modes"),
    [
        ("auto", True, None, ["online"]),
        ("auto", False, None, ["offline"]),
        ("auto", True, "offline", ["offline"]),
        ("auto", True, "disabled", []),
        ("online", True, None, ["online"]),
        ("online", False, None, ["offline"]),
        ("offline", True, None, ["offline"]),
        ("disabled", True, None, []),
    ],
)
def test_mode(
    started: list[Fake],
    monkeypatch: pytest.MonkeyPatch,
    mode: Any,
    key: bool,
    environment: str | None,
    modes: list[str],
) -> None:
    if key:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    tracking.mirror_all([trained()], TrackingConfig(mode=mode))
    assert [copy.identity["mode"] for copy in started] == modes


def test_a_key_in_netrc_is_found(started: list[Fake]) -> None:
    host = wandb.Settings().base_url.removeprefix("https://")
    Path("netrc").write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    Path("netrc").chmod(0o600)
    tracking.mirror_all([trained()], TrackingConfig())
    assert [copy.identity["mode"] for copy in started] == ["online"]


@pytest.mark.parametrize("terminal", [False, True])
def test_without_key_nobody_is_asked(terminal: bool) -> None:
    """At a terminal W&B would ask for a key, and wait."""
    record = trained()
    program = (
        "from pathlib import Path; from wn import tracking; from wn.config import TrackingConfig\n"
        "from wn.records import Record\n"
        f"record = Record.read(Path({str(record.folder)!r}))\n"
        "for mode in 'auto', 'online': tracking.mirror_all([record], TrackingConfig(mode=mode))"
    )
    ours, theirs = pty.openpty()
    streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    if not terminal:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    env = {**os.environ, "PYTHONPATH": str(Path(tracking.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", program], timeout=60, env=env, check=True, **streams)
    os.close(theirs)
    said = os.read(ours, 10000) if terminal else done.stdout
    os.close(ours)
    (line,) = said.decode().splitlines()
    assert "not logged in" in line  # of mode=online, which was asked for
    assert state(record) == "offline"


def test_import_is_cheap() -> None:
    program = (
        "import sys, wn.tracking, wn.sync; print({'wandb', 'torch', 'numpy', 'pandas'} & set(sys.modules))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(tracking.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, check=True)
    assert done.stdout == b"set()\n"
