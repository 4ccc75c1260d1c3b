"""Short calls of the application, experiments for them, and what they come to."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from wn import experiments

REPOSITORY = Path(__file__).parent.parent

SHORT = (
    "trainer.epochs=2 trainer.batch_size=500 trainer.device=cpu trainer.progress=false model.widths=[4] "
    "tracking.mode=disabled"
)

SWEEP = "-m norm=none,weight_norm optim.lr=1e-3,1e-2 seed=0,1"


@dataclasses.dataclass
class Result:
    """What a call came to."""

    status: int
    out: str
    err: str


Call = Callable[[str], Result]


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of one experiment's folder, by run_id."""
    found = (json.loads(path.read_text()) for path in folder.glob("*/record.json"))
    return {record["run_id"]: record for record in found}


def declare(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """An experiment with the numbers of :data:`SHORT`, in ``folder/experiments``."""
    monkeypatch.setattr(experiments, "FOLDER", folder / "experiments")
    (folder / "experiments").mkdir(exist_ok=True)
    fixed = {"trainer.epochs": 2, "trainer.batch_size": 500, "model.widths": [4], **content.pop("fixed", {})}
    tree = {"title": "t", "claim": "c", "fixed": fixed, **content}
    (folder / f"experiments/{name}.yaml").write_text(yaml.safe_dump(tree))


NO_REPORT = "from wn import train; train.make_report = lambda folder: True; raise SystemExit(train.main())"


def start(words: list[str], report: bool = False, **environment: str) -> subprocess.Popen[str]:
    """The application as a process of its own; a sweep's report would take it seconds more."""
    program = ["-m", "wn.train"] if report else ["-c", NO_REPORT]
    return subprocess.Popen(
        [sys.executable, *program, *SHORT.split(), *words],
        cwd=REPOSITORY,
        env={**os.environ, "HYDRA_FULL_ERROR": "0", "PYTHONWARNINGS": "default", **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
