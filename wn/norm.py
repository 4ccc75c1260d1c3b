"""Weight normalisation, batch and mean-only statistics, and data-dependent initialisation.

The subject of the project, in one module that needs torch alone. (:mod:`wn.convert` normalises whole
models.) ::

    layer = NormalizedLayer(nn.Linear(784, 256), weight="weight_norm", init="data")
    y = data_dependent_init(layer, x)    # where init="data": once, before training
    y = layer(x)

Three independent choices make a norm: how the weight is parameterised (``weight``), which statistics
of the batch enter the output (``stats``), and how gains and biases start (``init``). Section and
equation numbers are those of Salimans & Kingma (2016), arXiv 1602.07868.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weight = Literal["plain", "scaled", "weight_norm"]
Stats = Literal["none", "batch", "mean_only"]
Init = Literal["default", "data"]
Correction = Literal["images", "samples"]

_CONV = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
_OPERATIONS: dict[type[nn.Module], tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    nn.Linear: (F.linear, ()),
    nn.Conv1d: (F.conv1d, _CONV),
    nn.Conv2d: (F.conv2d, _CONV),
    nn.Conv3d: (F.conv3d, _CONV),
    nn.ConvTranspose1d: (F.conv_transpose1d, _TRANSPOSED),
    nn.ConvTranspose2d: (F.conv_transpose2d, _TRANSPOSED),
    nn.ConvTranspose3d: (F.conv_transpose3d, _TRANSPOSED),
}


KINDS = tuple(_OPERATIONS)
"""The layers that can be normalised."""


def kind_of(layer: nn.Module) -> type[nn.Module] | None:
    """Which of :data:`KINDS` a layer is, None if it is none.

    A masked layer, a subclass that keeps in a buffer ``mask``, shaped as its weight, which entries count (as
    in autoregressive networks), is what its base class is.
    """
    kind = type(layer).__base__ if "mask" in layer._buffers else type(layer)
    return kind if kind in _OPERATIONS else None


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    r"""The weight ``w = g v / ||v||`` (section 2, equation 2), one gain per output unit.

    A row of v is divided by its largest entry before it is squared, so rows of any finite size have
    exact norms. A zero row gives a zero weight and finite gradients.

    Args:
        v: directions, ``[..., units, ...]`` with the output units along ``dim``.
        g: gains, ``[units]``.
        dim: the axis of v that counts output units: 0 for linear and convolutional layers.

    Returns:
        w, of v's shape, with ``||w|| = |g|`` per unit.

    >>> w = weight_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([10.0]))
    >>> w.tolist()
    [[6.0, 8.0]]
    """
    dim %= v.dim()
    others = [d for d in range(v.dim()) if d != dim]
    return normalized(v, others, g.reshape([-1 if d == dim else 1 for d in range(v.dim())]))


def normalized(v: Tensor, dims: list[int], gain: Tensor | float = 1.0) -> Tensor:
    """``gain * v / ||v||`` with the norm over ``dims``; ``gain`` broadcasts against v.

    The scale is a constant to autograd, of any order: the result does not depend on it.
    """
    u = v / _largest(v, dims)
    return u * (gain * torch.rsqrt(_nonzero((u * u).sum(dims, keepdim=True))))


def _largest(v: Tensor, dims: list[int]) -> Tensor:
    """The largest magnitude over ``dims``, which are kept; one where all is zero."""
    return _nonzero(v.detach().abs().amax(dims, keepdim=True))


def _nonzero(x: Tensor) -> Tensor:
    """``x`` with its zeros replaced by ones."""
    return x.masked_fill(x == 0, 1)


def _autocast(*operands: Tensor | None) -> Iterator[Tensor | None]:
    """What autocast gives to a product. (vmap leads convolutions past torch's own.)"""
    for t in operands:
        if t is not None and t.dtype == torch.float32 and torch.is_autocast_enabled(t.device.type):
            t = t.to(torch.get_autocast_dtype(t.device.type))
        yield t


class NormalizedLayer(nn.Module):
    r"""A linear or convolutional layer, normalised.

    With ``t = w * x`` (a matrix product or convolution; w is the plain weight, ``g`` times it, or
    ``g v / ||v||``) and mean and variance per output unit over batch and space::

        stats="none"        y = t + b                                  (equation 1)
        stats="mean_only"   y = t - mean(t) + b                        (section 4, equation 11)
        stats="batch"       y = g (t - mean(t)) / sqrt(var(t) + eps) + b

    With batch statistics the gain acts after them, so that ``w = v / ||v||`` there, or the plain weight,
    if both are asked for. In evaluation, running averages stand in for the statistics of the batch.

    Parameters: ``v`` (or ``weight``), ``g`` (unless weight and statistics are both plain) and ``bias``
    (where the layer that it replaces has one), the latter two of shape ``[units]``. Buffers:
    ``running_mean`` and ``running_var`` ``[units]``, and ``initialized``, a bool, where ``init="data"``.
    Of a masked layer (:func:`kind_of`), ``w`` and ``v`` mean the entries that the mask leaves, and norms are
    theirs. A scaled weight's ``g`` is a buffer too: it starts at one, and data-dependent initialisation alone
    sets it. A step of the weight moves w by g times as much, as in the authors' code.

    Args:
        layer: a ``Linear``, ``Conv*d`` or ``ConvTranspose*d`` whose weight, as v, and bias are taken over.
        weight: ``plain``, ``scaled`` or ``weight_norm``, whose gain starts at ``||v||``. Each starts as the
            function that it replaces.
        stats: ``none``, ``batch`` or ``mean_only``.
        init: ``data`` leaves gain and bias to :func:`data_dependent_init`.
        eps: added to the variance inside the root.
        momentum: share of the newest batch in the running averages.
        correction: the n of the running variance's n/(n-1): ``images``, as the authors have it, or
            ``samples`` (images x places), as torch has it.

    Raises:
        TypeError: the layer is of another type, pads with anything but zeros, or is reparameterised.
        ValueError: a choice that does not exist.
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
        weight: Weight = "weight_norm",
        stats: Stats = "none",
        init: Init = "default",
        eps: float = 1e-6,
        momentum: float = 0.1,
        correction: Correction = "images",
    ) -> None:
        super().__init__()
        for value, kind in ((weight, Weight), (stats, Stats), (init, Init), (correction, Correction)):
            if value not in get_args(kind):
                raise ValueError(
                    f"{value!r} is no choice of a norm: expected one of {', '.join(get_args(kind))}"
                )
        if nn.utils.parametrize.is_parametrized(layer) or "weight" not in layer._parameters:
            raise TypeError(
                f"{layer} is reparameterised already: normalise the plain layer and load its state"
            )
        layer_kind = kind_of(layer)
        if layer_kind is None or getattr(layer, "padding_mode", "zeros") != "zeros":
            raise TypeError(
                f"cannot normalise {layer}: expected Linear, Conv or ConvTranspose padded with zeros"
            )
        self.kind, self.weight_choice, self.stats, self.init = layer_kind, weight, stats, init
        self.eps, self.momentum, self.correction = eps, momentum, correction
        self.options = {name: getattr(layer, name) for name in _OPERATIONS[self.kind][1]}
        self.transposed = self.kind.__name__.startswith("ConvTranspose")
        self.phase: Literal["normal", "initialize", "pass"] = "normal"

        source: nn.Parameter = layer.weight  # type: ignore[assignment]
        if weight == "weight_norm":
            self.v = source
        else:
            self.weight = source
        self.register_buffer("mask", layer._buffers.get("mask"), persistent=False)
        norm = self.unit_norm(self.masked(source.detach()))
        if weight == "scaled":
            self.register_buffer("g", torch.ones_like(norm))
        elif stats == "batch":
            self.g = nn.Parameter(torch.ones_like(norm))
        elif weight == "weight_norm":
            self.g = nn.Parameter(norm)
        self.register_parameter("bias", layer.bias)  # type: ignore[arg-type]
        if stats != "none":
            self.register_buffer("running_mean", torch.zeros_like(norm))
        if stats == "batch":
            self.register_buffer("running_var", torch.ones_like(norm))
        if init == "data":
            self.register_buffer("initialized", torch.tensor(False, device=norm.device))

    @property
    def direction(self) -> nn.Parameter:
        """``v``, or the plain ``weight``."""
        return self.v if self.weight_normalized else self.weight

    def masked(self, w: Tensor) -> Tensor:
        """``w``, shaped as this layer's weight, with zeros where a mask hides it."""
        return w if self.mask is None else w * self.mask

    @property
    def weight_normalized(self) -> bool:
        """Whether the weight is ``g v / ||v||``."""
        return self.weight_choice == "weight_norm"

    @property
    def has_gain(self) -> bool:
        """Whether there is a ``g``, trained or fixed."""
        return self.weight_choice != "plain" or self.stats == "batch"

    def effective_weight(self) -> Tensor:
        """The weight that the input meets: ``g v / ||v||``, ``v / ||v||``, g times the weight or itself."""
        if self.weight_choice == "plain":
            return self.masked(self.weight)
        grouped, dims = self._units(self.masked(self.direction))
        gain = 1.0 if self.stats == "batch" else self._like_units(self.g, self.direction)
        w = normalized(grouped, dims, gain) if self.weight_normalized else gain * grouped
        return w.reshape(self.direction.shape)

    def unit_norms(self, w: Tensor | None = None) -> dict[str, Tensor]:
        """``w_norm`` and, where v or g exist, ``v_norm``, ``g`` and ``ratio`` = g/||v||, each ``[units]``.

        ``w`` spares the work where the effective weight is known. Of a scaled weight, ``v_norm`` is the
        norm before the factor.
        """
        norms = {"w_norm": self.unit_norm(self.effective_weight() if w is None else w)}
        if self.has_gain:
            norms["g"] = self.g
        if self.weight_choice != "plain":
            norms["v_norm"] = self.unit_norm(self.masked(self.direction))
        if self.weight_normalized:
            norms["ratio"] = self.g / _nonzero(norms["v_norm"])
        return norms

    def forward(self, x: Tensor) -> Tensor:
        """``x`` through the layer; running averages move in training alone."""
        if x.dim() < self.direction.dim():  # one image, without a batch axis
            return self.forward(x[None])[0]
        if self.phase == "initialize":
            return self._initialize(x)
        return self._forward(x, track=self.training and self.phase == "normal")

    def _product(self, x: Tensor) -> Tensor:
        """``w * x``, and the bias with it where no statistics come between."""
        operation, _ = _OPERATIONS[self.kind]
        bias = self.bias if self.stats == "none" else None
        return operation(*_autocast(x, self.effective_weight(), bias), **self.options)

    def _forward(self, x: Tensor, track: bool) -> Tensor:
        t = self._product(x)
        if self.stats == "none":
            return t
        return self._center(t, track) if self.stats == "mean_only" else self._standardize(t, track)

    def _center(self, t: Tensor, track: bool) -> Tensor:
        mean = self._mean(t) if self.training else self.running_mean
        if track:
            self._average(self.running_mean, mean)
        shift = -mean if self.bias is None else self.bias - mean
        return t + self._broadcast(shift).to(t.dtype)

    def _mean(self, t: Tensor) -> Tensor:
        """The mean per unit, in the parameters' precision. A sum of zeros carries its gradient, in t's type:
        one pass over t, where a mean of a widened t takes four."""
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
        dims, dtype = self._sample_dims(t), self.direction.dtype
        sigma, mu = torch.std_mean(y.to(dtype), dims, correction=0)
        rounding = 8 * torch.finfo(t.dtype).eps * t.abs().amax(dims)
        varies = t.to(dtype).std(dims, correction=0) > rounding
        sigma = torch.where(varies, sigma, torch.ones_like(sigma))
        if self.has_gain:
            self.g.div_(sigma)
        else:
            self.scale_units(self.weight, 1 / sigma)
        if self.bias is not None and self.stats != "mean_only":
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
        scale = _largest(grouped, dims)
        norm: Tensor = torch.linalg.vector_norm(grouped / scale, 2, dims, keepdim=True) * scale
        return norm.flatten()

    def _sample_dims(self, t: Tensor) -> list[int]:
        """All axes of an output but that of its units: the last of a linear layer's, else the second."""
        return [d for d in range(t.dim()) if d != t.dim() + 1 - self.direction.dim()]

    def _broadcast(self, per_unit: Tensor) -> Tensor:
        """``[units]`` viewed so that it broadcasts against an output."""
        return per_unit.view([-1] + [1] * (self.direction.dim() - 2))

    def extra_repr(self) -> str:
        """The choices that were made."""
        shape = "x".join(map(str, self.direction.shape))
        return (
            f"{self.kind.__name__} {shape}, weight={self.weight_choice}, stats={self.stats}, init={self.init}"
        )


def normalized_layers(model: nn.Module) -> dict[str, NormalizedLayer]:
    """The normalised layers of a model by name, in the order of definition."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, NormalizedLayer)}


@contextmanager
def initializing(model: nn.Module) -> Iterator[None]:
    """Within it a training forward pass sets the layers that wait for data, and tracks no averages."""
    layers = normalized_layers(model).values()
    for layer in layers:
        waits = layer.init == "data" and not bool(layer.initialized)
        layer.phase = "initialize" if waits else "pass"
    try:
        yield
    finally:
        for layer in layers:
            layer.phase = "normal"


@torch.no_grad()
def data_dependent_init(model: nn.Module, *inputs: Any) -> Any:
    """Set gains and biases so that each pre-activation has mean 0 and variance 1 on ``inputs`` (section 3).

    One pass, layer by layer: each layer sees what its predecessors give once they are initialised.
    Noise and dropout are on, as in the authors' code. v and the running averages are left alone, and
    so are layers with ``init="default"`` and layers that have been initialised before.

    Returns:
        The model's output, which is that of the next forward pass on the same inputs.

    >>> layer = NormalizedLayer(nn.Linear(3, 2), init="data")
    >>> y = data_dependent_init(layer, torch.randn(50, 3))
    >>> torch.allclose(y.std(0, correction=0), torch.ones(2))
    True
    """
    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        with initializing(model):
            return model(*inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode
