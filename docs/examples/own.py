"""A norm, a model and a data set of one's own: ``plugins=[docs/examples/own.py]``."""

import torch
from torch import nn

from wn import plugins
from wn.norm import NormalizedLayer


@plugins.norm("power_norm", invariant="unit", foldable=True)
class PowerNorm(NormalizedLayer):
    """Weight normalisation of v|v|, which keeps small weights small (compare Schwarz et al., 2021)."""

    def effective_weight(self):
        u = self.v * self.v.abs()
        w = u.clone()
        self.scale_units(w, self.g / self.unit_norm(u))
        return w


@plugins.model("bottleneck")
def bottleneck(shape, classes, width: int = 64, middle: int = 8):
    inputs = shape[0] * shape[1] * shape[2]
    hidden = nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, middle), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(middle, classes))


@plugins.data("spirals")
def spirals(images=1500, arms=3):
    draw = torch.Generator().manual_seed(0)  # the same points each time
    y = torch.randint(arms, (images,), generator=draw)
    radius = torch.rand(images, generator=draw)
    angle = 4 * radius + 2 * torch.pi * y / arms + 0.2 * torch.randn(images, generator=draw)
    x = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return (x[:1200], y[:1200]), (x[1200:], y[1200:])
