"""A linear or convolutional layer with a norm: weight, statistics of its output, initialisation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from wn.grammar import (
    DEFAULTS,
    SCALING,
    Correction,
    Direction,
    Gain,
    Hold,
    Init,
    Scale,
    Statistics,
)
from wn.norm.direction import Reparameterized, project_
from wn.norm.kinds import OPERATIONS, check_choices, kind_to_normalize, mask_of, take_attributes
from wn.norm.statistics import groups_of
from wn.norm.weight import activation_gain, autocast_enabled, full_precision, nonzero, power_of_two, wide


def _autocast(*operands: Tensor | None) -> Iterator[Tensor | None]:
    """Cast operands as autocast would: under vmap, convolutions bypass autocast."""
    for t in operands:
        if t is not None and t.dtype == torch.float32 and autocast_enabled(t.device):
            t = t.to(torch.get_autocast_dtype(t.device.type))
        yield t


class NormalizedLayer(Reparameterized):
    r"""A linear or convolutional layer with a norm.

    ``t = w * x`` (a matrix product or convolution) with ``w = scale * gain * d``, then the statistics of
    :class:`wn.norm.statistics.Activations`. The direction d is ::

        plain      v                                        spectral   V / sigma_1(V)   (by power iteration)
        row        v / ||v||  of each unit                  layer      V / ||V||_F
        centered   (v - mean(v)) / ||v - mean(v)||  of each unit

    Statistics that fix the scale of an output (all but none and mean_only) have the gain after them, and
    ``w = scale * d``.

    Parameters: ``v`` (``weight`` if the direction is plain), ``g`` ``[units]`` if the gain is free, ``s`` if
    it is exponential, ``alpha`` of dyt, ``bias`` ``[units]`` if the source has one. Buffers: a fixed ``g``,
    ``running_mean``, ``running_var`` ``[units]``, the left singular vector ``u`` (spectral), ``held``
    (hold=start), ``progress`` (batch_renorm: the share of the training that is done), and ``initialized``, a
    bool, with ``init="data"``. A masked layer's norms are over unmasked entries.

    Args:
        layer: a ``Linear``, ``Conv*d`` or ``ConvTranspose*d``; its weight and bias become this layer's.
        direction, statistics: see above.
        scale: a constant factor of the direction: ``one``; ``sqrt_fan_in``, the root of the weights per unit;
            ``activation``, :func:`wn.norm.weight.activation_gain` of ``activation``. With ``none`` the gain
            starts at the direction's norm instead of 1, so that the layer starts as the function that it
            replaces (of centred weights: less their mean; with ``fixed_layer``: with units of one norm).
        gain: ``none``, ``free`` (trained), ``exp`` (g = e^s, section 2), ``exp3`` (g = e^{3s}, openai/iaf),
            ``fixed`` (at its start, or where the initialisation puts it) or ``fixed_layer`` (the same for all
            units, ``||V||_F / sqrt(units)`` at the start; Hoffer et al., 2018).
        hold: ``free``: ||v|| is the optimiser's; ``start`` or ``unit``: :func:`wn.norm.project_` puts it
            back to its start, or v to a root mean square of 1 (Karras et al., 2024).
        init: ``data`` leaves gain and bias to :func:`wn.norm.data_dependent_init`. ``arpit`` (Arpit et al.,
            2019): v at a root mean square of 1/sqrt(fan_in), ``g = sqrt(2 fan_in / fan_out)``, bias 0. Of a
            source with an attribute ``residual_branches``, the last layer of one of B branches in a row,
            ``g = sqrt(fan_in / (B fan_out))``.
        activation: what follows the layer, for ``scale="activation"``.
        groups: of group statistics; the largest divisor of the units up to it is taken.
        momentum: weight of the newest batch in the running averages.
        correction: the n of the running variance's n/(n-1): ``images`` (the authors' code) or ``samples``,
            images x positions (torch).

    Raises:
        TypeError: the layer is of another type, pads with anything but zeros, or is reparameterised.
        ValueError: an unknown choice, a meaningless combination, or one that makes this layer a constant.
    """

    initialized: Tensor
    own: frozenset[str]
    """Attributes that are not the replaced layer's."""

    def __init__(
        self,
        layer: nn.Module,
        *,
        direction: Direction = "row",
        scale: Scale = "none",
        gain: Gain = "free",
        hold: Hold = "free",
        statistics: Statistics = "none",
        init: Init = "default",
        activation: str = "none",
        groups: int = 8,
        eps: float = 1e-6,
        momentum: float = 0.1,
        correction: Correction = "images",
    ) -> None:
        choices = {
            name: value for name, value in locals().items() if name not in ("self", "layer", "__class__")
        }
        super().__init__()
        check_choices(choices)
        self.kind, self.choices = kind_to_normalize(layer, choices), choices
        self.direction, self.scale, self.gain, self.hold = direction, scale, gain, hold
        self.statistics, self.init = statistics, init
        self.eps, self.momentum, self.correction = eps, momentum, correction
        self.options = {name: getattr(layer, name) for name in OPERATIONS[self.kind][1]}
        kind: Any = self.kind
        for name in kind.__constants__:  # in_features, stride, ...: a subclass's methods may ask, below
            if not hasattr(type(self), name):
                setattr(self, name, getattr(layer, name))
        self.transposed = self.kind.__name__.startswith("ConvTranspose")
        self.dense, self.phase = self.kind is nn.Linear, "normal"
        self.gain_on_weight = gain != "none" and statistics not in SCALING
        self._parameters[self.raw_name] = layer.weight  # type: ignore[assignment]
        self.register_parameter("bias", layer.bias)  # type: ignore[arg-type]
        # Not persistent: a mask follows from the architecture, and plain state dicts have none.
        self.register_buffer("mask", mask_of(layer), persistent=False)
        self.group_count = groups_of(self.units, groups, self.dense)
        self.constant = math.sqrt(self.fan_in) if scale == "sqrt_fan_in" else 1.0
        if scale == "activation":
            self.constant = activation_gain(activation)
        zero = self._draw_zero_units() if self.starts_alike and gain == "free" and init != "arpit" else None
        if direction == "spectral":
            matrix = self.unit_rows(self.masked(self.raw_weight.detach())).to(wide(self.raw_weight))
            u = torch.linalg.svd(matrix, full_matrices=False)[0][:, 0].contiguous()
            self.register_buffer("u", u.to(self.raw_weight.dtype))
        if init == "arpit":
            self._set_root_mean_square()
        gains = self._first_gains(getattr(layer, "residual_branches", None))
        self._register(gains if zero is None else gains.masked_fill(zero, 0))
        for parameter in (self._parameters.get(name) for name in ("g", "s", "alpha")):
            if parameter is not None:  # a frozen layer stays frozen
                parameter.requires_grad_(self.raw_weight.requires_grad)
        if hold == "start":
            self.register_buffer("held", self.held_norm())
        project_(self)
        if init == "data":
            self.register_buffer("initialized", torch.tensor(False, device=self.raw_weight.device))
        self.own = frozenset({*vars(self), "own"})
        take_attributes(self, layer)

    @torch.no_grad()
    def _set_root_mean_square(self) -> None:
        """Arpit et al. draw v from N(0, 1/fan_in) and set b to 0; here the source's own draw is rescaled."""
        v = self.raw_weight
        v.div_(power_of_two(v))
        v.div_(nonzero(v.square().mean().sqrt()) * math.sqrt(self.fan_in))
        if self.bias is not None:
            self.bias.zero_()

    @property
    def starts_alike(self) -> bool:
        """Whether the gain starts at the norm of v, so that the layer is the function that it replaces."""
        return self.direction != "plain" and self.scale == "none" and self.gain_on_weight

    def _first_gains(self, residual_branches: int | None) -> Tensor:
        norm = self.direction_norm()
        if self.init == "arpit":
            positions = self.raw_weight[0, 0].numel()
            share = 2 if residual_branches is None else 1 / residual_branches
            return torch.full_like(norm, math.sqrt(share * self.fan_in / (self.units * positions)))
        if self.gain == "fixed_layer":
            return nonzero(self.frobenius_norm()) / math.sqrt(self.units)
        if not self.starts_alike:
            return torch.ones_like(norm)
        return nonzero(norm) if self.gain == "fixed" else norm  # a fixed gain of 0 would stay there

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """``output_size``: of a transposed convolution, whose stride leaves several, as in torch's."""
        if isinstance(x, fx.Proxy):  # type: ignore[unreachable]
            # Traced as one node, as torch's own layers are.
            given = (x,) if output_size is None else (x, output_size)  # type: ignore[unreachable]
            return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), given, {})
        if x.dim() < self.raw_weight.dim():  # one image, without a batch axis
            if output_size and len(output_size) == x.dim():
                output_size = output_size[1:]  # without that of the channels
            return self.forward(x[None], output_size)[0]
        options = {} if output_size is None else self._padded_to(x, output_size)
        if self.direction == "spectral" and self.training and self.phase == "normal":
            self.iterate_power()
        if self.phase == "initialize":
            return self._initialize(x, **options)
        return self._forward(x, track=self.training and self.phase == "normal", **options)

    def _padded_to(self, x: Tensor, output_size: Sequence[int]) -> dict[str, Any]:
        """The option of a transposed convolution that leads to an output size."""
        if not self.transposed:
            raise TypeError(
                f"output_size is for a transposed convolution, and this layer is {self.kind.__name__}"
            )
        torchs: Any = nn.modules.conv._ConvTransposeNd._output_padding  # which raises errors of its own
        stride, padding, dilation = (self.options[name] for name in ("stride", "padding", "dilation"))
        kernel, axes = self.raw_weight.shape[2:], x.dim() - 2
        extra = torchs(self, x, list(output_size), stride, padding, kernel, axes, dilation)
        return {"output_padding": extra}

    def _product(self, x: Tensor, **options: Any) -> Tensor:
        """``w * x``, plus the bias if no statistics are taken in between."""
        operation, _ = OPERATIONS[self.kind]
        bias = self.bias if self.statistics == "none" else None
        return operation(*_autocast(x, self.effective_weight(), bias), **{**self.options, **options})

    def _forward(self, x: Tensor, track: bool, **options: Any) -> Tensor:
        return self.normalize_activations(self._product(x, **options), track)

    @torch.no_grad()
    def _initialize(self, x: Tensor, **options: Any) -> Tensor:
        r"""``g <- g / sigma``, ``b <- (b - mu) / sigma`` for the pre-activations of ``x`` (section 3, eq. 6).

        Without a gain the weight itself is scaled. With mean-only statistics the bias is left alone: the
        mean is subtracted already. A unit without variance keeps its scale.
        """
        if x.numel() == 0:
            raise ValueError("an empty batch has no mean and variance to initialise by")
        # In bfloat16 a mean much larger than the deviation would leave of the deviation only rounding.
        with full_precision(x.device):
            in_full = x.to(self.raw_weight.dtype)
            t, y = self._product(in_full, **options), self._forward(in_full, track=False, **options)
        dims, dtype = self._sample_dims(t), wide(self.raw_weight)
        sigma, mu = torch.std_mean(y.to(dtype), dims, correction=0)
        # Dividing by a sigma that is mere rounding would blow noise up to variance 1.
        rounding = 8 * torch.finfo(t.dtype).eps * t.abs().amax(dims)
        varies = t.to(dtype).std(dims, correction=0) > rounding
        sigma = torch.where(varies, sigma, torch.ones_like(sigma)).to(t.dtype)
        if self.has_gain:
            self.divide_gains(sigma)
        else:
            self.scale_units(self.raw_weight, 1 / sigma)
            if self.hold == "start":
                self.held.copy_(self.held_norm())
        if self.bias is not None and self.statistics != "mean_only":
            self.bias.sub_(mu).div_(sigma)
        self.initialized.fill_(True)
        return self._forward(x, track=False, **options)

    def extra_repr(self) -> str:
        shape = "x".join(map(str, self.raw_weight.shape))
        choices = ["direction", "gain", "statistics", "init"]
        choices += [name for name in ("scale", "hold") if getattr(self, name) != DEFAULTS[name]]
        return ", ".join([f"{self.kind.__name__} {shape}", *(f"{c}={getattr(self, c)}" for c in choices)])


def normalized_layers(model: nn.Module) -> dict[str, NormalizedLayer]:
    """By name, in the order of definition."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, NormalizedLayer)}
