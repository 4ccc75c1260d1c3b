"""The network of section 5.1 against torch's own layers, and at home in stacks, layouts and precisions."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from convnet_cases import give, named_alike
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from trainer_cases import NORMS, train

from wn.config import Config, ConvNetConfig, OptimConfig, UserError, parse
from wn.config import TrainerConfig as Settings
from wn.data import Dataset, Split
from wn.models import build, check
from wn.models.convnet import ChannelsLast
from wn.norm import NormalizedLayer, data_dependent_init, fold, normalized_layers
from wn.resources import resolve

ROWS = ("none_init", "scaled_init", "batch_norm", "weight_norm_init", "weight_norm_mean_only_bn_init")
CIFAR = (3, 32, 32)
QUIET = ConvNetConfig(noise=0, dropout=0)
NARROW = ConvNetConfig(width=4)


def make(
    norm: str, model: ConvNetConfig = NARROW, shape: tuple[int, ...] = (3, 16, 16), seed: int = 0
) -> Any:
    return build(model, NORMS[norm], shape, classes=10, seed=seed).double()


@pytest.mark.parametrize("norm", list(NORMS)[:10])  # the paper's
def test_it_has_the_authors_number_of_parameters(norm: str) -> None:
    model = build(ConvNetConfig(), NORMS[norm], CIFAR, classes=10, seed=0)
    gains = norm == "batch_norm" or norm.startswith("weight_norm")
    assert sum(p.numel() for p in model.parameters()) == (1_408_244 if gains else 1_406_794)


def test_shapes_on_the_way_are_the_authors() -> None:
    model, seen = build(ConvNetConfig(), NORMS["none"], CIFAR, classes=10, seed=0), []
    for layer in normalized_layers(model).values():
        layer.register_forward_hook(lambda *call: seen.append(tuple(call[2].shape[1:])))
    assert model(torch.randn(1, *CIFAR)).shape == (1, 10)
    assert seen == [(96, 32, 32)] * 3 + [(192, 16, 16)] * 3 + [(192, 6, 6)] * 3 + [(10,)]


def test_width_depth_noise_and_dropout_are_settings() -> None:
    def kinds(**settings: Any) -> Counter[str]:
        return Counter(type(m).__name__ for m in make("none", ConvNetConfig(**settings)).modules())

    whole = kinds()
    assert (whole["GaussianNoise"], whole["Dropout"], whole["NormalizedLayer"]) == (1, 2, 10)
    assert not kinds(noise=0)["GaussianNoise"]
    assert not kinds(dropout=0)["Dropout"]
    assert kinds(depth=1)["NormalizedLayer"] == 4
    channels = [layer.raw_weight.shape[0] for layer in normalized_layers(make("none")).values()]
    assert channels == [4] * 3 + [8] * 6 + [10]


# The same network of torch's layers


def conv(inputs: int, outputs: int, size: int, padding: int, norm: str) -> list[nn.Module]:
    if norm == "batch_norm":
        layer = nn.Conv2d(inputs, outputs, size, padding=padding, bias=False)
        return [layer, nn.BatchNorm2d(outputs, eps=1e-6), nn.LeakyReLU(0.1)]
    layer = nn.Conv2d(inputs, outputs, size, padding=padding)
    return [parametrizations.weight_norm(layer) if norm == "weight_norm" else layer, nn.LeakyReLU(0.1)]


def reference(norm: str) -> nn.Sequential:
    """Section 5.1 written down once more, without noise and dropout."""
    layers = [*conv(3, 96, 3, 1, norm), *conv(96, 96, 3, 1, norm), *conv(96, 96, 3, 1, norm)]
    layers += [nn.MaxPool2d(2)]
    layers += [*conv(96, 192, 3, 1, norm), *conv(192, 192, 3, 1, norm), *conv(192, 192, 3, 1, norm)]
    layers += [nn.MaxPool2d(2)]
    layers += [*conv(192, 192, 3, 0, norm), *conv(192, 192, 1, 0, norm), *conv(192, 192, 1, 0, norm)]
    layers += [nn.AvgPool2d(6), nn.Flatten()]
    linear = nn.Linear(192, 10, bias=norm != "batch_norm")
    if norm == "batch_norm":
        layers += [linear, nn.BatchNorm1d(10, eps=1e-6)]
    else:
        layers += [parametrizations.weight_norm(linear) if norm == "weight_norm" else linear]
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("norm", ["none", "weight_norm", "batch_norm"])
def test_outputs_and_gradients_are_those_of_torchs_layers(norm: str) -> None:
    torch.manual_seed(0)
    ours, theirs = make(norm, QUIET, CIFAR), reference(norm)
    give(ours, theirs)
    x = torch.randn(3, *CIFAR, dtype=torch.float64)
    y, expected = ours(x), theirs(x)
    torch.testing.assert_close(y, expected)
    loss, reference_loss = (nn.functional.cross_entropy(each, torch.arange(3)) for each in (y, expected))
    loss.backward()
    reference_loss.backward()
    slopes: dict[str, list[Tensor]] = {}
    for name, p in ours.named_parameters():
        assert p.grad is not None
        slopes.setdefault(name.rpartition(".")[2], []).append(p.grad)
    for kind, p in named_alike(theirs):
        assert p.grad is not None
        torch.testing.assert_close(slopes[kind].pop(0).view_as(p), p.grad, rtol=1e-6, atol=1e-9)
    assert not any(slopes.values())


# Initial draw, and data-dependent initialisation


def test_weights_are_drawn_by_the_papers_scheme_or_glorots() -> None:
    """Glorot's deviations in this network, from the first layer to the logits."""
    glorot = [0.0474, 0.0340, 0.0340, 0.0278, 0.0241, 0.0241, 0.0241, 0.0722, 0.0722, 0.0995]
    for scheme, stds in (("paper", [0.05] * 10), ("glorot", glorot)):
        model = build(ConvNetConfig(weight_init=scheme), NORMS["none"], CIFAR, classes=10, seed=0)  # type: ignore[arg-type]
        for layer, std in zip(normalized_layers(model).values(), stds, strict=True):
            weight = layer.weight.detach()
            assert float(weight.std()) == pytest.approx(std, rel=0.002 + 4 / (2 * weight.numel()) ** 0.5)
            if scheme == "glorot":
                assert float(weight.abs().max()) == pytest.approx(3**0.5 * std, rel=0.02)
            assert layer.bias is not None
            assert not bool(layer.bias.any())


@pytest.mark.parametrize("norm", [name for name, norm in NORMS.items() if norm.init == "data"])
def test_every_pre_activation_is_standard_with_noise_and_dropout_on(norm: str) -> None:
    torch.manual_seed(0)
    model, seen = make(norm), []
    for layer in normalized_layers(model).values():
        layer.register_forward_hook(lambda *call: seen.append(call[2]))
    x = torch.randn(20, 3, 16, 16).double()
    keys = [int(b) for name, b in model.named_buffers() if name.endswith("key")]
    data_dependent_init(model, x)
    moved = [int(b) for name, b in model.named_buffers() if name.endswith("key")]
    assert all(a != b for a, b in zip(keys, moved, strict=True))
    assert len(seen) == 10
    for t in seen:
        rows = t.movedim(1, -1).flatten(0, -2)
        torch.testing.assert_close(rows.mean(0), torch.zeros_like(rows[0]), rtol=0, atol=1e-9)
        torch.testing.assert_close(rows.std(0, correction=0), torch.ones_like(rows[0]))


# Stacks, folding, layouts, precisions


def dataset() -> Dataset:
    torch.manual_seed(0)
    splits = [Split(torch.randn(n, 2, 12, 12).double(), torch.randint(3, (n,))) for n in (40, 10, 10)]
    return Dataset(*splits, classes=3)


@pytest.mark.parametrize("norm", [*ROWS, "mean_only_bn_init"])
def test_members_of_a_stack_are_the_runs_alone(norm: str) -> None:
    settings = Settings(epochs=2, batch_size=10, init_batch_size=20, precision="float64")
    configs = [
        Config(
            model=ConvNetConfig(width=3, depth=2),
            norm=NORMS[norm],
            optim=OptimConfig(lr=lr, momentum=0),
            trainer=settings,
            seed=i,
        )
        for i, lr in enumerate((0.001, 0.003, 0.01))
    ]
    _, together = train(*configs, on=dataset())
    for i, config in enumerate(configs):
        _, alone = train(config, on=dataset())
        losses, theirs = ([row["valid_loss"] for row in rows] for rows in (alone.rows[0], together.rows[i]))
        assert theirs == pytest.approx(losses, rel=1e-9)
        assert losses[0] != losses[-1]
        assert alone.ends[0][0] == together.ends[i][0] == "finished"


@pytest.mark.parametrize("norm", [*ROWS, "mean_only_bn_init"])
def test_it_folds_into_torchs_layers(norm: str) -> None:
    torch.manual_seed(0)
    model, x = make(norm), torch.randn(20, 3, 16, 16).double()
    data_dependent_init(model, x)
    for _ in range(3):
        model(x)  # running averages move
    plain = fold(model.eval())
    assert not any(isinstance(module, NormalizedLayer) for module in plain.modules())
    torch.testing.assert_close(plain(x), model(x))


@pytest.mark.parametrize("norm", ["none", "batch_norm", "weight_norm_mean_only_bn"])
def test_the_layout_in_memory_changes_nothing(norm: str) -> None:
    """Noise and dropout belong to places in the image, not in memory."""
    model, layouts = make(norm), []
    planes = copy.deepcopy(model)
    planes.channels_last = nn.Identity()
    for name, layer in model.named_children():
        if name.startswith(("conv", "activation", "pool", "dropout")):
            layer.register_forward_hook(lambda *call: layouts.append(call[2]))
    x = torch.randn(5, 3, 16, 16).double()
    for net in (model, planes):
        (net(x) ** 3).sum().backward()
    assert len(layouts) == 9 + 9 + 2 + 2
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in layouts)
    for p, q in zip(model.parameters(), planes.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    y = model.eval()(x)
    torch.testing.assert_close(y, planes.eval()(x))
    torch.testing.assert_close(y, model(x.to(memory_format=torch.channels_last)))


def test_channels_last_is_a_layout_under_vmap_too() -> None:
    x = torch.randn(2, 4, 3, 5, 6)
    y = ChannelsLast()(x[0])
    assert torch.equal(y, x[0])
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(torch.vmap(ChannelsLast())(x), x)


@pytest.mark.parametrize("norm", [*ROWS, "mean_only_bn_init"])
def test_bfloat16_is_close_to_float32(norm: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 3, 16, 16)
    model = make(norm, ConvNetConfig(width=8, noise=0, dropout=0)).float()
    data_dependent_init(model, x)
    expected = model(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    assert float((y.detach().float() - expected).square().mean().sqrt()) < 0.05  # of logits with deviation 1
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


# Images


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 12, 12), (2, 13, 30)])
def test_it_takes_images_of_other_sizes(shape: tuple[int, ...]) -> None:
    check(NARROW, shape)
    assert make("weight_norm", shape=shape)(torch.randn(2, *shape).double()).shape == (2, 10)


def test_images_that_are_too_small_are_refused_in_one_line() -> None:
    with pytest.raises(
        UserError, match="needs images of 12x12 or more, and these have 11x40; take other data"
    ):
        check(NARROW, (3, 11, 40))
    with pytest.raises(UserError, match=r"^model=convnet: .* these have 8x8; .*or model=mlp$"):
        resolve(parse({"model": {"name": "convnet"}, "trainer": {"device": "cpu"}}))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "cnn"}, "model.name=cnn: should be one of 'mlp', 'convnet'"),
        ({"name": "convnet", "width": 0}, "model.width=0: Input should be greater than 0"),
        ({"name": "convnet", "dropout": 1}, "model.dropout=1: Input should be less than 1"),
        ({"name": "convnet", "widths": [4]}, "model.widths: a key of model=mlp or mlp_vae alone"),
        ({"name": "convnet", "dept": 2}, "model.dept: unknown key; did you mean 'depth'?"),
        ({"depth": 2}, "model.depth: a key of model=convnet or resnet_vae or transformer alone"),
        (None, "model=None: Input should be a valid dictionary"),
        ("convnet", "model=convnet: Input should be a valid dictionary"),
    ],
)
def test_mistakes_in_a_model_are_one_line(model: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse({"model": model})
    assert str(caught.value).startswith(message)
