"""Benchmark of a training step of the VAE of section 5.2 on MNIST: eager, compiled, on a GPU also replayed.

    python scripts/bench_vae.py                  # two cores: a minute
    python scripts/bench_vae.py --compile        # twenty minutes
    python scripts/bench_vae.py --device cuda

Writes ``results/bench/vae.md``. All engines take turns in one process, as in ``bench_convnet.py``.
"""

from __future__ import annotations

import argparse
from typing import Any

import bench_table as bench
import torch
from bench_convnet import IMAGES, ROOT, compared, ours  # which also finds the project

from wn.config.compose import compose
from wn.data import Split
from wn.resources import keep_freed_memory

NORMS = ("none", "weight_norm", "batch_norm", "weight_norm_mean_only_bn")
ENGINES = {
    "ours": {"trainer.precision": "bfloat16", "trainer.compile": True},
    "compiled": {"trainer.compile": True, "trainer.cuda_graph": False},
    "eager": {"trainer.cuda_graph": False},
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", type=bench.device, default="auto")
    parser.add_argument("--steps", type=int, help="in a round (default: 100 on a GPU, 5 elsewhere)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="on a CPU as well: minutes for each norm")
    options = parser.parse_args()
    device = options.device
    steps = options.steps or (100 if device.type == "cuda" else 5)
    keep_freed_memory()
    names = ["ours"] * (device.type == "cuda") + ["compiled"] * options.compile + ["eager"]
    engines = {
        (norm, name): ours(compose(_settings(norm, device) | ENGINES[name]), device, _grey(device))
        for norm in NORMS
        for name in names
    }
    rows = compared(engines, options.rounds, steps, device)
    print(bench.record("vae", rows, ROOT / "results" / "bench"))


def _settings(norm: str, device: torch.device) -> dict[str, Any]:
    presets = {"model": "conv_vae", "data": "mnist", "optim": "adamax", "norm": norm}
    return {**presets, "optim.ema_epochs": 10, "trainer.device": str(device)}


def _grey(device: torch.device) -> Split:
    x = torch.rand(IMAGES, 1, 28, 28, generator=torch.Generator().manual_seed(0)).to(device)
    return Split(x, torch.zeros(IMAGES, dtype=torch.int64, device=device))


if __name__ == "__main__":
    main()
