"""Data sets as tensors on the device, and the order in which an epoch visits them.

Every data set takes one way: found or downloaded, read into bytes, checked against what was published,
divided, scaled. A new one is a name in :data:`OFFICIAL`, plus what its files have of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import http.client
import io
import math
import socket
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image
from torch import Tensor

from wn.config import Data, UserError

SPLIT_STATE = 0
"""Random state of every split: a run's seed never decides which images are trained on."""

DIGITS_TEST_FRACTION = 0.2
"""The digits come without an official test set."""

TIMEOUT = 20.0
"""Seconds that a silent server is waited for: some networks drop packets instead of refusing them."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images ``x`` [N, C, H, W], scaled, and their labels ``y`` [N], int64."""

    x: Tensor
    y: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits; ``valid`` is empty where nothing is held out."""

    train: Split
    valid: Split
    test: Split
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        channels, height, width = self.train.x.shape[1:]
        return channels, height, width


class Raw(NamedTuple):
    """Images [N, C, H, W] as bytes (uint8) and labels [N] (int64), as they were published."""

    images: np.ndarray[Any, np.dtype[np.uint8]]
    labels: np.ndarray[Any, np.dtype[np.int64]]


@dataclasses.dataclass(frozen=True)
class Official:
    """What was published: images of each class, by which one set is also told from another."""

    name: str
    """Name of torchvision's class and of the folder that it reads."""
    size: tuple[int, int]
    train: tuple[int, ...]
    test: tuple[int, ...]

    @property
    def ways(self) -> str:
        """The three ways to provide the files, for the user who has to choose one."""
        return (
            "let it be downloaded (data.download=true), or name with data.root=... a folder that holds "
            f"{self.name}/raw/*-ubyte, .gz or not (torchvision's layout), or train-*.parquet and "
            "test-*.parquet (Hugging Face's)"
        )


OFFICIAL = {
    "mnist": Official(
        name="MNIST",
        size=(28, 28),
        train=(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        test=(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    ),
    "fashion_mnist": Official(name="FashionMNIST", size=(28, 28), train=(6000,) * 10, test=(1000,) * 10),
}


class Unusable(Exception):
    """A file, or a set of files, that is there and cannot be used; the text begins with its path."""


def load(config: Data, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Dataset:
    """Load a data set, divide it and scale it.

    The splits are stratified by label and always the same. ``digits`` (embedded in scikit-learn, so
    ``config.root`` is not looked at) gives a fifth of all images to the test; the others keep their
    official test set. ``config.valid_fraction`` of the remaining images is held out; 0 trains on all.

    From every pixel the mean of all pixels of the training split is subtracted, and the difference is
    divided by their standard deviation: two numbers for the whole data set, not two per place.

    Args:
        config: which data set, where its files are, and how much of it is held out.
        device: where the tensors shall live.
        dtype: floating-point type of the images.

    Raises:
        UserError: the files are missing, corrupt or of another data set, cannot be downloaded, or
            ``valid_fraction`` leaves a split with fewer images than there are classes.
    """
    rest, test = _digits() if config.name == "digits" else _official(config)
    train, valid = _divide(rest, config.valid_fraction)
    mean, std = _moments(train.images)

    def split(raw: Raw) -> Split:
        # Bytes travel to the device and become floats there: a quarter of the traffic.
        x = torch.from_numpy(raw.images).to(device).to(dtype)
        return Split(x=x.sub_(mean).div_(std), y=torch.from_numpy(raw.labels).to(device))

    return Dataset(split(train), split(valid), split(test), classes=int(np.max(rest.labels)) + 1)


def permutation(seed: int, epoch: int, size: int) -> Tensor:
    """Order in which an epoch visits the training images: int64 [size], on the CPU.

    A pure function of its arguments, so a resumed run needs no state of a loader and every device sees
    the same order. NumPy's ``SeedSequence`` mixes seed and epoch: neighbouring pairs share nothing.

    >>> sorted(permutation(seed=0, epoch=3, size=4).tolist())
    [0, 1, 2, 3]
    """
    mixed = np.random.SeedSequence(seed, spawn_key=(epoch,))
    return torch.from_numpy(np.random.default_rng(mixed).permutation(size).astype(np.int64, copy=False))


def _divide(raw: Raw, fraction: float) -> tuple[Raw, Raw]:
    """What stays and what is held out, stratified by label."""
    if fraction == 0:
        return raw, Raw(raw.images[:0], raw.labels[:0])
    try:
        import sklearn.model_selection  # slow to import, and not needed to say that data are missing

        stays, held = sklearn.model_selection.train_test_split(
            np.arange(len(raw.labels)), test_size=fraction, stratify=raw.labels, random_state=SPLIT_STATE
        )
    except ValueError:
        raise UserError(
            f"data.valid_fraction={fraction}: training and validation each need at least one image a class, "
            f"and there are {len(raw.labels)} images to divide; give 0 to hold none out"
        ) from None
    return Raw(raw.images[stays], raw.labels[stays]), Raw(raw.images[held], raw.labels[held])


def _moments(images: np.ndarray[Any, np.dtype[np.uint8]]) -> tuple[float, float]:
    """Mean and standard deviation of all pixels, from their histogram: exact in whatever order they come."""
    counts = torch.bincount(torch.from_numpy(images).flatten(), minlength=256).double()
    values = torch.arange(256, dtype=torch.float64)
    mean = (counts @ values) / counts.sum()
    variance = (counts @ (values - mean).square()) / counts.sum()
    return mean.item(), variance.sqrt().item()


def _digits() -> tuple[Raw, Raw]:
    import sklearn.datasets  # slow to import

    bunch = sklearn.datasets.load_digits()  # grey levels are whole numbers from 0 to 16
    images = bunch.images[:, None].astype(np.uint8)
    return _divide(Raw(images, bunch.target.astype(np.int64)), DIGITS_TEST_FRACTION)


def _official(config: Data) -> tuple[Raw, Raw]:
    """Official training and test set, from the first source that is there."""
    official = OFFICIAL[config.name]
    root = Path(config.root or "data").expanduser()
    if not root.is_dir() and (config.root or root.exists()):
        raise UserError(f"data.root={root}: no such folder; create it and {official.ways}")
    try:
        parts = _read(root, official)
        if parts is None and config.download:
            _download(root, official)
            parts = _read(root, official)
    except (Unusable, OSError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"{line}; move that away and {official.ways}") from None
    if parts is None:
        raise UserError(f"data.root={root}: no complete {official.name} there; {official.ways}")
    return parts


def _read(root: Path, official: Official) -> tuple[Raw, Raw] | None:
    """Training and test set from torchvision's layout or parquet; None where neither is complete."""
    for folder in (root / official.name / "raw", root / "raw", root):
        train, test = _idx_files(folder, "train"), _idx_files(folder, "t10k")
        if train and test:
            return (
                _checked(_read_idx_pair(*train), official, official.train, folder / "train-*"),
                _checked(_read_idx_pair(*test), official, official.test, folder / "t10k-*"),
            )
    shards = sorted(root.glob("train-*.parquet")), sorted(root.glob("test-*.parquet"))
    if all(shards):
        return (
            _checked(_read_parquet(shards[0], official), official, official.train, root / "train-*.parquet"),
            _checked(_read_parquet(shards[1], official), official, official.test, root / "test-*.parquet"),
        )
    return None


def _checked(raw: Raw, official: Official, counts: tuple[int, ...], source: Path) -> Raw:
    """The same, if it is what was published."""
    shape = (sum(counts), 1, *official.size)
    if raw.images.shape != shape:
        raise Unusable(f"{source}: images of shape {raw.images.shape}, where {official.name} has {shape}")
    found = tuple(int((raw.labels == k).sum()) for k in range(len(counts)))
    if found != counts or len(raw.labels) != sum(counts):
        raise Unusable(f"{source}: not {official.name}, whose classes have other numbers of images")
    return raw


def _idx_files(folder: Path, part: str) -> tuple[Path, Path] | None:
    """Files of the images and of the labels, gzipped or not; None unless both are there."""
    found = []
    for stem in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
        found += [path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()][:1]
    return (found[0], found[1]) if len(found) == 2 else None


def _read_idx_pair(images: Path, labels: Path) -> Raw:
    return Raw(_read_idx(images, 3)[:, None], _read_idx(labels, 1).astype(np.int64))


def _read_idx(path: Path, dimensions: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An idx file of bytes: magic number, sizes as big-endian int32, values.

    torchvision reads these too, but neither gzipped nor with a check that survives ``python -O``.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = bytearray(file.read())
    except (OSError, EOFError, zlib.error) as error:
        raise Unusable(f"{path}: cannot be read ({error})") from None
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, dimensions)):
        raise Unusable(f"{path}: not an idx file of bytes in {dimensions} dimensions")
    shape = [int(n) for n in np.frombuffer(content[4:start], dtype=">u4")]
    if len(content) - start != math.prod(shape):
        raise Unusable(f"{path}: {len(content) - start} bytes of values, where its header says {shape}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _read_parquet(shards: list[Path], official: Official) -> Raw:
    """PNG images and labels of all shards, in the order of their names."""
    parts = [_read_shard(path, official) for path in shards]
    return Raw(np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts]))


def _read_shard(path: Path, official: Official) -> Raw:
    columns = ["image.bytes", "label"]
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read(columns=columns).flatten()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise Unusable(f"{path}: cannot be read ({error})") from None
    if table.column_names != columns or not pyarrow.types.is_integer(table["label"].type):
        raise Unusable(f"{path}: lacks the columns image.bytes (PNG) and label (integer)")
    if table["label"].null_count:
        raise Unusable(f"{path}: has rows without a label")
    images = np.empty((table.num_rows, 1, *official.size), dtype=np.uint8)
    for row, png in enumerate(table["image.bytes"].to_pylist()):
        try:
            images[row, 0] = _decode_png(png, official.size)
        except Exception as error:  # what Pillow raises on a bad file has no common base
            raise Unusable(f"{path}: row {row} is not a usable PNG ({error})") from None
    return Raw(images, table["label"].to_numpy().astype(np.int64))


def _decode_png(png: bytes | None, size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(io.BytesIO(png or b""), formats=["PNG"]) as image:
        if image.mode != "L" or image.size != size[::-1]:  # known before a pixel is decoded
            raise ValueError(f"mode {image.mode}, {image.width}x{image.height}")
        return np.asarray(image)


def _download(root: Path, official: Official) -> None:
    """Have torchvision download and verify the files, then move them to where it would look for them.

    It works in a folder of its own: a killed download leaves no half file in the user's folder, another
    process cannot meet one, and a file that is already there stays as it is.
    """
    import torchvision.datasets  # slow to import, and needed here alone

    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as scratch, _impatient():
            getattr(torchvision.datasets, official.name)(scratch, download=True)
            target = root / official.name / "raw"
            target.mkdir(parents=True, exist_ok=True)
            for path in (Path(scratch) / official.name / "raw").iterdir():
                if not (target / path.name).exists():
                    path.rename(target / path.name)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        # torchvision names each mirror and what it answered on a line of its own.
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(
            f"data.root={root}: {official.name} could not be downloaded there ({reason}); {official.ways}"
        ) from None


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Connections opened inside give up after :data:`TIMEOUT`."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
