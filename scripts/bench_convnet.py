"""Benchmark of a training step of the paper's ConvNet: ours, and the usual loop, for every row of the table.

    python scripts/bench_convnet.py                  # two cores: two minutes
    python scripts/bench_convnet.py --device cuda

Writes ``results/bench/convnet.md``. All engines take turns in one process, and the fastest of their rounds
counts, so that the ratios hold where a machine's speed drifts. Images are random: their values cost nothing.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bench_table as bench  # noqa: E402
import torch  # noqa: E402 - the project is found first
import torch.nn.functional as F  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from wn.claims.cost import torchs_network  # noqa: E402
from wn.config import Config  # noqa: E402
from wn.config.compose import compose  # noqa: E402
from wn.data import Dataset, Split  # noqa: E402
from wn.resources import allow_tf32, keep_freed_memory  # noqa: E402
from wn.trainer import Observer, Trainer  # noqa: E402

NORMS = ("none", "weight_norm", "batch_norm", "mean_only_bn", "weight_norm_mean_only_bn")
IMAGES = 2000
BATCH = 100
Advance = Callable[[], object]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", type=bench.device, default="auto")
    parser.add_argument("--steps", type=int, help="in a round (default: 100 on a GPU, 2 elsewhere)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="the step (default: on a GPU; no gain elsewhere)",
    )
    options = parser.parse_args()
    device = options.device
    steps = options.steps or (100 if device.type == "cuda" else 2)
    compiled = device.type == "cuda" if options.compile is None else options.compile
    keep_freed_memory()
    engines: dict[tuple[str, str], Advance] = {}
    for norm in NORMS:
        engines[norm, "ours"] = ours(compose(_settings(norm, device, compiled)), device, _images(device))
        if norm in ("none", "weight_norm"):
            engines[norm, "usual"] = usual(norm, device)
    facts = {"compiled": compiled, "gflop": round(_gflop(), 1)}
    rows = [row | facts for row in compared(engines, options.rounds, steps, device)]
    print(bench.record("convnet", rows, ROOT / "results" / "bench"))


def compared(
    engines: dict[tuple[str, str], Advance], rounds: int, steps: int, device: torch.device
) -> list[dict[str, Any]]:
    """Rows of the engines, by norm and name, each with the time of a step in the fastest of its rounds."""
    for advance in engines.values():
        for _ in range(5):  # compiled, captured and warm
            advance()
    times = [{key: timed(advance, steps, device) for key, advance in engines.items()} for _ in range(rounds)]
    facts = bench.origin(device) | {"rounds": rounds, "steps": steps}
    return [
        {**facts, "norm": key[0], "engine": key[1], "step_ms": round(1000 * min(t[key] for t in times), 3)}
        for key in engines
    ]


def _settings(norm: str, device: torch.device, compiled: bool) -> dict[str, Any]:
    trainer = {"device": str(device), "precision": "bfloat16", "batch_size": BATCH, "compile": compiled}
    presets = {"model": "convnet", "data": "cifar10", "optim": "adam_paper", "norm": norm}
    return presets | {f"trainer.{key}": value for key, value in trainer.items()}


def _images(device: torch.device) -> Split:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(IMAGES, 3, 32, 32, generator=draw)
    return Split(x.to(device), torch.randint(10, (IMAGES,), generator=draw).to(device))


def ours(config: Config, device: torch.device, split: Split) -> Advance:
    """The project's own step on these images; a call takes one."""
    trainer = Trainer([config], Dataset(split, split, split, classes=10), device, Observer())
    trainer.optimizer.set_epoch(0, 200)
    trainer.stack.train()
    batches = itertools.cycle(trainer.batches(1))
    return lambda: trainer.update(next(batches))


def usual(norm: str, device: torch.device) -> Advance:
    """What most would write: a DataLoader with workers, torch's own layers, eager, loss.item()."""
    allow_tf32(True)
    network = torchs_network(norm).to(device)
    adam = torch.optim.Adam(network.parameters(), lr=0.003)
    split = _images(torch.device("cpu"))
    loader: Any = DataLoader(
        TensorDataset(split.x, split.y),
        batch_size=BATCH,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    batches = (batch for _ in iter(int, 1) for batch in loader)

    def advance() -> float:
        x, y = (t.to(device, non_blocking=True) for t in next(batches))
        adam.zero_grad()
        loss = F.cross_entropy(network(x), y)
        loss.backward()
        adam.step()
        return loss.item()

    return advance


def timed(advance: Advance, steps: int, device: torch.device) -> float:
    """Seconds a step."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(steps):
        advance()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / steps


def _gflop() -> float:
    """Operations of a step of the plain network, forward and backward, in 10^9, counted on no device."""
    network = torchs_network("none").to("meta")
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(
            network(torch.randn(BATCH, 3, 32, 32, device="meta")),
            torch.zeros(BATCH, dtype=torch.int64, device="meta"),
        ).backward()
    return float(counter.get_total_flops() / 1e9)


if __name__ == "__main__":
    main()
