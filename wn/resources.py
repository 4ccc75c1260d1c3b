"""What a run needs before it trains: device, data, torch's switches, and the size of its stack."""

from __future__ import annotations

import ctypes
import functools
import os

import torch

from wn import data, models
from wn.config import Config, DataConfig, TrainerConfig, UserError, VAEConfig
from wn.data import Dataset
from wn.provenance import cpu_name
from wn.trainer import DTYPES, Observer, Trainer, steps_per_epoch

MEMBERS = {"mlp": 64, "mlp_vae": 16}
"""Largest stack on a CPU by architecture: up to it a member costs less the larger its stack, at up to 5 MiB
(mlp) or 50 (mlp_vae). Others train alone: convolutions of a stack are grouped, and cost 1.6 to 1.8 times as
much (measured: docs/LOG.md)."""

MEMORY_SHARE = 0.8
"""Share of a GPU's free memory that a stack is planned into."""


def pick_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is CUDA, then MPS, then the CPU.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros((), device=name).item()  # the meta device makes tensors and has no numbers
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        raise UserError(
            f"trainer.device={name}: not available here; take trainer.device=auto, or cpu"
        ) from None
    return torch.device(name)


@functools.lru_cache(maxsize=2)
def _load(config: DataConfig, device: torch.device, dtype: torch.dtype, unit: bool) -> Dataset:
    """Cached: the stacks of a sweep share their data."""
    return data.load(config, device, dtype, unit)


def resolve(config: Config) -> tuple[torch.device, Dataset]:
    """Device and data of a run that can be trained on them. Changes no setting of torch.

    Raises:
        UserError: there is no such device, the data cannot be had, or are too few or too small.
    """
    device = pick_device(config.trainer.device)
    dtype = DTYPES[config.trainer.precision]
    dataset = _load(config.data, device, dtype, isinstance(config.model, VAEConfig))
    models.check(config.model, dataset.shape)
    steps_per_epoch(config, dataset)
    return device, dataset


def configure_torch(settings: TrainerConfig, device: torch.device) -> None:
    """Set this process's switches of torch for a run: determinism, TF32, the allocator, the current GPU."""
    keep_freed_memory()
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first product
    if settings.deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(settings.deterministic)
    allow_tf32(settings.precision == "tf32")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # streams and graph captures are on the current device


def allow_tf32(wanted: bool) -> None:
    """Allow TF32 for matmuls and convolutions alike (torch's default allows it for convolutions only)."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = wanted


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


def largest_stack(config: Config, device: torch.device, dataset: Dataset) -> int:
    """How many members a stack may have: a constant on a CPU; on CUDA what fits into free memory."""
    largest = MEMBERS.get(config.model.name, 1)
    if largest == 1 or device.type != "cuda":
        return largest
    each = bytes_per_member(config, device, dataset)
    torch.cuda.empty_cache()  # blocks that this process's allocator caches would count as used
    return max(1, int(MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]) // each)


def bytes_per_member(config: Config, device: torch.device, dataset: Dataset) -> int:
    """Peak memory of a two-member step and evaluation on a GPU, per member, the data set not included.

    All that a stack allocates has the members along an axis, so memory is proportional to their number.
    """
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    # Not compiled and not captured: a prediction is not worth that time.
    settings = config.trainer.model_copy(update={"compile": False, "cuda_graph": False})
    pair = [config.model_copy(update={"trainer": settings})] * 2
    trainer = Trainer(pair, dataset, device, Observer())
    trainer.stack.train()
    trainer.update(trainer.batches(1)[0])
    trainer.evaluate("valid" if len(dataset.valid.x) else "test")
    return max(1, (torch.cuda.max_memory_allocated(device) - before) // 2)


def device_name(device: torch.device) -> str:
    """The kind of the processor: never the machine's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()} ({torch.get_num_threads()} threads)" if device.type == "cpu" else device.type
