"""Stops: SIGINT, SIGTERM and ``trainer.max_minutes`` end training after a step, and it can go on from there.

A signal waits until the trainer has finished its step and saved it; a second one acts at once, as both do
where nothing trains.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

STARTED = time.monotonic()
"""When this process began. A process that trains for another one is given the other's."""

OUT_OF_TIME = 75
"""Exit status after ``trainer.max_minutes``: sysexits' EX_TEMPFAIL, to be tried again."""

INTERRUPTED = 128 + signal.SIGINT

STATUSES = (OUT_OF_TIME, INTERRUPTED, 128 + signal.SIGTERM)
"""Exit statuses of a process that was stopped."""


class Stopped(BaseException):
    """Training was asked to stop and did so. No ``Exception``: nothing is to take it for a failure.

    Args:
        why: the signal's name, or the setting.
        where: how far training is.
        status: the process's exit status.
    """

    def __init__(self, why: str, where: str, status: int) -> None:
        super().__init__(why, where, status)
        self.why, self.where, self.status = why, where, status

    def __str__(self) -> str:
        return f"stopped: {self.where} ({self.why}); the same command goes on from here"


def _by_signal(number: int, where: str) -> Stopped:
    """The exit status is a shell's, 128 + the signal's number."""
    return Stopped(signal.Signals(number).name, where, 128 + number)


class Watch:
    """What may ask for a stop: the clock and, inside ``with``, a signal.

    A signal that was never asked about is raised on leaving: what was in training has come to its end, and
    nothing further is to begin.

    Args:
        max_minutes: of the process, since :data:`STARTED`; None is unlimited.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.max_minutes = max_minutes
        self.signal: int | None = None
        self.handlers: dict[int, Any] = {}

    def stop(self, where: str) -> Stopped | None:
        """The stop that is asked for, if any; quick enough for every step."""
        if self.signal is not None:
            return _by_signal(self.signal, where)
        if self.max_minutes is not None and time.monotonic() - STARTED > 60 * self.max_minutes:
            return Stopped(f"trainer.max_minutes={self.max_minutes:g}", where, OUT_OF_TIME)
        return None

    def __enter__(self) -> Watch:
        if threading.current_thread() is threading.main_thread():  # no other is given signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        self.signal = number
        self._put_back()

    def _put_back(self) -> None:
        while self.handlers:
            signal.signal(*self.handlers.popitem())

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._put_back()
        if error is None and self.signal is not None:
            raise _by_signal(self.signal, "between two runs")


@contextlib.contextmanager
def termination() -> Iterator[None]:
    """Inside, SIGTERM raises :class:`Stopped` where nothing trains, as SIGINT raises KeyboardInterrupt."""

    def terminated(number: int, frame: Any) -> None:
        raise _by_signal(number, "between two runs")

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
