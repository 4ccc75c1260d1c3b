"""Exact statements about a layer: gradients of v and g, the centred gradient, BN = WN on white inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wn.claims.measuring import Part, measurement
from wn.claims.rows import Row, per_quantity, row
from wn.norm import NormalizedLayer, fold, normalize, normalized_layers

SEEDS = range(5)
ERROR = "error"


@measurement("A1")
def gradients() -> Iterator[Part]:
    """Equations 3 and 4: the largest relative error of autograd's gradients, in two networks."""
    for name, network in {"mlp": mlp, "convnet": convnet}.items():
        yield Part(name, lambda name=name, network=network: _gradients(name, network))  # type: ignore[misc]


@measurement("A5")
def centred_gradient() -> Iterator[Part]:
    """Section 4: the gradient through mean-only batch normalisation is the gradient minus its batch mean."""
    yield Part("layers", lambda: [one for seed in SEEDS for one in _centred_rows(seed)])


@measurement("A6")
def one_layer() -> Iterator[Part]:
    """Section 2.2: on a whitened batch the layer with BN is that with WN, in value and gradient."""
    yield Part("layer", lambda: [one for seed in SEEDS for one in _one_layer_rows(seed)])


def mlp() -> tuple[nn.Module, Tensor]:
    """Three layers and their inputs ``[30, 8]``."""
    layers = [nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 5)]
    return nn.Sequential(*layers).double(), torch.randn(30, 8, dtype=torch.float64)


def convnet() -> tuple[nn.Module, Tensor]:
    """Two convolutions, a linear layer, and their inputs ``[30, 3, 8, 8]``."""
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2), nn.Tanh()]
    head = [nn.Flatten(), nn.Linear(36, 5)]
    return nn.Sequential(*layers, *head).double(), torch.randn(30, 3, 8, 8, dtype=torch.float64)


def _gradients(name: str, network: Callable[[], tuple[nn.Module, Tensor]]) -> list[Row]:
    rows: list[Row] = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        plain, x = network()
        error, along = gradient_errors(normalize(plain, direction="row", gain="free"), x)
        quantities = {ERROR: error, "control largest cosine of the plain weight's gradient and w": along}
        rows += per_quantity(name, seed, quantities)
    return rows


def gradient_errors(model: nn.Module, x: Tensor) -> tuple[float, float]:
    r"""Largest error of the gradients by v and g, and the largest |cosine| of the gradient of w and w.

    With G the gradient of w of the folded network, ``grad_g = G.v / ||v||`` and (equation 3)
    ``grad_v = g/||v|| G - g grad_g/||v||^2 v``, which is (equation 4) ``g/||v|| (I - w w'/||w||^2) G``.
    """
    with torch.no_grad():
        for layer in normalized_layers(model).values():  # ||w|| != ||v||, and gains of either sign
            layer.g.mul_(torch.randn_like(layer.g) * 2)
    y = torch.randint(5, (len(x),))
    plain = fold(model)
    for network in (model, plain):
        F.cross_entropy(network(x), y).backward()  # type: ignore[no-untyped-call]
    errors, along = [], []
    for name, layer in normalized_layers(model).items():
        folded = plain.get_submodule(name)
        tensors = (layer.raw_weight, layer.raw_weight.grad, folded.weight, folded.weight.grad)
        v, grad_v, w, G = (layer.unit_rows(t.detach()) for t in tensors if isinstance(t, Tensor))
        norm, g = v.norm(dim=1, keepdim=True), layer.gains().detach()[:, None]
        grad_g = (G * v).sum(1, keepdim=True) / norm
        third = g / norm * G - g * grad_g / norm**2 * v
        fourth = g / norm * (G - w * (w * G).sum(1, keepdim=True) / w.square().sum(1, keepdim=True))
        assert layer.g.grad is not None
        errors += [relative(layer.g.grad, grad_g[:, 0]), relative(grad_v, third), relative(grad_v, fourth)]
        errors.append(float(F.cosine_similarity(grad_v, v, eps=1e-300).abs().max()))
        along.append(float(F.cosine_similarity(G, w, eps=1e-300).abs().max()))
    return largest(errors), largest(along)


def largest(errors: Sequence[float]) -> float:
    """NaN where one is, which Python's ``max`` may pass over."""
    return float(torch.tensor(errors, dtype=torch.float64).max())


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest entry."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _centred_rows(seed: int) -> Iterator[Row]:
    torch.manual_seed(seed)
    linear, dense = nn.Linear(7, 5).double(), torch.randn(20, 7, dtype=torch.float64)
    conv, images = nn.Conv2d(3, 5, 3).double(), torch.randn(6, 3, 7, 7, dtype=torch.float64)
    for condition, layer, x in (("linear", linear, dense), ("convolution", conv, images)):
        centred = NormalizedLayer(layer, direction="plain", gain="none", statistics="mean_only")
        with_mean = NormalizedLayer(layer, direction="plain", gain="none")
        error, without = (centred_error(each, layer(x).detach()) for each in (centred, with_mean))
        numbers = {ERROR: error, "control the same error without statistics": without}
        yield from per_quantity(condition, seed, numbers)


def centred_error(layer: NormalizedLayer, t: Tensor) -> float:
    """Error of "gradient by t = gradient by y less its mean over batch and places", y the layer's output."""
    t = t.clone().requires_grad_()
    y = layer.normalize_activations(t, track=False)
    loss_of = y.detach().clone().requires_grad_()
    (by_y,) = torch.autograd.grad(_loss(loss_of), loss_of)
    (by_t,) = torch.autograd.grad(_loss(y), t)
    return relative(by_t, by_y - by_y.mean([d for d in range(t.dim()) if d != 1], keepdim=True))


def _loss(y: Tensor) -> Tensor:
    return (y**3 / 3 + y.exp()).sum()


def whitened(x: Tensor) -> Tensor:
    """The rows ``[n, d]`` with mean 0 and covariance I (divided by n); directions without variance go."""
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    kept = values > 1e-10 * values[-1]
    white: Tensor = x @ vectors[:, kept] / values[kept].sqrt()
    return white


def _one_layer_rows(seed: int) -> Iterator[Row]:
    torch.manual_seed(seed)
    x = torch.randn(60, 8, dtype=torch.float64).exp() @ torch.randn(8, 8, dtype=torch.float64)
    y, v, g, b = torch.randint(5, (60,)), torch.randn(5, 8).double(), torch.randn(5).double(), torch.randn(5)
    for word, inputs in (("", whitened(x)), ("control the same before whitening: ", x)):
        errors = one_layer_errors(inputs, y, v, g, b.double())
        for quantity, value in zip(("error of the output", "error of the gradient"), errors, strict=True):
            yield row("linear", word + quantity, seed, value)


def one_layer_errors(x: Tensor, y: Tensor, v: Tensor, g: Tensor, b: Tensor) -> tuple[float, float]:
    """Of BN's output and gradients (by v, g, b, of cross-entropy) against WN's: largest relative errors."""
    outputs, gradients = [], []
    for direction, statistics in (("plain", "batch"), ("row", "none")):
        layer = NormalizedLayer(
            nn.Linear(x.shape[1], len(v)).double(),
            direction=direction,  # type: ignore[arg-type]
            statistics=statistics,  # type: ignore[arg-type]
            eps=0.0,
        )
        parameters = (layer.raw_weight, layer.g, layer.bias)
        with torch.no_grad():
            for parameter, value in zip(parameters, (v, g, b), strict=True):
                assert parameter is not None
                parameter.copy_(value)
        output = layer(x)
        outputs.append(output.detach())
        gradients.append(torch.autograd.grad(F.cross_entropy(output, y), parameters))  # type: ignore[arg-type]
    errors = [relative(ours, theirs) for ours, theirs in zip(*gradients, strict=True)]
    return relative(*outputs), largest(errors)
