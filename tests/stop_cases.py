"""What happens at a chosen step: a failure, a kill, a signal, or the end of the time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
import torch

from wn import stops
from wn.config import Config
from wn.stops import Preempted
from wn.sweep import train_sweep
from wn.trainer import Trainer


def when(patch: pytest.MonkeyPatch, at: Callable[[Trainer], bool], action: Callable[[], object]) -> None:
    """Have something happen while the trainer takes a step."""
    step = Trainer.update

    def stepped(self: Trainer, batch: torch.Tensor) -> torch.Tensor:
        if at(self):
            action()
        return step(self, batch)

    patch.setattr(Trainer, "update", stepped)


def throw(kind: type[BaseException], *words: object) -> Callable[[], None]:
    def thrown() -> None:
        raise kind(*words)

    return thrown


def send(number: int, times: int = 1) -> Callable[[], None]:
    def sent() -> None:
        for _ in range(times):
            os.kill(os.getpid(), number)

    return sent


def late(patch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let an hour go by."""
    return lambda: patch.setattr(stops, "STARTED", time.monotonic() - 3600)


SIGNALS = {
    signal.SIGINT: ("SIGINT", 130),
    signal.SIGTERM: ("SIGTERM", 143),
    signal.SIGUSR1: ("SIGUSR1", 75),
    signal.SIGUSR2: ("SIGUSR2", 75),
}
ENDING = "; the same command goes on from here\n"


def stop_at(step: int, configs: list[Config]) -> None:
    """Train until SIGTERM comes in a step."""
    with pytest.MonkeyPatch.context() as patch:
        when(patch, lambda t: t.step == step, send(signal.SIGTERM))
        with pytest.raises(Preempted):
            train_sweep(configs)
