"""Section 2.1: is w a dominant eigenvector of C, is D closer to the identity, does that speed learning.

C is the covariance of the gradients by w of a unit, ``D = g^2/||v||^2 M C M`` that of those by v, with
``M = I - w w'/||w||^2``.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wn.claims import arms, spectra
from wn.claims.arms import ARMS, Race
from wn.claims.measuring import Part, measurement
from wn.claims.rows import Row, per_quantity, row
from wn.claims.snapshots import Trained, inputs_and_outputs, trained

SEEDS = range(5)
TIMES = (1, 10, 30)  # epochs that are judged
TOP = 5  # eigenvectors of the weaker reading
STEPS, BATCH, RATE = 500, 10, 0.01  # of the second measurement

Units = dict[str, Tensor]  # a number per unit of a layer, by quantity
Layers = dict[str, Units]
Told = Iterator[tuple[str, Tensor, int | None]]  # quantity, value, epoch
RowsOf = Callable[[Mapping[int, Layers]], Told]
ByTime = Callable[[str, int], dict[int, Layers]]

IMAGES = {"mlp": "mlp, gradients of images", "convnet": "convnet, gradients of images"}
SUCCESSIVE = "mlp, gradients of successive steps"


@measurement("C1")
def eigenvector() -> Iterator[Part]:
    """cos^2 of w and C's first eigenvector, and what share of w is along the first five."""
    yield from _parts(_c1_rows)


@measurement("C2")
def identity() -> Iterator[Part]:
    """Participation ratio of D over that of C."""
    yield from _parts(_c2_rows)


@measurement("C3")
def speed() -> Iterator[Part]:
    """Epochs to a target of scaling and projecting, apart and together, over those of plain weights."""
    for name, race in arms.RACES.items():
        yield Part(name, lambda name=name, race=race: _race_rows(name, race))  # type: ignore[misc]


def _parts(rows_of: RowsOf) -> Iterator[Part]:
    for network, condition in IMAGES.items():
        for seed in SEEDS:
            name = f"{network}-images-{seed}"
            yield Part(name, functools.partial(_measured, rows_of, by_images, network, condition, seed))
    for seed in SEEDS:
        name = f"mlp-steps-{seed}"
        yield Part(name, functools.partial(_measured, rows_of, by_steps, "mlp", SUCCESSIVE, seed))


def _measured(rows_of: RowsOf, measure: ByTime, network: str, condition: str, seed: int) -> list[Row]:
    told = rows_of(measure(network, seed))
    return [row(condition, quantity, seed, float(value), epoch) for quantity, value, epoch in told]


@functools.cache
def by_images(network: str, seed: int) -> dict[int, Layers]:
    """Epoch -> layer -> quantities of each unit, C of the gradients of single images."""
    training = trained(network, "weight_norm_init", seed)
    return {epoch: _of_images(training, epoch, seed) for epoch in (0, *TIMES)}


def _of_images(training: Trained, epoch: int, seed: int) -> Layers:
    model = copy.deepcopy(training.models[epoch]).double()
    split = dataclasses.replace(training.train, x=training.train.x.double())
    inputs = {name: x for name, (x, _) in inputs_and_outputs(model, split.x).items()}
    generator = torch.Generator().manual_seed(seed)
    found: Layers = {}
    for name, m in spectra.moments(model, split).items():
        kept = m.active >= m.w.shape[1]
        c, w, mean = m.covariance[kept], m.w[kept], m.mean[kept]
        values, vectors = spectra.largest_first(c)
        units = alignment(values, vectors, w, generator)
        units["uncentred"] = spectra.energies(spectra.largest_first(m.second[kept])[1][:, :, :1], w)[:, 0]
        units["mean gradient"] = spectra.energies(F.normalize(mean, dim=1)[:, :, None], w)[:, 0]
        if inputs[name].dim() == 2:  # of a convolution it would be that of patches
            units["mean input"] = spectra.energies(vectors[:, :, :1], inputs[name].mean(0).expand_as(w))[:, 0]
        for word, direction in (("", w), ("random ", torch.randn(w.shape, generator=generator).double())):
            d = spectra.projected(c, direction)
            flatness = [spectra.participation(x, k) for x, k in ((d, w.shape[1] - 1), (c, w.shape[1]))]
            units[f"{word}participation"] = flatness[0] / flatness[1]
        largest = torch.linalg.eigvalsh(spectra.projected(c, w))
        units["largest"] = largest_share(largest.flip(1)) / largest_share(values)
        found[name] = units | {"left out": (~kept).double()}
    return found


@functools.cache
def by_steps(network: str, seed: int) -> dict[int, Layers]:
    """The same from the gradients by v and g of successive steps: no per-image gradient, no eigh, no M."""
    training = trained(network, "weight_norm_init", seed)
    split = dataclasses.replace(training.train, x=training.train.x.double())
    generator = torch.Generator().manual_seed(seed)
    times: dict[int, Layers] = {}
    for epoch in TIMES:
        model = copy.deepcopy(training.models[epoch]).double().train()
        times[epoch] = {}
        for name, steps in spectra.successive(model, split, STEPS, BATCH, RATE, seed).items():
            active = (steps.by_w != 0).any(2).sum(1)
            kept = active >= steps.w.shape[1]
            values, vectors = spectra.centred_svd(steps.by_w[kept])
            units = alignment(values, vectors, steps.w[kept], generator)
            d = spectra.centred_svdvals(steps.by_v[kept])
            size = steps.w.shape[1]
            flatness = [spectra.participation_of(x, k) for x, k in ((d, size - 1), (values, size))]
            units["participation"] = flatness[0] / flatness[1]
            units["largest"] = largest_share(d) / largest_share(values)
            times[epoch][name] = units | {"left out": (~kept).double()}
    return times


def alignment(values: Tensor, vectors: Tensor, w: Tensor, generator: torch.Generator) -> Units:
    """How each unit's w ``[units, d]``, and a random direction, lie among eigenvectors, the largest first."""
    drawn = torch.randn(w.shape, generator=generator).to(w.dtype)
    found: Units = {"random cos2": torch.full((len(w),), 1 / w.shape[1], dtype=w.dtype)}
    for word, direction in (("", w), ("drawn ", drawn)):
        energy = spectra.energies(vectors, direction)
        found[f"{word}cos2"] = energy[:, 0]
        found[f"{word}top"] = energy[:, :TOP].sum(1)
        found[f"{word}rayleigh"] = (energy * values).sum(1) * w.shape[1] / values.sum(1)
    return found


def largest_share(values: Tensor) -> Tensor:
    """Of the largest of eigenvalues ``[units, d]``, which come first, in their sum."""
    return values[:, 0] / values.sum(1)


def pooled(found: Mapping[int, Layers], quantity: str, epochs: tuple[int, ...] = TIMES) -> Tensor:
    """All units of all layers and times that have the quantity."""
    values = [units[quantity] for epoch in epochs for units in found[epoch].values() if quantity in units]
    return torch.cat(values) if values else torch.zeros(0)


def _c1_rows(found: Mapping[int, Layers]) -> Told:
    cos2 = pooled(found, "cos2")
    random = pooled(found, "random cos2")
    yield "cos2", cos2.median(), None
    controls = {
        "random direction": pooled(found, "drawn cos2").median(),
        "largest layer and time": max(u["cos2"].median() for e in TIMES for u in found[e].values()),
        f"first {TOP} eigenvectors, share of w": pooled(found, "top").median(),
        f"first {TOP} eigenvectors, times random": (pooled(found, "top") / (TOP * random)).median(),
        "share of units with cos2 of .5 or more": (cos2 >= 0.5).double().mean(),
        "Rayleigh quotient over the mean eigenvalue": pooled(found, "rayleigh").median(),
        "units left out, share": pooled(found, "left out").mean(),
    }
    if 0 in found:
        controls["at the start"] = pooled(found, "cos2", (0,)).median()
    names = {
        "uncentred": "C not centred",
        "mean gradient": "w and the mean gradient",
        "mean input": "eigenvector and mean input",
    }
    controls |= {name: of.median() for key, name in names.items() if len(of := pooled(found, key))}
    yield from ((f"control {name}", value, None) for name, value in controls.items())
    yield from _by_layer(found, {"cos2": "cos2", "energy": "top", "random": "random cos2"})


def _by_layer(found: Mapping[int, Layers], shown: Mapping[str, str]) -> Told:
    """Medians over a layer's units, by epoch; ``shown``: word -> quantity."""
    for epoch, layers in found.items():
        for layer, units in layers.items():
            for word, key in shown.items():
                if len(units[key]):
                    yield f"{word} of {layer}", units[key].median(), epoch


def _c2_rows(found: Mapping[int, Layers]) -> Told:
    yield "participation", pooled(found, "participation").median(), None
    controls = {
        "largest eigenvalue's share, D over C": pooled(found, "largest"),
        "participation, random direction": pooled(found, "random participation"),
    }
    if 0 in found:
        controls["participation, at the start"] = pooled(found, "participation", (0,))
    for name, values in controls.items():
        if len(values):
            yield f"control {name}", values.median(), None
    yield from _by_layer(found, {"participation": "participation"})


def _race_rows(family: str, race: Race) -> list[Row]:
    """Ratios of each arm at its best rate to plain weights at theirs, and the best rates."""
    epochs = {arm: np.asarray(value) for arm, value in arms.run(race, list(SEEDS)).items()}  # [rates, seeds]
    best = {arm: int(value.mean(1).argmin()) for arm, value in epochs.items()}
    rows: list[Row] = []
    for arm in ARMS:
        condition = f"{family}, {arm}" if arm != "plain" else f"{family}, both"
        fastest, plain = epochs[arm][best[arm]], epochs["plain"][best["plain"]]
        of_arm = "of plain weights" if arm == "plain" else "of this arm"
        ends = float(best[arm] in (0, len(race.rates) - 1))
        for seed in SEEDS:
            numbers = {
                f"control best learning rate {of_arm}": race.rates[best[arm]],
                f"control epochs {of_arm}": fastest[seed],
                f"control best learning rate {of_arm} is an end of the grid": ends,
            }
            if arm != "plain":
                numbers["ratio"] = fastest[seed] / plain[seed]
            rows += per_quantity(condition, seed, numbers)
            for rate, value in zip(race.rates, epochs[arm][:, seed], strict=True):
                rows.append(row(condition, f"epochs {of_arm}", seed, value, rate))
    return rows
