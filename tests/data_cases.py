"""Files of data sets, written as those who publish them write them, and a server for them."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import struct
import threading

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(image, mode, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def shard(path, column, contents, labels):
    rows = [{"bytes": content, "path": None} for content in contents]
    pq.write_table(pa.table({column: rows, "label": pa.array(labels)}), path)


def cifar_pickle(images, labels):
    """The published batches are the work of Python 2, whose strings no later pickler writes."""
    state = integer(1) + integer(len(images)) + integer(images[0].size) + b"\x86"
    state += NUMPY["dtype"] + string(b"u1") + integer(0) + integer(1) + b"\x87R"
    state += b"(" + integer(3) + string(b"|") + b"NNN" + integer(-1) * 2 + integer(0) + b"tb"
    array = NUMPY["_reconstruct"] + NUMPY["ndarray"] + integer(0) + b"\x85" + string(b"b") + b"\x87R"
    array += b"(" + state + b"\x89" + string(images.tobytes()) + b"tb"
    numbers = b"](" + b"".join(integer(label) for label in labels) + b"e"
    return cifar_dictionary(data=array, labels=numbers)


def cifar_dictionary(**pickled):
    items = b"".join(string(key.encode()) + value for key, value in pickled.items())
    return b"\x80\x02}(" + items + b"u."


NUMPY = {
    "dtype": b"cnumpy\ndtype\n",
    "ndarray": b"cnumpy\nndarray\n",
    "_reconstruct": b"cnumpy.core.multiarray\n_reconstruct\n",
}


def string(content):
    return b"T" + struct.pack("<i", len(content)) + content


def integer(number):
    return b"J" + struct.pack("<i", number)


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
