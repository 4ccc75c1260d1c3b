"""A linear or convolutional layer with a norm: weight, statistics of the batch, initialisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from wn.norm.kinds import (
    OPERATIONS,
    Correction,
    Direction,
    Gain,
    Hold,
    Init,
    Statistics,
    check_choices,
    kind_to_normalize,
)
from wn.norm.weight import largest, nonzero, normalized


def _autocast(*operands: Tensor | None) -> Iterator[Tensor | None]:
    """Cast operands as autocast would: under vmap, convolutions bypass autocast."""
    for t in operands:
        if t is not None and t.dtype == torch.float32 and torch.is_autocast_enabled(t.device.type):
            t = t.to(torch.get_autocast_dtype(t.device.type))
        yield t


class NormalizedLayer(nn.Module):
    r"""A linear or convolutional layer with a norm.

    ``t = w * x`` (a matrix product or convolution) with ``w = g d``, where d is the weight itself
    (``direction="plain"``) or ``v / ||v||`` per output unit (``"row"``). Mean and variance are per output
    unit, over batch and space::

        statistics="none"        y = t + b                                  (equation 1)
        statistics="mean_only"   y = t - mean(t) + b                        (section 4, equation 11)
        statistics="batch"       y = g (t - mean(t)) / sqrt(var(t) + eps) + b

    With batch statistics the gain acts after them and w = d. In evaluation, running averages replace the
    statistics of the batch.

    Parameters: ``weight`` (``v`` if the direction is row), ``g`` ``[units]`` if the gain is free, ``bias``
    ``[units]`` if the source has one. Buffers: a fixed ``g``, ``running_mean``, ``running_var`` ``[units]``,
    and ``initialized``, a bool, with ``init="data"``. A masked layer's norms are over unmasked entries.

    Args:
        layer: a ``Linear``, ``Conv*d`` or ``ConvTranspose*d``; its weight and bias become this layer's.
        direction, statistics: see above.
        gain: ``none``, ``free`` (trained) or ``fixed`` (at its start, or where the initialisation puts it).
            It starts at ``||v||`` for rows and at 1 for plain weights, so that the layer starts as the
            function that it replaces; after batch statistics at 1.
        hold: ``free``: ||v|| is left to the optimiser.
        init: ``data`` leaves gain and bias to :func:`wn.norm.data_dependent_init`.
        momentum: weight of the newest batch in the running averages.
        correction: the n of the running variance's n/(n-1): ``images`` (the authors' code) or ``samples``,
            images x positions (torch).

    Raises:
        TypeError: the layer is of another type, pads with anything but zeros, or is reparameterised.
        ValueError: an unknown choice, or a meaningless combination.
    """

    v: nn.Parameter
    weight: nn.Parameter
    g: Tensor
    bias: nn.Parameter | None
    mask: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    initialized: Tensor

    def __init__(
        self,
        layer: nn.Module,
        *,
        direction: Direction = "row",
        gain: Gain = "free",
        hold: Hold = "free",
        statistics: Statistics = "none",
        init: Init = "default",
        eps: float = 1e-6,
        momentum: float = 0.1,
        correction: Correction = "images",
    ) -> None:
        super().__init__()
        check_choices(direction, gain, hold, statistics, init, correction)
        self.kind = kind_to_normalize(layer)
        self.direction, self.gain, self.hold = direction, gain, hold
        self.statistics, self.init = statistics, init
        self.eps, self.momentum, self.correction = eps, momentum, correction
        self.options = {name: getattr(layer, name) for name in OPERATIONS[self.kind][1]}
        self.transposed = self.kind.__name__.startswith("ConvTranspose")
        self.phase: Literal["normal", "initialize", "pass"] = "normal"

        source: nn.Parameter = layer.weight  # type: ignore[assignment]
        self.register_parameter("v" if direction == "row" else "weight", source)
        # Not persistent: a mask follows from the architecture, and plain state dicts have none.
        self.register_buffer("mask", layer._buffers.get("mask"), persistent=False)
        norm = self.unit_norm(self.masked(source.detach()))
        start = norm if direction == "row" and statistics != "batch" else torch.ones_like(norm)
        if gain == "free":
            self.g = nn.Parameter(start)
        elif gain == "fixed":
            self.register_buffer("g", start)
        self.register_parameter("bias", layer.bias)  # type: ignore[arg-type]
        if statistics != "none":
            self.register_buffer("running_mean", torch.zeros_like(norm))
        if statistics == "batch":
            self.register_buffer("running_var", torch.ones_like(norm))
        if init == "data":
            self.register_buffer("initialized", torch.tensor(False, device=norm.device))

    @property
    def raw_weight(self) -> nn.Parameter:
        """``v``, or the plain ``weight``: the trained tensor."""
        return self.v if self.direction == "row" else self.weight

    def masked(self, w: Tensor) -> Tensor:
        return w if self.mask is None else w * self.mask

    @property
    def has_gain(self) -> bool:
        return self.gain != "none"

    def effective_weight(self) -> Tensor:
        raw = self.masked(self.raw_weight)
        scaled = self.has_gain and self.statistics != "batch"
        if self.direction == "plain" and not scaled:
            return raw
        grouped, dims = self._units(raw)
        gain = self._like_units(self.g, raw) if scaled else 1.0
        w = normalized(grouped, dims, gain) if self.direction == "row" else gain * grouped
        return w.reshape(raw.shape)

    def unit_norms(self, w: Tensor | None = None) -> dict[str, Tensor]:
        """``w_norm``; with a gain ``g``; where v is not w ``v_norm``; for rows ``ratio`` = g/||v||. All
        ``[units]``; ``w`` is the effective weight, if already computed.
        """
        norms = {"w_norm": self.unit_norm(self.effective_weight() if w is None else w)}
        if self.has_gain:
            norms["g"] = self.g
        if self.direction == "row" or (self.has_gain and self.statistics != "batch"):
            norms["v_norm"] = self.unit_norm(self.masked(self.raw_weight))
        if self.direction == "row":
            norms["ratio"] = self.g / nonzero(norms["v_norm"])
        return norms

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < self.raw_weight.dim():  # one image, without a batch axis
            return self.forward(x[None])[0]
        if self.phase == "initialize":
            return self._initialize(x)
        return self._forward(x, track=self.training and self.phase == "normal")

    def _product(self, x: Tensor) -> Tensor:
        """``w * x``, plus the bias if no statistics are taken in between."""
        operation, _ = OPERATIONS[self.kind]
        bias = self.bias if self.statistics == "none" else None
        return operation(*_autocast(x, self.effective_weight(), bias), **self.options)

    def _forward(self, x: Tensor, track: bool) -> Tensor:
        t = self._product(x)
        if self.statistics == "none":
            return t
        return self._center(t, track) if self.statistics == "mean_only" else self._standardize(t, track)

    def _center(self, t: Tensor, track: bool) -> Tensor:
        mean = self._mean(t) if self.training else self.running_mean
        if track:
            self._average(self.running_mean, mean)
        shift = -mean if self.bias is None else self.bias - mean
        return t + self._broadcast(shift).to(t.dtype)

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
        samples = t.flatten(0, -2) if self.kind is nn.Linear else t
        if t.dtype != self.g.dtype and torch._C._functorch.is_batchedtensor(t):
            samples = samples.to(self.g.dtype)  # torch's vmap rule would compute statistics in bfloat16
        # F.batch_norm would not return the mean and variance, which the authors' n/(n-1) is applied to.
        fixed_mean, fixed_var = (None, None) if self.training else (self.running_mean, self.running_var)
        y, mean, inverse_root = torch.native_batch_norm(
            samples, self.g, self.bias, fixed_mean, fixed_var, self.training, 0.0, self.eps
        )
        if track:
            n = len(t) if self.correction == "images" else t.numel() // mean.numel()
            variance = inverse_root**-2 - self.eps
            self._average(self.running_mean, mean)
            self._average(self.running_var, variance * (n / max(n - 1, 1)))
        return y.view_as(t).to(t.dtype)

    def _average(self, running: Tensor, newest: Tensor) -> None:
        # In place, and without lerp_, for which vmap has no rule.
        running.mul_(1 - self.momentum).add_(newest.detach(), alpha=self.momentum)

    @torch.no_grad()
    def _initialize(self, x: Tensor) -> Tensor:
        r"""``g <- g / sigma``, ``b <- (b - mu) / sigma`` for the pre-activations of ``x`` (section 3, eq. 6).

        Without a gain the weight itself is scaled. With mean-only statistics the bias is left alone: the
        mean is subtracted already. A unit without variance keeps its scale.
        """
        t, y = self._product(x), self._forward(x, track=False)
        dims, dtype = self._sample_dims(t), self.raw_weight.dtype
        sigma, mu = torch.std_mean(y.to(dtype), dims, correction=0)
        # Dividing by a sigma that is mere rounding would blow noise up to variance 1.
        rounding = 8 * torch.finfo(t.dtype).eps * t.abs().amax(dims)
        varies = t.to(dtype).std(dims, correction=0) > rounding
        sigma = torch.where(varies, sigma, torch.ones_like(sigma))
        if self.has_gain:
            self.g.div_(sigma)
        else:
            self.scale_units(self.weight, 1 / sigma)
        if self.bias is not None and self.statistics != "mean_only":
            self.bias.sub_(mu).div_(sigma)
        self.initialized.fill_(True)
        return self._forward(x, track=False)

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
        norm: Tensor = torch.linalg.vector_norm(grouped / scale, 2, dims, keepdim=True) * scale
        return norm.flatten()

    def _sample_dims(self, t: Tensor) -> list[int]:
        """All axes of an output but the units': that is the last of a linear layer, else the second."""
        return [d for d in range(t.dim()) if d != t.dim() + 1 - self.raw_weight.dim()]

    def _broadcast(self, per_unit: Tensor) -> Tensor:
        return per_unit.view([-1] + [1] * (self.raw_weight.dim() - 2))

    def extra_repr(self) -> str:
        shape = "x".join(map(str, self.raw_weight.shape))
        choices = ("direction", "gain", "statistics", "init")
        return ", ".join([f"{self.kind.__name__} {shape}", *(f"{c}={getattr(self, c)}" for c in choices)])


def normalized_layers(model: nn.Module) -> dict[str, NormalizedLayer]:
    """By name, in the order of definition."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, NormalizedLayer)}
