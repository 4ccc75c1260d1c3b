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
    r"""A linear or convolutional layer, normalised.

    With ``t = w * x`` (a matrix product or convolution), ``w = g d`` where d is the weight itself
    (``direction="plain"``) or each output unit's ``v / ||v||`` (``"row"``), and mean and variance per output
    unit over batch and space::

        statistics="none"        y = t + b                                  (equation 1)
        statistics="mean_only"   y = t - mean(t) + b                        (section 4, equation 11)
        statistics="batch"       y = g (t - mean(t)) / sqrt(var(t) + eps) + b

    With batch statistics the gain acts after them and w is d. In evaluation, running averages stand in for
    the statistics of the batch.

    Parameters: ``weight`` (``v`` where the direction is row), ``g`` ``[units]`` where the gain is free, and
    ``bias`` ``[units]`` where the source has one. Buffers: a fixed ``g``, ``running_mean``, ``running_var``
    ``[units]``, and ``initialized``, a bool, where ``init="data"``. Norms of a masked layer are of the
    unmasked entries.

    Args:
        layer: a ``Linear``, ``Conv*d`` or ``ConvTranspose*d`` whose weight and bias are taken over.
        direction: ``plain`` or ``row``.
        gain: ``none``, ``free`` (trained) or ``fixed`` (set once, by data or to its start). It starts at
            ``||v||`` where the direction is row, else at 1, so that each norm starts as the function that it
            replaces; after batch statistics at 1.
        hold: ``free``: ||v|| is left to the optimiser.
        statistics: ``none``, ``batch`` or ``mean_only``.
        init: ``data`` leaves gain and bias to :func:`wn.norm.data_dependent_init`.
        eps: added to the variance inside the root.
        momentum: share of the newest batch in the running averages.
        correction: the n of the running variance's n/(n-1): ``images``, as the authors have it, or
            ``samples`` (images x positions), as torch has it.

    Raises:
        TypeError: the layer is of another type, pads with anything but zeros, or is reparameterised.
        ValueError: a choice that does not exist, or a combination without meaning.
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
        """``v``, or the plain ``weight``: what the optimiser moves."""
        return self.v if self.direction == "row" else self.weight

    def masked(self, w: Tensor) -> Tensor:
        """``w``, shaped as this layer's weight, with zeros where a mask hides it."""
        return w if self.mask is None else w * self.mask

    @property
    def has_gain(self) -> bool:
        """Whether there is a ``g``, trained or fixed."""
        return self.gain != "none"

    def effective_weight(self) -> Tensor:
        """w, the weight that the input meets."""
        raw = self.masked(self.raw_weight)
        scaled = self.has_gain and self.statistics != "batch"
        if self.direction == "plain" and not scaled:
            return raw
        grouped, dims = self._units(raw)
        gain = self._like_units(self.g, raw) if scaled else 1.0
        w = normalized(grouped, dims, gain) if self.direction == "row" else gain * grouped
        return w.reshape(raw.shape)

    def unit_norms(self, w: Tensor | None = None) -> dict[str, Tensor]:
        """``w_norm`` and, where there is a g that is no part of w or v differs from w: ``g``, ``v_norm`` and
        ``ratio`` = g/||v||, each ``[units]``.

        Args:
            w: the effective weight, if already computed.
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
        """``x`` through the layer; running averages move in training alone."""
        if x.dim() < self.raw_weight.dim():  # one image, without a batch axis
            return self.forward(x[None])[0]
        if self.phase == "initialize":
            return self._initialize(x)
        return self._forward(x, track=self.training and self.phase == "normal")

    def _product(self, x: Tensor) -> Tensor:
        """``w * x``, and the bias with it where no statistics come between."""
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
            samples = samples.to(self.g.dtype)  # torch's rule for vmap would take them in bfloat16
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
        """Move a running average in place (vmap has no rule for ``lerp_``)."""
        running.mul_(1 - self.momentum).add_(newest.detach(), alpha=self.momentum)

    @torch.no_grad()
    def _initialize(self, x: Tensor) -> Tensor:
        r"""``g <- g / sigma``, ``b <- (b - mu) / sigma`` for the pre-activations of ``x`` (section 3, eq. 6).

        A plain weight is scaled in place of g. With mean-only statistics the bias stays, as the mean
        is the bias already. A unit that does not vary keeps its scale.
        """
        t, y = self._product(x), self._forward(x, track=False)
        dims, dtype = self._sample_dims(t), self.raw_weight.dtype
        sigma, mu = torch.std_mean(y.to(dtype), dims, correction=0)
        # A unit whose output varies by no more than rounding would be scaled up to pure noise.
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

        A transposed convolution stores ``[in, out/groups, ...]``: input channels come first, and the
        units of group k are those that the k-th share of the input channels leads to.
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
        """Multiply each unit of ``w``, shaped as this layer's weight, by its factor ``[units]``, in place."""
        self._units(w)[0].mul_(self._like_units(factor, w))

    def unit_norm(self, w: Tensor) -> Tensor:
        """``||w||`` per output unit, ``[units]``, safe from overflow."""
        grouped, dims = self._units(w)
        scale = largest(grouped, dims)
        norm: Tensor = torch.linalg.vector_norm(grouped / scale, 2, dims, keepdim=True) * scale
        return norm.flatten()

    def _sample_dims(self, t: Tensor) -> list[int]:
        """All axes of an output but that of its units: the last of a linear layer's, else the second."""
        return [d for d in range(t.dim()) if d != t.dim() + 1 - self.raw_weight.dim()]

    def _broadcast(self, per_unit: Tensor) -> Tensor:
        """``[units]`` viewed so that it broadcasts against an output."""
        return per_unit.view([-1] + [1] * (self.raw_weight.dim() - 2))

    def extra_repr(self) -> str:
        """The choices that were made."""
        shape = "x".join(map(str, self.raw_weight.shape))
        choices = ("direction", "gain", "statistics", "init")
        return ", ".join([f"{self.kind.__name__} {shape}", *(f"{c}={getattr(self, c)}" for c in choices)])


def normalized_layers(model: nn.Module) -> dict[str, NormalizedLayer]:
    """The normalised layers of a model by name, in the order of definition."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, NormalizedLayer)}
