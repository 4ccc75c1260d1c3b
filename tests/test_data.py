from __future__ import annotations

import functools
import gzip
import hashlib
import struct
from collections import Counter

import data_cases as cases
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.datasets
import torch

from wn import data
from wn.config import DataConfig, UserError
from wn.data import sources

SIZE = (6, 5)  # not square, so that swapped axes show
TINY = sources.OFFICIAL["mnist"]._replace(shape=(1, *SIZE), train=(40, 30, 50), test=(3, 5, 4))
SPLITS = ("train", "valid", "test")
mnist = functools.partial(cases.load, "mnist", dtype=torch.float64)
refused = functools.partial(cases.refused, "mnist")


# Tiny files with the structure of the published ones, and a table that says they are the published ones.


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(sources.OFFICIAL, "mnist", TINY)


def arrays(part):
    """Images and labels of the tiny data set."""
    return cases.drawn({"train": TINY.train, "test": TINY.test}[part], SIZE)


def idx(array):
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder, *, zipped=False, mark="-"):
    folder.mkdir(parents=True)
    for part, stem in (("train", "train"), ("test", "t10k")):
        for array, kind in zip(arrays(part), ("images{}idx3-ubyte", "labels{}idx1-ubyte"), strict=True):
            path = folder / f"{stem}-{kind.format(mark)}{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))


png = functools.partial(cases.picture, mode="L")


def shard(path, images, labels):
    contents = [image if isinstance(image, bytes) else png(image) for image in images]
    cases.shard(path, "image", contents, labels)


def write_parquet(root, *, shards=1):
    root.mkdir(exist_ok=True)
    for part in ("train", "test"):
        images, labels = arrays(part)
        pieces = np.array_split(np.arange(len(labels)), shards)
        for k, piece in reversed(list(enumerate(pieces))):  # the newest file is not the last shard
            shard(root / f"{part}-{k:05}-of-{shards:05}.parquet", images[piece], labels[piece])


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
    "parquet as the Hub lays it": lambda root: write_parquet(root / "mnist"),
    "parquet in data": lambda root: write_parquet(root / "data"),
    "shards": functools.partial(write_parquet, shards=3),
}


def same(a, b):
    return torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


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


def test_torchvision_reads_the_same_from_its_layout(tmp_path):
    from torchvision.datasets import MNIST

    write_idx(tmp_path / "MNIST" / "raw")
    train, test, _ = sources.official(DataConfig(name="mnist", root=str(tmp_path)))
    for raw, theirs in ((train, MNIST(tmp_path, train=True)), (test, MNIST(tmp_path, train=False))):
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
