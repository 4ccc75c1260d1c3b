"""Records with a result, and a write that is cut short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wn.config import Config, parse
from wn.records import Record


def config_in(folder: Path, **changes: Any) -> Config:
    return parse({"runs_dir": str(folder), **changes})


def ended(config: Config, status: str = "finished", rows: int = 2, claimed: Record | None = None) -> Record:
    """A record with a result, as a trainer leaves it."""
    record = claimed or Record.of(config)
    assert record.claim()
    record.begin(config, [config.run_id], "a processor")
    record.append([{"step": step, "loss": 1.0 / (1 + step)} for step in range(rows)], [{"step": 1, "g": 2.0}])
    record.save(status=status, initial={"valid_loss": 2.0}, final={"valid_loss": 0.5})
    record.release()
    return record


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
