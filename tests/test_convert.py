"""Whole models: normalised, folded, loaded from the state dicts of others, grouped for weight decay."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from norm_cases import BOTH, NORMS, every_case, make, make_plain
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from wn.norm import (
    NormalizedLayer,
    data_dependent_init,
    fold,
    normalize,
    normalized_layers,
    parameter_groups,
    properties,
)


def old_weight_norm(layer: nn.Module) -> nn.Module:
    return torch.nn.utils.weight_norm(layer)


SOURCES = {
    "plain": lambda layer: layer,
    "parametrization": parametrizations.weight_norm,
    "parametrization-whole": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "parametrization-units": lambda layer: parametrizations.weight_norm(
        layer, dim=1 if "Transpose" in type(layer).__name__ else 0
    ),
    "old": old_weight_norm,
}


def normalized(model: nn.Module, norm: str, **options: Any) -> Any:
    return normalize(model, **NORMS[norm], activation="relu", **options)


def source_layer(name: str, source: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    plain, x = make_plain(name, seed=seed)
    layer = SOURCES[source](plain)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return nn.Sequential(layer, nn.Tanh()), x


FOLDABLE = [norm for norm, choices in NORMS.items() if properties(choices).foldable]
FREE = [
    norm
    for norm in FOLDABLE
    if NORMS[norm]["direction"] == "plain"
    or (NORMS[norm]["direction"] != "centered" and NORMS[norm]["gain"] not in ("none", "fixed_layer"))
]
"""The norms of which a layer can have any weight and, in evaluation, be any plain layer."""


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@every_case(FREE, layers=BOTH, dtypes=["float64"])
def test_state_dicts_of_others_load(norm: str, name: str, dtype: torch.dtype) -> None:
    for source in SOURCES:
        theirs, x = source_layer(name, source)
        ours = normalized(nn.Sequential(make_plain(name, seed=1)[0], nn.Tanh()), norm, eps=1e-14)
        state = theirs.state_dict()
        kept = copy.deepcopy(state)
        ours.load_state_dict(state)
        assert state.keys() == kept.keys()
        torch.testing.assert_close(ours.eval()(x), theirs(x), rtol=1e-9, atol=1e-9, msg=source)
        data_dependent_init(ours, x)  # what was trained is not initialised again
        torch.testing.assert_close(ours.eval()(x), theirs(x), rtol=1e-9, atol=1e-9, msg=source)
        layer = ours[0]
        keeps_v = layer.direction == "row" and layer.scale == "none" and layer.gain in ("free", "fixed")
        if source == "parametrization-units" and keeps_v and layer.hold != "unit" and "groups" not in name:
            assert torch.equal(layer.v, state["0.parametrizations.weight.original1"])


@every_case(layers=BOTH, dtypes=["float64"])
def test_own_state_dicts_load_into_a_normalised_model(norm: str, name: str, dtype: torch.dtype) -> None:
    case = make(norm, name, dtype)
    model = normalized(make_plain(name, seed=1)[0], norm)
    model.load_state_dict(case.layer.state_dict())
    clone = copy.deepcopy(model)  # the hook is copied too, and serves the copy
    for loaded in (model, clone):
        assert torch.equal(loaded.eval()(case.x), case.layer.eval()(case.x))
    clone.load_state_dict(make_plain(name, seed=2)[0].state_dict())
    assert torch.equal(model(case.x), case.layer(case.x))
    assert not torch.allclose(clone(case.x), case.layer(case.x))


def test_what_is_missing_is_named() -> None:
    model = normalize(nn.Sequential(nn.Linear(3, 2)), direction="row", gain="free")
    with pytest.raises(RuntimeError, match=r"0\.bias"):
        model.load_state_dict({"0.weight": torch.zeros(2, 3)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict({"0.weight": torch.zeros(3, 3), "0.bias": torch.zeros(2)})


@every_case(FOLDABLE)
def test_folded_layers_are_torchs_with_equal_outputs(norm: str, name: str, dtype: torch.dtype) -> None:
    case = make(norm, name, dtype)
    model = nn.Sequential(case.layer, nn.Tanh()).eval()
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    with torch.no_grad():
        plain = fold(model)
    assert torch.equal(torch.get_rng_state(), random)
    layer = plain[0]
    assert type(layer) is type(case.plain)
    for option in case.layer.options:
        assert getattr(layer, option) == getattr(case.plain, option)
    torch.testing.assert_close(plain(case.x), model(case.x), **case.tolerance)
    assert not plain[0].training
    for parameter in plain.parameters():
        assert type(parameter) is nn.Parameter
        assert parameter.requires_grad
        assert parameter.dtype == dtype
        parameter.data.zero_()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@every_case(FOLDABLE, layers=BOTH, dtypes=["float64"])
def test_folding_then_normalising_is_a_round_trip(norm: str, name: str, dtype: torch.dtype) -> None:
    case = make(norm, name, dtype)
    again = normalize(fold(case.layer), direction="row", gain="free")
    torch.testing.assert_close(again(case.x), case.layer.eval()(case.x), **case.tolerance)


class Nested(nn.Module):
    """A layer of its own, one used at two places, and one that cannot be normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3)
        shared = nn.Linear(8, 8)
        self.body = nn.Sequential(shared, nn.ReLU(), shared)
        self.again = shared
        self.normal = nn.LayerNorm(8)

    def forward(self, x: Any) -> Any:
        return self.normal(self.again(self.body(self.first(x).flatten(1))))


def test_every_layer_of_a_model_once_and_shared_layers_stay_shared() -> None:
    torch.manual_seed(0)
    model, x = Nested(), torch.randn(3, 1, 4, 4)
    parameters, y = dict(model.named_parameters()), model(x)
    normal = normalize(model, direction="row", gain="free")
    assert normal is model
    assert list(normalized_layers(model)) == ["first", "body.0"]
    assert model.body[0] is model.body[2] is model.again
    assert model.again.v is parameters["body.0.weight"]
    torch.testing.assert_close(model(x), y)
    plain = fold(model)
    assert type(plain.again) is nn.Linear
    assert plain.again is plain.body[0] is plain.body[2]
    torch.testing.assert_close(plain(x), y)
    model.load_state_dict(Nested().state_dict())


def test_parameter_groups_hold_each_parameter_once() -> None:
    model = normalize(Nested(), direction="row", gain="free")
    groups = parameter_groups(model)
    assert {kind: len(members) for kind, members in groups.items()} == {
        "weight": 2, "g": 2, "bias": 2, "other": 2,
    }  # fmt: skip
    grouped = [id(p) for members in groups.values() for p in members]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    layers = normalized_layers(model).values()
    assert {id(p) for p in groups["g"]} == {id(layer.g) for layer in layers}


def test_weight_decay_can_leave_g_alone() -> None:
    torch.manual_seed(0)
    layer = normalize(nn.Linear(4, 3), direction="row", gain="free")
    assert isinstance(layer, NormalizedLayer)
    groups = parameter_groups(layer)
    before = copy.deepcopy(layer)
    optimiser = torch.optim.SGD(
        [{"params": groups["weight"], "weight_decay": 0.5}, {"params": groups["g"] + groups["bias"]}], lr=0.1
    )
    (0 * layer(torch.randn(2, 4)).sum()).backward()
    optimiser.step()
    assert torch.equal(layer.g, before.g)
    torch.testing.assert_close(layer.v, 0.95 * before.v)


def test_the_state_of_an_initialized_model_loads_where_nothing_waits_for_data() -> None:
    waited = normalize(nn.Sequential(nn.Linear(3, 4)), init="data")
    x = torch.randn(20, 3)
    y = data_dependent_init(waited, x)
    plain = normalize(nn.Sequential(nn.Linear(3, 4)))
    plain.load_state_dict(waited.state_dict())
    torch.testing.assert_close(plain(x), y)


# Checkpoints that people have ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_of_a_checkpoint_in_half_precision_are_taken_in_full(source: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    theirs = nn.Sequential(SOURCES[source](nn.Linear(500, 8))).to(dtype)
    ours = normalize(nn.Sequential(nn.Linear(500, 8)))
    ours.load_state_dict(theirs.state_dict())
    x = torch.eye(500)
    torch.testing.assert_close(ours(x).double(), theirs.double()(x.double()), rtol=1e-5, atol=1e-7)


@every_case(FREE, layers=BOTH, dtypes=["float64"])
def test_a_plain_state_resets_a_trained_layer(norm: str, name: str, dtype: torch.dtype) -> None:
    """As if it had been loaded into a new one."""
    trained = normalized(make_plain(name, seed=1)[0], norm)
    with torch.no_grad():
        for tensor in trained.state_dict().values():
            tensor.copy_(
                torch.rand_like(tensor.double()) > 0.5 if tensor.dtype == torch.bool else tensor * 2 + 1
            )
    new = normalized(make_plain(name, seed=2)[0], norm)
    for layer in (trained, new):
        layer.load_state_dict(make_plain(name, seed=3)[0].state_dict())
    for key, tensor in new.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[key], tensor, msg=key)


@pytest.mark.parametrize("units", [1, 3])
@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv1d, nn.ConvTranspose1d])
def test_one_norm_for_the_whole_weight_loads(kind: Any, units: int) -> None:
    options = (4, units) if kind is nn.Linear else (4, units, 2)
    theirs = nn.Sequential(parametrizations.weight_norm(kind(*options), dim=None))
    ours = normalize(nn.Sequential(kind(*options)))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 4) if kind is nn.Linear else torch.randn(5, 4, 6)
    torch.testing.assert_close(ours(x), theirs(x))


@every_case(layers=["linear"], dtypes=["float64"])
def test_an_own_state_that_lacks_a_key_is_reported(norm: str, name: str, dtype: torch.dtype) -> None:
    model = normalized(nn.Sequential(make_plain(name)[0]), norm)
    state = model.state_dict()
    for key in state:
        kept = {other: tensor for other, tensor in state.items() if other != key}
        if set(kept) == {"0.weight", "0.bias"}:
            continue  # that is a plain layer's whole state
        with pytest.raises(RuntimeError, match=f'Missing key.*"{key}"'):
            model.load_state_dict(kept)


def test_a_plain_head_of_zeros_loads_and_can_learn() -> None:
    head = nn.Linear(6, 4)
    nn.init.zeros_(head.weight)
    model: Any = normalize(nn.Sequential(nn.Linear(6, 4)))
    model.load_state_dict({f"0.{key}": tensor for key, tensor in head.state_dict().items()})
    x = torch.randn(9, 6)
    torch.testing.assert_close(model(x), head(x))
    model(x).square().mean().backward()
    assert model[0].g.grad.abs().min() > 0
