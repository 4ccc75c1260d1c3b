"""Statistics of activations: what is taken off an output and divided out, over the batch or per image."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from wn.grammar import SCALING, TRACKED

DYT_ALPHA = 0.5  # Zhu et al. (2025), section 5: the start of alpha

# Ioffe (2017), section 4, starts as batch normalisation for 5,000 steps, then opens d up to 5 by step 25,000
# and r up to 3 by step 40,000. Here as shares of training, of 100,000 steps: a short run would end before.
RENORM_START, RENORM_D, RENORM_R = 0.05, (0.25, 5.0), (0.40, 3.0)


class Activations(nn.Module):
    r"""Base of what normalises activations t ``[batch, ..., units]``, or ``[batch, units, ...]``.

    With a gain g and bias b ``[units]``, and means over the axes named::

        mean_only      t - mean(t) + b                       batch and places     (section 4)
        batch          g (t - mean) / sqrt(var + eps) + b    batch and places     (Ioffe & Szegedy 2015)
        batch_renorm   g ((t - mean) / sigma r + d) + b      batch and places     (Ioffe 2017)
        layer          g (t - mean) / sqrt(var + eps) + b    units and places     (Ba et al. 2016)
        group          the same                              group and places     (Wu & He 2018)
        instance       the same                              places               (Ulyanov et al. 2016)
        rms            g t / sqrt(mean(t^2) + eps) + b       units                (Zhang & Sennrich 2019)
        instance_rms   the same                              places               (see docs/NORMS.md)
        dyt            g tanh(alpha t) + b                                        (Zhu et al. 2025)

    A dense layer has no places: its statistics are taken over units (in sequences, of each token), and
    instance statistics are those of the layer. For batch_renorm, ``r = clip(sigma / s, 1/r_max, r_max)``
    and ``d = clip((mean - m) / s, -d_max, d_max)``, with running averages m and s, carry no gradient.
    """

    statistics: str
    gain: str
    group_count: int
    eps: float
    momentum: float
    correction: str
    dense: bool
    phase: Literal["normal", "initialize", "pass"]
    g: Tensor
    s: nn.Parameter
    alpha: nn.Parameter
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor
    progress: Tensor

    def _register(self, start: Tensor) -> None:
        """Gain and buffers of these choices; ``start``: the gains ``[units]`` to start from."""
        if self.gain in ("exp", "exp3"):
            self.s = nn.Parameter(self._exponent(start.masked_fill(start == 0, 1)))
        elif self.gain == "free":
            self.g = nn.Parameter(start)
        elif self.gain != "none":
            self.register_buffer("g", start)
        if self.statistics == "dyt":
            self.alpha = nn.Parameter(torch.full_like(start[0], DYT_ALPHA))
        if self.statistics in TRACKED:
            self.register_buffer("running_mean", torch.zeros_like(start))
        if self.statistics in ("batch", "batch_renorm"):
            self.register_buffer("running_var", torch.ones_like(start))
        if self.statistics == "batch_renorm":
            self.register_buffer("progress", torch.ones_like(start[0]))

    @property
    def has_gain(self) -> bool:
        return self.gain != "none"

    def gains(self) -> Tensor:
        """g ``[units]``; of exponential gains e^s, or e^{3s}."""
        if self.gain in ("exp", "exp3"):
            return torch.exp(self.s * 3 if self.gain == "exp3" else self.s)
        return self.g

    @torch.no_grad()
    def divide_gains(self, sigma: Tensor) -> None:
        if self.gain in ("exp", "exp3"):
            self.s.sub_(self._exponent(sigma))
        else:
            self.g.div_(sigma)

    @torch.no_grad()
    def set_gains(self, gains: Tensor) -> None:
        """Put the gains ``[units]`` there; an exponential one cannot be 0 and becomes 1."""
        if self.gain in ("exp", "exp3"):
            self.s.copy_(self._exponent(gains.masked_fill(gains == 0, 1)))
        else:
            self.g.copy_(gains)

    def _exponent(self, gains: Tensor) -> Tensor:
        return gains.log() / (3 if self.gain == "exp3" else 1)

    def normalize_activations(self, t: Tensor, track: bool) -> Tensor:
        """The table above; ``track``: whether running averages take in this batch."""
        if self.statistics == "none":
            return t
        if t.numel() == 0:  # nothing to take statistics of; gain and bias still get a gradient, of zeros
            return self._affine(t)
        match self.statistics:
            case "mean_only":
                return self._center(t, track)
            case "batch":
                return self._standardize(t, track)
            case "batch_renorm":
                return self._renormalize(t, track)
            case "dyt":
                return self._affine(torch.tanh(self.alpha.to(t.dtype) * t))
            case "rms" | "instance_rms":
                return self._rms(t)
        return self._per_image(t)

    def _center(self, t: Tensor, track: bool) -> Tensor:
        mean = self._mean(t) if self.training else self.running_mean
        if track:
            self._average(self.running_mean, mean)
        shift = -mean if self.bias is None else self.bias - mean
        return t + self._broadcast(shift, t).to(t.dtype)

    def _mean(self, t: Tensor) -> Tensor:
        """The mean per unit, in the parameters' precision.

        Straight-through: the value is a fused float32 mean, the gradient comes from a sum of zeros in t's
        own type. That is one pass over a bfloat16 t; a mean of a widened t takes four.
        """
        dims = self._sample_dims(t)
        mean = t.detach().mean(dims, dtype=self.running_mean.dtype)
        return mean + (t - t.detach()).sum(dims) * (mean.numel() / t.numel())

    def _standardize(self, t: Tensor, track: bool) -> Tensor:
        """Batch normalisation by torch's fused kernel, whose statistics are float32 for a bfloat16 t."""
        samples, gain = t.flatten(0, -2) if self.dense else t, self.gains()
        if t.dtype != gain.dtype and torch._C._functorch.is_batchedtensor(t):
            samples = samples.to(gain.dtype)  # torch's vmap rule would compute statistics in bfloat16
        # F.batch_norm would not return the mean and variance, which the authors' n/(n-1) is applied to.
        fixed_mean, fixed_var = (None, None) if self.training else (self.running_mean, self.running_var)
        y, mean, inverse_root = torch.native_batch_norm(
            samples, gain, self.bias, fixed_mean, fixed_var, self.training, 0.0, self.eps
        )
        if track:
            self._track(t, mean, inverse_root**-2 - self.eps)
        return y.view_as(t).to(t.dtype)

    def _renormalize(self, t: Tensor, track: bool) -> Tensor:
        wide, dims = t.to(self.running_mean.dtype), self._sample_dims(t)
        running_sigma = torch.sqrt(self.running_var + self.eps)
        if self.training:
            variance, mean = torch.var_mean(wide, dims, correction=0)
            sigma = torch.sqrt(variance + self.eps)
            r_max, d_max = (
                1 + (RENORM_R[1] - 1) * self._opened(RENORM_R[0]),
                RENORM_D[1] * self._opened(RENORM_D[0]),
            )
            r = torch.minimum(torch.maximum(sigma / running_sigma, 1 / r_max), r_max).detach()
            d = (mean - self.running_mean) / running_sigma
            d = torch.minimum(torch.maximum(d, -d_max), d_max).detach()
            scale, shift = r / sigma, d - mean * (r / sigma)
            if track:
                self._track(t, mean, variance)
        else:
            scale, shift = 1 / running_sigma, -self.running_mean / running_sigma
        return self._affine((wide * self._broadcast(scale, t) + self._broadcast(shift, t)).to(t.dtype))

    def _opened(self, end: float) -> Tensor:
        """How far a bound of batch renormalisation has opened, from 0 to 1, at this share of the training."""
        return ((self.progress - RENORM_START) / (end - RENORM_START)).clamp(0, 1)

    def _per_image(self, t: Tensor) -> Tensor:
        """Layer, group and instance normalisation by torch's kernel for groups of units."""
        samples = t.flatten(0, -2) if self.dense else t
        units = samples.shape[1]
        groups = {"layer": 1, "group": self.group_count, "instance": 1 if self.dense else units}[
            self.statistics
        ]
        if groups == units:
            self._needs_places(t)
        wide = samples.to(self.gains().dtype)
        y = torch.nn.functional.group_norm(wide, groups, self.gains(), self.bias, self.eps)
        return y.view_as(t).to(t.dtype)

    def _rms(self, t: Tensor) -> Tensor:
        over_units = self.dense or self.statistics == "rms"
        if not over_units:
            self._needs_places(t)
        axis = self._unit_axis(t)
        dims = [axis] if over_units else list(range(2, t.dim()))
        wide = t.to(self.gains().dtype)
        return self._affine(
            (wide * torch.rsqrt(wide.square().mean(dims, keepdim=True) + self.eps)).to(t.dtype)
        )

    def _needs_places(self, t: Tensor) -> None:
        if not self.dense and t[0, 0].numel() == 1:
            raise ValueError(
                f"statistics={self.statistics}: a channel of one place has no statistics; "
                "take layer or rms, over several channels"
            )

    def _affine(self, y: Tensor) -> Tensor:
        if self.statistics in SCALING:
            y = y * self._broadcast(self.gains(), y).to(y.dtype)
        return y if self.bias is None else y + self._broadcast(self.bias, y).to(y.dtype)

    def _track(self, t: Tensor, mean: Tensor, variance: Tensor) -> None:
        n = len(t) if self.correction == "images" else t.numel() // mean.numel()
        self._average(self.running_mean, mean)
        self._average(self.running_var, variance * (n / max(n - 1, 1)))

    def _average(self, running: Tensor, newest: Tensor) -> None:
        # In place, and without lerp_, for which vmap has no rule.
        running.mul_(1 - self.momentum).add_(newest.detach(), alpha=self.momentum)

    def _unit_axis(self, t: Tensor) -> int:
        return t.dim() - 1 if self.dense else 1

    def _sample_dims(self, t: Tensor) -> list[int]:
        """All axes of an output but the units'."""
        return [d for d in range(t.dim()) if d != self._unit_axis(t)]

    def _broadcast(self, per_unit: Tensor, t: Tensor) -> Tensor:
        return per_unit if self.dense else per_unit.view([-1] + [1] * (t.dim() - 2))


def groups_of(units: int, wanted: int, dense: bool) -> int:
    """The largest divisor of the units up to the wanted number of groups.

    A dense layer's groups have four units or more (all units, where there are fewer): of one unit the output
    would be constant, of two a sign.
    """
    largest = max(1, min(wanted, units // 4 if dense else units))
    return next(n for n in range(largest, 0, -1) if units % n == 0)


class NormSite(nn.Module):
    """A place in a model where activations ``[batch, ..., features]`` are normalised: before attention, say.

    It is the identity until :func:`wn.norm.normalize` puts a :class:`NormalizedSite` there. A model that has
    such places has its statistics there and nowhere else.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return x


class NormalizedSite(Activations):
    """Statistics of activations ``[batch, ..., features]``, with a gain and a bias of their own."""

    def __init__(self, site: NormSite, like: Tensor, choices: dict[str, Any]) -> None:
        super().__init__()
        self.statistics, self.features = choices["statistics"], site.features
        self.gain = choices["gain"] if self.statistics in SCALING else "none"
        self.eps, self.momentum, self.correction = (choices[k] for k in ("eps", "momentum", "correction"))
        self.group_count = groups_of(site.features, choices["groups"], dense=True)
        self.dense, self.phase = True, "normal"
        self.bias = nn.Parameter(like.new_zeros(site.features))
        self._register(like.new_ones(site.features))

    def forward(self, x: Tensor) -> Tensor:
        return self.normalize_activations(x, self.training and self.phase == "normal")

    def extra_repr(self) -> str:
        return f"{self.features}, statistics={self.statistics}, gain={self.gain}"
