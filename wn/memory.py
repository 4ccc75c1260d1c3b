"""Memory: how much a member of a stack takes, how much there is, and how to keep what was allocated."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from wn.config import Config
from wn.data import Dataset, Split
from wn.evaluation import BATCH
from wn.trainer import Row, Trainer

log = logging.getLogger(__name__)

RESERVE = 0.2
"""Share of the available memory that no stack is planned into."""

WASTE = 1.7
"""What the heap of a process on a CPU grows to, against the most that lives in it at once: freed blocks do
not fit those that are asked for (``results/bench/growth.md``). On CUDA nothing is added: not measured yet."""

CACHE = 54 * 2**20
"""Bytes that a stack on a CPU may take where memory allows more, so that several share the cores evenly."""


def largest_stack(config: Config, dataset: Dataset, device: torch.device, share: float = 1.0) -> int:
    """How many members a stack may have: what fits the memory and, on a CPU, the cache; 1 at least.

    Args:
        config: one of the runs.
        dataset: its data, on the device.
        device: where they will be trained.
        share: of the available memory, where other processes plan with the rest.
    """
    room = share * (1 - RESERVE) * available(device)
    try:
        each = bytes_per_member(config, dataset, device)
    except Exception as error:  # alone a run may train; where not, its record will say why
        log.warning("memory could not be predicted (%s); each run trains alone", type(error).__name__)
        return 1
    return max(1, int(min(room, CACHE) if device.type == "cpu" else room) // each)


def bytes_per_member(config: Config, dataset: Dataset, device: torch.device) -> int:
    """Peak memory that each member of a stack takes, in bytes, the data set not included.

    It is that of the shortest run there is (initialisation, steps, probes, evaluation), with two members.
    All that a stack allocates has the members along an axis, so its memory is proportional to their number.
    """
    one_batch = max(1, BATCH // config.trainer.iwae_samples)
    shortest = {"epochs": 1, "compile": False, "test_every": 0, "iwae_images": one_batch}
    settings = config.trainer.model_copy(update=shortest)
    pair = [config.model_copy(update={"trainer": settings})] * 2
    images = max(settings.batch_size, settings.init_batch_size if config.norm.init == "data" else 0)
    sizes = {"train": images, "valid": BATCH, "test": BATCH}
    few = {name: _first(getattr(dataset, name), size) for name, size in sizes.items()}
    with _watched(device) as seen:
        trainer = Trainer(pair, Dataset(**few, classes=dataset.classes), device, Nobody())
        trainer.run()
    trees = [tree for tree in trainer.state().values() if isinstance(tree, dict)]
    state: int = sum(t.nbytes for tree in trees for t in tree.values())
    checkpoint = 3 * state  # the tensors, the file's content in memory, and what builds it
    waste = WASTE if device.type == "cpu" else 1.0
    return int(waste * max(seen.peak, checkpoint)) // len(pair)


def available(device: torch.device) -> int:
    """Bytes that can still be allocated on a device, as far as it says.

    On a CPU that is what the kernel calls available, or what a container has left, if that is less;
    where neither is told, half of the machine's memory.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    kernel = [
        int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")
    ]
    group = [_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current")]
    if all(lines and lines[0].isdigit() for lines in group):  # "max" where there is no limit
        kernel.append(int(group[0][0]) - int(group[1][0]))
    return min(kernel, default=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc hand freed memory out again instead of giving it back to the kernel.

    A step allocates and frees the same megabytes every time, and each page that comes back from the
    kernel has to be cleared first: that costs more than the arithmetic on it. Elsewhere nothing happens.
    """
    trim_threshold, mmap_max = -1, -4  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


@contextmanager
def _watched(device: torch.device) -> Iterator[_Allocations]:
    """Watch what is allocated within it; CUDA's allocator counts for itself."""
    seen = _Allocations()
    if device.type != "cuda":
        with seen:
            yield seen
        return
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield seen
    seen.peak = torch.cuda.max_memory_allocated(device) - before


class _Allocations(TorchDispatchMode):
    """The tensors made within it: the bytes that they occupy ``now``, and at their ``peak``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self.now = self.peak = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would load its compiler to be told to leave this alone: two seconds

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tree_map_only(Tensor, lambda t: self.known.add(t.untyped_storage()), (args, kwargs))
        result = function(*args, **kwargs)
        tree_map_only(Tensor, self._see, result)
        return result

    def _see(self, tensor: Tensor) -> None:
        """Count what a result occupies, unless it is a view of what was there."""
        storage = tensor.untyped_storage()
        if storage not in self.known:
            self.known.add(storage)
            self._count(storage.nbytes())
            weakref.finalize(storage, self._count, -storage.nbytes())

    def _count(self, change: int) -> None:
        self.now += change
        self.peak = max(self.peak, self.now)


class Nobody:
    """An observer who does not listen."""

    def on_step(self, done: int, total: int) -> None:
        """Not heard."""

    def on_epoch(self, member: int, metrics: Row, probes: list[Row]) -> None:
        """Not heard."""

    def on_pictures(self, member: int, pictures: Row) -> None:
        """Not seen."""

    def on_end(self, member: int, status: str, result: Row) -> None:
        """Not heard."""

    def on_checkpoint(self, state: Row) -> None:
        """Not heard."""

    def stop(self, done: int, total: int) -> None:
        """Never."""


def _first(split: Split, size: int) -> Split:
    return Split(x=split.x[:size], y=split.y[:size])


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
