"""The library in models that people have: torch's transformers, torchvision's, traced, on the meta device."""

from __future__ import annotations

import copy
import warnings
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor

from wn import data_dependent_init, fold, normalize, summary
from wn.norm import NormalizedLayer, normalized_layers, properties
from wn.presets import PRESETS

STATISTICS = sorted({str(preset["statistics"]) for preset in PRESETS.values() if "statistics" in preset})


def quietly(model: nn.Module, norm: str = "weight_norm", **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "not normalised:")
        return normalize(model, norm, **options)


def trained(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """After some steps, so that gains and running averages are where nothing else would put them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(*inputs).square().mean().backward()
        optimizer.step()
    return model


# Fused paths -----------------------------------------------------------------------------------------


def encoder(norm: str) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = quietly(nn.TransformerEncoder(layer, 2), norm)
    x = torch.randn(4, 5, 8)
    return trained(model, x).eval(), x


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm", PRESETS)
@pytest.mark.parametrize("padded", [False, True])
def test_a_transformers_fast_path_gives_the_same_numbers_or_is_off(norm: str, padded: bool) -> None:
    model, x = encoder(norm)
    padding = torch.zeros(4, 5, dtype=torch.bool)
    padding[:, 4:] = padded
    arguments = {"src_key_padding_mask": padding} if padded else {}
    slow = model(x, **arguments)  # with gradients there is no fast path
    with torch.no_grad():
        fast = model(x, **arguments)
        again = fold(model)(x, **arguments) if properties(PRESETS[norm]).foldable else fast
    for y in (fast, again):
        torch.testing.assert_close(y[:, : 4 if padded else 5], slow[:, : 4 if padded else 5])


def test_the_fast_path_is_kept_where_it_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    fused = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *a: taken.append(1) or fused(*a))
    for norm, expected in (("weight_norm", 2), ("mean_only_bn", 0), ("scaled_init", 0), ("none", 2)):
        model, x = encoder(norm)
        taken.clear()
        with torch.no_grad():
            model(x)
        assert len(taken) == expected, norm


@pytest.mark.parametrize("norm", ["weight_norm", "weight_norm_mean_only_bn", "batch_norm", "scaled_init"])
def test_swin_reads_weights_past_its_layers(norm: str) -> None:
    torch.manual_seed(0)
    plain = torchvision.models.SwinTransformer([2, 2], 8, [2, 2], [2, 2], [4, 4], num_classes=5).eval()
    x = torch.randn(3, 3, 32, 32)
    model = copy.deepcopy(plain)
    if norm == "weight_norm":
        normalize(model, norm)
        torch.testing.assert_close(model(x), plain(x))
        model.features[1][0].attn.qkv.g.data.mul_(2)
        assert not torch.allclose(model(x), plain(x))  # the gain takes part
    else:
        with pytest.warns(UserWarning, match=r"features.*attn.proj \(its module reads .weight itself\)"):
            normalize(model, norm)
        assert not any("attn" in name for name in normalized_layers(model))
        assert "attn.qkv" in summary(model).split("not normalised")[1]
    with torch.no_grad():
        torch.testing.assert_close(fold(model)(x), model(x), rtol=1e-4, atol=1e-4)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read, self.typed, self.drawn = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.init_weights()

    def init_weights(self) -> None:
        nn.init.ones_(self.drawn.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drawn(self.typed(x.to(self.typed.weight.dtype)))
        return nn.functional.linear(x, self.read.weight)


def test_only_what_multiplies_by_a_weight_counts_as_reading_it() -> None:
    with pytest.warns(
        UserWarning, match=r"^not normalised: 0\.read \(its module reads \.weight itself\); see"
    ):
        model = normalize(nn.Sequential(Reader()), "mean_only_bn")
    assert list(normalized_layers(model)) == ["0.typed", "0.drawn"]
    model = normalize(nn.Sequential(Reader()), "weight_norm_init")
    with pytest.warns(UserWarning, match=r"^not initialised, .*: 0\.read$"):
        data_dependent_init(model, torch.randn(5, 2))


# Tracing, the meta device ----------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["weight_norm", "weight_norm_mean_only_bn", "layer_norm", "batch_norm"])
def test_tracing_sees_a_layer_as_one_node(norm: str) -> None:
    torch.manual_seed(0)
    model: Any = normalize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)), norm)
    x = torch.randn(6, 3, 4, 4)
    graph = fx.symbolic_trace(model)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == list("0123")
    torch.testing.assert_close(graph(x), model(x))
    torch.testing.assert_close(copy.deepcopy(graph)(x), model(x))
    torch.testing.assert_close(graph.eval()(x), model.eval()(x))


@pytest.mark.parametrize("direction", ["row", "centered", "layer"])
def test_a_weight_that_is_read_in_a_trace_would_be_a_constant_and_is_refused(direction: Any) -> None:
    with pytest.raises(TypeError, match=r"cannot be traced: trace fold\(model\)"):
        fx.symbolic_trace(Holder(NormalizedLayer(nn.Linear(2, 2), direction=direction)))


class Holder(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return x * self.layer.weight.sum()


def test_features_of_torchvisions_models_are_extracted() -> None:
    torch.manual_seed(0)
    model = normalize(torchvision.models.resnet18(), "weight_norm").eval()
    features = create_feature_extractor(model, {"layer1.0.conv1": "early", "fc": "late"})
    x = torch.randn(1, 3, 32, 32)
    found = features(x)
    torch.testing.assert_close(found["late"], model(x))
    assert found["early"].shape == (1, 64, 8, 8)


@pytest.mark.parametrize("norm", [n for n in PRESETS if n != "spectral_norm"])
def test_a_model_on_the_meta_device_is_normalised_and_loaded(norm: str) -> None:
    def model(device: str) -> Any:
        layers = nn.Conv2d(3, 8, 3, device=device), nn.Flatten(), nn.Linear(32, 4, device=device)
        return normalize(nn.Sequential(*layers), norm)

    torch.manual_seed(0)
    ours, x = model("cpu").eval(), torch.randn(6, 3, 4, 4)
    empty = model("meta").eval()
    assert all(p.is_meta for p in empty.parameters())
    with pytest.raises(ValueError, match="meta device"):
        data_dependent_init(empty, x)
    materialized = copy.deepcopy(empty).to_empty(device="cpu")
    materialized.load_state_dict(ours.state_dict())
    empty.load_state_dict(ours.state_dict(), assign=True)
    torch.testing.assert_close(materialized(x), ours(x))
    torch.testing.assert_close(empty(x), ours(x))
    if norm in ("none", "weight_norm", "mean_only_bn"):
        plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 4))
        again = model("meta").eval()
        again.load_state_dict(plain.state_dict(), assign=True)
        torch.testing.assert_close(again(x), plain(x))


# Layers that are held twice --------------------------------------------------------------------------


class Pair(NamedTuple):
    left: nn.Module
    right: nn.Module | None


class Kept(nn.Module):
    """Layers that are also in lists, tuples and dicts of the module's own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.normal = nn.Linear(3, 3), nn.Linear(3, 3), nn.LayerNorm(3)
        self.order: list[Any] = [self.a, self.normal, self.b]
        self.order.append({"self": self.order, "pair": Pair(self.b, None), "names": ("a", "b")})
        self.both = (self.a, self.b)
        self.others = (self.normal, [self.normal])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.order[:3]:
            x = layer(x)
        return self.both[1](x)


def test_layers_that_a_module_keeps_in_plain_containers_are_swapped_there_too() -> None:
    torch.manual_seed(0)
    model, x = Kept(), torch.randn(4, 3)
    order, others, y = model.order, model.others, model(x)
    normalize(model)
    plain = fold(model)
    for net in (model, plain):
        assert net.order[:3] == [net.a, net.normal, net.b]
        assert net.order[3]["self"] is net.order
        assert net.order[3]["pair"] == Pair(net.b, None)
        assert type(net.order[3]["pair"]) is Pair
        assert net.both == (net.a, net.b)
        torch.testing.assert_close(net(x), y)
    assert model.order is order
    assert model.others is others  # what holds no such layer is left as it is
    assert {type(layer) for layer in model.both} == {NormalizedLayer}
    assert {type(layer) for layer in plain.both} == {nn.Linear}


# Batches and types -----------------------------------------------------------------------------------


@pytest.mark.parametrize("statistics", ["none", *STATISTICS])
@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_is_an_empty_output(statistics: str, training: bool) -> None:
    for plain, shape in ((nn.Linear(3, 4), (0, 3)), (nn.Conv2d(3, 4, 2), (0, 3, 5, 5))):
        gain = "none" if statistics in ("none", "mean_only") else "free"
        layer: Any = NormalizedLayer(plain, direction="plain", gain=gain, statistics=statistics)  # type: ignore[arg-type]
        before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        x = torch.zeros(shape, requires_grad=True)
        y = layer.train(training)(x)
        assert y.shape == plain(x).shape
        y.sum().backward()
        assert x.grad is not None
        for name, parameter in layer.named_parameters():
            if name != "alpha":
                assert parameter.grad is not None, name
                assert not parameter.grad.any(), name
        assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


@pytest.mark.parametrize("direction", ["row", "layer"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_layer_in_half_precision_starts_as_the_function_it_replaces(
    direction: Any, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(2000, 8).to(dtype)
    layer = NormalizedLayer(copy.deepcopy(plain), direction=direction)
    exact = plain.weight.detach().double().norm(dim=1 if direction == "row" else None)
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(layer.g.double(), exact.expand(8), rtol=rounding, atol=0)
    norms = layer.effective_weight().double().norm(dim=1)
    torch.testing.assert_close(norms, plain.weight.double().norm(dim=1), rtol=1.5 * rounding, atol=0)


def test_a_model_that_is_wrapped_for_data_parallel_training_is_refused() -> None:
    class DistributedDataParallel(nn.Module):
        """Stands in for torch's, which needs processes."""

        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    with pytest.raises(TypeError, match="normalise the model before wrapping it in DistributedDataParallel"):
        normalize(DistributedDataParallel(nn.Linear(2, 2)))
