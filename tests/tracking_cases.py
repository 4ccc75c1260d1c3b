"""Records to be mirrored, and a stand-in for W&B."""

from __future__ import annotations

import json
import logging
import math
import os
import pwd
import sys
from pathlib import Path
from typing import Any

import pytest

from wn import records, tracking
from wn.config import TrackingConfig, parse
from wn.records import Record

OFFLINE = TrackingConfig(mode="offline")
KEY = "0123456789abcdef" * 2 + "01234567"
LAYERS = ("layers.0", "layers.1")
FOLDER = Path("runs/robust")


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


def assert_private(sent: bytes) -> None:
    """No key, account, host or folder of this machine."""
    user = pwd.getpwuid(os.getuid())
    account = [user.pw_dir, user.pw_name, os.uname().nodename]
    folders = [os.getcwd(), sys.prefix, str(Path(tracking.__file__).parent)]
    secrets = ["host-of-nobody", "home-of-nobody", KEY, *folders, *(s for s in account if len(s) > 4)]
    assert [secret for secret in secrets if secret.encode() in sent] == []


def fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("W&B is\nin pieces")
