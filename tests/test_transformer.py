"""The transformer against torch's own layers, in stacks, compiled, in bfloat16; what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trainer_cases import NORMS

from wn.config import Config, OptimConfig, TransformerConfig, UserError, parse
from wn.config import TrainerConfig as Settings
from wn.data import Dataset, Split
from wn.models import build, check
from wn.models.transformer import Transformer
from wn.norm import NormalizedSite, NormSite, normalize, normalized_layers
from wn.resources import resolve
from wn.stack import Stack
from wn.trainer import Observer, Trainer

SMALL = TransformerConfig(width=8, heads=2, depth=2, mlp_ratio=3)
SHALLOW = SMALL.model_copy(update={"depth": 1})
SHAPE, CLASSES = (2, 4, 6), 5


def make(norm: str = "none", config: TransformerConfig = SMALL, seed: int = 0) -> nn.Module:
    return build(config, NORMS[norm], SHAPE, CLASSES, seed).double()


def images(count: int = 7, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(count, *SHAPE, dtype=torch.float64)


# The function, against torch's


class Reference(nn.Module):
    """The transformer by torch's layers, with ``norm(width)`` where statistics are taken."""

    def __init__(self, ours: Transformer, norm: Any) -> None:
        super().__init__()
        width, heads = SMALL.width, SMALL.heads
        self.embedding, self.positions, self.logits = ours.embedding, ours.positions, ours.logits
        self.norm = norm(width)
        self.blocks = nn.ModuleList()
        for block in ours.blocks:
            sizes = (width, heads, SMALL.mlp_ratio * width, 0.0, "gelu")
            theirs = nn.TransformerEncoderLayer(*sizes, batch_first=True, norm_first=True)
            theirs.norm1, theirs.norm2 = norm(width), norm(width)
            self.blocks.append(theirs)
            attention: Any = block.attention
            inward = [attention.query, attention.key, attention.value]
            pairs = [
                (theirs.self_attn.in_proj_weight, torch.cat([layer.weight for layer in inward])),
                (theirs.self_attn.in_proj_bias, torch.cat([layer.bias for layer in inward])),
            ]
            named = (
                (theirs.self_attn.out_proj, attention.out),
                (theirs.linear1, block.mlp[0]),
                (theirs.linear2, block.mlp[2]),
            )
            pairs += [(p, q) for a, b in named for p, q in zip(a.parameters(), b.parameters(), strict=True)]
            with torch.no_grad():
                for target, source in pairs:
                    target.copy_(source)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embedding(F.unfold(x, SMALL.patch, stride=SMALL.patch).mT) + self.positions
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.logits(self.norm(hidden).mean(1))
        return logits


@pytest.mark.parametrize("norm", ["none", "layer_norm"])
def test_outputs_and_gradients_are_those_of_torchs_layers(norm: str) -> None:
    plain = Transformer(SMALL, SHAPE, CLASSES).double()
    ours = normalize(copy.deepcopy(plain), **NORMS[norm].model_dump(exclude={"eps", "plugin"}), eps=1e-5)
    theirs = Reference(plain, nn.Identity if norm == "none" else nn.LayerNorm).double()
    x = images().requires_grad_()
    y, expected = ours(x), theirs(x)
    assert y.shape == (7, CLASSES)
    torch.testing.assert_close(y, expected)
    found, wanted = (torch.autograd.grad(t.pow(3).sum(), x) for t in (y, expected))
    torch.testing.assert_close(found, wanted)


def test_its_places_are_told_apart_and_all_are_seen() -> None:
    """Positions, patches of all channels, and every parameter play a part."""
    model, x = make(), images(1)
    y = model(x)
    y.square().sum().backward()
    assert all(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)
    assert sum(p.grad is None for p in model.parameters()) == 0
    assert not torch.allclose(model(x.roll(SMALL.patch, 3)), y)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in SHAPE)).tolist():
        other = x.clone()
        other[0, *place] += 1
        assert not torch.allclose(model(other), y)


def test_a_batch_may_have_one_image_and_images_do_not_meet() -> None:
    model, x = make(), images()
    torch.testing.assert_close(torch.cat([model(one[None]) for one in x]), model(x))


def test_it_can_be_differentiated_twice() -> None:
    model, x = make(config=SHALLOW), images(2).requires_grad_()
    assert torch.autograd.gradcheck(model, x)
    assert torch.autograd.gradgradcheck(model, x)


# Norms


@pytest.mark.parametrize("norm", NORMS)
def test_weights_are_normalised_in_layers_and_statistics_taken_at_sites(norm: str) -> None:
    model, choices = make(norm), NORMS[norm]
    layers = normalized_layers(model)
    assert len(layers) == 2 + 6 * SMALL.depth
    assert {layer.statistics for layer in layers.values()} == {"none"}
    assert {layer.direction for layer in layers.values()} == (
        {choices.direction} if choices.output_layers else {choices.direction, "plain"}
    )
    sites = [module for module in model.modules() if isinstance(module, NormalizedSite)]
    assert len(sites) == (0 if choices.statistics == "none" else 1 + 2 * SMALL.depth)
    assert {site.statistics for site in sites} <= {choices.statistics}


def test_what_a_norm_needs_to_know_of_a_layer() -> None:
    """Each branch of a residual ends in a layer that knows how many branches there are."""
    plain = Transformer(SMALL, SHAPE, CLASSES)
    ends = {
        name: layer.residual_branches
        for name, layer in plain.named_modules()
        if hasattr(layer, "residual_branches")
    }
    assert ends == {f"blocks.{i}.{end}": 4 for i in (0, 1) for end in ("attention.out", "mlp.2")}
    sites = [name for name, module in plain.named_modules() if isinstance(module, NormSite)]
    assert sites == [*(f"blocks.{i}.{part}_site" for i in (0, 1) for part in ("attention", "mlp")), "site"]


# Stacks, precisions


def dataset() -> Dataset:
    torch.manual_seed(0)
    splits = [Split(torch.randn(n, *SHAPE).double(), torch.randint(3, (n,))) for n in (40, 10, 10)]
    return Dataset(*splits, classes=3)


def trained(configs: list[Config]) -> Trainer:
    loop = Trainer(configs, dataset(), torch.device("cpu"), Observer())
    loop.run()
    return loop


@pytest.mark.parametrize("norm", NORMS)
def test_members_of_a_stack_are_the_runs_alone(norm: str) -> None:
    settings = Settings(epochs=1, batch_size=10, init_batch_size=20, precision="float64")
    configs = [
        Config(model=SHALLOW, norm=NORMS[norm], optim=OptimConfig(lr=lr), trainer=settings, seed=i)
        for i, lr in enumerate((0.001, 0.003, 0.01))
    ]
    together = trained(configs).stack
    for i, config in enumerate(configs):
        alone = trained([config]).stack
        for name, p in (alone.params | alone.buffers).items():
            member = (together.params | together.buffers)[name][i]
            torch.testing.assert_close(member, p[0], rtol=1e-10, atol=1e-10)


def test_bfloat16_is_close_to_float32() -> None:
    model, x = make("weight_norm").float(), images(50).float()
    expected = model(x).detach()
    for stacked in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            y = Stack([model, model])(x, shared=True)[1] if stacked else model(x)
        error = (y.detach().float() - expected).square().mean().sqrt()
        assert float(error) < 0.02 * float(expected.std())
    y.float().square().sum().backward()


# What is refused


@pytest.mark.parametrize(
    ("shape", "patch"), [((1, 8, 8), 2), ((1, 28, 28), 4), ((3, 32, 32), 8), ((2, 6, 10), 2), ((1, 5, 7), 1)]
)
def test_it_takes_images_that_patches_tile(shape: tuple[int, ...], patch: int) -> None:
    config = TransformerConfig(width=4, patch=patch)
    check(config, shape)
    model = Transformer(config, shape, CLASSES)
    assert len(model.positions) == shape[1] * shape[2] // patch**2
    assert model(torch.randn(2, *shape)).shape == (2, CLASSES)


@pytest.mark.parametrize(
    ("shape", "patch"), [((1, 8, 9), 2), ((1, 9, 8), 2), ((3, 32, 32), 5), ((1, 8, 8), 16)]
)
def test_other_images_are_refused_in_one_line(shape: tuple[int, ...], patch: int) -> None:
    with pytest.raises(UserError, match=rf"^model.patch={patch}: .* {shape[1]}x{shape[2]}; .*$"):
        check(TransformerConfig(patch=patch), shape)


def test_data_that_do_not_fit_are_refused_before_anything_is_trained() -> None:
    with pytest.raises(UserError, match=r"^model.patch=3: .* images of 8x8; take one of 1, 2, 4, 8$"):
        resolve(parse({"model": {"name": "transformer", "patch": 3}, "trainer": {"device": "cpu"}}))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"width": 30}, "model: width=30 is no multiple of heads=4"),
        ({"heads": 0}, "model.heads=0: Input should be greater than 0"),
        ({"patch": 0}, "model.patch=0: Input should be greater than 0"),
        ({"depth": 0}, "model.depth=0: Input should be greater than 0"),
        ({"widths": [4]}, "model.widths: a key of model=mlp or mlp_vae alone"),
    ],
)
def test_mistakes_are_one_line(model: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse({"model": {"name": "transformer", **model}})
    assert str(caught.value).startswith(message)
