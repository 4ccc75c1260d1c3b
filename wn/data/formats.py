"""Readers of idx files, of torchvision's CIFAR-10 and of parquet: files of one part (training or test) and
the shape (C, H, W) of an image -> bytes. Bad files raise :class:`Unusable`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import warnings
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
    """MNIST's format, a file of images [N, H, W] and one of labels [N]: a magic number (0, 0, 8 for bytes,
    number of dimensions), sizes as big-endian int32, values.
    """
    arrays = []
    for path, dimensions in zip(files, (3, 1), strict=True):
        try:
            with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
                content = bytearray(file.read())  # writable, as torch.from_numpy wants it
            if content[:4] != bytes((0, 0, 8, dimensions)):
                raise ValueError(f"not an idx file of bytes in {dimensions} dimensions")
            sizes = np.frombuffer(content, ">u4", count=dimensions, offset=4)
            arrays.append(np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(sizes))
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise Unusable(f"{path}: cannot be read ({error})") from None
    images, labels = arrays
    return Arrays(images[:, None], labels.astype(np.int64))


def read_cifar10(files: Sequence[Path], shape: tuple[int, int, int]) -> Arrays:
    """The batches that torchvision unpacks: pickles of ``data``, bytes [N, C H W], and ``labels``.

    A pickle can run code, so only bytes with the MD5 that torchvision's class lists are unpickled. The class
    checks them too, but names no file, and opens the files again between its check and its unpickling.
    """
    from torchvision.datasets import CIFAR10  # slow to import

    published = dict([*CIFAR10.train_list, *CIFAR10.test_list])
    parts = []
    for path in files:
        content = path.read_bytes()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != published.get(path.name):
            raise Unusable(f"{path}: not as published (MD5), and so not unpickled")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "dtype")  # the pickles spell False as 0
            batch = pickle.loads(content, encoding="latin1")
        parts.append(Arrays(batch["data"].reshape(-1, *shape), np.array(batch["labels"])))
    return _joined(parts)


def read_parquet(files: Sequence[Path], shape: tuple[int, int, int]) -> Arrays:
    """Hugging Face's shards: columns ``image.bytes`` or ``img.bytes``, a PNG or WebP each, and ``label``."""
    parts = []
    for path in files:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                image = "img" if "img" in file.schema_arrow.names else "image"
                table = file.read(columns=[f"{image}.bytes", "label"]).flatten()
            contents, labels = table[f"{image}.bytes"].to_pylist(), table["label"].to_numpy()
            if labels.dtype.kind not in "iu":  # integers with gaps arrive as floats
                raise ValueError("labels that are missing or not integers")
        except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
            raise Unusable(f"{path}: cannot be read ({error})") from None
        images = np.empty((len(contents), *shape), dtype=np.uint8)
        for row, content in enumerate(contents):
            try:
                images[row] = _decode(content or b"", shape)
            except Exception as error:  # what Pillow raises on a bad file has no common base
                raise Unusable(f"{path}: row {row} is not a usable image ({error})") from None
        parts.append(Arrays(images, labels.astype(np.int64)))
    return _joined(parts)


def _joined(parts: Sequence[Arrays]) -> Arrays:
    return Arrays(np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts]))


def _decode(content: bytes, shape: tuple[int, int, int]) -> Bytes:
    """Pixels [C, H, W] of a PNG or a lossless WebP."""
    if content[8:12] == b"WEBP" and content[12:16] != b"VP8L":
        raise ValueError("a WebP that is not lossless")
    channels, height, width = shape
    with Image.open(io.BytesIO(content), formats=["PNG", "WEBP"]) as image:
        # All of this is known before a pixel is decoded.
        if image.mode != {1: "L", 3: "RGB"}[channels] or image.size != (width, height):
            raise ValueError(f"mode {image.mode}, {image.width}x{image.height}")
        return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)
