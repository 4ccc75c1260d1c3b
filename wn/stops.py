"""What stops training: SIGINT, SIGTERM, SIGUSR1, SIGUSR2, ``trainer.max_minutes``; and how commands end.

A stop ends training after a step, saved; a second signal acts at once, as both do where nothing trains.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from wn.config import UserError
from wn.config.errors import ends_training, explain_disk

STARTED = time.monotonic()  # of this process; workers inherit the parent's

STOP: Any = ctypes.c_int(0)
"""Exit status of the stop that some process was asked for, 0 for none. Workers share the parent's."""

OUT_OF_TIME = 75  # exit status after trainer.max_minutes: sysexits' EX_TEMPFAIL, to be tried again

WARNINGS = ("SIGUSR1", "SIGUSR2")  # what schedulers send ahead of a job's end: it is out of time as well
STOPS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", *WARNINGS) if hasattr(signal, n)]


class Preempted(BaseException):
    """Training was asked to stop and did so. A BaseException, which ``except Exception`` lets pass."""

    def __init__(self, why: str, where: str, status: int) -> None:
        super().__init__(why, where, status)
        self.status = status
        self.so_far = ""  # what the whole command has come to

    def __str__(self) -> str:
        why, where, _ = self.args
        so_far = f"; {self.so_far}" * bool(self.so_far)
        return f"stopped: {where} ({why}){so_far}; the same command goes on from here"


def by_signal(number: int, where: str = "between two runs") -> Preempted:
    name = signal.Signals(number).name
    return Preempted(name, where, OUT_OF_TIME if name in WARNINGS else 128 + number)


def _raise_stop(number: int, frame: Any) -> None:
    raise by_signal(number)


def _handler_of_others(number: int) -> Callable[[int, Any], object] | None:
    """What neither Python nor :func:`termination` has set to handle a signal."""
    handler = signal.getsignal(number)
    known = (signal.default_int_handler, _raise_stop)
    return handler if callable(handler) and handler not in known else None


class StopWatcher:
    """Watches the clock (``max_minutes`` since STARTED), other processes and, inside ``with``, signals.

    A signal that :meth:`stop` was never asked about is raised on leaving: nothing further is to begin. The
    handlers of a job's scheduler stay: its own of SIGTERM acts in place of this one, and a warning is handed
    on to it (submitit requeues the job) once all is saved.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.max_minutes = max_minutes
        self.signal: int | None = None
        self.handlers: dict[int, Any] = {}

    def stop(self, where: str) -> Preempted | None:
        """The stop that is asked for, if any; quick enough for every step."""
        if self.signal is not None:
            return by_signal(self.signal, where)
        late = self.max_minutes is not None and time.monotonic() - STARTED > 60 * self.max_minutes
        if late or STOP.value == OUT_OF_TIME:
            return Preempted(f"trainer.max_minutes={self.max_minutes or 0:g}", where, OUT_OF_TIME)
        return by_signal(STOP.value - 128, where) if STOP.value else None

    def __enter__(self) -> StopWatcher:
        if threading.current_thread() is threading.main_thread():  # no other is given signals
            for number in STOPS:
                if _handler_of_others(number) is None or signal.Signals(number).name in WARNINGS:
                    self.handlers[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        self.signal = number
        self._put_back()  # so that a second signal acts at once

    def _put_back(self) -> None:
        while self.handlers:
            signal.signal(*self.handlers.popitem())

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._put_back()
        if self.signal is None:
            return
        stopped = error if isinstance(error, Preempted) else by_signal(self.signal)
        if (handler := _handler_of_others(self.signal)) is not None:
            try:
                handler(self.signal, None)
            except Exception as refusal:
                why, where, status = stopped.args
                raise Preempted(f"{why}: {refusal}", where, status) from None
        if error is None:
            raise stopped


@contextlib.contextmanager
def termination() -> Iterator[None]:
    """Inside, signals raise :class:`Preempted` where nothing trains, as SIGINT raises KeyboardInterrupt."""
    before = {n: signal.signal(n, _raise_stop) for n in STOPS if n != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def tell(end: BaseException) -> int:
    """Print the line that a command ends with where it does not come to its end; returns the exit status.

    That of a stop, 2 after a mistake of the user's (a wrong file is one, a full disk is not), 1 after any
    other error.
    """
    if isinstance(end, KeyboardInterrupt):
        line, status = "stopped: the same command goes on from here", 128 + signal.SIGINT
    elif isinstance(end, Preempted):
        line, status = str(end), end.status
    else:
        line = f"error: {explain_disk(end, '') if isinstance(end, OSError) else end}"
        status = 2 if isinstance(end, (UserError, OSError)) and not ends_training(end) else 1
    print(line, file=sys.stderr)
    return int(status)
