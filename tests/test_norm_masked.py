"""Masked layers: what a mask hides is no part of weight, norm and gradient, under every norm."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from norm_cases import NORMS
from torch import Tensor, nn

from wn.config import UserError, parse
from wn.grammar import PER_IMAGE
from wn.models.flow import MaskedConv2d, MaskedLinear
from wn.norm import NormalizedLayer, data_dependent_init, fold, normalize, properties

SHAPES = {"linear": (8, 5), "conv": (8, 5, 4, 3)}


def masked(kind: str, seed: int = 0) -> Any:
    """A layer of which a third is hidden, and one unit wholly."""
    torch.manual_seed(seed)
    layer: Any = MaskedLinear(5, 4) if kind == "linear" else MaskedConv2d(5, 4)
    layer.mask.copy_((torch.rand_like(layer.mask) > 0.3).float())
    layer.mask[2] = 0
    return layer.double()


def cut(kind: str) -> nn.Module:
    """The plain layer with zeros in the hidden places."""
    source = masked(kind)
    plain: Any = nn.Linear(5, 4) if kind == "linear" else nn.Conv2d(5, 4, 3, padding=1)
    plain.double()
    plain.weight.data.copy_(source.weight * source.mask)
    plain.bias.data.copy_(source.bias)
    return plain


def inputs(kind: str) -> Tensor:
    return torch.randn(SHAPES[kind], generator=torch.Generator().manual_seed(1), dtype=torch.float64)


UNMIXED = {n: c for n, c in NORMS.items() if c["statistics"] not in PER_IMAGE}
AS_ZEROS = [n for n, c in UNMIXED.items() if c["direction"] != "centered" and c["init"] != "arpit"]
"""Norms that cannot tell what is hidden from a zero: the others take a mean over what is not."""


@pytest.mark.parametrize("norm", AS_ZEROS)
@pytest.mark.parametrize("kind", SHAPES)
def test_a_masked_layer_is_the_plain_one_with_zeros(kind: str, norm: str) -> None:
    ours: Any = normalize(masked(kind), **NORMS[norm])
    plain: Any = normalize(cut(kind), **NORMS[norm])
    assert isinstance(ours, NormalizedLayer)
    x = inputs(kind)
    if NORMS[norm]["init"] == "data":
        torch.testing.assert_close(data_dependent_init(ours, x), data_dependent_init(plain, x))
    for mode in (True, False):
        y, expected = ours.train(mode)(x), plain.train(mode)(x)
        torch.testing.assert_close(y, expected)
    visible = ours.mask.flatten(1).any(1)  # of a unit that is zero, but not masked, the direction is drawn
    for name, norms in ours.unit_norms().items():
        torch.testing.assert_close(norms[visible], plain.unit_norms()[name][visible], msg=name)
    if properties(NORMS[norm]).foldable:
        torch.testing.assert_close(fold(ours.eval())(x), ours(x))
        assert type(fold(ours)) is type(cut(kind))


@pytest.mark.parametrize("kind", SHAPES)
def test_centred_weights_are_centred_over_what_is_seen(kind: str) -> None:
    layer: Any = normalize(masked(kind), direction="centered", gain="free")
    w, mask = layer.effective_weight().flatten(1), layer.mask.flatten(1)
    for i in (0, 1, 3):
        seen = layer.v.flatten(1)[i][mask[i] == 1]
        torch.testing.assert_close(w[i][mask[i] == 1], seen - seen.mean())  # g starts at its norm
    assert (w[mask == 0] == 0).all()


def test_statistics_that_would_mix_what_a_mask_keeps_apart_are_refused() -> None:
    for statistics in sorted(PER_IMAGE):
        norm: Any = {"gain": "free", "statistics": statistics}
        with pytest.raises(ValueError, match=f"^statistics={statistics} mix what the layer's mask keeps"):
            normalize(masked("linear"), direction="plain", **norm)
        with pytest.raises(
            UserError, match=rf"^norm\.statistics={statistics} .*write model\.posterior=diagonal$"
        ):
            parse({"model": {"name": "mlp_vae", "posterior": "iaf"}, "norm": norm})


@pytest.mark.parametrize("norm", UNMIXED)
@pytest.mark.parametrize("kind", SHAPES)
def test_what_is_hidden_never_moves(kind: str, norm: str) -> None:
    layer: Any = normalize(masked(kind), **NORMS[norm])
    (layer(inputs(kind)) ** 3).sum().backward()
    grad = layer.raw_weight.grad
    assert torch.isfinite(grad).all()
    assert (grad[layer.mask == 0] == 0).all()
    assert (grad[layer.mask == 1] != 0).any()


def test_a_mask_is_no_part_of_a_state() -> None:
    source = masked("linear")
    layer: Any = normalize(masked("linear", seed=5), direction="row", gain="free")
    assert set(layer.state_dict()) == {"v", "g", "bias"}
    layer.mask.copy_(source.mask)
    layer.load_state_dict(source.state_dict())
    torch.testing.assert_close(layer(inputs("linear")), source(inputs("linear")))


class Gate(nn.Linear):
    """A layer whose mask is of its outputs."""

    def __init__(self, units: int) -> None:
        super().__init__(units, units)
        self.register_buffer("mask", (torch.arange(units) % 2).float())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.mask  # type: ignore[operator]


def test_a_mask_of_another_shape_is_none_of_the_weight() -> None:
    gate, x = Gate(4), torch.randn(3, 4)
    with pytest.warns(UserWarning, match="a subclass of Linear"):
        model = normalize(nn.Sequential(nn.Linear(4, 4), gate), "weight_norm")
    assert model[1] is gate
    torch.testing.assert_close(model[1](x)[:, ::2], torch.zeros(3, 2))
    plain = nn.Linear(4, 4)
    plain.register_buffer("mask", torch.zeros(4))  # which nn.Linear itself does not look at
    torch.testing.assert_close(normalize(copy.deepcopy(plain), "weight_norm")(x), plain(x))
