"""What every test starts from (no W&B account, no display, one thread), and what several files share."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tracking_cases import Fake
    from train_cases import Call, Result

    from wn.report.plan import Plan

for variable in [name for name in os.environ if name.startswith("WANDB_")]:
    del os.environ[variable]  # the developer's project and key are not for tests
os.environ["WANDB_MODE"] = "disabled"
os.environ["MPLBACKEND"] = "Agg"
os.environ["OMP_NUM_THREADS"] = "1"  # small tensors: more threads only wait for one another
# Set before torch is first imported, so that subprocesses of tests inherit all of it.
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it


def pytest_collection_finish() -> None:
    """Thousands of tests and torch stay to the end: no later collection of garbage looks through them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def wandb_in_temporary_folders(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever W&B writes, it writes where pytest cleans up."""
    folder = tmp_path_factory.getbasetemp()
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(folder))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of members that each step trained."""
    from wn.trainer import Trainer  # after the environment is set

    taken: list[int] = []
    update = Trainer.update

    def counted(self: Trainer, batch: Any) -> None:
        taken.append(len(batch))
        update(self, batch)

    monkeypatch.setattr(Trainer, "update", counted)
    return taken


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """``python -m wn.train WORDS`` in this process, short, with records in ``tmp_path/runs``."""
    from hydra._internal.hydra import Hydra
    from hydra.core.config_store import ConfigStore
    from train_cases import SHORT, Result

    from wn import train

    # Hydra composes the whole configuration once more to find out that it names no hydra.mode.
    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None)

    # Presets that another test's plugin has registered; those of this test are, by each command.
    for group in train.OWN:
        ConfigStore.instance().repo.pop(group, None)

    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the application sets it; this puts it back
    monkeypatch.setattr(train, "TRACEBACKS", False)
    monkeypatch.setattr(train, "make_report", lambda folder: True)  # a process of seconds
    monkeypatch.chdir(tmp_path)

    def called(words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["train.py", *SHORT.split(), *shlex.split(words)])
        capsys.readouterr()
        status: Any = None
        try:
            status = train.main()
        except SystemExit as end:
            status = end.code
        return Result(status, *capsys.readouterr())

    handlers, level = logging.root.handlers[:], logging.root.level
    yield called
    logging.root.handlers[:] = handlers  # Hydra's write to this test's captured output
    logging.root.setLevel(level)


@pytest.fixture(autouse=True)
def nothing_stays_loaded() -> Iterator[None]:
    """No plugin of one test is known to the next."""
    yield
    if plugins := sys.modules.get("wn.plugins"):
        plugins.load([])


@pytest.fixture
def tiny_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that says the files of ``mnist_cases`` are the published ones."""
    from mnist_cases import TINY

    from wn.data import sources

    monkeypatch.setitem(sources.OFFICIAL, "mnist", TINY)


# Other processes

LOADED = ["sweep_cases", "wn.plugins", "torch.distributed", "sklearn.datasets", "sklearn.model_selection"]


@pytest.fixture(scope="session")
def children() -> Iterator[ForkServerContext]:
    """Processes that start with everything imported, by a server that is started here."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server looks nowhere else
        forkserver.ensure_running()
    yield context
    for child in multiprocessing.active_children():
        child.kill()


@pytest.fixture
def quick_workers(children: ForkServerContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers come from that server: to import torch takes each one seconds."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: children)


# The report


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """An experiment that is a sweep, of which nothing is done; the folder is the test's own."""
    from report_cases import SWEEP, declare

    monkeypatch.chdir(tmp_path)
    return declare(tmp_path, monkeypatch, SWEEP)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds."""
    import pandas as pd

    from wn.report import curves

    summary = {"x": "lr", "y": "error", "line": "line", "points": pd.DataFrame()}
    monkeypatch.setattr(curves, "draw", lambda *_: ({}, summary))


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command and returns what it prints."""
    from wn.report.__main__ import main

    def told(*words: str, status: int = 0) -> str:
        assert main(words) == status
        out, err = capsys.readouterr()
        assert not (err and status == 0)
        return str(err if status else out)

    return told


# W&B


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A user without key, in a folder of their own, and a W&B that has not started."""
    import wandb

    from wn import tracking

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(tmp_path / "home-of-nobody"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(socket, "gethostname", lambda: "host-of-nobody")
    monkeypatch.chdir(tmp_path)
    tracking.connection.cache_clear()
    yield
    tracking.connection.cache_clear()
    wandb.teardown()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    """The runs that were started on a stand-in for W&B."""
    import wandb
    from tracking_cases import Fake

    runs: list[Fake] = []

    def init(**identity: Any) -> Fake:
        runs.append(Fake(**identity))
        return runs[-1]

    monkeypatch.setattr(wandb, "init", init)
    return runs
