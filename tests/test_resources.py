"""What a run needs before it trains: stack sizes, memory, torch's switches."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sweep_cases import tiny

from wn import processes, resources
from wn.config import TrainerConfig
from wn.resources import configure_torch, largest_stack, pick_device, resolve
from wn.trainer import Observer, Trainer

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("name", "members"),
    [("mlp", 64), ("mlp_vae", 16), ("transformer", 8), ("convnet", 1), ("conv_vae", 1), ("resnet_vae", 1)],
)
def test_on_a_cpu_the_largest_stack_is_a_constant(tmp_path: Path, name: str, members: int) -> None:
    config = tiny(tmp_path, model={"name": name})
    assert largest_stack(config, CPU, None) == members  # type: ignore[arg-type]


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An allocator whose counters say what a test wants; the training that they count is on the CPU."""
    gpu = SimpleNamespace(free=0, peaks=[100, 300], current=None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (gpu.free, 0))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: gpu.peaks[0])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: gpu.peaks[1])
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(gpu, "current", device))
    monkeypatch.setattr(resources, "Trainer", lambda configs, data, _, who: Trainer(configs, data, CPU, who))
    return gpu


@pytest.mark.parametrize(("free", "members"), [(1000, 8), (124, 1), (10, 1), (10_000_000, 80_000)])
def test_on_a_gpu_it_is_what_fits_into_free_memory(
    tmp_path: Path, fake_gpu: SimpleNamespace, free: int, members: int
) -> None:
    """A pair of members took 200 bytes more than was allocated before; a fifth stays free."""
    config = tiny(tmp_path)
    fake_gpu.free = free
    assert largest_stack(config, GPU, resolve(config)[1]) == members


def test_where_two_do_not_fit_runs_train_alone(
    tmp_path: Path, fake_gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: Any) -> None:
        raise torch.OutOfMemoryError

    config = tiny(tmp_path)
    _, dataset = resolve(config)
    monkeypatch.setattr(resources, "uncompiled", too_large)
    assert largest_stack(config, GPU, dataset) == 1


def test_on_a_gpu_convolutions_train_alone_and_are_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "bytes_per_member", pytest.fail)
    assert largest_stack(tiny(tmp_path, model={"name": "convnet"}), GPU, None) == 1  # type: ignore[arg-type]


def test_the_gpu_that_is_named_becomes_the_current_one(fake_gpu: SimpleNamespace) -> None:
    for device, current in ((CPU, None), (torch.device("cuda"), None), (GPU, GPU)):
        configure_torch(TrainerConfig(), device)
        assert fake_gpu.current == current


@pytest.fixture
def unused_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """A machine with NVIDIA's driver, of which torch, built for CUDA, says that it is too old."""
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 UTC 2023\n")

    def refuse() -> None:
        raise RuntimeError("The NVIDIA driver is too old (found version 12020). Please update\nyour driver.")

    monkeypatch.setattr(resources, "DRIVER", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", refuse)
    resources._warn_of_unused_gpu.cache_clear()
    yield driver.unlink
    resources._warn_of_unused_gpu.cache_clear()


def test_a_gpu_that_auto_cannot_use_is_told_once_with_the_reason(
    unused_gpu: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert {pick_device("auto").type for _ in range(2)} <= {"cpu", "mps"}
    (line,) = (record.getMessage() for record in caplog.records)
    for part in ("NVIDIA's driver 535.104.05", "CUDA 13.0", "(found version 12020); ", "trainer.device=cpu"):
        assert part in line
    assert "\n" not in line


@pytest.mark.parametrize("case", ["cpu is wanted", "hidden", "no driver", "torch for a CPU", "a worker"])
def test_nothing_is_told_where_no_gpu_is_missed(
    unused_gpu: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    case: str,
) -> None:
    if case == "hidden":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    elif case == "no driver":
        unused_gpu()
    elif case == "torch for a CPU":
        monkeypatch.setattr(torch.version, "cuda", None)
    elif case == "a worker":
        monkeypatch.setattr(processes, "PLACE", 1)
    pick_device("cpu" if case == "cpu is wanted" else "auto")
    assert not caplog.records


def test_resolving_changes_no_switch_and_configuring_sets_them(tmp_path: Path) -> None:
    def switches() -> Any:
        backends = torch.backends
        return (
            torch.are_deterministic_algorithms_enabled(),
            backends.cuda.matmul.allow_tf32,
            backends.cudnn.allow_tf32,
        )

    settings = {"deterministic": True, "precision": "tf32"}
    config = tiny(tmp_path, trainer=settings)
    configure_torch(TrainerConfig(), CPU)
    assert switches() == (False, False, False)
    resolve(config)
    assert switches() == (False, False, False)
    configure_torch(config.trainer, CPU)
    assert switches() == (True, True, True)
    configure_torch(TrainerConfig(), CPU)
    assert switches() == (False, False, False)


def test_a_stack_s_memory_is_free_once_it_is_done(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    device, dataset = resolve(config)
    gc.disable()  # a cycle of references would live until it comes by
    try:
        trainer = Trainer([config] * 2, dataset, device, Observer())
        trainer.run()
        parts = [trainer.stack, trainer.optimizer, *trainer.stack.params.values()]
        alive = [weakref.ref(part) for part in parts]
        del trainer, parts
        assert {ref() for ref in alive} == {None}
    finally:
        gc.enable()


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted as Linux does")
def test_freed_memory_is_not_fetched_from_the_kernel_again() -> None:
    program = """
import resource, torch
from wn import resources
for _ in range(2):
    for _ in range(10):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(10 * 2**20)  # 40 MiB: more than glibc ever keeps by itself
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)  # of the last round
    resources.keep_freed_memory()
"""

    def faults() -> tuple[int, int]:
        run = subprocess.run([sys.executable, "-c", program], **_CAPTURED)  # type: ignore[call-overload]
        before, after = map(int, run.stdout.split())
        return before, after

    for _ in range(
        4
    ):  # one process in thirty keeps nothing, wherever it is that the kernel then puts its heap
        before, after = faults()
        assert before > 100
        if after < 10:
            break
    assert after < 10


_CAPTURED = {"capture_output": True, "text": True, "check": True, "cwd": Path(__file__).parent.parent}
