"""What every test starts from: no W&B account, no display, one thread."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from train_cases import Call, Result

for variable in [name for name in os.environ if name.startswith("WANDB_")]:
    del os.environ[variable]  # the developer's project and key are not for tests
os.environ["WANDB_MODE"] = "disabled"
os.environ["MPLBACKEND"] = "Agg"
os.environ["OMP_NUM_THREADS"] = "1"  # small tensors: more threads only wait for one another
# Set before torch is first imported, so that subprocesses of tests inherit all of it.
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it


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
    from train_cases import SHORT, Result

    from wn import train

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
