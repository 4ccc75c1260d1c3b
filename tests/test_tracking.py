"""The W&B mirror, against W&B's own files, against a server that answers like W&B's, and with W&B broken."""

from __future__ import annotations

import base64
import http.server
import json
import logging
import math
import os
import pty
import pwd
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from wandb.proto import wandb_internal_pb2

from wn import records, report, run, tracking
from wn.config import TrackingConfig, UserError, parse
from wn.records import Record

OFFLINE = TrackingConfig(mode="offline")
KEY = "0123456789abcdef" * 2 + "01234567"
LAYERS = ("layers.0", "layers.1")


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A user without key, in a folder of their own, and a W&B that has not started."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(tmp_path / "home-of-nobody"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(socket, "gethostname", lambda: "host-of-nobody")
    monkeypatch.chdir(tmp_path)
    tracking._link.cache_clear()
    yield
    tracking._link.cache_clear()
    wandb.teardown()


def trained(seed: int = 0, status: str = "finished", epochs: int = 3, **settings: Any) -> Record:
    """The record of a run with random numbers in it, in ``runs/robust``."""
    tree = {
        "seed": seed,
        "norm": {"direction": "row", "gain": "free"},
        "experiment_name": "robust",
        **settings,
    }
    config = parse(tree)
    record = Record.of(config)
    record.begin(config, [config.run_id], "cpu")
    for epoch in range(epochs + 1):
        record.append(*rows(epoch))
    record.save(
        status=status,
        seconds=1.5,
        final={"valid_loss": math.nan, "test_error": 0.25},
        best={"epoch": 2, "valid_error": 0.125},
    )
    return record


def rows(epoch: int) -> tuple[list[records.Row], list[records.Row]]:
    """The rows of an epoch of ten steps; no probes before training."""
    place = {"epoch": epoch, "step": 10 * epoch}
    metrics = [place | {"train_loss": 1 / (1 + epoch), "valid_error": None if epoch == 0 else 0.5**epoch}]
    probe = {"v_norm_mean": 1.0 + epoch, "g_mean": 2.0 - epoch}
    return metrics, [place | {"layer": layer} | probe for layer in LAYERS if epoch]


def offline_runs() -> list[Path]:
    """The files that W&B has written, oldest first; it may still be writing until it is torn down."""
    wandb.teardown()
    return sorted(Path("runs/robust/wandb").glob("offline-run-*/*.wandb"))


def read_back(path: Path) -> list[Any]:
    """W&B's records in one of its files: LevelDB's log format, 32 KiB blocks of chunks."""
    content, place, whole, found = path.read_bytes(), 7, b"", []
    assert content[:4] == b":W&B"
    while place < len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return found


def items(part: Any) -> dict[str, Any]:
    """The keys and values of a history, summary or configuration record."""
    pairs = part.item if hasattr(part, "item") else part.update
    return {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in pairs}


def history(path: Path) -> dict[int, dict[str, Any]]:
    """Step to logged row, without what W&B adds."""
    found = [items(r.history) for r in read_back(path) if r.WhichOneof("record_type") == "history"]
    assert len({row["_step"] for row in found}) == len(found)
    return {row["_step"]: {k: v for k, v in row.items() if k[0] != "_"} for row in found}


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


# Offline: what W&B's own file holds.


def test_offline_run_holds_everything() -> None:
    record = trained()
    tracking.mirror_all([record], OFFLINE)
    (path,) = offline_runs()
    assert history(path) == expected(record)
    assert state(record) == "offline"

    found = read_back(path)
    run = next(r.run for r in found if r.WhichOneof("record_type") == "run")
    assert (run.run_group, run.job_type, list(run.tags)) == ("robust", "weight_norm", ["mlp", "digits"])
    assert run.run_id == f"robust-{record.content['run_id']}"
    config = items(run.config)
    assert config["norm"]["name"] == "weight_norm"
    assert config["optim"] == record.content["config"]["optim"]
    assert config["provenance"]["device"] == "cpu"
    assert "tracking" not in config

    summary: dict[str, Any] = {}
    for r in found:
        if r.WhichOneof("record_type") == "summary":
            summary |= items(r.summary)
    assert summary["status"] == "finished"
    assert summary["final/test_error"] == 0.25
    assert summary["final/valid_loss"] == "NaN"
    assert summary["best/valid_error"] == 0.125

    metrics = [r.metric for r in found if r.WhichOneof("record_type") == "metric"]
    axes = {m.glob_name or m.name: m.step_metric for m in metrics}
    assert axes == {"epoch": "", "step": "", "metrics/*": "epoch", "probes/*": "step"}
    assert next(r.exit.exit_code for r in found if r.WhichOneof("record_type") == "exit") == 0


def test_pictures_of_a_record_go_along() -> None:
    record = trained(seed=4)
    record.save(steps=30)
    record.save_picture("samples", run.png(torch.rand(3, 1, 4, 4)))
    tracking.mirror_all([record], OFFLINE)
    (path,) = offline_runs()
    (picture,) = path.parent.glob("files/media/images/pictures/samples_*.png")
    assert picture.read_bytes() == record.pictures["samples"].read_bytes()
    rows = history(path)
    assert [step for step, row in rows.items() if any("pictures" in key for key in row)] == [30]
    assert rows[30]["metrics/train_loss"] == 0.25  # which are there as well


def test_wandb_keeps_to_its_folder() -> None:
    record = trained()
    tracking.mirror_all([record], OFFLINE)
    assert [r.content["run_id"] for r in records.read_experiment(Path("runs"), "robust")] == [
        record.content["run_id"]
    ]
    assert sorted(p.name for p in Path().iterdir() if p.name != "home-of-nobody") == ["runs"]
    assert sorted(p.name for p in record.folder.parent.iterdir()) == [record.content["run_id"], "wandb"]


def secrets() -> list[str]:
    """What must not leave this machine."""
    user = pwd.getpwuid(os.getuid())
    account = [user.pw_dir, user.pw_name, os.uname().nodename]
    folders = [os.getcwd(), sys.prefix, str(Path(tracking.__file__).parent)]
    return ["host-of-nobody", "home-of-nobody", KEY, *folders, *(s for s in account if len(s) > 4)]


def test_offline_file_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracking.mirror_all([trained()], OFFLINE)
    (path,) = offline_runs()
    sent = [path, *(p for p in (path.parent / "files").rglob("*") if p.is_file())]
    for secret in secrets():
        assert [p for p in sent if secret.encode() in p.read_bytes()] == []


def test_live_run_shows_rows_as_they_come_and_goes_on() -> None:
    record = trained(epochs=1, status="running")
    live = tracking.open_live(record, OFFLINE)  # goes on with two epochs on disk
    for epoch in (2, 3):
        live.log(*rows(epoch))
        record.append(*rows(epoch))
    record.save(status="diverged")
    live.finish(record)
    assert history(offline_runs()[0]) == expected(record)
    assert live.state == state(record) == "offline"


def test_a_failed_run_is_marked_as_failed() -> None:
    tracking.mirror_all([trained(status="failed")], OFFLINE)
    codes = [r.exit.exit_code for r in read_back(offline_runs()[0]) if r.WhichOneof("record_type") == "exit"]
    assert codes == [1]


def test_a_stopped_run_is_marked_as_preempted_and_goes_on() -> None:
    record = trained(epochs=1, status="running")
    tracking.open_live(record, OFFLINE).pause()
    kinds = [r.WhichOneof("record_type") for r in read_back(offline_runs()[0])]
    assert kinds.count("preempting") == kinds.count("exit") == 1
    assert not (record.folder / "tracking.json").exists()
    tracking._link.cache_clear()
    live = tracking.open_live(record, OFFLINE)
    live.log(*rows(2))
    record.append(*rows(2))
    record.save(status="finished")
    live.finish(record)
    (whole,) = (h for path in offline_runs() if 20 in (h := history(path)))
    assert whole == expected(record)
    assert state(record) == "offline"


def test_bulk_mixes_nothing_up() -> None:
    many = [trained(seed, epochs=1 + seed % 4) for seed in range(24)]
    tracking.mirror_all(many, OFFLINE)
    paths = {path.stem.removeprefix("run-robust-"): path for path in offline_runs()}
    assert len(paths) == 24
    for record in many:
        assert history(paths[record.content["run_id"]]) == expected(record)


def test_summary_run_holds_curves_and_figures() -> None:
    from PIL import Image

    Path("runs/robust").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save("robustness.png")
    curves = [
        {"norm": norm, "lr": lr, "error": None if lr > 1 else lr / 10, "n": 3}
        for norm in ("none", "weight_norm")
        for lr in (0.01, 0.1, 10.0)
    ]
    tracking.summarise("robust", curves, [Path("robustness.png")], OFFLINE, Path("runs"))
    (path,) = offline_runs()
    run = next(r.run for r in read_back(path) if r.WhichOneof("record_type") == "run")
    assert (run.run_group, run.job_type) == ("robust", "summary")
    tables = [json.loads(p.read_text()) for p in (path.parent / "files").rglob("*.table.json")]
    (table,) = [t for t in tables if t["columns"] == ["norm", "lr", "error", "n"]]
    assert table["data"] == [list(point.values()) for point in curves]
    (chart,) = [t for t in tables if t["columns"] == ["step", "lineKey", "lineVal"]]
    drawn = [[-2, "none", 0.001], [-1, "none", 0.01], [-2, "weight_norm", 0.001], [-1, "weight_norm", 0.01]]
    assert chart["data"] == drawn
    (row,) = history(path).values()
    assert row["figures/robustness/_type"] == "image-file"
    assert str(Path.cwd()).encode() not in path.read_bytes()


def test_an_experiment_is_published_from_its_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the report makes of the records is sent; for other names, or W&B switched off, nothing is."""
    sent: list[Any] = []
    monkeypatch.setattr(tracking, "summarise", lambda *arguments: sent.append(arguments))
    trained()
    tracking.publish("robust", Path("runs"), OFFLINE)
    tracking.publish("lr_robustness_digits", Path("runs"), TrackingConfig(mode="disabled"))
    assert not sent
    (Path("runs") / "lr_robustness_digits").mkdir()
    tracking.publish("lr_robustness_digits", Path("runs"), OFFLINE)
    ((experiment, curves, figures, to, folder, axes),) = sent
    assert (experiment, to, folder) == ("lr_robustness_digits", OFFLINE, Path("runs"))
    assert axes == ("lr", "error", "norm")
    assert curves == report.build(experiment, Path("runs"), Path("elsewhere")).curves
    assert figures == []  # no run is done


# W&B broken.


def fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("W&B is\nin pieces")


def test_wandb_that_cannot_start_costs_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb, "init", fail)
    many = [trained(seed) for seed in range(3)]
    tracking.mirror_all(many, OFFLINE)
    live = tracking.open_live(many[0], OFFLINE)
    live.log(*rows(4))
    live.finish(many[0])
    tracking.summarise("robust", [], [], OFFLINE, Path("runs"))
    (warning,) = warnings(caplog)
    assert "W&B is in pieces" in warning
    assert live.state is None
    assert not any((record.folder / "tracking.json").exists() for record in many)


@pytest.mark.parametrize("method", ["define_metric", "log", "finish"])
def test_wandb_that_breaks_on_the_way_costs_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    broken = Fake()
    setattr(broken, method, fail)
    monkeypatch.setattr(wandb, "init", lambda **_: broken)
    record = trained()
    live = tracking.open_live(record, OFFLINE)
    live.log(*rows(4))
    live.finish(record)
    assert len(warnings(caplog)) == 1
    assert not (record.folder / "tracking.json").exists()


def test_folder_that_wandb_cannot_write_to_costs_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    record = trained()
    (record.folder.parent / "wandb").write_text("a file where W&B wants a folder")
    tracking.mirror_all([record], OFFLINE)
    assert len(warnings(caplog)) == 1
    assert record.status == "finished"


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
    lines = said.decode().split("\n")
    assert [line for line in lines if "not logged in" in line] == lines[
        :1
    ]  # of mode=online, which was asked for
    assert state(record) == "offline"
    assert len(offline_runs()) == 2


def test_import_is_cheap() -> None:
    program = "import sys, wn.tracking; print({'wandb', 'torch', 'numpy'} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": str(Path(tracking.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


# Which mode, and what sync sends, with a stand-in for W&B.


class Fake:
    """A W&B run that keeps what it is told."""

    def __init__(self, **identity: Any) -> None:
        self.identity = identity
        self.offline = identity.get("mode") != "online"
        self.id, self.project, self.url = identity.get("id"), "p", "an address"
        self.logged: list[int] = []
        self.summary: dict[str, Any] = {}
        self.finished = False

    def define_metric(self, *_: Any, **__: Any) -> None:
        pass

    def log(self, row: dict[str, Any], step: int) -> None:
        self.logged.append(step)

    def finish(self, exit_code: int) -> None:
        self.finished = True


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    """The runs that were started on a stand-in for W&B."""
    runs: list[Fake] = []

    def init(**identity: Any) -> Fake:
        runs.append(Fake(**identity))
        return runs[-1]

    monkeypatch.setattr(wandb, "init", init)
    return runs


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
    assert [run.identity["mode"] for run in started] == modes


def test_a_key_in_netrc_is_found(started: list[Fake]) -> None:
    host = wandb.Settings().base_url.removeprefix("https://")
    Path("netrc").write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    Path("netrc").chmod(0o600)
    tracking.mirror_all([trained()], TrackingConfig())
    assert [run.identity["mode"] for run in started] == ["online"]


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
    assert tracking.sync("robust", Path("runs")).startswith(
        "robust: runs sent: 3, there already: 1, not ended: 1"
    )
    ids = {f"robust-{r.content['run_id']}" for r in (never, offline, failed)}
    assert {run.identity["id"] for run in started} == ids
    assert {run.identity["mode"] for run in started} == {"online"}
    assert {run.identity["project"] for run in started} == {"theirs"}
    assert all(run.finished and run.logged == [0, 10, 20, 30] for run in started)
    assert {run.summary["status"] for run in started} == {"finished", "diverged", "failed"}
    del started[:]
    assert tracking.sync("robust", Path("runs")).startswith("robust: runs sent: 0, there already: 4,")
    assert started == []
    assert tracking.sync("robust", Path("runs"), again=True).startswith("robust: runs sent: 4,")


def test_sync_says_what_it_could_not_send(
    started: list[Fake], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    first, second = (trained(seed) for seed in (0, 1))
    start = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **kw: fail() if len(started) else start(**kw))
    with pytest.raises(UserError, match="1 of 2 runs sent, then W&B is in pieces; sync again later"):
        tracking.sync("robust", Path("runs"))
    assert sorted((r.folder / "tracking.json").exists() for r in (first, second)) == [False, True]
    assert warnings(caplog) == []  # the error says it


def test_sync_without_key_or_records(monkeypatch: pytest.MonkeyPatch) -> None:
    trained()
    with pytest.raises(UserError, match="wandb login"):
        tracking.sync("robust", Path("runs"))
    with pytest.raises(UserError, match="did you mean 'robust'"):
        tracking.sync("robbust", Path("runs"))


def test_command_line(
    started: list[Fake], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(runs_dir="elsewhere")
    monkeypatch.setattr(sys, "argv", ["tracking", "sync", "robust", "--runs-dir", "elsewhere"])
    with pytest.raises(SystemExit) as end:
        tracking.main()
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert "WANDB_API_KEY" in error
    assert error.count("\n") == 1
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracking.main()
    assert capsys.readouterr().out.startswith("robust: runs sent: 1,")


# Online, against a server that answers the calls that W&B's client makes.


class Server(http.server.ThreadingHTTPServer):
    """Keeps every request, and the history rows of every run as W&B does: by line number."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[bytes] = []
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.received = 0  # rows of any run
        self.upserts: list[dict[str, Any]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def graphql(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
        if name == "RunResumeStatus":
            lines = self.history.get(given["name"])
            return {"model": {**project, "bucket": lines and self.bucket(given["name"], lines)}}
        if name == "UpsertBucket":
            self.upserts.append(given)
            bucket = {"id": "b", "name": given["name"], "displayName": "x", "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{self.url}/{f}"} for f in given["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}

    def bucket(self, name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        counts = {"historyLineCount": len(lines), "logLineCount": 0, "eventsLineCount": 0}
        tails = {"historyTail": json.dumps([json.dumps(lines[-1])]), "eventsTail": "[]"}
        known = {"config": json.dumps({"_wandb": {"value": {"t": {}}}}), "wandbConfig": json.dumps({"t": 1})}
        return {"id": "b", "name": name, "summaryMetrics": "{}", "tags": [], **counts, **tails, **known}

    def stream(self, name: str, files: dict[str, Any]) -> None:
        chunk = files.get("wandb-history.jsonl", {"offset": 0, "content": []})
        rows = [json.loads(line) for line in chunk["content"]]
        self.received += len(rows)
        if rows:
            self.history.setdefault(name, [])[chunk["offset"] :] = rows


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.requests.append(str(self.headers).encode() + body)
        reply: dict[str, Any] = {}
        if self.path == "/graphql":
            call = json.loads(body)
            reply = {"data": self.server.graphql(call["operationName"], call["variables"])}
        elif self.path.endswith("/file_stream"):
            self.server.stream(self.path.split("/")[-2], json.loads(body).get("files") or {})
        content = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that W&B's client takes for W&B."""
    with Server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        wandb.teardown()  # its settings are read once
        yield server
        wandb.teardown()
        server.shutdown()


def arrived(server: Server, record: Record) -> dict[int, dict[str, Any]]:
    lines = server.history[f"robust-{record.content['run_id']}"]
    assert len({line["_step"] for line in lines}) == len(lines)
    return {line["_step"]: {k: v for k, v in line.items() if k[0] != "_"} for line in lines}


def test_online_run_arrives_once_and_tells_no_more_than_it_must(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    record = trained(epochs=1, status="running")
    live = tracking.open_live(record, TrackingConfig())
    live.pause()
    assert arrived(server, record) == expected(record)
    assert not (record.folder / "tracking.json").exists()  # it is not all there

    for epoch in (2, 3):
        record.append(*rows(epoch))
    record.save(status="finished")
    tracking.mirror_all([record, trained(1)], TrackingConfig())
    tracking.mirror_all([record], TrackingConfig())
    assert arrived(server, record) == expected(record)
    assert server.received == 4 + 4  # of both runs, each row once
    assert state(record) == "online"
    assert warnings(caplog) == []

    assert server.upserts[0]["groupName"] == "robust"
    assert server.upserts[0]["jobType"] == "weight_norm"
    assert server.upserts[0]["tags"] == ["mlp", "digits"]
    authorisation = base64.b64encode(f"api:{KEY}".encode())
    sent = b"\n".join(server.requests).replace(authorisation, b"")
    assert [secret for secret in secrets() if secret.encode() in sent] == []
    assert {upsert["program"] for upsert in server.upserts} == {None}


def test_wandb_out_of_reach_keeps_runs_offline(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # no one listens here
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setattr(tracking, "INIT_TIMEOUT", 1.0)
        wandb.teardown()
        many = [trained(seed) for seed in range(3)]
        begin = time.monotonic()
        tracking.mirror_all(many, TrackingConfig(mode="online"))
        assert time.monotonic() - begin < 20
    (warning,) = warnings(caplog)
    assert "kept offline" in warning
    assert "\n" not in warning
    assert [state(record) for record in many] == ["offline"] * 3
    assert len(offline_runs()) == 3
