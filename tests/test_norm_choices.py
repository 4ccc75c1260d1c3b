"""The choices of a norm: every combination is covered or refused, and presets are named ones."""

from __future__ import annotations

from typing import Any

import norm_cases as cases
import pytest
from norm_cases import GRAMMAR, LAYERS, NORMS
from torch import nn

from wn.config import NormConfig, UserError, parse
from wn.config.compose import CONFIGS, compose
from wn.norm import NormalizedLayer
from wn.norm.kinds import KINDS
from wn.grammar import DEFAULTS
from wn.presets import PRESETS


def test_the_suite_covers_every_preset_and_kind() -> None:
    assert set(PRESETS) <= set(NORMS)
    assert len(NORMS) == sum(map(cases.has_meaning, GRAMMAR)) == 28  # no two have one label
    assert {kind for kind, *_ in LAYERS.values()} == set(KINDS)


def test_presets_are_those_of_the_configuration_files() -> None:
    assert {path.stem for path in (CONFIGS / "norm").glob("*.yaml")} == set(PRESETS)
    for name, preset in PRESETS.items():
        assert compose({"norm": name}).norm == NormConfig.model_validate(preset)
        assert compose({"norm": name}).norm.label == name
        assert NORMS[name] == {key: value for key, value in (DEFAULTS | preset).items() if key != "hold"}


def test_errors_name_the_mistake() -> None:
    layer = nn.Linear(2, 2)
    for choice, known in {
        "direction": "plain, row",
        "gain": "none, free, fixed",
        "hold": "free",
        "statistics": "none, batch, mean_only",
        "init": "default, data",
        "correction": "images, samples",
    }.items():
        with pytest.raises(ValueError, match=f"^{choice}='rwo': expected one of {known}$"):
            NormalizedLayer(layer, **{choice: "rwo"})
    with pytest.raises(TypeError, match="cannot normalise Bilinear"):
        NormalizedLayer(nn.Bilinear(2, 2, 2))
    with pytest.raises(TypeError, match="padded with zeros"):
        NormalizedLayer(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))


@pytest.mark.parametrize("norm", GRAMMAR, ids=lambda norm: "+".join(norm.values()))
def test_layer_and_configuration_refuse_the_same_combinations(norm: dict[str, Any]) -> None:
    if cases.has_meaning(norm):
        assert NormConfig(**norm).label in NORMS
        NormalizedLayer(nn.Linear(2, 2), **norm)
        return
    with pytest.raises(ValueError, match=r"^[^\n]*need gain='free' or 'fixed'$"):
        NormalizedLayer(nn.Linear(2, 2), **norm)
    with pytest.raises(UserError, match=r"^norm: [^\n]*add norm\.gain=free, or fixed$"):
        parse({"norm": norm})
