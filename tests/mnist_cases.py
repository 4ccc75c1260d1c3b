"""A tiny MNIST: files with the structure of the published ones."""

from __future__ import annotations

import functools
import gzip
import struct

import data_cases as cases
import numpy as np
import torch

from wn.data import sources

SIZE = (6, 5)  # not square, so that swapped axes show
TINY = sources.OFFICIAL["mnist"]._replace(shape=(1, *SIZE), train=(40, 30, 50), test=(3, 5, 4))
SPLITS = ("train", "valid", "test")
mnist = functools.partial(cases.load, "mnist", dtype=torch.float64)
refused = functools.partial(cases.refused, "mnist")


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


def same(a, b):
    return torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
