"""A stack: models of one architecture, trained together along a leading axis.

Members never interact: a forward pass is ``torch.vmap`` of the one model over stacked parameters and
buffers, so the gradient of the sum of their losses holds, slice by slice, each member's own gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from wn.norm import held_layers, initializing

Tensors = dict[str, Tensor]

NARROW = 16
"""A layer of fewer units is narrow: see :class:`_NarrowLayers`."""


class Stack:
    """The stacked state of models of equal architecture; the first is the template that all run through.

    Attributes:
        params: name to ``[members, ...]``, leaves that require gradients.
        buffers: name to ``[members, ...]``, changed in place by a training pass.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.template = models[0]
        self.holds = bool(held_layers(self.template))
        params = [dict(model.named_parameters()) for model in models]
        buffers = [dict(model.named_buffers()) for model in models]
        self.params = {k: _leaf(torch.stack([p[k].detach() for p in params])) for k in params[0]}
        self.buffers = {k: torch.stack([b[k] for b in buffers]) for k in buffers[0]}

    def __len__(self) -> int:
        return len(next(iter(self.params.values())))

    def __call__(self, x: Tensor, shared: bool = False) -> Any:
        """The members' outputs, ``[members, batch, ...]``: a tensor or a tuple of such.

        ``x`` is ``[members, batch, ...]`` or, where ``shared``, one ``[batch, ...]`` for all.
        """
        return self.map(lambda model, x: model(x), x, shared=shared)

    def map(self, function: Callable[..., Any], *inputs: Tensor, shared: bool = False) -> Any:
        """``function(model, *inputs)`` for each member, results stacked along the first axis.

        A stack of one skips vmap: it is the model alone, kernel for kernel.
        """
        module = _Apply(self.template, function)

        def one(params: dict[str, Tensor], buffers: dict[str, Tensor], *inputs: Tensor) -> Any:
            state = {f"model.{k}": t for k, t in (*params.items(), *buffers.items())}
            return functional_call(module, state, inputs)

        if len(self) > 1:
            dims = (0, 0, *[None if shared else 0] * len(inputs))
            with _NarrowLayers():
                return torch.vmap(one, in_dims=dims)(self.params, self.buffers, *inputs)
        params, buffers = ({k: t.squeeze(0) for k, t in s.items()} for s in (self.params, self.buffers))
        result = one(params, buffers, *(inputs if shared else [x.squeeze(0) for x in inputs]))
        return tree_map(lambda t: t.unsqueeze(0), result)

    def train(self, mode: bool = True) -> Stack:
        """Set training or evaluation mode. Random numbers of evaluation begin anew."""
        self.template.train(mode)
        for name, buffer in self.buffers.items():
            if name.endswith("evaluations"):
                buffer.zero_()
        return self

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """The data-dependent initialisation of every member on its batch, ``x [members, batch, ...]``."""
        self.train()
        with initializing(self.template):
            self(x)

    @torch.no_grad()
    def project(self) -> None:
        """Put ||v|| back where a norm holds it (:func:`wn.norm.project_`)."""
        if self.holds:
            for name, v in self.map(_projected).items():
                self.params[name].copy_(v)

    def set_progress(self, share: float) -> None:
        """Tell layers with a schedule of their own the share of the training that is done."""
        for name, buffer in self.buffers.items():
            if name.split(".")[-1] == "progress":
                buffer.fill_(share)

    def with_state(self, tensors: Tensors) -> Stack:
        """A stack that shares this one's template and, but for the given tensors, its state."""
        other = copy.copy(self)
        other.params = {k: tensors.get(k, p.detach()) for k, p in self.params.items()}
        other.buffers = {k: tensors.get(k, b) for k, b in self.buffers.items()}
        return other

    def load(self, params: Tensors, buffers: Tensors) -> None:
        """Take over the state of other members, of any number."""
        self.params = {k: _leaf(p) for k, p in params.items()}
        self.buffers = buffers


def _projected(model: nn.Module) -> Tensors:
    return {f"{name}.{layer.raw_name}": layer.projected() for name, layer in held_layers(model).items()}


def _leaf(p: Tensor) -> Tensor:
    """A stacked parameter, ready to be trained."""
    if p.dim() == 3 and len(p) > 1 and p.shape[1] >= NARROW:
        p = p.mT.contiguous().mT  # column-major, as gradients under bmm: arithmetic on two layouts is slow
    return p.requires_grad_()


class _Apply(nn.Module):
    """A function of a model as a module, so that ``functional_call`` can run it on another state."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self.model, *inputs)


class _NarrowLayers(TorchFunctionMode):
    """Linear layers of few units on a CPU by :class:`_NarrowProduct`."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and _is_narrow(*args[:2]):
            x, w, *bias = args
            product = _NarrowProduct.apply(x, w)
            return product if not bias or bias[0] is None else product + bias[0]
        return func(*args, **(kwargs or {}))


def _is_narrow(x: Tensor, w: Tensor) -> bool:
    on_cpu = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return on_cpu and x.dim() == 2 and len(w) < NARROW


class _NarrowProduct(torch.autograd.Function):
    """``x w^T`` as ``(w x^T)^T``, with ``x [..., batch, inputs]`` and ``w [..., units, inputs]``.

    MKL multiplies ``[batch, inputs]`` by ten columns at a quarter of the speed of ten rows by ``[inputs,
    batch]``, and a softmax of logits that lie class by class runs over neighbouring numbers. Autograd would
    return the gradient of x transposed, on which the activation's gradient takes as long as a product.
    """

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return (w @ x.mT).mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return grad @ w, grad.mT @ x

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], x: Tensor, w: Tensor) -> tuple[Tensor, int]:
        members = [
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip((x, w), in_dims, strict=True)
        ]
        return _NarrowProduct.apply(*members), 0
