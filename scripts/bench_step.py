"""What ``scripts/bench.py`` measures of a training step on one core of a CPU: beside JAX, and by width.

Everything takes turns in one process, on one core, and the fastest of its rounds counts. Times are of the
processor, all threads of the process together: others may use the machine meanwhile.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from wn.config import Config
from wn.config.compose import compose
from wn.data import Dataset, Split
from wn.resources import configure_torch, resolve
from wn.trainer import Observer, Trainer

Row = dict[str, Any]

MEMBERS = 33  # the stacks that a sweep of 65 runs makes on two cores
ROUNDS = 8
MLP = {"data": "digits", "model.widths": [128, 128], "trainer.device": "cpu"}
CONVNET = {"model": "convnet", "data": "cifar10", "optim": "adam_paper", "trainer.device": "cpu"}
WIDTHS = {(96, 1): 1, (24, 1): 4, (24, 4): 1, (16, 1): 6, (16, 4): 2}
"""Width of a ConvNet and members of the stack: steps in a round."""


def step(rounds: int = ROUNDS) -> list[Row]:
    """Milliseconds a member of a stack's step, in turns with JAX's where it is installed."""
    peer = importlib.util.find_spec("jax") is not None
    if not peer:
        print("JAX is not installed: it is left out. scripts/jax_step.py says how to install it")
    rows = []
    for norm in ("none", "weight_norm", "weight_norm_init"):
        trainer = stack_of(compose({**MLP, "norm": norm}), MEMBERS)
        engines = {"ours": ten_steps(trainer)}
        if peer:
            engines["jax"] = jax_steps(trainer)
        ms = {name: 100 * s / MEMBERS for name, s in in_turns(engines, rounds).items()}
        row = {"norm": norm, "members": MEMBERS, "ours_ms": round(ms["ours"], 4), "jax": "", "jax_ms": None}
        rows.append(row | ({"jax": version("jax"), "jax_ms": round(ms["jax"], 4)} if peer else {}))
        print(rows[-1], flush=True)
    return rows


def width(rounds: int = 2) -> list[Row]:
    """Time and speed of a ConvNet's step by its width, alone and in a stack of four, in float32."""
    images = torch.randn(400, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(400) % 10)
    data = Dataset(split, split, split, classes=10)
    engines: dict[Any, Callable[[], object]] = {}
    gflop: dict[int, float] = {}
    for (channels, members), steps in WIDTHS.items():
        trainer = stack_of(compose({**CONVNET, "model.width": channels}), members, data)
        batch = trainer.batches(1)[0]
        if members == 1:
            with FlopCounterMode(display=False) as counter:
                trainer.update(batch)
            gflop[channels] = counter.get_total_flops() / 1e9
        engines[channels, members] = lambda t=trainer, b=batch, n=steps: [t.update(b) for _ in range(n)]
    seconds = in_turns(engines, rounds)
    return [
        {
            "width": channels,
            "members": members,
            "gflop": round(gflop[channels], 3),
            "ms": round(1000 * seconds[channels, members] / steps / members, 2),
        }
        for (channels, members), steps in WIDTHS.items()
    ]


def stack_of(config: Config, members: int, data: Dataset | None = None) -> Trainer:
    """A trainer of runs of different seeds and learning rates, ready for its first step."""
    optims = [config.optim.model_copy(update={"lr": 1e-3 * (1 + seed)}) for seed in range(members)]
    configs = [config.model_copy(update={"seed": s, "optim": o}) for s, o in enumerate(optims)]
    device = torch.device("cpu")
    configure_torch(config.trainer, device)
    trainer = Trainer(configs, data or resolve(config)[1], device, Observer())
    trainer.optimizer.set_epoch(0, 1)
    trainer.stack.train()
    return trainer


def ten_steps(trainer: Trainer) -> Callable[[], object]:
    """Ten steps of the trainer, on its first batches."""
    batches = trainer.batches(1)[:10]
    return lambda: [trainer.update(batch) for batch in batches]


def jax_steps(trainer: Trainer) -> Callable[[], object]:
    """Ten steps of the peer, from the trainer's present state and on the same batches."""
    import jax
    import jax.numpy as jnp
    from jax_step import nested, stacked_step

    def array(t: Tensor) -> Any:
        return jnp.array(t.numpy())

    params = nested(trainer.stack.params)
    moments = jax.tree.map(jnp.zeros_like, params)
    advance = stacked_step(tuple(params))
    lr, momentum = (array(trainer.optimizer.hyper[name]) for name in ("lr", "momentum"))
    train = trainer.data.train
    images, labels = array(train.x.flatten(1)), array(train.y)
    batches = [array(batch) for batch in trainer.batches(1)[:10]]

    def ten() -> None:
        nonlocal params, moments
        for batch in batches:
            params, moments, *_ = advance(params, moments, lr, momentum[0], images, labels, batch)
        jax.block_until_ready(params)

    return ten


def in_turns(engines: dict[Any, Callable[[], object]], rounds: int) -> dict[Any, float]:
    """Seconds of each in the fastest of its rounds; the first, a warm-up, does not count."""
    times = [{name: _seconds(work) for name, work in engines.items()} for _ in range(rounds + 1)]
    return {name: min(t[name] for t in times[1:]) for name in engines}


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def on_one_core() -> None:
    """Keep this process, and the threads that libraries start in it, on one core."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
