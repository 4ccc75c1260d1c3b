from __future__ import annotations

import concurrent.futures
import os
import pickle
import threading

import data_cases as cases
import numpy as np
import pytest

from wn.data import whitening
from wn.data.formats import Arrays

SHAPE = (3, 2, 4)
SIZE = 24


def draw(count, seed=0):
    """Images of which some directions hardly vary, so that the regularisation is seen."""
    rng = np.random.default_rng(seed)
    mixed = 128 + rng.normal(size=(count, SIZE)) @ rng.normal(size=(SIZE, SIZE)) * 15
    images = mixed.clip(0, 255).astype(np.uint8)
    images[:, :3] = 100
    images[:: count // 3, 1] = 101
    images[:, 4] = images[:, 5]
    return Arrays(images.reshape(count, *SHAPE), np.arange(count) % 10)


def scaled(images):
    """The authors' scale, as rows."""
    return (images.reshape(len(images), -1) - 127.5) / 128


# The numbers


def test_against_the_singular_values_of_the_images(monkeypatch):
    monkeypatch.setattr(whitening, "CHUNK", 30)  # the last is a part
    train, test = draw(100), draw(20, seed=1)
    x = scaled(train.images)
    _, singular, axes = np.linalg.svd(x - x.mean(0), full_matrices=False)
    variances = singular**2 / len(x)
    assert variances[-1] < 1e-9 < 1e-6 < variances[-4] < 1e-5 < variances[-5], "all kinds of directions"
    *whitened, _ = whitening.whiten(train, test)
    for part, z in zip((train, test), whitened, strict=True):
        along = (scaled(part.images) - x.mean(0)) @ axes.T / np.sqrt(variances + 1e-5)
        # float32: two bytes that are always equal cancel, each about 150, times a factor of 2.5
        np.testing.assert_allclose(z.images.reshape(-1, SIZE), along @ axes, atol=1e-4)
        assert z.images.dtype == np.float32
        assert z.images.shape == part.images.shape
        assert np.array_equal(z.labels, part.labels)


def test_the_order_of_the_images_decides_no_digit(monkeypatch):
    images = draw(300).images
    mean, matrix = whitening.fit(images)
    monkeypatch.setattr(whitening, "CHUNK", 7)
    again = whitening.fit(images[::-1])
    assert np.array_equal(mean, again[0])
    assert np.array_equal(matrix, again[1])


@pytest.mark.slow
def test_published_cifar10(tmp_path):
    train, _ = cases.published("cifar10", tmp_path)
    z = cases.published("cifar10", tmp_path, whiten=True)[0].images.reshape(50000, -1)
    direction = np.random.default_rng(0).normal(size=(3072, 8))
    direction /= np.linalg.norm(direction, axis=0)
    covariance = np.cov(scaled(train.images.astype(np.float32)).T, bias=True)
    expected = np.linalg.solve(covariance + 1e-5 * np.eye(3072), covariance @ direction)
    measured = z.T @ (z @ direction.astype(np.float32)) / len(z)
    np.testing.assert_allclose(measured, expected, atol=1e-4)


# The cache


@pytest.fixture
def folder(tmp_path):
    """A folder with files, and what they are said to hold."""
    (tmp_path / "train").write_bytes(b"1")
    (tmp_path / "test").write_bytes(b"2")
    return tmp_path


def once(folder, parts=None):
    """Whitened images of ``folder``, which are ``parts`` if they are read at all."""

    def read():
        assert parts is not None, "the files were read although the cache is there"
        return parts

    return whitening.whiten_once(folder / "cache.npz", (folder / "train", folder / "test"), read)


def equal(a, b):
    return all(np.array_equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


PARTS = draw(100), draw(20, seed=1)


def test_what_is_kept_is_what_was_made(folder):
    made = once(folder, PARTS)
    assert equal(made, whitening.whiten(*PARTS))
    assert sorted(path.name for path in folder.iterdir()) == ["cache.npz", "test", "train"]
    assert equal(once(folder), made)


@pytest.mark.parametrize("changed", ["train", "test", "recipe"])
def test_another_origin_is_whitened_anew(changed, folder, monkeypatch):
    once(folder, PARTS)
    if changed == "recipe":
        monkeypatch.setattr(whitening, "RECIPE", "another")
    else:
        (folder / changed).write_bytes(b"3")
    others = draw(90, seed=2), draw(20, seed=3)
    assert equal(once(folder, others), whitening.whiten(*others))
    assert equal(once(folder), whitening.whiten(*others))


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = {
    "a bit": flip,
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "text": lambda content: b"x" * 1000,
    "a pickle": lambda content: pickle.dumps({"made_from": "x"}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_named_and_made_anew(damage, folder, caplog):
    made = once(folder, PARTS)
    cache = folder / "cache.npz"
    cache.write_bytes(DAMAGE[damage](cache.read_bytes()))
    assert equal(once(folder, PARTS), made)
    assert "cache.npz: damaged" in caplog.text
    assert equal(once(folder), made)


class Intruder:
    def __reduce__(self):
        return os.mkdir, (f"{self.folder}/trace",)


def test_a_cache_with_objects_runs_nothing(folder):
    once(folder, PARTS)
    with np.load(folder / "cache.npz") as file:
        arrays = dict(file)
    Intruder.folder = folder
    np.savez(folder / "cache.npz", **arrays | {"test_images": np.array([Intruder()], dtype=object)})
    assert equal(once(folder, PARTS), whitening.whiten(*PARTS))
    assert not (folder / "trace").exists()


def test_a_full_disk_costs_the_cache_alone(folder, monkeypatch, caplog):
    def full(path, **arrays):
        path.write_bytes(b"the beginning")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert equal(once(folder, PARTS), whitening.whiten(*PARTS))
    assert "cannot be written (No space left on device)" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == ["test", "train"]


def test_two_at_once(folder):
    meeting = threading.Barrier(2, timeout=30)

    def read():
        meeting.wait()  # both have found no cache
        return PARTS

    def run(_):
        return whitening.whiten_once(folder / "cache.npz", (folder / "train", folder / "test"), read)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(run, range(2)))
    assert equal(results[0], results[1])
    assert equal(once(folder), results[0])
    assert sorted(path.name for path in folder.iterdir()) == ["cache.npz", "test", "train"]
