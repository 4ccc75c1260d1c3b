"""Sections 2.2 and 4: where batch normalisation is weight normalisation, and the scale of activations.

Batch normalisation divides a pre-activation ``v.x`` by its standard deviation sigma_BN, weight normalisation
by ||v||. If the inputs x of a layer are white, ``sigma_BN = ||v||``. A layer with weight normalisation has
``t = g v.x/||v|| + b``, so that ``sigma_BN/||v|| = sigma[t]/|g|``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from wn.claims.exact_layer import whitened
from wn.claims.growth import line
from wn.claims.measuring import Part, measurement
from wn.claims.rows import Row, per_quantity, row
from wn.claims.snapshots import EPOCHS, inputs_and_outputs, trained
from wn.claims.training import data_of
from wn.config.compose import compose
from wn.norm import NormalizedLayer, normalized_layers

SEEDS = range(5)
SIZES = [2**k for k in range(5, 13)]  # of minibatches
UNITS, DRAWS = 256, 50
WN, PLAIN = "weight_norm_init", "none_init"


@measurement("D1")
def one_white_layer() -> Iterator[Part]:
    """Slope of the median of |sigma_BN/||v|| - 1| on the size of the batch, both in logs."""
    for condition, draw in {
        "linear, Gaussian inputs": gaussian,
        "mlp, whitened digits": digits,
    }.items():
        yield Part(condition.split()[-1], functools.partial(_one_layer, condition, draw))


@measurement("D2")
def in_depth() -> Iterator[Part]:
    """Coefficient of variation of sigma_BN/||v|| over the units of each layer."""
    for network, family in {"mlp on CIFAR-10": "mlp", "convnet": "convnet"}.items():
        for seed in SEEDS:
            yield Part(f"{family}-{seed}", functools.partial(_in_depth, network, family, seed))


@measurement("D3")
def scale_of_activations() -> Iterator[Part]:
    """Standard deviation over the training of log(sigma[t]/|g|)."""
    for network, condition in {"mlp": "mlp, momentum", "convnet": "convnet, Adam"}.items():
        for seed in SEEDS:
            yield Part(f"{network}-{seed}", functools.partial(_drifts, network, condition, seed))


Draw = Callable[[int, torch.Generator], Tensor]  # size of a batch -> inputs [size, d]


def gaussian(white: bool) -> Draw:
    """64 standard normal inputs, or these mixed by a random matrix."""
    mix = torch.randn(64, 64, generator=torch.Generator().manual_seed(99), dtype=torch.float64)

    def draw(size: int, generator: torch.Generator) -> Tensor:
        x = torch.randn(size, 64, generator=generator, dtype=torch.float64)
        return x if white else x @ mix

    return draw


def digits(white: bool) -> Draw:
    """All 1797 digits with replacement, whitened by their own covariance or as they are."""
    data = data_of(compose({"data": "digits"}))
    pixels = torch.cat([split.x for split in (data.train, data.valid, data.test)]).flatten(1).double()
    population = whitened(pixels) if white else pixels

    def draw(size: int, generator: torch.Generator) -> Tensor:
        return population[torch.randint(len(population), (size,), generator=generator)]

    return draw


def _one_layer(condition: str, draw: Callable[[bool], Draw]) -> list[Row]:
    rows: list[Row] = []
    for seed in SEEDS:
        medians = {white: deviations_by_size(draw(white), seed) for white in (True, False)}
        slopes = {"slope": medians[True], "control slope, inputs not white": medians[False]}
        rows += per_quantity(condition, seed, {name: log_slope(SIZES, of) for name, of in slopes.items()})
        for size, value in zip(SIZES, medians[True], strict=True):
            rows.append(row(condition, "median deviation", seed, value, float(size)))
    return rows


def deviations_by_size(draw: Draw, seed: int) -> list[float]:
    """The median of |sigma_BN/||v|| - 1| over random units and batches, for each of :data:`SIZES`."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(UNITS, draw(2, generator).shape[1], generator=generator, dtype=torch.float64)
    medians = []
    for size in SIZES:
        sigmas = [(draw(size, generator) @ v.T).std(0, correction=0) for _ in range(DRAWS)]
        medians.append(float((torch.stack(sigmas) / v.norm(dim=1) - 1).abs().median()))
    return medians


def log_slope(xs: list[int], ys: list[float]) -> float:
    """Least squares slope of log y on log x."""
    return line([math.log(x) for x in xs], [math.log(y) for y in ys])[0]


def _in_depth(network: str, family: str, seed: int) -> list[Row]:
    training = trained(network, WN, seed)
    rows: list[Row] = []
    for epoch, word in ((0, "at the start"), (EPOCHS[-1], "trained")):
        model, condition = training.models[epoch], f"{family}, {word}"
        spread = {name: variation(r) for name, r in ratios(model, training.others.x).items()}
        first, *later = [name for name in spread if name != "logits"]
        numbers = {
            "cv": min(spread[name] for name in later),
            "control cv of the first layer": spread[first],
            "control largest cv of a hidden layer": max(spread[name] for name in later),
        }
        numbers |= {f"cv of {name}": value for name, value in spread.items()}
        rows += per_quantity(condition, seed, numbers)
        if family == "convnet":
            rows += _by_position(model, training.others.x, condition, seed)
    return rows


def ratios(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """``sigma_BN/||v||`` of each layer's units over images x."""
    layers, found = normalized_layers(model), {}
    for name, (_, y) in inputs_and_outputs(model, x).items():
        sigma = y.double().transpose(0, 1).flatten(1).std(1, correction=0)  # over images and places
        found[name] = sigma / gains(layers[name])
    return found


def gains(layer: NormalizedLayer) -> Tensor:
    """|g| ``[units]`` in float64; of plain weights 1."""
    ones = torch.ones(layer.units, dtype=torch.float64)
    return layer.gains().detach().double().abs() if layer.has_gain else ones


def variation(r: Tensor) -> float:
    """Coefficient of variation: standard deviation over mean."""
    return float(r.std() / r.mean())


def _by_position(model: nn.Module, x: Tensor, condition: str, seed: int) -> Iterator[Row]:
    """|sigma_BN/||v|| - 1| of each row of places, and the spread at places that see no border, of conv1."""
    layers, outputs = normalized_layers(model), inputs_and_outputs(model, x)
    for name in ("conv1", "conv2"):
        r = positions(outputs[name][1], gains(layers[name]))
        inner = slice(2, r.shape[2] - 2)
        for place, value in enumerate((r - 1).abs()[:, :, inner].mean((0, 2)).tolist()):
            yield row(condition, f"deviation by row, {name}", seed, value, float(place))
        if name == "conv1":
            interior = float((r[:, inner, inner] - 1).abs().mean())
            yield row(condition, "control deviation inside, first convolution", seed, interior)


def positions(t: Tensor, g: Tensor) -> Tensor:
    """``sigma_BN/||v||`` over images at each place, ``[units, rows, columns]``, of t ``[images, ...]``."""
    return t.double().std(0, correction=0) / g[:, None, None]


def _drifts(network: str, condition: str, seed: int) -> list[Row]:
    training = trained(network, WN, seed)
    drift = drifts(list(training.models.values()), training.train.x)
    numbers = {
        "drift": float(torch.cat(list(drift.values())).median()),
        "control angle from the first to the last v (degrees)": float(turned(training.models).median()),
    }
    numbers |= {f"drift of {name}": float(value.median()) for name, value in drift.items()}
    if network == "mlp" or seed < 2:  # a second training of the ConvNet, as long as the first
        plain = drifts(list(trained(network, PLAIN, seed).models.values()), training.train.x)
        numbers["control drift of log sigma, plain weights"] = float(torch.cat(list(plain.values())).median())
    return per_quantity(condition, seed, numbers)


def drifts(models: list[nn.Module], x: Tensor) -> dict[str, Tensor]:
    """Standard deviation over models of log(sigma[t]/|g|), of plain weights of log sigma[t]: ``[units]``."""
    logs = [{name: r.log() for name, r in ratios(model, x).items()} for model in models]
    return {name: torch.stack([one[name] for one in logs]).std(0) for name in logs[0]}


def turned(models: Mapping[int, nn.Module]) -> Tensor:
    """Angle in degrees between each unit's first and last v."""
    ends = [normalized_layers(models[epoch]) for epoch in (EPOCHS[0], EPOCHS[-1])]
    angles = []
    for name in ends[0]:
        a, b = (layers[name].unit_rows(layers[name].raw_weight.detach()).double() for layers in ends)
        angles.append(torch.cosine_similarity(a, b, dim=1).clamp(-1, 1).acos().rad2deg())
    return torch.cat(angles)
