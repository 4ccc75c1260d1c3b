"""What every norm promises, and what differs between norms, as functions that measure it.

A contract says what it measured, and raises AssertionError where that is not as it should be. ``python -m
wn.check`` calls them for a user's norm, the test suite for every preset.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from wn.norm import project_

Make = Callable[[nn.Module], nn.Module]
State = dict[str, Tensor]
MEMBERS = 3
NEARLY = 1e-2
"""Of properties that hold but for the epsilon under a root."""

TOLERANCE = 1e-9  # in float64


class Subject(NamedTuple):
    """A kind of layer under a norm, in float64."""

    make: Make
    plain: Callable[[], nn.Module]
    """A layer of torch, drawn from the global generator."""
    shape: tuple[int, ...]
    """Of its input."""

    def layer(self, seed: int = 0) -> nn.Module:
        """The layer with initial weights of a seed, at the start of training."""
        torch.manual_seed(seed)
        return progressed(self.make(self.plain().double()), 0)

    def x(self, seed: int = 0) -> Tensor:
        torch.manual_seed(100 + seed)
        return torch.randn(self.shape, dtype=torch.float64) + torch.randn(self.shape[1:], dtype=torch.float64)

    def far(self, a: Tensor, b: Tensor) -> float:
        """The largest difference, relative to the largest entry."""
        return float((a - b).abs().max() / b.abs().max().clamp(min=1e-300))

    def equal(self, a: Tensor, b: Tensor, what: str, loose: float = 1) -> float:
        assert a.shape == b.shape, f"{what}: shape {tuple(a.shape)}, not {tuple(b.shape)}"
        difference = self.far(a.detach(), b.detach())
        assert difference <= loose * TOLERANCE, f"{what} differs by {difference:.1e}"
        return difference


def progressed(layer: nn.Module, share: float) -> nn.Module:
    """The layer after a share of the training: batch renormalisation starts as batch normalisation."""
    for name, buffer in layer.named_buffers():
        if name == "progress":
            buffer.fill_(share)
    return layer


def finite(subject: Subject) -> str:
    """Outputs and gradients are finite, in training and in evaluation, and every parameter has a gradient."""
    layer, largest = subject.layer(), 0.0
    for training in (True, False):
        x = subject.x().requires_grad_()
        y = layer.train(training)(x)
        plain = subject.plain().double()(x)
        assert y.shape == plain.shape, f"output {tuple(y.shape)}, not {tuple(plain.shape)}"
        y.pow(3).sum().backward()
        found = {
            "output": y.detach(),
            "input": x.grad,
            **{k: p.grad for k, p in layer.named_parameters() if p.requires_grad},
        }
        for name, tensor in found.items():
            assert tensor is not None, f"{name} has no gradient"
            assert bool(tensor.isfinite().all()), f"{name} is not finite"
        largest = max(largest, float(y.detach().abs().max()))
    return f"largest output {largest:.2g}"


def forward_changes_no_parameter(subject: Subject) -> str:
    """Parameters are the optimiser's to change."""
    layer = subject.layer()
    before = copy.deepcopy(dict(layer.named_parameters()))
    for training in (True, False):
        layer.train(training)(subject.x())
    for name, parameter in layer.named_parameters():
        assert torch.equal(parameter, before[name]), f"{name} changed"
    return f"{len(before)} parameters"


def gradients(subject: Subject) -> str:
    """Autograd's gradients are those of finite differences, in training and in evaluation."""
    layer = subject.layer()
    names = [name for name, _ in layer.named_parameters()]

    def output(x: Tensor, *parameters: Tensor) -> Tensor:
        buffers = {name: b.clone() for name, b in layer.named_buffers()}  # every call from the same state
        y: Tensor = functional_call(layer, {**dict(zip(names, parameters, strict=True)), **buffers}, (x,))
        return y.tanh()

    for training in (True, False):
        layer.train(training)
        inputs = [t.detach().clone().requires_grad_() for t in (subject.x(), *layer.parameters())]
        try:
            torch.autograd.gradcheck(output, inputs, fast_mode=True)
        except RuntimeError as error:
            raise AssertionError(str(error)) from None
    return f"of the input and {len(names)} parameters"


def stack_is_its_members(subject: Subject) -> str:
    """Members of a stack (vmap) have the outputs, gradients and buffers that they have alone."""
    return (
        f"{MEMBERS} members, largest difference {max(_stacked(subject, mode) for mode in (True, False)):.0e}"
    )


def _stacked(subject: Subject, training: bool) -> float:
    alone = [subject.layer(seed).train(training) for seed in range(MEMBERS)]
    template = subject.layer(MEMBERS).train(training)
    parameters, buffers = stack_module_state(alone)
    inputs = torch.stack([subject.x(seed) for seed in range(MEMBERS)])

    def call(p: State, b: State, x: Tensor) -> Tensor:
        y: Tensor = functional_call(template, (p, b), (x,))
        return y

    outputs = vmap(call)(parameters, buffers, inputs)
    torch.autograd.backward(outputs.pow(3).sum())  # a sum of squares is constant under batch statistics
    differences = [0.0]
    for i, layer in enumerate(alone):
        y = layer(inputs[i])
        y.pow(3).sum().backward()
        differences.append(subject.equal(outputs[i], y, f"output of member {i}"))
        slopes = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
        size = max(float(slope.abs().max()) for slope in slopes.values())
        for name, slope in slopes.items():
            stacked = parameters[name].grad
            off = float("inf") if stacked is None else float((stacked[i] - slope).abs().max()) / size
            assert off <= 10 * TOLERANCE, f"gradient of {name} differs by {off:.1e}"
        for name, buffer in layer.named_buffers():
            if buffer.is_floating_point():
                subject.equal(buffers[name][i], buffer, f"{name} of member {i}")
    return max(differences)


def state_dict_goes_round(subject: Subject) -> str:
    """A state dict that was saved and loaded gives the same outputs; a safe load suffices."""
    layer = subject.layer()
    layer(subject.x())
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = subject.layer(1)
    other.load_state_dict(torch.load(file, weights_only=True))
    subject.equal(other.eval()(subject.x()), layer.eval()(subject.x()), "output", loose=0)
    return f"{len(layer.state_dict())} tensors"


def copies_are_independent(subject: Subject) -> str:
    """A deep copy computes the same, and training it leaves the original alone."""
    layer = subject.layer()
    before, clone = copy.deepcopy(layer.state_dict()), copy.deepcopy(layer)
    subject.equal(clone.eval()(subject.x()), layer.eval()(subject.x()), "output", loose=0)
    clone.train()(subject.x()).pow(3).sum().backward()
    torch.optim.SGD(clone.parameters(), lr=0.1).step()
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} of the original changed"
    return "one step of the copy"


def evaluation_is_deterministic(subject: Subject) -> str:
    """Evaluation gives the same output twice, and changes no buffer."""
    layer = subject.layer()
    layer(subject.x())
    before = copy.deepcopy(layer.eval().state_dict())
    subject.equal(layer(subject.x()), layer(subject.x()), "second output", loose=0)
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} changed"
    return "two passes"


CONTRACTS: dict[str, Callable[[Subject], str]] = {
    "outputs and gradients are finite": finite,
    "gradients are those of finite differences": gradients,
    "a forward pass changes no parameter": forward_changes_no_parameter,
    "a stack is its members alone": stack_is_its_members,
    "state dict goes round": state_dict_goes_round,
    "copies are independent": copies_are_independent,
    "evaluation is deterministic": evaluation_is_deterministic,
}


# What may differ between norms: measured, and compared with what is declared


def weight_of(layer: nn.Module, plain: nn.Module) -> nn.Parameter:
    """The trained tensor of the weight's shape."""
    shape = plain.get_parameter("weight").shape
    found = [p for p in layer.parameters() if p.shape == shape]
    assert found, "no parameter has the weight's shape"
    return found[0]


def invariant(subject: Subject) -> str:
    """Whether the output stays when each unit's weight is rescaled (unit), or all alike (layer)."""
    for what, least in (("unit", 0.5), ("layer", 2.0)):
        layer = progressed(subject.layer(), 1)
        before, weight = layer(subject.x()).detach(), weight_of(layer, subject.plain())
        factors = torch.linspace(least, 2, len(weight), dtype=torch.float64)
        with torch.no_grad():
            weight.mul_(factors.view(-1, *[1] * (weight.dim() - 1)))
        if subject.far(layer(subject.x()).detach(), before) < NEARLY:
            return what
    return "none"


def norm_grows(subject: Subject) -> bool:
    """Whether the gradient is orthogonal to the weight, so that a step of SGD lengthens it."""
    layer = subject.layer()
    weight = weight_of(layer, subject.plain())
    before = weight.detach().clone()
    layer(subject.x()).pow(3).sum().backward()
    assert weight.grad is not None
    inner = (before * weight.grad).sum() / (before.norm() * weight.grad.norm())
    torch.optim.SGD([weight], lr=0.1).step()
    project_(layer)
    return abs(float(inner)) < NEARLY and bool(weight.norm() > before.norm())


def foldable(subject: Subject) -> bool:
    """Whether in evaluation it is an affine function of its input, as a plain layer is."""
    layer = subject.layer().eval()
    a, b = subject.x(0), subject.x(1)
    mixed = 0.3 * layer(a) + 0.7 * layer(b)
    return subject.far(layer(0.3 * a + 0.7 * b).detach(), mixed.detach()) < NEARLY


def batch_of_one(subject: Subject) -> bool:
    """Whether it can be trained with a single image: the output depends on the image."""
    layer = subject.layer()
    try:
        a, b = layer(subject.x(0)[:1]), layer(subject.x(1)[:1])
    except (RuntimeError, ValueError):
        return False
    return subject.far(a.detach(), b.detach()) > NEARLY


def deterministic(subject: Subject) -> bool:
    """Whether in training, too, an image's output is a function of that image alone."""
    a, b = subject.x(0), subject.x(1)
    outputs = [subject.layer()(torch.cat([a[:1], others[1:]]))[:1].detach() for others in (a, b)]
    return subject.far(*outputs) < NEARLY


PROPERTIES: dict[str, Callable[[Subject], str | bool]] = {
    "invariant": invariant,
    "norm_grows": norm_grows,
    "foldable": foldable,
    "batch_of_one": batch_of_one,
    "deterministic": deterministic,
}
