"""Memory is predicted before a stack is made, and what would not fit is not tried."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sweep_cases import NORMS, tiny

from wn import memory, run, sweep
from wn.config import Config
from wn.trainer import Trainer

CPU = torch.device("cpu")


def wide(folder: Path, norm: str = "none", widths: tuple[int, ...] = (256,)) -> Config:
    """Large enough that its tensors outweigh everything else."""
    trainer = {"batch_size": 100, "init_batch_size": 100}
    return tiny(folder, norm, model={"widths": list(widths)}, trainer=trainer)


def test_it_counts_what_lives_at_once() -> None:
    there = torch.zeros(1000)
    with memory._watched(CPU) as seen:
        first = torch.zeros(1000)
        view = first[10:].view(10, 99)  # takes nothing, nor does one of what was there
        there[10:].view(10, 99).add_(1)
        view += 1
        assert seen.now == seen.peak == 4000
        del first, view
        second = torch.zeros(500)
        assert (seen.now, seen.peak) == (2000, 4000)
        del second
    assert (seen.now, seen.peak) == (0, 4000)


def test_a_plain_net_takes_what_its_tensors_take(tmp_path: Path) -> None:
    config = wide(tmp_path)
    device, dataset = run.prepare(config)
    parameters = 64 * 256 + 256 + 256 * 10 + 10
    kept = parameters * 3 + 100 * (64 + 256 + 10)  # with gradients and momentum; inputs and activations
    each = memory.bytes_per_member(config, dataset, device)
    assert (
        4 * kept < each / memory.WASTE < 2 * 4 * kept + 4 * 3 * 288 * 256
    )  # and no more than that evaluation's layers


@pytest.mark.parametrize("norm", NORMS)
def test_a_stack_takes_its_members_times_one_member_s(tmp_path: Path, norm: str) -> None:
    config = wide(tmp_path, norm)
    device, dataset = run.prepare(config)
    with memory._watched(device) as seen:
        Trainer([config] * 8, dataset, device, memory.Nobody()).run()
    each = memory.bytes_per_member(config, dataset, device)
    assert seen.peak == pytest.approx(8 * each / memory.WASTE, rel=0.1)


def test_more_memory_more_members_but_no_more_than_the_cache_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = wide(tmp_path)
    device, dataset = run.prepare(config)
    each = memory.bytes_per_member(config, dataset, device)

    def largest(room: float, share: float = 1.0) -> int:
        monkeypatch.setattr(memory, "available", lambda _: room / (1 - memory.RESERVE))
        return memory.largest_stack(config, dataset, device, share)

    assert largest(7.5 * each) == 7
    assert largest(7.5 * each, share=0.5) == 3
    assert largest(0.5 * each) == largest(-each) == 1
    assert largest(1e15) == memory.CACHE // each


def test_a_stack_that_would_not_fit_is_split_and_never_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]
) -> None:
    configs = [wide(tmp_path).model_copy(update={"seed": seed}) for seed in range(7)]
    device, dataset = run.prepare(configs[0])
    each = memory.bytes_per_member(configs[0], dataset, device)
    monkeypatch.setattr(memory, "available", lambda _: 3.5 * each / (1 - memory.RESERVE))
    records = sweep.train_sweep(configs)
    assert {record.status for record in records} == {"finished"}
    assert set(steps) == {3, 2}


def test_a_container_s_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": ["MemTotal:  99 kB", "MemAvailable:     2000 kB"],
        "/sys/fs/cgroup/memory.max": ["max"],
        "/sys/fs/cgroup/memory.current": ["500000"],
    }
    monkeypatch.setattr(memory, "_lines", lambda path: files.get(path, []))
    assert memory.available(CPU) == 2_048_000
    files["/sys/fs/cgroup/memory.max"] = ["1000000"]
    assert memory.available(CPU) == 500_000
    files.clear()
    assert 2**28 < memory.available(CPU) < 2**50  # half of what the machine has


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted as Linux does")
def test_freed_memory_is_not_fetched_from_the_kernel_again() -> None:
    program = """
import resource, sys, torch
from wn import memory
if sys.argv[1:]:
    memory.keep_freed_memory()
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10 * 2**20)  # 40 MiB: more than glibc ever keeps by itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)  # of the last round
"""

    def faults(*words: str) -> int:
        run = subprocess.run([sys.executable, "-c", program, *words], **_CAPTURED)  # type: ignore[call-overload]
        return int(run.stdout)

    assert faults() > 100
    # One process in thirty keeps nothing, wherever it is that the kernel then puts its heap.
    assert any(faults("keep") < 10 for _ in range(4))


_CAPTURED = {"capture_output": True, "text": True, "check": True, "cwd": Path(__file__).parent.parent}


def test_a_stack_s_memory_is_free_once_it_is_done(tmp_path: Path) -> None:
    config = wide(tmp_path)
    device, dataset = run.prepare(config)
    gc.disable()  # a cycle of references would live until it comes by
    try:
        with memory._watched(device) as seen:
            trainer = Trainer([config] * 2, dataset, device, memory.Nobody())
            trainer.run()
            del trainer
        assert seen.now < 1000
    finally:
        gc.enable()
