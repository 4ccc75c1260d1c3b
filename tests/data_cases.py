"""Files of data sets, written as those who publish them write them, and a server for them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import io
import os
import struct
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from wn import data
from wn.config import DataConfig, UserError
from wn.data import sources

SHARED = Path(os.environ.get("WN_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def published(name, tmp_path, files="*.parquet", **changes):
    """What is read from the published files, where they are at hand."""
    found = list((SHARED / name).glob(files))
    if not found:
        pytest.skip("the published files are not here")
    for path in found:
        link = tmp_path / path.name
        link.is_symlink() or link.symlink_to(path)
    return sources.official(DataConfig(name=name, root=str(tmp_path), download=False, **changes))[:2]


def load(name, root, dtype=None, **changes):
    config = {"name": name, "root": root and str(root), "download": False, "valid_fraction": 0.0}
    return data.load(DataConfig(**(config | changes)), **({"dtype": dtype} if dtype else {}))


def refused(name, root, **changes):
    """The one line of the refusal, which says how else the files can be had."""
    with pytest.raises(UserError) as caught:
        load(name, root, **changes)
    line = str(caught.value)
    assert "\n" not in line
    folder = sources.OFFICIAL[name].folder
    assert all(way in line for way in ("data.download=true", "data.root=", folder, "train-*.parquet"))
    return line


def contents(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def md5(content):
    return hashlib.md5(content).hexdigest()


def drawn(counts, shape):
    """Random images [N, *shape] and labels, so many of each class."""
    rng = np.random.default_rng(sum(counts))
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    return rng.integers(0, 256, size=(len(labels), *shape), dtype=np.uint8), labels


def picture(image, mode, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def shard(path, column, contents, labels):
    rows = [{"bytes": content, "path": None} for content in contents]
    pq.write_table(pa.table({column: rows, "label": pa.array(labels)}), path)


def cifar_pickle(images, labels):
    """The published batches are the work of Python 2, whose strings no later pickler writes."""

    def string(content):
        return b"T" + struct.pack("<i", len(content)) + content

    def integer(number):
        return b"J" + struct.pack("<i", number)

    dtype = b"cnumpy\ndtype\n" + string(b"u1") + integer(0) + integer(1) + b"\x87R"
    dtype += b"(" + integer(3) + string(b"|") + b"NNN" + integer(-1) * 2 + integer(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85" + string(b"b")
    array += b"\x87R(" + integer(1) + integer(len(images)) + integer(images[0].size) + b"\x86"
    array += dtype + b"\x89" + string(images.tobytes()) + b"tb"
    numbers = b"](" + b"".join(integer(label) for label in labels) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(b"labels") + numbers + b"u."


@contextlib.contextmanager
def served(folder):
    """Address of a server on this machine that gives out a folder's files."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()
