"""Data-dependent initialisation in models that people have: layers used twice, tied, wrapped; bad batches."""

from __future__ import annotations

import copy
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import norm_cases as cases
import pytest
import torch
from norm_cases import NORMS
from torch import Tensor, nn

from wn.models.noise import GaussianNoise
from wn.norm import NormalizedLayer, data_dependent_init, normalize, normalized_layers

WAITING = cases.having(init="data")


def twice() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer)


def tied() -> nn.Module:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second)


@pytest.mark.parametrize("norm", WAITING)
@pytest.mark.parametrize("build", [twice, tied])
def test_a_layer_that_is_used_twice_or_tied_is_set_by_its_first_use(build: Any, norm: str) -> None:
    torch.manual_seed(0)
    model, x = normalize(build().double(), **NORMS[norm], activation="relu"), torch.randn(90, 6).double()
    y = data_dependent_init(model, x)
    torch.testing.assert_close(model(x), y)  # the second use has not moved what the first has set
    first: Any = model[0]  # type: ignore[index]
    torch.testing.assert_close(
        first(x).std(0, correction=0), torch.ones(6, dtype=torch.float64), atol=1e-5, rtol=0
    )
    assert all(bool(layer.initialized) for layer in normalized_layers(model).values())


@pytest.mark.parametrize("norm", ["none_init", "scaled_init", "weight_norm_init"])
def test_weights_that_an_embedding_shares_are_not_scaled(norm: str) -> None:
    torch.manual_seed(0)
    embedding, head = nn.Embedding(9, 6), nn.Linear(6, 9)
    head.weight = embedding.weight
    model, x = normalize(nn.Sequential(embedding, head), norm), torch.arange(9)
    before = embedding.weight.detach().clone()
    if norm == "none_init":
        with pytest.warns(UserWarning, match=r"^not initialised, .* other modules share their weights: 1$"):
            y = data_dependent_init(model, x)
    else:
        y = data_dependent_init(model, x)
        torch.testing.assert_close(y.std(0, correction=0), torch.ones(9))
    assert torch.equal(embedding.weight, before)
    torch.testing.assert_close(model(x), y)


class Layers(nn.Module):
    """One layer of which the forward pass makes no use."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.auxiliary = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_layers_that_the_pass_did_not_reach_are_named_and_wait_on() -> None:
    model: Any = normalize(Layers(), "weight_norm_init")
    with pytest.warns(UserWarning, match=r"^not initialised, .*: unused, auxiliary$"):
        data_dependent_init(model, torch.randn(9, 3))
    done = [bool(layer.initialized) for layer in (model.used, model.unused, model.auxiliary)]
    assert done == [True, False, False]


BAD = [*((norm, float("nan")) for norm in WAITING), ("weight_norm_init", float("inf")), ("none_init", None)]


@pytest.mark.parametrize(("norm", "value"), BAD)
def test_a_bad_batch_changes_nothing(norm: str, value: float | None) -> None:
    torch.manual_seed(0)
    layers = [NormalizedLayer(nn.Linear(6, 6).double(), **NORMS[norm]) for _ in range(3)]
    model, x = nn.Sequential(*layers), torch.randn(40, 6, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    bad = x[:0] if value is None else torch.cat([x, torch.full_like(x[:1], value)])
    message = "an empty batch" if value is None else r"^0 puts out NaN or infinity on this batch"
    with pytest.raises(ValueError, match=message):
        data_dependent_init(model, bad)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    data_dependent_init(model, x)
    assert all(bool(layer.initialized) for layer in layers)


@pytest.mark.parametrize("norm", ["weight_norm_init", "none_init", "mean_only_bn_init"])
@pytest.mark.parametrize("mean", [0.0, 100.0, 1e4])
def test_autocast_changes_nothing_about_gains_and_biases(norm: str, mean: float) -> None:
    torch.manual_seed(0)
    x = mean + torch.randn(64, 6)
    layers = [NormalizedLayer(nn.Linear(6, 4), **NORMS[norm]) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    data_dependent_init(layers[0], x)
    with torch.autocast("cpu", torch.bfloat16):
        data_dependent_init(layers[1], x)
    for ours, exact in zip(layers[1].parameters(), layers[0].parameters(), strict=True):
        assert torch.equal(ours, exact)


class Activated(nn.BatchNorm1d):
    """A subclass."""


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, Activated, nn.InstanceNorm1d, GaussianNoise])
def test_averages_of_other_modules_are_not_moved(kind: Any) -> None:
    options = {"track_running_stats": True} if kind is nn.InstanceNorm1d else {}
    between = kind(0.5) if kind is GaussianNoise else kind(6, **options)
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
    model = nn.Sequential(nn.Conv1d(3, 6, 1), between, nn.Conv1d(6, 6, 1), spectral)
    normalize(model, "weight_norm_init", skip="3")
    before = copy.deepcopy(dict(model.named_buffers()))
    data_dependent_init(model, torch.randn(7, 3, 6))
    changed = [name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])]
    drawn = ["1.key"] if kind is GaussianNoise else []  # a pass has its own noise, as in training
    assert changed == ["0.initialized", *drawn, "2.initialized"]


def test_a_wrapped_model_is_initialised_inside() -> None:
    torch.manual_seed(0)
    model, x = normalize(nn.Sequential(nn.Linear(3, 2)), "weight_norm_init"), torch.randn(50, 3)
    for wrapped in (nn.DataParallel(model), torch.compile(copy.deepcopy(model))):
        y = data_dependent_init(wrapped, input=x)
        torch.testing.assert_close(y.std(0, correction=0), torch.ones(2))
        torch.testing.assert_close(next(m for m in wrapped.modules() if type(m) is nn.Sequential)(x), y)


def _process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = normalize(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), "weight_norm_init")
    wrapped = nn.parallel.DistributedDataParallel(model)
    torch.manual_seed(rank)
    x = torch.randn(50, 3)
    nan = torch.full_like(x, float("nan"))
    messages = ["the initialisation failed in another process", "0 puts out NaN or infinity"]
    with pytest.raises(ValueError, match=messages[rank]):
        data_dependent_init(wrapped, nan if rank else x)
    assert not any(bool(layer.initialized) for layer in normalized_layers(model).values())
    y = data_dependent_init(wrapped, x)
    torch.save((model.state_dict(), y), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_end_with_the_parameters_of_the_first(tmp_path: Path, children: ForkServerContext) -> None:
    processes = [children.Process(target=_process, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(timeout=120)
        assert [process.exitcode for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    (first, y), (second, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(2))
