"""Files of CIFAR-10: every layout gives the same images, and what was not published is not unpickled."""

from __future__ import annotations

import functools
import os
import pickle

import data_cases as cases
import numpy as np
import pytest
from cifar_cases import FOLDER, TINY, arrays, batches, write_archive, write_batches, write_parquet
from torchvision.datasets import CIFAR10

from wn import data
from wn.config import DataConfig, UserError
from wn.data import sources

cifar10, refused = (functools.partial(f, "cifar10") for f in (cases.load, cases.refused))


# Tables that say the tiny files are the published ones.


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(sources.OFFICIAL, "cifar10", TINY)
    publish(monkeypatch, batches())


def publish(monkeypatch, files):
    sums = {name: cases.md5(content) for name, content in files.items()}
    monkeypatch.setattr(
        CIFAR10, "train_list", [[f"data_batch_{k}", sums[f"data_batch_{k}"]] for k in range(1, 6)]
    )
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})


LAYOUTS = {
    "batches": write_batches,
    "batches, the folder itself": functools.partial(write_batches, folder="."),
    "parquet": write_parquet,
    "parquet as the Hub lays it": functools.partial(write_parquet, folder="plain_text"),
    "WebP": functools.partial(write_parquet, column="image", kind="WEBP", lossless=True, exact=True),
}


# Reading


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_images_in_the_same_order(layout, tmp_path):
    LAYOUTS[layout](tmp_path)
    *parts, _ = sources.official(DataConfig(name="cifar10", root=str(tmp_path), download=False))
    for part, (images, labels) in zip(("train", "test"), parts, strict=True):
        written = sorted((image.tobytes(), label) for image, label in zip(*arrays(part), strict=True))
        assert [image.tobytes() for image in images] == [image for image, _ in written]
        assert labels.tolist() == [label for _, label in written]
        assert (images.shape[1:], images.dtype, labels.dtype) == (TINY.shape, np.uint8, np.int64)


@pytest.mark.filterwarnings("ignore:dtype")  # how the published pickles spell False
def test_torchvision_reads_the_same_batches(tmp_path, monkeypatch):
    shape = (3, 32, 32)
    monkeypatch.setitem(sources.OFFICIAL, "cifar10", TINY._replace(shape=shape))
    publish(monkeypatch, batches(shape))
    write_batches(tmp_path, shape=shape)
    *parts, _ = sources.official(DataConfig(name="cifar10", root=str(tmp_path), download=False))
    for ours, train in zip(parts, (True, False), strict=True):
        theirs = CIFAR10(tmp_path, train=train)
        order = sorted(range(len(theirs)), key=lambda i: theirs.data[i].transpose(2, 0, 1).tobytes())
        assert np.array_equal(ours.images, theirs.data[order].transpose(0, 3, 1, 2))
        assert ours.labels.tolist() == [theirs.targets[i] for i in order]


@pytest.mark.slow
def test_published_cifar10(tmp_path, monkeypatch):
    monkeypatch.undo()
    train, test = cases.published("cifar10", tmp_path)
    assert (train.images.shape, test.images.shape) == ((50000, 3, 32, 32), (10000, 3, 32, 32))
    # Everybody's transforms.Normalize.
    channels = train.images.transpose(1, 0, 2, 3).reshape(3, -1)
    means, stds = ([getattr(c, f)(dtype=np.float64) / 255 for c in channels] for f in ("mean", "std"))
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)
    assert stds == pytest.approx([0.2470, 0.2435, 0.2616], abs=5e-5)
    different = {image.tobytes() for image in (*train.images, *test.images)}
    assert len(different) == 60000, "ordering by the images' bytes is ambiguous"


# Fractions


def test_a_fraction_is_stratified_fixed_and_part_of_the_whole(tmp_path):
    write_batches(tmp_path)
    whole, part, again = (cifar10(tmp_path, train_fraction=f, whiten=True) for f in (1, 0.4, 0.4))
    assert np.bincount(part.train.y).tolist() == [5, 4, 5]
    assert part.train.x.equal(again.train.x)
    everything = {x.numpy().tobytes(): y for x, y in zip(whole.train.x, whole.train.y, strict=True)}
    assert all(everything[x.numpy().tobytes()] == y for x, y in zip(part.train.x, part.train.y, strict=True))
    assert part.test.x.equal(whole.test.x)
    held = cifar10(tmp_path, train_fraction=0.4, valid_fraction=0.5, whiten=True)
    assert (len(held.train.y), len(held.valid.y)) == (7, 7)
    divided = [x.numpy().tobytes() for split in (held.train, held.valid) for x in split.x]
    assert sorted(divided) == sorted(x.numpy().tobytes() for x in part.train.x)


@pytest.mark.parametrize(
    ("changes", "unit"), [({"name": "digits"}, False), ({}, True), ({"binarize": True}, False)]
)
def test_digits_binarised_images_and_a_vae_s_are_not_whitened(changes, unit):
    with pytest.raises(UserError, match=r"data.whiten=true: .* give false"):
        data.load(DataConfig(**({"name": "cifar10", "whiten": True} | changes)), unit=unit)


# Refusals


class Intruder:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", [name for name in batches() if name != "batches.meta"])
def test_what_was_not_published_is_not_unpickled(name, tmp_path):
    trace = tmp_path / "trace"
    hostile = pickle.dumps({"data": Intruder(trace)})
    write_batches(tmp_path, **{name: hostile})
    assert f"{FOLDER}/{name}: not as published (MD5)" in refused(tmp_path)
    assert not trace.exists()
    pickle.loads(hostile)
    assert trace.exists(), "the intruder was harmless, and the test shows nothing"


def parquet(content):
    def damage(root):
        write_parquet(root)
        cases.shard(root / "test-00001-of-00002.parquet", "img", [content], [0])

    return damage


GOOD = batches()
FLIPPED = GOOD["data_batch_3"][:300] + bytes([GOOD["data_batch_3"][300] ^ 1]) + GOOD["data_batch_3"][301:]
PICTURE = arrays("train")[0][0].transpose(1, 2, 0)
DAMAGE = {
    "a bit": (lambda r: write_batches(r, data_batch_3=FLIPPED), "data_batch_3: not as published"),
    "another's": (lambda r: write_batches(r, data_batch_3=GOOD["data_batch_4"]), "data_batch_3: not as"),
    "lost": (lambda r: write_batches(r) or (r / FOLDER / "test_batch").unlink(), "no complete CIFAR10"),
    "archive cut short": (
        lambda root: write_archive(root).write_bytes((root / TINY.archive).read_bytes()[:-20]),
        f"{TINY.archive}: not as published",
    ),
    "lossy": (parquet(cases.picture(PICTURE, "RGB", "WEBP", quality=90)), "not lossless"),
    "grey": (parquet(cases.picture(PICTURE, "L")), "mode L"),
    "small": (parquet(cases.picture(PICTURE[1:], "RGB")), "6x3"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_nothing_is_deleted(damage, tmp_path):
    inflict, named = DAMAGE[damage]
    inflict(tmp_path)
    before = cases.contents(tmp_path)
    for changes in ({"whiten": True}, {"download": damage != "lost"}):
        line = refused(tmp_path, **changes)
        assert named in line.split(";")[0]
        assert str(tmp_path) in line
    assert cases.contents(tmp_path) == before


# Download


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """The published archive on a server of this machine."""
    folder = tmp_path / "mirror"
    archive = write_archive(folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", cases.md5(archive.read_bytes()))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "root").mkdir()
    with cases.served(folder) as address:
        monkeypatch.setattr(CIFAR10, "url", address + CIFAR10.filename)
        yield archive


def test_download_is_torchvisions_and_is_not_repeated(mirror, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = cifar10(None, download=True)
    assert len(first.train.y) == 35
    assert [path.name for path in (tmp_path / "data").iterdir()] == [FOLDER]
    mirror.unlink()
    assert cifar10(None, download=True).train.x.equal(first.train.x)


@pytest.mark.parametrize("download", [False, True])
def test_an_archive_that_lies_there_is_unpacked_without_network(download, mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/x.tar.gz")
    archive = mirror.rename(tmp_path / "root" / mirror.name)
    assert len(cifar10(tmp_path / "root", download=download).train.y) == 35
    assert {path.name for path in (tmp_path / "root").iterdir()} == {FOLDER, archive.name}


def test_a_failed_download_leaves_nothing_behind(mirror, tmp_path, monkeypatch):
    mirror.write_bytes(mirror.read_bytes()[:-20])
    assert "could not be downloaded" in refused(tmp_path / "root", download=True)
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/x.tar.gz")
    assert "refused" in refused(tmp_path / "root", download=True)
    assert list((tmp_path / "root").iterdir()) == []
