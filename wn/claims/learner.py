"""A stack of models and its optimiser, for losses that :mod:`wn.trainer` does not know: sequences, games."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from wn.config import OptimConfig
from wn.models.init import init_weights_
from wn.optim import Optimizer
from wn.stack import Stack


class Learner:
    """Models of one architecture, trained together (:mod:`wn.stack`), each with its own optimiser's numbers.

    Args:
        clip: upper bound of the norm of a member's whole gradient (Pascanu et al., 2013); None: no bound.
    """

    def __init__(
        self, models: Sequence[nn.Module], optims: Sequence[OptimConfig], clip: float | None = None
    ) -> None:
        self.stack, self.clip = Stack(models), clip
        self.optimizer = Optimizer(optims, self.stack.params, self.stack.kinds)

    def step(self, loss: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """One update by ``loss(model, *inputs)``, a scalar; inputs ``[members, ...]``. Returns the losses."""
        self.stack.train()
        losses: Tensor = self.stack.map(loss, *inputs)
        grads = gradients(self.stack, losses.sum())
        self.optimizer.step(grads if self.clip is None else clipped(grads, self.clip))
        return losses.detach()


def gradients(stack: Stack, loss: Tensor) -> dict[str, Tensor]:
    """Of a loss by each parameter of a stack."""
    return dict(zip(stack.params, torch.autograd.grad(loss, list(stack.params.values())), strict=True))


def clipped(grads: dict[str, Tensor], bound: float) -> dict[str, Tensor]:
    """Gradients ``[members, ...]``, each member's scaled so that their common norm is at most ``bound``."""
    squares = torch.stack([g.flatten(1).square().sum(1) for g in grads.values()])
    factor = (bound / squares.sum(0).sqrt()).clamp_max(1)
    return {name: g * factor.view([-1] + [1] * (g.dim() - 1)) for name, g in grads.items()}


class LSTMCell(nn.Module):
    """Long short-term memory (Hochreiter & Schmidhuber, 1997; forget gate: Gers et al., 2000)::

        i, f, o, u = input(x) + hidden(h);  c <- sigmoid(f) c + sigmoid(i) tanh(u);  h <- sigmoid(o) tanh(c)

    The two products are layers of their own, so that :func:`wn.norm.normalize` converts them. Layer
    normalisation is then of each product, as in Ba et al. (2016), equation 20, with the cell left plain.
    """

    def __init__(self, inputs: int, units: int, init: Callable[[nn.Linear], nn.Linear], forget: float = 0.0):
        super().__init__()
        self.units = units
        self.input = init(nn.Linear(inputs, 4 * units))
        self.hidden = init(nn.Linear(units, 4 * units, bias=False))
        with torch.no_grad():
            self.input.bias[units : 2 * units] = forget

    def start(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """h and c before the first step, zero, for a batch x."""
        zero = x.new_zeros(len(x), self.units)
        return zero, zero

    def gate_inputs(self, x: Tensor, h: Tensor) -> Tensor:
        """i, f, o and u side by side, before their functions: ``[batch, 4 units]``."""
        found: Tensor = self.input(x) + self.hidden(h)
        return found

    def after(self, gate_inputs: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The next h and c."""
        i, f, o, u = gate_inputs.chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(u)
        return torch.sigmoid(o) * torch.tanh(c), c

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        return self.after(self.gate_inputs(x, h), c)


def glorot(layer: nn.Linear) -> nn.Linear:
    return init_weights_(layer, "glorot")


def reached(curve: Tensor, target: float | Tensor) -> Tensor:
    """Epoch at which curves ``[..., epochs + 1]`` first reach a target ``[...]``, linear between epochs.

    Where a curve never does: one epoch more than there are.

    >>> reached(torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.1, 0.2]]), 0.75).tolist()
    [1.5, 3.0]
    """
    goal = torch.as_tensor(target, dtype=curve.dtype).expand(curve.shape[:-1])[..., None]
    above = curve >= goal
    last = curve.shape[-1] - 1
    first = above.to(torch.uint8).argmax(-1, keepdim=True)  # 0 where there is none, too
    before = (first - 1).clamp_min(0)
    low, high = curve.gather(-1, before), curve.gather(-1, first)
    share = ((goal - low) / (high - low)).nan_to_num(nan=1.0)  # after a bound that is no number
    share = torch.where(first > 0, share, torch.zeros_like(share))
    found = torch.where(above.any(-1, keepdim=True), before + share, torch.full_like(low, last + 1.0))
    return found[..., 0]
