"""Claims about the data-dependent initialisation in depth (section 3), before any training."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wn.claims import nets
from wn.claims.measuring import Part, file_name, measurement
from wn.claims.nets import Kind, Start
from wn.claims.predictions import predicted_factor
from wn.claims.rows import Row, per_seed, row
from wn.config import NormConfig, TransformerConfig
from wn.data import Dataset
from wn.models import build
from wn.norm import data_dependent_init

SEEDS = range(5)
DEPTHS = (2, 5, 10, 20, 50)
STARTS: tuple[Start, ...] = ("data", "he", "arpit", "stale", "batch_norm")


@measurement("E1a")
def first_batch_exactly() -> Iterator[Part]:
    """Largest |mean| and |standard deviation - 1| over layers and units on the initialisation batch."""
    deep: dict[str, tuple[str, Kind, int, int, int]] = {
        "mlp": ("mlp, depth 50", "plain", 50, 256, 500),
        "residual": ("mlp, residual, depth 50", "residual", 50, 256, 500),
        "convnet": ("convnet, depth 20", "convolutional", 20, 16, 100),
    }

    def network(kind: Kind, depth: int, width: int, images: int, seed: int) -> float:
        data = nets.digits(torch.float64)
        batch = data.train.x[nets.first_batch(data, images, seed)]
        return largest_error(nets.deep(kind, depth, width, "relu", "data", batch, seed), batch)

    def transformer(seed: int) -> float:
        data = nets.digits(torch.float64)
        norm = NormConfig.model_validate(nets.NORMS["data"])
        model = build(TransformerConfig(), norm, data.shape, data.classes, seed).double()
        batch = data.train.x[nets.first_batch(data, 500, seed)]
        data_dependent_init(model, batch)
        return largest_error(model, batch)

    for part, (condition, kind, depth, width, images) in deep.items():
        measure = functools.partial(network, kind, depth, width, images)
        yield Part(part, functools.partial(_errors, condition, measure))
    yield Part("transformer", functools.partial(_errors, "transformer, 2 blocks", transformer))


def _errors(condition: str, measure: Callable[[int], float]) -> list[Row]:
    return per_seed(condition, "error", map(measure, SEEDS))


@torch.no_grad()
def largest_error(model: nn.Module, batch: Tensor) -> float:
    """Largest |mean|, or |standard deviation - 1| of a unit that varies at all, over a model's layers."""
    errors = []
    for layer, t in nets.outputs(model, batch).items():
        sigma, mu = torch.std_mean(nets.samples(layer, t), 0, correction=0)
        errors += [mu.abs(), (sigma - 1)[sigma > 1e-12].abs()]
    return float(torch.cat(errors).max())  # NaN where one is


@measurement("E1b")
def other_images() -> Iterator[Part]:
    """Variance, a mean over units, of pre-activations on validation images, by layer."""
    mlp, convnet = (16, 64, 250, 500, 1000), (16, 64, 250, 500)
    yield Part("mlp", lambda: _held_out("mlp, 10 layers", "plain", 50, 256, mlp))
    yield Part("convnet", lambda: _held_out("convnet, 10 layers", "convolutional", 10, 64, convnet))


def _held_out(condition: str, kind: Kind, depth: int, width: int, sizes: Sequence[int]) -> list[Row]:
    rows, data = [], nets.digits()
    for seed in SEEDS:
        for size in sizes:
            batch = data.train.x[nets.first_batch(data, size, seed)]
            variances = held_out_variances(nets.deep(kind, depth, width, "relu", "data", batch, seed), data)
            rows += [
                row(condition, f"variance, {size} images", seed, variances[layer - 1], layer)
                for layer in DEPTHS
                if layer <= depth
            ]
            if size == 500:
                furthest = max(variances[:10], key=lambda v: abs(math.log(v)))
                rows.append(row(condition, "variance", seed, furthest))
        he = held_out_variances(nets.deep(kind, 10, width, "relu", "he", data.train.x[:2], seed), data)
        rows.append(row(condition, "control He, layer 10", seed, he[9]))
    return rows


@torch.no_grad()
def held_out_variances(model: nn.Module, data: Dataset) -> list[float]:
    """Of each hidden layer."""
    found = nets.outputs(model, data.valid.x)
    return [nets.samples(layer, t).var(0).mean().item() for layer, t in found.items()][:-1]


class AtStart(NamedTuple):
    """A network as it starts: ``gradient_ratio`` of first to last hidden layer, cosines between images.

    Units of mean 0 hold the mean cosine, ``correlation``, near 0 even where images collapse onto a line; the
    ``root_mean_square`` is 1 there.
    """

    gradient_ratio: float
    correlation: float
    root_mean_square: float


@functools.cache
def probe(kind: Kind, depth: int, activation: str, start: Start, seed: int) -> AtStart:
    """One backward pass on the images of the initialisation, one forward pass on the validation images."""
    # Outputs of a stale start reach 1e26, whose squares float32 does not hold.
    data = nets.digits(torch.float64 if start == "stale" else torch.float32)
    width, images = (64, 100) if kind == "convolutional" else (256, 500)
    chosen = nets.first_batch(data, images, seed)
    x, y = data.train.x[chosen], data.train.y[chosen]
    model = nets.deep(kind, depth, width, activation, start, x, seed)
    return AtStart(gradient_ratio(model, x, y), *image_correlation(model, data.valid.x))


def gradient_ratio(model: nets.Deep, x: Tensor, y: Tensor) -> float:
    """Norm over the batch of d loss / d t_1, over that of d loss / d t_depth."""
    *hidden, logits = nets.outputs(model, x).values()
    first, last = torch.autograd.grad(F.cross_entropy(logits, y), [hidden[0], hidden[-1]])
    return float(first.norm() / last.norm())


@torch.no_grad()
def image_correlation(model: nets.Deep, x: Tensor) -> tuple[float, float]:
    """Mean, and root mean square, of cosines between two images' pre-activations in the last hidden layer."""
    unit = F.normalize(model.features(x).flatten(1), dim=1)
    sums = unit.sum(0).square().sum(), (unit @ unit.T).square().sum()
    mean, square = ((float(total) - len(x)) / (len(x) * (len(x) - 1)) for total in sums)
    return mean, math.sqrt(max(square, 0.0))


Case = tuple[Kind, str, tuple[Start, ...]]
FEWER: tuple[Start, ...] = ("data", "he", "batch_norm")


@measurement("E2a")
def forward() -> Iterator[Part]:
    """Mean cosine between the pre-activations of different validation images in the last hidden layer."""
    cases: dict[str, Case] = {
        "mlp, plain": ("plain", "relu", STARTS),
        "mlp, residual": ("residual", "relu", STARTS),
        "convnet, plain": ("convolutional", "relu", FEWER),
    }

    yield from _parts(
        cases, "correlation", "correlation", lambda at, kind, activation: at.correlation, (DEPTHS[0], 50)
    )


@measurement("E2b")
def backward() -> Iterator[Part]:
    """Gradient norm, first over last hidden pre-activations, per layer: measured over predicted."""
    cases: dict[str, Case] = {
        "mlp, plain, ReLU": ("plain", "relu", STARTS),
        "mlp, plain, leaky ReLU": ("plain", "leaky_relu", FEWER),
        "mlp, residual, ReLU": ("residual", "relu", STARTS),
        "convnet, plain, ReLU": ("convolutional", "relu", FEWER),
    }

    def factor(at: AtStart, kind: Kind, activation: str) -> float:
        return float(at.gradient_ratio ** (1 / 49)) / predicted_factor(kind, 50, activation)

    yield from _parts(cases, "gradient_ratio", "factor", factor)


def _parts(
    cases: dict[str, Case],
    field: str,
    quantity: str,
    judged: Callable[[AtStart, Kind, str], float],
    beside: Sequence[int] = (),
) -> Iterator[Part]:
    """A part for each condition and start: a field of what is found by depth, what is judged at 50.

    ``beside``: the depths whose root mean square cosine is a control.
    """

    def measure(condition: str, kind: Kind, activation: str, start: Start) -> list[Row]:
        name = quantity if start == "data" else f"control {start}"
        curve, rows = f"{field.replace('_', ' ')}, {start}", []
        for seed in SEEDS:
            found = {depth: probe(kind, depth, activation, start, seed) for depth in DEPTHS}
            rows.append(row(condition, name, seed, judged(found[50], kind, activation)))
            rows += [row(condition, curve, seed, getattr(at, field), depth) for depth, at in found.items()]
            for depth in beside:
                control = f"control {start}, root mean square cosine, {depth} layers"
                rows.append(row(condition, control, seed, found[depth].root_mean_square))
        return rows

    for condition, (kind, activation, starts) in cases.items():
        for start in starts:
            one = functools.partial(measure, condition, kind, activation, start)
            yield Part(file_name(condition, start), one)
