"""Worker processes: on a CPU, stacks of small models gain more from a core each than from sharing all."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from traceback import format_exception
from typing import Any, Generic, TypeVar

import torch

from wn import stops
from wn.config import UserError
from wn.config.errors import ends_training

Item = TypeVar("Item")

PLACE = 0
"""Of this process among those that share a sweep's work; 0 is the one that was started."""


class WorkerDied(Exception):
    """A worker process ended amid an item, and so did a second one with the same item."""


def map_workers(
    work: Callable[[Item], object], items: Sequence[Item], processes: int
) -> list[tuple[Item, WorkerDied]]:
    """``work`` on every item, in this process and ``processes - 1`` others; each takes the next when free.

    Each has its share of torch's threads. This process begins at once, while the others still start; those
    that come too late to get an item are not waited for. What ``work`` raises in any process stops all, and
    is then raised.

    Returns:
        The items at which two workers died. All others are done.
    """
    processes = min(processes, len(items))
    if processes < 2:
        for item in items:
            work(item)
        return []
    return _Pool(work, items, max(1, torch.get_num_threads() // processes)).run(processes - 1)


class _Pool(Generic[Item]):
    """The items left to do, and a thread for each worker that feeds it over a pipe."""

    def __init__(self, work: Callable[[Item], object], items: Sequence[Item], threads: int) -> None:
        self.work, self.threads, self.left = work, threads, deque(items)
        self.failed: list[tuple[Item, WorkerDied]] = []
        self.error: BaseException | None = None
        self.context = multiprocessing.get_context("spawn")  # a fork would inherit torch's and W&B's threads
        self.stop = self.context.RawValue("i", 0)
        self.lock = threading.Lock()
        self.idle: set[Any] = set()  # processes without an item

    def run(self, workers: int) -> list[tuple[Item, WorkerDied]]:
        stops.STOP, threads = self.stop, torch.get_num_threads()
        places = range(1, workers + 1)
        feeders = [threading.Thread(target=self._feed, args=(place,), daemon=True) for place in places]
        try:
            torch.set_num_threads(self.threads)
            for feeder in feeders:
                feeder.start()
            while (item := self._take()) is not None:
                self.work(item)
            self._join(feeders)
        except BaseException as error:
            self._ask_to_stop(error)
            self._join(feeders)
        finally:
            stops.STOP = ctypes.c_int(0)
            torch.set_num_threads(threads)
        if self.error is not None:
            raise self.error
        return self.failed

    def _take(self, worker: Any = None) -> Item | None:
        with self.lock:
            self.idle.discard(worker)
            return self.left.popleft() if self.left and not self.stop.value else None

    def _ask_to_stop(self, error: BaseException) -> None:
        with self.lock:
            self.error = self.error or error
            self.stop.value = self.stop.value or getattr(error, "status", 128 + signal.SIGINT)

    def _join(self, feeders: list[threading.Thread]) -> None:
        """Wait for workers that have an item; end those that have none and may be importing still."""
        for feeder in feeders:
            while feeder.is_alive():
                with self.lock:
                    for worker in self.idle:
                        worker.kill()
                feeder.join(0.05)

    def _feed(self, place: int) -> None:
        """Feed one worker; where it dies, another one, with the same item once more."""
        item, deaths = None, 0
        while deaths < 2 and (item is not None or self.left) and not self.stop.value:
            try:
                pipe, theirs = self.context.Pipe()
                job = (theirs, self.work, self.threads, place, stops.STARTED, self.stop)
                worker = self.context.Process(target=_work, args=job, daemon=True)
                with self.lock:
                    worker.start()
                    if item is None:
                        self.idle.add(worker)
            except OSError as lack:  # of memory, or of files, for another process
                if item is not None:
                    self._ask_to_stop(lack)
                return
            theirs.close()  # so that reading from the pipe ends when the worker does
            with pipe:
                try:
                    pipe.recv()  # it has imported everything
                    while (item := self._take(worker) if item is None else item) is not None:
                        pipe.send(item)
                        if (error := pipe.recv()) is not None:
                            self._ask_to_stop(error)
                        with self.lock:
                            self.idle.add(worker)
                        item, deaths = None, 0
                    pipe.send(None)
                except (EOFError, OSError):
                    deaths += 1
            worker.join()
            if item is not None and deaths == 2:
                code = worker.exitcode or 0
                how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
                self.failed.append((item, WorkerDied(f"two worker processes died of it ({how})")))
                item, deaths = None, 0


def _work(
    pipe: Connection, work: Callable[[Any], object], threads: int, place: int, started: float, stop: Any
) -> None:
    """A worker's ``work`` on the items that come over the pipe until None comes, each answered by None."""
    global PLACE
    PLACE, stops.STARTED, stops.STOP = place, started, stop
    _have_the_kernel_kill_orphans()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        with stops.termination():
            pipe.send(None)
            while (item := pipe.recv()) is not None:
                work(item)
                pipe.send(None)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the parent may be gone
            pipe.send(_portable(error))


def _portable(error: BaseException) -> BaseException:
    """An exception that can cross to another process; not all can be pickled."""
    if isinstance(error, KeyboardInterrupt):
        return stops.by_signal(signal.SIGINT)
    if isinstance(error, UserError):
        return UserError(str(error))
    if isinstance(error, OSError) and ends_training(error):
        return OSError(error.errno, error.strerror, error.filename)
    return error if isinstance(error, stops.Preempted) else RuntimeError("".join(format_exception(error)))


def _die_with_parent() -> None:
    """End this process when the one that started it has, however that ended."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _have_the_kernel_kill_orphans() -> None:
    """On Linux, where a thread of Python's would have to wait for a long operation of torch's to end."""
    pr_set_pdeathsig = 1  # sys/prctl.h
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
