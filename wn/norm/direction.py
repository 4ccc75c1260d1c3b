"""The weight ``w = scale * gain * direction(v)`` of a layer, its norms, and what holds ||v||."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from wn.norm.statistics import Activations
from wn.norm.weight import full_precision, largest, nonzero, normalized, power_of_two, wide


class Reparameterized(Activations):
    """Base of a layer whose weight is a direction with a gain."""

    v: nn.Parameter
    mask: Tensor | None
    held: Tensor
    u: Tensor
    direction: str
    hold: str
    constant: float
    gain_on_weight: bool
    transposed: bool
    options: dict[str, Any]

    @property
    def raw_weight(self) -> nn.Parameter:
        """``v``, or the plain ``weight``: the trained tensor."""
        return self._parameters[self.raw_name]  # type: ignore[return-value]

    @property
    def weight(self) -> Tensor:
        """The trained tensor if the direction is plain; else w, for code that reads a layer's weight.

        Where it is w it is computed anew each time: write to v and the gain instead.
        """
        if self.direction == "plain":
            return self.raw_weight
        if isinstance(self.v, fx.Proxy):  # type: ignore[unreachable]
            raise TypeError(
                "code that reads the weight of a NormalizedLayer cannot be traced: trace fold(model)"
            )
        return self.effective_weight()

    @property
    def raw_name(self) -> str:
        return "weight" if self.direction == "plain" else "v"

    def masked(self, w: Tensor) -> Tensor:
        return w if self.mask is None else w * self.mask

    @property
    def fan_in(self) -> int:
        """Weights per unit."""
        return self.raw_weight.numel() // self.units

    @property
    def units(self) -> int:
        shape = self.raw_weight.shape
        return shape[1] * self.options["groups"] if self.transposed else shape[0]

    def effective_weight(self) -> Tensor:
        raw = self.masked(self.raw_weight)
        if self.direction == "plain" and not self.gain_on_weight:
            return raw
        grouped, dims = self._units(raw)
        gain: Tensor | float = self.constant
        if self.gain_on_weight:
            gains = self.gains() if self.constant == 1 else self.gains() * self.constant
            gain = self._like_units(gains, raw)
        match self.direction:
            case "plain":
                w = gain * grouped
            case "row":
                w = normalized(grouped, dims, gain)
            case "centered":
                w = normalized(self._centered(grouped, dims), dims, gain)
            case "layer":
                w = normalized(grouped, list(range(grouped.dim())), gain)
            case _:
                scaled = raw / power_of_two(raw)
                w = gain * self._units(scaled)[0] / nonzero(self._spectral_norm(scaled))
        return w.reshape(raw.shape)

    def _centered(self, grouped: Tensor, dims: list[int]) -> Tensor:
        if self.mask is None:
            return grouped - grouped.mean(dims, keepdim=True)
        mask = self._units(self.mask)[0]  # entries that are masked take no part in the mean
        return (grouped - grouped.sum(dims, keepdim=True) / nonzero(mask.sum(dims, keepdim=True))) * mask

    def unit_rows(self, w: Tensor) -> Tensor:
        """``w`` as ``[units, weights per unit]``."""
        grouped, dims = self._units(w)
        units = [d for d in range(grouped.dim()) if d not in dims]
        return grouped.permute(*units, *dims).reshape(self.units, -1)

    def _spectral_norm(self, w: Tensor) -> Tensor:
        """``||V^T u||``, sigma_1(V) once u is the left singular vector; u is no part of the graph."""
        u = self.u.clone()  # the gradient needs it, and the next pass moves it
        with full_precision(w.device):
            norm: Tensor = torch.linalg.vector_norm(u.to(wide(w)) @ self.unit_rows(w).to(wide(w)))
        return norm.to(w.dtype)

    @torch.no_grad()
    def iterate_power(self) -> None:
        """One step of the power iteration for u (Miyato et al., 2018, algorithm 1)."""
        raw = self.masked(self.raw_weight)
        matrix = self.unit_rows(raw / power_of_two(raw)).to(wide(raw))
        with full_precision(raw.device):
            u = matrix @ (self.u.to(wide(raw)) @ matrix)
        norm = torch.linalg.vector_norm(u)
        self.u.copy_(torch.where(norm > 0, u / nonzero(norm), self.u))  # from 0 it would find no way back

    def direction_norm(self) -> Tensor:
        """What v is divided by, ``[units]``, equal if the norm is the layer's; of plain weights ||v||."""
        raw = self.masked(self.raw_weight.detach())
        if self.direction == "layer":
            return self.frobenius_norm()
        if self.direction == "spectral":
            scale = power_of_two(raw)
            return (self._spectral_norm(raw / scale) * scale).flatten().expand(self.units).clone()
        if self.direction == "centered":
            grouped, dims = self._units(raw)
            return self.unit_norm(self._centered(grouped, dims).reshape(raw.shape))
        return self.unit_norm(raw)

    @property
    def layerwise(self) -> bool:
        """Whether the direction is that of the matrix as a whole."""
        return self.direction in ("layer", "spectral")

    def projected(self) -> Tensor:
        """v with the norm that ``hold`` wants: of the start, or a root mean square of 1, masked entries 0."""
        norm = self.held_norm()
        weights = self.raw_weight.numel() if self.layerwise else self.fan_in
        wanted = self.held if self.hold == "start" else torch.full_like(norm, math.sqrt(weights))
        v = self.raw_weight.detach().clone()
        known = (norm > 0) & (wanted > 0)  # a unit that starts at 0 has no norm to hold, and would stay there
        self.scale_units(v, torch.where(known, wanted / nonzero(norm), torch.ones_like(norm)))
        return v

    def held_norm(self) -> Tensor:
        """The norm ``[units]`` that ``hold`` is about: of the matrix if the direction is the matrix's."""
        return self.frobenius_norm() if self.layerwise else self.direction_norm()

    def frobenius_norm(self) -> Tensor:
        """``||V||_F``, ``[units]``, all equal."""
        norms = self.unit_norm(self.masked(self.raw_weight.detach()))
        scale = power_of_two(norms)
        square = (norms / scale).square().sum(dtype=wide(norms))
        return (square.sqrt() * scale).to(norms.dtype).expand(self.units).clone()

    def unit_norms(self, w: Tensor | None = None) -> dict[str, Tensor]:
        """``w_norm``; with a gain ``g``; where v is not w ``v_norm``, what v is divided by; and there
        ``ratio``, the factor from v to w (for rows g/||v||). All ``[units]``; ``w`` is the effective weight,
        if already computed.
        """
        norms = {"w_norm": self.unit_norm(self.effective_weight() if w is None else w)}
        if self.has_gain:
            norms["g"] = self.gains()
        if self.direction != "plain" or self.gain_on_weight:
            norms["v_norm"] = self.direction_norm()
        if self.direction != "plain":
            gains = self.gains() if self.gain_on_weight else torch.ones_like(norms["v_norm"])
            norms["ratio"] = self.constant * gains / nonzero(norms["v_norm"])
        return norms

    def _units(self, w: Tensor) -> tuple[Tensor, list[int]]:
        """A view of ``w`` with unit axes of its own, and the axes that make up one unit.

        A transposed convolution stores ``[in, out/groups, ...]``, input channels of group after group: viewed
        as ``[groups, in/groups, out/groups, ...]``, axes 0 and 2 are the units.
        """
        if not self.transposed:
            return w, list(range(1, w.dim()))
        grouped = w.view(self.options["groups"], -1, *w.shape[1:])
        return grouped, [d for d in range(grouped.dim()) if d not in (0, 2)]

    def _like_units(self, per_unit: Tensor, w: Tensor) -> Tensor:
        """``[units]`` viewed so that it broadcasts against the unit view of ``w``."""
        grouped, dims = self._units(w)
        return per_unit.reshape([1 if d in dims else s for d, s in enumerate(grouped.shape)])

    def scale_units(self, w: Tensor, factor: Tensor) -> None:
        """Multiply each unit of ``w`` (of the weight's shape) by its ``factor`` ``[units]``, in place."""
        self._units(w)[0].mul_(self._like_units(factor, w))

    def unit_norm(self, w: Tensor) -> Tensor:
        """``||w||`` per output unit, ``[units]``, without overflow."""
        grouped, dims = self._units(w)
        scale = largest(grouped, dims)
        norm: Tensor = torch.linalg.vector_norm(grouped / scale, 2, dims, True, dtype=wide(w)) * scale
        return norm.flatten().to(w.dtype)

    @torch.no_grad()
    def _draw_zero_units(self) -> Tensor:
        """Give units that start at zero a random direction; which they are, ``[units]``.

        The head of a ViT starts so, and the last layer of a residual branch. With v = 0 and g = 0 neither
        would get a gradient, ever. So v is drawn from N(0, 1/fan_in): the same function, and g learns.
        """
        v = self.raw_weight
        grouped, dims = self._units(v)
        size = (self._centered(grouped, dims) if self.direction == "centered" else grouped).abs()
        zero = size.amax(dims, keepdim=True) == 0
        if self.layerwise:
            zero = zero.all().expand_as(zero)
        if self.mask is not None:  # what is masked as a whole stays zero
            zero = zero & (self._units(self.mask)[0].amax(dims, keepdim=True) > 0)
        if not v.is_meta and bool(zero.any()):
            drawn = torch.randn_like(v) / math.sqrt(self.fan_in)
            grouped.copy_(torch.where(zero, self._units(drawn)[0], grouped))
        return zero.flatten()


@torch.no_grad()
def project_(model: nn.Module) -> None:
    """Put ||v|| back where ``hold`` wants it, in every layer of a model: after each ``optimizer.step()``.

    The function of a layer whose direction is normalised stays the same, but not that of another module
    that shares v. It does not run within a forward pass, which leaves v alone.
    """
    for layer in held_layers(model).values():
        layer.raw_weight.copy_(layer.projected())


def held_layers(model: nn.Module) -> dict[str, Reparameterized]:
    """By name: those whose ||v|| is held."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Reparameterized)}
    return {name: layer for name, layer in layers.items() if layer.hold != "free"}
