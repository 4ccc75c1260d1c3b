"""Places in a model where statistics are taken, and layers that stay plain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from norm_cases import NORMS, PRESET_NAMES
from torch import Tensor, nn

from wn.norm import NormSite, data_dependent_init, normalize


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.site, self.linear, self.head = NormSite(4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.head.is_output = True

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.linear(self.site(x)))


@pytest.mark.parametrize("norm", PRESET_NAMES)
def test_a_model_with_sites_has_its_statistics_there_alone(norm: str) -> None:
    choices = {**NORMS[norm], "output_layers": False, "activation": "relu"}
    model: Any = normalize(Block(), **choices)
    statistics = NORMS[norm]["statistics"]
    assert (model.site.statistics if statistics != "none" else "none") == statistics
    assert model.linear.statistics == model.head.statistics == "none"
    assert (model.head.direction, model.head.gain) == ("plain", "none")
    assert model.linear.direction == NORMS[norm]["direction"]
    x = torch.randn(6, 5, 4)
    data_dependent_init(model, x)
    model(x).square().sum().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused == []


def test_a_site_with_layer_statistics_is_torchs() -> None:
    model: Any = normalize(Block(), direction="plain", gain="free", statistics="layer", eps=1e-5)
    x = torch.randn(6, 5, 4)
    torch.testing.assert_close(model.site(x), nn.LayerNorm(4)(x))
