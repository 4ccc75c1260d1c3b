"""The benchmarks' tables say what their rows say, and the committed ones are made from committed rows."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import bench_table as bench

COMMITTED = Path(__file__).parent.parent / "results" / "bench"
ORIGIN = {"device": "Some CPU (2 threads)", "torch": "2.15.0", "commit": "0123456789abcdef"}


def sweep(stacked: float, basic: float, **origin: Any) -> list[dict[str, Any]]:
    seconds = {"stacked": stacked, "one by one": basic}
    return [{**ORIGIN, **origin, "launcher": k, "runs": 325, "seconds": s} for k, s in seconds.items()]


def test_a_ratio_is_that_of_two_times_of_one_device(tmp_path: Path) -> None:
    bench.record("sweep", sweep(20.0, 100.0), tmp_path)
    text = bench.record("sweep", sweep(10.0, 25.0, device="Another"), tmp_path)
    assert "| stacked | 325 | 20.0 | 5.0x |\n| one by one | 325 | 100.0 | 1.0x |" in text
    assert "## Another" in text
    assert "| stacked | 325 | 10.0 | 2.5x |" in text


def test_a_device_s_new_rows_replace_its_old_ones(tmp_path: Path) -> None:
    bench.record("sweep", sweep(20.0, 100.0), tmp_path)
    text = bench.record("sweep", sweep(20.0, 60.0, commit="fedcba9876543210"), tmp_path)
    assert "3.0x" in text
    assert "5.0x" not in text
    assert "fedcba9876" in text


def test_training_adds_up_over_norms(tmp_path: Path) -> None:
    times = {"none": (1.0, 0.5), "weight_norm": (3.0, 0.3)}
    rows = [
        {"model": "MLP", "norm": norm, "alone_ms": alone, "threads": 1, "stacked_ms": stacked}
        for norm, (alone, stacked) in times.items()
    ]
    text = bench.record(
        "training", [{**ORIGIN, **row, "members": 33, "workers": 2} for row in rows], tmp_path
    )
    assert "| MLP | weight_norm | 3.000 | 1 | 0.300 | 33 | 2 | 10.0x |" in text
    assert "| MLP | all | 4.000 |  | 0.800 |  |  | 5.0x |" in text
    assert "## CUDA GPU\n\npending: `python scripts/bench.py training --device cuda`" in text


def test_the_command_beside_a_table_is_the_one_that_measured_it(tmp_path: Path) -> None:
    row = {"norm": "none", "step_ms": 1.0}
    bench.record("vae", [{**ORIGIN, **row, "engine": "eager"}], tmp_path)  # from before rounds were noted
    one = {**ORIGIN, "device": "Some CPU (1 threads)", "rounds": 5, "steps": 10}
    text = bench.record("vae", [{**one, **row, "engine": name} for name in ("eager", "compiled")], tmp_path)
    assert "`python scripts/bench_vae.py`" in text
    assert "`OMP_NUM_THREADS=1 python scripts/bench_vae.py --compile --rounds 5 --steps 10`" in text
    convnet = {**row, "engine": "ours", "compiled": True, "gflop": 239.1}
    text = bench.record("convnet", [{**ORIGIN, **convnet}], tmp_path)
    assert "`python scripts/bench_convnet.py --compile`" in text
    text = bench.record("convnet", [{**ORIGIN, **convnet, "device": "NVIDIA H100"}], tmp_path)
    assert "`python scripts/bench_convnet.py`" in text


def test_rows_of_a_device_need_not_be_adjacent(tmp_path: Path) -> None:
    """Rows that are measured again move to the end of the file."""
    rows = [{**ORIGIN, "norm": "none", "engine": name, "step_ms": 2.0} for name in ("eager", "compiled")]
    bench.record("vae", rows, tmp_path)
    bench.record("vae", [{**row, "device": "Another"} for row in rows], tmp_path)
    text = bench.record("vae", [{**rows[0], "step_ms": 3.0}], tmp_path)
    assert text.count("## Some CPU") == 1
    assert "| none | compiled | 2.00 | 1.20 | 1.50x | 1.000 |" in text


def test_a_device_that_is_not_here_is_one_line() -> None:
    assert bench.device("cpu") == torch.device("cpu")
    with pytest.raises(argparse.ArgumentTypeError, match=r"^cuda:99 is not available here$"):
        bench.device("cuda:99")


def test_growth_is_drawn(tmp_path: Path) -> None:
    rows = [{"model": "MLP", "members": m, "step_ms": 2.0 * m, "measured_mib": m} for m in (1, 4)]
    text = bench.record("growth", [{**ORIGIN, **row} for row in rows], tmp_path)
    assert "| MLP | 4 | 8.00 | 2.000 | 4 |" in text
    assert {path.name for path in tmp_path.iterdir()} >= {"growth.svg", "growth.csv", "growth.md"}


def test_the_convnet_s_ratios(tmp_path: Path) -> None:
    times = {
        ("none", "ours"): 2.0,
        ("none", "usual"): 8.0,
        ("weight_norm", "ours"): 2.1,
        ("weight_norm", "usual"): 12.6,
    }
    rows = [
        {
            **ORIGIN,
            "device": "NVIDIA H100",
            "compiled": True,
            "gflop": 240.0,
            "norm": norm,
            "engine": engine,
            "step_ms": ms,
        }
        for (norm, engine), ms in times.items()
    ]
    text = bench.record("convnet", rows, tmp_path)
    assert (
        "| weight_norm | ours, compiled | 2.10 | 1.050 | 6.00x | 114.29 (12% of the peak) | 0.058 |" in text
    )
    assert "| weight_norm | usual | 12.60 | 1.575 | 1.00x |" in text
    assert "pending" not in text


def test_a_step_stands_beside_its_peer_or_says_that_there_is_none(tmp_path: Path) -> None:
    row = {**ORIGIN, "members": 33, "ours_ms": 0.3}
    rows = [
        {**row, "norm": "none", "jax": "0.10.2", "jax_ms": 0.2},
        {**row, "norm": "weight_norm", "jax": "", "jax_ms": None},
    ]
    text = bench.record("step", rows, tmp_path)
    assert "| none | 33 | 0.300 | 0.200 (JAX 0.10.2) | 1.50 |" in text
    assert "| weight_norm | 33 | 0.300 | not installed | – |" in text
    assert "pending" not in text


def test_a_convnet_s_speed_is_a_share_of_the_full_one_s(tmp_path: Path) -> None:
    times = {(96, 1): (200.0, 2000.0), (24, 1): (15.0, 200.0), (24, 4): (15.0, 300.0)}
    rows = [
        {**ORIGIN, "width": width, "members": members, "gflop": gflop, "ms": ms}
        for (width, members), (gflop, ms) in times.items()
    ]
    text = bench.record("width", rows, tmp_path)
    assert "| 96 | 1 | 200.00 | 2000.0 | 100 (100%) | 1.00x |" in text
    assert "| 24 | 1 | 15.00 | 200.0 | 75 (75%) | 1.00x |" in text
    assert "| 24 | 4 | 15.00 | 300.0 | 50 (50%) | 1.50x |" in text


@pytest.mark.parametrize("kind", [path.stem for path in sorted(COMMITTED.glob("*.csv"))])
def test_the_committed_tables_are_those_of_the_committed_rows(tmp_path: Path, kind: str) -> None:
    shutil.copy(COMMITTED / f"{kind}.csv", tmp_path)
    bench.build(kind, tmp_path)
    for path in COMMITTED.glob(f"{kind}.*"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
