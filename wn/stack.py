"""A stack: models of one architecture, trained together along a leading axis.

Members never interact: a forward pass is ``torch.vmap`` of the one model over stacked parameters and
buffers, so the gradient of the sum of their losses holds, slice by slice, each member's own gradient.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from wn.norm import held_layers, initializing, parameter_groups

Tensors = dict[str, Tensor]


class Stack:
    """The stacked state of models of equal architecture; the first is the template that all run through.

    Attributes:
        params: name to ``[members, ...]``, leaves that require gradients.
        buffers: name to ``[members, ...]``, changed in place by a training pass; frozen parameters too.
        kinds: of each parameter, its group in :func:`wn.norm.parameter_groups`.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.template = models[0]
        self.holds = bool(held_layers(self.template))
        kind_of = {p: kind for kind, own in parameter_groups(self.template).items() for p in own}
        self.kinds = {k: kind_of[p] for k, p in self.template.named_parameters() if p.requires_grad}
        named = [dict([*model.named_parameters(), *model.named_buffers()]) for model in models]
        stacked = {k: torch.stack([tensors[k].detach() for tensors in named]) for k in named[0]}
        self.params = {k: _leaf(stacked.pop(k)) for k in self.kinds}
        self.buffers = stacked

    def __len__(self) -> int:
        return len(next(itertools.chain(self.params.values(), self.buffers.values())))

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
            return torch.vmap(one, in_dims=dims)(self.params, self.buffers, *inputs)
        params, buffers = ({k: t.squeeze(0) for k, t in s.items()} for s in (self.params, self.buffers))
        result = one(params, buffers, *(inputs if shared else [x.squeeze(0) for x in inputs]))
        return tree_map(lambda t: t.unsqueeze(0), result)

    def train(self, mode: bool = True, passes: int = 0) -> Stack:
        """Set training or evaluation mode. Evaluation's random numbers begin anew, after ``passes``."""
        self.template.train(mode)
        for name, buffer in self.buffers.items():
            if name.endswith("evaluations"):
                buffer.fill_(passes)
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
                if name in self.params:  # else it is frozen
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
    if p.dim() == 3 and len(p) > 1:  # column-major, as gradients under bmm: arithmetic on two layouts is slow
        p = p.mT.contiguous().mT
    return p.requires_grad_()


class _Apply(nn.Module):
    """A function of a model as a module, so that ``functional_call`` can run it on another state."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self.model, *inputs)
