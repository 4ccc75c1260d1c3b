"""Models: what is drawn from a seed, by which scheme, and what the layers are called."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import pytest
import scipy.stats
import torch
from torch import nn

from wn import models
from wn.config import MLPConfig, NormConfig, UserError
from wn.models import build
from wn.models.noise import Dropout, GaussianNoise
from wn.norm import normalized_layers
from wn.presets import PRESETS

NORMS = [NormConfig.model_validate(preset) for preset in PRESETS.values()]
NOISY = MLPConfig(widths=(12, 7), noise=0.1, dropout=0.2)


def make(
    model: MLPConfig = NOISY, norm: NormConfig = NORMS[0], seed: int = 0, shape: Any = (1, 3, 4)
) -> nn.Module:
    return build(model, norm, shape, classes=5, seed=seed)


def drawn(model: nn.Module) -> dict[str, list[Any]]:
    """Everything that was drawn: v or weights, biases, and the keys of the noise."""
    layers = normalized_layers(model)
    found = {name: [layer.raw_weight.tolist(), layer.bias.tolist()] for name, layer in layers.items()}  # type: ignore[union-attr]
    return found | {name: [int(b)] for name, b in model.named_buffers() if name.endswith(".key")}


def test_the_draw_is_equal_under_every_norm() -> None:
    kept = [norm for norm in NORMS if norm.init != "arpit" and norm.hold != "unit"]  # others rescale v
    draws = [drawn(make(norm=norm)) for norm in kept]
    assert len(draws[0]) == 3 + 3  # layers, and layers of noise
    assert all(draw == draws[0] for draw in draws)


def test_the_draw_follows_seed_model_and_shape() -> None:
    first = drawn(make())
    assert drawn(make()) == first
    others = [
        make(seed=1),
        make(MLPConfig(widths=(12, 8), noise=0.1, dropout=0.2)),
        make(MLPConfig(widths=(12, 7), noise=0.1, dropout=0.2, weight_init="paper")),
        make(shape=(13,)),
    ]
    assert all(drawn(other)["hidden1"] != first["hidden1"] for other in others if other is not others[1])
    assert all(drawn(other)["hidden2"] != first["hidden2"] for other in others)


def test_strength_and_activation_decide_no_draw() -> None:
    """So that a comparison of strengths starts from one point."""
    first = drawn(make())
    assert drawn(make(MLPConfig(widths=(12, 7), noise=0.3, dropout=0.1, activation="tanh"))) == first


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = drawn(make())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert drawn(make()) == first


def test_units_that_are_zero_get_the_seed_s_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    def zero_head(config: Any, shape: Any, classes: int) -> nn.Module:
        layer = nn.Linear(math.prod(shape), classes)
        nn.init.zeros_(layer.weight)
        return nn.Sequential(nn.Flatten(), layer)

    monkeypatch.setitem(models.BUILDERS, "mlp", zero_head)
    norm = NormConfig.model_validate(PRESETS["weight_norm"])
    first = drawn(make(norm=norm))
    torch.randn(7)
    assert drawn(make(norm=norm)) == first


@pytest.mark.gpu
def test_the_generator_of_cuda_is_not_moved() -> None:
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state()
    make()
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize("scheme", ["he", "paper", 0.1, 1])
def test_weights_are_normal_with_the_named_deviation(scheme: Any) -> None:
    model = make(MLPConfig(widths=(300, 200), weight_init=scheme), shape=(1, 20, 20))
    for layer in normalized_layers(model).values():
        weight = layer.raw_weight.detach().double().flatten()
        std = {"he": (2 / layer.raw_weight.shape[1]) ** 0.5, "paper": 0.05}.get(scheme, scheme)
        n = weight.numel()
        assert float(weight.std()) == pytest.approx(std, rel=5 / (2 * n) ** 0.5)
        assert abs(float(weight.mean())) < 5 * std / n**0.5
        assert scipy.stats.kstest(weight.numpy() / std, "norm").pvalue > 1e-4
        assert layer.bias is not None
        assert bool((layer.bias == 0).all())


def test_two_layers_of_noise_have_streams_of_their_own() -> None:
    for seed in range(3):
        keys = [int(m.key) for m in make(seed=seed).modules() if isinstance(m, GaussianNoise | Dropout)]
        assert len(set(keys)) == 3
    model = make(MLPConfig(widths=(50, 50), dropout=0.5))
    masks = [m(torch.ones(100, 50)) != 0 for m in model.modules() if isinstance(m, Dropout)]
    assert abs(float((masks[0] == masks[1]).double().mean()) - 0.5) < 5 * 0.5 / 5000**0.5


def test_parameters_have_readable_names() -> None:
    layers, parts = ("hidden1", "hidden2", "logits"), ("v", "g", "bias")
    names = [name for name, _ in make(norm=NormConfig(direction="row", gain="free")).named_parameters()]
    assert sorted(names) == sorted(f"{a}.{b}" for a, b in itertools.product(layers, parts))
    plain = [name for name, _ in make(norm=NormConfig()).named_parameters()]
    assert sorted(plain) == sorted(f"{a}.{b}" for a, b in itertools.product(layers, ("weight", "bias")))


def test_layers_come_in_the_order_of_the_function() -> None:
    names = [name for name, _ in make().named_children()]
    hidden = [f"{part}{i}" for i in (1, 2) for part in ("hidden", "activation", "dropout")]
    assert names == ["flatten", "noise", *hidden, "logits"]
    assert not [m for m in make(MLPConfig()).modules() if isinstance(m, GaussianNoise | Dropout)]


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", torch.relu),
        ("tanh", torch.tanh),
        ("elu", nn.functional.elu),
        ("leaky_relu", lambda x: torch.maximum(x, 0.1 * x)),  # the slope of the authors' code
    ],
)
@pytest.mark.parametrize(
    "norm", [NormConfig(), NormConfig(direction="row", gain="free")], ids=lambda norm: norm.label
)
def test_the_function_is_an_mlp(activation: str, function: Any, norm: NormConfig) -> None:
    """By hand, and weight normalisation starts from the same function as the plain weights."""
    model = make(MLPConfig(widths=(12, 7), activation=activation), norm).eval()
    x = torch.randn(6, 1, 3, 4)
    hidden = x.reshape(6, 12)
    *inner, last = (layer.raw_weight.T for layer in normalized_layers(model).values())
    for weight in inner:
        hidden = function(hidden @ weight)
    torch.testing.assert_close(model(x), hidden @ last)


def test_without_hidden_layers_it_is_logistic_regression() -> None:
    model = make(MLPConfig(widths=()))
    assert list(normalized_layers(model)) == ["logits"]
    assert model(torch.randn(6, 1, 3, 4)).shape == (6, 5)


DRAWING = [
    nn.Dropout(0.5),
    nn.Dropout2d(0.1),
    nn.AlphaDropout(0.1),
    nn.FeatureAlphaDropout(0.1),
    nn.RReLU(),
    nn.FractionalMaxPool2d(2, 3),
    nn.MultiheadAttention(8, 2, dropout=0.1),
    nn.TransformerEncoderLayer(8, 2),
    nn.LSTM(8, 8, 2, dropout=0.1),
]
QUIET = [
    nn.Dropout(0.0),
    nn.MultiheadAttention(8, 2),
    nn.LSTM(8, 8),
    nn.TransformerEncoderLayer(8, 2, dropout=0.0),
]


@pytest.mark.filterwarnings("ignore:not normalised")
@pytest.mark.parametrize("layer", DRAWING + QUIET, ids=lambda layer: type(layer).__name__)
def test_a_model_that_draws_from_torch_s_generator_is_refused(
    monkeypatch: pytest.MonkeyPatch, layer: nn.Module
) -> None:
    own = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Sequential(layer))
    monkeypatch.setitem(models.BUILDERS, "mlp", lambda *_: own)
    make = functools.partial(models.build, MLPConfig(), NormConfig(), (1, 8, 8), 10, 0)
    if layer in QUIET:
        make()
    else:
        with pytest.raises(UserError, match=r"model=mlp: 2\.0.* draws other numbers .*noise.Dropout"):
            make()
