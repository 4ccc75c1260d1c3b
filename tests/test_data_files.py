"""Files of MNIST and its like: every layout gives the same images; damage is named, what lacks downloaded."""

from __future__ import annotations

import functools
import hashlib

import data_cases as cases
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mnist_cases import (
    SIZE,
    TINY,
    arrays,
    idx,
    mnist,
    png,
    refused,
    same,
    shard,
    write_idx,
    write_parquet,
)

from wn import data
from wn.config import DataConfig
from wn.data import sources

pytestmark = pytest.mark.usefixtures("tiny_mnist")


def kaggle(root):
    """Other spelling, and folders that are named like the files."""
    write_idx(root / "raw", mark=".")
    (root / "raw" / "train-images-idx3-ubyte").mkdir()


LAYOUTS = {
    "torchvision": lambda root: write_idx(root / "MNIST" / "raw"),
    "torchvision_gz": lambda root: write_idx(root / "MNIST" / "raw", zipped=True),
    "raw": lambda root: write_idx(root / "raw"),
    "raw_gz": lambda root: write_idx(root / "raw", zipped=True),
    "raw, another spelling": kaggle,
    "parquet": write_parquet,
    "parquet in data": lambda root: write_parquet(root / "data"),
    "shards": functools.partial(write_parquet, shards=3),
}


# Reading


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_written_images(layout, tmp_path):
    LAYOUTS[layout](tmp_path)
    loaded = mnist(tmp_path)
    train_images, _ = arrays("train")
    for part in ("train", "test"):
        images, labels = arrays(part)
        split = getattr(loaded, part)
        restored = split.x * train_images.std() + train_images.mean()
        np.testing.assert_allclose(restored[:, 0], images, atol=1e-9)
        assert split.y.tolist() == labels.tolist()
        assert split.y.dtype == torch.int64
    assert loaded.shape == (1, *SIZE)
    assert loaded.classes == 3


@pytest.mark.parametrize(("name", "published"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_files_lie_where_torchvision_reads_the_same_and_where_the_hub_lays_them(
    name, published, tmp_path, monkeypatch
):
    import torchvision.datasets

    def read(root):
        return sources.official(DataConfig(name=name, root=str(root), download=False))[:2]

    assert sources.OFFICIAL[name].name == published  # the class that downloads
    tiny = sources.OFFICIAL[name]._replace(shape=TINY.shape, train=TINY.train, test=TINY.test)
    monkeypatch.setitem(sources.OFFICIAL, name, tiny)
    write_idx(tmp_path / published / "raw")
    (tmp_path / "hub").mkdir()
    write_parquet(tmp_path / "hub" / name)
    for ours, hub, train in zip(read(tmp_path), read(tmp_path / "hub"), (True, False), strict=True):
        theirs = getattr(torchvision.datasets, published)(tmp_path, train=train)
        for raw in (ours, hub):
            assert np.array_equal(raw.images[:, 0], theirs.data.numpy())
            assert np.array_equal(raw.labels, theirs.targets.numpy())


def test_torchvisions_layout_comes_first_and_an_incomplete_one_is_passed_over(tmp_path):
    write_parquet(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    write_idx(raw)
    (raw / "train-labels-idx1-ubyte").write_bytes(b"nonsense")
    assert "train-labels-idx1-ubyte" in refused(tmp_path)
    (raw / "train-labels-idx1-ubyte").unlink()
    assert len(mnist(tmp_path).train.y) == sum(TINY.train)


@pytest.mark.parametrize("files", ["raw/*.gz", "*.parquet"])
def test_published_mnist(files, tmp_path, monkeypatch):
    monkeypatch.undo()
    train, test = cases.published("mnist", tmp_path, files)
    assert (train.images.shape, test.images.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    # The mean and standard deviation of everybody's transforms.Normalize.
    assert np.divide(data._mean_std(train.images), 255) == pytest.approx([0.1307, 0.3081], abs=5e-5)
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    # One digest for both sources: they hold the same images in the same order.
    digest = hashlib.sha256(train.images.tobytes() + test.images.tobytes()).hexdigest()
    assert digest.startswith("5b92582eb909c82a")


# Refusals


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def broken(labels=None, first=None):
    """A test part with other labels, or another content of its first image."""

    def damage(root):
        images, good = arrays("test")
        shard(root / TEST_FILE, images if first is None else [first, *images[1:]], labels or good)

    return damage


def other_columns(root):
    pq.write_table(pa.table({"picture": [b""], "label": [0]}), root / TEST_FILE)


GOOD, LABELS = arrays("test")[0][0], arrays("test")[1].tolist()
HUGE = bytes((0, 0, 8, 3)) + b"\xff" * 20
TEST_FILE = "test-00000-of-00001.parquet"
DAMAGE = {
    "gz cut short": ("raw_gz", lambda r: truncate(r / "raw/train-images-idx3-ubyte.gz"), "train-images-idx3"),
    "gz is none": ("raw_gz", lambda r: (r / "raw/t10k-labels-idx1-ubyte.gz").write_text("x"), "t10k-labels"),
    "idx cut short": ("raw", lambda r: truncate(r / "raw/t10k-images-idx3-ubyte"), "t10k-images"),
    "idx too long": ("raw", lambda r: (r / "raw/t10k-images-idx3-ubyte").write_bytes(HUGE), "t10k-images"),
    "idx empty": ("raw", lambda r: (r / "raw/t10k-images-idx3-ubyte").write_bytes(b""), "t10k-images"),
    "idx magic": ("raw", lambda r: (r / "raw/t10k-images-idx3-ubyte").write_bytes(idx(GOOD)), "t10k-images"),
    "idx too few": ("raw", lambda r: (r / "raw/t10k-labels-idx1-ubyte").write_bytes(idx(GOOD[0])), "t10k-"),
    "parquet cut short": ("parquet", lambda r: truncate(r / TEST_FILE), TEST_FILE),
    "parquet columns": ("parquet", other_columns, TEST_FILE),
    "parquet label": ("parquet", broken(labels=[None, *LABELS[1:]]), TEST_FILE),
    "png cut short": ("parquet", broken(first=png(GOOD)[:60]), "row 0"),
    "png is none": ("parquet", broken(first=b"GIF89a"), "row 0"),
    "png in colour": ("parquet", broken(first=cases.picture(GOOD, "RGB")), "row 0"),
    "png of another size": ("parquet", broken(first=png(GOOD.T)), "row 0"),
    "another data set": ("parquet", broken(labels=[2 - label for label in LABELS]), "not MNIST"),
    "lost shard": ("shards", lambda r: (r / "train-00001-of-00003.parquet").unlink(), "train-00000-of-00003"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_nothing_is_deleted(damage, tmp_path):
    layout, inflict, named = DAMAGE[damage]
    LAYOUTS[layout](tmp_path)
    inflict(tmp_path)
    before = cases.contents(tmp_path)
    line = refused(tmp_path, download=True)  # what is there is never replaced by a download
    assert named in line.split(";")[0]
    assert str(tmp_path) in line
    assert cases.contents(tmp_path) == before


def test_missing_files_and_folders(tmp_path):
    assert "no complete MNIST" in refused(tmp_path)
    assert "no such folder" in refused(tmp_path / "typo", download=True)
    assert not (tmp_path / "typo").exists()
    (tmp_path / "file").write_text("")
    assert "no such folder" in refused(tmp_path / "file")


# Download


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A server on this machine with the tiny files, in the place of torchvision's mirrors."""
    from torchvision.datasets import MNIST

    folder = tmp_path / "mirror"
    write_idx(folder, zipped=True)
    resources = [(p.name, cases.md5(p.read_bytes())) for p in sorted(folder.iterdir())]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(MNIST, "resources", resources)
    with cases.served(folder) as address:
        monkeypatch.setattr(MNIST, "mirrors", [address])
        yield folder


def test_download_fills_what_is_missing_and_is_not_repeated(mirror, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "data" / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(idx(arrays("test")[1]))
    inode = mine.stat().st_ino
    first = mnist(None, download=True)
    assert first.train.y.tolist() == arrays("train")[1].tolist()
    assert mine.stat().st_ino == inode
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["MNIST"]
    for path in mirror.iterdir():
        path.unlink()
    assert same(mnist(None, download=True).train, first.train)


def test_a_failed_download_leaves_nothing_behind(mirror, tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    truncate(mirror / "t10k-labels-idx1-ubyte.gz")
    (tmp_path / "root").mkdir()
    assert "could not be downloaded" in refused(tmp_path / "root", download=True)
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    assert "refused" in refused(tmp_path / "root", download=True)
    assert list((tmp_path / "root").iterdir()) == []
