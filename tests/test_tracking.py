"""The W&B mirror: what W&B is told, what leaves the machine, and W&B broken in many ways."""

from __future__ import annotations

import csv
import http.server
import json
import logging
import math
import os
import pty
import pwd
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
import yaml
from train_cases import Call
from wandb.sdk.launch.sweeps import utils

from wn import records, run, sync, tracking
from wn.config import TrackingConfig, UserError, parse
from wn.records import Record

OFFLINE = TrackingConfig(mode="offline")
KEY = "0123456789abcdef" * 2 + "01234567"
LAYERS = ("layers.0", "layers.1")
FOLDER = Path("runs/robust")


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A user without key, in a folder of their own, and a W&B that has not started."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(tmp_path / "home-of-nobody"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(socket, "gethostname", lambda: "host-of-nobody")
    monkeypatch.chdir(tmp_path)
    tracking.connection.cache_clear()
    yield
    tracking.connection.cache_clear()
    wandb.teardown()


def trained(seed: int = 0, status: str = "finished", epochs: int = 3, **settings: Any) -> Record:
    """The record of a run with random numbers in it, in ``runs/robust``."""
    norm = {"direction": "row", "gain": "free"}
    config = parse({"seed": seed, "norm": norm, "experiment_name": "robust", **settings})
    record = Record.of(config)
    assert record.claim()
    record.begin(config, [config.run_id], "cpu")
    for epoch in range(epochs + 1):
        record.append(*rows(epoch))
    initial, final = {"valid_loss": 2.5}, {"valid_loss": math.nan, "test_error": 0.25}
    best = {"epoch": 2, "valid_error": 0.125}
    record.save(status=status, seconds=1.5, initial=initial, final=final, best=best)
    record.release()
    return record


def rows(epoch: int) -> tuple[list[records.Row], list[records.Row]]:
    """The rows of an epoch of ten steps; no probes before training."""
    place = {"epoch": epoch, "step": 10 * epoch}
    metrics = [place | {"train_loss": 1 / (1 + epoch), "valid_error": None if epoch == 0 else 0.5**epoch}]
    probe = {"v_norm_mean": 1.0 + epoch, "g_mean": 2.0 - epoch}
    return metrics, [place | {"layer": layer} | probe for layer in LAYERS if epoch]


def expected(record: Record) -> dict[int, dict[str, Any]]:
    """What W&B should be told, step by step, said independently of the module."""
    told: dict[int, dict[str, Any]] = {}
    for row in record.metrics:
        told[row["step"]] = {"epoch": row["epoch"], "step": row["step"]}
        told[row["step"]]["metrics/train_loss"] = row["train_loss"]
        if row["epoch"]:
            told[row["step"]]["metrics/valid_error"] = row["valid_error"]
    for row in record.probes:
        for key in ("v_norm_mean", "g_mean"):
            told[row["step"]][f"probes/{row['layer']}/{key}"] = row[key]
    return told


def state(record: Record) -> Any:
    return json.loads((record.folder / "tracking.json").read_text())["state"]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Ours; what W&B says to its own logger stays in its own file."""
    ours = [r for r in caplog.records if r.name == "wn.tracking"]
    return [r.getMessage() for r in ours if r.levelno >= logging.WARNING]


class Fake:
    """A W&B run that keeps what it is told."""

    def __init__(self, **identity: Any) -> None:
        self.identity = identity
        self.offline = identity["mode"] != "online"
        self.id, self.project, self.url = identity["id"], identity["project"], "an address"
        self.told: dict[int | None, dict[str, Any]] = {}
        self.axes: dict[str, str | None] = {}
        self.summary: dict[str, Any] = {}
        self.ends: list[int] = []
        self.preempted = False

    def define_metric(self, name: str, step_metric: str | None = None, hidden: bool = False) -> None:
        self.axes[name] = step_metric

    def log(self, row: dict[str, Any], step: int | None = None) -> None:
        self.told.setdefault(step, {}).update(row)

    def finish(self, exit_code: int = 0) -> None:
        self.ends.append(exit_code)

    def mark_preempting(self) -> None:
        self.preempted = True


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    """The runs that were started on a stand-in for W&B."""
    runs: list[Fake] = []

    def init(**identity: Any) -> Fake:
        runs.append(Fake(**identity))
        return runs[-1]

    monkeypatch.setattr(wandb, "init", init)
    return runs


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
    tracking.open_live(record, OFFLINE).pause()
    assert (started[0].preempted, started[0].ends) == (True, [1])
    assert not (record.folder / "tracking.json").exists()  # it is not all there
    live = tracking.open_live(record, OFFLINE)  # with two epochs on disk
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


# What leaves the machine, by W&B's own code.


def assert_private(sent: bytes) -> None:
    """No key, account, host or folder of this machine."""
    user = pwd.getpwuid(os.getuid())
    account = [user.pw_dir, user.pw_name, os.uname().nodename]
    folders = [os.getcwd(), sys.prefix, str(Path(tracking.__file__).parent)]
    secrets = ["host-of-nobody", "home-of-nobody", KEY, *folders, *(s for s in account if len(s) > 4)]
    assert [secret for secret in secrets if secret.encode() in sent] == []


def test_an_offline_copy_holds_the_record_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    record = trained()
    record.save(steps=30)
    record.save_picture("samples", run.png(torch.rand(3, 1, 4, 4)))
    tracking.mirror_all([record], OFFLINE)
    wandb.teardown()  # it may still be writing
    (copy,) = FOLDER.glob("wandb/offline-run-*")
    content = b"".join(path.read_bytes() for path in copy.rglob("*") if path.is_file())
    assert_private(content)
    assert b"probes/layers.0/v_norm_mean" in content
    (picture,) = copy.glob("files/media/images/pictures/samples_*.png")
    assert picture.read_bytes() == record.pictures["samples"].read_bytes()
    assert sorted(path.name for path in FOLDER.iterdir()) == [record.content["run_id"], "wandb"]
    assert [r.status for r in records.read_experiment(Path("runs"), "robust")] == ["finished"]


class Refusing(http.server.BaseHTTPRequestHandler):
    """A server that keeps what it is sent and takes nothing."""

    sent: list[bytes]

    def do_POST(self) -> None:
        self.sent.append(self.rfile.read(int(self.headers.get("content-length") or 0)))
        self.send_error(403)

    do_GET = do_PUT = do_POST

    def log_message(self, *_: Any) -> None:
        pass


def test_a_server_that_refuses_keeps_runs_offline_and_learns_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Refusing.sent = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setattr(tracking, "TIMEOUT", 2.0)
        wandb.teardown()  # its settings are read once
        many = [trained(seed) for seed in range(3)]
        tracking.mirror_all(many, TrackingConfig())
        server.shutdown()
    (warning,) = warnings(caplog)
    assert "kept offline" in warning
    assert "\n" not in warning
    assert [state(record) for record in many] == ["offline"] * 3
    assert Refusing.sent
    assert_private(b"\n".join(Refusing.sent))


# W&B broken.


def fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("W&B is\nin pieces")


def leave(*_: Any, **__: Any) -> Any:
    raise SystemExit(1)


def interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def hang(*_: Any, **__: Any) -> Any:
    time.sleep(30)


@pytest.mark.parametrize("broken", [fail, leave, interrupt, hang])
@pytest.mark.parametrize("method", ["init", "define_metric", "log", "finish"])
def test_broken_wandb_costs_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str, broken: Callable[..., Any]
) -> None:
    """And, where it hangs, a bounded time."""
    monkeypatch.setitem(tracking.PATIENCE, "offline", 0.2)
    copy = Fake(mode="offline", id="i", project="p")
    monkeypatch.setattr(wandb, "init", lambda **_: copy)
    monkeypatch.setattr(wandb if method == "init" else copy, method, broken)
    record, other = trained(), trained(1)
    begin = time.monotonic()
    live = tracking.open_live(record, OFFLINE)
    live.log(*rows(4))
    live.finish(record)
    tracking.mirror_all([record, other], OFFLINE)
    assert time.monotonic() - begin < 10
    (warning,) = warnings(caplog)
    assert ("W&B is in pieces" in warning) == (broken is fail)
    assert not list(FOLDER.glob("*/tracking.json"))
    assert record.status == other.status == "finished"


def test_a_failure_online_is_made_good_offline(
    started: list[Fake], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    start = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **kw: fail() if kw["mode"] == "online" else start(**kw))
    many = [trained(seed) for seed in range(3)]
    tracking.mirror_all(many, TrackingConfig())
    (warning,) = warnings(caplog)
    assert warning == "W&B: W&B is in pieces; runs are kept offline, send them with `python -m wn.sync NAME`"
    assert [state(record) for record in many] == ["offline"] * 3


def test_a_service_that_hangs_does_not_keep_the_process() -> None:
    """W&B's own process is stopped while a run is open: the mirror gives up, and the interpreter ends."""
    record = trained(status="running")
    Path("program.py").write_text(
        "import os, signal, subprocess\n"
        "from pathlib import Path\n"
        "from wn import tracking\n"
        "from wn.config import TrackingConfig\n"
        "from wn.records import Record\n"
        f"record = Record.read(Path({str(record.folder)!r}))\n"
        "live = tracking.open_live(record, TrackingConfig(mode='offline'))\n"
        "for line in subprocess.check_output(['ps', '-eo', 'pid=,ppid=,comm='], text=True).splitlines():\n"
        "    pid, parent, name = line.split(maxsplit=2)\n"
        "    if int(parent) == os.getpid() and 'wandb' in name:\n"
        "        os.kill(int(pid), signal.SIGSTOP)\n"
        "        print(pid)\n"
        "live._connection._left['offline'] = 0.5\n"
        "live.finish(record)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(tracking.__file__).parent.parent)}
    with open("out", "w") as out, open("err", "w") as err:  # files, as the stopped process keeps pipes open
        try:
            subprocess.run(
                [sys.executable, "program.py"], env=env, timeout=60, stdout=out, stderr=err, check=True
            )
        finally:
            os.kill(int(Path("out").read_text()), signal.SIGKILL)
    assert "no answer in time; runs are not mirrored" in Path("err").read_text()


# Sync.


@pytest.fixture
def report() -> None:
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
        with pytest.raises(SystemExit) as end:
            sync.main()
        error = capsys.readouterr().err
        assert (end.value.code, error.count("\n")) == (2, 1)
        assert message in error
    monkeypatch.setattr(sys, "argv", ["sync", "robust", "--runs-dir", "elsewhere"])
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    sync.main()
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
