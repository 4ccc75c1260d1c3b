r"""G1, G2: the noise that batch statistics put into outputs (section 4).

An output t of a unit, less its mean and over its standard deviation over all training images, is z. In a
batch that holds the image, with mean m and variance v of z over the batch (and the images' places)::

    mean-only    -m                                noise of the output, in units of its standard deviation
    batch        (z - m) / sqrt(v + eps) - z

Batches are drawn as epochs draw them: a permutation of the images, cut into batches.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wn.claims.measuring import Part, measurement
from wn.claims.nets import passed
from wn.claims.rows import Row, per_quantity, row
from wn.claims.training import data_of, train
from wn.config.compose import compose
from wn.models import build
from wn.models.noise import CounterBased

SIZES = (2, 4, 8, 16, 64, 100)
BATCH = 100  # of the paper, at which claims are judged
SEEDS, UNITS, IMAGES, DRAWS, EPOCHS = 5, 20, 50, 20_000, 2_000
EPS = 1e-6

NORMS = {"WN and MOBN": "weight_norm_mean_only_bn_init", "BN": "batch_norm"}
MLP: dict[str, Any] = {"model": "mlp", "data": "digits", "optim.lr": 0.03, "trainer.epochs": 30}
CONVNET: dict[str, Any] = {
    **{"model": "convnet", "model.width": 16, "model.weight_init": "he", "optim": "adam_paper"},
    **{"data": "cifar10", "data.train_fraction": 0.02, "data.valid_fraction": 0.1, "trainer.epochs": 10},
}
SETTINGS = {"mlp": MLP, "convnet": CONVNET}
WHOLE = "mlp, whole network in training mode"


class Frozen(NamedTuple):
    """A trained model and the images that it was trained on."""

    model: nn.Module
    x: Tensor


@functools.cache
def frozen(family: str, norm: str) -> list[Frozen]:
    """A model for each seed, trained for some seconds."""
    base = compose({**SETTINGS[family], "norm": NORMS[norm]})
    data = data_of(base)
    small = replace(data, test=data.valid)  # the test set is not looked at
    found = []
    for seed in range(SEEDS):
        config = base.model_copy(update={"seed": seed})
        (state,) = train([config], small).models
        if state is None:
            raise ArithmeticError(f"{family}, {norm}, seed {seed}: diverged")
        model = build(config.model, config.norm, data.shape, data.classes, seed)
        model.load_state_dict(state)
        found.append(Frozen(model, data.train.x))
    return found


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Each normalised layer's outputs with the statistics of this batch, without input noise and dropout."""
    model.train()
    for module in model.modules():
        if isinstance(module, CounterBased):
            module.eval()
    return {name: y.detach().double() for name, (_, y) in passed(model, x).items()}


class Activations(NamedTuple):
    """Standardised outputs of some units, ``[images, units]`` each.

    ``z``: at one place of the image; ``first``, ``second``: mean of z and of its square over the places.
    """

    z: Tensor
    first: Tensor
    second: Tensor

    def of(self, images: Any, *units: int) -> Activations:
        return Activations(*(t[(images, *units)] for t in self))


def activations(y: dict[str, Tensor], draw: torch.Generator) -> Activations:
    """About :data:`UNITS` units, as many of each layer, and a place of each image, drawn at random."""
    each = max(1, round(UNITS / len(y)))
    columns: list[Activations] = []
    for t in y.values():
        t = t.flatten(2) if t.dim() > 2 else t[:, :, None]  # [images, units, places]
        t = t[:, torch.randperm(t.shape[1], generator=draw)[:each]]
        sd, mean = torch.std_mean(t, (0, 2), correction=0, keepdim=True)
        z = (t - mean) / sd
        place = torch.randint(t.shape[2], (len(t), 1, 1), generator=draw).expand(-1, t.shape[1], 1)
        columns.append(Activations(z.gather(2, place)[..., 0], z.mean(2), z.square().mean(2)))
    return Activations(*(torch.cat(parts, 1) for parts in zip(*columns, strict=True)))


def batch_means(values: Tensor, size: int, draws: int, draw: torch.Generator) -> Tensor:
    """Means of batches, ``[draws, columns]``, of rows of ``values [images, columns]`` as epochs draw them."""
    each = len(values) // size
    found = []
    for _ in range(-(-draws // each)):
        order = torch.randperm(len(values), generator=draw)[: each * size]
        found.append(values[order].view(each, size, -1).mean(1))
    return torch.cat(found)[:draws]


def kurtosis(x: Tensor) -> Tensor:
    """Excess kurtosis over the last axis: 0 of a normal distribution."""
    squares = (x - x.mean(-1, keepdim=True)).square_()
    fourth: Tensor = torch.linalg.vecdot(squares, squares) / x.shape[-1]
    return fourth / squares.mean(-1).square() - 3


class Noise(NamedTuple):
    """Medians over units and images of either noise, and of what comes with it."""

    kurtosis_bn: float
    kurtosis_mobn: float
    sd_bn: float
    sd_mobn: float
    kurtosis_of_scale: float
    """Of 1 / sqrt(v)."""
    tail_bn: float
    """The quantile of |noise| that one in a thousand exceeds, in standard deviations: 3.29 if normal."""


def noise(found: Activations, size: int, draws: int, draw: torch.Generator) -> Noise:
    """Of batches of ``size`` that hold one of :data:`IMAGES` images and others drawn of the rest."""
    order = torch.randperm(len(found.z), generator=draw)
    own, rest = found.of(order[:IMAGES]), found.of(order[IMAGES:])
    others = batch_means(torch.cat([rest.first, rest.second], 1), size - 1, draws, draw)
    means, squares = others.T.contiguous().chunk(2)
    units = [_of_unit(own.of(..., unit), means[unit], squares[unit], size) for unit in range(len(means))]
    return Noise(*(torch.cat(values).median().item() for values in zip(*units, strict=True)))


def _of_unit(own: Activations, means: Tensor, squares: Tensor, size: int) -> tuple[Tensor, ...]:
    """The fields of :class:`Noise` for each image ``[images]``, by the others' means ``[draws]``."""
    mobn = -(size - 1) / size * means[None]  # of the image itself only a constant is added
    columns = []
    for some in torch.split(torch.arange(len(own.z)), 4):  # a few at once stay in the processor's cache
        z, first, second = (t[:, None] for t in own.of(some))
        mean, square = ((size - 1) * means + first) / size, ((size - 1) * squares + second) / size
        inverse = torch.rsqrt((square - mean.square()).clamp_min_(0) + EPS)
        bn = (z - mean) * inverse - z
        rest = [bn[:, 0] * torch.nan] * 2
        if size == BATCH:
            tail = (bn - bn.mean(-1, keepdim=True)).abs_().quantile(0.999, -1) / bn.std(-1)
            rest = [kurtosis(inverse), tail]
        columns.append([kurtosis(bn), bn.std(-1), *rest])
    kurtosis_bn, sd_bn, scale, tails = (torch.cat(parts) for parts in zip(*columns, strict=True))
    return kurtosis_bn, kurtosis(mobn), sd_bn, mobn.std(-1), scale, tails


def normal_activations(images: int, draw: torch.Generator) -> Activations:
    """The control: independent standard normal outputs, without places."""
    z = torch.randn(images, UNITS, generator=draw, dtype=torch.float64)
    return Activations(z, z, z.square())


@functools.cache
def layer_by_layer(family: str, norm: str) -> list[dict[int, Noise]]:
    """By seed and batch size; 0: the control at batches of 100."""
    found = []
    for seed, net in enumerate(frozen(family, norm)):
        draw = torch.Generator().manual_seed(seed)
        units = activations(outputs(net.model, net.x), draw)
        by_size = {size: noise(units, size, DRAWS, draw) for size in SIZES}
        by_size[0] = noise(normal_activations(len(net.x), draw), BATCH, DRAWS, draw)
        found.append(by_size)
    return found


def in_training(net: Frozen, epochs: int, seed: int) -> tuple[float, float]:
    """Excess kurtosis and standard deviation of the noise in a network's own training passes, medians.

    Over epochs, of units and images: outputs in batches of 100 less those in one batch of all images, which
    have population statistics in every layer, in units of the latter's standard deviation.
    """
    draw = torch.Generator().manual_seed(seed)
    everything = outputs(net.model, net.x)
    units = {
        n: torch.randperm(y.shape[1], generator=draw)[: UNITS // len(everything)]
        for n, y in everything.items()
    }
    reference = torch.cat([everything[name][:, chosen] for name, chosen in units.items()], 1)
    count, powers = 0 * reference[:, :1], [torch.zeros_like(reference) for _ in range(4)]
    for _ in range(epochs):
        order = torch.randperm(len(net.x), generator=draw)
        for batch in torch.split(order[: len(order) // BATCH * BATCH], BATCH):
            y = outputs(net.model, net.x[batch])
            difference = torch.cat([y[n][:, chosen] for n, chosen in units.items()], 1) - reference[batch]
            count[batch] += 1
            for power, total in enumerate(powers, start=1):
                total[batch] += difference.pow(power)
    m1, m2, m3, m4 = (total / count for total in powers)
    variance = m2 - m1.square()
    fourth = m4 - 4 * m1 * m3 + 6 * m1.square() * m2 - 3 * m1.pow(4)
    sd = variance.sqrt() / reference.std(0, correction=0)
    return (fourth / variance.square() - 3).median().item(), sd.median().item()


@functools.cache
def whole_network(seed: int) -> Noise:
    """Both norms, each in the network that was trained with it."""
    bn, mobn = (in_training(frozen("mlp", norm)[seed], EPOCHS, seed) for norm in ("BN", "WN and MOBN"))
    return Noise(bn[0], mobn[0], bn[1], mobn[1], float("nan"), float("nan"))


def _parts(quantities: dict[str, Any], controls: dict[str, Any], data: dict[str, Any]) -> Iterator[Part]:
    """Parts of a claim: what it judges, its controls, and data against the batch size, each of a Noise."""
    for family in SETTINGS:
        for norm in NORMS:
            condition = f"{family}, trained with {norm}"
            measure = functools.partial(_rows, condition, family, norm, quantities, controls, data)
            yield Part(f"{family}_{norm}".replace(" ", "-"), measure)
    yield Part("mlp_whole", functools.partial(_whole_rows, quantities))


def _rows(
    condition: str,
    family: str,
    norm: str,
    quantities: dict[str, Any],
    controls: dict[str, Any],
    data: dict[str, Any],
) -> list[Row]:
    rows = []
    for seed, by_size in enumerate(layer_by_layer(family, norm)):
        numbers = {name: of(by_size[BATCH]) for name, of in quantities.items()}
        numbers |= {f"control {name}, normal outputs": of(by_size[0]) for name, of in quantities.items()}
        numbers |= {f"control {name}": of(by_size[BATCH]) for name, of in controls.items()}
        rows += per_quantity(condition, seed, numbers)
        rows += [
            row(condition, name, seed, of(by_size[size]), size) for name, of in data.items() for size in SIZES
        ]
    return rows


def _whole_rows(quantities: dict[str, Any]) -> list[Row]:
    return [
        row(WHOLE, name, seed, of(whole_network(seed)))
        for seed in range(SEEDS)
        for name, of in quantities.items()
    ]


@measurement("G1a")
def tails() -> Iterator[Part]:
    """Excess kurtosis of the noise at batches of 100, and over batch sizes for the figure."""
    quantities = {
        "mean_only": lambda n: n.kurtosis_mobn,
        "difference": lambda n: n.kurtosis_bn - n.kurtosis_mobn,
    }
    data = {"kurtosis BN": lambda n: n.kurtosis_bn, "kurtosis MOBN": lambda n: n.kurtosis_mobn}
    yield from _parts(quantities, {}, data)


@measurement("G1b")
def high_kurtosis() -> Iterator[Part]:
    """Excess kurtosis of batch normalisation's noise at batches of 100; that of 1/sigma beside it."""
    scale = {"kurtosis of 1/sigma": lambda n: n.kurtosis_of_scale, "99.9% quantile (sd)": lambda n: n.tail_bn}
    yield from _parts({"kurtosis": lambda n: n.kurtosis_bn}, scale, {})


@measurement("G2")
def size() -> Iterator[Part]:
    """Standard deviation of batch normalisation's noise over that of mean-only."""
    yield from _parts(
        {"ratio": lambda n: n.sd_bn / n.sd_mobn}, {}, {"ratio by batch": lambda n: n.sd_bn / n.sd_mobn}
    )
