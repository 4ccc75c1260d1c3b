"""What leaves the machine, by W&B's own code; and W&B broken in many ways."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from tracking_cases import (
    FOLDER,
    KEY,
    OFFLINE,
    Fake,
    assert_private,
    fail,
    rows,
    state,
    trained,
    warnings,
)

from wn import records, run, tracking
from wn.config import TrackingConfig

pytestmark = pytest.mark.usefixtures("no_account")


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
    monkeypatch.setitem(tracking.PATIENCE, "offline", 0.05)
    copy = Fake(mode="offline", id="i", project="p")
    monkeypatch.setattr(wandb, "init", lambda **_: copy)
    monkeypatch.setattr(wandb if method == "init" else copy, method, broken)
    record, other = trained(), trained(1)
    begin = time.monotonic()
    live = tracking.LiveMirror(record, OFFLINE)
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
        "live = tracking.LiveMirror(record, TrackingConfig(mode='offline'))\n"
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
