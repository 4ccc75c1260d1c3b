"""Covariances of a unit's gradients, and how a weight vector lies in them.

Shapes: ``[units, d]`` for weights and gradients of a layer, d the weights per unit, and ``[units, d, d]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from wn.data import Split
from wn.norm import fold, normalized_layers

CHUNK = 100  # images whose gradients are held at a time


class Moments(NamedTuple):
    """Of a layer's gradients by w, one an image."""

    w: Tensor  # [units, d]
    mean: Tensor  # [units, d]
    second: Tensor  # [units, d, d], not centred
    active: Tensor  # [units], images whose gradient is not zero

    @property
    def covariance(self) -> Tensor:
        return self.second - self.mean[:, :, None] * self.mean[:, None, :]


def moments(model: nn.Module, split: Split) -> dict[str, Moments]:
    """Moments of the gradients by w of each image's cross-entropy, of every normalised layer."""
    layers = normalized_layers(model)
    plain = fold(model).eval()
    totals: dict[str, list[Tensor]] = {}
    for gradients in _by_image(plain, split):
        for name, layer in layers.items():
            rows = torch.stack([layer.unit_rows(one) for one in gradients[f"{name}.weight"]], 1).double()
            sums = [rows.sum(1), rows.mT @ rows, (rows != 0).any(2).sum(1)]  # rows: [units, images, d]
            before = totals.get(name)
            totals[name] = [a + b for a, b in zip(before, sums, strict=True)] if before else sums
    n, found = len(split.x), {}
    for name, (total, second, active) in totals.items():
        w = layers[name].effective_weight().detach()
        found[name] = Moments(layers[name].unit_rows(w).double(), total / n, second / n, active)
    return found


def _by_image(plain: nn.Module, split: Split) -> Iterator[dict[str, Tensor]]:
    """Gradients of the parameters ``[images, ...]``, chunk by chunk."""
    parameters = {name: p.detach() for name, p in plain.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(plain, parameters, (x[None],)), y[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    for x, y in zip(torch.split(split.x, CHUNK), torch.split(split.y, CHUNK), strict=True):
        yield each(parameters, x, y)


def energies(vectors: Tensor, w: Tensor) -> Tensor:
    """Shares of ``||w||^2`` along orthonormal columns ``[units, d, k]``: ``[units, k]``."""
    direction = F.normalize(w, dim=1, eps=1e-300)
    return (vectors.mT @ direction[:, :, None])[:, :, 0].square()


def largest_first(c: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``[units, d]`` and eigenvectors in columns, from the largest down."""
    values, vectors = torch.linalg.eigh(c)
    return values.flip(1), vectors.flip(2)


def participation(c: Tensor, directions: int) -> Tensor:
    """``(sum s)^2 / (directions sum s^2)`` of c's eigenvalues s, c ``[units, d, d]``; the identity has 1."""
    return c.diagonal(dim1=1, dim2=2).sum(1).square() / (directions * c.square().sum((1, 2)))


def projected(c: Tensor, w: Tensor) -> Tensor:
    """``M C M`` with ``M = I - w w' / ||w||^2``."""
    direction = F.normalize(w, dim=1, eps=1e-300)
    m = torch.eye(w.shape[1], dtype=w.dtype) - direction[:, :, None] * direction[:, None, :]
    return m @ c @ m


class Steps(NamedTuple):
    """A layer's gradients by w and by v in successive steps, ``[units, steps, d]``, and its mean w."""

    w: Tensor
    by_w: Tensor
    by_v: Tensor


def successive(
    model: nn.Module, split: Split, steps: int, batch: int, lr: float, seed: int
) -> dict[str, Steps]:
    r"""Gradients of steps of plain gradient descent, which change the network, one with weight normalisation.

    That of w is had from those of v and g, equation 3 the other way round:
    ``grad_w = ||v||/g grad_v + grad_g v/||v||``.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = normalized_layers(model)
    kept: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in layers}
    parameters = list(model.parameters())
    for _ in range(steps):
        chosen = torch.randint(len(split.x), (batch,), generator=generator)
        loss = F.cross_entropy(model(split.x[chosen]), split.y[chosen])
        gradients = dict(zip(map(id, parameters), torch.autograd.grad(loss, parameters), strict=True))
        for name, layer in layers.items():
            v = layer.unit_rows(layer.raw_weight.detach())
            by_v = layer.unit_rows(gradients[id(layer.raw_weight)])
            norm, g = v.norm(dim=1, keepdim=True), layer.g.detach()[:, None]
            by_w = norm / g * by_v + gradients[id(layer.g)][:, None] * v / norm
            kept[name].append((g * v / norm, by_w, by_v))
        with torch.no_grad():
            for parameter in parameters:
                parameter.sub_(lr * gradients[id(parameter)])
    stacked = {name: [torch.stack(t, 1) for t in zip(*each, strict=True)] for name, each in kept.items()}
    return {name: Steps(w.mean(1), by_w, by_v) for name, (w, by_w, by_v) in stacked.items()}


def participation_of(values: Tensor, directions: int) -> Tensor:
    """The same from the eigenvalues ``[units, k]``."""
    return values.sum(1).square() / (directions * values.square().sum(1))


def centred_svd(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows ``[units, steps, d]``: eigenvalues of their covariance, from the largest, and eigenvectors."""
    _, s, vh = torch.linalg.svd(rows - rows.mean(1, keepdim=True), full_matrices=False)
    return s.square() / rows.shape[1], vh.mT


def centred_svdvals(rows: Tensor) -> Tensor:
    """The eigenvalues alone."""
    s = torch.linalg.svdvals(rows - rows.mean(1, keepdim=True))
    values: Tensor = s.square() / rows.shape[1]
    return values
