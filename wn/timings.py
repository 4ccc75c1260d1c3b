"""What finished runs took: by it, what others like them will take is told before they are trained.

Imports no torch, so ``python -m wn.report --status`` can ask as well.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from wn.config import Config
from wn.records import Record, public_config

NEAR = 2.0  # stacks whose sizes are within this factor take about as long for each member


class Timing(NamedTuple):
    """One run's, as a member of its stack."""

    norm: str
    device: str
    stack: int  # members
    epoch: float  # seconds for each member


class Timings:
    """Timings of finished runs, by all that decides them but for norm, device and size of the stack."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.found: dict[str, list[Timing]] = defaultdict(list)
        for record in records:
            content = record.content
            if record.status == "finished" and content.get("seconds"):
                epochs = content["config"]["trainer"]["epochs"]
                device, stack = content["provenance"].get("device", ""), len(content.get("stack", [])) or 1
                took = Timing(content["norm"], device, stack, content["seconds"] / epochs)
                self.found[_kind(content["config"])].append(took)

    def seconds(self, config: Config, device: str | None = None, stack: int | None = None) -> float | None:
        """A median of runs of the same norm, else of any; None where nothing alike is known.

        Args:
            device: its kind, as the record has it; None: any.
            stack: members; None: any number.
        """
        alike = [
            one
            for one in self.found[_kind(public_config(config))]
            if device in (None, one.device)
            and (stack is None or max(stack, one.stack) <= NEAR * min(stack, one.stack))
        ]
        own = [one for one in alike if one.norm == config.norm.label] or alike
        return statistics.median(one.epoch for one in own) * config.trainer.epochs if own else None


def _kind(tree: Mapping[str, Any]) -> str:
    trainer = {key: tree["trainer"].get(key) for key in ("batch_size", "precision", "compile")}
    data = {key: value for key, value in tree["data"].items() if key not in ("root", "download")}
    return json.dumps([tree["model"], data, tree["optim"]["name"], trainer], sort_keys=True)


def spoken(seconds: float | None) -> str:
    """
    >>> spoken(20), spoken(600), spoken(9000), spoken(None)
    ('20 seconds', '10 minutes', '2.5 hours', 'unknown')
    """
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
