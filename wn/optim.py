"""Update rules and schedules over stacked parameters.

Every tensor has the members of the stack along its first axis, and every hyperparameter is a vector with a
number per member. All state lives on the device and all updates are in place, so that a step can be captured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wn.config import OptimConfig

Tensors = dict[str, Tensor]

RATES = {"g": "lr_gain", "bias": "lr_bias"}
"""Kinds of parameters whose learning rate need not be that of the weights."""


class Optimizer:
    """Updates stacked parameters in place.

    Args:
        configs: one per member; they differ in numbers alone.
        params: tensors ``[members, ...]``, float32 or float64.
        kinds: name to ``weight``, ``g``, ``bias`` or ``other`` (:func:`wn.norm.parameter_groups`). Weight
            decay applies to weights; gains and biases may have learning rates of their own.

    Attributes:
        hyper: ``lr, lr_gain, lr_bias, momentum, beta2, eps, weight_decay``, each ``[members]``.
        lr: the present learning rates, as numbers.
        state: moments, shaped as the parameters, and ``steps``, a scalar.
    """

    def __init__(self, configs: Sequence[OptimConfig], params: Tensors, kinds: dict[str, str]) -> None:
        self.configs, self.params, self.kinds = list(configs), params, kinds
        self.rule, self.moments = RULES[configs[0].name]
        self.decays = any(c.weight_decay for c in configs)
        self.rates = {name: [learning_rate(c, name) for c in configs] for name in ("lr", *RATES.values())}
        self.lr, some = self.rates["lr"], next(iter(params.values()))
        others = ("momentum", "beta2", "eps", "weight_decay")
        numbers = self.rates | {name: [getattr(c, name) for c in configs] for name in others}
        self.hyper = {name: some.new_tensor(values) for name, values in numbers.items()}
        self.state = {f"{m}/{k}": torch.zeros_like(p) for m in range(self.moments) for k, p in params.items()}
        self.state["steps"] = some.new_zeros(())

    def set_epoch(self, epoch: int, epochs: int) -> None:
        """Set learning rates and momentum for an epoch, counted from 0, as the schedule says."""
        factors, momenta = zip(*(scheduled(c, epoch, epochs) for c in self.configs), strict=True)
        numbers = {k: [lr * f for lr, f in zip(v, factors, strict=True)] for k, v in self.rates.items()}
        self.lr = numbers["lr"]
        for name, values in {**numbers, "momentum": momenta}.items():
            self.hyper[name].copy_(self.hyper[name].new_tensor(values))

    @torch.no_grad()
    def step(self, grads: Tensors) -> None:
        """One update; ``grads`` as the parameters. Weight decay adds ``weight_decay * p`` to a gradient."""
        self.state["steps"].add_(1)
        views = {
            dim: {k: h.view([-1] + [1] * (dim - 1)) for k, h in self.hyper.items()}
            for dim in {p.dim() for p in self.params.values()}
        }
        for name, p in self.params.items():
            kind, grad, hyper = self.kinds.get(name, "other"), grads[name], views[p.dim()]
            hyper = hyper | {"lr": hyper[RATES.get(kind, "lr")], "steps": self.state["steps"]}
            if kind == "weight" and self.decays:
                grad = grad + hyper["weight_decay"] * p
            moments = [self.state[f"{m}/{name}"] for m in range(self.moments)]
            self.rule(self.configs[0], p, grad, moments, hyper)


def learning_rate(config: OptimConfig, name: str) -> float:
    """``lr``, or that of gains or biases: their own if they have one, at most their cap."""
    rate: float = getattr(config, name) or config.lr
    return min(rate, getattr(config, f"{name}_cap", None) or math.inf)


def scheduled(config: OptimConfig, epoch: int, epochs: int) -> tuple[float, float]:
    """Factor of the learning rates, and momentum, in an epoch counted from 0.

    ``constant_then_linear`` (section 5.1): 1 for the first ``decay_from`` of the epochs, then
    ``(epochs - epoch) / (epochs - start)``, so that the last epoch still learns, with momentum
    ``late_momentum``.

    >>> scheduled(OptimConfig(schedule="constant_then_linear", late_momentum=0.5), 199, 200)
    (0.01, 0.5)
    """
    start = round(config.decay_from * epochs)
    if config.schedule == "constant" or epoch < start:
        return 1.0, config.momentum
    late = config.momentum if config.late_momentum is None else config.late_momentum
    return (epochs - epoch) / (epochs - start), late


Rule = Callable[[OptimConfig, Tensor, Tensor, list[Tensor], Tensors], None]


def sgd(config: OptimConfig, p: Tensor, grad: Tensor, moments: list[Tensor], hyper: Tensors) -> None:
    """``m <- momentum m + grad;  p <- p - lr m``, as ``torch.optim.SGD``."""
    (m,) = moments
    m.mul_(hyper["momentum"]).add_(grad)
    p.addcmul_(m, hyper["lr"], value=-1)


def adam(config: OptimConfig, p: Tensor, grad: Tensor, moments: list[Tensor], hyper: Tensors) -> None:
    """Adam with momentum as beta1: ``p <- p - lr m' / (sqrt(v') + eps)``, as ``torch.optim.Adam``.

    With ``eps_inside_root`` the divisor is ``sqrt(v' + eps)``, as in the authors' code: eps = 1e-8 is
    then a floor of 1e-4 under the gradient's root mean square. The correction of the bias uses the
    present beta1 even where the schedule has changed it, and the moments are kept, as theirs are.
    """
    m, v = moments
    m.lerp_(grad, (1 - hyper["momentum"]).expand_as(m))
    v.mul_(hyper["beta2"]).addcmul_(grad, grad * (1 - hyper["beta2"]))
    mean = m / (1 - hyper["momentum"] ** hyper["steps"])
    square = v / (1 - hyper["beta2"] ** hyper["steps"])
    inside = config.eps_inside_root
    divisor = square.add_(hyper["eps"]).sqrt_() if inside else square.sqrt_().add_(hyper["eps"])
    p.addcmul_(mean.div_(divisor), hyper["lr"], value=-1)


def adamax(config: OptimConfig, p: Tensor, grad: Tensor, moments: list[Tensor], hyper: Tensors) -> None:
    """``u <- max(beta2 u, |grad| + eps);  p <- p - lr m / ((1 - beta1^t) u)``, as ``torch.optim.Adamax``."""
    m, u = moments
    m.lerp_(grad, (1 - hyper["momentum"]).expand_as(m))
    u.copy_(torch.maximum(u * hyper["beta2"], grad.abs().add_(hyper["eps"])))
    p.addcmul_(m / u, hyper["lr"] / (1 - hyper["momentum"] ** hyper["steps"]), value=-1)


RULES: dict[str, tuple[Rule, int]] = {"sgd": (sgd, 1), "adam": (adam, 2), "adamax": (adamax, 2)}
"""Rule and number of moments."""


class EMA:
    """Exponential moving average of a stack's tensors, bias-corrected.

    After t steps it is ``sum d^(t-i) x_i / sum d^(t-i)`` over the steps i = 1 ... t, with d the ``decay`` of
    all members. ``state``: the numerators by name, and ``total weight``, the denominator, scaled by 1 - d.
    """

    def __init__(self, tensors: Tensors, decay: float) -> None:
        self.decay = decay
        self.state = {name: torch.zeros_like(t) for name, t in tensors.items()}
        self.state["total weight"] = next(iter(tensors.values())).new_zeros(())

    @torch.no_grad()
    def step(self, tensors: Tensors) -> None:
        """Take in the tensors after a step; others than those of ``__init__`` are not read."""
        for name, total in self.state.items():
            newest = tensors[name].detach() if name != "total weight" else torch.ones_like(total)
            total.mul_(self.decay).add_(newest, alpha=1 - self.decay)

    def values(self) -> Tensors:
        """The average; nothing before the first step."""
        weight = self.state["total weight"]
        if not weight:
            return {}
        return {name: total / weight for name, total in self.state.items() if name != "total weight"}
