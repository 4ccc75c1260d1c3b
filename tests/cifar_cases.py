"""A tiny CIFAR-10: files with the structure of the published ones."""

from __future__ import annotations

import pickle
import shutil
import tarfile

import data_cases as cases
import numpy as np

from wn.data import sources

TINY = sources.OFFICIAL["cifar10"]._replace(shape=(3, 4, 6), train=(12, 9, 14), test=(3, 5, 4))
FOLDER = "cifar-10-batches-py"


def arrays(part, order=None, shape=TINY.shape):
    """Images and labels of the tiny data set; layouts have them in different orders."""
    images, labels = cases.drawn({"train": TINY.train, "test": TINY.test}[part], shape)
    images[::2, 0, 0, :2] = 0  # ties between the first pixels
    order = np.arange(len(labels)) if order is None else np.random.default_rng(order).permutation(len(labels))
    return images[order], labels[order]


def batches(shape=TINY.shape):
    images, labels = arrays("train", shape=shape)
    split = {f"data_batch_{k + 1}": slice(7 * k, 7 * k + 7) for k in range(5)}
    files = {name: cases.cifar_pickle(images[at], labels[at]) for name, at in split.items()}
    meta = pickle.dumps({"label_names": ["a", "b", "c"]})
    return files | {"test_batch": cases.cifar_pickle(*arrays("test", shape=shape)), "batches.meta": meta}


def write_batches(root, folder=FOLDER, shape=TINY.shape, **changed):
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name, content in (batches(shape) | changed).items():
        (root / folder / name).write_bytes(content)


def write_parquet(root, column="img", folder=".", **options):
    (root / folder).mkdir(exist_ok=True)
    for part in ("train", "test"):
        images, labels = arrays(part, order=2)
        contents = [cases.picture(image.transpose(1, 2, 0), "RGB", **options) for image in images]
        for k, chosen in enumerate(np.array_split(np.arange(len(labels)), 2)):
            path = root / folder / f"{part}-{k:05}-of-00002.parquet"
            cases.shard(path, column, [contents[i] for i in chosen], labels[chosen])


def write_archive(root, **changed):
    write_batches(root / "files", **changed)
    with tarfile.open(root / TINY.archive, "w:gz") as tar:
        tar.add(root / "files" / FOLDER, FOLDER)
    shutil.rmtree(root / "files")
    return root / TINY.archive
