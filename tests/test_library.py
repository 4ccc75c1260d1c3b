"""The library: what is normalised, by which name, what is told of the rest, what a layer keeps."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from norm_cases import LAYERS, make_plain
from torch import fx, nn
from torch.nn.functional import linear

import wn
from wn import fold, normalize, parameter_groups, summary
from wn.norm import NormalizedLayer, normalized_layers
from wn.presets import PRESETS


def test_the_names_of_the_library_need_torch_alone() -> None:
    program = (
        "import sys, wn; assert 'torch' not in sys.modules\n"
        "for name in set(wn.__all__) - {'load'}: getattr(wn, name)\n"  # load is the bench's
        "print([m for m in ('pydantic', 'hydra', 'pandas', 'omegaconf', 'torchvision') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"
    assert {"normalize", "data_dependent_init", "NormalizedLayer", "fold"} <= set(dir(wn))
    with pytest.raises(AttributeError, match="has no attribute 'normalise'"):
        _ = wn.normalise  # type: ignore[attr-defined]


# What is normalised ----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", PRESETS)
def test_a_norm_is_taken_by_name(norm: str) -> None:
    layer: Any = normalize(nn.Sequential(nn.Linear(4, 4)), norm)[0]  # type: ignore[index]
    for choice, value in PRESETS[norm].items():
        if choice != "output_layers":
            assert getattr(layer, choice) == value
    plain = {"direction": "plain", "gain": "none", "statistics": "none", "init": "default"}
    assert all(getattr(layer, k) == value for k, value in plain.items() if k not in PRESETS[norm])


def test_an_override_goes_before_the_preset_and_mistakes_are_named() -> None:
    layer: Any = normalize(nn.Linear(3, 2), "weight_norm", init="data", eps=1e-3)
    assert (layer.direction, layer.gain, layer.init, layer.eps) == ("row", "free", "data", 1e-3)
    with pytest.raises(ValueError, match=r"^norm='weightnorm': expected one of none, .*weight_norm"):
        normalize(nn.Linear(3, 2), "weightnorm")
    with pytest.warns(UserWarning, match="found no layer"):
        normalize(nn.ReLU())


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, ["stem", "body.0", "body.1.fc", "head"]),
        ({"skip": "head"}, ["stem", "body.0", "body.1.fc"]),
        ({"only": "body"}, ["body.0", "body.1.fc"]),
        ({"only": ["stem", "*.fc"]}, ["stem", "body.1.fc"]),
        ({"only": "body", "skip": ["body.?.fc"]}, ["body.0"]),
    ],
)
def test_layers_are_chosen_by_name(options: dict[str, Any], found: list[str]) -> None:
    inner = nn.ModuleDict({"fc": nn.Linear(2, 2)})
    body = nn.Sequential(nn.Linear(2, 2), inner)
    model = nn.ModuleDict({"stem": nn.Linear(2, 2), "body": body, "head": nn.Linear(2, 2)})
    assert list(normalized_layers(normalize(model, **options))) == found


@pytest.mark.parametrize("option", ["only", "skip"])
def test_a_name_that_no_layer_has_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=r"^no layer is called 'haed'; there are 0, 1"):
        normalize(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), **{option: "haed"})


class Subclass(nn.Linear):
    """Its forward pass might be another one."""


WITHOUT_LAYERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "lstm": (lambda: nn.LSTM(3, 4), "in a LSTM"),
    "gru": (lambda: nn.GRU(3, 4), "in a GRU"),
    "cell": (lambda: nn.LSTMCell(3, 4), "in a LSTMCell"),
    "attention": (lambda: nn.MultiheadAttention(4, 2), "in a MultiheadAttention"),
    "bilinear": (lambda: nn.Bilinear(3, 4, 5), "in a Bilinear"),
    "subclass": (lambda: Subclass(3, 4), "a subclass of Linear"),
}


@pytest.mark.parametrize("name", WITHOUT_LAYERS)
def test_matrices_that_are_left_are_named(name: str) -> None:
    build, why = WITHOUT_LAYERS[name]
    model = nn.ModuleDict({"fc": nn.Linear(3, 4), "other": build()})
    with pytest.warns(UserWarning, match=rf"^not normalised: other \({why}\); see wn.summary\(model\)$"):
        normalize(model)
    done, left = summary(model).split("not normalised")
    assert done.splitlines()[1].split() == ["fc", "1", "Linear", "12", "weight_norm"]
    assert all(line.startswith("other.") for line in left.splitlines()[1:])
    assert why in left
    normalize(nn.ModuleDict({"fc": nn.Linear(3, 4), "other": build()}), only="fc")  # as asked for: no warning


REPARAMETERISED = "reparameterised already: normalise the plain layer and load its state"


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), "padded with zeros"),
        (lambda: nn.utils.weight_norm(nn.Linear(2, 2)), REPARAMETERISED),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), REPARAMETERISED),
        (lambda: nn.utils.parametrizations.spectral_norm(nn.Conv1d(2, 2, 3)), REPARAMETERISED),
    ],
)
def test_a_layer_that_cannot_be_normalised_stops_all_or_is_skipped(bad: Any, message: str) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        zero = nn.Linear(2, 2)
        nn.init.zeros_(zero.weight)
        return nn.Sequential(nn.Linear(2, 2), zero, bad())

    for norm in ("weight_norm", "arpit_weight_norm", "forced_weight_norm"):
        ours, before = model(), model().state_dict()
        with pytest.raises(TypeError, match=rf"^2: .*{message}.*skip='2'"):
            normalize(ours, norm)
        assert not normalized_layers(ours)
        for key, tensor in ours.state_dict().items():
            assert torch.equal(tensor, before[key])
        assert len(normalized_layers(normalize(ours, norm, skip="2"))) == 2


@pytest.mark.parametrize("layer", [nn.MaxPool2d(2), nn.LSTM(2, 2), nn.ReLU()])
def test_what_is_no_layer_is_not_called_reparameterised(layer: nn.Module) -> None:
    with pytest.raises(TypeError, match=r"^cannot normalise .*: expected Linear, Conv or ConvTranspose"):
        NormalizedLayer(layer)


# What a layer keeps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_has_the_attributes_of_the_one_it_replaces(name: str) -> None:
    plain, x = make_plain(name)
    layer = NormalizedLayer(make_plain(name)[0])
    for attribute in plain.__constants__:  # type: ignore[union-attr]
        assert getattr(layer, attribute) == getattr(plain, attribute)
    torch.testing.assert_close(layer.weight, plain.weight)
    if isinstance(plain, nn.Linear):
        y = linear(x, layer.weight, layer.bias)
        torch.testing.assert_close(y, layer(x))
        assert all(bool(slope.any()) for slope in torch.autograd.grad(y.sum(), [layer.v, layer.g]))


def test_a_subclass_knows_the_sizes_while_it_is_made() -> None:
    class Own(NormalizedLayer):
        def direction_norm(self) -> torch.Tensor:
            return super().direction_norm() * (self.in_features == 3)

    assert Own(nn.Linear(3, 2)).g.ne(0).all()


def test_what_other_code_has_put_on_a_layer_is_kept_there_and_back() -> None:
    source: Any = nn.Linear(3, 2)
    source.lr_mult, source.scale, source._private = 2, "mine", 1
    model: Any = normalize(nn.Sequential(source))
    model[0].note = "later"
    assert (model[0].lr_mult, model[0].scale) == (2, "none")  # its own choices stay
    plain = fold(model)[0]  # type: ignore[index]
    kept = {name for name in vars(plain) if not name.startswith("_")}
    assert kept == {name for name in vars(nn.Linear(3, 2)) if name[0] != "_"} | {"lr_mult", "note"}


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (3, 5, 4)])
def test_a_transposed_convolution_takes_an_output_size(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain: Any = nn.ConvTranspose2d(3, 5, 3, stride=2, padding=1, output_padding=1)
    layer: Any = normalize(copy.deepcopy(plain))
    x = torch.randn(shape)
    for size in ([9, 8], torch.Size((10, 7)), plain(x).shape):
        torch.testing.assert_close(layer(x, output_size=size), plain(x, output_size=size))
    with pytest.raises(ValueError, match="valid sizes range from"):
        layer(x, output_size=(20, 20))
    with pytest.raises(ValueError, match="must have"):
        layer(x, output_size=(7, 7, 7, 9, 8))


class Up(nn.Module):
    def __init__(self, norm: str) -> None:
        super().__init__()
        self.up = normalize(nn.ConvTranspose1d(3, 4, 3, stride=2), norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.up(x, output_size=[10])
        return y


def test_an_output_size_reaches_initialisation_and_traces() -> None:
    torch.manual_seed(0)
    model, x = Up("weight_norm_init"), torch.randn(6, 3, 4)
    y = wn.data_dependent_init(model, x)
    assert y.shape == (6, 4, 10)
    torch.testing.assert_close(y.std((0, 2), correction=0), torch.ones(4))
    torch.testing.assert_close(fx.symbolic_trace(model)(x), y)
    with pytest.raises(
        TypeError, match=r"^output_size is for a transposed convolution, and this layer is Linear"
    ):
        normalize(nn.Linear(3, 2))(torch.randn(4, 3), output_size=(2,))


@pytest.mark.parametrize("training", [True, False])
def test_hooks_and_mode_are_kept_there_and_back(training: bool) -> None:
    source, calls = nn.Linear(3, 2).train(training), []
    handles = [
        source.register_forward_pre_hook(lambda *_: calls.append("before")),
        source.register_forward_hook(lambda *_: calls.append("after")),
        source.register_forward_hook(lambda *_, **__: calls.append("named"), with_kwargs=True),
        source.register_full_backward_hook(lambda *_: calls.append("backward")),
    ]
    model = normalize(nn.Sequential(source))
    for net in (model, fold(model)):
        net(torch.randn(4, 3, requires_grad=True)).sum().backward()
        assert calls == ["before", "after", "named", "backward"]
        assert net[0].training == training  # type: ignore[index]
        calls.clear()
    for handle in handles:
        handle.remove()
    model(torch.randn(4, 3)).sum().backward()
    assert calls == []


@pytest.mark.parametrize("norm", PRESETS)
def test_what_is_frozen_stays_frozen(norm: str) -> None:
    layer: Any = normalize(nn.Conv2d(2, 4, 3).requires_grad_(False), norm)
    assert not any(p.requires_grad for p in layer.parameters())
    layer.eval()
    if wn.norm.properties(PRESETS[norm]).foldable:
        assert not any(p.requires_grad for p in fold(layer).parameters())
        (layer.g if norm == "weight_norm" else layer.bias).requires_grad_(True)
        trained = {name for name, p in fold(layer).named_parameters() if p.requires_grad}
        assert trained == {"weight" if norm == "weight_norm" else "bias"}


def test_a_tied_parameter_is_in_one_group_once() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4, padding_idx=0), "head": nn.Linear(4, 5)})
    model["head"].weight = model["embedding"].weight
    normalize(model)
    head: Any = model["head"]
    assert head.v is model["embedding"].weight
    assert not head.v[0].any()  # padding; no direction is drawn for it
    groups = parameter_groups(model)
    assert [p is head.v for p in groups["weight"]] == [True]
    assert groups["other"] == []


# Weights of zero -------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["row", "centered", "layer", "spectral"])
@pytest.mark.parametrize("gain", ["free", "exp", "fixed"])
def test_a_layer_that_starts_at_zero_stays_that_function_and_learns(direction: str, gain: str) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(6, 4)
    nn.init.zeros_(plain.weight)
    x, target = torch.randn(50, 6), torch.randn(50, 6) @ torch.randn(6, 4)
    layer = NormalizedLayer(copy.deepcopy(plain), direction=direction, gain=gain)  # type: ignore[arg-type]
    torch.testing.assert_close(layer(x), plain(x))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        losses.append((layer(x) - target).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert layer.effective_weight().norm(dim=1).min() > 0
    assert losses[-1] < losses[0]


def test_a_zero_unit_alone_gets_a_direction_and_the_others_keep_theirs() -> None:
    plain = nn.ConvTranspose2d(4, 6, 2, groups=2)
    with torch.no_grad():
        plain.weight[:2, 1] = 0
    before, random = plain.weight.clone(), torch.get_rng_state()
    layer = NormalizedLayer(plain)
    assert (layer.g == 0).tolist() == [False, True, False, False, False, False]
    torch.testing.assert_close(layer.effective_weight(), before)
    assert layer.v[:2, 1].abs().min() > 0
    assert not torch.equal(torch.get_rng_state(), random)  # torch's generator is used where it must be
