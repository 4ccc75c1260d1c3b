"""The contracts that ``python -m wn.check`` calls: every preset keeps them, and each finds what breaks it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from wn import check, grammar
from wn.config.compose import compose
from wn.contracts import CONTRACTS, PROPERTIES, Subject
from wn.models import with_norm
from wn.presets import PRESETS


@pytest.mark.parametrize("kind", check.KINDS)
@pytest.mark.parametrize("norm", PRESETS)
def test_every_preset_keeps_every_contract(norm: str, kind: str) -> None:
    config = compose({"norm": norm})
    for contract in CONTRACTS.values():
        contract(Subject(lambda layer: with_norm(layer, config.norm), *check.KINDS[kind]))


@pytest.mark.parametrize("norm", PRESETS)
def test_the_measured_properties_are_the_declared_ones(norm: str) -> None:
    config = compose({"norm": norm})
    subject = Subject(lambda layer: with_norm(layer, config.norm), *check.KINDS["Linear"])
    measured = {name: measure(subject) for name, measure in PROPERTIES.items()}
    assert measured == grammar.properties(config.norm.model_dump(), dense=True)._asdict()


class Broken(nn.Module):
    """A layer with one fault, which a contract is to find."""

    fault = ""
    calls: Tensor

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.shared = layer.weight if self.fault == "copy" else None
        self.factor = 1.0 + torch.rand(()).item() if self.fault == "state" else 1.0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x * self.factor)
        if self.fault == "nan":
            return y / (self.training - 1.0)
        if self.fault == "gradient":
            return y + y.detach() ** 2
        if self.fault == "parameter":
            with torch.no_grad():
                self.layer.weight.div_(2)  # type: ignore[operator, union-attr]
        if self.fault == "stack":
            return y * float(y.detach().sum() > 0)
        if self.fault == "evaluation":
            self.calls += 1
            return y * self.calls
        return y

    def __deepcopy__(self, memo: object) -> nn.Module:
        clone = type(self)(self.layer)
        clone.load_state_dict(self.state_dict())
        return clone


FAULTS = {
    "nan": "outputs and gradients are finite",
    "gradient": "gradients are those of finite differences",
    "parameter": "a forward pass changes no parameter",
    "stack": "a stack is its members alone",
    "state": "state dict goes round",
    "copy": "copies are independent",
    "evaluation": "evaluation is deterministic",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_contract_finds_its_fault(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "KINDS", {"Linear": (lambda: nn.Linear(3, 2), (4, 3))})
    broken = type("Broken", (Broken,), {"fault": fault})
    findings = {finding.contract: finding for finding in check.check(broken, {})}
    assert findings.keys() >= set(FAULTS.values()) == set(CONTRACTS)
    assert findings[FAULTS[fault]].holds is False


def plain(layer: nn.Module) -> nn.Module:
    return layer


@pytest.mark.parametrize(
    ("make", "declared", "line"),
    [
        (plain, {"foldable": True}, ("foldable", True, "yes, declared yes")),
        (plain, {"invariant": "unit"}, ("invariant", False, "none, declared unit")),
        (plain, {}, ("batch of one", None, "yes (nothing declared)")),
    ],
)
def test_properties_are_compared_with_what_is_declared(
    make: Callable[[nn.Module], nn.Module], declared: dict[str, object], line: tuple[str, bool, str]
) -> None:
    assert check.Finding(*line) in check.check(make, declared)


@pytest.mark.parametrize(
    "words", [["docs/examples/own.py"], ["plugins=[docs/examples/own.py]", "norm=power_norm"]]
)
def test_the_command_prints_a_line_each(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(words) == 0
    name, heading, *lines = capsys.readouterr().out.splitlines()
    assert (name, heading.split()) == ("power_norm", ["contract", "holds", "measured"])
    assert len(lines) == len(CONTRACTS) + len(PROPERTIES)
    assert not any(" NO " in line for line in lines)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["wight_norm"], "norm=wight_norm: no such preset; did you mean 'weight_norm'?"),
        (["weight_norm", "none"], "weight_norm none: one norm at a time"),
        (["norm.init=data"], "0 norms in no file; choose one: norm=NAME"),
        (["missing.py"], "plugins=missing.py: no such file"),
        (["weight_norm", "norm.eps=[1"], "norm.eps=[1: line 1: "),
        (["weight_norm", "norm.eps=010"], "norm.eps=010: line 1: 010 has several meanings"),
        (["plugins=[missing.py]", "norm=mine"], "plugins=missing.py: no such file"),
        (["none", "norm.gain=fre"], "norm.gain=fre: Input should be 'none', 'free'"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(words) == 2
    found = capsys.readouterr().err
    assert found.startswith(f"error: {line}")
    assert found.count("\n") == 1
