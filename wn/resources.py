"""What a run needs before it trains: device, data, torch's switches, and the size of its stack."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wn import data, models, plugins, processes
from wn.config import Config, TrainerConfig, UserError, VAEConfig
from wn.data import Dataset
from wn.provenance import cpu_name
from wn.trainer import DTYPES, Observer, Trainer, steps_per_epoch

log = logging.getLogger(__name__)

MEMBERS = {"mlp": 64, "mlp_vae": 16, "transformer": 8, "plugin": 16}
"""Largest stack on a CPU by architecture: up to it a member costs less the larger its stack, at up to 5 MiB
(mlp), 25 (transformer, digits) or 50 (mlp_vae). Others train alone: convolutions of a stack are grouped, and
cost 1.6 to 1.8 times as much (measured: docs/LOG.md)."""

ENOUGH_FILES = 4096
OTHER_FILES = 128  # that are open beside the lock of each run: data, pipes to workers, libraries

DRIVER = Path("/proc/driver/nvidia/version")
"""Where Linux, once it has loaded NVIDIA's driver, tells its version."""

FEW = 4  # images of a pass that only looks at what the user's code does

MEMORY_SHARE = 0.8  # of a GPU's free memory, which a stack is planned into


def devices_here(name: str) -> list[str]:
    """What a sweep trains on, a worker process each: for ``auto`` all GPUs of this process, else ``name``."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{i}" for i in range(gpus)] if name == "auto" and gpus else [name]


def pick_device(name: str) -> torch.device:
    """The device called ``name``, or a UserError; ``auto`` is this worker's GPU, else MPS, else the CPU."""
    choices = devices_here(name)
    name = choices[processes.PLACE % len(choices)]
    if name == "auto":
        _warn_of_unused_gpu()
        name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros((), device=name).item()  # the meta device makes tensors and has no numbers
    except (RuntimeError, AssertionError, ImportError):
        why = "not available here; take trainer.device=auto, or cpu"
        raise UserError(f"trainer.device={name}: {why}") from None
    return torch.device(name)


@functools.cache  # once a process
def _warn_of_unused_gpu() -> None:
    """Say why ``auto`` is no GPU, where there is NVIDIA's driver and torch was built for one."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")  # the user's wish
    if torch.version.cuda is None or hidden or processes.PLACE > 0 or not DRIVER.exists():
        return
    why = "it finds none"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        why = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
    version = re.search(r"\d+(\.\d+)+", DRIVER.read_text(encoding="utf-8"))
    driver = f"NVIDIA's driver {version[0] if version else ''}".rstrip()
    cure = "install a driver for that CUDA, or a torch for this driver's; trainer.device=cpu if it is meant"
    log.warning(
        "no GPU is used, though %s is here: torch %s for CUDA %s says: %s; %s",
        *(driver, torch.__version__.partition("+")[0], torch.version.cuda, why, cure),
    )


@functools.lru_cache(maxsize=2)  # the stacks of a sweep share their data
def _load(plugins: tuple[str, ...], *what: Any) -> Dataset:
    return data.load(*what)


def resolve(config: Config) -> tuple[torch.device, Dataset]:
    """Device and data of a run; a UserError where it cannot be trained on them. Sets no switch of torch."""
    device = pick_device(config.trainer.device)
    plugins.check(config)
    unit = isinstance(config.model, VAEConfig)
    own = tuple(config.plugins.values()) if config.data.plugin else ()
    dataset = _load(own, config.data, device, DTYPES[config.trainer.precision], unit)
    models.check(config.model, dataset.shape)
    if config.own:
        _check_own(config, dataset)
    steps_per_epoch(config, dataset)
    return device, dataset


def _check_own(config: Config, dataset: Dataset) -> None:
    """Mistakes of the user's code show before anything is trained."""
    try:
        network = models.build(config.model, config.norm, dataset.shape, dataset.classes, config.seed)
    except (TypeError, ValueError) as error:  # a layer that the norm does not take; skip= is no setting
        model, why = (
            config.own.get("model", config.model.name),
            str(error).partition(", or leave it plain")[0],
        )
        raise UserError(f"model={model} norm={config.norm.label}: {why}") from None
    if code := {group: name for group, name in config.own.items() if group != "data"}:
        names = " ".join(f"{group}={name}" for group, name in code.items())
        models.check_pass(network, dataset.train.x[:FEW].cpu().float(), names)


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
    # cuDNN tries its algorithms once a shape: in the steps before a capture, and in the first evaluation.
    torch.backends.cudnn.benchmark = device.type == "cuda" and not settings.deterministic


def allow_tf32(wanted: bool) -> None:
    """Allow TF32 for matmuls and convolutions alike (torch's default allows it for convolutions only)."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = wanted


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc, where it is the allocator, keep freed memory instead of giving it back to the kernel.

    A step allocates the same megabytes every time, and clearing pages that come back from the kernel costs
    more than the arithmetic on them.
    """
    trim_threshold, mmap_max = -1, -4  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


def open_files() -> int:
    """Files that this process may have open, once it has raised its own limit as far as it may."""
    try:
        import resource  # POSIX alone
    except ImportError:
        return ENOUGH_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # a system may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
        return soft
    return wanted


def largest_stack(config: Config, device: torch.device, dataset: Dataset, workers: int = 1) -> int:
    """Members that a stack may have: 1 where the architecture trains alone, else on a CPU a constant, on CUDA
    what fits into free memory.

    ``device`` is this process's; whichever GPU the stack comes to, it fits there beside the other workers.
    """
    largest = MEMBERS.get(config.model.name, 1)
    if config.own and largest > 1 and not stacks(config, device, dataset):
        return 1
    if largest == 1 or device.type != "cuda":
        return largest
    try:
        each = bytes_per_member(config, device, dataset)
    except torch.OutOfMemoryError:
        return 1  # which may fit, and fails alone if it does not
    torch.cuda.empty_cache()  # blocks that this process's allocator caches would count as used
    free = [torch.cuda.mem_get_info(torch.device(name))[0] for name in devices_here(config.trainer.device)]
    return fitting(free, each, workers)


def fitting(free: Sequence[int], each: int, workers: int) -> int:
    """Members of ``each`` bytes that fit on whichever of some GPUs has least room, of their ``free`` bytes.

    >>> fitting([1000, 500], each=100, workers=2), fitting([1000, 500], each=100, workers=4)
    (4, 2)
    """
    used = free[:workers]  # worker i is on GPU i, and starts over where there are more workers
    sharing = -(-workers // len(used))
    return max(1, int(MEMORY_SHARE * min(used)) // (each * sharing))


def stacks(config: Config, device: torch.device, dataset: Dataset) -> bool:
    """Whether the user's own code can be stacked: two take a step under vmap, and have no convolutions."""
    try:
        trainer = uncompiled([config] * 2, device, dataset)
        trainer.update(trainer.batches(1)[0])
    except Exception:  # theirs, or vmap's: it shows where they train alone
        return False
    return not any(isinstance(layer, nn.modules.conv._ConvNd) for layer in trainer.stack.template.modules())


def bytes_per_member(config: Config, device: torch.device, dataset: Dataset) -> int:
    """Peak memory of a two-member step and evaluation on a GPU, per member, the data set not included.

    All that a stack allocates has the members along an axis, so memory is proportional to their number.
    """
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    trainer = uncompiled([config] * 2, device, dataset)
    trainer.update(trainer.batches(1)[0])
    trainer.evaluate("valid" if len(dataset.valid.x) else "test")
    return max(1, (torch.cuda.max_memory_allocated(device) - before) // 2)


def uncompiled(stack: Sequence[Config], device: torch.device, dataset: Dataset) -> Trainer:
    """A stack in training mode, neither compiled nor captured: a prediction is not worth that time."""
    configure_torch(stack[0].trainer, device)  # before cuBLAS's first product, which reads its setting
    settings = stack[0].trainer.model_copy(update={"compile": False, "cuda_graph": False})
    configs = [config.model_copy(update={"trainer": settings}) for config in stack]
    trainer = Trainer(configs, dataset, device, Observer())
    trainer.stack.train()
    return trainer


def device_name(device: torch.device, threads: int | None = None) -> str:
    """The kind of the processor, never the machine's name; of a CPU also ``threads``, or torch's own."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = threads or torch.get_num_threads()
    return f"{cpu_name()} ({threads} threads)" if device.type == "cpu" else device.type
