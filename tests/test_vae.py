"""The variational autoencoders: the ELBO against integrals, and the contract of every model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trainer_cases import NORMS

from wn.config import ConvVAEConfig, MLPVAEConfig, ResNetVAEConfig, UserError, parse
from wn.grammar import PER_IMAGE
from wn.models import build, check
from wn.models.vae import GaussianVAE, ResidualBlock, VAEBase
from wn.norm import NormalizedLayer, data_dependent_init, normalized_layers
from wn.norm.kinds import kind_of
from wn.stack import Stack

SMALL: dict[str, Any] = {"latents": 3, "flow_width": 6, "posterior": "iaf"}
MODELS = {
    "mlp_vae": (MLPVAEConfig(widths=(9, 5), **SMALL), (1, 4, 4)),
    "conv_vae": (ConvVAEConfig(channels=(3, 4, 4), hidden=7, **SMALL), (1, 8, 8)),
    "resnet_vae": (ResNetVAEConfig(channels=5, depth=2, **SMALL), (3, 6, 4)),
}
TOY = MLPVAEConfig(widths=(6,), latents=2, flow_steps=2, flow_width=5, weight_init="glorot")


def make(name: str, norm: str = "weight_norm_init", seed: int = 0, **changes: Any) -> VAEBase:
    config, shape = MODELS[name]
    model: Any = build(config.model_copy(update=changes), NORMS[norm], shape, classes=0, seed=seed)
    return model.double()  # type: ignore[no-any-return]


def images(name: str, count: int = 40, seed: int = 0) -> Tensor:
    shape = (count, *MODELS[name][1])
    byte = torch.randint(256, shape, generator=torch.Generator().manual_seed(seed))
    return byte.double() / 255


def keys(model: nn.Module) -> dict[str, Tensor]:
    return {k: b.clone() for k, b in model.named_buffers() if k.endswith(("key", "evaluations"))}


def put_back(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, buffer in before.items():
        model.get_buffer(name).copy_(buffer)


# The ELBO


def toy(posterior: str) -> GaussianVAE:
    model: Any = build(TOY.model_copy(update={"posterior": posterior}), NORMS["none"], (1, 2, 2), 0, seed=3)
    return model.double().eval()  # type: ignore[no-any-return]


def grid(points: int = 900, reach: float = 25.0) -> tuple[Tensor, float]:
    """Points of the plane ``[points**2, 2]`` and the area of each."""
    line = torch.linspace(-reach, reach, points, dtype=torch.float64)
    return torch.cartesian_prod(line, line), float((line[1] - line[0]) ** 2)


def joint(model: GaussianVAE, x: Tensor, z: Tensor) -> Tensor:
    """``log p(x, z)`` from torch's own distributions."""
    logits = model.decoder(z)
    pixels = torch.distributions.Bernoulli(logits=logits).log_prob(x.expand_as(logits)).flatten(1).sum(1)
    return pixels + torch.distributions.Normal(0, 1).log_prob(z).sum(1)


@pytest.mark.parametrize("posterior", ["diagonal", "iaf"])
@torch.no_grad()
def test_the_elbo_against_numerical_integration(posterior: str) -> None:
    model, x = toy(posterior), torch.tensor([[[[0.0, 1.0], [1.0, 1.0]]]], dtype=torch.float64)
    points, area = grid()
    log_evidence = torch.logsumexp(joint(model, x, points) + math.log(area), 0)

    # over the Gaussian's noise, with the flow applied to it: the expectation that one draw estimates
    sampler = model.posterior.sampler.normal
    model.posterior.sampler.normal = lambda _: points  # type: ignore[method-assign]
    features = model.encoder(x)
    mean, log_variance = (t.expand(len(points), -1) for t in model.posterior_params(features).chunk(2, 1))
    z, log_q = model.posterior(mean, log_variance, features.expand(len(points), -1))
    weights = torch.distributions.Normal(0, 1).log_prob(points).sum(1).exp() * area
    bound = (weights * (joint(model, x, z) - log_q.sum(1))).sum()
    model.posterior.sampler.normal = sampler  # type: ignore[method-assign]
    assert bound < log_evidence - 1e-3

    loss, reconstruction, kl = model(x.expand(100_000, -1, -1, -1))
    torch.testing.assert_close(loss, reconstruction + kl)
    error = 5 * loss.std() / len(loss) ** 0.5
    assert abs(-loss.mean() - bound) < error < 0.05

    # q is a density, so weighting with p(x, z) / q(z|x) gives the evidence back
    log_weights = joint(model, x, z) - log_q.sum(1)
    torch.testing.assert_close(
        torch.logsumexp(log_weights + weights.log(), 0), log_evidence, rtol=0, atol=1e-3
    )
    if posterior == "diagonal":  # an untrained flow's weights have too long a tail to be averaged
        tight = model.iwae_bound(x.expand(20, -1, -1, -1), samples=5_000)
        assert abs(tight.mean() - log_evidence) < 5 * tight.std() / 20**0.5 < 0.05


def test_the_iwae_bound_of_one_sample_is_the_elbo() -> None:
    model, x = make("mlp_vae").eval(), images("mlp_vae")
    before = keys(model)
    bound = model.iwae_bound(x, 1)
    put_back(model, before)
    torch.testing.assert_close(-bound, model(x)[0])


def test_all_samples_of_an_iwae_bound_see_the_same_black_and_white() -> None:
    """A decoder that ignores z gives every sample the same weight, so that its bound is the likelihood."""
    model, x = make("mlp_vae", "none").eval(), images("mlp_vae")
    for layer in normalized_layers(model.decoder).values():  # type: ignore[arg-type]
        layer.weight.data.zero_()
        layer.bias.data.normal_()  # type: ignore[union-attr]
    model.posterior_params.weight.data.zero_()  # type: ignore[union-attr,operator]
    model.posterior_params.bias.data.zero_()  # type: ignore[union-attr,operator]
    model.posterior.flow = nn.ModuleList()  # type: ignore[union-attr]
    before = keys(model)
    bound = model.iwae_bound(x, 7)
    put_back(model, before)
    torch.testing.assert_close(-bound, model(x)[1])


@pytest.mark.parametrize("name", MODELS)
def test_an_iwae_bound_is_of_samples_each_with_the_encoder_s_own_pass(name: str) -> None:
    """Each image so many times in a batch, as if they were others, gives the same weights."""
    model, x = make(name, "weight_norm_mean_only_bn_init").eval(), images(name, 3)
    sizes: list[int] = []
    model.encoder.register_forward_hook(lambda *call: sizes.append(len(call[2])))  # type: ignore[union-attr]
    before = keys(model)
    bound = model.iwae_bound(x, 4)
    assert sizes == [3]
    put_back(model, before)
    seen = model.observe(x).repeat_interleave(4, 0)
    output, divergence = model.infer(seen)
    weights = model.likelihood.log_prob(output, seen) - divergence.sum(1)
    torch.testing.assert_close(bound, weights.view(3, 4).logsumexp(1) - math.log(4))


# What counts in training alone


@pytest.mark.parametrize("name", MODELS)
def test_free_bits_are_free_in_training_alone(name: str) -> None:
    x, plain, free = images(name), make(name), make(name, free_bits=1000.0)
    groups = plain.infer(x)[1].shape[1]
    loss, reconstruction, _ = free.train()(x)
    torch.testing.assert_close(loss, reconstruction + 1000.0 * groups)
    loss, reconstruction, kl = free.eval()(x)
    torch.testing.assert_close(loss, reconstruction + kl)


def test_free_bits_by_hand() -> None:
    model, x = make("mlp_vae", free_bits=0.4), images("mlp_vae")
    before = keys(model)
    divergence = model.train().infer(model.observe(x))[1].detach()
    put_back(model, before)
    loss, reconstruction, _ = model(x)
    cost = sum(max(0.4, float(each)) for each in divergence.mean(0))
    torch.testing.assert_close(loss - reconstruction, torch.full_like(loss, cost))


def test_the_kl_term_warms_up_step_by_step() -> None:
    model, x = make("mlp_vae", kl_warmup_steps=4).train(), images("mlp_vae")
    shares = []
    for _ in range(6):
        loss, reconstruction, kl = model(x)
        shares.append(((loss - reconstruction) / kl).mean().item())
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    loss, reconstruction, kl = model.eval()(x)
    torch.testing.assert_close(loss, reconstruction + kl)


# The contract of every model


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_of_every_kind_is_normalised(name: str) -> None:
    for preset in NORMS:
        mixes = NORMS[preset].statistics in PER_IMAGE  # which a flow's order forbids
        model = make(name, preset, **({"posterior": "diagonal"} if mixes else {}))
        assert not [m for m in model.modules() if kind_of(m) and not isinstance(m, NormalizedLayer)]
        loss, *_ = model.train()(images(name))
        grads = torch.autograd.grad(loss.sum(), list(model.parameters()))  # all of them are used
        assert all(torch.isfinite(grad).all() for grad in grads)
        assert len(normalized_layers(model)) >= (6 if mixes else 8)


@pytest.mark.parametrize("norm", ["none_init", "weight_norm_init", "weight_norm_mean_only_bn_init"])
@pytest.mark.parametrize("name", MODELS)
def test_initialisation_goes_through_encoder_draw_and_decoder(name: str, norm: str) -> None:
    model, x = make(name, norm), images(name, 300)
    model.train()
    before = keys(model)
    given = data_dependent_init(model, x)
    layers = normalized_layers(model)
    seen: dict[str, Tensor] = {}
    for key, layer in layers.items():
        layer.register_forward_hook(lambda _, x, y, key=key: seen.__setitem__(key, y))
    put_back(model, before)
    again = model(x)
    for first, second in zip(given, again, strict=True):
        torch.testing.assert_close(first, second)
    checked = 0
    for y in seen.values():
        dims = [d for d in range(y.dim()) if d != 1]
        deviation, mean = torch.std_mean(y.detach(), dims, correction=0)
        varies = deviation > 1e-6  # the first number of a flow sees nothing but its bias
        checked += int(varies.sum())
        torch.testing.assert_close(deviation[varies], torch.ones_like(deviation[varies]))
        if norm != "weight_norm_mean_only_bn_init":
            assert (mean[varies].abs() < 1e-9).all()
    assert checked > 0.7 * sum(
        layer.raw_weight.shape[1 if layer.transposed else 0] for layer in layers.values()
    )


@pytest.mark.parametrize("norm", ["none", "batch_norm", "weight_norm_init", "weight_norm_mean_only_bn"])
@pytest.mark.parametrize("name", MODELS)
def test_members_of_a_stack_are_the_models_alone(name: str, norm: str) -> None:
    alone = [make(name, norm, seed=seed) for seed in range(3)]
    stack = Stack([make(name, norm, seed=seed) for seed in range(3)])
    x = torch.stack([images(name, 10, seed) for seed in range(3)])
    stack.initialize(x)
    for model, batch in zip(alone, x, strict=True):
        data_dependent_init(model, batch)
        if NORMS[norm].init == "default":
            model.train()
    for mode in (True, False):
        outputs = stack.train(mode)(x)
        expected = [model.train(mode)(batch) for model, batch in zip(alone, x, strict=True)]
        for found, wanted in zip(outputs, zip(*expected, strict=True), strict=True):
            torch.testing.assert_close(found, torch.stack(list(wanted)), rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_evaluating_changes_no_training_and_is_the_same_twice(name: str) -> None:
    stack, x = Stack([make(name)]), images(name)
    training = {k: b.clone() for k, b in stack.buffers.items() if k.endswith("key")}
    evaluations = [stack.train(False)(x, shared=True) for _ in range(2)]
    for first, second in zip(*evaluations, strict=True):
        assert torch.equal(first, second)
    other = stack(x, shared=True)  # a second pass of the same evaluation draws anew
    assert not torch.equal(other[0], evaluations[0][0])
    assert all(torch.equal(stack.buffers[k], key) for k, key in training.items())
    stack.train()(x, shared=True)
    later = stack.train(False)(x, shared=True)[0]  # evaluated after a later step
    assert not torch.equal(later, evaluations[0][0])


@pytest.mark.parametrize("name", MODELS)
def test_pictures_are_grey_levels_and_reconstructions_each_of_its_image(name: str) -> None:
    model, x = make(name).eval(), images(name, 6)
    other, before = x.clone(), keys(model)
    other[0] = 1 - x[0]
    for draw, changed in ((model.reconstruct, [True] + [False] * 5), (model.generate, [False] * 6)):
        picture = draw(x)
        assert picture.shape == x.shape
        assert (picture > 0).all()
        assert (picture < 1).all()
        assert picture.std(0).max() > 0
        put_back(model, before)
        assert (draw(other) != picture).flatten(1).any(1).tolist() == changed  # with the same noise
    assert torch.equal(model.observe(x), x) == (MODELS[name][0].likelihood == "logistic")


def test_black_and_white_are_drawn_with_the_grey_level_as_probability() -> None:
    model = make("mlp_vae").train()
    x = torch.full((2000, 1, 4, 4), 0.3, dtype=torch.float64)
    drawn = torch.stack([model.observe(x) for _ in range(2)])
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert abs(float(drawn.mean()) - 0.3) < 5 * (0.21 / drawn.numel()) ** 0.5
    assert not torch.equal(drawn[0], drawn[1])
    edges = torch.tensor([0.0, 1.0]).double().view(2, 1, 1, 1).expand(2, 1, 4, 4)
    assert torch.equal(model.observe(edges), edges)  # images that are binary already stay


def test_the_network_of_section_5_2() -> None:
    model: Any = build(ConvVAEConfig(), NORMS["weight_norm"], (1, 28, 28), classes=10, seed=0)
    layers = normalized_layers(model)
    convolutions = [layer for layer in layers.values() if layer.raw_weight.dim() == 4]
    blocks = [name for name, _ in model.named_modules() if name.endswith(".first")]
    assert len(blocks) == 2 * 3 * 2  # two in each of three sequences, encoder and decoder
    assert sum(layer.transposed for layer in convolutions) == 2 * 2  # two blocks double, and their shortcuts
    assert layers["posterior_params"].raw_weight.shape == (64, 450)
    assert model.decoder[0].raw_weight.shape == (450, 32)
    loss, *_ = model(torch.rand(2, 1, 28, 28))
    assert loss.shape == (2,)


def test_blocks_of_the_vae_of_section_5_2_work_in_channels_last() -> None:
    """Images of one channel are contiguous in either format, so that nothing in them decides it."""
    model: Any = build(ConvVAEConfig(), NORMS["weight_norm"], (1, 28, 28), classes=10, seed=0)
    outputs: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            module.register_forward_hook(lambda *call: outputs.append(call[2]))
    model(torch.rand(2, 1, 28, 28))
    assert len(outputs) == 12
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in outputs)


@pytest.mark.parametrize(
    ("name", "shape", "fine"),
    [
        ("conv_vae", (1, 28, 28), True),
        ("conv_vae", (1, 30, 28), False),
        ("resnet_vae", (3, 32, 32), True),
        ("resnet_vae", (1, 7, 8), False),
        ("mlp_vae", (1, 7, 3), True),
    ],
)
def test_images_that_cannot_be_halved_are_refused(name: str, shape: tuple[int, ...], fine: bool) -> None:
    config, _ = MODELS[name]
    if fine:
        return check(config, shape)
    with pytest.raises(UserError, match=rf"model={name}: halves images .* {shape[1]}x{shape[2]} cannot be"):
        check(config, shape)


@pytest.mark.parametrize("tree", [{"name": "mlp_vae", "widths": []}, {"name": "conv_vae", "channels": []}])
def test_a_vae_has_a_layer_at_least(tree: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"model\.(widths|channels)=\[\]: .* at least 1 item"):
        parse({"model": tree})
