"""Worker processes: on a CPU, stacks of small models gain more from a core each than from sharing all."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.synchronize import Event
from typing import Any, TypeVar

import torch

from wn import stops
from wn.stops import Stopped

Item = TypeVar("Item")


class WorkerDied(Exception):
    """A worker process ended before its work did."""


def share_out(items: Sequence[Item], work: Callable[[Item], None], processes: int) -> None:
    """``work`` on every item, in this process and ``processes - 1`` others; each takes the next when free.

    Each has its share of the threads that torch has here. This process begins at once, while the others
    still start; those that come too late to get an item are not waited for.

    Args:
        items: what to work on, in this order.
        work: a function of a module, so that another process can import it.
        processes: how many, this one included; no more than there are items.

    Raises:
        Stopped: the work was asked to stop, here or in another process; then all have stopped.
        WorkerDied: a process ended early, and what it had taken is not done; the others have gone on.
    """
    processes = min(processes, len(items))
    if processes < 2:
        for item in items:
            work(item)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's and W&B's threads
    turn = context.Value("q", 0)
    threads = torch.get_num_threads()
    each = max(1, threads // processes)
    helpers: list[tuple[Any, Event]] = []
    try:
        for _ in range(processes - 1):
            busy = context.Event()
            helper = context.Process(
                target=_help, args=(items, work, turn, busy, each, stops.STARTED), daemon=True
            )
            helper.start()
            helpers.append((helper, busy))
        torch.set_num_threads(each)
        for item in _turns(items, turn):
            work(item)
        for helper, busy in helpers:
            if busy.is_set():
                helper.join()
    finally:
        torch.set_num_threads(threads)
        for helper, _ in helpers:
            helper.terminate()  # who trains saves and stops
            helper.join()
    for code in [helper.exitcode for helper, busy in helpers if busy.is_set() and helper.exitcode]:
        if code in stops.STATUSES:
            raise Stopped("as asked", "in another process", code)
        raise WorkerDied(f"a worker process died (exit status {code}); the same command goes on from here")


def _turns(items: Sequence[Item], turn: Any, busy: Event | None = None) -> Iterator[Item]:
    """The items that nobody else has taken, one when asked."""
    while True:
        with turn.get_lock():
            mine, turn.value = turn.value, turn.value + 1
            if mine >= len(items):
                return
            if busy is not None:
                busy.set()
        yield items[mine]


def _help(
    items: Sequence[Item],
    work: Callable[[Item], None],
    turn: Any,
    busy: Event,
    threads: int,
    started: float,
) -> None:
    """What another process does."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    stops.STARTED = started
    try:
        with stops.termination():
            for item in _turns(items, turn, busy):
                work(item)
    except KeyboardInterrupt:
        sys.exit(stops.INTERRUPTED)
    except Stopped as stopped:
        sys.exit(stopped.status)


def _die_with_parent() -> None:
    """End this process when the one that started it has, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
