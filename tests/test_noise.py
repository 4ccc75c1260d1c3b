"""Noise: the hash's draws behave as random ones, and every draw is a function of (seed, step)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from wn.models import noise
from wn.models.noise import Dropout, GaussianNoise, Sampler, uniform

BITS = 23
GOLDEN = 0x1E3779B97F4A7C15
KEYS = [0, 1, 2, 12345, 2**31 - 1, 2**31, 2**32, 2**40 + 7, 2**62 - 1, -1, -(2**63)]
SIZE = torch.Size((2**16,))
STRICT = 6.0
"""Standard errors: a fair statistic is above it once in 500 million; a bad hash is far above."""


def bits_of(key: int, shape: torch.Size = SIZE) -> Tensor:
    """The random integers, of 23 bits, behind the uniform numbers."""
    return (uniform(torch.tensor(key), shape).double() * 2**BITS - 0.5).long()


def planes(key: int) -> Tensor:
    """Each bit as -1 or 1, ``[bits, positions]``."""
    return torch.stack([(bits_of(key) >> b & 1) * 2 - 1 for b in range(BITS)]).double()


def worst(correlations: Tensor, samples: int) -> float:
    """The largest of some mean products of independent signs, in standard errors."""
    return float(correlations.abs().max()) * samples**0.5


def chi_square(key: int) -> float:
    """Distance of a histogram from the uniform one, in standard errors, to either side."""
    count = torch.bincount(bits_of(key) >> (BITS - 8), minlength=256).double()
    expected = SIZE[0] / 256
    statistic = float(((count - expected) ** 2 / expected).sum())
    return abs(statistic - 255) / (2 * 255) ** 0.5


def balance(key: int) -> float:
    """Of each bit, and of each pair of bits."""
    plane = planes(key)
    pairs = (plane @ plane.T / SIZE[0]).fill_diagonal_(0)
    return max(worst(plane.mean(1), SIZE[0]), worst(pairs, SIZE[0]))


def neighbouring_positions(key: int) -> float:
    """Each bit against each bit at places some steps on, steps of images' and layers' sizes included."""
    plane = planes(key)
    return max(
        worst(plane[:, :-lag] @ plane[:, lag:].T / (SIZE[0] - lag), SIZE[0] - lag)
        for lag in (1, 2, 3, 8, 28, 64, 128, 784, 1024, 3072)
    )


def neighbouring_keys(key: int) -> float:
    """Each bit against each bit at the same place under another key: one bit apart, or one step on."""
    plane = planes(key)
    others = [key ^ 1 << b for b in range(0, 63, 7)] + [key + GOLDEN, key + 2 * GOLDEN]
    wrapped = [(other + 2**63) % 2**64 - 2**63 for other in others]
    return max(worst(plane @ planes(other).T / SIZE[0], SIZE[0]) for other in wrapped)


def shifted_keys(key: int) -> float:
    """A draw against the draw of a key a few places on, moved back by so many places."""
    plane = planes(key)
    return max(
        worst(plane[:, by:] @ planes(key + by + (1 << 32))[:, :-by].T / (SIZE[0] - by), SIZE[0] - by)
        for by in (1, 5, 100)
    )


STATISTICS = [chi_square, balance, neighbouring_positions, neighbouring_keys, shifted_keys]


@pytest.mark.parametrize("key", [0, 1, 2**32, 0x0123456789ABCDEF])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_draws_are_uniform_and_independent(statistic: Callable[[int], float], key: int) -> None:
    assert statistic(key) < STRICT


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_bounds_fail_when_the_hash_is_bad(
    statistic: Callable[[int], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for factor in (1, 0x2C1B3C6D):  # the position itself, and a congruential generator
        monkeypatch.setattr(noise, "_mix", lambda x, factor=factor: x * factor)
        found.append(statistic(1))
    assert max(found) > 2 * STRICT


def reference(key: int, position: int) -> float:
    """The documented hash in exact integers."""

    def mix(x: int) -> int:
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        return x ^ x >> 16

    bits = mix(mix((position + key) % 2**32) ^ (key >> 32) % 2**32)
    return ((bits >> 9) + 0.5) / 2**BITS


@pytest.mark.parametrize("key", KEYS)
def test_uniform_is_the_same_function_in_any_arithmetic(key: int) -> None:
    drawn = uniform(torch.tensor(key), torch.Size((3, 4, 50)))
    assert drawn.dtype == torch.float32
    assert drawn.flatten().tolist() == [reference(key, position) for position in range(600)]


def test_uniform_never_reaches_zero_or_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_mix", lambda x: x)  # so that a key names its bits
    bits = torch.tensor([0, 2**9, 2**31, 2**32 - 2**9, 2**32 - 1])
    ends = torch.stack([uniform(key, torch.Size(())) for key in bits])
    assert ends.tolist() == [2**-24, 3 * 2**-24, 0.5 + 2**-24, 1 - 2**-24, 1 - 2**-24]
    layer = GaussianNoise(1.0)
    for key in (0, -1):
        layer.key.fill_(key - GOLDEN)
        assert 5 < layer(torch.zeros(())).abs() < 6


@pytest.mark.parametrize("seed", [0, 1, 2**62 - 1])
def test_gaussian_noise_is_normal(seed: int) -> None:
    layer = GaussianNoise(0.15)
    layer.seed(seed)
    drawn = (layer(torch.full((400, 500), 2.0, dtype=torch.float64)).flatten() - 2).numpy() / 0.15
    n = drawn.size
    assert abs(drawn.mean()) < 5 / n**0.5
    assert abs(drawn.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs(scipy.stats.skew(drawn)) < 5 * (6 / n) ** 0.5
    assert abs(scipy.stats.kurtosis(drawn)) < 5 * (24 / n) ** 0.5
    assert scipy.stats.kstest(drawn, "norm").pvalue > 1e-4


@pytest.mark.parametrize("strength", [0.0, 0.2, 0.5, 0.9])
def test_dropout_drops_so_many_and_keeps_the_mean(strength: float) -> None:
    layer = Dropout(strength)
    layer.seed(3)
    y = layer(torch.full((400, 500), 3.0))
    dropped = y == 0
    assert abs(dropped.double().mean() - strength) <= 5 * (strength * (1 - strength) / y.numel()) ** 0.5
    torch.testing.assert_close(y[~dropped], torch.full_like(y[~dropped], 3 / (1 - strength)))


@pytest.mark.parametrize("kind", [GaussianNoise, Dropout])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_noise_keeps_shape_and_dtype_and_lets_gradients_through(
    kind: type[GaussianNoise | Dropout], dtype: torch.dtype
) -> None:
    x = torch.ones(5, 2, 3, dtype=dtype, requires_grad=True)
    y = kind(0.5)(x)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    (slope,) = torch.autograd.grad(y.sum(), x)
    expected = torch.ones_like(y) if kind is GaussianNoise else y.detach()
    assert torch.equal(slope, expected)


@pytest.mark.parametrize("kind", [GaussianNoise, Dropout])
def test_evaluation_is_the_identity_and_draws_nothing(kind: type[GaussianNoise | Dropout]) -> None:
    layer = kind(0.5)
    layer.eval()
    x, key = torch.randn(7, 3), layer.key.clone()
    assert layer(x) is x
    assert torch.equal(layer.key, key)
    layer.train()
    assert not torch.equal(layer(x), x)
    assert not torch.equal(layer.key, key)


@pytest.mark.parametrize("kind", [GaussianNoise, Dropout])
def test_a_draw_is_a_function_of_seed_and_step(kind: type[GaussianNoise | Dropout]) -> None:
    def passes(layer: nn.Module, count: int) -> list[Tensor]:
        return [layer(torch.ones(6, 5)) for _ in range(count)]

    layer, again, other = kind(0.4), kind(0.4), kind(0.4)
    layer.seed(11)
    again.seed(11)
    other.seed(12)
    first = passes(layer, 3)
    saved = copy.deepcopy(layer.state_dict())
    then = passes(layer, 3)
    torch.randn(9)  # a hidden generator would notice
    assert all(map(torch.equal, passes(again, 6), first + then))
    assert not any(map(torch.equal, passes(other, 6), first + then))
    assert len({tuple(y.flatten().tolist()) for y in first + then}) == 6
    resumed = kind(0.1)
    resumed.load_state_dict(saved)
    assert all(map(torch.equal, passes(resumed, 3), then))


def test_layers_of_one_model_draw_apart() -> None:
    model = nn.Sequential(GaussianNoise(1.0), GaussianNoise(1.0), Dropout(0.5), GaussianNoise(1.0))
    draws = [layer.draw(SIZE).double() for layer in model for _ in range(3)]
    correlation = np.corrcoef(torch.stack(draws).numpy())
    assert np.abs(correlation - np.eye(len(draws))).max() < STRICT / SIZE[0] ** 0.5


def test_vmap_over_keys_equals_one_by_one() -> None:
    keys = torch.tensor(KEYS)
    stacked = torch.vmap(lambda key: uniform(key, torch.Size((4, 30))))(keys)
    assert torch.equal(stacked, torch.stack([uniform(key, torch.Size((4, 30))) for key in keys]))


@pytest.mark.parametrize("kind", [GaussianNoise, Dropout])
def test_members_of_a_stack_draw_as_alone_each_with_its_strength(kind: type[GaussianNoise | Dropout]) -> None:
    strengths, template, x = [0.1, 0.5, 0.5], kind(0.0), torch.randn(3, 50, 4)
    alone = [kind(strength) for strength in strengths]
    buffers = {name: torch.stack([layer.get_buffer(name) for layer in alone]) for name in ("key", "strength")}
    for _ in range(2):
        y = torch.vmap(lambda b, one: torch.func.functional_call(template, b, (one,)))(buffers, x)
        assert torch.equal(y, torch.stack([layer(one) for layer, one in zip(alone, x, strict=True)]))
    assert torch.equal(buffers["key"], torch.stack([layer.key for layer in alone]))


@pytest.mark.gpu
def test_draws_are_the_same_on_cuda() -> None:
    for key in KEYS:
        here, there = (uniform(torch.tensor(key, device=d), torch.Size((64, 999))) for d in ("cpu", "cuda"))
        assert torch.equal(here, there.cpu())


# Seeds -----------------------------------------------------------------------------------------------


def test_streams_of_near_seeds_are_not_one_stream_shifted() -> None:
    """Neither by places, which an added 1 would do, nor by passes, which an added ``STEP`` would."""

    def stream(seed: int) -> Tensor:
        layer = Dropout(0.5)
        layer.seed(seed % 2**62)
        return torch.stack([layer.draw(torch.Size((4096,))) for _ in range(4)]).double()

    for seed in (0, 1, 2**40):
        drawn = stream(seed)
        for apart in (1, 2, 3, 100, 2**32, noise.STEP, 2 * noise.STEP):
            other = stream(seed + apart)
            for places in range(5):
                pairs = torch.corrcoef(torch.cat([drawn[:, places:], other[:, : 4096 - places]]))
                assert pairs[:4, 4:].abs().max() < STRICT / 64
                pairs = torch.corrcoef(torch.cat([drawn[:, : 4096 - places], other[:, places:]]))
                assert pairs[:4, 4:].abs().max() < STRICT / 64


def test_a_new_layer_starts_from_torchs_generator_as_it_always_did() -> None:
    """The committed rows come from these streams."""
    torch.manual_seed(0)
    layers = [Dropout(0.5), GaussianNoise(0.1), Sampler()]
    torch.manual_seed(0)
    assert [int(layer.key) for layer in layers] == [int(torch.randint(2**62, ())) for _ in layers]
    first = int(layers[0].key)
    layers[0](torch.ones(3))
    assert int(layers[0].key) % 2**64 == (first + GOLDEN) % 2**64
