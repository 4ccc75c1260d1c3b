from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pickle
import tarfile
from pathlib import Path

import data_cases as cases
import numpy as np
import pytest

from wn import data
from wn.config import DataConfig, UserError
from wn.data import sources

PUBLISHED = sources.OFFICIAL["cifar10"]
TINY = dataclasses.replace(PUBLISHED, shape=(3, 4, 6), train=(12, 9, 14), test=(3, 5, 4))
SHARED = Path(os.environ.get("WN_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(sources.OFFICIAL, "cifar10", TINY)


def arrays(part, order=None, shape=TINY.shape):
    """Images and labels of the tiny data set; layouts have them in different orders."""
    counts = {"train": TINY.train, "test": TINY.test}[part]
    rng = np.random.default_rng(sum(counts))
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    images = rng.integers(0, 256, size=(len(labels), *shape), dtype=np.uint8)
    images[::2, 0, 0, :2] = 0  # ties between the first pixels
    order = np.arange(len(labels)) if order is None else np.random.default_rng(order).permutation(len(labels))
    return images[order], labels[order]


def write_pickles(root, folder="cifar-10-batches-py", shape=TINY.shape):
    folder = root / folder
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = arrays("train", shape=shape)
    for k in range(5):
        batch = slice(7 * k, 7 * k + 7)
        (folder / f"data_batch_{k + 1}").write_bytes(cases.cifar_pickle(images[batch], labels[batch]))
    (folder / "test_batch").write_bytes(cases.cifar_pickle(*arrays("test", shape=shape)))


def write_binary(root):
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for part, names in (("train", [f"data_batch_{k}" for k in range(1, 6)]), ("test", ["test_batch"])):
        images, labels = arrays(part, order=1)
        rows = np.concatenate([labels[:, None].astype(np.uint8), images.reshape(len(images), -1)], axis=1)
        for name, batch in zip(names, np.array_split(rows, len(names)), strict=True):
            (folder / f"{name}.bin").write_bytes(batch.tobytes())


def write_parquet(root, column="img", **options):
    for part in ("train", "test"):
        images, labels = arrays(part, order=2)
        contents = [cases.picture(image.transpose(1, 2, 0), "RGB", **options) for image in images]
        for k, chosen in enumerate(np.array_split(np.arange(len(labels)), 2)):
            path = root / f"{part}-{k:05}-of-00002.parquet"
            cases.shard(path, column, [contents[i] for i in chosen], labels[chosen])


LAYOUTS = {
    "pickles": write_pickles,
    "pickles, the folder itself": functools.partial(write_pickles, folder="."),
    "binary": write_binary,
    "parquet": write_parquet,
    "parquet of another hand": lambda root: write_parquet(
        root, "image", kind="WEBP", lossless=True, exact=True
    ),
}


def cifar10(root, **changes):
    config = {"name": "cifar10", "root": root and str(root), "download": False, "valid_fraction": 0.0}
    return data.load(DataConfig(**(config | changes)))


def refused(root, **changes):
    """The one line of the refusal."""
    with pytest.raises(UserError) as caught:
        cifar10(root, **changes)
    line = str(caught.value)
    assert "\n" not in line
    ways = (
        "data.download=true",
        "data.root=",
        "cifar-10-batches-py/",
        "cifar-10-batches-bin/",
        "train-*.parquet",
    )
    assert all(way in line for way in ways)
    return line


# Reading


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_images_in_the_same_order(layout, tmp_path):
    LAYOUTS[layout](tmp_path)
    for part, (images, labels) in zip(("train", "test"), sources._find(tmp_path, TINY).read(), strict=True):
        written = sorted((image.tobytes(), label) for image, label in zip(*arrays(part), strict=True))
        assert [image.tobytes() for image in images] == [image for image, _ in written]
        assert labels.tolist() == [label for _, label in written]
        assert (images.dtype, labels.dtype) == (np.uint8, np.int64)


def test_an_image_keeps_its_channels_rows_and_columns(tmp_path):
    write_parquet(tmp_path)
    loaded = cifar10(tmp_path)
    images, labels = arrays("test")
    restored = loaded.test.x * arrays("train")[0].std() + arrays("train")[0].mean()
    for image, label in zip(images, labels, strict=True):
        (place,) = np.flatnonzero(np.abs(restored.numpy() - image).max((1, 2, 3)) < 1e-3)
        assert loaded.test.y[place] == label
    assert (loaded.shape, loaded.classes) == (TINY.shape, 3)


@pytest.mark.filterwarnings("ignore:dtype")  # how the published pickles spell False
def test_torchvision_reads_the_same_pickles(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    official = dataclasses.replace(TINY, shape=(3, 32, 32))
    write_pickles(tmp_path, shape=official.shape)
    folder = tmp_path / "cifar-10-batches-py"
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b", "c"]}))
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(CIFAR10, "train_list", [(name, md5[name]) for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [("test_batch", md5["test_batch"])])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5["batches.meta"]})
    for ours, train in zip(sources._find(tmp_path, official).read(), (True, False), strict=True):
        theirs = CIFAR10(tmp_path, train=train)
        order = sorted(range(len(theirs)), key=lambda i: theirs.data[i].transpose(2, 0, 1).tobytes())
        assert np.array_equal(ours.images, theirs.data[order].transpose(0, 3, 1, 2))
        assert ours.labels.tolist() == [theirs.targets[i] for i in order]


@pytest.mark.slow
def test_published_cifar10(tmp_path, monkeypatch):
    files = list((SHARED / "cifar10").glob("*.parquet"))
    if not files:
        pytest.skip("the published files are not here")
    for path in files:
        (tmp_path / path.name).symlink_to(path)
    train, test = sources._find(tmp_path, PUBLISHED).read()
    assert train.images.shape == (50000, 3, 32, 32)
    assert test.images.shape == (10000, 3, 32, 32)
    # Everybody's transforms.Normalize.
    channels = train.images.transpose(1, 0, 2, 3).reshape(3, -1)
    means, deviations = (
        [getattr(c, name)(dtype=np.float64) / 255 for c in channels] for name in ("mean", "std")
    )
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)
    assert deviations == pytest.approx([0.2470, 0.2435, 0.2616], abs=5e-5)
    different = {image.tobytes() for image in (*train.images, *test.images)}
    assert len(different) == 60000, "ordering by the images' bytes is ambiguous"


# Fractions


def test_a_fraction_is_stratified_fixed_and_part_of_the_whole(tmp_path):
    write_binary(tmp_path)
    whole, part, again = (cifar10(tmp_path, train_fraction=f, whiten=True) for f in (1, 0.4, 0.4))
    assert np.bincount(part.train.y).tolist() == [5, 4, 5]
    assert part.train.x.equal(again.train.x)
    everything = {x.numpy().tobytes(): y for x, y in zip(whole.train.x, whole.train.y, strict=True)}
    assert all(everything[x.numpy().tobytes()] == y for x, y in zip(part.train.x, part.train.y, strict=True))
    assert part.test.x.equal(whole.test.x)


def test_what_is_held_out_is_a_share_of_what_is_used(tmp_path):
    write_binary(tmp_path)
    used = cifar10(tmp_path, train_fraction=0.6, whiten=True)
    loaded = cifar10(tmp_path, train_fraction=0.6, valid_fraction=1 / 3, whiten=True)
    assert (len(used.train.y), len(loaded.train.y), len(loaded.valid.y)) == (21, 14, 7)
    divided = [x.numpy().tobytes() for split in (loaded.train, loaded.valid) for x in split.x]
    assert sorted(divided) == sorted(x.numpy().tobytes() for x in used.train.x)


def test_a_fraction_that_starves_a_class_is_refused(tmp_path):
    write_binary(tmp_path)
    with pytest.raises(UserError, match=r"data.train_fraction=0.01: .*there are 35 images"):
        cifar10(tmp_path, train_fraction=0.01)


# Refusals


def pickles(content):
    def damage(root):
        write_pickles(root)
        (root / "cifar-10-batches-py" / "data_batch_3").write_bytes(content)

    return damage


def binary(change):
    def damage(root):
        write_binary(root)
        path = root / "cifar-10-batches-bin" / "data_batch_3.bin"
        path.write_bytes(change(path.read_bytes()))

    return damage


def parquet(content):
    def damage(root):
        write_parquet(root)
        cases.shard(root / "test-00001-of-00002.parquet", "img", [content], [0])

    return damage


IMAGES, LABELS = arrays("train")
GOOD = cases.cifar_pickle(IMAGES[:7], LABELS[:7])
PICTURE = IMAGES[0].transpose(1, 2, 0)
DAMAGE = {
    "cut short": (pickles(GOOD[:-500]), "data_batch_3: not a batch"),
    "empty": (pickles(b""), "data_batch_3: not a batch"),
    "no pickle": (pickles(b"x" * 100), "data_batch_3: not a batch"),
    "a list": (pickles(pickle.dumps([1, 2], 2)), "data_batch_3: not a batch"),
    "numbers": (pickles(cases.cifar_dictionary(data=b"K\x01", labels=b"]")), "data_batch_3: not a batch"),
    "no labels": (pickles(GOOD.replace(b"labels", b"lapels")), "data_batch_3: not a batch"),
    "too few labels": (pickles(cases.cifar_pickle(IMAGES[:7], LABELS[:6])), "an integer per image"),
    "other sizes": (pickles(cases.cifar_pickle(IMAGES[:7, :1], LABELS[:7])), "data_batch_3: not a batch"),
    "floats": (pickles(GOOD.replace(b"u1", b"f1")), "no array of bytes"),
    "bytes that claim to be objects": (pickles(GOOD.replace(b"u1", b"O8")), "no array of bytes"),
    "another label": (pickles(cases.cifar_pickle(IMAGES[:7], (LABELS[:7] + 1) % 3)), "not CIFAR10"),
    "binary cut short": (binary(lambda content: content[:-1]), "data_batch_3.bin: "),
    "binary lost images": (binary(lambda content: content[:-73]), "data_batch_1.bin and 4 more"),
    "lossy": (parquet(cases.picture(PICTURE, "RGB", "WEBP", quality=90)), "not lossless"),
    "grey": (parquet(cases.picture(PICTURE, "L")), "mode L"),
    "small": (parquet(cases.picture(PICTURE[1:], "RGB")), "6x3"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_nothing_is_deleted(damage, tmp_path):
    inflict, named = DAMAGE[damage]
    inflict(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for whiten in (False, True):
        line = refused(tmp_path, download=True, whiten=whiten)
        assert named in line.split(";")[0]
        assert str(tmp_path) in line
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


class Intruder:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(protocol, tmp_path):
    trace = tmp_path / "trace"
    content = pickle.dumps({b"data": Intruder(os.mkdir, str(trace)), b"labels": []}, protocol)
    pickles(content)(tmp_path)
    assert "data_batch_3: not a batch of 3x4x6 images (it asks for " in refused(tmp_path)
    assert not trace.exists()
    pickle.loads(content)
    assert trace.exists(), "the intruder was harmless, and the test shows nothing"


@pytest.mark.parametrize("name", ["numpy fromfile", "numpy.core.multiarray fromfile", "numpy ndarray.tofile"])
def test_numpy_has_no_open_door(name, tmp_path):
    module, function = name.split()
    opened = f"c{module}\n{function}\n".encode() + cases.string(b"/dev/null") + b"\x85R"
    pickles(cases.cifar_dictionary(data=opened, labels=b"]"))(tmp_path)
    assert f"it asks for {module}.{function}" in refused(tmp_path)


def test_missing_files_and_folders(tmp_path):
    assert "no complete CIFAR10" in refused(tmp_path)
    assert "no such folder" in refused(tmp_path / "typo", download=True)
    write_pickles(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_5").unlink()
    assert "no complete CIFAR10" in refused(tmp_path)


def test_digits_are_not_whitened():
    with pytest.raises(UserError, match=r"data\.whiten=true: digits"):
        data.load(DataConfig(name="digits", whiten=True))


# Download


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A server on this machine in the place of the published one, and how to fill it."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "mirror"
    archive = folder / CIFAR10.filename

    def publish(write):
        write(folder / "files")
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(folder / "files" / "cifar-10-batches-py", "cifar-10-batches-py")
        monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
        return archive

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with cases.served(folder) as address:
        monkeypatch.setattr(CIFAR10, "url", address + CIFAR10.filename)
        yield publish


def test_download_is_torchvisions_and_is_not_repeated(mirror, tmp_path, monkeypatch):
    archive = mirror(write_pickles)
    monkeypatch.chdir(tmp_path)
    first = cifar10(None, download=True)
    assert len(first.train.y) == 35
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-10-batches-py"]
    archive.unlink()
    assert cifar10(None, download=True).train.x.equal(first.train.x)


def test_a_downloaded_pickle_is_trusted_no_more_than_another(mirror, tmp_path):
    trace = tmp_path / "trace"
    mirror(pickles(pickle.dumps({b"data": Intruder(os.mkdir, str(trace))})))
    root = tmp_path / "root"
    root.mkdir()
    assert "it asks for" in refused(root, download=True)
    assert not trace.exists()


def test_a_failed_download_leaves_nothing_behind(mirror, tmp_path):
    archive = mirror(write_pickles)
    archive.write_bytes(archive.read_bytes()[:-20])
    root = tmp_path / "root"
    root.mkdir()
    assert "could not be downloaded" in refused(root, download=True)
    assert list(root.iterdir()) == []


def test_no_network(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/x.tar.gz")
    line = refused(tmp_path, download=True)
    assert "could not be downloaded" in line
    assert "refused" in line
