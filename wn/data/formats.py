"""Readers of the files that data sets come in: idx, parquet, and CIFAR's batches of two kinds.

Each takes the files of one part (training or test) and returns bytes. None trusts what it reads: a file
is data, and whatever is wrong with it is an :class:`Unusable` that begins with its path.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Arrays(NamedTuple):
    """Images [N, C, H, W] and labels [N] (int64); uint8 as published, float32 once whitened."""

    images: np.ndarray[Any, np.dtype[Any]]
    labels: np.ndarray[Any, np.dtype[np.int64]]


class Unusable(Exception):
    """A file, or a set of files, that is there and cannot be used; the text begins with its path."""


def read_idx(files: Sequence[Path], shape: tuple[int, int, int]) -> Arrays:
    """A file of images and one of labels; images without channels, as MNIST's are."""
    images, labels = files
    return Arrays(_read_idx(images, 3)[:, None], _read_idx(labels, 1).astype(np.int64))


def _read_idx(path: Path, dimensions: int) -> Bytes:
    """An idx file of bytes: magic number, sizes as big-endian int32, values.

    torchvision reads these too, but neither gzipped nor with a check that survives ``python -O``.
    """
    content = _content(path)
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, dimensions)):
        raise Unusable(f"{path}: not an idx file of bytes in {dimensions} dimensions")
    shape = [int(n) for n in np.frombuffer(content[4:start], dtype=">u4")]
    if len(content) - start != math.prod(shape):
        raise Unusable(f"{path}: {len(content) - start} bytes of values, where its header says {shape}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _content(path: Path) -> bytearray:
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return bytearray(file.read())
    except (OSError, EOFError, zlib.error) as error:
        raise Unusable(f"{path}: cannot be read ({error})") from None


def read_binary_batches(files: Sequence[Path], shape: tuple[int, int, int]) -> Arrays:
    """CIFAR's binary version: an image is a byte of label, then its channels, each row by row."""
    size = 1 + math.prod(shape)
    parts = []
    for path in files:
        content = _content(path)
        if len(content) % size:
            raise Unusable(f"{path}: {len(content)} bytes, which is no multiple of an image's {size}")
        parts.append(np.frombuffer(content, dtype=np.uint8).reshape(-1, size))
    rows = np.concatenate(parts)
    return Arrays(rows[:, 1:].reshape(-1, *shape), rows[:, 0].astype(np.int64))


def read_pickled_batches(files: Sequence[Path], shape: tuple[int, int, int]) -> Arrays:
    """CIFAR's Python version, which torchvision downloads."""
    parts = [_read_pickle(path, shape) for path in files]
    return _joined(parts)


def _joined(parts: Sequence[Arrays]) -> Arrays:
    return Arrays(np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts]))


class _Noted:
    """Stands in for all that NumPy has in a pickled array, and does nothing but note what it is given.

    NumPy's own classes would do: an array's state can claim that its bytes are pointers to objects.
    """

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Knows the three names of an array of NumPy, and reaches the code of none."""

    ADMITTED = (("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"))

    def find_class(self, module: str, name: str) -> type[_Noted]:
        """What a pickle may call."""
        if (module, name) not in self.ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _Noted


def _read_pickle(path: Path, shape: tuple[int, int, int]) -> Arrays:
    """A batch: a dictionary that holds ``data``, bytes [N, C H W], and ``labels``, a list of integers."""
    content = _content(path)
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        _version, size, dtype, by_columns, values = batch[b"data"].state
        if dtype.args[0] != b"u1" or by_columns or not isinstance(values, bytes):
            raise TypeError("its data are no array of bytes")
        images = np.frombuffer(values, dtype=np.uint8).reshape(size).reshape(-1, *shape)
        labels = np.array(batch[b"labels"])
        if labels.shape != images.shape[:1] or labels.dtype != np.int64:
            raise TypeError("its labels are not an integer per image")
    except Exception as error:  # what a bad pickle raises has no common base
        reason = str(error) or type(error).__name__
        raise Unusable(f"{path}: not a batch of {'x'.join(map(str, shape))} images ({reason})") from None
    return Arrays(images, labels)


def read_parquet(files: Sequence[Path], shape: tuple[int, int, int]) -> Arrays:
    """Images and labels of all shards, in the order of their names."""
    return _joined([_read_shard(path, shape) for path in files])


def _read_shard(path: Path, shape: tuple[int, int, int]) -> Arrays:
    """Hugging Face calls the column of the images ``image``, or ``img``."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            image = "img" if "img" in file.schema_arrow.names else "image"
            columns = [f"{image}.bytes", "label"]
            table = file.read(columns=columns).flatten()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise Unusable(f"{path}: cannot be read ({error})") from None
    if table.column_names != columns or not pyarrow.types.is_integer(table["label"].type):
        raise Unusable(f"{path}: lacks the columns image.bytes or img.bytes (PNG) and label (integer)")
    if table["label"].null_count:
        raise Unusable(f"{path}: has rows without a label")
    images = np.empty((table.num_rows, *shape), dtype=np.uint8)
    for row, content in enumerate(table[columns[0]].to_pylist()):
        try:
            images[row] = _decode(content or b"", shape)
        except Exception as error:  # what Pillow raises on a bad file has no common base
            raise Unusable(f"{path}: row {row} is not a usable image ({error})") from None
    return Arrays(images, table["label"].to_numpy().astype(np.int64))


def _decode(content: bytes, shape: tuple[int, int, int]) -> Bytes:
    """The pixels [C, H, W] of a PNG, or of a WebP that says it lost none."""
    if content[8:12] == b"WEBP" and content[12:16] != b"VP8L":
        raise ValueError("a WebP that is not lossless")
    channels, height, width = shape
    with Image.open(io.BytesIO(content), formats=["PNG", "WEBP"]) as image:
        # All of this is known before a pixel is decoded.
        if image.mode != {1: "L", 3: "RGB"}[channels] or image.size != (width, height):
            raise ValueError(f"mode {image.mode}, {image.width}x{image.height}")
        return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)
