"""Splits, scaling and the order of an epoch."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
import sklearn.datasets
import torch
from mnist_cases import (
    SIZE,
    SPLITS,
    TINY,
    arrays,
    mnist,
    same,
    write_idx,
    write_parquet,
)

from wn import data
from wn.config import DataConfig, UserError
from wn.data.formats import Arrays

pytestmark = pytest.mark.usefixtures("tiny_mnist")


# Splits and scaling


def test_digits_are_divided_once_and_for_all():
    loaded = data.load(DataConfig(name="digits"))
    np.random.seed(1)
    torch.manual_seed(1)
    again = data.load(DataConfig(name="digits"))
    assert all(same(getattr(loaded, s), getattr(again, s)) for s in SPLITS)
    assert [len(getattr(loaded, s).y) for s in SPLITS] == [1149, 288, 360]
    everything = np.bincount(sklearn.datasets.load_digits().target)
    for part, share in zip(SPLITS, (0.64, 0.16, 0.2), strict=True):
        assert np.abs(np.bincount(getattr(loaded, part).y) - share * everything).max() <= 1.5
    digest = hashlib.sha256(b"".join(getattr(loaded, s).y.numpy().tobytes() for s in SPLITS))
    assert digest.hexdigest().startswith("2015e65bb7386b99"), "another split than the committed results have"


def test_digits_are_all_there_and_in_one_split_each():
    loaded = data.load(DataConfig(name="digits"), unit=True)
    found = Counter()
    for split in (loaded.train, loaded.valid, loaded.test):
        levels = (16 * split.x).to(torch.uint8).flatten(1)
        found += Counter((bytes(x), int(y)) for x, y in zip(levels.numpy(), split.y, strict=True))
    bunch = sklearn.datasets.load_digits()
    images = bunch.data.astype(np.uint8)
    assert found == Counter((bytes(x), int(y)) for x, y in zip(images, bunch.target, strict=True))


@pytest.mark.parametrize("fraction", [0.0, 0.2])
def test_scaling_is_by_the_training_split(fraction, tmp_path):
    write_parquet(tmp_path)
    loaded = mnist(tmp_path, valid_fraction=fraction)
    assert loaded.train.x.mean().item() == pytest.approx(0, abs=1e-12)
    assert loaded.train.x.std(correction=0).item() == pytest.approx(1, abs=1e-12)
    assert abs(loaded.test.x.mean().item()) > 1e-6
    assert len(loaded.valid.x) == len(loaded.valid.y) == fraction * sum(TINY.train)
    assert loaded.valid.x.shape[1:] == (1, *SIZE)


def test_grey_levels_from_zero_to_one_are_the_bytes(tmp_path):
    write_idx(tmp_path / "raw")
    split = data.load(DataConfig(name="mnist", root=str(tmp_path), valid_fraction=0), unit=True).train
    assert np.array_equal(np.rint(split.x[:, 0].numpy() * 255), arrays("train")[0])
    assert (split.x.min(), split.x.max()) == (0, 1)


def test_binarised_images_are_one_draw_with_the_grey_level_as_probability(tmp_path):
    grey = data.load(DataConfig(valid_fraction=0), unit=True)
    black = data.load(DataConfig(valid_fraction=0, binarize=True), unit=True)
    again = data.load(DataConfig(valid_fraction=0.2, binarize=True), unit=True)
    for part in ("train", "test"):
        x, level = getattr(black, part).x, getattr(grey, part).x
        assert set(x.unique().tolist()) == {0, 1}
        assert torch.equal(x[level == 0], torch.zeros_like(x[level == 0]))
        assert torch.equal(x[level == 1], torch.ones_like(x[level == 1]))
        for grey_level in range(1, 16):
            drawn = x[level * 16 == grey_level]
            p = grey_level / 16
            assert abs(drawn.mean() - p) < 5 * (p * (1 - p) / len(drawn)) ** 0.5
    assert torch.equal(again.test.x, black.test.x)
    together = {image.numpy().tobytes() for image in black.train.x}
    assert {image.numpy().tobytes() for image in torch.cat([again.train.x, again.valid.x])} == together


def test_holding_out_leaves_the_official_test_set_alone(tmp_path):
    write_parquet(tmp_path)
    loaded = mnist(tmp_path, valid_fraction=0.1)
    assert np.bincount(loaded.valid.y).tolist() == [4, 3, 5]
    assert np.bincount(loaded.train.y).tolist() == [36, 27, 45]
    assert loaded.test.y.tolist() == arrays("test")[1].tolist()


@pytest.mark.parametrize("setting", ["valid_fraction=0.001", "valid_fraction=0.9999", "train_fraction=0.001"])
def test_a_fraction_that_starves_a_split_is_refused(setting):
    name, fraction = setting.split("=")
    with pytest.raises(UserError, match=rf"data\.{setting}: .*there are 1437 images"):
        data.load(DataConfig(**{"name": "digits", name: float(fraction)}))


def test_classes_are_those_of_all_images_whatever_part_is_taken(monkeypatch):
    labels = np.repeat([0, 1], [197, 3])
    whole = Arrays(np.zeros((200, 1, 2, 2), np.uint8), labels)
    monkeypatch.setattr(data, "_read", lambda config, unit: (whole, whole, None, 255))
    loaded = data.load(DataConfig(name="digits", train_fraction=0.1, valid_fraction=0))
    assert not loaded.train.y.any()
    assert loaded.classes == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_is_that_of_the_images_alone(dtype):
    train = data.load(DataConfig(name="digits"), dtype=dtype).train
    assert train.x.dtype == dtype
    assert train.y.dtype == torch.int64


@pytest.mark.gpu
def test_the_device_decides_no_number():
    here, there = data.load(DataConfig(name="digits")), data.load(DataConfig(name="digits"), device="cuda")
    assert (there.train.x.is_cuda, there.train.y.is_cuda) == (True, True)
    torch.testing.assert_close(there.train.x.cpu(), here.train.x)
    assert torch.equal(there.train.y.cpu(), here.train.y)


# Order of an epoch


def test_permutation_is_a_pure_function():
    first = data.permutation(3, 5, 1000)
    np.random.seed(0)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert torch.equal(data.permutation(3, 5, 1000), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert (first.dtype, first.device.type) == (torch.int64, "cpu")
    assert first.sort().values.tolist() == list(range(1000))
    committed = [5, 3, 0, 1, 2, 4, 7, 6]
    assert data.permutation(0, 0, 8).tolist() == committed, "another order than the results have"


def test_permutations_of_neighbours_are_unrelated():
    size = 2000
    pairs = [(seed, epoch) for seed in range(6) for epoch in range(6)]
    pairs += [(5 + 3 * 2**32, 0), (2**32, 1), (2**40 + 1, 2)]  # words of 32 bits must not run together
    orders = torch.stack([data.permutation(*pair, size) for pair in pairs]).double()
    correlations = torch.corrcoef(orders)
    correlations.fill_diagonal_(0)
    assert correlations.abs().max() < 5 / size**0.5


def test_label_noise_redraws_a_share_of_the_training_labels_alone():
    clean, noisy, again = (data.load(DataConfig(label_noise=share)) for share in (0, 0.5, 0.5))
    changed = (clean.train.y != noisy.train.y).double().mean().item()
    assert changed == pytest.approx(0.45, abs=0.03)  # a tenth of the drawn labels is the old one
    assert torch.equal(noisy.train.y, again.train.y)
    assert torch.equal(clean.train.x, noisy.train.x)
    assert torch.equal(clean.valid.y, noisy.valid.y)
    assert torch.equal(clean.test.y, noisy.test.y)
