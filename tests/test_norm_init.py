"""Data-dependent initialisation: one pass, layer by layer, as section 3 of the paper has it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import norm_cases as cases
import pytest
import torch
from norm_cases import BOTH, NORMS, every_case, make
from torch import Tensor, nn

from wn.models.noise import GaussianNoise
from wn.norm import NormalizedLayer, data_dependent_init, initializing, normalize, normalized_layers

WAITING = cases.having(init="data")


@every_case(WAITING)
def test_one_layer_follows_equation_6(norm: str, name: str, dtype: torch.dtype) -> None:
    case = make(norm, name, dtype)
    layer, before = case.layer, copy.deepcopy(case.layer)
    rows = cases.per_unit(case.plain, before(case.x))
    mu = rows.mean(0)
    sigma = ((rows - mu) ** 2).mean(0).sqrt()
    y = data_dependent_init(layer, case.x)
    torch.testing.assert_close(layer(case.x), y, **case.tolerance)
    scaled = cases.per_unit(case.plain, y)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.ones_like(mu), **case.tolerance)
    if layer.has_gain:
        assert torch.equal(layer.raw_weight, before.raw_weight)
        torch.testing.assert_close(layer.gains(), before.gains() / sigma, **case.tolerance)
    else:
        torch.testing.assert_close(layer.weight, before.weight / case.spread(sigma), **case.tolerance)
    if layer.bias is not None and layer.statistics == "mean_only":
        assert torch.equal(layer.bias, before.bias)
    elif layer.bias is not None:
        torch.testing.assert_close(layer.bias, (before.bias - mu) / sigma, **case.tolerance)
        torch.testing.assert_close(scaled.mean(0), torch.zeros_like(mu), **case.tolerance)


class Net(nn.Module):
    """Layers of every width that one batch passes through, each pre-activation kept."""

    def __init__(self, norm: str, layers: list[nn.Module], noise: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(NormalizedLayer(layer, **NORMS[norm]) for layer in layers)
        self.noise = noise
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen = []
        for layer in self.layers:
            if self.training:
                x = x + self.noise * torch.randn_like(x)
            self.seen.append(layer(x))
            x = self.seen[-1].relu()
        return self.seen[-1]


def deep_net(norm: str, noise: float = 0.0) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(6, 6).double() for _ in range(12)]
    return Net(norm, layers, noise), torch.randn(200, 6, dtype=torch.float64)


def convolutional_net(norm: str, noise: float = 0.0) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 6, 3, padding=1),
        nn.Conv2d(6, 4, 2, stride=2, groups=2),
        nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
    ]
    return Net(norm, [layer.double() for layer in layers], noise), torch.randn(9, 3, 6, 6).double()


NETS = {"deep": deep_net, "convolutional": convolutional_net}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("norm", WAITING)
def test_every_pre_activation_of_a_net_is_standard(norm: str, net: str) -> None:
    model, x = NETS[net](norm)
    with torch.no_grad():
        for layer in normalized_layers(model).values():
            if layer.direction == "row":
                layer.v.mul_(7)  # whatever the length of v is
    averages = {k: b.clone() for k, b in model.named_buffers() if "running" in k}
    y = data_dependent_init(model, x)
    assert all(torch.equal(b, averages[k]) for k, b in model.named_buffers() if "running" in k)
    torch.testing.assert_close(model(x), y)
    for layer, t in zip(model.layers, model.seen, strict=True):
        rows = t.movedim(1, -1).flatten(0, -2)
        mean = layer.bias.detach() if layer.statistics == "mean_only" else torch.zeros_like(rows[0])
        torch.testing.assert_close(rows.mean(0), mean)
        torch.testing.assert_close(rows.std(0, correction=0), torch.ones_like(rows[0]))


@pytest.mark.parametrize("norm", WAITING)
def test_noise_is_on_and_modes_return(norm: str) -> None:
    model, x = deep_net(norm, noise=1.0)
    model.layers[3].eval()
    torch.manual_seed(1)
    y = data_dependent_init(model.eval(), x)
    assert not any(module.training for module in model.modules())
    torch.manual_seed(1)
    torch.testing.assert_close(model.train()(x), y)
    model.noise = 0.0
    assert not torch.allclose(model(x).std(0), torch.ones(6, dtype=torch.float64), atol=1e-3)


@pytest.mark.parametrize("norm", WAITING)
def test_it_happens_once_and_the_state_dict_remembers(norm: str) -> None:
    model, x = deep_net(norm)
    data_dependent_init(model, x)
    state = copy.deepcopy(model.state_dict())
    data_dependent_init(model, 2 * x + 1)
    loaded, _ = deep_net(norm)
    loaded.load_state_dict(state)
    data_dependent_init(loaded, 2 * x + 1)
    for net in (model, loaded):
        for key, tensor in net.state_dict().items():
            assert torch.equal(tensor, state[key])
    layers = normalized_layers(model).values()
    assert all(bool(layer.initialized) and layer.phase == "normal" for layer in layers)


@pytest.mark.parametrize("norm", cases.having(init="default"))
def test_layers_that_do_not_wait_are_left_alone(norm: str) -> None:
    model, x = deep_net(norm)
    before = copy.deepcopy(model.state_dict())
    data_dependent_init(model, x)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@every_case(WAITING, BOTH)
def test_units_without_variance_stay_finite(norm: str, name: str, dtype: torch.dtype) -> None:
    """One unit with zero weights, and then an input that does not vary."""
    case = make(norm, name, dtype)
    with torch.no_grad():
        case.layer.raw_weight[case.unit_of == 0] = 0
    y = data_dependent_init(case.layer, case.x)
    assert bool(y.isfinite().all())
    assert all(bool(p.isfinite().all()) for p in case.layer.parameters())
    linear = NormalizedLayer(nn.Linear(4, 3).to(dtype), **NORMS[norm])
    scale = linear.gains().clone() if linear.has_gain else linear.weight.clone()
    y = data_dependent_init(linear, torch.full((7, 4), 0.3, dtype=dtype))
    torch.testing.assert_close(linear.gains() if linear.has_gain else linear.weight, scale)
    assert float(y.abs().max()) < 2


@pytest.mark.parametrize("norm", WAITING)
def test_rounding_is_not_taken_for_variance(norm: str) -> None:
    plain = nn.Linear(4, 3)
    nn.init.ones_(plain.weight)
    layer = NormalizedLayer(plain, **NORMS[norm])
    before = layer.effective_weight().detach().clone()
    torch.manual_seed(0)
    x = 0.3 * (1 + torch.finfo(torch.float32).eps * torch.randint(0, 3, (50, 4)))
    assert bool((plain(x).var(0) > 0).all())
    data_dependent_init(layer, x)
    assert torch.equal(layer.effective_weight(), before)


def test_a_failed_pass_changes_nothing() -> None:
    class Broken(nn.Module):
        def forward(self, x: Any) -> Any:
            raise RuntimeError("broken")

    model = nn.Sequential(NormalizedLayer(nn.Linear(2, 2), init="data"), Broken()).eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="broken"):
        data_dependent_init(model, torch.randn(5, 2))
    (layer,) = normalized_layers(model).values()
    assert layer.phase == "normal"
    assert not layer.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    with initializing(model) as unreached:
        assert (layer.phase, unreached) == ("initialize", {layer})


# Models that people have -----------------------------------------------------------------------------


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


@pytest.mark.parametrize("norm", WAITING)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_bad_batch_changes_nothing(norm: str, value: float | None) -> None:
    model, x = deep_net(norm)
    before = copy.deepcopy(model.state_dict())
    bad = x[:0] if value is None else torch.cat([x, torch.full_like(x[:1], value)])
    message = "an empty batch" if value is None else r"^layers\.0 puts out NaN or infinity on this batch"
    with pytest.raises(ValueError, match=message):
        data_dependent_init(model, bad)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    data_dependent_init(model, x)
    assert all(bool(layer.initialized) for layer in model.layers)


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


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.InstanceNorm1d, nn.Dropout, GaussianNoise])
def test_buffers_of_other_modules_are_not_moved(kind: Any) -> None:
    options = {"track_running_stats": True} if kind is nn.InstanceNorm1d else {}
    between = kind(0.5) if kind in (nn.Dropout, GaussianNoise) else kind(6, **options)
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
    model = nn.Sequential(nn.Conv1d(3, 6, 1), between, nn.Conv1d(6, 6, 1), spectral)
    normalize(model, "weight_norm_init", skip="3")
    before = copy.deepcopy(dict(model.named_buffers()))
    data_dependent_init(model, torch.randn(7, 3, 6))
    changed = [name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])]
    assert changed == ["0.initialized", "2.initialized"]


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


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_end_with_the_parameters_of_the_first(tmp_path: Path) -> None:
    processes = torch.multiprocessing.start_processes(
        _process, (str(tmp_path),), nprocs=2, join=False, start_method="fork"
    )
    assert processes is not None
    while not processes.join(timeout=60):
        pass
    (first, y), (second, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(2))
