"""The choices of a norm: every combination is covered or refused, and presets are named ones."""

from __future__ import annotations

from typing import Any

import norm_cases as cases
import pytest
import torch
from norm_cases import GRAMMAR, LAYERS, NORMS
from torch import nn

from wn.config import NormConfig, UserError, parse
from wn.grammar import VALUES, mistake
from wn.norm import NormalizedLayer
from wn.norm.kinds import KINDS
from wn.presets import PRESETS, label


def test_the_suite_covers_every_preset_value_and_kind() -> None:
    assert set(PRESETS) <= set(NORMS)
    for choice in cases.CHOICES:
        assert {norm[choice] for norm in NORMS.values()} == set(VALUES[choice])
    assert {kind for kind, *_ in LAYERS.values()} == set(KINDS)


def test_no_two_norms_have_one_label() -> None:
    meaningful = [norm for norm in GRAMMAR if mistake(norm) is None]
    assert len({label(norm) for norm in meaningful}) == len(meaningful) > 3000


def test_errors_name_the_mistake() -> None:
    layer = nn.Linear(2, 2)
    for choice, values in VALUES.items():
        with pytest.raises(ValueError, match=f"^{choice}='rwo': expected one of {', '.join(values)}$"):
            NormalizedLayer(layer, **{choice: "rwo"})
    with pytest.raises(TypeError, match="cannot normalise Bilinear"):
        NormalizedLayer(nn.Bilinear(2, 2, 2))
    with pytest.raises(TypeError, match="padded with zeros"):
        NormalizedLayer(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))


REFUSED = {
    "direction=row gain=none": "add norm.gain=free, or fixed, or a norm.scale",
    "direction=spectral gain=none statistics=mean_only": "add norm.gain=free, or fixed, or a norm.scale",
    "statistics=batch": "add norm.gain=free, or fixed",
    "statistics=dyt direction=row scale=one": "add norm.gain=free, or fixed",
    "scale=one gain=free": "add norm.direction=row, or leave norm.scale out",
    "gain=fixed_layer": "goes with norm.direction=row and no norm.scale",
    "gain=fixed_layer direction=row statistics=layer": "goes with norm.direction=row and no norm.scale",
    "hold=unit gain=free": "add norm.direction=row",
    "statistics=dyt gain=free init=data": "leave norm.init out",
    "direction=row scale=one init=data": "write norm.gain=free, or fixed",
    "direction=row gain=fixed_layer init=data": "write norm.gain=free, or fixed",
    "init=arpit": "add norm.gain=free, without norm.scale",
    "direction=row gain=free statistics=group init=arpit": "leave one of them out",
}
"""What cannot be meant, and how its message ends."""


@pytest.mark.parametrize("norm", REFUSED)
def test_what_makes_no_sense_is_refused_in_one_line_that_says_what_would(norm: str) -> None:
    choices: Any = dict(choice.split("=") for choice in norm.split())
    with pytest.raises(UserError, match=rf"^norm: [^\n]*{REFUSED[norm]}$"):
        parse({"norm": choices})
    with pytest.raises(ValueError, match=rf"^[^\n]*{REFUSED[norm].replace('norm.', '')}$"):
        NormalizedLayer(nn.Linear(2, 2), **({"direction": "plain", "gain": "none"} | choices))


def test_layer_and_configuration_refuse_the_same_combinations() -> None:
    """And what is accepted gives a finite output with finite gradients, for any three choices' values."""
    torch.manual_seed(0)
    x = torch.randn(6, 4)
    for norm in GRAMMAR[::11]:  # divides no number of values
        choices: Any = norm
        if mistake(norm):
            with pytest.raises(ValueError, match=r"norm|add|leave|write|goes"):
                NormalizedLayer(nn.Linear(4, 8), **choices)
            with pytest.raises(UserError):
                parse({"norm": norm})
        else:
            assert NormConfig(**choices).label
            layer = NormalizedLayer(nn.Linear(4, 8), activation="elu", **choices)
            layer(x).square().sum().backward()
            assert all(bool(p.grad.isfinite().all()) for p in layer.parameters() if p.grad is not None)
