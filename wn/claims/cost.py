"""H: what a training step costs under each norm, on one core of the CPU.

Norms take turns, since a machine's speed drifts. Time is the processor's, of one thread: on an idle machine
that is the clock's, and other processes change it little.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wn.claims.measuring import Part, file_name, measurement
from wn.claims.rows import Row, row
from wn.config.compose import compose
from wn.data import Dataset, Split
from wn.resources import configure_torch
from wn.trainer import Observer, Trainer

BATCH, IMAGES, BLOCKS, WARM_UP = 100, 1000, 5, 2
CPU = torch.device("cpu")

Step = Callable[[], object]
Seconds = dict[str, float]  # by norm


class Network(NamedTuple):
    """What is timed: settings of its runs, the shape of an image, its norms, and rounds in a block."""

    settings: dict[str, Any]
    shape: tuple[int, int, int]
    norms: tuple[str, ...]
    rounds: int


NORMS = ("none", "weight_norm", "mean_only_bn", "batch_norm")
CONVNET: dict[str, Any] = {"model": "convnet", "data": "cifar10", "optim": "adam_paper"}
MLP: dict[str, Any] = {"model": "mlp", "data": "mnist", "model.widths": [256, 256]}
TORCHS = "convnet, full width, torch's layers"
NETWORKS = {
    "convnet, full width": Network(CONVNET, (3, 32, 32), NORMS, 3),
    "convnet, width 16": Network({**CONVNET, "model.width": 16}, (3, 32, 32), NORMS, 20),
    "mlp, MNIST": Network(MLP, (1, 28, 28), NORMS, 200),
    TORCHS: Network(CONVNET, (3, 32, 32), ("none", "weight_norm", "batch_norm"), 3),
}


def fastest(steps: Mapping[str, Step], rounds: int) -> list[Seconds]:
    """For each block the time of every step in the fastest of its rounds; within a round they take turns.

    A round begins with another of the steps each time, so that none always follows the same one.
    """
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    names, blocks = list(steps), []
    for _ in range(BLOCKS):
        times: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                begun = time.process_time()
                steps[name]()
                times[name].append(time.process_time() - begun)
        blocks.append({name: min(own) for name, own in times.items()})
    return blocks


@functools.cache
def blocks_of(condition: str) -> list[Seconds]:
    """Times of the steps of a network under its norms, block by block."""
    network = NETWORKS[condition]
    make = _torchs if condition == TORCHS else functools.partial(_ours, network)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return fastest({norm: make(norm) for norm in network.norms}, network.rounds)
    finally:
        torch.set_num_threads(threads)


def ratio_rows(condition: str, of: str, to: str, controls: Mapping[str, tuple[str, str]]) -> list[Row]:
    """A row per block: the fastest step with norm ``of`` over that with ``to``; controls likewise."""
    wanted = {"ratio": (of, to), **{f"control {name}": pair for name, pair in controls.items()}}
    return [
        row(condition, name, block, seconds[a] / seconds[b])
        for block, seconds in enumerate(blocks_of(condition))
        for name, (a, b) in wanted.items()
    ] + [
        row(condition, f"ms {norm}", block, 1e3 * value)
        for block, seconds in enumerate(blocks_of(condition))
        for norm, value in seconds.items()
    ]


def _images(shape: tuple[int, int, int]) -> Split:
    """Random images: their values cost nothing."""
    draw = torch.Generator().manual_seed(0)
    return Split(torch.randn(IMAGES, *shape, generator=draw), torch.randint(10, (IMAGES,), generator=draw))


def _ours(network: Network, norm: str) -> Step:
    """The project's own training step, in float32 and eager."""
    config = compose({**network.settings, "norm": norm, "trainer.batch_size": BATCH})
    split = _images(network.shape)
    configure_torch(config.trainer, CPU)
    trainer = Trainer([config], Dataset(split, split, split, classes=10), CPU, Observer())
    trainer.optimizer.set_epoch(0, config.trainer.epochs)
    trainer.stack.train()
    batches = itertools.cycle(trainer.batches(1))
    return lambda: trainer.update(next(batches))


class _Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.15 * torch.randn_like(x)


def torchs_network(norm: str, width: int = 96) -> nn.Sequential:
    """The network of section 5.1 in torch's own layers: an independent path to the same function."""
    wide = 2 * width
    plan = [(width, 3, 1)] * 3 + [(wide, 3, 1)] * 3 + [(wide, 3, 0)] + [(wide, 1, 0)] * 2
    layers: list[nn.Module] = [_Noise()]
    inputs = 3
    for place, (units, kernel, padding) in enumerate(plan):
        layers.append(nn.Conv2d(inputs, units, kernel, padding=padding, bias=norm != "batch_norm"))
        layers += [nn.BatchNorm2d(units)] if norm == "batch_norm" else []
        layers.append(nn.LeakyReLU(0.1))
        layers += [nn.MaxPool2d(2), nn.Dropout()] if place in (2, 5) else []
        inputs = units
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10, bias=norm != "batch_norm")]
    layers += [nn.BatchNorm1d(10)] if norm == "batch_norm" else []
    if norm == "weight_norm":
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.utils.parametrizations.weight_norm(layer)
    return nn.Sequential(*layers)


def _torchs(norm: str) -> Step:
    """A training step as most would write it."""
    network = torchs_network(norm)
    adam, split = torch.optim.Adam(network.parameters(), lr=0.003), _images((3, 32, 32))
    batches = itertools.cycle(torch.split(torch.arange(IMAGES), BATCH))

    def advance() -> None:
        batch = next(batches)
        adam.zero_grad()
        loss = F.cross_entropy(network(split.x[batch]), split.y[batch])
        torch.autograd.backward(loss)
        adam.step()

    return advance


def _parts(of: str, controls: Mapping[str, tuple[str, str]]) -> Iterator[Part]:
    for name in ("convnet, width 16", "convnet, full width", TORCHS):
        measure = functools.partial(ratio_rows, name, of, "none", controls)
        yield Part(file_name(name, comma="_").replace("'", ""), measure)


@measurement("H1")
def weight_normalization() -> Iterator[Part]:
    """Time of a training step with weight normalisation over that with plain weights (section 5.1)."""
    yield from _parts("weight_norm", {"batch normalisation": ("batch_norm", "none")})


@measurement("H2")
def batch_normalization() -> Iterator[Part]:
    """Time of a training step with batch normalisation over that with plain weights (section 5.1)."""
    yield from _parts("batch_norm", {"weight normalisation": ("weight_norm", "none")})


@measurement("G5")
def mean_only_statistics() -> Iterator[Part]:
    """Time of a training step with mean-only statistics over that with batch normalisation (section 4)."""
    plain = {"mean-only over plain": ("mean_only_bn", "none"), "BN over plain": ("batch_norm", "none")}
    for condition in ("mlp, MNIST", "convnet, width 16", "convnet, full width"):
        measure = functools.partial(ratio_rows, condition, "mean_only_bn", "batch_norm", plain)
        yield Part(file_name(condition, comma="_"), measure)
