"""Short calls of the application, and what they come to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
